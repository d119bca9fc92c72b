"""The keys of a federated run and of a distillation, and what they mean."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Evaluation:
    """When and how models are scored.

    Args:
        every: so many rounds.
        batch_size: of evaluations.
        examples: of the ``test`` set, or those that clients hold out for ``validation``.
        shards: every client's model is scored on its ``own`` test shard, of the labels that it holds, or on ``all`` examples.
    """

    every: int
    batch_size: int
    split: str
    local_test: str


@dataclass
class Run:
    """One experiment. Keys that cannot change a result are left out of its hash (see :func:`identity`).

    Args:
        name: folder under ``output`` that groups runs.
        seed: root of all randomness.
        rounds: federated rounds.
        num_clients: the population.
        clients_per_round: how many of it train in a round.
        local_steps: optimizer steps of a client in a round; null with ``local_epochs``.
        local_epochs: passes over a client's data in a round; null with ``local_steps``.
        batch_size: of local training.
        validation_fraction: 0..1 (1 excluded), share of each client's training examples that is held out: for early stopping, and for choosing
            parameters (``evaluation.split``).
        clients_per_vmap: how many clients a worker trains as one tensor program; 1 is one after the other. Another number changes rounding.
            ``auto`` times some, keeps the fastest, and notes it in the run folder.
        compile: fuse the operations of a local step with ``torch.compile``: tens of seconds at the start, and another rounding.
        precision: ``float32`` or ``float64``, of weights and images; ``bfloat16`` is float32 with local training's convolutions and
            products in bfloat16.
        device: ``cpu`` or ``cuda``.
        on_client_failure: ``raise``, ``retry`` or ``drop``.
        retries: attempts after the first, for ``retry``.
        timeout: seconds that a phase of a round may take.
        checkpoint_every: rounds between checkpoints; the last round always makes one.
        output: where run folders go.
        progress: show a progress bar.
        distill: the distiller (a name in conf/distiller) by which the aggregated model is distilled after the last round; null: none.
        distill_every: and after every so many rounds, a multiple of ``checkpoint_every``; null: after the last alone.
        distill_overrides: what is overridden in ``simulations.distill`` for it: student, source, epochs.
        generator_diagnostics_every: rounds between looks at the server's generator (``generator.csv``, ``latents.csv``), for strategies that have one;
            null: none.
        tensorboard: write every round's figures as TensorBoard events too, into the run folder's ``tensorboard``.
        tuned_params: the file in which ``simulations.experiments.tuning`` has noted its choices: the strategy's own is taken from there; null: none is.
        searchpath: the user's folders, absolute: each holds ``conf/<group>/<option>.yaml`` and modules. They are appended to ``sys.path``.
        choices: names of the yaml files that were chosen, filled in by the command.
    """

    name: str
    seed: int
    rounds: int
    num_clients: int
    clients_per_round: int
    local_steps: int | None
    local_epochs: int | None
    batch_size: int
    validation_fraction: float
    clients_per_vmap: int | str
    compile: bool
    precision: str
    device: str
    on_client_failure: str
    retries: int
    timeout: float
    checkpoint_every: int
    output: str
    progress: bool
    distill: str | None
    distill_every: int | None
    distill_overrides: dict[str, Any]
    generator_diagnostics_every: int | None
    tensorboard: bool
    tuned_params: str | None
    searchpath: list[str]
    evaluation: Evaluation
    data: dict[str, Any] = field(default_factory=dict)
    partition: dict[str, Any] = field(default_factory=dict)
    shift: dict[str, Any] = field(default_factory=dict)
    systems: dict[str, Any] = field(default_factory=dict)
    public_data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)


@dataclass
class Composed(Run):
    """A run as it is composed from conf/: an experiment describes the sweep that it belongs to beside it, which is no part of a run.

    Args:
        reproduce: as ``simulations.experiments.plan`` has it; taken out before anything else looks.
    """

    reproduce: dict[str, Any] = field(default_factory=dict)


@dataclass
class Distillation:
    """One student's training. Keys that cannot change a result are left out of its hash.

    Args:
        name: folder under ``output`` that groups runs.
        seed: root of all randomness of the student's training.
        teacher_run: folder of a finished federated run, whose aggregated model is the teacher and whose data are distilled on; or of a finished
            distillation, whose student is. Null: the teacher is trained here.
        round: of the run; null: it must be finished. Else its checkpoint must be of this round.
        teacher_kind: the run's aggregated ``model``, or the ``ensemble`` of its clients.
        num_classes: the first so many classes alone; null is all.
        num_train_images: so many training images, equally many of each class, drawn once for all seeds; null is all.
        validation_fraction: 0..1 (1 excluded), share of the training images that is held out, and scored in place of the test set.
        epochs: of the student's training.
        steps_per_epoch: of an epoch; null is a pass over the images.
        batch_size: of every step.
        milestones: 0..1, ascending: after these shares of the epochs the learning rate is multiplied by ``lr_decay``.
        lr_decay: 0..1.
        student_init: folder of a distillation whose student this one begins as; ``teacher``: it begins as its teacher; ``alone``: as
            the same network trained with labels alone; null: anew.
        teacher_seed: root of the randomness of the teacher's training.
        teacher_epochs: of the teacher's training; null is ``epochs``.
        evaluate_every: so many epochs, and the last.
        evaluation_batch_size: of evaluations.
        checkpoint_every: epochs between checkpoints.
        export: write the student as a program of its own too (``torch.export``), and time it.
        retrieval: and what its embedding finds again among the training images.
        layer_information_images: so many training images on which every layer's information is measured after each evaluation; 0: none.
        compile, precision, device, output, progress: as of a federated run.
        tuned_params: the file in which ``simulations.experiments.tuning`` has noted its choices: the distiller's own is taken from there; null: none is.
        searchpath: as of a federated run.
        choices: names of the yaml files that were chosen, filled in by the command.
    """

    name: str
    seed: int
    teacher_run: str | None
    round: int | None
    teacher_kind: str
    num_classes: int | None
    num_train_images: int | None
    validation_fraction: float
    epochs: int
    steps_per_epoch: int | None
    batch_size: int
    milestones: list[float]
    lr_decay: float
    student_init: str | None
    teacher_seed: int
    teacher_epochs: int | None
    evaluate_every: int
    evaluation_batch_size: int
    checkpoint_every: int
    export: bool
    retrieval: bool
    layer_information_images: int
    compile: bool
    precision: str
    device: str
    output: str
    progress: bool
    tuned_params: str | None
    searchpath: list[str]
    data: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] | None = None
    student: dict[str, Any] = field(default_factory=dict)
    distiller: dict[str, Any] = field(default_factory=dict)
    image_source: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
