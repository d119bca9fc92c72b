"""What is trained before a student: its teacher, as the method wants it, and the same student alone."""

from copy import deepcopy

from omegaconf import DictConfig

from fedkd.distillers.distiller import Distiller
from simulations.command import compose


def teachers_config(config: DictConfig, distiller: Distiller, given: tuple[DictConfig, str] | None) -> DictConfig:
    """How the teacher is trained: as the student, with labels alone; then as the method prepares it.

    Args:
        config: the student's.
        distiller: its method.
        given: the network of a run's model and what it is called; None: a teacher is trained first.
    """
    labels = compose(["distiller=none", "source=real"], "distill")
    mine = deepcopy(config)
    network, name = given if given is not None else (config.teacher, config.choices.get("teacher", "teacher"))
    mine.student, mine.choices.student = deepcopy(network), name
    mine.seed, mine.epochs = config.teacher_seed, config.teacher_epochs or config.epochs
    mine.tuned = None
    other = given is None and config.source._target_ != labels.source._target_  # a run's model is prepared on what its student may see
    mine.init, mine.flow, mine.steps = None, 0, None if other else config.steps
    for part in ("distiller", "source") if given is None else ("distiller",):
        mine[part], mine.choices[part] = labels[part], labels.choices[part]
    if overrides := list(distiller.preparation()):
        composed = compose(overrides, "distill")
        for key in {one.partition("=")[0].partition(".")[0].rpartition("@")[2] for one in overrides}:
            mine[key] = composed[key]
            if key in composed.choices or f"model@{key}" in composed.choices:
                mine.choices[key] = composed.choices.get(key, composed.choices.get(f"model@{key}"))
    return mine


def alone(config: DictConfig) -> DictConfig:
    """The same student trained with labels alone."""
    labels, mine = compose(["distiller=none", "source=real"], "distill"), deepcopy(config)
    mine.init, mine.flow, mine.tuned = None, 0, None
    for part in ("distiller", "source"):
        mine[part], mine.choices[part] = labels[part], labels.choices[part]
    return mine
