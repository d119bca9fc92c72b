"""Run folders: found, read, checked, grouped by what they have in common, and labelled by what they have not."""

import json
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

Values = dict[str, Hashable]
"""A configuration laid flat: ``{"partition.alpha": 0.1}``."""

Item = TypeVar("Item")
ACCURACIES = ("accuracy", "accuracy_own_labels", "accuracy_worst_tenth")
COSTS = ("bytes_up", "bytes_down", "seconds_local", "seconds_server", "seconds_evaluate")
NO_EFFECT = re.compile(  # on a run's result, or, as the seed, on the group to which it belongs
    r"(seed|name|output|choices|engine|progress\w*|checkpoint\w*|on_client_failure|retries|timeout)(\.|$)|data\.(root|cache|download)$"
)
SETTING = re.compile(r"(data|partition)\.|num_clients$")  # what the clients hold: the strategies on one such setting share a figure
EVALUATION = re.compile(r"evaluation(\.|$)")
STRATEGY = re.compile(r"(strategy|generator|loss|distiller|switches)(\.|$)")  # what may differ between a strategy and its baseline


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run: its folder, its resolved configuration, and its metrics, one row a round."""

    folder: Path
    config: dict[str, Any]
    metrics: pd.DataFrame

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def strategy(self) -> str:
        """The name under which the strategy was chosen."""
        return option(self.config, "strategy") or "strategy"

    @property
    def evaluated(self) -> pd.DataFrame:
        """The rows of the rounds that were evaluated."""
        return self.metrics[self.metrics[list(ACCURACIES)].notna().any(axis=1)]

    def counts(self) -> np.ndarray:  # [K, C]
        """Training examples by client and class."""
        try:
            with np.load(self.folder / "partition.npz") as arrays:
                return arrays["counts"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ValueError(f"partition.npz must hold the array 'counts': {error}") from error

    @cached_property
    def values(self) -> Values:
        """All that can change a result, but for the seed. A key that is null counts as absent."""
        return {key: value for key, value in _flat(self.config) if value is not None and not NO_EFFECT.match(key)}

    def part(self, pattern: re.Pattern[str]) -> frozenset[tuple[str, Hashable]]:
        """The values whose keys match ``pattern``."""
        return frozenset(item for item in self.values.items() if pattern.match(item[0]))

    @property
    def shape(self) -> tuple[int, tuple[int, ...], frozenset[tuple[str, Hashable]]]:
        """The number of rounds, the rounds evaluated, and how they were."""
        return len(self.metrics), tuple(self.evaluated["round"]), self.part(EVALUATION)


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ only in the seed, in its order; ``label`` = ``line`` (which strategy) with ``setting`` (on which data)."""

    runs: tuple[Run, ...]
    label: str
    line: str
    setting: str

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)


def option(config: Mapping[str, Any], part: str) -> str | None:
    """The name of the option chosen for a part: ``fedgen`` for ``strategy``. None where there is no such part."""
    if not isinstance(config.get(part), Mapping):
        return None
    return (config.get("choices") or {}).get(part) or str(config[part].get("_target_", "")).rpartition(".")[2].lower() or None


def find(folders: Iterable[Path]) -> list[Path]:
    """The run folders among and below ``folders``, each once, in natural order.

    Raises:
        ValueError: if a folder does not exist, or no run folder is in it.
    """
    found = {}
    for folder in folders:
        inside = [config.parent for config in sorted(folder.rglob("config.yaml")) if (config.parent / "metrics.csv").is_file()]
        if not inside:
            raise ValueError(f"each folder must hold config.yaml and metrics.csv, or folders that do, got {str(folder)!r}: "
                             "give run folders, or a parent of them such as outputs/")
        found |= {run.resolve(): run for run in inside if run.resolve() not in found}
    return sorted(found.values(), key=lambda folder: natural(str(folder)))


def read(folder: Path, until: int | None = None) -> Run:
    """The run in ``folder``, all of it or its rounds 1..``until``.

    Raises:
        ValueError: if it is unfinished, or a file of it is missing or cannot be understood.
    """
    if not (folder / "checkpoint.json").is_file():
        raise ValueError("unfinished: no checkpoint.json")
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True)
        checkpoint = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        metrics = pd.read_csv(folder / "metrics.csv")
        seed, rounds, finished = config["seed"], config["rounds"], checkpoint["finished"]
    except (OSError, ValueError, KeyError, TypeError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError("unreadable: " + " ".join(f"{type(error).__name__}: {error}".split())) from error
    if not finished:
        raise ValueError(f"unfinished: {checkpoint.get('round')} of {rounds} rounds; start the run again to go on with it")
    if not (isinstance(seed, int) and isinstance(rounds, int)):
        raise ValueError(f"corrupt: seed and rounds must be whole numbers, got {seed!r} and {rounds!r}")
    _check(metrics, rounds)
    if until is None:
        return Run(folder, config, metrics)
    if not 1 <= until <= rounds:
        raise ValueError(f"--until must be a round of the run, 1..{rounds}, got {until}")
    return Run(folder, config | {"rounds": until}, metrics[:until])


def _check(metrics: pd.DataFrame, rounds: int) -> None:
    """Raise ``ValueError`` unless the metrics of a finished run are whole."""
    needed = ["round", *ACCURACIES, *COSTS]
    if lacking := [column for column in needed if column not in metrics]:
        raise ValueError(f"corrupt: metrics.csv lacks the columns {', '.join(lacking)}")
    if metrics["round"].tolist() != list(range(1, rounds + 1)):
        raise ValueError(f"corrupt: metrics.csv must hold the rounds 1..{rounds}, one row each, got {len(metrics)} rows")
    if odd := [column for column in needed if not pd.api.types.is_numeric_dtype(metrics[column])]:
        raise ValueError(f"corrupt: metrics.csv must hold numbers, got something else in {', '.join(odd)}")
    accuracies = metrics[list(ACCURACIES)]
    if accuracies[["accuracy", "accuracy_own_labels"]].isna().all(axis=None):
        raise ValueError("nothing to report: no round was evaluated")
    if ((accuracies < 0) | (accuracies > 1)).any(axis=None) or metrics[["bytes_up", "bytes_down"]].isna().any(axis=None):
        raise ValueError("corrupt: metrics.csv must hold accuracies in 0..1, and bytes in every row")


def comparable(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs that can stand side by side, and a note on each that is left out.

    On one setting, the runs are kept that have the rounds and the evaluation of most of them (of the longest, where that is a tie);
    of two runs that differ in nothing, the first.
    """
    kept: dict[Hashable, Run] = {}
    notes = []
    for setting in gather(runs, lambda run: run.part(SETTING)):
        shapes = Counter(run.shape for run in setting)
        usual = max(shapes, key=lambda shape: (shapes[shape], shape[:2], str(sorted(shape[2], key=str))))
        for run in setting:
            key = frozenset(run.values.items()), run.seed
            if run.shape != usual:
                got, most = (f"{shape[0]} rounds, {len(shape[1])} of them evaluated" for shape in (run.shape, usual))
                notes.append(f"{run.folder}: {got}, unlike most runs of its setting or the longer ones ({most}); report it by itself")
            elif key in kept:
                same = "and" if run.metrics[list(ACCURACIES)].equals(kept[key].metrics[list(ACCURACIES)]) else "BUT NOT"
                notes.append(f"{run.folder}: the same configuration and seed as {kept[key].folder}, {same} the same accuracies")
            else:
                kept[key] = run
    return list(kept.values()), notes


def group(runs: Sequence[Run]) -> list[Group]:
    """Runs that differ only in the seed, together; sorted by setting, then FedAvg first, then by label."""
    groups = [sorted(same, key=lambda run: run.seed) for same in gather(runs, lambda run: frozenset(run.values.items()))]
    labelled = []
    for same, terms in zip(groups, _terms([same[0] for same in groups]), strict=True):
        setting = ", ".join(text for key, text in terms.items() if SETTING.match(key))
        line = ", ".join(text for key, text in terms.items() if not SETTING.match(key))
        labelled.append(Group(tuple(same), ", ".join(terms.values()), line, setting))
    return sorted(labelled, key=lambda one: (natural(one.setting), one.runs[0].strategy != "fedavg", natural(one.line)))


def _terms(runs: Sequence[Run]) -> list[dict[str, str]]:
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
        kin = [(run.strategy if STRATEGY.match(key) else "", None if key.endswith(".") else option(run.config, head)) for run in runs]
        differs = [len({value for value, other in zip(column, kin, strict=True) if other == mine}) > 1 for mine in kin]
        again = any(column == other and _leaf(key) == _leaf(shown) for shown, other in columns.items())  # one knob, interpolated
        if any(differs) and key != "strategy." and not again:
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
    return f"no {name.strip('.')}" if value is None else str(value) if key.endswith(".") else f"{name} {value}"


def gather(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Items of equal key together, in the order in which the keys first occur."""
    gathered: dict[Hashable, list[Item]] = {}
    for item in items:
        gathered.setdefault(key(item), []).append(item)
    return list(gathered.values())


def natural(text: str) -> list[tuple[float, str]]:
    """A key by which numbers sort by value: ``alpha 0.1`` before ``alpha 1.0`` before ``alpha 10``."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [(float(part), "") if i % 2 else (-1.0, part) for i, part in enumerate(parts)]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Hashable]]:
    """The leaves under their dotted keys; lists as tuples."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value) if isinstance(value, list) else value
