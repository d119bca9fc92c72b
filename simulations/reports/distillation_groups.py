"""Distillations as their folders tell of them: read, told apart and called by a name. It reads files only."""

import json
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from fedkd.errors import RunFolderError
from simulations.reports.groups import gather
from simulations.run_folder.reader import NO_EFFECT, SETTING, FinishedRun, flatten_config, natural_order

SEEDLESS = re.compile(
    r"(seed|name|output|choices|run|round|progress|export|retrieval|tuned|checkpoint_every)(\.|$)|(\w+\.)*(root|cache|download)$"
)

TASK = re.compile(
    rf"run\.({SETTING.pattern})|(data|classes|examples|validation|epochs|steps|batch_size|milestones|lr_decay|augmentation|optimizer|precision|device)(\.|$)"
)


@dataclass(frozen=True, eq=False)
class DistillationRun(FinishedRun):
    """One distillation, with what its networks are and can do."""

    models: pd.DataFrame

    def choice(self, part: str) -> str:
        """The name under which a part was chosen; a dash where there is none."""
        return self.config["choices"].get(part, "-")

    @cached_property
    def values(self) -> dict[str, Hashable]:
        """All that can change a result, but for the seed; of a run that gave images alone, what made these."""
        mine = {key: value for key, value in flatten_config(self.config) if value is not None and not SEEDLESS.match(key)}
        theirs = origin(self.config["teacher_run"])
        if np.isnan(self.teacher):  # the run gave images alone
            theirs = {key: value for key, value in theirs.items() if SETTING.match(key)}
        return mine | {f"run.{key}": value for key, value in theirs.items()}

    @property
    def accuracy(self) -> float:
        """The student's in the end."""
        return self.metrics["test_accuracy"].dropna().iloc[-1]

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
    values = flatten_config(config)
    return {key: value for key, value in values if value is not None and not (NO_EFFECT.match(key) or SEEDLESS.match(key))}


def read_distillation(folder: Path) -> DistillationRun:
    """The distillation in ``folder``.

    Raises:
        RunFolderError: it is unfinished, or a file cannot be understood.
    """
    try:
        header = json.loads((folder / "checkpoint.json").read_text())
        if not header["finished"]:
            raise RunFolderError(f"unfinished: {header['round']} of {header['rounds']} epochs; start it again to go on with it")
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        return DistillationRun(folder, config, pd.read_csv(folder / "metrics.csv"), pd.read_csv(folder / "models.csv"))
    except OSError as error:
        raise RunFolderError(f"unfinished: {error}") from error


def distinct(lessons: Sequence[DistillationRun]) -> tuple[list[DistillationRun], list[str]]:
    """The first of those that differ in nothing, and a note on each other."""
    kept: dict[Hashable, DistillationRun] = {}
    for one in lessons:
        kept.setdefault((frozenset(one.values.items()), one.seed), one)
    again = [(one, kept[frozenset(one.values.items()), one.seed]) for one in lessons]
    return list(kept.values()), [
        f"{one.folder}: the same configuration and seed as {first.folder}, {'and' if one.accuracy == first.accuracy else 'BUT NOT'} the same accuracy"
        for one, first in again
        if one is not first
    ]


def students(lessons: Sequence[DistillationRun]) -> list[DistillationRun]:
    """All but those that are here as somebody's teacher alone: trained with labels, from a seed that no student has."""
    taught = [one for one in lessons if not np.isnan(one.teacher)]
    seeds = {one.seed for one in taught}
    teachers = {(one.config["teacher_seed"], figure(one, "teacher", "num_parameters"), one.teacher) for one in taught}
    return [
        one for one in lessons if one.seed in seeds or (one.seed, figure(one, "student", "num_parameters"), one.accuracy) not in teachers
    ]


def alike_but_for_seeds(lessons: Sequence[DistillationRun]) -> list[list[DistillationRun]]:
    """Those that differ in the seed alone together, in its order; and in the teacher's, where no seed has two teachers."""
    together = []
    for same in gather(lessons, lambda one: frozenset(item for item in one.values.items() if item[0] != "teacher_seed")):
        teachers = {(one.seed, one.values.get("teacher_seed")) for one in same}
        one_each = len(teachers) == len({seed for seed, _ in teachers})
        together += [same] if one_each else gather(same, lambda one: one.values.get("teacher_seed"))
    return [sorted(same, key=lambda one: one.seed) for same in together]


def groups(lessons: Sequence[DistillationRun]) -> dict[str, list[DistillationRun]]:
    """Those that differ in seeds alone together, under a label that tells them from the others."""
    alike = alike_but_for_seeds(lessons)
    named = []
    for same in alike:
        parts = ("teacher", "student", "distiller", "image_source")
        kin = [other[0] for other in alike if all(other[0].choice(part) == same[0].choice(part) for part in parts)]
        words = [same[0].choice("data"), same[0].choice("student"), str(task(same[0]))]
        place = [natural_order(word) for word in [*words, *map(same[0].choice, ("teacher", "distiller", "image_source"))]]
        named.append((place, label(same[0], kin), label(same[0], kin, short=False), same))
    times = Counter(short for _, short, _, _ in named)
    unlike = [(place, whole if times[short] > 1 else short, same) for place, short, whole, same in named]
    return {name: same for _, name, same in sorted(unlike, key=lambda item: (item[0], natural_order(item[1])))}


def label(one: DistillationRun, kin: Sequence[DistillationRun], short: bool = True) -> str:
    """``resnet20 > resnet8, dpk, ratio 0.5``: the choices, and what differs from others of the same choices."""
    keys = sorted({key for other in kin for key in (*other.values, *one.values) if other.values.get(key) != one.values.get(key)})
    differing = {key: shown(key.rpartition(".")[2], one.values.get(key), short) for key in keys}
    source = [] if one.choice("image_source") == "real" else [one.choice("image_source")]
    own = [text for key, text in differing.items() if not key.startswith("teacher.")]
    learner = ", ".join([one.choice("student"), one.choice("distiller"), *source, *own])
    teacher = [one.choice("teacher"), *(text for key, text in differing.items() if key.startswith("teacher."))]
    return learner if one.choice("teacher") == "-" else f"{' '.join(teacher)} > {learner}"


def shown(name: str, value: Hashable, short: bool) -> str:
    """``beta 3.0``; ``no teaching`` where it is empty and, in ``short``, ``teaching`` alone where it is a list of words."""
    if value is None or value in ("[]", "None"):
        return f"no {name}"
    return name if short and str(value).startswith("['") else f"{name} {value}"


def figure(one: DistillationRun, network: str, name: str) -> float:
    """A figure of the student's or the teacher's; NaN where there is none."""
    found = one.models.loc[one.models["network"] == network, name] if name in one.models else ()
    return found.iloc[0] if len(found) else np.nan


def task(one: DistillationRun) -> tuple[tuple[str, Hashable], ...]:
    """What is learnt from, and for how long."""
    return tuple(sorted((key, value) for key, value in one.values.items() if TASK.match(key)))
