"""What a distillation's own keys are, and what they must obey."""

from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from fedkd.check import require
from fedkd.config import check_common, check_types


@dataclass
class Distillation:
    """One student's training. Keys that cannot change a result are left out of its hash.

    Args:
        name: folder under ``output`` that groups runs.
        seed: root of all randomness of the student's training.
        run: folder of a finished federated run, whose aggregated model is the teacher and whose data are distilled on; or of a finished
            distillation, whose student is. Null: the teacher is trained here.
        round: of the run; null: it must be finished. Else its checkpoint must be of this round.
        of: the run's aggregated ``model``, or the ``ensemble`` of its clients.
        classes: the first so many classes alone; null is all.
        examples: so many training images, equally many of each class, drawn once for all seeds; null is all.
        validation: 0..1 (1 excluded), share of the training images that is held out, and scored in place of the test set.
        epochs: of the student's training.
        steps: of an epoch; null is a pass over the images.
        batch_size: of every step.
        milestones: 0..1, ascending: after these shares of the epochs the learning rate is multiplied by ``lr_decay``.
        lr_decay: 0..1.
        init: folder of a distillation whose student this one begins as; ``teacher``: it begins as its teacher; ``alone``: as
            the same network trained with labels alone; null: anew.
        teacher_seed: root of the randomness of the teacher's training.
        teacher_epochs: of the teacher's training; null is ``epochs``.
        evaluate_every: so many epochs, and the last.
        evaluation_batch_size: of evaluations.
        checkpoint_every: epochs between checkpoints.
        export: write the student as a program of its own too (``torch.export``), and time it.
        retrieval: and what its embedding finds again among the training images.
        flow: so many training images on which every layer's information is measured after each evaluation; 0: none.
        compile, precision, device, output, progress: as of a federated run.
        tuned: the file in which ``simulations.tune_distill`` has noted its choices: the distiller's own is taken from there; null: none is.
        choices: names of the yaml files that were chosen, filled in by the command.
    """

    name: str
    seed: int
    run: str | None
    round: int | None
    of: str
    classes: int | None
    examples: int | None
    validation: float
    epochs: int
    steps: int | None
    batch_size: int
    milestones: list[float]
    lr_decay: float
    init: str | None
    teacher_seed: int
    teacher_epochs: int | None
    evaluate_every: int
    evaluation_batch_size: int
    checkpoint_every: int
    export: bool
    retrieval: bool
    flow: int
    compile: bool
    precision: str
    device: str
    output: str
    progress: bool
    tuned: str | None
    data: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] | None = None
    student: dict[str, Any] = field(default_factory=dict)
    distiller: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)


ConfigStore.instance().store(name="distillation", node=Distillation)

PARTS = ("data", "augmentation", "teacher", "student", "distiller", "source", "optimizer")
WITHOUT_EFFECT = ("name", "checkpoint_every", "run", "round", "init", "output", "progress", "export", "retrieval", "tuned", "choices")


def check(config: DictConfig) -> None:
    """Everything that a distillation's own keys must obey, before any work.

    Raises:
        ValueError: naming the key, the rule and the value.
    """
    known = [one.name for one in fields(Distillation)]
    for key in config:
        require(key in known, str(key), f"must be a key of a distillation ({', '.join(known)})", config[key])
    for key in ("epochs", "batch_size", "evaluate_every", "evaluation_batch_size", "checkpoint_every"):
        require(config[key] >= 1, key, "must be >= 1", config[key])
    for key in ("classes", "examples", "steps", "teacher_epochs"):
        require(
            config[key] is None or config[key] >= (2 if key == "classes" else 1),
            key,
            "must be null, or positive (classes: > 1)",
            config[key],
        )
    require(config.of in ("model", "ensemble"), "of", "must be model or ensemble", config.of)
    require(0 <= config.validation < 1, "validation", "must be a share in 0..1, 1 excluded (0 holds nothing out)", config.validation)
    stones = list(config.milestones)
    ascending = stones == sorted(stones) and all(0 < one < 1 for one in stones)
    require(ascending, "milestones", "must be ascending shares of the training, between 0 and 1", stones)
    require(0 <= config.lr_decay <= 1, "lr_decay", "must be in 0..1", config.lr_decay)
    require(config.flow >= 0, "flow", "must be >= 0 images", config.flow)
    check_common(config)
    for part in PARTS:
        if config[part] is not None:
            check_types(OmegaConf.to_container(config[part], resolve=True), part)


def schedule(config: DictConfig) -> list[float]:
    """What the learning rate is multiplied by in each epoch."""
    passed = [sum(epoch >= round(stone * config.epochs) for stone in config.milestones) for epoch in range(config.epochs)]
    return [config.lr_decay**number for number in passed]
