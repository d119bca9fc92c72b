"""The objects of a distillation configuration: images, networks, method and teacher."""

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from fedkd.config.build import DISTILLATION_KEYS_WITHOUT_EFFECT, build, call_part, with_class_names, without_paths
from fedkd.config.validation import check_distillation
from fedkd.distillation.image_sources import ImageSource
from fedkd.distillation.methods.base import Distiller, StudentModule, TeacherStudent
from fedkd.distillation.student_training import Training
from fedkd.errors import ConfigError, require
from fedkd.models.base import Classifier
from fedkd.models.construction import make_classifier
from fedkd.seed import Seed
from fedkd.training.functional_model import snapshot
from fedkd.training.loop import Execution
from fedkd.types import Examples, Task, Tensors
from simulations.distillation.data_subset import select_images
from simulations.distillation.folder import read_trained_tensors
from simulations.distillation.prior_training import teacher_training_config
from simulations.distillation.teachers import (
    Teacher,
    TeacherRun,
    apply_paths,
    check_same_data,
    federated_teacher,
    is_federated,
    pooled_data,
    read_finished_config,
    tensors_digest,
)
from simulations.setup.clients import read_data
from simulations.setup.compatibility import check_generator
from simulations.setup.simulation import build_simulation, dtype_of

Data = tuple[Task, Examples, Examples]
"""A task, its training images and its test images."""


@dataclass
class Setup:
    """A distillation before its first epoch.

    Args:
        config: the resolved configuration.
        task: the classification task.
        train: the training images. Sources of other images do not use them.
        test: the images that accuracies are measured on: the test set, or the validation split.
        distiller: the method.
        image_source: the source of the images that the student sees.
        fixed_images: the images of this source. None if they change between epochs.
        learner: the student with the method's modules. Its own parameters are overwritten before use.
        initial_tensors: random initial values of all parameters and buffers of ``learner``, before ``student_init`` is applied.
        teacher: the teacher's network, likewise without meaningful parameters. None if the method needs no teacher.
        teacher_training: configuration of the training of the teacher. None if a run provides the teacher, or there is none.
        teacher_setup: this training before its first epoch. None likewise.
        teacher_tensors: the teacher's tensors if a run provides them, else None.
    """

    config: DictConfig
    task: Task
    train: Examples
    test: Examples
    distiller: Distiller
    image_source: ImageSource
    fixed_images: Examples | None
    learner: StudentModule
    initial_tensors: Tensors
    teacher: StudentModule | None
    teacher_training: DictConfig | None
    teacher_setup: "Setup | None"
    teacher_tensors: Tensors | None

    def training(self, teacher_tensors: Tensors) -> Training:
        """The training loop with a trained teacher. ``teacher_tensors`` is empty if there is no teacher."""
        config = self.config
        return Training(
            task=self.task, distiller=self.distiller, learner=self.learner, teacher=self.teacher, teacher_tensors=teacher_tensors,
            source=self.image_source, fixed_images=self.fixed_images, scaling=self.train.without_images(),
            augmentation=build(config, "augmentation"), optimizer=build(config, "optimizer"), batch_size=config.batch_size,
            steps=config.steps_per_epoch, epochs=config.epochs, schedule=lr_factors(config), seed=Seed(config.seed),
            dtype=dtype_of(config), execution=Execution(config.compile, autocast=config.precision == "bfloat16"),
        )  # fmt: skip

    def hash(self, teacher_tensors: Tensors, initial_tensors: Tensors) -> str:
        """Twelve hexadecimal digits that identify the training: keys with an effect on the result, data, teacher and initial student."""
        keys = {str(key): value for key, value in plain(self.config).items()}
        kept = with_class_names({key: without_paths(value) for key, value in keys.items() if key not in DISTILLATION_KEYS_WITHOUT_EFFECT})
        digests: dict[str, str | bool] = {**self.digests, "teacher": tensors_digest(teacher_tensors)}
        digests |= {
            "run": self.config.teacher_run is not None,
            "start": tensors_digest(initial_tensors) if self.config.student_init else "",
        }
        return hashlib.sha256(json.dumps([kept, digests], sort_keys=True).encode()).hexdigest()[:12]

    @property
    def digests(self) -> dict[str, str]:
        """Hashes of the content of the data, and of the names of the classes."""
        return {"train": self.train.digest, "test": self.test.digest, **self.task.names_digest}

    def on_device(self, teacher_tensors: Tensors) -> Tensors:
        """The teacher's tensors with the device and the type of this training. Empty if there is no teacher."""
        if self.teacher is None:
            return {}
        return {key: teacher_tensors[key].to(value) for key, value in self.teacher.state_dict().items()}


def make_setup(config: DictConfig, teacher_run: TeacherRun | None = None, data: Data | None = None) -> Setup:
    """Build all parts of a distillation and check that they fit. Nothing is trained.

    Args:
        config: a composed configuration. Keys about the teacher that have no effect are reset in place.
        teacher_run: the run that provides the teacher, if it has not finished yet. None: the run is read from ``config.teacher_run``,
            if that is set.
        data: the task, training images and test images of ``config.data``. None: they are read.

    Raises:
        ConfigError: a value is wrong, or two parts do not fit.
    """
    visible = config.device == "cpu" or torch.cuda.is_available()
    require(visible, "device", "must be one that this machine has (no GPU is visible here)", config.device)
    distiller, image_source = build(config, "distiller"), build(config, "image_source")
    require(isinstance(distiller, Distiller), "distiller._target_", "must be a distiller", config.distiller["_target_"])
    rule = f"must have labels for distiller {config.choices.get('distiller')}, which learns from them"
    require(image_source.labeled or not distiller.needs_labels, "image_source", rule, config.choices.get("image_source"))
    if teacher_run is None and config.teacher_run is not None:
        teacher_run = read_teacher_run(Path(config.teacher_run).expanduser().absolute(), config)
    rule = "must not be alone where the images have no labels: it trains the student on the run's images with labels (student_init=null)"
    allowed = image_source.labeled or teacher_run is None or config.student_init != "alone"
    require(allowed, "student_init", rule, f"alone with image_source {config.choices.get('image_source')}")
    if teacher_run is not None:
        data = teacher_run.data
    data = read_data(config) if data is None else data
    check_task(config, distiller, image_source, data[0])
    task, train, test = select_images(config, *data)
    task = task.with_absent_classes(train.y)
    teacher, teacher_training, teacher_setup, teacher_tensors = prepare_teacher(config, distiller, image_source, teacher_run, data)
    make_student = network_factory(config, "student", task)
    seed = Seed(config.seed)
    with (seed / "student").globally():
        networks = (None, None) if teacher is None else (teacher.student, teacher.method)
        pair = TeacherStudent(task, make_student(), make_student, *networks)
    check_generator("image_source.generator", getattr(image_source, "generator", None), task, pair.student.embedding_size)
    fixed_images = call_part("image_source", image_source.fixed_images, task, train, seed / "source")
    try:
        distiller.check(pair, min(config.batch_size, image_source.min_images(fixed_images)))
    except ValueError as error:
        raise (error if str(error).split()[0] in config else ConfigError(f"distiller.{error}")) from error
    if teacher is not None:
        check_teacher_output(teacher, task)
        teacher = teacher.to(config.device, dtype_of(config))
    with (seed / "method").globally():
        learner = distiller.learner(pair).to(config.device, dtype_of(config))
    fixed_images = None if fixed_images is None else fixed_images.to(config.device)
    return Setup(
        config, task, train.to(config.device), test.to(config.device), distiller, image_source, fixed_images, learner, snapshot(learner),
        teacher, teacher_training, teacher_setup, teacher_tensors,
    )  # fmt: skip


def check_task(config: DictConfig, distiller: Distiller, image_source: ImageSource, task: Task) -> None:
    """Reject a task that a part of the distillation cannot take.

    Raises:
        ConfigError: naming the part.
    """
    rule = "must have one class for each example, as students learn from the classes of teachers"
    require(task.has_labels, "data", rule, f"{task.name} with the target {task.target}")
    if task.input == "image":
        return
    choices, why = config.choices, f"for {task.input}"
    require(
        task.input in distiller.inputs, "distiller", f"must be another method {why}, as this one rotates images", choices.get("distiller")
    )
    augments = any(config.augmentation.get(name) for name in ("crop", "flip"))
    require(not augments, "augmentation", f"must be none {why}, as it shifts and mirrors images", choices.get("augmentation"))
    makes = getattr(image_source, "generator", None) is not None
    require(not makes, "image_source", f"must be real or public {why}, as its generator makes images", choices.get("image_source"))


def prepare_teacher(
    config: DictConfig, distiller: Distiller, image_source: ImageSource, run: TeacherRun | None, data: Data
) -> tuple[StudentModule | None, DictConfig | None, Setup | None, Tensors | None]:
    """Decide whether a teacher is needed and whether it must be trained.

    Args:
        config: keys about the teacher that have no effect are reset in place, so that they do not change the hash.
        distiller: the method.
        image_source: the source of images.
        run: the run that provides the teacher, if any.
        data: the task, training images and test images of ``config.data``.

    Returns:
        The teacher's network, or None if no teacher is needed; the configuration of its training and all parts of it, or None if it needs
        no training; its tensors, or None if it is trained.

    Raises:
        ConfigError: the teacher cannot be trained as the method requires.
    """
    needed = distiller.needs_teacher or not image_source.labeled or image_source.needs_teachers or config.student_init == "teacher"
    trained = needed and (run is None or len(distiller.teacher_training()) > 0)
    network = None if run is None else (run.network, run.network_name)
    training = teacher_training_config(config, distiller, network) if trained else None
    if run is not None or not needed:
        config.teacher, config.teacher_seed = None, 0
        config.choices.pop("teacher", None)
    if not trained:
        config.teacher_epochs = None
    if not needed:
        config.teacher_kind = "global_model"
        return None, None, None, None
    if run is not None:
        config.choices.teacher = run.network_name
    if training is None:
        assert run is not None, "a teacher without training comes from a run"
        return run.teacher.module, None, None, run.teacher.tensors
    setup = teacher_training_setup(training, run, data if plain(training.data) == plain(config.data) else None)
    rule = "must be a method that learns from the run's model (this one trains another teacher)"
    require(run is None or setup.teacher is not None, "distiller", rule, config.choices.get("distiller"))
    return setup.learner, training, setup, None


def teacher_training_setup(config: DictConfig, run: TeacherRun | None, data: Data | None) -> Setup:
    """The training of the teacher, which precedes that of the student.

    Raises:
        ConfigError: the training cannot be set up. The message names ``distiller.teaching`` if this key asks for the training.
    """
    try:
        return make_setup(deepcopy(config), run, data)
    except ValueError as error:
        if config.choices.get("distiller") == "none":
            raise
        raise ConfigError(
            f"distiller.teaching trains {config.choices.get('student')} by {config.choices.get('distiller')} first: {error}"
        ) from error


def read_teacher_run(folder: Path, config: DictConfig) -> TeacherRun:
    """A finished federated run or distillation that provides the teacher. Its data replace those of ``config`` in place.

    Raises:
        ConfigError: the run cannot be used, or ``config`` chooses other data than the run's.
        RunFolderError: the data are not those of the run.
    """
    run_config = read_finished_config(folder, config.round, config)
    apply_paths(run_config, plain(config.paths), folder)
    data_name, own_data = config.choices.pop("data", None), plain(config.data)
    config.data = run_config.data
    config.choices.data = run_config.choices.get("data", "data")
    same = without_paths(own_data) == without_paths(plain(run_config.data)) or data_name in (None, "digits")
    rule = f"must not be chosen: the model of a run is distilled on the data of the run ({config.choices.data})"
    require(same, "data", rule, data_name)
    if is_federated(run_config):
        name = f"{run_config.choices.get('strategy', 'run')}'s {run_config.choices.get('model', 'model')}"
        simulation = build_simulation(OmegaConf.to_yaml(run_config, resolve=True))
        check_same_data(folder, simulation.digests)
        return TeacherRun(pooled_data(simulation), federated_teacher(folder, run_config, config.teacher_kind), run_config.model, name)
    check_distillation(run_config)
    setup = make_setup(run_config)
    check_same_data(folder, setup.digests)
    teacher = Teacher(setup.learner, read_trained_tensors(folder))
    return TeacherRun((setup.task, setup.train, setup.test), teacher, run_config.student, run_config.choices.get("student", "student"))


def network_factory(config: DictConfig, part: str, task: Task) -> Callable[..., Classifier]:
    """A function ``(**changes) -> network`` that builds the network of a part, with other arguments if given."""
    network = build(config, part)
    return lambda **changes: call_part(part, make_classifier, partial(network, **changes), task)


def check_teacher_output(teacher: StudentModule, task: Task) -> None:
    """Reject a teacher that predicts another number of classes, or cannot read images of the task's shape."""
    parameter = next(teacher.parameters())
    with torch.no_grad():
        num_classes = teacher.student.eval()(task.inputs(2, parameter.dtype, parameter.device)).logits.shape[-1]
    require(num_classes == task.num_classes, "teacher", f"must have the task's number of classes, {task.num_classes}", num_classes)


def lr_factors(config: DictConfig) -> list[float]:
    """The factor of the learning rate in each epoch: ``lr_decay`` to the power of the number of milestones passed."""
    passed = [sum(epoch >= round(milestone * config.epochs) for milestone in config.milestones) for epoch in range(config.epochs)]
    return [config.lr_decay**number for number in passed]


def plain(node: DictConfig) -> dict:
    """A part of a configuration as plain dictionaries, lists and values."""
    container = OmegaConf.to_container(node, resolve=True)
    assert isinstance(container, dict), "a part of a configuration holds keys"
    return container
