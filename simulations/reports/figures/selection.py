"""Which figures a report has: each is one function of :mod:`figures` or :mod:`charts`, drawn in as many processes as there are cores."""

import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulations.process import cores
from simulations.reports.figures import comparison, convergence
from simulations.reports.figures.style import over
from simulations.reports.groups import Group, gather
from simulations.reports.statistics import worst_tenth
from simulations.reports.summary import ALONG, NOTHING, PANELS, WAYS, by_seed, curve, is_baseline, settings
from simulations.reports.tables import clients, federated
from simulations.reports.tables.clients import PHASES, held
from simulations.run_folder.reader import SETTING

LINES, ROWS = 8, 20
"""Strategies that one figure tells apart, as curves and as rows; more are drawn in parts, the baseline in each."""

FEW = 6
"""Figures that are not worth more processes."""


@dataclass(frozen=True)
class Drawing:
    """A figure of a report: what it shows, its files without suffix, and the function that writes them."""

    title: str
    stem: Path
    draw: Callable[..., tuple[Path, Path]]
    given: tuple[Any, ...]

    @property
    def paths(self) -> tuple[Path, Path]:
        """The PDF and the PNG."""
        return self.stem.with_name(self.stem.name + ".pdf"), self.stem.with_name(self.stem.name + ".png")

    def write(self) -> tuple[Path, Path]:
        """Draw it. A ``ValueError`` is raised where there is nothing to draw."""
        return self.draw(*self.given)


def write(drawings: Sequence[Drawing]) -> None:
    """Draw all of them."""
    workers = min(cores() if sys.platform == "linux" else 1, len(drawings))  # elsewhere forks are not safe
    if workers <= 1 or len(drawings) <= FEW:
        for one in drawings:
            one.write()
        return
    with ProcessPoolExecutor(workers, get_context("fork")) as pool:
        for done in [pool.submit(one.draw, *one.given) for one in drawings]:
            done.result()


def planned(groups: Sequence[Group], output: Path, baseline: str, target: float | None, kind: str) -> tuple[list[Drawing], list[str]]:
    """All figures, and notes on those that cannot be drawn."""
    found: list[Drawing] = []
    notes: list[str] = []
    if len(settings(groups)) > 1:
        for suffix, part in parts(groups, baseline, LINES):
            found.append(_by_setting(part, output / f"by_setting{suffix}", kind))
    for same in gather(groups, lambda one: one.runs[0].part(SETTING)):
        name = "_" + re.sub(r"[^\w.]+", "-", same[0].setting).strip("-") if len(settings(groups)) > 1 else ""
        here = f" ({same[0].setting})" if same[0].setting else ""
        for suffix, part in parts(groups, baseline, LINES):
            found += _curves(part, same, here, output, f"{name}{suffix}", kind)
        for suffix, part in parts(groups, baseline, ROWS):
            part = [one for one in part if one in same]
            found += _rows(part, here, output, f"{name}{suffix}", target, kind) if part else []
        counts = held(same)
        if counts:
            stem = output / f"partition{name}"
            found.append(Drawing(f"Label distribution, seed {min(counts)}{here}", stem, convergence.partition, (counts[min(counts)], stem)))
        else:
            notes.append(f"no figure of the partition of {same[0].label}: partition.npz must hold the array 'counts', of some examples")
    return found, notes


def parts(groups: Sequence[Group], baseline: str, most: int) -> list[tuple[str, list[Group]]]:
    """Groups in parts of no more than ``most`` lines, tuned and untuned apart where they are many, the baseline first in each.

    A line is in the same part, and in the same place there, on every setting, so that it looks the same in all figures.
    """
    lines = federated.ordered_lines(groups)
    if len(lines) <= most:
        return [("", sorted(groups, key=lambda one: lines.index(one.line)))]
    tuned = {one.line: one.tuned for one in groups}
    base = {one.line for one in groups if is_baseline(one, baseline)}
    cut: list[list[str]] = []
    for same in gather(lines, lambda line: tuned[line]):
        first = [line for line in same if line in base][: most // 2]
        rest = [line for line in same if line not in first]
        number = max(1, -(-len(rest) // (most - len(first))))
        size = max(1, -(-len(rest) // number))  # as many in each
        cut += [first + rest[start : start + size] for start in range(0, len(rest), size)] or [first]
    return [
        (f"_{number}", sorted((o for o in groups if o.line in part), key=lambda o: part.index(o.line)))
        for number, part in enumerate(cut, 1)
    ]


def curves_of(groups: Sequence[Group], kind: str) -> pd.DataFrame:
    """The numbers behind all curves: a row a strategy, way, accuracy and point."""
    rows = [
        curve(one, column, along, kind).assign(label=one.label, along=along, accuracy=column)
        for one in groups
        for along in ALONG
        for column in PANELS
    ]
    columns = ["label", "along", "accuracy", "x", "mean", "low", "high", "n"]
    return pd.concat([rows_ for rows_ in rows if len(rows_)])[columns]


def _curves(part: Sequence[Group], same: Sequence[Group], here: str, output: Path, suffix: str, kind: str) -> list[Drawing]:
    """Accuracy by round, by bytes and by time: the lines of a ``part``, those on one setting with numbers."""
    found = []
    for along, (axis, _) in ALONG.items():
        lines = {one.line: dict.fromkeys(PANELS, NOTHING) for one in part}
        lines |= {one.line: {column: curve(one, column, along, kind) for column in PANELS} for one in part if one in same}
        stem = output / f"convergence{'' if along == 'rounds' else '_by_' + along}{suffix}"
        if any(len(frame) for frames in lines.values() for frame in frames.values()):
            found.append(Drawing(f"Accuracy against: {axis.lower()}{here}", stem, convergence.convergence, (lines, stem, along, kind)))
    return found


def _rows(groups: Sequence[Group], here: str, output: Path, suffix: str, target: float | None, kind: str) -> list[Drawing]:
    """Figures with a row a strategy: results by seed, the way to the target, clients, classes, phases."""

    def drawing(title: str, name: str, function: Callable, lines: Any, *more: Any, last: tuple = ()) -> Drawing:
        stem = output / f"{name}{suffix}"
        return Drawing(f"{title}{here}", stem, function, (lines, *more, stem, *last))

    finals = {one.line: pd.DataFrame({c: by_seed(one, f"{c}_last_ten") for c in PANELS}, index=list(one.seeds)) for one in groups}
    found = [drawing("Mean of the last ten evaluated rounds, by seed", "spread", convergence.spread, finals, last=(kind,))]
    if target is not None:
        ways = {one.line: {way: _way(one, way, target) for way in WAYS} for one in groups}
        found.append(drawing(f"To {100 * target:g} %, by seed", "to_target", comparison.to_target, ways, last=(target,)))
    told = {one.line: [clients.last_accuracies(run) for run in one.runs] for one in groups}
    told = {line: seeds for line, seeds in told.items() if all(map(len, seeds))}
    if told:
        tenths = {line: float(np.mean([worst_tenth(seed) for seed in seeds])) for line, seeds in told.items()}
        n = over(map(len, told.values()))
        found.append(drawing("Clients' accuracy in the last evaluated round", "clients", comparison.clients, told, tenths, last=(n,)))
    told = {one.line: [clients.class_accuracies(run) for run in one.runs] for one in groups}
    told = {line: seeds for line, seeds in told.items() if all(map(len, seeds)) and len({len(seed) for seed in seeds}) == 1}
    if told:
        by_class, n = {line: np.mean(seeds, axis=0) for line, seeds in told.items()}, over(map(len, told.values()))
        found.append(
            drawing("Accuracy by class, mean of the last ten evaluated rounds", "classes", comparison.classes, by_class, last=(n,))
        )
    seconds = {one.line: {title: float(np.mean(by_seed(one, f"{name}_median"))) for name, title in PHASES.items()} for one in groups}
    return [*found, drawing("Seconds a round", "phases", comparison.phases, seconds, last=(over(len(one.runs) for one in groups),))]


def _way(one: Group, way: str, target: float) -> list[tuple[float, bool]]:
    """For each seed what it spends, and whether it gets there."""
    scale = 1e-6 if way == "bytes" else 1.0
    reached = np.isfinite(by_seed(one, f"{way}_to_target", target))
    return [(scale * value, bool(there)) for value, there in zip(by_seed(one, f"{way}_spent", target), reached, strict=True)]


def _by_setting(groups: Sequence[Group], stem: Path, kind: str) -> Drawing:
    """Final accuracy by heterogeneity."""
    names = settings(groups)
    lines: dict[str, dict[str, list]] = {one.line: {column: [None] * len(names) for column in PANELS} for one in groups}
    for column in PANELS:
        for one, cell in zip(groups, federated.percents(groups, f"{column}_last10", kind), strict=True):
            lines[one.line][column][names.index(one.setting)] = cell
    return Drawing("Mean of the last ten evaluated rounds, by setting", stem, comparison.by_setting, (lines, names, stem, kind))
