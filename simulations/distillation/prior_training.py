"""Configurations of the trainings that precede a distillation: that of the teacher, and that of the student with labels alone."""

from copy import deepcopy

from omegaconf import DictConfig

from fedkd.distillation.methods.base import Distiller
from simulations.config import compose
from simulations.overrides import quoted_list


def teacher_training_config(config: DictConfig, distiller: Distiller, network: tuple[DictConfig, str] | None) -> DictConfig:
    """The training of the teacher: as the student is trained, but with labels alone, then changed as the method requires.

    Args:
        config: configuration of the student's training.
        distiller: the method. Its ``teacher_training`` gives the changes.
        network: the model of a run, its configuration and its name, if the method prepares this model further. None if the teacher is
            trained from random weights.
    """
    labels = _labels_only()
    own = deepcopy(config)
    architecture, name = network or (config.teacher, config.choices.get("teacher", "teacher"))
    own.student, own.choices.student = deepcopy(architecture), name
    own.seed, own.epochs = config.teacher_seed, config.teacher_epochs or config.epochs
    own.tuned_params = None
    # The model of a run is prepared on the images that its student sees. A new teacher is trained on real images.
    changes_images = network is None and config.image_source._target_ != labels.image_source._target_
    own.student_init, own.layer_information_images, own.steps_per_epoch = None, 0, None if changes_images else config.steps_per_epoch
    _copy_parts(labels, own, ("distiller", "image_source") if network is None else ("distiller",))
    if overrides := list(distiller.teacher_training()):
        changed = compose([*overrides, f"searchpath={quoted_list(config.searchpath)}"], "distill")
        own.allow_targets = sorted({*config.allow_targets, *changed.allow_targets})
        for key in {override.partition("=")[0].partition(".")[0].rpartition("@")[2] for override in overrides}:
            own[key] = changed[key]
            if key in changed.choices or f"model@{key}" in changed.choices:
                own.choices[key] = changed.choices.get(key, changed.choices.get(f"model@{key}"))
    return own


def labels_only_config(config: DictConfig) -> DictConfig:
    """The training of the same student with labels alone, without a teacher."""
    own = deepcopy(config)
    own.student_init, own.layer_information_images, own.tuned_params = None, 0, None
    _copy_parts(_labels_only(), own, ("distiller", "image_source"))
    return own


def _labels_only() -> DictConfig:
    """The default configuration of a training with labels alone."""
    return compose(["distiller=none", "image_source=real"], "distill")


def _copy_parts(origin: DictConfig, config: DictConfig, parts: tuple[str, ...]) -> None:
    """Replace ``parts`` of ``config``, and their names, by those of ``origin``."""
    for part in parts:
        config[part], config.choices[part] = origin[part], origin.choices[part]
