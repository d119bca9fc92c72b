"""CIFAR-100's usual pairs on a schedule that fits into minutes: ``<key> <value>``, one line a figure, the published number in the line before.

``python -m simulations.benchmarks.cifar100 data.root=<folder> [minutes=9] [device=cuda] [precision=bfloat16]`` (further overrides as for
``simulations.distill``; ``data=parquet`` for Parquet files). Steps of every training are timed first; all get the same number of epochs, as
many as fit. ``<teacher>_<student>_<method>`` is the student's accuracy after the last epoch, in %; ``<teacher>`` the teacher's. The
published numbers took 240 epochs (RepDistiller's table; HSAKD's own): a shortened schedule is another experiment.
"""

import sys
import time

from omegaconf import DictConfig

from fedkd.distillation.student_training import Progress
from simulations.benchmarks.distillation import untrained
from simulations.distillation.folder import read_rows
from simulations.distillation.runner import compose_distillation, run_distillation
from simulations.distillation.setup import make_setup
from simulations.process import configure_process

PUBLISHED = {
    ("resnet56", "resnet20"): {"teacher": 72.34, "none": 69.06, "kd": 70.66, "sp": 69.67, "dpk": None, "hsakd": 72.58},
    ("resnet32x4", "resnet8x4"): {"teacher": 79.42, "none": 72.50, "kd": 73.33, "sp": 72.94, "dpk": None, "hsakd": 77.26},
}

TIMED, SHARE = 20, 0.85
"""Steps that are timed, and the share of the minutes that is planned for."""


def overrides_of(pair: tuple[str, str], method: str, given: list[str]) -> list[str]:
    """The command line of one training; ``teacher`` is the teacher's own."""
    teacher, student = pair
    names = (
        [f"student={teacher}", "distiller=none"]
        if method == "teacher"
        else [f"teacher={teacher}", f"student={student}", f"distiller={method}"]
    )
    return ["recipe=cifar100", "device=cuda", "precision=bfloat16", "evaluate_every=1000", "export=false", "name=benchmark", *names, *given]


def seconds_per_epoch(config: DictConfig) -> float:
    """Of one training, and of the one that prepares its teacher beyond labels, if any does."""
    setup = make_setup(config)
    training = setup.training(setup.start, untrained(setup))
    whole = config.steps or len(training.pool) // config.batch_size
    training.steps, progress = TIMED, Progress(0, setup.start)
    training.epoch(progress)
    begin = time.perf_counter()
    sum(float(value) for value in training.epoch(progress)[1].values())  # waits for the device
    mine = (time.perf_counter() - begin) / TIMED * whole
    before = setup.before
    return mine + (seconds_per_epoch(before) if before is not None and before.choices.distiller != "none" else 0.0)


def main(arguments: list[str]) -> None:
    """The command."""
    configure_process()
    minutes = float(next((one.partition("=")[2] for one in arguments if one.startswith("minutes=")), 9))
    given = [one for one in arguments if not one.startswith("minutes=")]
    begin = time.perf_counter()
    plans = {(pair, method): overrides_of(pair, method, given) for pair, methods in PUBLISHED.items() for method in methods}
    costs = {key: seconds_per_epoch(compose_distillation([*plan, "optimizer.lr=1e-6"])) for key, plan in plans.items()}
    for (pair, method), cost in costs.items():
        print(f"# {pair[0]} {pair[1]} {method}: {cost:.2f} seconds an epoch", flush=True)
    left = SHARE * 60 * minutes - (time.perf_counter() - begin)
    epochs = max(1, int(left / sum(costs.values())))
    print(f"# {epochs} epochs of each", flush=True)
    for (pair, method), plan in plans.items():
        folder = run_distillation(compose_distillation([*plan, f"epochs={epochs}", "progress=false"]))
        accuracy = 100 * float(read_rows(folder)[-1]["test_accuracy"])
        key = pair[0] if method == "teacher" else f"{pair[0]}_{pair[1]}_{method}"
        known = PUBLISHED[pair][method]
        print(f"# published after 240 epochs: {'none found' if known is None else known}\n{key} {accuracy:.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
