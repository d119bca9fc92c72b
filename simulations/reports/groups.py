"""Run folders side by side: which can be compared, what they have in common, and how what they have not is called."""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from simulations.run_folder.metric_names import ACCURACIES
from simulations.run_folder.reader import SETTING, STRATEGY, FederatedRun, natural_order, option

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ only in the seed, in its order; ``label`` = ``line`` (which strategy) with ``setting`` (on which data).

    ``tuned`` says whether runs took values chosen on held-out data (``tuned``, ``untuned``); empty where no run of the report did. Runs whose
    choice was the configuration's own value are in two groups, one of either kind.
    """

    runs: tuple[FederatedRun, ...]
    label: str
    line: str
    setting: str
    tuned: str = ""

    @property
    def block(self) -> tuple[str, str]:
        """Whose results can be ranked together: those on one setting, tuned ones and untuned ones apart."""
        return self.setting, self.tuned

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)


def comparable(runs: Sequence[FederatedRun]) -> tuple[list[FederatedRun], list[str]]:
    """The runs that can stand side by side, and a note on each that is left out.

    Runs that were judged on training examples, as trials of ``simulations.experiments.tuning`` are, have no test accuracy, and are left out.
    On one setting, the runs are kept that have the rounds and the evaluation of most of them (of the longest, where that is a tie);
    of two runs that differ in nothing, the first.
    """
    kept: dict[Hashable, FederatedRun] = {}
    said = "judged on held-out training examples (evaluation.split=validation), as trials of tuning are"
    notes = [f"{run.folder}: {said}" for run in runs if run.trial]
    runs = [run for run in runs if not run.trial]
    for setting in gather(runs, lambda run: run.part(SETTING)):
        shapes = Counter(run.shape for run in setting)
        usual = max(shapes, key=lambda shape: (shapes[shape], shape[:2], str(sorted(shape[2], key=str))))
        for run in setting:
            key = run.identity, run.seed
            if run.shape != usual:
                got, most = (f"{shape[0]} rounds, {len(shape[1])} of them evaluated" for shape in (run.shape, usual))
                notes.append(f"{run.folder}: {got}, unlike most runs of its setting or the longer ones ({most}); report it by itself")
            elif key in kept:
                same = "and" if run.metrics[list(ACCURACIES)].equals(kept[key].metrics[list(ACCURACIES)]) else "BUT NOT"
                notes.append(f"{run.folder}: the same configuration and seed as {kept[key].folder}, {same} the same accuracies")
            else:
                kept[key] = run
    return list(kept.values()), notes


def group(runs: Sequence[FederatedRun]) -> list[Group]:
    """Runs that differ only in the seed, together; sorted by setting, then FedAvg first, then by label."""
    groups = [sorted(same, key=lambda run: run.seed) for same in gather(runs, lambda run: run.identity)]
    kinds = ("tuned", "untuned") if any("tuned" in run.kinds for run in runs) else ("",)
    labelled = []
    for same, terms in zip(groups, _terms([same[0] for same in groups]), strict=True):
        setting = ", ".join(text for key, text in terms.items() if SETTING.match(key))
        line = [text for key, text in terms.items() if not SETTING.match(key)]
        for kind in kinds:
            mine, more = tuple(run for run in same if not kind or kind in run.kinds), [kind] if kind else []
            if mine:
                labelled.append(Group(mine, ", ".join([*terms.values(), *more]), ", ".join([*line, *more]), setting, kind))
    return sorted(labelled, key=lambda one: (natural_order(one.setting), one.tuned, *place(one.line)))


def place(line: str) -> tuple[bool, list[tuple[float, str]]]:
    """A key by which FedAvg comes first, and the others in natural order."""
    return not re.match(r"fedavg\b", line), natural_order(line)


def _terms(runs: Sequence[FederatedRun]) -> list[dict[str, str]]:
    """What tells each run from the others: ``{"strategy.": "fedgen", "partition.alpha": "alpha 0.1"}``.

    The name of the option chosen for a part (its key ends in a dot) stands where the options differ, and ``key value`` where runs of the
    same option differ in it. The parts of the strategy's side count only between runs of the same strategy.
    """
    keys = {key for run in runs for key in run.values}
    keys |= {key.partition(".")[0] + "." for key in keys if "." in key}
    columns: dict[str, list[Hashable]] = {}
    terms: list[dict[str, Hashable]] = [{"strategy.": run.strategy} for run in runs]
    for key in sorted(keys, key=lambda key: (not SETTING.match(key), key)):
        head = key.partition(".")[0]
        column = [option(run.config, head) if key.endswith(".") else run.values.get(key) for run in runs]
        if key == "strategy." or len(set(column)) == 1:
            continue
        kin = [(run.strategy if STRATEGY.match(key) else "", None if key.endswith(".") else option(run.config, head)) for run in runs]
        held: dict[Hashable, set[Hashable]] = {}
        for value, mine in zip(column, kin, strict=True):
            held.setdefault(mine, set()).add(value)
        differs = [len(held[mine]) > 1 for mine in kin]
        again = any(column == other and _leaf(key) == _leaf(shown) for shown, other in columns.items())  # one knob, interpolated
        if any(differs) and not again:
            columns[key] = column
            for term, value, shown in zip(terms, column, differs, strict=True):
                term |= {key: value} if shown else {}
    leaves = Counter(map(_leaf, columns))
    return [{key: _text(key, value, leaves[_leaf(key)] > 1) for key, value in term.items()} for term in terms]


def _leaf(key: str) -> str:
    return key if key.endswith(".") else key.rpartition(".")[2]


def _text(key: str, value: Hashable, ambiguous: bool) -> str:
    """``alpha 0.1``; ``partition.alpha 0.1`` where another ``alpha`` is shown too; the bare value for the name of an option."""
    name = key if ambiguous or key.endswith(".") else _leaf(key)
    if name == "path":
        return Path(str(value)).stem
    if name == "trace" and value is not None:
        return f"trace {Path(str(value)).stem}"
    return f"no {name.strip('.')}" if value is None else str(value) if key.endswith(".") else f"{name} {value}"


def gather(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Items of equal key together, in the order in which the keys first occur."""
    gathered: dict[Hashable, list[Item]] = {}
    for item in items:
        gathered.setdefault(key(item), []).append(item)
    return list(gathered.values())
