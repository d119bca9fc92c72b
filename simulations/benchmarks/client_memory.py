"""Memory and time of the driver where many clients keep a state: all of them have trained before, and some train in a round.

``python -m simulations.benchmarks.client_memory data.root=DATA [strategies=fedavg,fedgen,scaffold] [overrides]`` runs three rounds of MNIST
with 10,000 clients, 100 of them in a round, on ``engine=local``. Each strategy has a process of its own. It prints a table: peak memory
of the process and how much of it the rounds add to the data and the program, and for each round the seconds and megabytes of the
checkpoint and the seconds of the evaluation, as medians, and the CPU seconds of the process, which depend less on what else runs. The
script also runs in the working tree of an earlier version, given its path.
"""

import copy
import csv
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedkd.checkpoint import read_checkpoint, write_checkpoint
from fedkd.errors import StopRun
from fedkd.training.step_counter import StepCount
from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.run_folder.folder import RunFolder
from simulations.run_folder.observers import RunObserver

SETTING = (
    "data=mnist", "partition=iid", "num_clients=10000", "clients_per_round=100", "local_steps=2", "batch_size=4", "rounds=4",
    "clients_per_vmap=20", "engine=local", "progress=false",
)  # fmt: skip
"""The workload; a round's training is short, as it is not what is measured."""

OPTIONS = {"scaffold": ("optimizer.momentum=0.0",), "fedgen": ("strategy.generator_steps=5",)}
"""What a strategy needs in addition."""

TITLES = ("strategy", "peak MiB", "of it in the rounds", "checkpoint s", "checkpoint MB", "evaluation s", "CPU s")
"""Columns of the table."""


class StopAfterFirst(RunObserver):
    """Ends the run after its first round."""

    def round(self, number: int, metrics: Mapping[str, Any], clients: Sequence[Mapping[str, Any]], save: object) -> None:
        """See :class:`RunObserver`."""
        raise StopRun("the first round is done")


class Stopwatch:
    """Seconds and bytes between the row of a round and the progress that follows its checkpoint, as the progress of a run."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.megabytes: list[float] = []
        self._begin = (0.0, 0)
        write_row = RunFolder.row

        def row(folder: RunFolder, values: Mapping[str, float]) -> None:
            write_row(folder, values)
            self._begin = time.perf_counter(), written_bytes()

        RunFolder.row = row  # type: ignore[method-assign,assignment]  # from outside, in all versions

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing is open."""

    def advance(self, row: Mapping[str, float]) -> None:
        """The checkpoint of the round is written."""
        self.seconds.append(time.perf_counter() - self._begin[0])
        self.megabytes.append((written_bytes() - self._begin[1]) / 1e6)

    def server_steps(self, server_round: int, count: StepCount) -> None:
        """Nothing is measured."""


def written_bytes() -> int:
    """The bytes that this process has written to files."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["wchar"])


def peak_mib() -> float:
    """The peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def prepare(words: Sequence[str]) -> None:
    """Run the first round, and give all clients the state of one that has trained in it."""
    config = compose(words)
    folder = run_federation(config, observers=[StopAfterFirst()])
    last = read_checkpoint(folder)
    state = last.client_states[min(last.client_states)]
    states = {client: copy.deepcopy(state) for client in range(config.num_clients)}
    write_checkpoint(folder, replace(last, client_states=states), config.rounds)


def measure(strategy: str, words: Sequence[str]) -> None:
    """Run the other rounds, and print their row of the table."""
    watch, before = Stopwatch(), list[tuple[float, float]]()

    class Begin(RunObserver):
        """An observer of the beginning of the rounds."""

        def begin(self, folder: Path, first: int) -> None:
            """Keep the memory at the beginning of the rounds."""
            before.append((peak_mib(), time.process_time()))

    folder = run_federation(compose(words), make_progress=lambda config, first: watch, observers=[Begin()])
    with open(folder / "metrics.csv", newline="") as file:
        evaluation = [float(row["evaluation_seconds"]) for row in csv.DictReader(file)][1:]
    cpu = (time.process_time() - before[0][1]) / len(watch.seconds)
    numbers = (statistics.median(watch.seconds), statistics.median(watch.megabytes), statistics.median(evaluation), cpu)
    cells = [f"{peak_mib():.0f}", f"{peak_mib() - before[0][0]:.0f}", *(f"{number:.2f}" for number in numbers)]
    print(f"| {' | '.join([strategy, *cells])} |", flush=True)


def main(words: Sequence[str]) -> None:
    """Print the table."""
    own = [word.partition("=")[2] for word in words if word.startswith("strategies=")]
    overrides = [*SETTING, *(word for word in words if not word.startswith("strategies="))]
    print(f"# {' '.join(overrides)}\n| {' | '.join(TITLES)} |\n|---|{'---:|' * (len(TITLES) - 1)}", flush=True)
    for strategy in (own or ["fedavg,fedgen,scaffold"])[0].split(","):
        with tempfile.TemporaryDirectory() as output:
            run = [*overrides, f"strategy={strategy}", *OPTIONS.get(strategy, ()), f"output={output}"]
            for part in ("--prepare", "--measure"):
                ended = subprocess.run([sys.executable, __file__, part, strategy, *run], check=True, stdout=subprocess.PIPE, text=True)
                print("".join(line for line in ended.stdout.splitlines(keepends=True) if line.startswith("|")), end="", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prepare"]:
        prepare(sys.argv[3:])
    elif sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], sys.argv[3:])
    else:
        main(sys.argv[1:])
