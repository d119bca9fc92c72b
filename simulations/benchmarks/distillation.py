"""What each way of distilling costs over training the same student with labels alone: ``<key> <value>``, one line a figure.

``python -m simulations.benchmarks.distillation [methods] teacher=resnet20 student=resnet8`` (further overrides as for ``simulations.distill``;
``dpk.width=64`` is that method's ``distiller.width``; images are random bytes in CIFAR's shape unless ``data`` says more) prints for every
method, or those named, ``step_<method>``: a step's time over that of a step with labels alone, taken in turn; and ``memory_<method>``: the
peak resident memory of a process that trains so, over that of one that trains with labels alone. ``pipeline`` is the images per second of
training with labels, shuffled, moved and mirrored, over those of the same steps on one batch that is ready. Lines that begin with ``#`` say
what was done. The median of five pairs, warm, one thread; the learning rate is too small to matter, as teachers are untrained.
"""

import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig

from fedkd.distillation.student_training import Progress, Training
from fedkd.seed import Seed
from fedkd.training.batch import Batches
from fedkd.training.functional_model import snapshot
from fedkd.training.loop import fit
from fedkd.types import Tensors
from simulations.benchmarks.engine import ratio, timed
from simulations.benchmarks.workloads import random_pixels
from simulations.config import CONF
from simulations.distillation.runner import compose_distillation
from simulations.distillation.setup import Setup, make_setup
from simulations.process import configure_process

STEPS, PAIRS = 10, 5

METHODS = sorted(path.stem for path in (CONF / "distiller").glob("*.yaml"))

OWN_FORM = {"information_flow": ["distiller.teaching=[]"]}


def configured(name: str, overrides: list[str]) -> DictConfig:
    """The configuration of a method."""
    target = f"{random_pixels.__module__}.{random_pixels.__qualname__}"
    random = ["~data", f"+data._target_={target}", "+data._partial_=true", "+data.num_examples=1024", "+data.seed=0"]
    own = [f"distiller.{one.removeprefix(f'{name}.')}" for one in overrides if one.startswith(f"{name}.")]
    overrides = [one for one in overrides if one.partition(".")[0] not in METHODS]
    data = [] if any(one.startswith("data") for one in overrides) else random
    shipped = ["teacher=resnet20", "student=resnet8", "augmentation=crop_flip", "optimizer.lr=1e-6"]
    return compose_distillation([*shipped, *data, *overrides, f"distiller={name}", *OWN_FORM.get(name, ()), *own])


def prepared(name: str, overrides: list[str]) -> tuple[Training, Progress]:
    """A training of ten steps an epoch, whose teacher is untrained: that changes no cost."""
    config = configured(name, [*overrides, f"steps_per_epoch={STEPS}"])
    setup = make_setup(config)
    return setup.training(setup.start, untrained(setup)), Progress(0, setup.start)


def untrained(setup: Setup) -> Tensors:
    """A teacher's tensors as it begins, but for variances that keep its maps small: in eval mode, nothing else does."""
    own = {} if setup.teacher is None else snapshot(setup.teacher)
    return {key: 100 * value if key.endswith("running_var") else value for key, value in own.items()}


def epochs(name: str, overrides: list[str]) -> Callable[[], None]:
    """The same epoch again and again."""
    training, progress = prepared(name, overrides)

    def run() -> None:
        training.epoch(progress)

    for _ in range(2 + 100 // STEPS):  # until steps are replayed, or compiled
        run()
    return run


def ready(overrides: list[str]) -> Callable[[], None]:
    """The steps of an epoch with labels alone, all on one batch that needs no work."""
    training, progress = prepared("none", [*overrides, "augmentation=none"])
    batches = training.batches(training.pool, 0, Seed(0))
    x = training.pool.images(batches.index[0], training.dtype).contiguous(memory_format=torch.channels_last)

    def step(model: object, batch: object, shared: dict, own: dict) -> tuple:
        return training.distiller.loss(model, None, replace(batch, x=shared["images"]["x"]), True)

    still = Batches(batches.y[:1].expand(STEPS, -1), dtype=training.dtype)

    def run() -> None:
        fit(
            training.learner,
            progress.tensors,
            still,
            step,
            partial(training.stepper, epoch=0),
            broadcast={"images": {"x": x}},
            execution=training.execution,
        )

    for _ in range(2 + 100 // STEPS):
        run()
    return run


def peak(name: str, overrides: list[str]) -> float:
    """MiB of a process that trains so."""
    command = [sys.executable, "-m", "simulations.benchmarks.distillation", "peak", name, *overrides]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def high_water() -> float:
    """The most MiB that this process has held: ru_maxrss, but where the system tells what was held since the program began.

    On Linux ru_maxrss goes on across exec: it is never less than what the parent held when it started this process.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def main(arguments: list[str]) -> None:
    """The command."""
    configure_process()
    if arguments[:1] == ["peak"]:
        epochs(arguments[1], arguments[2:])
        print(high_water())
        return
    overrides = [one for one in arguments if "=" in one or one.startswith("~")]
    methods = [one for one in arguments if one not in overrides] or [one for one in METHODS if one != "none"]
    if unknown := sorted(set(methods) - {*METHODS, "pipeline"}):
        sys.exit(f"methods must be among {', '.join([*METHODS, 'pipeline'])}, got {', '.join(unknown)}")
    config = configured("none", overrides)
    names = config.choices.get("teacher", "resnet20"), config.choices.student
    print(
        f"# torch {torch.__version__}, one thread, batches of {config.batch_size}, {names[1]} from {names[0]}; milliseconds a step",
        flush=True,
    )
    alone, base = epochs("none", overrides), peak("none", overrides)
    for name in [one for one in methods if one != "pipeline"]:
        mine = epochs(name, overrides)
        print(
            f"step_{name} {ratio(f'step_{name}', lambda work=mine: timed(work), lambda: timed(alone), PAIRS, 1e3 / STEPS):.3g}", flush=True
        )
        used = peak(name, overrides)
        print(f"# memory_{name}: {used:.0f} MiB against {base:.0f}\nmemory_{name} {used / base:.3g}", flush=True)
    still = ready(overrides)
    size = STEPS * config.batch_size
    print(f"pipeline {ratio('pipeline', lambda: timed(still), lambda: timed(alone), PAIRS, 1e3 / STEPS):.3g}", flush=True)
    print(f"# images a second: {size / timed(alone):.0f} shuffled, moved and mirrored, {size / timed(still):.0f} on one batch", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
