"""Groups of runs that differ in the seed alone: which runs can be compared, and a label that tells each group from the others."""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from simulations.run_folder.metric_names import ACCURACIES, STRATEGY_NAMES
from simulations.run_folder.reader import LABEL, NEUTRAL_OPTIONS, SETTING, STRATEGY, FederatedRun, natural_order, option, variant

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in the seed alone, sorted by seed.

    A run whose selected value equals the configuration's own value is in two groups, a tuned one and an untuned one.

    Args:
        runs: of the group, with results. Empty where all runs of the group diverged.
        label: ``line`` and ``setting`` together, as the first table prints them.
        line: the strategy, with the keys of its side in which groups differ.
        setting: the data and the clients; empty where all groups have the same.
        tuned: ``tuned``, ``untuned``, or empty where no run of the report is tuned.
        names: other names of the line, by which a user can call it.
        slug: the setting in names of files.
        place: position of the setting and of the line in the report.
        diverged: runs of the group without results, because their training diverged, for seeds that no other run of the group has.
    """

    runs: tuple[FederatedRun, ...]
    label: str
    line: str
    setting: str
    tuned: str = ""
    names: tuple[str, ...] = ()
    slug: str = ""
    place: tuple[int, int] = (0, 0)
    diverged: tuple[FederatedRun, ...] = ()

    @property
    def block(self) -> tuple[str, str]:
        """Groups of one block are ranked together: those on one setting, tuned and untuned apart."""
        return self.setting, self.tuned

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in ascending order."""
        return tuple(run.seed for run in self.runs)

    @property
    def is_plain(self) -> bool:
        """The server takes the mean of models, without a server optimizer."""
        return all(variant(self.first.config, part) is None for part in NEUTRAL_OPTIONS if STRATEGY.match(part))

    @property
    def strategy(self) -> str:
        """The name of the strategy's yaml file."""
        return self.first.strategy

    @property
    def first(self) -> FederatedRun:
        """A run with the configuration of all runs of the group; without results where all runs diverged."""
        return (self.runs or self.diverged)[0]

    @property
    def row(self) -> str:
        """The label in a table, which says how many seeds are in no mean because they diverged: ``FedAvg, 1 of 3 diverged``."""
        return self.label + divergence([self])

    def is_called(self, name: str) -> bool:
        """``name`` is the strategy, its printed name, or the line."""
        return name in (self.line, self.strategy, *self.names)


def comparable(runs: Sequence[FederatedRun]) -> tuple[list[FederatedRun], list[str]]:
    """The runs that can be compared, and a note on each excluded one.

    Trials of :mod:`simulations.experiments.tuning` are judged on training examples, have no test accuracy, and are excluded. On one
    setting, the runs with the rounds and the evaluation of most runs are kept (of the longest, where that is a tie). Of two runs with the
    same configuration and seed, the first is kept.
    """
    kept: dict[Hashable, FederatedRun] = {}
    reason = "judged on held-out training examples (evaluation.split=validation), as trials of tuning are"
    notes = [f"{run.folder}: {reason}" for run in runs if run.trial]
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


def divergence(groups: Iterable[Group]) -> str:
    """How many of all runs of the groups diverged, as the end of a label: ``, 1 of 3 diverged``. Empty where none did."""
    numbers = [(len(one.diverged), len(one.runs)) for one in groups]
    lost, kept = sum(one for one, _ in numbers), sum(one for _, one in numbers)
    return f", {lost} of {lost + kept} diverged" if lost else ""


def group(runs: Sequence[FederatedRun], diverged: Sequence[FederatedRun] = ()) -> list[Group]:
    """Runs that differ in the seed alone, together; sorted by setting, then FedAvg first, then by label.

    Args:
        runs: with results.
        diverged: runs without results, because their training diverged. Trials of tuning among them are left out.
    """
    lost = [run for run in diverged if not run.trial]
    same_runs = [sorted(same, key=lambda run: run.seed) for same in gather([*runs, *lost], lambda run: run.identity)]
    kinds = ("tuned", "untuned") if any("tuned" in run.kinds for run in [*runs, *lost]) else ("",)
    printed = _printed_names([same[0] for same in same_runs])
    labelled = []
    for same, terms in zip(same_runs, _terms([same[0] for same in same_runs]), strict=True):
        setting = ", ".join(text for key, text in terms.items() if SETTING.match(key))
        rest = [text for key, text in terms.items() if not SETTING.match(key) and key != "strategy."]
        for kind in kinds:
            mine = tuple(run for run in same if not kind or kind in run.kinds)
            if mine:
                labelled.append(_group(mine, lost, printed[_name(mine[0])], setting, [*rest, *([kind] if kind else [])], kind))
    ordered = sorted(labelled, key=lambda one: (natural_order(one.setting), one.tuned, *line_order(one.line)))
    settings = list(dict.fromkeys(one.setting for one in ordered))
    tuned = {one.line: one.tuned for one in ordered}
    lines = sorted(tuned, key=lambda line: (tuned[line], line_order(line)))
    slugs = dict(zip(settings, file_slugs(settings), strict=True))
    return [replace(one, slug=slugs[one.setting], place=(settings.index(one.setting), lines.index(one.line))) for one in ordered]


def _name(run: FederatedRun) -> tuple[str, str]:
    """The option of the strategy, and its printed name."""
    return run.strategy, str(run.values[LABEL])


def _printed_names(runs: Sequence[FederatedRun]) -> dict[tuple[str, str], str]:
    """The printed name of each strategy, by :func:`_name`. A name that two options have says which option."""
    found = dict.fromkeys(map(_name, runs))
    number = Counter(name for _, name in found)
    return {
        (chosen, name): name if number[name] == 1 or STRATEGY_NAMES.get(chosen) == name else f"{name} ({chosen})" for chosen, name in found
    }


def _group(mine: Sequence[FederatedRun], lost: Sequence[FederatedRun], name: str, setting: str, rest: Sequence[str], tuned: str) -> Group:
    """A group, by what tells the group from others beside the strategy. The runs of ``lost`` among ``mine`` have no results."""
    runs = tuple(run for run in mine if run not in lost)
    missing = {run.seed: run for run in mine if run in lost and run.seed not in {one.seed for one in runs}}
    option_name = mine[0].strategy
    label = ", ".join(text for text in (name, setting, *rest) if text)
    names = name, ", ".join([option_name, *rest])
    return Group(runs, label, ", ".join([name, *rest]), setting, tuned, names, diverged=tuple(missing.values()))


def line_order(line: str) -> tuple[bool, list[tuple[float, str]]]:
    """A key by which FedAvg comes first, and the others in natural order."""
    return not re.match(r"fedavg\b", line, re.IGNORECASE), natural_order(line)


def file_slugs(texts: Sequence[str]) -> list[str]:
    """Each text as a part of a file's name, of letters, digits and underscores: ``alpha 0.1`` as ``alpha_0_1``. Equal ones get a number."""
    slugs: list[str] = []
    for text in texts:
        slug = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_") or "x"
        slugs.append(f"{slug}_{len(slugs)}" if slug in slugs else slug)
    return slugs


def _terms(runs: Sequence[FederatedRun]) -> list[dict[str, str]]:
    """The differences of each run from the others: ``{"strategy.": "fedgen", "partition.alpha": "alpha 0.1"}``.

    The name of the option chosen for a part (its key ends in a dot) stands where the options differ, and ``key value`` where runs of the
    same option differ in the key. Keys of the strategy's side count only between runs of the same strategy. The mean of models without a
    server optimizer has no term.
    """
    keys = {key for run in runs for key in run.values}
    keys |= {key.partition(".")[0] + "." for key in keys if "." in key}
    columns: dict[str, list[Hashable]] = {}
    terms: list[dict[str, Hashable]] = [{"strategy.": run.strategy} for run in runs]
    for key in sorted(keys, key=lambda key: (not SETTING.match(key), key)):
        head = key.partition(".")[0]
        column = [variant(run.config, head) if key.endswith(".") else run.values.get(key) for run in runs]
        if key in ("strategy.", LABEL) or len(set(column)) == 1:
            continue
        kin = [(run.strategy if STRATEGY.match(key) else "", None if key.endswith(".") else option(run.config, head)) for run in runs]
        held: dict[Hashable, set[Hashable]] = {}
        for value, mine in zip(column, kin, strict=True):
            held.setdefault(mine, set()).add(value)
        differs = [len(held[mine]) > 1 for mine in kin]
        repeated = any(column == other and _leaf(key) == _leaf(shown) for shown, other in columns.items())  # an interpolated key
        if any(differs) and not repeated:
            columns[key] = column
            for term, value, shown in zip(terms, column, differs, strict=True):
                term |= {key: value} if shown and not (value is None and head in NEUTRAL_OPTIONS) else {}
    leaves = Counter(map(_leaf, columns))
    return [{key: _text(key, value, leaves[_leaf(key)] > 1) for key, value in term.items()} for term in terms]


def _leaf(key: str) -> str:
    """The last part of a dotted key; all of it for a key that ends in a dot."""
    return key if key.endswith(".") else key.rpartition(".")[2]


def _text(key: str, value: Hashable, ambiguous: bool) -> str:
    """``alpha 0.1``; ``partition.alpha 0.1`` where another ``alpha`` is shown too; the bare value for the name of an option."""
    name = key if ambiguous or key.endswith(".") else _leaf(key)
    if name == "path":
        return Path(str(value)).stem
    if key == "evaluation.clients":
        return "all clients tested" if value is None else f"{value} clients tested"
    if name == "trace" and value is not None:
        return f"trace {Path(str(value)).stem}"
    return f"no {name.strip('.')}" if value is None else str(value) if key.endswith(".") else f"{name} {value}"


def gather(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Items of equal key together, in the order in which the keys first occur."""
    gathered: dict[Hashable, list[Item]] = {}
    for item in items:
        gathered.setdefault(key(item), []).append(item)
    return list(gathered.values())
