"""``python -m simulations.distill run=outputs/digits/<hash> student=resnet8 image_source=synthetic``: from a model that knows to a smaller one.

Without ``run`` a teacher is trained first (``teacher=resnet56``), once: whoever asks for the same one again finds it. Add ``-m`` for
sweeps. A training that is finished is skipped, one that was interrupted goes on from its last checkpoint. ``teacher=<name>`` and
``student=<name>`` stand for ``model@teacher=<name>`` and ``model@student=<name>``. The last line on standard output is ``run: <folder>``.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from fedkd.config.validation import check_distillation
from fedkd.distillation.student_training import Progress, Training
from fedkd.errors import ConfigError, DivergedError
from fedkd.metrics.parameter_path import parameter_path_length
from fedkd.training.functional_model import load, submodule_tensors
from fedkd.types import Tensors
from simulations.config import apply_tuned_params, compose, make_absolute, with_choices
from simulations.distillation.export import export
from simulations.distillation.folder import DistillationFolder, read_rows, read_trained_tensors
from simulations.distillation.layer_information import layer_information
from simulations.distillation.scores import scores
from simulations.distillation.setup import Setup, check_student_init, make_setup, placed, schedule, student_alone_config
from simulations.distillation.synthetic_images import save_synthetic_images
from simulations.process import configure_process
from simulations.progress import ProgressBar, configure_logging


def run_distillation(config: DictConfig, patient: bool = False) -> Path:
    """Train the student that ``config`` describes, or what is missing of it, after its teacher; return its folder.

    Args:
        config: composed.
        patient: where another process trains the very same, wait for it: so a teacher is trained once by several who need it.

    Raises:
        ConfigError: the configuration is wrong; nothing was begun.
        DivergedError: the loss is no longer finite; the last checkpoint holds.
    """
    configure_logging()
    configure_process()
    check_distillation(config)
    if get_object(config.distiller["_target_"]).scale is not None:  # there is something to be tuned
        apply_tuned_params(config, "distiller")
    make_absolute(config.data)
    make_absolute(config.image_source)
    setup = make_setup(config)
    check_student_init(setup)
    taught = setup.taught if setup.before is None else read_trained_tensors(run_distillation(setup.before, patient=True))
    start = begun(setup, taught or {})
    training = setup.training(start, placed(taught or {}, setup))
    folder = DistillationFolder(config, setup.hash(taught or {}, start), patient)
    try:
        if folder.finished:
            print("already finished, skipped")
            complete(setup, training, folder)
        else:
            train(setup, training, folder, start)
        print(f"{label(config)}: {summary(folder.path)}")
        print(f"run: {folder.path}", flush=True)
    except FloatingPointError as error:
        raise DivergedError(f"{label(config)}: {error}") from error
    finally:
        folder.release()
    return folder.path


def complete(setup: Setup, training: Training, folder: DistillationFolder) -> None:
    """What leaves the house, if more of it is asked for than when the training was finished."""
    config, searched = setup.config, "precision_at_100" in folder.models_known()
    exported = (folder.path / "student.pt2").exists()
    if (config.export and not exported) or (config.retrieval and not searched):
        config.retrieval = config.retrieval or searched
        folder.models(export(setup, training, read_trained_tensors(folder.path), folder.path))


def begun(setup: Setup, taught: Tensors) -> Tensors:
    """What the training begins with."""
    init = setup.config.student_init
    if init is None:
        return setup.start
    if init == "teacher":
        student = submodule_tensors(taught, "student")
    else:
        folder = (
            run_distillation(student_alone_config(setup.config), patient=True) if init == "alone" else Path(init).expanduser().absolute()
        )
        student = submodule_tensors(read_trained_tensors(folder), "student")
    load(setup.learner.student, {key: value.to(setup.start[f"student.{key}"]) for key, value in student.items()})
    return {**setup.start, **{f"student.{key}": value.to(setup.start[f"student.{key}"]) for key, value in student.items()}}


def train(setup: Setup, training: Training, folder: DistillationFolder, start: Tensors) -> None:
    """Epoch after epoch, from the last checkpoint or the beginning; then what leaves the house."""
    config = setup.config
    progress = folder.begin()
    if progress is None:
        progress = Progress(0, start)
        folder.row({"epoch": 0, **scores(setup, progress.tensors)})
    else:
        progress = Progress(progress.epoch, *({k: v.to(config.device) for k, v in each.items()} for each in (progress.tensors, progress.optimizer, progress.memory)))  # fmt: skip
    rates, first, before = schedule(config), parameters(setup, start), parameters(setup, progress.tensors)
    travel = float(
        read_rows(folder.path)[-1]["parameter_path_length"] or 0
    )  # as it is written, so that a training that goes on adds to the same number
    with ProgressBar(label(config), config.epochs, progress.epoch, config.progress, "epoch") as bar:
        while progress.epoch < config.epochs:
            began = time.perf_counter()
            progress, terms = training.epoch(progress)
            values = {name: float(value) for name, value in terms.items()}
            row = {
                "epoch": progress.epoch,
                "train_loss": values.pop("loss"),
                "lr": config.optimizer.lr * rates[progress.epoch - 1],
                **values,
            }
            here = parameters(setup, progress.tensors)
            row["parameter_path_length"] = travel = parameter_path_length(travel, before, here, first)
            before = here
            row["training_seconds"] = round(time.perf_counter() - began, 4)
            if progress.epoch % config.evaluate_every == 0 or progress.epoch == config.epochs:
                row |= (scored := scores(setup, progress.tensors))
                check_finite(scored, progress.epoch)
                if config.layer_information_images:
                    folder.flow(layer_information(setup, progress, training.taught))
            folder.row(row)
            if progress.epoch % config.checkpoint_every == 0 or progress.epoch == config.epochs:
                if progress.epoch == config.epochs:
                    save_synthetic_images(setup, training, progress, folder.path)
                    folder.models(export(setup, training, progress.tensors, folder.path))
                folder.checkpoint(progress)
            bar.advance(row)


def check_finite(scored: Mapping[str, float], epoch: int) -> None:
    """Stop where the last step has led away from all numbers, before a checkpoint is made of it.

    Raises:
        DivergedError: a network that leaves the house has a loss that is not finite.
    """
    if bad := [name for name, value in scored.items() if not math.isfinite(value)]:
        place = f"after the last step of epoch {epoch}"
        raise DivergedError(
            f"the loss is no longer finite {place}, where the test's {', '.join(bad)} is {scored[bad[0]]}: lower the learning rate"
        )


def parameters(setup: Setup, tensors: Tensors) -> Tensors:
    """Those of the student alone."""
    student, own = setup.distiller.networks(setup.learner, tensors)["student"]
    return {name: own[name] for name, _ in student.named_parameters()}


def label(config: DictConfig) -> str:
    """A training in a few words."""
    names = config.choices
    teacher = f"{names.teacher} to " if "teacher" in names else ""
    return f"{teacher}{names.get('student', 'student')} by {names.get('distiller', 'distiller')} on {names.get('image_source')} {names.get('data')}, seed {config.seed}"


def summary(folder: Path) -> str:
    """Accuracy before and after."""
    scored = [row for row in read_rows(folder) if row["test_accuracy"]]
    return f"accuracy {float(scored[0]['test_accuracy']):.4f} before, {float(scored[-1]['test_accuracy']):.4f} after {scored[-1]['epoch']} epochs"


def with_distillation_choices(config: DictConfig, choices: Mapping[str, str], overrides: list[str]) -> DictConfig:
    """``config`` with the names of the files it was composed from, if what was asked for goes together.

    Raises:
        ConfigError: a run brings its own data and teacher, and another was asked for.
    """
    config = with_choices(config, {key.rpartition("@")[2]: name for key, name in choices.items()}, overrides)
    OmegaConf.set_struct(config, False)
    named = [one for one in overrides if one.partition("=")[0].partition(".")[0] in ("data", "model@teacher")]
    named = [one for one in named if not one.startswith(("data.root=", "data.cache="))]
    if config.teacher_run is not None and named:
        raise ConfigError(
            f"teacher_run must be null where data or teacher are chosen: a run brings its own, got {config.teacher_run!r} with {', '.join(named)}"
        )
    return config


def compose_distillation(overrides: list[str]) -> DictConfig:
    """The configuration that ``overrides``, as the command takes them, describe."""
    overrides = [longhand(one) for one in overrides]
    config = compose(overrides, "distill")
    return with_distillation_choices(config, dict(config.choices), overrides)


def longhand(override: str) -> str:
    """``teacher=resnet20`` is ``model@teacher=resnet20`` to Hydra."""
    key, sign, value = override.partition("=")
    return f"model@{key}{sign}{value}" if key in ("teacher", "student") and sign else override
