"""Groups of distillations that differ in seeds alone, and a label that tells each group from the others."""

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
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedkd.errors import RunFolderError
from fedkd.files import SCHEMA_VERSION
from simulations.reports.groups import gather
from simulations.run_folder.metric_names import DISTILLER_NAMES
from simulations.run_folder.reader import (
    NO_EFFECT,
    SETTING,
    FinishedRun,
    check_checksum,
    check_not_diverged,
    configuration_of_diverged,
    flatten_config,
    natural_order,
    printed_name,
)
from simulations.run_folder.stored_config import configuration

SEEDLESS = re.compile(
    r"(seed|name|output|choices|teacher_run|round|progress|export|retrieval|layer_information_images|tuned_params|searchpath"
    r"|allow_targets|checkpoint_every)(\.|$)"
    r"|(\w+\.)*(root|cache|download)$"
)
"""Keys of a distillation that do not separate groups."""

TASK = re.compile(
    rf"teacher_run\.({SETTING.pattern})|(data|num_classes|num_train_images|validation_fraction|epochs|steps_per_epoch|batch_size|milestones"
    r"|lr_decay|augmentation|optimizer|precision|device)(\.|$)"
)
"""Keys of the images and of the length of a training."""


@dataclass(frozen=True, eq=False)
class DistillationRun(FinishedRun):
    """One distillation.

    Args:
        models: the rows of ``models.csv``, one per network.
    """

    models: pd.DataFrame

    def choice(self, part: str) -> str:
        """The name of the option that was chosen for a part; a dash for none."""
        return self.config["choices"].get(part, "-")

    @property
    def method(self) -> str:
        """The printed name of the distillation method."""
        return printed_name(self.config, "distiller", DISTILLER_NAMES)

    @cached_property
    def values(self) -> dict[str, Hashable]:
        """All keys that can change a result, without seeds. The keys of the teacher's run stand under ``teacher_run.``.

        Of a run that provides the images alone, only the keys of its setting count.
        """
        mine = {key: value for key, value in flatten_config(self.config) if value is not None and not SEEDLESS.match(key)}
        theirs = configuration_of_teacher(self.config["teacher_run"])
        if np.isnan(self.teacher):
            theirs = {key: value for key, value in theirs.items() if SETTING.match(key)}
        return mine | {f"teacher_run.{key}": value for key, value in theirs.items()}

    @property
    def initial_accuracy(self) -> float:
        """The student's accuracy before training, in 0..1."""
        return float(self.metrics["test_accuracy"].dropna().iloc[0])

    @property
    def accuracy(self) -> float:
        """The student's accuracy after training, in 0..1."""
        return float(self.metrics["test_accuracy"].dropna().iloc[-1])

    @property
    def teacher(self) -> float:
        """The teacher's accuracy, in 0..1; NaN without a teacher."""
        return figure(self, "teacher", "accuracy")


def configuration_of_teacher(folder: str | None) -> dict[str, Hashable]:
    """The configuration of the run in ``folder``, without its seed; the folder's name where the file is gone; empty without a run."""
    if folder is None:
        return {}
    try:
        config = configuration(Path(folder) / "config.yaml")
    except OSError:
        return {"folder": Path(folder).name}
    values = flatten_config(config)
    return {key: value for key, value in values if value is not None and not (NO_EFFECT.match(key) or SEEDLESS.match(key))}


def read_distillation(folder: Path) -> DistillationRun:
    """The distillation in ``folder``.

    Raises:
        RunFolderError: the distillation is unfinished, or a file cannot be read.
    """
    check_not_diverged(folder)
    try:
        header = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8-sig"))
        finished, done, epochs, schema = header["finished"], header["round"], header["rounds"], header.get("schema")
        config: dict[str, Any] = configuration(folder / "config.yaml")
        metrics = pd.read_csv(folder / "metrics.csv")
        models = pd.read_csv(folder / "models.csv") if finished else pd.DataFrame()
    except OSError as error:
        raise RunFolderError(f"unfinished: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, YAMLError, OmegaConfBaseException) as error:
        raise RunFolderError("unreadable: " + " ".join(f"{type(error).__name__}: {error}".split())) from error
    if schema != SCHEMA_VERSION:
        raise RunFolderError(f"written with schema version {schema}; this version of fedkd reads {SCHEMA_VERSION}; run it again")
    check_checksum(folder)
    if not finished:
        raise RunFolderError(f"unfinished: {done} of {epochs} epochs; start it again to go on with it")
    return DistillationRun(folder, config, metrics, models)


def read_diverged_distillations(folders: Sequence[Path]) -> list[DistillationRun]:
    """The distillations among ``folders`` that diverged, without their numbers."""
    found = [(folder, configuration_of_diverged(folder)) for folder in folders]
    return [DistillationRun(folder, config, pd.DataFrame(), pd.DataFrame()) for folder, config in found if config is not None]


def divergence(same: Sequence[DistillationRun], diverged: Sequence[DistillationRun]) -> str:
    """How many runs of a group diverged, as the end of its label: ``, 1 of 3 diverged``. Empty where none did.

    Args:
        same: the runs of the group that have results.
        diverged: of all groups.
    """
    number = num_diverged(same, diverged)
    return f", {number} of {number + len(same)} diverged" if number else ""


def num_diverged(same: Sequence[DistillationRun], diverged: Sequence[DistillationRun]) -> int:
    """The number of seeds that a group lacks because their runs diverged."""
    keys, seeds = {_configured(one) for one in same}, {one.seed for one in same}
    teachers = {one.config["teacher_seed"] for one in same}  # one for all seeds of the group, or one for each
    any_teacher = len(teachers) > 1 or len(same) == 1
    lost = [one for one in diverged if any_teacher or one.config["teacher_seed"] in teachers]
    return len({one.seed for one in lost if one.seed not in seeds and _configured(one) in keys})


def _configured(one: DistillationRun) -> frozenset[tuple[str, Hashable]]:
    """The configuration without seeds, and that of the teacher's run. It needs no numbers, which a run that diverged lacks."""
    mine = {
        key: value for key, value in flatten_config(one.config) if value is not None and not SEEDLESS.match(key) and key != "teacher_seed"
    }
    theirs = configuration_of_teacher(one.config["teacher_run"])
    return frozenset((mine | {f"teacher_run.{key}": value for key, value in theirs.items()}).items())


def distinct(runs: Sequence[DistillationRun]) -> tuple[list[DistillationRun], list[str]]:
    """The first of the runs with equal configuration and seed, and a note on each other."""
    kept: dict[Hashable, DistillationRun] = {}
    notes = []
    for one in runs:
        first = kept.setdefault((frozenset(one.values.items()), one.seed), one)
        if first is not one:
            same = "and" if one.accuracy == first.accuracy else "BUT NOT"
            notes.append(f"{one.folder}: the same configuration and seed as {first.folder}, {same} the same accuracy")
    return list(kept.values()), notes


def students(runs: Sequence[DistillationRun]) -> list[DistillationRun]:
    """The runs without those that are present as a teacher only: trained with labels, from a seed that no student has."""
    taught = [one for one in runs if not np.isnan(one.teacher)]
    seeds = {one.seed for one in taught}
    teachers = {(one.config["teacher_seed"], figure(one, "teacher", "num_parameters"), one.teacher) for one in taught}
    return [one for one in runs if one.seed in seeds or (one.seed, figure(one, "student", "num_parameters"), one.accuracy) not in teachers]


def alike_but_for_seeds(runs: Sequence[DistillationRun]) -> list[list[DistillationRun]]:
    """Runs that differ in the seed alone together, sorted by seed; also in the teacher's seed, where no seed has two teachers."""
    together = []
    for same in gather(runs, lambda one: frozenset(item for item in one.values.items() if item[0] != "teacher_seed")):
        teachers = {(one.seed, one.values.get("teacher_seed")) for one in same}
        one_each = len(teachers) == len({seed for seed, _ in teachers})
        together += [same] if one_each else gather(same, lambda one: one.values.get("teacher_seed"))
    return [sorted(same, key=lambda one: one.seed) for same in together]


def groups(runs: Sequence[DistillationRun], methods: Mapping[str, str] | None = None) -> dict[str, list[DistillationRun]]:
    """Runs that differ in seeds alone together, under a label that tells them from the others.

    Args:
        runs: all of them.
        methods: printed names by the option of the method, which replace the default ones.
    """
    alike = alike_but_for_seeds(runs)
    named = []
    for same in alike:
        parts = ("teacher", "student", "distiller", "image_source")
        kin = [other[0] for other in alike if all(other[0].choice(part) == same[0].choice(part) for part in parts)]
        words = [same[0].choice("data"), same[0].choice("student"), str(task(same[0]))]
        place = [natural_order(word) for word in [*words, *map(same[0].choice, ("teacher", "distiller", "image_source"))]]
        method = (methods or {}).get(same[0].choice("distiller"), same[0].method)
        named.append((place, label(same[0], kin, method), label(same[0], kin, method, short=False), same))
    times = Counter(short for _, short, _, _ in named)
    distinguished = [(place, whole if times[short] > 1 else short, same) for place, short, whole, same in named]
    return {name: same for _, name, same in sorted(distinguished, key=lambda item: (item[0], natural_order(item[1])))}


def label(one: DistillationRun, kin: Sequence[DistillationRun], method: str, short: bool = True) -> str:
    """``resnet20 > resnet8, DPK, ratio 0.5``: teacher, student and method, and the differences from other runs of the same choices."""
    keys = sorted({key for other in kin for key in (*other.values, *one.values) if other.values.get(key) != one.values.get(key)})
    differing = {key: shown(key.rpartition(".")[2], one.values.get(key), short) for key in keys}
    source = [] if one.choice("image_source") == "real" else [one.choice("image_source")]
    own = [text for key, text in differing.items() if not key.startswith("teacher.")]
    learner = ", ".join([one.choice("student"), method, *source, *own])
    teacher = [one.choice("teacher"), *(text for key, text in differing.items() if key.startswith("teacher."))]
    return learner if one.choice("teacher") == "-" else f"{' '.join(teacher)} > {learner}"


def shown(name: str, value: Hashable, short: bool) -> str:
    """``beta 3.0``; ``no teaching`` for an empty value; in ``short``, ``teaching`` alone for a list of words."""
    if value is None or value in ("[]", "None"):
        return f"no {name}"
    return name if short and str(value).startswith("['") else f"{name} {value}"


def figure(one: DistillationRun, network: str, name: str) -> float:
    """A column of ``models.csv`` for the student, the teacher, or a member of an ensemble; NaN where there is none."""
    if name not in one.models:
        return float("nan")
    found = one.models.loc[one.models["network"] == network, name]
    return float(found.iloc[0]) if len(found) else float("nan")


def task(one: DistillationRun) -> tuple[tuple[str, Hashable], ...]:
    """The images and the length of the training."""
    return tuple(sorted(((key, value) for key, value in one.values.items() if TASK.match(key)), key=lambda item: (item[0], str(item[1]))))
