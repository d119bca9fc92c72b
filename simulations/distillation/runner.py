"""The training of one student: its teacher first if needed, then every epoch from the last checkpoint on.

A teacher is trained once: a second distillation with the same teacher finds it in the output folder.
"""

import math
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from fedkd.config.build import to_dict
from fedkd.config.validation import check_distillation
from fedkd.distillation.student_training import Progress, Training
from fedkd.errors import ConfigError, DivergedError, StopRun
from fedkd.metrics.parameter_path import parameter_path_length
from fedkd.tensor_ops import infinite_names
from fedkd.types import Tensors, flatten
from simulations.config import LOCATIONS, apply_tuned_params, compose, make_absolute, with_choices
from simulations.distillation.dry_step import check_distillation_step
from simulations.distillation.export import export_networks
from simulations.distillation.folder import DistillationFolder, read_progress, read_rows, read_trained_tensors
from simulations.distillation.layer_information import layer_information
from simulations.distillation.scores import evaluate_networks
from simulations.distillation.setup import Setup, lr_factors, make_setup
from simulations.distillation.student_init import check_student_init, initial_tensors
from simulations.distillation.synthetic_images import save_synthetic_images
from simulations.process import configure_process
from simulations.progress import ProgressBar, configure_logging
from simulations.run_folder.data_record import data_warnings, write_data_record
from simulations.run_folder.divergence import recorded_divergence, refuse_to_repeat
from simulations.run_folder.metric_names import DISTILLATION_COLUMNS
from simulations.run_folder.objective import check_objective
from simulations.run_folder.observers import Observers, RunObserver
from simulations.trackers.observer import make_trackers


def run_distillation(
    config: DictConfig,
    wait: bool = False,
    observers: Sequence[RunObserver] = (),
    prior: bool = False,
    check: Callable[[], None] | None = None,
) -> Path:
    """Train the student that ``config`` describes, after its teacher. A finished training is skipped, an interrupted one is resumed.

    The last line on standard output is ``run: <folder>``.

    Args:
        config: a composed configuration.
        wait: if another process is running the same training, wait for it instead of raising an error. Processes with the same teacher
            thus train it once.
        observers: called at the beginning, after each epoch, and at the end of the student's training. ``StopRun`` of an observer ends
            the training after a checkpoint.
        prior: the training is a part of another one. ``force`` then runs it again only where its code has changed.
        check: called before anything is trained. None: the dry step of this training and of those of its teachers.

    Returns:
        The run folder.

    Raises:
        ConfigError: the configuration is wrong. Nothing has been trained.
        DivergedError: the loss is no longer finite. The last checkpoint remains, and ``diverged.json`` records where. A training that has
            diverged before is not repeated.
    """
    configure_logging()
    configure_process()
    setup = prepare_distillation(config)
    check = check or cache(partial(check_distillation_step, setup))  # once, before the first training of all
    run_and_wait = partial(run_distillation, wait=True, prior=True, check=check)
    teacher_tensors = setup.teacher_tensors or {}
    if setup.teacher_training is not None:
        teacher_tensors = read_trained_tensors(run_and_wait(setup.teacher_training))
    tensors = initial_tensors(setup, teacher_tensors, run_and_wait)
    training = setup.training(setup.on_device(teacher_tensors))
    folder = DistillationFolder(config, setup.hash(teacher_tensors, tensors), wait, prior)
    try:
        if folder.finished:
            print(folder.skipped(), file=sys.stderr)
            add_missing_exports(setup, training, folder)
        else:
            refuse_to_repeat(folder.path)
            check()
            watched = [*observers, *([] if prior else make_trackers(config))]
            try:
                with recorded_divergence(folder.path), named_divergence(label(config)), Observers(watched) as watching:
                    train(setup, training, folder, tensors, watching)
            except StopRun as reason:
                print(f"stopped: {reason}", file=sys.stderr)
        print(f"{label(config)}: {summary(folder.path)}")
        print(f"run: {folder.path}", flush=True)
    finally:
        folder.release()
    return folder.path


def prepare_distillation(config: DictConfig) -> Setup:
    """Check a configuration and build all parts of its training. Nothing is trained or written.

    Args:
        config: a composed configuration. Tuned values are set, and paths become absolute.

    Raises:
        ConfigError: the configuration is wrong.
    """
    check_distillation(config)
    check_objective(config.objective, DISTILLATION_COLUMNS[1:])
    make_trackers(config)
    if getattr(get_object(config.distiller["_target_"]), "tuned_weight", None) is not None:  # the method has a weight that can be tuned
        apply_tuned_params(config, "distiller")
    make_absolute(config.data)
    make_absolute(config.image_source)
    setup = make_setup(config)
    check_student_init(setup)
    return setup


def write_results(setup: Setup, training: Training, progress: Progress, folder: DistillationFolder) -> None:
    """Write the synthetic images and the networks of a training whose last checkpoint is written, so that a failure here costs nothing."""
    save_synthetic_images(setup, training, progress, folder.path)
    folder.write_models(export_networks(setup, training, progress.tensors, folder.path))


def add_missing_exports(setup: Setup, training: Training, folder: DistillationFolder) -> None:
    """Write what is missing of a finished training: all results, or the program or the retrieval scores that ``config`` requests."""
    if not folder.model_columns():
        write_results(setup, training, to_device(read_progress(folder.path), setup.config.device), folder)
        return
    config, has_retrieval = setup.config, "precision_at_100" in folder.model_columns()
    has_program = (folder.path / "student.pt2").exists()
    if (config.export and not has_program) or (config.retrieval and not has_retrieval):
        config.retrieval = config.retrieval or has_retrieval
        folder.write_models(export_networks(setup, training, read_trained_tensors(folder.path), folder.path))


def train(setup: Setup, training: Training, folder: DistillationFolder, initial: Tensors, watching: Observers) -> None:
    """Train from the last checkpoint, or from the beginning, to the last epoch, then export the networks.

    Raises:
        FloatingPointError: the loss is no longer finite.
        StopRun: an observer ends the training, whose last epoch has a checkpoint.
    """
    config = setup.config
    saved = folder.begin(setup.digests)
    counts, test_counts = (np.bincount(part.y.cpu().numpy(), minlength=setup.task.num_classes) for part in (setup.train, setup.test))
    write_data_record(folder.path, setup.task, counts[None], test_counts, setup.train.left_out, setup.train.scale)
    for line in data_warnings(setup.task, counts[None], test_counts, setup.train.left_out):
        print(line, file=sys.stderr)
    if saved is None:
        progress = Progress(0, initial)
        folder.append_row({"epoch": 0, **evaluate_networks(setup, progress.tensors)})
    else:
        progress = to_device(saved, config.device)
    factors = lr_factors(config)
    infinite = infinite_in(progress)
    first, previous = student_parameters(setup, initial), student_parameters(setup, progress.tensors)
    # The length is read as it was written, so that a resumed training continues the same sum.
    path_length = float(read_rows(folder.path)[-1]["parameter_path_length"] or 0)
    watching.begin(folder.path, progress.epoch + 1)
    with ProgressBar(label(config), config.epochs, progress.epoch, config.progress, "epoch") as bar:
        while progress.epoch < config.epochs:
            started = time.perf_counter()
            try:
                trained, terms = training.epoch(progress)
                check_finite_state(trained, infinite)
            except FloatingPointError:
                if progress.epoch % config.checkpoint_every:  # the last sound state is not on disk
                    folder.write_checkpoint(progress)
                raise
            progress = trained
            values = {name: float(value) for name, value in terms.items()}
            lr = config.optimizer.lr * factors[progress.epoch - 1]
            row = {"epoch": progress.epoch, "train_loss": values.pop("loss"), "lr": lr, **values}
            current = student_parameters(setup, progress.tensors)
            row["parameter_path_length"] = path_length = parameter_path_length(path_length, previous, current, first)
            previous = current
            row["training_seconds"] = round(time.perf_counter() - started, 4)
            is_last = progress.epoch == config.epochs
            if progress.epoch % config.evaluate_every == 0 or is_last:
                with keep_epoch(folder, progress, row):
                    scores = evaluate_networks(setup, progress.tensors)
                    check_finite(scores, progress.epoch)
                    row |= scores
                    if config.layer_information_images:
                        folder.append_layer_information(layer_information(setup, progress, training.teacher_tensors))
            folder.append_row(row)
            is_due = progress.epoch % config.checkpoint_every == 0
            if is_due or is_last:
                folder.write_checkpoint(progress)
            if is_last:
                write_results(setup, training, progress, folder)
            bar.advance(row)
            try:
                watching.round(progress.epoch, row, [], partial(folder.write_checkpoint, progress))
            except StopRun:
                if not is_last:  # otherwise the training is finished
                    if not is_due:
                        folder.write_checkpoint(progress)
                    raise


@contextmanager
def keep_epoch(folder: DistillationFolder, progress: Progress, row: Mapping[str, float]) -> Iterator[None]:
    """A context for the evaluation of an epoch. An exception that is no divergence does not cost the training of the epoch.

    Args:
        folder: the run folder.
        progress: the training after the epoch.
        row: the epoch's row of ``metrics.csv`` so far.
    """
    try:
        yield
    except FloatingPointError:
        raise
    except Exception:
        folder.append_row(row)
        folder.write_checkpoint(progress)
        raise


def to_device(progress: Progress, device: str) -> Progress:
    """The same progress with all tensors on ``device``."""

    def moved(tensors: Tensors) -> Tensors:
        return {key: value.to(device) for key, value in tensors.items()}

    return replace(
        progress,
        tensors=moved(progress.tensors),
        optimizer=moved(progress.optimizer),
        source_state=moved(progress.source_state),
    )


def check_finite(scores: Mapping[str, float], epoch: int) -> None:
    """Reject a model that the last step of an epoch has made useless, before a checkpoint is written.

    Raises:
        DivergedError: the test loss of a saved network is not finite.
    """
    if bad := [name for name, value in scores.items() if not math.isfinite(value)]:
        where = f"after the last step of epoch {epoch}, where {', '.join(bad)} is {scores[bad[0]]}"
        raise DivergedError(f"the loss is no longer finite {where}: lower the learning rate", round=epoch, loss=scores[bad[0]])


def infinite_in(progress: Progress) -> list[str]:
    """The names of tensors with NaN or infinity in a training between two epochs."""
    return infinite_names(flatten({"learner": progress.tensors, "optimizer": progress.optimizer, "source": progress.source_state}))


def check_finite_state(progress: Progress, infinite: Container[str]) -> None:
    """Reject a training whose state an epoch has made useless, before a checkpoint is written.

    Args:
        progress: the training after the epoch.
        infinite: names of tensors that were not finite at the start, and need not be finite now.

    Raises:
        DivergedError: another tensor is not finite.
    """
    if bad := [name for name in infinite_in(progress) if name not in infinite]:
        where = f"after epoch {progress.epoch}, where {bad[0]!r} holds NaN or infinity"
        raise DivergedError(f"the state is no longer finite {where}: lower the learning rate", round=progress.epoch)


@contextmanager
def named_divergence(name: str) -> Iterator[None]:
    """Put the name of the training in front of the message of a ``DivergedError`` of the block."""
    try:
        yield
    except FloatingPointError as error:
        round_and_loss = {key: getattr(error, key, None) for key in ("round", "loss")}
        raise DivergedError(f"{name}: {error}", **round_and_loss) from error


def student_parameters(setup: Setup, tensors: Tensors) -> Tensors:
    """The trained parameters of the student, without buffers and without the method's modules."""
    student, own = setup.distiller.networks(setup.learner, tensors)["student"]
    return {name: own[name] for name, _ in student.named_parameters()}


def label(config: DictConfig) -> str:
    """Names of teacher, student, method, images and data, and the seed, as progress and messages show them."""
    names = config.choices
    teacher = f"{names.teacher} to " if "teacher" in names else ""
    networks = f"{teacher}{names.get('student', 'student')}"
    images = f"{names.get('image_source', 'images')} {names.get('data', 'data')}"
    return f"{networks} by {names.get('distiller', 'distiller')} on {images}, seed {config.seed}"


def summary(folder: Path) -> str:
    """The student's test accuracy before and after the training."""
    rows = [row for row in read_rows(folder) if row["test_accuracy"]]
    first, last = float(rows[0]["test_accuracy"]), float(rows[-1]["test_accuracy"])
    return f"test accuracy {first:.4f} before, {last:.4f} after {rows[-1]['epoch']} epochs"


def compose_distillation(overrides: list[str]) -> DictConfig:
    """The configuration of a distillation.

    Args:
        overrides: words ``KEY=VALUE`` of ``fedkd distill``.

    Raises:
        ConfigError: a word is wrong, or two words contradict each other.
    """
    overrides = expand_words(overrides)
    config = compose(overrides, "distill")
    return with_distillation_choices(config, dict(config.choices), overrides)


def with_distillation_choices(config: DictConfig, choices: Mapping[str, str], overrides: list[str]) -> DictConfig:
    """``config`` with the names of the chosen options.

    Raises:
        ConfigError: an interpolation cannot be resolved, or ``teacher_run`` is set, and data or a teacher are chosen too. A run provides
            both.
    """
    config = with_choices(config, {key.rpartition("@")[2]: name for key, name in choices.items()}, overrides)
    to_dict(config)
    OmegaConf.set_struct(config, False)
    chosen = [override for override in overrides if override.partition("=")[0].partition(".")[0] in ("data", "model@teacher")]
    if config.teacher_run is not None and chosen:
        rule = "must be null where data or a teacher are chosen, because a run provides both (data.root=FOLDER says where they are now)"
        raise ConfigError(f"teacher_run {rule}, got {config.teacher_run!r} with {', '.join(chosen)}")
    return config


def expand_words(words: Sequence[str]) -> list[str]:
    """Overrides in Hydra's notation.

    ``teacher=resnet20`` becomes ``model@teacher=resnet20``, ``student`` likewise. Where ``teacher_run`` is given, paths of the run's parts,
    as ``data.root=/new``, become new places of its files in ``paths``.
    """
    from_run = any(word.startswith("teacher_run=") and word != "teacher_run=null" for word in words)
    return [_expand(word, from_run) for word in words]


def _expand(word: str, from_run: bool) -> str:
    """One override in Hydra's notation."""
    key, sign, value = word.partition("=")
    if key in ("teacher", "student") and sign:
        return f"model@{word}"
    names = key.lstrip("+").split(".")
    is_path = len(names) > 1 and names[0] in ("data", "partition", "public_data", "systems") and names[-1] in LOCATIONS
    return f"++paths.{'.'.join(names)}{sign}{value}" if from_run and is_path and sign else word
