"""``python -m simulations.tune strategy=fedavg,fedgen rounds=50``: the learning rate of every strategy, from the same grid, on held-out training data.

Every client holds out a share of its training examples; the others are trained on, and each value of the grid is judged by the mean
accuracy of the last ten evaluated rounds on what was held out (own labels: every strategy has it). No test example is seen. The choice is
appended to a CSV file, which a run reads with ``tuned=<file>``.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from fedkd.check import require
from fedkd.exchange import ClientFailure
from simulations.command import compose, explained
from simulations.record import append
from simulations.run import execute

COLUMNS = ("strategy", "key", "value", "accuracy", "rounds", "seed", "chosen", "folder")


def tune(key: str, grid: Sequence[float], share: float, overrides: Sequence[str], table: Path) -> float:
    """Try every value of ``grid`` for ``key``, append a row for each to ``table``, and return the best; of equals the first.

    A value with which training diverges counts as accuracy 0.

    Raises:
        ValueError: the configuration is wrong, or training diverges with every value.
    """
    rows = []
    for value in grid:
        config = compose([*overrides, f"{key}={value}", f"validation={share}", "evaluation.examples=validation"])
        strategy = config.choices.get("strategy", config.strategy["_target_"])
        row = {"strategy": strategy, "key": key, "value": value, "rounds": config.rounds, "seed": config.seed}
        try:
            folder = execute(config)
            rows.append({**row, "accuracy": judged(folder), "folder": str(folder.relative_to(Path(config.output).absolute()))})
        except ClientFailure as error:
            if "no longer finite" not in str(error):
                raise
            rows.append({**row, "accuracy": 0.0})
    best = max(rows, key=lambda row: row["accuracy"])
    require(best["accuracy"] > 0, key, "must leave training finite with one value of the grid at least (smaller ones)", list(grid))
    table.parent.mkdir(parents=True, exist_ok=True)
    append(table, COLUMNS, [{**row, "chosen": int(row is best)} for row in rows])
    shown = ", ".join(f"{row['value']:g}: {row['accuracy']:.4f}" for row in rows)
    print(f"tuned: {best['strategy']} {key}={best['value']:g} (held-out accuracy on own labels {shown})", flush=True)
    return best["value"]


def judged(folder: Path) -> float:
    """The mean of the last ten evaluated rounds on own labels."""
    with open(folder / "metrics.csv", newline="") as file:
        values = [float(row["accuracy_own_labels"]) for row in csv.DictReader(file) if row["accuracy_own_labels"]][-10:]
    return sum(values) / len(values)


def parser(prog: str, part: str, about: str, share: str) -> argparse.ArgumentParser:
    """What the commands that tune have in common."""
    made = argparse.ArgumentParser(prog=prog, description=about.partition("\n\n")[0])
    made.add_argument("overrides", nargs="*", help=f"of the configuration; {part} may name several, separated by commas")
    made.add_argument("--validation", type=float, default=0.2, help=f"share of {share} that is held out (0.2)")
    made.add_argument("--table", type=Path, help="the file of choices (<output>/<name>/tuned.csv)")
    return made


def each(
    arguments: argparse.Namespace, part: str, composing: Callable[[list[str]], DictConfig], work: Callable[[list[str], Path], object]
) -> None:
    """Do the work for every option of ``part`` that is named, or the one that is shipped, and say where the table is."""
    with explained():
        named = [one for one in arguments.overrides if one.startswith(f"{part}=")]
        others = [one for one in arguments.overrides if one not in named]
        options = named[-1].partition("=")[2].split(",") if named else [composing(others).choices[part]]
        config = composing([*others, f"{part}={options[0]}"])
        table = arguments.table or Path(config.output) / config.name / "tuned.csv"
        for option in options:
            work([*others, f"{part}={option}"], table)
        print(f"table: {table}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    asked = parser("python -m simulations.tune", "strategy", __doc__, "each client's training examples")
    asked.add_argument("--key", default="optimizer.lr", help="what is chosen (optimizer.lr)")
    asked.add_argument("--grid", type=float, nargs="+", default=[0.01, 0.03, 0.1], help="from these values (0.01 0.03 0.1)")
    arguments = asked.parse_args(argv)
    each(
        arguments, "strategy", compose, lambda overrides, table: tune(arguments.key, arguments.grid, arguments.validation, overrides, table)
    )


if __name__ == "__main__":
    sys.exit(main())
