"""Proof that the CSV files of a run folder hold every row up to a checkpoint, before the run goes on from it."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean, pstdev

from fedkd.errors import RunFolderError
from fedkd.files import write_atomically
from simulations.run_folder.csv_rows import clients_file, complete_lines, count

COUNTED = ("generator.csv", "latents.csv", "tasks.csv", "distilled.csv", "flow.csv")
"""Files that grow and have any number of rows in a round, so that checkpoints count them."""

LATER = ("distilled.csv",)
"""Files whose row of a round is written after the checkpoint of this round."""

Rows = list[dict[str, str]]
"""Rows of a CSV file by column."""


def complete_rows(path: Path, last: int) -> Rows:
    """The rows of ``path`` up to round or epoch ``last``. A last line without its end does not count.

    Raises:
        RunFolderError: the file is missing or not CSV, or a row has another number of cells than the header.
    """
    return list(_rows(path, last))


def _rows(path: Path, last: int) -> Iterator[dict[str, str]]:
    """The rows of :func:`complete_rows`, one at a time, as a file may have millions."""
    try:
        rows = csv.reader(complete_lines(path), strict=True)
        header = next(rows, [])
        if header[0] not in ("round", "epoch"):
            raise damaged(path, last, f"no columns but {', '.join(header[:3])}")
        for row in rows:
            if int(row[0]) <= last:
                if len(row) != len(header):
                    raise damaged(path, last, f"a row of {len(row)} cells under {len(header)} columns in round {row[0]}")
                yield dict(zip(header, row))
    except RunFolderError:
        raise
    except (OSError, ValueError, IndexError, csv.Error) as error:
        found = error.strerror.lower() if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
        raise damaged(path, last, found) from error


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


def check_federated_rows(folder: Path, done: int, may_drop: bool, sampled: bool = False) -> None:
    """Check that ``metrics.csv`` and ``clients.csv`` hold all rows of the rounds 1..``done``.

    A round has as many rows of clients that trained as its row of ``metrics.csv`` counts. In an evaluated round the accuracies of the
    clients have the spread and the worst tenth that this row gives.

    Args:
        folder: the run folder.
        done: rounds, >= 0.
        may_drop: clients that fail are left out, or data drift, so that the clients of two rounds can differ.
        sampled: each evaluated round has a sample of the clients, of the same size.

    Raises:
        RunFolderError: a row is missing or damaged.
    """
    if done == 0:
        return
    path, of_clients = folder / "metrics.csv", clients_file(folder)
    metrics = complete_rows(path, done)
    check_numbers(path, metrics, range(1, done + 1))
    if not any(row.get("train_loss") for row in metrics):  # a strategy of Flower, which writes no rows of clients
        return
    tested_before: set[int] | int | None = None
    for row, rows in _with_clients(metrics, _rows(of_clients, done), of_clients, done):
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
        tested = len(names) if sampled else names
        if accuracies and not may_drop and tested_before not in (None, tested):
            raise damaged(of_clients, done, f"accuracies of {len(names)} clients in round {row['round']}")
        tested_before = tested if accuracies else tested_before


def _with_clients(metrics: Rows, clients: Iterable[dict[str, str]], path: Path, done: int) -> Iterator[tuple[dict[str, str], Rows]]:
    """Each row of ``metrics.csv`` with the rows of its clients.

    Args:
        metrics: all rows up to round ``done``.
        clients: rows of clients in the order of rounds.
        path: the file with these, for the message.
        done: the round, for the message.

    Raises:
        RunFolderError: rows of clients are in another order, or of other rounds.
    """
    groups = groupby(clients, lambda row: row["round"])
    of, found = next(groups, (None, iter(())))
    for row in metrics:
        if of == row["round"]:
            yield row, list(found)
            of, found = next(groups, (None, iter(())))
        else:
            yield row, []
    if of is not None:
        raise damaged(path, done, f"rows of round {of} in another order")


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


def write_row_counts(folder: Path, done: int) -> None:
    """Count the rows of the rounds or epochs up to ``done`` in each of :data:`COUNTED` that exists, before the checkpoint is written.

    ``rows.json`` holds the counts of the last checkpoints by their round. There is no such file without these files.
    """
    if counts := {name: count(folder / name, done - (name in LATER)) for name in COUNTED if (folder / name).exists()}:
        earlier = {key: value for key, value in read_row_counts(folder).items() if int(key) < done}
        kept = dict(sorted(earlier.items(), key=lambda item: int(item[0]))[-2:])  # those of the two generations of checkpoints
        write_atomically(folder / "rows.json", (json.dumps({**kept, str(done): counts}, indent=1) + "\n").encode())


def read_row_counts(folder: Path) -> dict[str, dict[str, int]]:
    """``rows.json``; empty without it.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = folder / "rows.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(int(done)): {str(name): int(number) for name, number in counts.items()} for done, counts in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{path} must be what a run has written, got {error}; force=true starts the run again") from error


def check_row_counts(folder: Path, done: int) -> None:
    """Check that each of :data:`COUNTED` holds as many rows as the checkpoint of round or epoch ``done`` has counted.

    Raises:
        RunFolderError: a row is missing or damaged.
    """
    for name, expected in read_row_counts(folder).get(str(done), {}).items():
        found = len(complete_rows(folder / name, done - (name in LATER)))
        if found != expected:
            raise damaged(folder / name, done, f"{found} of {expected} rows")


def damaged(path: Path, done: int, found: str) -> RunFolderError:
    """The error for a file that lacks rows."""
    rule = f"output must hold all rows up to the checkpoint of round {done}"
    return RunFolderError(f"{rule}, got in {path} {found}; force=true starts the run again")
