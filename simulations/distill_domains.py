"""Leave-one-domain-out: distillations that differ in the domain left out, side by side."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from simulations.distill_report import matching
from simulations.lessons import Lesson, groups
from simulations.tables import DASH, Cell, Column, Table, counts, numbers, percent, percents, texts

KEY = "held_out"


def domain(one: Lesson) -> int | None:
    """The place of the domain that is left out; None where none is."""
    return one.config.get("data", {}).get(KEY)


def anywhere(one: Lesson) -> Lesson:
    """The same, whichever domain is left out."""
    data = {key: value for key, value in one.config["data"].items() if key != KEY}
    return replace(one, config={**one.config, "data": data})


def travel(one: Lesson) -> float:
    """How far the optimizer has travelled in all."""
    return float(one.metrics["travel"].iloc[-1])


def accuracies(same: Sequence[Lesson], places: dict[Lesson, int | None]) -> pd.DataFrame:
    """Seeds by domains, those seeds alone that have all of them."""
    rows = [(one.seed, places[one], one.accuracy) for one in same]
    return pd.DataFrame(rows, columns=["seed", "domain", "accuracy"]).pivot(index="seed", columns="domain", values="accuracy").dropna()


def domains(lessons: Sequence[Lesson]) -> Table | None:
    """Accuracy on each domain left out, their mean, and its gain over the baselines; None where fewer than two were left out."""
    places = {anywhere(one): domain(one) for one in lessons if domain(one) is not None}
    labelled = groups(list(places))
    frames = {name: accuracies(same, places) for name, same in labelled.items()}
    frames = {name: frame for name, frame in frames.items() if frame.shape[1] > 1 and len(frame)}
    if not frames:
        return None
    columns = [texts("strategy", list(frames)), counts("n", list(map(len, frames.values())))]
    for place in sorted({place for frame in frames.values() for place in frame}):
        cells = tuple(percent(frame[place]) if place in frame else Cell(DASH) for frame in frames.values())
        columns.append(Column(f"domain {place}", cells))
    columns.append(percents("mean", [frame.mean(axis=1) for frame in frames.values()]))
    for baseline in ("none", "kd"):
        columns.append(Column(f"less {baseline}", tuple(gain(name, labelled, frames, baseline) for name in frames)))
    columns.append(numbers("travel", [float(np.mean([travel(one) for one in labelled[name]])) for name in frames]))
    legend = """Accuracy in % on the domain left out; the mean over them, and its gain, by seed.
Travel: the way of the weights, epoch by epoch, over the length that they had at first."""
    return Table("domains", "Domains left out", tuple(columns), legend)


def gain(name: str, labelled: dict[str, list[Lesson]], frames: dict[str, pd.DataFrame], baseline: str) -> Cell:
    """Of the mean over domains, paired by seed; a dash where some seed has no such baseline."""
    mine = frames[name]
    for other, frame in frames.items():
        alike = mine.index.isin(frame.index).all() and frame.columns.equals(mine.columns)
        if alike and matching(labelled[name][0], labelled[other][0], baseline):
            return percent((mine - frame.loc[mine.index]).mean(axis=1), "+")
    return Cell(DASH)
