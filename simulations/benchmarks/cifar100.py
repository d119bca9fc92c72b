"""Accuracy of the usual teacher-student pairs of CIFAR-100 on a schedule that fits into minutes.

``python -m simulations.benchmarks.cifar100 data.root=FOLDER [minutes=9] [device=cuda] [precision=bfloat16]`` prints ``<figure> <value>``,
one per line, with the published value in the line before. Further words ``KEY=VALUE`` are those of ``fedkd distill``, such as
``data=parquet`` for Parquet files. The benchmark first times some steps of every training. All trainings then get the same number of
epochs, as many as fit.

``<teacher>_<student>_<method>``: test accuracy of the student after the last epoch in %.
``<teacher>``: test accuracy of the teacher in %.

The published values are after 240 epochs (RepDistiller's table, and HSAKD's own). A shortened schedule is another experiment.
"""

import sys
import time
from collections.abc import Sequence

from omegaconf import DictConfig

from fedkd.distillation.student_training import Progress
from simulations.benchmarks.distillation import untrained_teacher
from simulations.cli.exit_codes import one_line_errors
from simulations.distillation.folder import read_rows
from simulations.distillation.runner import compose_distillation, run_distillation
from simulations.distillation.setup import make_setup
from simulations.process import configure_process

PUBLISHED: dict[tuple[str, str], dict[str, float | None]] = {
    ("resnet56", "resnet20"): {"teacher": 72.34, "none": 69.06, "kd": 70.66, "sp": 69.67, "dpk": None, "hsakd": 72.58},
    ("resnet32x4", "resnet8x4"): {"teacher": 79.42, "none": 72.50, "kd": 73.33, "sp": 72.94, "dpk": None, "hsakd": 77.26},
}
"""Published test accuracies in % by teacher and student. None where no value was found."""

TIMED_STEPS = 20
TRAINING_SHARE = 0.85
"""Share of the minutes that trainings are planned for. The rest is for teachers' evaluations, exports and other overhead."""


def training_overrides(pair: tuple[str, str], method: str, words: list[str]) -> list[str]:
    """The words of ``fedkd distill`` for one training. The method ``teacher`` trains the teacher with labels alone."""
    teacher, student = pair
    if method == "teacher":
        networks = [f"student={teacher}", "distiller=none"]
    else:
        networks = [f"teacher={teacher}", f"student={student}", f"distiller={method}"]
    fixed = ["recipe=cifar100", "device=cuda", "precision=bfloat16", "evaluate_every=1000", "export=false", "name=benchmark"]
    return [*fixed, *networks, *words]


def seconds_per_epoch(config: DictConfig) -> float:
    """Seconds of an epoch of one training, and of the further training of its teacher if the method requires one."""
    setup = make_setup(config)
    training = setup.training(untrained_teacher(setup))
    assert training.fixed_images is not None, "real images do not change"
    num_steps = config.steps_per_epoch or len(training.fixed_images) // config.batch_size
    training.steps, progress = TIMED_STEPS, Progress(0, setup.initial_tensors)
    training.epoch(progress)
    started = time.perf_counter()
    sum(float(value) for value in training.epoch(progress)[1].values())  # waits for the device
    seconds = (time.perf_counter() - started) / TIMED_STEPS * num_steps
    further = setup.teacher_training
    if further is not None and further.choices.distiller != "none":
        seconds += seconds_per_epoch(further)
    return seconds


def main(words: Sequence[str]) -> None:
    """Print all figures."""
    configure_process()
    minutes = float(next((word.partition("=")[2] for word in words if word.startswith("minutes=")), 9))
    overrides = [word for word in words if not word.startswith("minutes=")]
    started = time.perf_counter()
    trainings = {(pair, method): training_overrides(pair, method, overrides) for pair, methods in PUBLISHED.items() for method in methods}
    costs = {key: seconds_per_epoch(compose_distillation([*words, "optimizer.lr=1e-6"])) for key, words in trainings.items()}
    for ((teacher, student), method), cost in costs.items():
        print(f"# {teacher} {student} {method}: {cost:.2f} seconds per epoch", flush=True)
    remaining = TRAINING_SHARE * 60 * minutes - (time.perf_counter() - started)
    epochs = max(1, int(remaining / sum(costs.values())))
    print(f"# {epochs} epochs of each training", flush=True)
    for (pair, method), training in trainings.items():
        folder = run_distillation(compose_distillation([*training, f"epochs={epochs}", "progress=false"]))
        accuracy = 100 * float(read_rows(folder)[-1]["test_accuracy"])
        figure, published = pair[0] if method == "teacher" else f"{'_'.join(pair)}_{method}", PUBLISHED[pair][method]
        print(f"# published after 240 epochs: {'none found' if published is None else published}\n{figure} {accuracy:.2f}", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
