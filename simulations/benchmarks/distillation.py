"""Cost of each distillation method, relative to training the same student with labels alone.

``python -m simulations.benchmarks.distillation [METHOD]... teacher=resnet20 student=resnet8`` prints ``<figure> <value>``, one per line,
for the named methods or all. Further words ``KEY=VALUE`` are those of ``fedkd distill``; ``dpk.width=64`` sets ``distiller.width`` for that
method alone. Without ``data`` the images are random bytes of CIFAR's shape. Lines that begin with ``#`` state times and ranges.

``step_<method>``: time of a step over that with labels alone, the median of five alternating pairs, warm, one thread.
``memory_<method>``: peak resident memory of a process that trains with the method, over that of one that trains with labels alone.
``pipeline``: time of a step on one prepared batch over that of a step on images that are shuffled, shifted and mirrored.

Teachers are untrained, which does not change the cost, and the learning rate is too small to change the student.
"""

import re
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from fedkd.distillation.student_training import Progress, Training
from fedkd.errors import ConfigError
from fedkd.seed import Seed
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, snapshot
from fedkd.training.loop import fit
from fedkd.types import Metrics, State, Tensors
from simulations.benchmarks.measurement import ratio, timed
from simulations.benchmarks.workloads import random_pixels_overrides
from simulations.cli.exit_codes import one_line_errors
from simulations.distillation.runner import compose_distillation
from simulations.distillation.setup import Setup, make_setup
from simulations.overrides import CONF
from simulations.process import configure_process

STEPS, PAIRS = 10, 5
"""Steps of a measurement, and pairs of measurements of a figure."""

METHODS = sorted(path.stem for path in (CONF / "distiller").glob("*.yaml"))

WITHOUT_AUXILIARY_TEACHER = {"information_flow": ["distiller.teaching=[]"]}
"""Overrides of methods that would train a further network before the student."""


def method_config(method: str, overrides: list[str]) -> DictConfig:
    """The configuration of a method, with the overrides that are for this method alone."""
    own = [f"distiller.{word.removeprefix(f'{method}.')}" for word in overrides if word.startswith(f"{method}.")]
    overrides = [word for word in overrides if word.partition(".")[0] not in METHODS]
    data = [] if any(word.startswith("data") for word in overrides) else random_pixels_overrides(1024)
    defaults = ["teacher=resnet20", "student=resnet8", "augmentation=crop_flip", "optimizer.lr=1e-6"]
    further = WITHOUT_AUXILIARY_TEACHER.get(method, [])
    return compose_distillation([*defaults, *data, *overrides, f"distiller={method}", *further, *own])


def make_training(method: str, overrides: list[str]) -> tuple[Training, Progress]:
    """A training of ten steps per epoch with an untrained teacher, and its beginning."""
    setup = make_setup(method_config(method, [*overrides, f"steps_per_epoch={STEPS}"]))
    return setup.training(untrained_teacher(setup)), Progress(0, setup.initial_tensors)


def untrained_teacher(setup: Setup) -> Tensors:
    """Initial tensors of the teacher, empty if there is none. Larger variances keep its features small in eval mode."""
    tensors = {} if setup.teacher is None else snapshot(setup.teacher)
    return {key: 100 * value if key.endswith("running_var") else value for key, value in tensors.items()}


def repeated_epoch(method: str, overrides: list[str]) -> Callable[[], None]:
    """A function that trains the same epoch again. It has been warmed up."""
    training, progress = make_training(method, overrides)

    def run() -> None:
        training.epoch(progress)

    warm_up(run)
    return run


def repeated_batch(overrides: list[str]) -> Callable[[], None]:
    """A function that trains as many steps with labels alone on one prepared batch. It has been warmed up."""
    training, progress = make_training("none", [*overrides, "augmentation=none"])
    images = training.fixed_images
    assert images is not None, "real images do not change"
    batches = training.batches(images, 0, Seed(0))
    assert batches.index is not None, "batches refer to images"
    x = images.images(batches.index[0], training.dtype).contiguous(memory_format=torch.channels_last)

    def loss(model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        return training.distiller.loss(model, None, replace(batch, x=broadcast["images"]["x"]), True)

    without_images = Batches(batches.y[:1].expand(STEPS, -1), dtype=training.dtype)
    make_optimizer = partial(training.make_optimizer, epoch=0)

    def run() -> None:
        fit(
            training.learner, progress.tensors, without_images, loss, make_optimizer,
            broadcast={"images": {"x": x}}, execution=training.execution,
        )  # fmt: skip

    warm_up(run)
    return run


def warm_up(run: Callable[[], None]) -> None:
    """Run until steps are replayed, or compiled."""
    for _ in range(2 + 100 // STEPS):
        run()


def peak_memory(method: str, overrides: list[str]) -> float:
    """Peak resident memory in MiB of a process that trains with the method."""
    command = [sys.executable, "-m", "simulations.benchmarks.distillation", "peak", method, *overrides]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(finished.stdout.split()[-1])


def own_peak_memory() -> float:
    """Peak resident memory of this process in MiB since its program started.

    On Linux ``ru_maxrss`` is at least the memory of the parent process at the start, so ``VmHWM`` is read where the system has it.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None, "Linux states VmHWM"
    return int(match[1]) / 1024


def main(words: Sequence[str]) -> None:
    """Print the figures of the methods that ``words`` name, or of all.

    Raises:
        ConfigError: there is no such method.
    """
    configure_process()
    if words[:1] == ["peak"]:
        repeated_epoch(words[1], list(words[2:]))
        print(own_peak_memory())
        return
    overrides = [word for word in words if "=" in word or word.startswith("~")]
    methods = [word for word in words if word not in overrides] or [method for method in METHODS if method != "none"]
    if unknown := sorted(set(methods) - {*METHODS, "pipeline"}):
        raise ConfigError(f"methods must be among {', '.join([*METHODS, 'pipeline'])}, got {', '.join(unknown)}")
    config = method_config("none", overrides)
    networks = f"{config.choices.student} from {config.choices.teacher}"
    print(f"# torch {torch.__version__}, one thread, batches of {config.batch_size}, {networks}", flush=True)
    labels_alone, base_memory = repeated_epoch("none", overrides), peak_memory("none", overrides)
    reference = partial(timed, labels_alone)
    for method in methods:
        if method == "pipeline":
            continue
        ours = partial(timed, repeated_epoch(method, overrides))
        print(f"step_{method} {ratio(f'step_{method}', ours, reference, PAIRS, 1e3 / STEPS):.3g}", flush=True)
        memory = peak_memory(method, overrides)
        print(f"# memory_{method}: {memory:.0f} MiB against {base_memory:.0f}\nmemory_{method} {memory / base_memory:.3g}", flush=True)
    one_batch, num_images = repeated_batch(overrides), STEPS * config.batch_size
    print(f"pipeline {ratio('pipeline', partial(timed, one_batch), reference, PAIRS, 1e3 / STEPS):.3g}", flush=True)
    augmented, prepared = num_images / timed(labels_alone), num_images / timed(one_batch)
    print(f"# images per second: {augmented:.0f} shuffled, shifted and mirrored, {prepared:.0f} on one batch", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
