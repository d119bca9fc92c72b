"""Distillations side by side: read from their folders, paired by seed, as tables and figures. It reads files only."""

import json
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from scipy.stats import spearmanr

from simulations.configurations import completed
from simulations.groups import gather
from simulations.runs import NO_EFFECT, SETTING, laid_flat, natural
from simulations.tables import DASH, Cell, Column, Table, counts, numbers, percent, percents, ranked, texts

SEEDLESS = re.compile(
    r"(seed|name|output|choices|run|round|progress|export|retrieval|tuned|checkpoint_every)(\.|$)|(\w+\.)*(root|cache|download)$"
)
TASK = re.compile(
    rf"run\.({SETTING.pattern})|(data|classes|examples|validation|epochs|steps|batch_size|milestones|lr_decay|augmentation|optimizer|precision|device)(\.|$)"
)
IMAGES = re.compile(rf"run\.({SETTING.pattern})|(data|classes|examples|validation)(\.|$)")
RETRIEVAL = {
    f"{name}{ending}": f"{title} ({similarity})"
    for similarity, ending in (("cosine", ""), ("euclidean", "_euclidean"))
    for name, title in (("mean_average_precision", "mAP"), ("precision_100", "top 100"), ("precision_1", "top 1"))
}
"""What ``models.csv`` says of retrieval, and how it is called."""
LEGEND = """Accuracy in %: mean over n seeds ± half-width of its 95 % interval (Student's t over seeds; none at n = 1), after the last epoch.
Before: the student untrained, or as it began. Of teacher: the student's accuracy as a share of its teacher's. Less none, less kd: paired by seed, on the same images with the same student (and teacher)."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """One finished distillation."""

    folder: Path
    config: dict[str, Any]
    metrics: pd.DataFrame
    models: pd.DataFrame

    @property
    def seed(self) -> int:
        return self.config["seed"]

    def choice(self, part: str) -> str:
        """The name under which a part was chosen; a dash where there is none."""
        return self.config["choices"].get(part, "-")

    @cached_property
    def values(self) -> dict[str, Hashable]:
        """All that can change a result, but for the seed; of a run that gave images alone, what made these."""
        mine = {key: value for key, value in laid_flat(self.config) if value is not None and not SEEDLESS.match(key)}
        theirs = origin(self.config["run"])
        if np.isnan(self.teacher):  # the run gave images alone
            theirs = {key: value for key, value in theirs.items() if SETTING.match(key)}
        return mine | {f"run.{key}": value for key, value in theirs.items()}

    @property
    def accuracy(self) -> float:
        """The student's in the end."""
        return self.metrics["accuracy"].dropna().iloc[-1]

    @property
    def teacher(self) -> float:
        """The teacher's accuracy; NaN without one."""
        return figure(self, "teacher", "accuracy")


def origin(folder: str | None) -> dict[str, Hashable]:
    """The configuration of the run in ``folder``, but for its seed; the folder's name where there is no such file any more."""
    if folder is None:
        return {}
    try:
        config = OmegaConf.to_container(OmegaConf.load(Path(folder) / "config.yaml"))
    except OSError:
        return {"folder": Path(folder).name}
    values = laid_flat(completed(config) if "strategy" in config else config)
    return {key: value for key, value in values if value is not None and not (NO_EFFECT.match(key) or SEEDLESS.match(key))}


def read(folder: Path) -> Lesson:
    """The distillation in ``folder``.

    Raises:
        ValueError: it is unfinished, or a file cannot be understood.
    """
    try:
        header = json.loads((folder / "checkpoint.json").read_text())
        if not header["finished"]:
            raise ValueError(f"unfinished: {header['round']} of {header['rounds']} epochs; start it again to go on with it")
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        return Lesson(folder, config, pd.read_csv(folder / "metrics.csv"), pd.read_csv(folder / "models.csv"))
    except OSError as error:
        raise ValueError(f"unfinished: {error}") from error


def distinct(lessons: Sequence[Lesson]) -> tuple[list[Lesson], list[str]]:
    """The first of those that differ in nothing, and a note on each other."""
    kept: dict[Hashable, Lesson] = {}
    for one in lessons:
        kept.setdefault((frozenset(one.values.items()), one.seed), one)
    again = [(one, kept[frozenset(one.values.items()), one.seed]) for one in lessons]
    return list(kept.values()), [
        f"{one.folder}: the same configuration and seed as {first.folder}, {'and' if one.accuracy == first.accuracy else 'BUT NOT'} the same accuracy"
        for one, first in again
        if one is not first
    ]


def students(lessons: Sequence[Lesson]) -> list[Lesson]:
    """All but those that are here as somebody's teacher alone: trained with labels, from a seed that no student has."""
    taught = [one for one in lessons if not np.isnan(one.teacher)]
    seeds = {one.seed for one in taught}
    teachers = {(one.config["teacher_seed"], figure(one, "teacher", "parameters"), one.teacher) for one in taught}
    return [one for one in lessons if one.seed in seeds or (one.seed, figure(one, "student", "parameters"), one.accuracy) not in teachers]


def alike_but_for_seeds(lessons: Sequence[Lesson]) -> list[list[Lesson]]:
    """Those that differ in the seed alone together, in its order; and in the teacher's, where no seed has two teachers."""
    together = []
    for same in gather(lessons, lambda one: frozenset(item for item in one.values.items() if item[0] != "teacher_seed")):
        teachers = {(one.seed, one.values.get("teacher_seed")) for one in same}
        one_each = len(teachers) == len({seed for seed, _ in teachers})
        together += [same] if one_each else gather(same, lambda one: one.values.get("teacher_seed"))
    return [sorted(same, key=lambda one: one.seed) for same in together]


def groups(lessons: Sequence[Lesson]) -> dict[str, list[Lesson]]:
    """Those that differ in seeds alone together, under a label that tells them from the others."""
    alike = alike_but_for_seeds(lessons)
    named = []
    for same in alike:
        parts = ("teacher", "student", "distiller", "source")
        kin = [other[0] for other in alike if all(other[0].choice(part) == same[0].choice(part) for part in parts)]
        words = [same[0].choice("data"), same[0].choice("student"), str(task(same[0]))]
        place = [natural(word) for word in [*words, *map(same[0].choice, ("teacher", "distiller", "source"))]]
        named.append((place, label(same[0], kin), label(same[0], kin, short=False), same))
    times = Counter(short for _, short, _, _ in named)
    unlike = [(place, whole if times[short] > 1 else short, same) for place, short, whole, same in named]
    return {name: same for _, name, same in sorted(unlike, key=lambda item: (item[0], natural(item[1])))}


def label(one: Lesson, kin: Sequence[Lesson], short: bool = True) -> str:
    """``resnet20 > resnet8, dpk, ratio 0.5``: the choices, and what differs from others of the same choices."""
    keys = sorted({key for other in kin for key in (*other.values, *one.values) if other.values.get(key) != one.values.get(key)})
    differing = {key: shown(key.rpartition(".")[2], one.values.get(key), short) for key in keys}
    source = [] if one.choice("source") == "real" else [one.choice("source")]
    own = [text for key, text in differing.items() if not key.startswith("teacher.")]
    learner = ", ".join([one.choice("student"), one.choice("distiller"), *source, *own])
    teacher = [one.choice("teacher"), *(text for key, text in differing.items() if key.startswith("teacher."))]
    return learner if one.choice("teacher") == "-" else f"{' '.join(teacher)} > {learner}"


def shown(name: str, value: Hashable, short: bool) -> str:
    """``beta 3.0``; ``no teaching`` where it is empty and, in ``short``, ``teaching`` alone where it is a list of words."""
    if value is None or value in ("[]", "None"):
        return f"no {name}"
    return name if short and str(value).startswith("['") else f"{name} {value}"


def table(labelled: Mapping[str, Sequence[Lesson]]) -> Table:
    """The headline table: a row for each of those that differ in more than the seed."""
    rows = list(labelled.values())
    columns = [texts("strategy", list(labelled)), counts("n", list(map(len, rows)))]
    columns.append(percents("teacher", [[one.teacher for one in same] for same in rows]))
    columns.append(percents("before", [[one.metrics["accuracy"].dropna().iloc[0] for one in same] for same in rows]))
    tasks = [(same[0].choice("student"), figure(same[0], "student", "parameters"), *task(same[0])) for same in rows]
    columns.append(Column("student", ranked([percent([one.accuracy for one in same]) for same in rows], tasks)))
    columns.append(percents("of teacher", [[one.accuracy / one.teacher for one in same] for same in rows]))
    for baseline in ("none", "kd"):
        columns.append(Column(f"less {baseline}", tuple(less(same, labelled, baseline) for same in rows)))
    for name, title in RETRIEVAL.items():
        if any(name in one.models for same in rows for one in same):
            columns.append(percents(title, [[figure(one, "student", name) for one in same] for same in rows]))
    columns.append(counts("parameters", [int(figure(same[0], "student", "parameters")) for same in rows]))
    return Table("distillation", "", tuple(columns), LEGEND, tuple(tasks))


def trainings(labelled: Mapping[str, Sequence[Lesson]]) -> pd.DataFrame:
    """A row for each training: what the tables are made of, accuracies in 0..1."""
    rows = [
        {
            "strategy": name, "seed": one.seed, "teacher_seed": one.config["teacher_seed"], "teacher": one.teacher,
            "before": one.metrics["accuracy"].dropna().iloc[0], "student": one.accuracy, "folder": one.folder.name,
        }
        for name, same in labelled.items()
        for one in same
    ]  # fmt: skip
    return pd.DataFrame(rows)


def flows(labelled: Mapping[str, Sequence[Lesson]]) -> pd.DataFrame | None:
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


def figure(one: Lesson, network: str, name: str) -> float:
    """A figure of the student's or the teacher's; NaN where there is none."""
    found = one.models.loc[one.models["network"] == network, name] if name in one.models else ()
    return found.iloc[0] if len(found) else np.nan


def task(one: Lesson) -> tuple[tuple[str, Hashable], ...]:
    """What is learnt from, and for how long."""
    return tuple(sorted((key, value) for key, value in one.values.items() if TASK.match(key)))


def less(same: Sequence[Lesson], labelled: Mapping[str, Sequence[Lesson]], baseline: str) -> Cell:
    """The gain over a baseline, paired by seed; a dash where some seed has none."""
    for others in labelled.values():
        theirs = {pairing(one, baseline): one.accuracy for one in others}
        if matching(same[0], others[0], baseline) and all(pairing(one, baseline) in theirs for one in same):
            return percent([one.accuracy - theirs[pairing(one, baseline)] for one in same], "+")
    return Cell(DASH)


def pairing(one: Lesson, baseline: str) -> tuple[Hashable, ...]:
    """What a student has in common with that of the baseline that it is paired with: the seed, and where both are taught, the teacher's."""
    return (one.seed,) if baseline == "none" else (one.seed, one.values.get("teacher_seed"))


def matching(one: Lesson, other: Lesson, baseline: str) -> bool:
    """``other`` is the baseline to ``one``: the same student on the same images for as long, and where it is taught, by the same teacher.

    Networks are the same that have one name and as many parameters.
    """
    networks = ("student",) if baseline == "none" else ("student", "teacher")
    same = all(one.choice(part) == other.choice(part) for part in (*networks, *(("source",) if baseline != "none" else ())))
    sizes = [[figure(lesson, network, "parameters") for network in networks] for lesson in (one, other)]
    return (
        other.choice("distiller") == baseline != one.choice("distiller")
        and same
        and np.array_equal(*sizes, equal_nan=True)
        and task(one) == task(other)
    )


def costs(labelled: Mapping[str, Sequence[Lesson]]) -> Table:
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
    columns.append(numbers("ms an image", [float(np.median([row["milliseconds"] for row in same])) for same in alike]))
    columns.append(percents("accuracy", [[row["accuracy"] for row in same] for same in alike]))
    legend = "Multiply-adds and median milliseconds for one image; accuracy in %, as above."
    return Table("costs", "What each network costs and knows", tuple(columns), legend)


def members(labelled: Mapping[str, Sequence[Lesson]]) -> Table | None:
    """Each network of an online ensemble beside the same network trained alone, paired by seed; None without any."""
    rows = []
    for name, same in labelled.items():
        networks = [network for network in same[0].models["network"] if network != "teacher"]
        for network in networks if len(networks) > 1 else ():
            size = figure(same[0], network, "parameters")
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
    return Table("members", "Networks of an ensemble", tuple(columns), "Accuracy in %; alone: as many parameters, trained with labels for as long; the gain is paired by seed.")


def like(one: Lesson, member: Lesson, parameters: float) -> bool:
    """``one`` is a network of a member's size, trained with labels alone on the same images for as long."""
    same = one.choice("student") == member.choice("student") and task(one) == task(member)
    return one.choice("distiller") == "none" and same and figure(one, "student", "parameters") == parameters


def ladder(labelled: Mapping[str, Sequence[Lesson]]) -> dict[str, pd.DataFrame]:
    """By method, the student's accuracy against its teacher's, where a method has three teachers or more for one student."""
    rungs: dict[str, list[dict[str, float]]] = {}
    for name, same in labelled.items():
        if not np.isnan(same[0].teacher):
            teacher, _, method = name.rpartition(" > ")
            rungs.setdefault(method, []).extend(
                {"teacher": one.teacher, "student": one.accuracy, "seed": one.seed, "name": teacher} for one in same
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
