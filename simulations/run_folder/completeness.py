"""Proof that the CSV files of a run folder hold every row up to a checkpoint, before the run goes on from it."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev

from fedkd.errors import RunFolderError
from simulations.run_folder.csv_rows import complete_lines

Rows = list[dict[str, str]]
"""Rows of a CSV file by column."""


def complete_rows(path: Path, last: int) -> Rows:
    """The rows of ``path`` up to round or epoch ``last``. A last line without its end does not count.

    Raises:
        RunFolderError: the file is missing or not CSV, or a row has another number of cells than the header.
    """
    try:
        header, *rows = csv.reader(complete_lines(path), strict=True)
        kept = [row for row in rows if int(row[0]) <= last]
    except (OSError, ValueError, IndexError, csv.Error) as error:
        found = error.strerror.lower() if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
        raise damaged(path, last, found) from error
    if header[0] not in ("round", "epoch"):
        raise damaged(path, last, f"no columns but {', '.join(header[:3])}")
    if wrong := next((row for row in kept if len(row) != len(header)), None):
        raise damaged(path, last, f"a row of {len(wrong)} cells under {len(header)} columns in round {wrong[0]}")
    return [dict(zip(header, row)) for row in kept]


def check_numbers(path: Path, rows: Rows, numbers: Sequence[int]) -> None:
    """Check that there is one row for each of ``numbers``, in this order, and that all cells are numbers or empty.

    Raises:
        RunFolderError: a row is missing or stands twice, or a cell holds something else.
    """
    last = numbers[-1] if numbers else 0
    found = [int(next(iter(row.values()))) for row in rows]
    if found != list(numbers):
        missing = sorted(set(numbers) - set(found))
        raise damaged(path, last, f"no row {', '.join(map(str, missing[:5]))}" if missing else "rows twice or in another order")
    for number, row in zip(numbers, rows):
        for name, cell in row.items():
            try:
                float(cell or 0)
            except ValueError:
                raise damaged(path, last, f"{cell!r} as {name} of row {number}") from None


def check_federated_rows(folder: Path, done: int, may_drop: bool) -> None:
    """Check that ``metrics.csv`` and ``clients.csv`` hold all rows of the rounds 1..``done``.

    A round has as many rows of clients that trained as its row of ``metrics.csv`` counts. In an evaluated round the accuracies of the
    clients have the spread and the worst tenth that this row gives.

    Args:
        folder: the run folder.
        done: rounds, >= 0.
        may_drop: clients that fail are left out, so that the clients of two rounds can differ.

    Raises:
        RunFolderError: a row is missing or damaged.
    """
    if done == 0:
        return
    path, of_clients = folder / "metrics.csv", folder / "clients.csv"
    metrics = complete_rows(path, done)
    check_numbers(path, metrics, range(1, done + 1))
    if not any(row.get("train_loss") for row in metrics):  # a strategy of Flower, which writes no rows of clients
        return
    clients: dict[str, Rows] = {}
    for row in complete_rows(of_clients, done):
        clients.setdefault(row["round"], []).append(row)
    tested_before: set[int] | None = None
    for row in metrics:
        rows = clients.get(row["round"], [])
        try:
            trained, expected = sum(int(one["trained"]) for one in rows), int(row["num_clients_aggregated"])
            accuracies = sorted(float(one["local_test_accuracy"]) for one in rows if one["local_test_accuracy"])
            names = {int(one["client_id"]) for one in rows if one["local_test_accuracy"]}
            everyone = {int(one["client_id"]) for one in rows}
            spread, worst = (float(row[f"local_test_accuracy_{name}"] or "nan") for name in ("std", "bottom10"))
        except (KeyError, ValueError) as error:
            raise damaged(of_clients, done, f"{type(error).__name__}: {error} in round {row['round']}") from error
        if trained != expected or len(everyone) != len(rows):
            raise damaged(of_clients, done, f"{trained} of {expected} clients that trained in round {row['round']}")
        if bool(accuracies) == math.isnan(spread) or (accuracies and not _agree(accuracies, spread, worst)):
            raise damaged(of_clients, done, f"accuracies of other clients than metrics.csv in round {row['round']}")
        if accuracies and not may_drop and tested_before not in (None, names):
            raise damaged(of_clients, done, f"accuracies of {len(names)} clients in round {row['round']}")
        tested_before = names if accuracies else tested_before


def _agree(accuracies: Sequence[float], spread: float, worst: float) -> bool:
    """The sorted accuracies have this standard deviation and this mean of the worst tenth."""
    tenth = accuracies[: max(1, len(accuracies) // 10)]
    return math.isclose(pstdev(accuracies), spread, abs_tol=1e-9) and math.isclose(fmean(tenth), worst, abs_tol=1e-9)


def check_distillation_rows(folder: Path, done: int) -> None:
    """Check that ``metrics.csv`` holds all rows of the epochs 0..``done``.

    Raises:
        RunFolderError: a row is missing or damaged.
    """
    path = folder / "metrics.csv"
    check_numbers(path, complete_rows(path, done), range(done + 1))


def damaged(path: Path, done: int, found: str) -> RunFolderError:
    """The error for a file that lacks rows."""
    rule = f"output must hold all rows up to the checkpoint of round {done}"
    return RunFolderError(f"{rule}, got in {path} {found}; force=true starts the run again")
