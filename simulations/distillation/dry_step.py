"""One step of every training of a distillation, before the first one. What cannot train or be exported is refused in one line."""

from dataclasses import replace

import torch

from fedkd.distillation.image_sources import Synthetic
from fedkd.distillation.student_training import Progress
from fedkd.errors import require
from fedkd.models.construction import in_one_line
from fedkd.seed import Seed
from fedkd.training.functional_model import snapshot, submodule_tensors
from fedkd.types import Examples
from simulations.distillation.export import export_obstacle, network_row
from simulations.distillation.layer_information import layer_information
from simulations.distillation.setup import Setup
from simulations.distillation.synthetic_images import synthetic_images

NUM_TRAIN, NUM_TEST = 32, 2
"""Images on which layers, retrieval and accuracies are tried."""


def check_distillation_step(setup: Setup, part: str = "student", prefix: str = "") -> None:
    """Train for one step on one batch, evaluate and export, as the distillation will. The teacher's training is tried first.

    A teacher that is not trained yet has random parameters. No random stream is changed, and nothing is written.

    Args:
        setup: the distillation.
        part: the part of the configuration that is trained, for messages.
        prefix: stands before the keys of messages.

    Raises:
        ConfigError: a step fails.
    """
    if setup.teacher_setup is not None:
        check_distillation_step(setup.teacher_setup, "teacher", prefix)
    config, choices = setup.config, setup.config.choices
    name, method = choices.get("student", "student"), choices.get("distiller", "distiller")
    teacher_tensors = {} if setup.teacher is None else setup.on_device(setup.teacher_tensors or snapshot(setup.teacher))
    source = replace(setup.image_source, steps=1) if isinstance(setup.image_source, Synthetic) else setup.image_source
    tiny = replace(setup, train=first(setup.train, NUM_TRAIN), test=first(setup.test, NUM_TEST), image_source=source)
    training = tiny.training(teacher_tensors)
    training = replace(training, steps=1, execution=replace(training.execution, compile=False))
    progress = Progress(0, setup.initial_tensors)
    with (Seed(config.seed) / "dry").globally():
        with in_one_line(f"{prefix}{part} must be a network that distiller {method} can train, got {name}"):
            progress = training.epoch(progress)[0]
        with in_one_line(f"{prefix}{part} must be a network that can be evaluated after a step of distiller {method}, got {name}"):
            if config.layer_information_images:
                layer_information(tiny, progress, teacher_tensors)
            synthetic_images(tiny, training, progress)
            networks = setup.distiller.networks(setup.learner, progress.tensors)
            if setup.teacher is not None:
                networks["teacher"] = setup.teacher.student, submodule_tensors(teacher_tensors, "student")
            for key, (network, tensors) in networks.items():
                network_row(tiny, key, network, tensors, repeats=1)
    for key, (network, _) in setup.distiller.networks(setup.learner, progress.tensors).items():
        obstacle = export_obstacle(network, setup.task) if config.export else None
        rule = f"must be false for a network that torch.export cannot read ({name if key == 'student' else key}: {obstacle})"
        require(obstacle is None, f"{prefix}export", rule, config.export)


def first(examples: Examples, number: int) -> Examples:
    """The first ``number`` examples, or all if there are fewer."""
    return examples.subset(torch.arange(min(number, len(examples))))
