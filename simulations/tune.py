"""``python -m simulations.tune strategy=fedavg,fedgen rounds=50``: the learning rate of every strategy, from the same grid, on held-out training data.

Every client holds out a share of its training examples; the others are trained on, and each value of the grid is judged by the mean
accuracy of the last ten evaluated rounds on what was held out (own labels: every strategy has it). No test example is seen. The choice is
appended to a CSV file, which a run reads with ``tuned=<file>``.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

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


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m simulations.tune", description=__doc__.partition("\n\n")[0])
    parser.add_argument("overrides", nargs="*", help="as of simulations.run; strategy may name several, separated by commas")
    parser.add_argument("--key", default="optimizer.lr", help="what is chosen (optimizer.lr)")
    parser.add_argument("--grid", type=float, nargs="+", default=[0.01, 0.03, 0.1], help="from these values (0.01 0.03 0.1)")
    parser.add_argument("--validation", type=float, default=0.2, help="share of each client's training examples that is held out (0.2)")
    parser.add_argument("--table", type=Path, help="the file of choices (<output>/<name>/tuned.csv)")
    arguments = parser.parse_args(argv)
    with explained():
        named = [one for one in arguments.overrides if one.startswith("strategy=")]
        others = [one for one in arguments.overrides if one not in named]
        strategies = named[-1].partition("=")[2].split(",") if named else [compose([*others]).choices["strategy"]]
        config = compose([*others, f"strategy={strategies[0]}"])
        table = arguments.table or Path(config.output) / config.name / "tuned.csv"
        for strategy in strategies:
            tune(arguments.key, arguments.grid, arguments.validation, [*others, f"strategy={strategy}"], table)
        print(f"table: {table}")


if __name__ == "__main__":
    sys.exit(main())
