"""Tables of distillations: results paired by seed, cost of each network, and leave-one-domain-out experiments."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from simulations.reports.distillation_groups import DistillationRun, figure, groups, task
from simulations.reports.tables.table import DASH, DIVERGED, Cell, Column, NumberFormat, Table, counts, numbers, ranked, texts
from simulations.run_folder.reader import SETTING

Labelled = Mapping[str, Sequence[DistillationRun]]
"""Runs that differ in seeds alone, by their label."""

IMAGES = re.compile(rf"teacher_run\.({SETTING.pattern})|(data|num_classes|num_train_images|validation_fraction)(\.|$)")
"""Keys of the images that a network is tested on."""

RETRIEVAL = {
    f"{name}{ending}": f"{title} ({similarity})"
    for similarity, ending in (("cosine", ""), ("Euclidean", "_euclidean"))
    for name, title in (("mean_average_precision", "mAP"), ("precision_at_100", "P@100"), ("precision_at_1", "P@1"))
}
"""Columns of ``models.csv`` about image retrieval, and their headings."""

BASELINES = {"none": "gain over no KD", "kd": "gain over KD"}
"""Methods that the others are compared with, and the headings of the gains."""

LEGEND = """Accuracy in %, after the last epoch: {cell}.
Initial: the student before training. % of teacher: the student's accuracy over the teacher's.
Gains: paired by seed, on the same images with the same student (and for KD the same teacher)."""

HELD_OUT = "held_out"
"""The key of ``data`` that names the domain that is left out."""


def table(labelled: Labelled, form: NumberFormat, names: Mapping[str, str] | None = None) -> Table:
    """The main table: a row per group. ``names`` are the texts of its rows, by label; None for the labels."""
    rows, shown = list(labelled.values()), [(names or {}).get(label, label) for label in labelled]
    columns = [texts("strategy", shown), counts("n", list(map(len, rows)))]
    columns.append(form.percents("teacher", [[one.teacher for one in same] for same in rows]))
    columns.append(form.percents("initial", [[one.initial_accuracy for one in same] for same in rows]))
    tasks = [(same[0].choice("student"), figure(same[0], "student", "num_parameters"), *task(same[0])) for same in rows]
    columns.append(Column("student", ranked([form.percent([one.accuracy for one in same]) for same in rows], tasks, form.form)))
    columns.append(form.percents("% of teacher", [[one.accuracy / one.teacher for one in same] for same in rows]))
    for baseline, title in BASELINES.items():
        columns.append(Column(title, tuple(gain_over(same, labelled, baseline, form) for same in rows)))
    for name, title in RETRIEVAL.items():
        if any(name in one.models for same in rows for one in same):
            columns.append(form.percents(title, [[figure(one, "student", name) for one in same] for same in rows]))
    columns.append(counts("parameters", [int(figure(same[0], "student", "num_parameters")) for same in rows]))
    legend = LEGEND.format(cell=form.legend) + ("" if shown == list(labelled) else f"\n{DIVERGED}")
    return Table("distillation", "All results of distillations", tuple(columns), legend, tuple(tasks))


def trainings(labelled: Labelled) -> pd.DataFrame:
    """A row per distillation, accuracies in 0..1."""
    rows = [
        {
            "method": name,
            "seed": one.seed,
            "teacher_seed": one.config["teacher_seed"],
            "teacher_accuracy": one.teacher,
            "initial_accuracy": one.initial_accuracy,
            "student_accuracy": one.accuracy,
            "run": one.folder.name,
        }
        for name, same in labelled.items()
        for one in same
    ]
    return pd.DataFrame(rows)


def layer_information(labelled: Labelled) -> pd.DataFrame | None:
    """The information of each layer about the labels, by epoch, mean over seeds; None where it was not measured."""
    frames = [
        pd.read_csv(one.folder / "flow.csv").assign(method=name, seed=one.seed)
        for name, same in labelled.items()
        for one in same
        if (one.folder / "flow.csv").is_file()
    ]
    if not frames:
        return None
    keys = ["method", "network", "layer", "epoch"]
    return pd.concat(frames).groupby(keys, sort=False)[["information", "binned"]].mean().reset_index()


def gain_over(same: Sequence[DistillationRun], labelled: Labelled, baseline: str, form: NumberFormat) -> Cell:
    """The gain over a baseline, paired by seed; a dash where some seed has none."""
    for others in labelled.values():
        theirs = {pairing(one, baseline): one.accuracy for one in others}
        if matching(same[0], others[0], baseline) and all(pairing(one, baseline) in theirs for one in same):
            return form.of_differences.percent([one.accuracy - theirs[pairing(one, baseline)] for one in same], "+")
    return Cell(DASH)


def pairing(one: DistillationRun, baseline: str) -> tuple[Hashable, ...]:
    """The key that a student shares with the student of its baseline: the seed, and for a taught baseline the teacher's seed."""
    return (one.seed,) if baseline == "none" else (one.seed, one.values.get("teacher_seed"))


def matching(one: DistillationRun, other: DistillationRun, baseline: str) -> bool:
    """``other`` is the baseline of ``one``: the same student on the same images for as long, and for KD the same teacher.

    Networks are the same if they have one name and equally many parameters.
    """
    networks = ("student",) if baseline == "none" else ("student", "teacher")
    same = all(one.choice(part) == other.choice(part) for part in (*networks, *(("image_source",) if baseline != "none" else ())))
    mine, theirs = ([figure(run, network, "num_parameters") for network in networks] for run in (one, other))
    return (
        other.choice("distiller") == baseline != one.choice("distiller")
        and same
        and bool(np.array_equal(mine, theirs, equal_nan=True))
        and task(one) == task(other)
    )


def costs(labelled: Labelled, form: NumberFormat) -> Table:
    """Size, cost and accuracy of each network: each teacher once, then the students and the members of ensembles."""
    found: dict[tuple[str, frozenset], dict[Path | float, dict[Hashable, Any]]] = {}
    for name, same in labelled.items():
        images = frozenset((key, value) for key, value in same[0].values.items() if IMAGES.match(key))
        teacher = f"{name.rpartition(' > ')[0]}, teacher"
        for one in same:
            for row in one.models.to_dict("records"):
                if row["network"] == "teacher":  # a teacher of several students counts once
                    found.setdefault((teacher, images), {})[row["accuracy"]] = row
                else:
                    title = name if row["network"] == "student" else f"{name}, {row['network']}"
                    found.setdefault((title, frozenset()), {})[one.folder] = row
    in_order = sorted(found.items(), key=lambda item: not item[0][0].endswith(", teacher"))
    titles, networks = [title for (title, _), _ in in_order], [list(values.values()) for _, values in in_order]
    columns = [texts("network", titles)]
    for title, key in (("parameters", "num_parameters"), ("MACs", "num_macs")):
        columns.append(counts(title, [int(same[0][key]) for same in networks]))
    columns.append(numbers("ms / image", [float(np.median([row["latency_ms"] for row in same])) for same in networks]))
    columns.append(form.percents("accuracy", [[row["accuracy"] for row in same] for same in networks]))
    legend = "MACs: multiply-accumulate operations for one image. ms / image: median latency of one image. Accuracy in %, as above."
    return Table("costs", "Cost and accuracy of each network", tuple(columns), legend)


def members(labelled: Labelled, form: NumberFormat) -> Table | None:
    """Each network of an online ensemble beside the same network trained alone, paired by seed; None without an ensemble."""
    names, sizes, together, alone, gains = [], [], [], [], []
    for name, same in labelled.items():
        networks = [network for network in same[0].models["network"] if network != "teacher"]
        for network in networks if len(networks) > 1 else ():
            size = figure(same[0], network, "num_parameters")
            mine = {one.seed: figure(one, network, "accuracy") for one in same}
            theirs = {one.seed: one.accuracy for others in labelled.values() if like(others[0], same[0], size) for one in others}
            names.append(f"{name}, {network}")
            sizes.append(int(size))
            together.append(list(mine.values()))
            alone.append(list(theirs.values()))
            gains.append([mine[seed] - theirs[seed] for seed in mine if seed in theirs])
    if not names:
        return None
    columns = [texts("network", names), counts("n", list(map(len, together))), counts("parameters", sizes)]
    columns += [form.percents("in the ensemble", together), form.percents("alone", alone)]
    columns.append(Column("gain", tuple(form.of_differences.percent(values, "+") if values else Cell(DASH) for values in gains)))
    legend = "Accuracy in %. Alone: a network with equally many parameters, trained with labels for as long. The gain is paired by seed."
    return Table("members", "Networks of an ensemble", tuple(columns), legend)


def like(one: DistillationRun, member: DistillationRun, parameters: float) -> bool:
    """``one`` is a network of a member's size, trained with labels alone on the same images for as long."""
    same = one.choice("student") == member.choice("student") and task(one) == task(member)
    return one.choice("distiller") == "none" and same and figure(one, "student", "num_parameters") == parameters


def ladder(labelled: Labelled) -> dict[str, pd.DataFrame]:
    """By student and method, the student's accuracy and its teacher's, where there are three teachers or more."""
    rungs: dict[str, list[dict[str, float | str]]] = {}
    for name, same in labelled.items():
        if not np.isnan(same[0].teacher):
            teacher, _, method = name.rpartition(" > ")
            rungs.setdefault(method, []).extend(
                {"teacher_accuracy": one.teacher, "student_accuracy": one.accuracy, "seed": one.seed, "name": teacher} for one in same
            )
    frames = {method: pd.DataFrame(rows) for method, rows in rungs.items()}
    return {method: frame for method, frame in frames.items() if frame["name"].nunique() >= 3}


def rank_correlation(frame: pd.DataFrame) -> tuple[float, float]:
    """Spearman's rho between the teachers' and the students' mean accuracies, and the slope of a line through them."""
    means = frame.groupby("name")[["teacher_accuracy", "student_accuracy"]].mean()
    teachers, learners = means["teacher_accuracy"], means["student_accuracy"]
    return float(spearmanr(teachers, learners).statistic), float(np.polyfit(teachers, learners, 1)[0])


def teacher_student(steps: Mapping[str, pd.DataFrame]) -> Table:
    """How far the students of each method follow their teachers."""
    found = [rank_correlation(frame) for frame in steps.values()]
    columns = [texts("strategy", list(steps)), counts("teachers", [frame["name"].nunique() for frame in steps.values()])]
    for place, title in enumerate(("Spearman's rho", "slope")):
        columns.append(Column(title, tuple(Cell(f"{pair[place]:+.2f}", pair[place]) for pair in found)))
    return Table("ladder", "Student vs teacher accuracy", tuple(columns), "The student's mean accuracy over seeds against the teacher's.")


def domain(one: DistillationRun) -> int | None:
    """The position of the domain that is left out; None where none is."""
    return one.config.get("data", {}).get(HELD_OUT)


def without_domain(one: DistillationRun) -> DistillationRun:
    """The same run without the name of the domain, so that runs of all domains form one group."""
    data = {key: value for key, value in one.config["data"].items() if key != HELD_OUT}
    return replace(one, config={**one.config, "data": data})


def path_length(one: DistillationRun) -> float:
    """The length of the path of the parameters, over the norm of the initial ones."""
    return float(one.metrics["parameter_path_length"].iloc[-1])


def accuracies(same: Sequence[DistillationRun], left_out: Mapping[DistillationRun, int | None]) -> pd.DataFrame:
    """Accuracy by seed and domain, for the seeds that have all domains."""
    rows = [(one.seed, left_out[one], one.accuracy) for one in same]
    return pd.DataFrame(rows, columns=["seed", "domain", "accuracy"]).pivot(index="seed", columns="domain", values="accuracy").dropna()


def domains(runs: Sequence[DistillationRun], form: NumberFormat, methods: Mapping[str, str] | None = None) -> Table | None:
    """Accuracy on each domain that is left out, their mean and its gains; None with fewer than two domains."""
    left_out = {without_domain(one): domain(one) for one in runs if domain(one) is not None}
    labelled = groups(list(left_out), methods)
    frames = {name: accuracies(same, left_out) for name, same in labelled.items()}
    frames = {name: frame for name, frame in frames.items() if frame.shape[1] > 1 and len(frame)}
    if not frames:
        return None
    columns = [texts("strategy", list(frames)), counts("n", list(map(len, frames.values())))]
    for place in sorted({int(str(place)) for frame in frames.values() for place in frame}):
        columns.append(
            Column(f"domain {place}", tuple(form.percent(frame[place]) if place in frame else Cell(DASH) for frame in frames.values()))
        )
    columns.append(form.percents("mean", [frame.mean(axis=1).to_numpy() for frame in frames.values()]))
    for baseline, title in BASELINES.items():
        columns.append(Column(title, tuple(mean_gain(name, labelled, frames, baseline, form) for name in frames)))
    columns.append(numbers("parameter path", [float(np.mean([path_length(one) for one in labelled[name]])) for name in frames]))
    legend = (
        f"Accuracy in % on the domain that is left out, their mean, and its gains, paired by seed: {form.legend}.\n"
        "Parameter path: length of the path of the weights, epoch by epoch, over the norm of the initial weights."
    )
    return Table("domains", "Leave-one-domain-out", tuple(columns), legend)


def mean_gain(name: str, labelled: Labelled, frames: Mapping[str, pd.DataFrame], baseline: str, form: NumberFormat) -> Cell:
    """The gain of the mean over domains, paired by seed; a dash where some seed has no such baseline."""
    mine = frames[name]
    for other, frame in frames.items():
        alike = mine.index.isin(frame.index).all() and frame.columns.equals(mine.columns)
        if alike and matching(labelled[name][0], labelled[other][0], baseline):
            return form.of_differences.percent((mine - frame.loc[mine.index]).mean(axis=1), "+")
    return Cell(DASH)
