"""The objects that a distillation configuration describes: images, networks, method, and the trainings that precede it."""

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from fedkd.checkpoint import read_checkpoint, read_header
from fedkd.config.build import DISTILLATION_KEYS_WITHOUT_EFFECT, build, with_class_names, call_part, without_paths
from fedkd.distillation.image_sources import ImageSource
from fedkd.distillation.methods.base import Distiller, StudentModule, TeacherStudent
from fedkd.distillation.student_training import Training
from fedkd.errors import ConfigError, require
from fedkd.models.base import Classifier
from fedkd.partition.validation_split import split_validation
from fedkd.seed import Seed
from fedkd.training.functional_model import snapshot, submodule_tensors
from fedkd.training.loop import Execution
from fedkd.types import Examples, Task, Tensors
from simulations.config import compose
from simulations.distillation.folder import read_trained_tensors
from simulations.distillation.teachers import Teacher, aggregated, config_of, digest, is_federated, pooled
from simulations.setup.simulation import build_simulation, dtype_of


def schedule(config: DictConfig) -> list[float]:
    """What the learning rate is multiplied by in each epoch."""
    passed = [sum(epoch >= round(stone * config.epochs) for stone in config.milestones) for epoch in range(config.epochs)]
    return [config.lr_decay**number for number in passed]


@dataclass
class Setup:
    """A distillation before it begins.

    Args:
        config: resolved.
        task: what is learnt.
        train: the images that a source may use.
        test: what is scored: the test set, or what is held out.
        distiller: the method.
        source: where images come from.
        pool: its images, where they do not change.
        learner: all that trains; its own values are a workspace.
        start: its tensors at the beginning, but for ``init``.
        teacher: the teacher's form; None where none is needed.
        before: how to train it; None where a run has.
        taught: its tensors, where a run has trained it.
    """

    config: DictConfig
    task: Task
    train: Examples
    test: Examples
    distiller: Distiller
    source: ImageSource
    pool: Examples | None
    learner: StudentModule
    start: Tensors
    teacher: StudentModule | None
    before: DictConfig | None
    taught: Tensors | None

    def training(self, start: Tensors, taught: Tensors) -> Training:
        """All of it, ready to begin."""
        config = self.config
        return Training(
            self.task, self.distiller, self.learner, self.teacher, taught, self.source, self.pool, self.train.without_images(), build(config, "augmentation"),
            build(config, "optimizer"), config.batch_size, config.steps_per_epoch, config.epochs, schedule(config), Seed(config.seed), dtype_of(config),
            Execution(config.compile, autocast=config.precision == "bfloat16"),
        )  # fmt: skip

    def hash(self, taught: Tensors, start: Tensors) -> str:
        """Twelve hexadecimal digits that stand for everything that can change the result: the teacher counts by its numbers."""
        node = OmegaConf.to_container(self.config, resolve=True)
        kept = with_class_names({key: without_paths(value) for key, value in node.items() if key not in DISTILLATION_KEYS_WITHOUT_EFFECT})
        digests = {"train": self.train.digest, "test": self.test.digest, "teacher": digest(taught)}
        digests |= {"run": self.config.teacher_run is not None, "start": digest(start) if self.config.student_init else ""}
        return hashlib.sha256(json.dumps([kept, digests], sort_keys=True).encode()).hexdigest()[:12]


def make_setup(config: DictConfig, given: "Origin | None" = None) -> Setup:
    """What ``config`` stands for; everything that can be refused before any training is.

    Args:
        config: composed.
        given: what the run has, where it has not ended yet; None: it is read.

    Raises:
        ConfigError: naming the key, the rule and the value.
    """
    require(
        config.device == "cpu" or torch.cuda.is_available(),
        "device",
        "must be one that this machine has (no GPU is visible here)",
        config.device,
    )
    distiller, source = build(config, "distiller"), build(config, "image_source")
    require(isinstance(distiller, Distiller), "distiller._target_", "must be a distiller", config.distiller["_target_"])
    rule = f"must have labels for distiller {config.choices.get('distiller')}, which learns from them"
    require(source.labelled or not distiller.needs_labels, "image_source", rule, config.choices.get("image_source"))
    given = given if given is not None or config.teacher_run is None else origin(Path(config.teacher_run).expanduser().absolute(), config)
    rule = "must not be alone where a run's images are not to be seen: that is a training with their labels (student_init=null)"
    require(
        source.labelled or given is None or config.student_init != "alone",
        "student_init",
        rule,
        f"alone with image_source {config.choices.get('image_source')}",
    )
    task, train, test = reduced(config, *(call_part("data", build(config, "data")) if given is None else given.images))
    teacher, before, taught = make_teacher(config, distiller, source, given)
    fresh = maker(config, "student", task)
    seed = Seed(config.seed)
    with (seed / "student").globally():
        pair = TeacherStudent(task, fresh(), fresh, *((None, None) if teacher is None else (teacher.student, teacher.method)))
    pool = call_part("image_source", source.open, task, train, seed / "source")
    try:
        distiller.check(pair, min(config.batch_size, source.fewest(pool)))
    except ValueError as error:
        raise (error if str(error).split()[0] in config else ValueError(f"distiller.{error}")) from error
    if teacher is not None:
        same_classes(teacher, task)
        teacher = teacher.to(config.device, dtype_of(config))
    with (seed / "method").globally():
        learner = distiller.learner(pair).to(config.device, dtype_of(config))
    train, test, pool = (None if one is None else one.to(config.device) for one in (train, test, pool))
    return Setup(config, task, train, test, distiller, source, pool, learner, snapshot(learner), teacher, before, taught)


def make_teacher(
    config: DictConfig, distiller: Distiller, source: ImageSource, given: "Origin | None"
) -> tuple[StudentModule | None, DictConfig | None, Tensors | None]:
    """The teacher's form, if one is needed; how to train it, or its tensors where a run has. ``config`` forgets what is not needed."""
    needed = distiller.taught or not source.labelled or source.looks or config.student_init == "teacher"
    prepared = needed and (given is None or len(distiller.preparation()) > 0)
    before = teacher_config(config, distiller, None if given is None else given.network) if prepared else None
    if given is not None or not needed:
        config.teacher, config.teacher_seed = None, 0
        config.choices.pop("teacher", None)
    if not prepared:
        config.teacher_epochs = None
    if not needed:
        config.teacher_kind = "global_model"
        return None, None, None
    if given is not None:
        config.choices.teacher = given.network[1]
    if before is not None:
        earlier = prepared_by(before, given)
        rule = "must be one that learns from the run's model (this one's teacher is trained anew)"
        require(given is None or earlier.teacher is not None, "distiller", rule, config.choices.get("distiller"))
        return earlier.learner, before, None
    assert given is not None, "a teacher is trained, or a run has it"
    return given.teacher.learner, None, given.teacher.tensors


def prepared_by(before: DictConfig, given: "Origin | None") -> Setup:
    """The training that comes before, set up.

    Raises:
        ConfigError: it cannot be; where it is not simply the teacher's own, it says that it is what ``distiller.teaching`` asks for.
    """
    try:
        return make_setup(deepcopy(before), given)
    except ValueError as error:
        if before.choices.get("distiller") == "none":
            raise
        raise ConfigError(
            f"distiller.teaching asks for {before.choices.get('student')} by {before.choices.get('distiller')}: {error}"
        ) from error


def maker(config: DictConfig, part: str, task: Task) -> Callable[..., Classifier]:
    """``(**changes) -> network`` of a part."""
    network = build(config, part)
    return lambda **changes: call_part(part, partial(network, **changes), task)


@dataclass(frozen=True)
class Origin:
    """What ``run`` names: its images, the model that it ended with, and how its network is described and called."""

    images: tuple[Task, Examples, Examples]
    teacher: Teacher
    network: tuple[DictConfig, str]


def origin(folder: Path, config: DictConfig) -> Origin:
    """A finished run of either kind; ``config`` takes on its data.

    Raises:
        ConfigError: it cannot be used; says why.
    """
    theirs = config_of(folder, config.round)
    chosen = config.choices.pop("data", None)
    asked = OmegaConf.to_container(config.data, resolve=True)
    config.data = theirs.data
    config.choices.data = theirs.choices.get("data", "data")
    named = without_paths(asked) == without_paths(OmegaConf.to_container(theirs.data, resolve=True)) or chosen in (None, "digits")
    require(named, "data", f"must be left to the run ({theirs.choices.get('data')}), on whose images its model is distilled", chosen)
    if is_federated(theirs):
        name = f"{theirs.choices.get('strategy', 'run')}'s {theirs.choices.get('model', 'model')}"
        home = build_simulation(OmegaConf.to_yaml(theirs, resolve=True))
        return Origin(pooled(home), aggregated(folder, theirs, config.teacher_kind), (theirs.model, name))
    earlier = make_setup(theirs)
    network = theirs.student, theirs.choices.get("student", "student")
    return Origin((earlier.task, earlier.train, earlier.test), Teacher(earlier.learner, read_trained_tensors(folder)), network)


def reduced(config: DictConfig, task: Task, train: Examples, test: Examples) -> tuple[Task, Examples, Examples]:
    """The first classes alone, so many images, and a part of these held out, the same for every seed.

    Raises:
        ConfigError: there are not so many.
    """
    digests = train.digest, test.digest
    if config.num_classes is not None:
        require(
            config.num_classes <= task.num_classes, "num_classes", f"must be at most the task's, {task.num_classes}", config.num_classes
        )
        task = Task(task.name, task.shape, config.num_classes, task.class_names[: config.num_classes], task.mean, task.std, task.max_pixel)
        train, test = (one.subset(torch.nonzero(one.y < config.num_classes).flatten()) for one in (train, test))
    if config.num_train_images is not None:
        each = config.num_train_images // task.num_classes
        counts = torch.bincount(train.y, minlength=task.num_classes)
        enough = f"must be at least one and at most {counts.min()} images of each of {task.num_classes} classes"
        require(1 <= each <= counts.min(), "num_train_images", enough, config.num_train_images)
        rng = (Seed(0) / "examples").numpy()
        kept = [rng.permutation(np.flatnonzero(train.y.numpy() == c))[:each] for c in range(task.num_classes)]
        train = train.subset(np.sort(np.concatenate(kept)))
    if config.validation_fraction:
        (stays,), (withheld,) = split_validation([np.arange(len(train))], config.validation_fraction, Seed(0) / "validation")
        train, test = train.subset(stays), train.subset(withheld)
    return task, replace(train, digest=digests[0]), replace(test, digest=digests[1])


def same_classes(teacher: StudentModule, task: Task) -> None:
    """Refuse a teacher that answers with other classes, or sees images of another shape."""
    example = next(teacher.parameters())
    with torch.no_grad():
        classes = teacher.student.eval()(torch.zeros(2, *task.shape, dtype=example.dtype, device=example.device)).logits.shape[-1]
    require(classes == task.num_classes, "teacher", f"must have the task's classes, {task.num_classes}", classes)


def teacher_config(config: DictConfig, distiller: Distiller, given: tuple[DictConfig, str] | None) -> DictConfig:
    """How the teacher is trained: as the student, with labels alone; then as the method prepares it.

    Args:
        config: the student's.
        distiller: its method.
        given: the network of a run's model and what it is called; None: a teacher is trained first.
    """
    labels = compose(["distiller=none", "image_source=real"], "distill")
    mine = deepcopy(config)
    network, name = given if given is not None else (config.teacher, config.choices.get("teacher", "teacher"))
    mine.student, mine.choices.student = deepcopy(network), name
    mine.seed, mine.epochs = config.teacher_seed, config.teacher_epochs or config.epochs
    mine.tuned_params = None
    other = (
        given is None and config.image_source._target_ != labels.image_source._target_
    )  # a run's model is prepared on what its student may see
    mine.student_init, mine.layer_information_images, mine.steps_per_epoch = None, 0, None if other else config.steps_per_epoch
    for part in ("distiller", "image_source") if given is None else ("distiller",):
        mine[part], mine.choices[part] = labels[part], labels.choices[part]
    if overrides := list(distiller.preparation()):
        composed = compose([*overrides, f"searchpath=[{','.join(config.searchpath)}]"], "distill")
        for key in {one.partition("=")[0].partition(".")[0].rpartition("@")[2] for one in overrides}:
            mine[key] = composed[key]
            if key in composed.choices or f"model@{key}" in composed.choices:
                mine.choices[key] = composed.choices.get(key, composed.choices.get(f"model@{key}"))
    return mine


def student_alone_config(config: DictConfig) -> DictConfig:
    """The same student trained with labels alone."""
    labels, mine = compose(["distiller=none", "image_source=real"], "distill"), deepcopy(config)
    mine.student_init, mine.layer_information_images, mine.tuned_params = None, 0, None
    for part in ("distiller", "image_source"):
        mine[part], mine.choices[part] = labels[part], labels.choices[part]
    return mine


def check_student_init(setup: Setup) -> None:
    """Refuse what the student cannot begin as.

    Raises:
        ConfigError: ``init`` is not the folder of a finished distillation, or of another network.
    """
    init = setup.config.student_init
    if init in (None, "alone"):
        return
    if init == "teacher":
        assert setup.teacher is not None, "it is asked for"
        theirs = setup.teacher.student.state_dict()
    else:
        theirs = submodule_tensors(finished(Path(init).expanduser().absolute()), "student")
    mine, theirs = ({key: value.shape for key, value in one.items()} for one in (setup.learner.student.state_dict(), theirs))
    require(mine == theirs, "student_init", "must be of a network of the student's very form", init)


def finished(folder: Path) -> Tensors:
    """What was trained in ``folder``.

    Raises:
        ConfigError: it is not the folder of a finished distillation.
    """
    header = read_header(folder)
    done = header is not None and bool(header["finished"]) and "learner" in read_checkpoint(folder).state
    require(done, "student_init", "must be null, teacher, alone, or the folder of a finished distillation", str(folder))
    return read_trained_tensors(folder)


def placed(tensors: Tensors, setup: Setup) -> Tensors:
    """A teacher's tensors where and as the training computes."""
    if setup.teacher is None:
        return {}
    like = setup.teacher.state_dict()
    return {key: tensors[key].to(value) for key, value in like.items()}
