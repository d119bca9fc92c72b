"""The student's initial parameters: random ones, those of the teacher, or those of another training (``student_init``)."""

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from fedkd.checkpoint import read_checkpoint, read_header
from fedkd.errors import require
from fedkd.training.functional_model import load, submodule_tensors
from fedkd.types import Tensors
from simulations.distillation.folder import read_trained_tensors
from simulations.distillation.prior_training import labels_only_config
from simulations.distillation.setup import Setup


def check_student_init(setup: Setup) -> None:
    """Reject an initialization that does not fit the student.

    Raises:
        ConfigError: ``student_init`` is not the folder of a finished distillation, or its network has other parameters than the student.
    """
    init = setup.config.student_init
    if init in (None, "alone"):
        return
    if init == "teacher":
        assert setup.teacher is not None, "student_init=teacher needs a teacher"
        source = setup.teacher.student.state_dict()
    else:
        source = _finished_student(init)
    student = setup.learner.student.state_dict()
    fits = {key: value.shape for key, value in student.items()} == {key: value.shape for key, value in source.items()}
    require(fits, "student_init", "must be a network with the same parameters as the student", init)


def initial_tensors(setup: Setup, teacher_tensors: Tensors, train: Callable[[DictConfig], Path]) -> Tensors:
    """All parameters and buffers, those of the method's modules included, before the first epoch.

    Args:
        setup: the distillation.
        teacher_tensors: the tensors of the trained teacher, empty if there is no teacher.
        train: trains the student of a configuration, if no finished training is found, and returns its folder.
    """
    init = setup.config.student_init
    if init is None:
        return setup.initial_tensors
    if init == "teacher":
        student = submodule_tensors(teacher_tensors, "student")
    elif init == "alone":
        student = submodule_tensors(read_trained_tensors(train(labels_only_config(setup.config))), "student")
    else:
        student = _finished_student(init)
    fresh = setup.initial_tensors
    student = {key: value.to(fresh[f"student.{key}"]) for key, value in student.items()}
    load(setup.learner.student, student)
    return {**fresh, **{f"student.{key}": value for key, value in student.items()}}


def _finished_student(init: str) -> Tensors:
    """The tensors of the student of a finished distillation in the folder ``init``."""
    folder = Path(init).expanduser().absolute()
    header = read_header(folder)
    finished = header is not None and bool(header["finished"]) and "learner" in read_checkpoint(folder).state
    require(finished, "student_init", "must be null, teacher, alone, or the folder of a finished distillation", str(folder))
    return submodule_tensors(read_trained_tensors(folder), "student")
