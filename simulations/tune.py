"""``python -m simulations.tune strategy=fedavg,fedgen rounds=50``: the learning rate of every strategy, from the same grid, on held-out training data.

Every client holds out a share of its training examples; the others are trained on, and each value of the grid is judged by the mean
accuracy of the last ten evaluated rounds on what was held out (own labels: every strategy has it). No test example is seen. The choice is
appended to a CSV file, beside what every value has cost, which a run reads with ``tuned=<file>`` and notes in its folder (``tuned.json``).
"""

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fedkd.check import require
from fedkd.exchange import ClientFailure
from simulations.command import compose, explained
from simulations.experiment import home_of, there_is
from simulations.experiment import key as key_of
from simulations.rows import append, header_of, widen
from simulations.run import execute

COST = ("rounds_done", "client_updates", "seconds")
DIVERGED = "no longer finite"

COLUMNS = ("strategy", "key", "value", "accuracy", "rounds", "seed", "chosen", "folder", "validation", *COST)


def tune(key: str, grid: Sequence[float], share: float, overrides: Sequence[str], table: Path) -> float:
    """Try every value of ``grid`` for ``key``, append a row for each to ``table``, and return the best; of equals the first.

    A value with which training diverges counts as accuracy 0.

    Raises:
        ValueError: the configuration is wrong, or training diverges with every value.
    """
    rows = []
    for value in grid:
        config = trial(compose(list(overrides)), key, value, share)
        try:
            folder = execute(config)
            accuracy = judged(folder)
        except ClientFailure as error:
            if DIVERGED not in str(error):
                raise
            folder, accuracy = there_is(home_of(config))[key_of(config)][1], 0.0
        rows.append(tried(config, key, value, accuracy, folder))
    return choose(rows, table)


def trial(config: DictConfig, key: str, value: float, share: float) -> DictConfig:
    """The run that tries ``value``: judged on a ``share`` of each client's training examples, which nobody trains on."""
    OmegaConf.update(config, key, value)
    config.validation, config.evaluation.examples = share, "validation"
    return config


def tried(config: DictConfig, key: str, value: float, accuracy: float, folder: Path) -> dict[str, object]:
    """The row of a value that was tried, with what it has cost; ``folder`` is that of its run."""
    strategy = config.choices.get("strategy", config.strategy["_target_"])
    row = {"strategy": strategy, "key": key, "value": value, "accuracy": accuracy, "rounds": config.rounds, "seed": config.seed}
    return {**row, "folder": str(Path(*folder.parts[-2:])) if accuracy else "", "validation": config.validation, **cost(folder)}


def cost(folder: Path) -> dict[str, float]:
    """What a run has computed so far: rounds, clients' updates that they used, and seconds by the run's own clocks."""
    rows = []
    if (folder / "metrics.csv").exists():  # not where the first round has diverged
        with open(folder / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    seconds = sum(float(row[f"seconds_{phase}"] or 0) for row in rows for phase in ("local", "server", "evaluate"))
    return {
        "rounds_done": len(rows),
        "client_updates": sum(int(row["num_participants"] or 0) for row in rows),
        "seconds": round(seconds, 2),
    }


def choose(rows: Sequence[dict[str, object]], table: Path) -> float:
    """Append the rows of one search to ``table``, say which value is chosen and what the search has cost, and return it.

    Raises:
        ValueError: training diverged with every value.
    """
    best = max(rows, key=lambda row: row["accuracy"])
    values = [row["value"] for row in rows]
    require(best["accuracy"] > 0, best["key"], "must leave training finite with one value of the grid at least (smaller ones)", values)
    table.parent.mkdir(parents=True, exist_ok=True)
    if (header := header_of(table)) is not None and not set(COLUMNS) <= set(header):
        widen(table, [*header, *(name for name in COLUMNS if name not in header)])
    append(table, COLUMNS, [{**row, "chosen": int(row is best)} for row in rows])
    shown = ", ".join(f"{row['value']:g}: {row['accuracy']:.4f}" for row in rows)
    total = {name: sum(row[name] for row in rows) for name in COST}
    print(f"tuned: {best['strategy']} {best['key']}={best['value']:g} (held-out accuracy on own labels {shown}){edge(rows, best)}")
    print(
        f"cost: {len(rows)} runs, {total['rounds_done']} rounds, {total['client_updates']} client updates, {total['seconds']:.1f} s",
        flush=True,
    )
    return best["value"]


def edge(rows: Sequence[dict[str, object]], best: dict[str, object]) -> str:
    """A warning where the best value has others on one side alone."""
    values = sorted(row["value"] for row in rows)
    return "; the last of the grid: a better one may lie beyond" if best["value"] in (values[0], values[-1]) else ""


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
