"""The keys of a federated run and of a distillation, with their types and meanings."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Evaluation:
    """When and on which examples models are evaluated.

    Args:
        every: rounds between two evaluations, >= 1; the last round is always evaluated.
        batch_size: examples per batch of an evaluation, >= 1.
        split: ``test``: the test set; ``validation``: the training examples that clients hold out (``validation_fraction``).
        local_test: ``own_classes``: every client's model is tested on its local test set, which has the classes of its training
            examples; ``all_examples``: on all test examples.
        clients: number of clients whose models are tested, drawn anew for each evaluation among those with local test examples, >= 1; null:
            all clients.
    """

    every: int
    batch_size: int
    split: str
    local_test: str
    clients: int | None


@dataclass
class Run:
    """One federated run. Keys that cannot change a result are not part of its hash (see :func:`fedkd.config.build.config_hash`).

    Args:
        name: folder under ``output`` that groups runs.
        seed: root of all randomness, any integer.
        rounds: number of server rounds, >= 1.
        num_clients: number of clients of the federation, >= 1.
        clients_per_round: number of clients that are sampled in a round, 1..``num_clients``.
        local_steps: optimizer steps of a client in a round, >= 1; null where ``local_epochs`` is set.
        local_epochs: passes over a client's data in a round, >= 1; null where ``local_steps`` is set.
        drop_last: leave out the last batch of each pass of ``local_epochs`` where it is smaller than ``batch_size``. Where ``local_steps``
            is set, all batches are full.
        batch_size: examples per batch of local training, >= 1.
        validation_fraction: fraction of each client's training examples that is held out, in [0, 1). They are used for early stopping, and
            for selecting parameters (``evaluation.split=validation``).
        clients_per_vmap: number of clients that a worker trains as one tensor program, >= 1; 1: one client after the other. The number
            changes rounding. ``auto`` times several numbers, keeps the fastest one, and stores it in the run folder.
        compile: compile a local step with ``torch.compile``. It takes tens of seconds at the start and changes rounding.
        precision: type of weights and images, ``float32`` or ``float64``; ``bfloat16``: float32 weights, and convolutions and matrix
            products of local training in bfloat16.
        device: ``cpu``, ``cuda``, or ``cuda:<number>``.
        on_client_failure: what follows a failure of a client: ``raise`` ends the run, ``retry`` trains the client again, ``drop``
            continues without its update.
        retries: attempts after the first one where ``on_client_failure`` is ``retry``, >= 0.
        max_update_norm: largest L2 norm of a client's update, > 0. Of tensors that the server has sent, the change counts. An update with
            a larger norm is a failure of its client. null: no bound.
        timeout: seconds that one phase of a round may take, > 0.
        checkpoint_every: rounds between two checkpoints, >= 1; the last round always writes one.
        output: folder of the run folders.
        progress: show a progress bar.
        objective: number that the run returns to a sweeper, such as Optuna's: a column of ``metrics.csv`` with ``_final`` (last value) or
            ``_last10`` (mean of the last ten values) behind it; null: none. A run that diverges returns 0 for an accuracy, infinity for
            another column.
        force: run again from the beginning. The files of an earlier run of the same configuration move to
            ``<output>/<name>/.replaced``.
        accept_code: keep a run that other code has made, and go on from its checkpoint; false: changed code is an error.
        distill: option of conf/distiller with which the global model is distilled after the last round; null: no distillation.
        distill_every: rounds between two further distillations, a multiple of ``checkpoint_every``; null: after the last round only.
        distill_overrides: overrides of the distillation's configuration: student, image_source, epochs, ...
        generator_diagnostics_every: rounds between two diagnostics of the server's generator (``generator.csv``, ``latents.csv``), >= 1;
            null: no diagnostics.
        tracker: trackers of experiments that follow the run, by name, each with a ``_target_``.
        tuned_params: CSV file written by ``fedkd tune``, from which the value selected for the strategy is taken; null: no file.
        searchpath: absolute paths of the user's folders. Each contains ``conf/<group>/<option>.yaml`` and modules. They are appended to
            ``sys.path``.
        allow_targets: modules outside fedkd that ``_target_`` may name, with all that they hold. The command adds those of ``searchpath``
            and of the working directory.
        evaluation: when and on which examples models are evaluated, see :class:`Evaluation`.
        data: the data set.
        partition: the assignment of examples to clients.
        shift: feature shift and label noise of clients.
        drift: changes of the clients' data during the run.
        systems: client sampling and system heterogeneity.
        public_data: the server's public data.
        model: the network, or one network per client.
        optimizer: the clients' optimizer.
        strategy: the federated algorithm.
        aggregator: how the clients' models become one.
        server_optimizer: the server's step along the change of the model in a round.
        engine: how clients are run.
        choices: name of the chosen option of each group. The command sets it.
    """

    name: str
    seed: int
    rounds: int
    num_clients: int
    clients_per_round: int
    local_steps: int | None
    local_epochs: int | None
    drop_last: bool
    batch_size: int
    validation_fraction: float
    clients_per_vmap: int | str
    compile: bool
    precision: str
    device: str
    on_client_failure: str
    retries: int
    max_update_norm: float | None
    timeout: float
    checkpoint_every: int
    output: str
    progress: bool
    force: bool
    accept_code: bool
    distill: str | None
    distill_every: int | None
    distill_overrides: dict[str, Any]
    generator_diagnostics_every: int | None
    tuned_params: str | None
    searchpath: list[str]
    allow_targets: list[str]
    evaluation: Evaluation
    objective: str | None = "local_test_accuracy_last10"
    tracker: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    partition: dict[str, Any] = field(default_factory=dict)
    shift: dict[str, Any] = field(default_factory=dict)
    drift: dict[str, Any] = field(default_factory=dict)
    systems: dict[str, Any] = field(default_factory=dict)
    public_data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    aggregator: dict[str, Any] = field(default_factory=dict)
    server_optimizer: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)


@dataclass
class Composed(Run):
    """A run's configuration as Hydra composes it. An experiment's file also describes a sweep, which is not part of a run.

    Args:
        reproduce: description of the sweep, see ``simulations.experiments.plan``. It is removed after composing.
    """

    reproduce: dict[str, Any] = field(default_factory=dict)


@dataclass
class Distillation:
    """One distillation: the training of a student. Keys that cannot change a result are not part of its hash.

    Args:
        name: folder under ``output`` that groups runs.
        seed: root of all randomness of the student's training, any integer.
        teacher_run: folder of a finished run that provides the teacher and the data: the global model of a federated run, or the student
            of a distillation; null: train a teacher first.
        paths: where files of ``teacher_run`` are now, by key. Words such as ``data.root=FOLDER`` or ``partition.path=FILE`` set it.
        round: round of the checkpoint of ``teacher_run``; null: the run must be finished.
        teacher_kind: ``global_model``; or ``client_ensemble``: the mean logits of the clients' models.
        num_classes: use only the first this many classes, >= 2; null: all.
        num_train_images: number of training images, equally many per class, the same for all seeds, >= 1; null: all.
        validation_fraction: fraction of the training images that is held out and replaces the test set, in [0, 1).
        epochs: epochs of the student's training, >= 1.
        steps_per_epoch: optimizer steps per epoch, >= 1; null: one pass over the images.
        batch_size: images per step, >= 1.
        milestones: fractions of the training after which the learning rate is multiplied by ``lr_decay``, ascending, in (0, 1).
        lr_decay: factor of the learning rate, in [0, 1].
        student_init: initial weights of the student. A folder of a distillation: those of its student; ``teacher``: the teacher's;
            ``alone``: those of the same network trained with labels only; null: random.
        teacher_seed: root of all randomness of the teacher's training, any integer.
        teacher_epochs: epochs of the teacher's training, >= 1; null: the same as ``epochs``.
        evaluate_every: epochs between two evaluations, >= 1; the last epoch is always evaluated.
        evaluation_batch_size: images per batch of an evaluation, >= 1.
        checkpoint_every: epochs between two checkpoints, >= 1.
        export: export the student with ``torch.export`` and measure its latency.
        retrieval: measure image retrieval by embeddings, with the test images as queries and the training images as database.
        layer_information_images: number of training images with which the information of each layer about the label is measured after
            each evaluation, >= 0; 0: no measurement.
        compile: compile a training step with ``torch.compile``. It takes tens of seconds at the start and changes rounding.
        precision: ``float32``, ``float64``, or ``bfloat16``, see :class:`Run`.
        device: ``cpu``, ``cuda``, or ``cuda:<number>``.
        output: folder of the run folders.
        progress: show a progress bar.
        objective: number that the run returns to a sweeper, such as Optuna's: a column of ``metrics.csv`` with ``_final`` (last value) or
            ``_last10`` (mean of the last ten values) behind it; null: none. A run that diverges returns 0 for an accuracy, infinity for
            another column.
        force: run again from the beginning. The files of an earlier run of the same configuration move to
            ``<output>/<name>/.replaced``.
        accept_code: keep a run that other code has made, and go on from its checkpoint; false: changed code is an error.
        tuned_params: CSV file written by ``fedkd tune``, from which the value selected for the distiller is taken; null: no file.
        searchpath: absolute paths of the user's folders, see :class:`Run`.
        tracker: trackers of experiments that follow the training, see :class:`Run`.
        allow_targets: modules outside fedkd that ``_target_`` may name, see :class:`Run`.
        data: the data set.
        augmentation: random crops and flips of training images.
        teacher: the teacher's network; null where ``teacher_run`` is set.
        student: the student's network.
        distiller: the distillation method.
        image_source: the images that the student is trained on.
        optimizer: the optimizer of student and teacher.
        choices: name of the chosen option of each group. The command sets it.
    """

    name: str
    seed: int
    teacher_run: str | None
    paths: dict[str, Any]
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
    force: bool
    accept_code: bool
    tuned_params: str | None
    searchpath: list[str]
    allow_targets: list[str]
    objective: str | None = "test_accuracy_final"
    tracker: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] | None = None
    student: dict[str, Any] = field(default_factory=dict)
    distiller: dict[str, Any] = field(default_factory=dict)
    image_source: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
