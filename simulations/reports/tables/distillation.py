"""Tables of distillations, paired by seed, and of leave-one-domain-out experiments."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from simulations.reports.distillation_groups import DistillationRun, figure, groups, task
from simulations.reports.tables.table import DASH, Cell, Column, Table, counts, numbers, percent, percents, ranked, texts
from simulations.run_folder.reader import SETTING

IMAGES = re.compile(rf"run\.({SETTING.pattern})|(data|classes|examples|validation)(\.|$)")

RETRIEVAL = {
    f"{name}{ending}": f"{title} ({similarity})"
    for similarity, ending in (("cosine", ""), ("euclidean", "_euclidean"))
    for name, title in (("mean_average_precision", "mAP"), ("precision_at_100", "top 100"), ("precision_at_1", "top 1"))
}
"""What ``models.csv`` says of retrieval, and how it is called."""

LEGEND = """Accuracy in %: mean over n seeds ± half-width of its 95 % interval (Student's t over seeds; none at n = 1), after the last epoch.
Before: the student untrained, or as it began. Of teacher: the student's accuracy as a share of its teacher's. Less none, less kd: paired by seed, on the same images with the same student (and teacher)."""


def table(labelled: Mapping[str, Sequence[DistillationRun]]) -> Table:
    """The headline table: a row for each of those that differ in more than the seed."""
    rows = list(labelled.values())
    columns = [texts("strategy", list(labelled)), counts("n", list(map(len, rows)))]
    columns.append(percents("teacher", [[one.teacher for one in same] for same in rows]))
    columns.append(percents("before", [[one.metrics["test_accuracy"].dropna().iloc[0] for one in same] for same in rows]))
    tasks = [(same[0].choice("student"), figure(same[0], "student", "num_parameters"), *task(same[0])) for same in rows]
    columns.append(Column("student", ranked([percent([one.accuracy for one in same]) for same in rows], tasks)))
    columns.append(percents("of teacher", [[one.accuracy / one.teacher for one in same] for same in rows]))
    for baseline in ("none", "kd"):
        columns.append(Column(f"less {baseline}", tuple(less(same, labelled, baseline) for same in rows)))
    for name, title in RETRIEVAL.items():
        if any(name in one.models for same in rows for one in same):
            columns.append(percents(title, [[figure(one, "student", name) for one in same] for same in rows]))
    columns.append(counts("parameters", [int(figure(same[0], "student", "num_parameters")) for same in rows]))
    return Table("distillation", "", tuple(columns), LEGEND, tuple(tasks))


def trainings(labelled: Mapping[str, Sequence[DistillationRun]]) -> pd.DataFrame:
    """A row for each training: what the tables are made of, accuracies in 0..1."""
    rows = [
        {
            "method": name, "seed": one.seed, "teacher_seed": one.config["teacher_seed"], "teacher_accuracy": one.teacher,
            "initial_accuracy": one.metrics["test_accuracy"].dropna().iloc[0], "student_accuracy": one.accuracy, "run": one.folder.name,
        }
        for name, same in labelled.items()
        for one in same
    ]  # fmt: skip
    return pd.DataFrame(rows)


def flows(labelled: Mapping[str, Sequence[DistillationRun]]) -> pd.DataFrame | None:
    """What every layer of student and teacher knows of the labels, by epoch, in the mean over seeds; None where it was not measured."""
    frames = [
        pd.read_csv(one.folder / "flow.csv").assign(strategy=name, seed=one.seed)
        for name, same in labelled.items()
        for one in same
        if (one.folder / "flow.csv").is_file()
    ]
    if not frames:
        return None
    keys = ["strategy", "network", "layer", "epoch"]
    return pd.concat(frames).groupby(keys, sort=False)[["information", "binned"]].mean().reset_index()


def less(same: Sequence[DistillationRun], labelled: Mapping[str, Sequence[DistillationRun]], baseline: str) -> Cell:
    """The gain over a baseline, paired by seed; a dash where some seed has none."""
    for others in labelled.values():
        theirs = {pairing(one, baseline): one.accuracy for one in others}
        if matching(same[0], others[0], baseline) and all(pairing(one, baseline) in theirs for one in same):
            return percent([one.accuracy - theirs[pairing(one, baseline)] for one in same], "+")
    return Cell(DASH)


def pairing(one: DistillationRun, baseline: str) -> tuple[Hashable, ...]:
    """What a student has in common with that of the baseline that it is paired with: the seed, and where both are taught, the teacher's."""
    return (one.seed,) if baseline == "none" else (one.seed, one.values.get("teacher_seed"))


def matching(one: DistillationRun, other: DistillationRun, baseline: str) -> bool:
    """``other`` is the baseline to ``one``: the same student on the same images for as long, and where it is taught, by the same teacher.

    Networks are the same that have one name and as many parameters.
    """
    networks = ("student",) if baseline == "none" else ("student", "teacher")
    same = all(one.choice(part) == other.choice(part) for part in (*networks, *(("image_source",) if baseline != "none" else ())))
    sizes = [[figure(lesson, network, "num_parameters") for network in networks] for lesson in (one, other)]
    return (
        other.choice("distiller") == baseline != one.choice("distiller")
        and same
        and np.array_equal(*sizes, equal_nan=True)
        and task(one) == task(other)
    )


def costs(labelled: Mapping[str, Sequence[DistillationRun]]) -> Table:
    """What every network costs and knows: each teacher once, then the students and whatever else leaves the house."""
    found: dict[tuple[str, frozenset], dict[Path | float, dict[str, Any]]] = {}
    for name, same in labelled.items():
        images = frozenset((key, value) for key, value in same[0].values.items() if IMAGES.match(key))
        teacher = f"{name.rpartition(' > ')[0]}, teacher"
        for one in same:
            for row in one.models.to_dict("records"):
                if row["network"] == "teacher":  # the same one as often as it has taught
                    found.setdefault((teacher, images), {})[row["accuracy"]] = row
                else:
                    title = name if row["network"] == "student" else f"{name}, {row['network']}"
                    found.setdefault((title, frozenset()), {})[one.folder] = row
    ordered = sorted(found.items(), key=lambda item: not item[0][0].endswith(", teacher"))
    rows = [(title, list(values.values())) for (title, _), values in ordered]
    alike = [same for _, same in rows]
    columns = [texts("network", [title for title, _ in rows])]
    columns += [counts(title, [int(same[0][title.replace("-", "_")]) for same in alike]) for title in ("parameters", "multiply-adds")]
    columns.append(numbers("ms / image", [float(np.median([row["latency_ms"] for row in same])) for same in alike]))
    columns.append(percents("accuracy", [[row["accuracy"] for row in same] for same in alike]))
    legend = "Multiply-adds and median milliseconds for one image; accuracy in %, as above."
    return Table("costs", "What each network costs and knows", tuple(columns), legend)


def members(labelled: Mapping[str, Sequence[DistillationRun]]) -> Table | None:
    """Each network of an online ensemble beside the same network trained alone, paired by seed; None without any."""
    rows = []
    for name, same in labelled.items():
        networks = [network for network in same[0].models["network"] if network != "teacher"]
        for network in networks if len(networks) > 1 else ():
            size = figure(same[0], network, "num_parameters")
            mine = {one.seed: figure(one, network, "accuracy") for one in same}
            alone = {one.seed: one.accuracy for others in labelled.values() if like(others[0], same[0], size) for one in others}
            gains = [mine[seed] - alone[seed] for seed in mine if seed in alone]
            rows.append((f"{name}, {network}", int(size), list(mine.values()), list(alone.values()), gains))
    if not rows:
        return None
    names, sizes, together, alone, gains = zip(*rows)
    columns = [texts("network", names), counts("n", list(map(len, together))), counts("parameters", sizes)]
    columns += [percents("in the ensemble", together), percents("alone", alone)]
    columns.append(Column("gain", tuple(percent(values, "+") if values else Cell(DASH) for values in gains)))
    return Table(
        "members",
        "Networks of an ensemble",
        tuple(columns),
        "Accuracy in %; alone: as many parameters, trained with labels for as long; the gain is paired by seed.",
    )


def like(one: DistillationRun, member: DistillationRun, parameters: float) -> bool:
    """``one`` is a network of a member's size, trained with labels alone on the same images for as long."""
    same = one.choice("student") == member.choice("student") and task(one) == task(member)
    return one.choice("distiller") == "none" and same and figure(one, "student", "num_parameters") == parameters


def ladder(labelled: Mapping[str, Sequence[DistillationRun]]) -> dict[str, pd.DataFrame]:
    """By method, the student's accuracy against its teacher's, where a method has three teachers or more for one student."""
    rungs: dict[str, list[dict[str, float]]] = {}
    for name, same in labelled.items():
        if not np.isnan(same[0].teacher):
            teacher, _, method = name.rpartition(" > ")
            rungs.setdefault(method, []).extend(
                {"teacher_accuracy": one.teacher, "student_accuracy": one.accuracy, "seed": one.seed, "name": teacher} for one in same
            )
    frames = {method: pd.DataFrame(rows) for method, rows in rungs.items()}
    return {method: frame for method, frame in frames.items() if frame["name"].nunique() >= 3}


def monotone(frame: pd.DataFrame) -> tuple[float, float]:
    """Spearman's rho between the teachers' accuracy and the students' means, and the slope of a line through them."""
    means = frame.groupby("name")[["teacher", "student"]].mean()
    return float(spearmanr(means["teacher"], means["student"]).statistic), float(np.polyfit(means["teacher"], means["student"], 1)[0])


def ordered(steps: Mapping[str, pd.DataFrame]) -> Table:
    """How far each method's students follow their teachers."""
    found = [monotone(frame) for frame in steps.values()]
    columns = [texts("strategy", list(steps)), counts("teachers", [frame["name"].nunique() for frame in steps.values()])]
    for place, title in enumerate(("Spearman's rho", "slope")):
        columns.append(Column(title, tuple(Cell(f"{pair[place]:+.2f}", pair[place]) for pair in found)))
    return Table("ladder", "Students by their teachers", tuple(columns), "Of the student's mean accuracy over seeds against the teacher's.")


KEY = "held_out"


def domain(one: DistillationRun) -> int | None:
    """The place of the domain that is left out; None where none is."""
    return one.config.get("data", {}).get(KEY)


def anywhere(one: DistillationRun) -> DistillationRun:
    """The same, whichever domain is left out."""
    data = {key: value for key, value in one.config["data"].items() if key != KEY}
    return replace(one, config={**one.config, "data": data})


def travel(one: DistillationRun) -> float:
    """How far the optimizer has travelled in all."""
    return float(one.metrics["parameter_path_length"].iloc[-1])


def accuracies(same: Sequence[DistillationRun], places: dict[DistillationRun, int | None]) -> pd.DataFrame:
    """Seeds by domains, those seeds alone that have all of them."""
    rows = [(one.seed, places[one], one.accuracy) for one in same]
    return pd.DataFrame(rows, columns=["seed", "domain", "accuracy"]).pivot(index="seed", columns="domain", values="accuracy").dropna()


def domains(lessons: Sequence[DistillationRun]) -> Table | None:
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


def gain(name: str, labelled: dict[str, list[DistillationRun]], frames: dict[str, pd.DataFrame], baseline: str) -> Cell:
    """Of the mean over domains, paired by seed; a dash where some seed has no such baseline."""
    mine = frames[name]
    for other, frame in frames.items():
        alike = mine.index.isin(frame.index).all() and frame.columns.equals(mine.columns)
        if alike and matching(labelled[name][0], labelled[other][0], baseline):
            return percent((mine - frame.loc[mine.index]).mean(axis=1), "+")
    return Cell(DASH)
