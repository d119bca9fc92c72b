"""The reference loop in a process of its own, timed workload by workload: local training, generator, aggregation, evaluation, rounds.

``python -m simulations.benchmarks.reference_process WORKLOAD REPETITIONS [KEY=VALUE]...`` prints the seconds of each repetition, where
WORKLOAD is a name with its numbers, such as ``"generator 20 5"``. With ``serve`` in place of both, workloads are read from standard input.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property

import torch
from omegaconf import OmegaConf

from fedkd.config.build import build, call_part
from fedkd.errors import ConfigError
from fedkd.seed import Seed
from simulations.benchmarks.reference_fedgen import ReferenceFedGen
from simulations.benchmarks.reference_loop import EXAMPLES_PER_CLIENT, RANDOM_TASK, ReferenceClient, ReferenceFedAvg, random_examples
from simulations.config import compose
from simulations.setup.simulation import build_simulation

WORKLOADS = ("local", "local_fedavg", "local_pixels", "generator", "aggregate", "local_test", "global_test", "evaluate", "round")
"""Names of the methods of :class:`ReferenceWorkloads` that can be timed."""


class ReferenceWorkloads:
    """The workloads of the reference loop. Each method of ``WORKLOADS`` returns a function that does the work.

    Objects that the work needs are built outside of this function, so that building them is not timed.

    Args:
        overrides: words ``KEY=VALUE`` of ``fedkd run``. The default strategy is FedGen.
    """

    def __init__(self, overrides: list[str]) -> None:
        self.config = compose(["strategy=fedgen", "engine=local", *overrides])
        self.server_round = 0
        self._random_federations: dict[int, ReferenceFedAvg] = {}

    @cached_property
    def fedgen(self) -> ReferenceFedGen:
        """The federation of the configuration."""
        return ReferenceFedGen(build_simulation(OmegaConf.to_yaml(self.config, resolve=True)))

    def random_federation(self, num_clients: int) -> ReferenceFedAvg:
        """A federation of the configured network on random images. The latest one is kept."""
        if num_clients not in self._random_federations:
            config, seed = self.config, Seed(self.config.seed) / "pixels"
            with (seed / "model").globally():
                model = call_part("model", build(config, "model"), RANDOM_TASK)
            data = [random_examples(seed / number, EXAMPLES_PER_CLIENT) for number in range(num_clients)]
            lr, batch_size = config.optimizer.lr, config.batch_size
            clients = [ReferenceClient(model, own, batch_size, lr, seed / n / "order") for n, own in enumerate(data)]
            self._random_federations = {num_clients: ReferenceFedAvg(model, clients, config.local_steps)}
        return self._random_federations[num_clients]

    def clients(self, number: int) -> list[int]:
        """The first ``number`` clients, repeated if there are fewer."""
        return [client % self.config.num_clients for client in range(number)]

    def local(self, num_clients: int = 10) -> Callable[[], object]:
        """Local training of FedGen."""
        return lambda: self.fedgen.train_clients(self.clients(num_clients))

    def local_fedavg(self, num_clients: int = 10) -> Callable[[], object]:
        """Local training of FedAvg on the configured data."""
        return lambda: self.fedgen.train_fedavg(self.clients(num_clients))

    def local_pixels(self, num_clients: int = 10, num_steps: int = 2) -> Callable[[], object]:
        """Local training of FedAvg on random images of CIFAR's shape, ``num_steps`` steps of each client."""
        federation = self.random_federation(num_clients)
        federation.local_steps = num_steps
        return lambda: federation.train_fedavg(range(num_clients))

    def generator(self, num_heads: int = 10, num_steps: int = 50) -> Callable[[], object]:
        """Steps of the generator with the heads of ``num_heads`` clients."""
        return lambda: self.fedgen.generator_steps(self.clients(num_heads), num_steps)

    def aggregate(self, num_clients: int = 10) -> Callable[[], object]:
        """The average of the clients' models, and its broadcast to all clients."""

        def work() -> None:
            self.fedgen.aggregate(self.clients(num_clients))
            self.fedgen.broadcast()

        return work

    def local_test(self) -> Callable[[], object]:
        """The evaluation on the local test sets of all clients."""
        return self.fedgen.evaluate_local

    def global_test(self) -> Callable[[], object]:
        """The evaluation on the global test set."""
        return self.fedgen.evaluate_global

    def evaluate(self) -> Callable[[], object]:
        """Both evaluations."""
        return self.fedgen.evaluate

    def round(self) -> Callable[[], object]:
        """The next round. The first one is round 2, because round 1 does not use the generator."""
        self.server_round += 1
        return lambda: self.fedgen.run_round(self.server_round + 1)

    def seconds(self, line: str) -> float:
        """Wall-clock time of a workload.

        Args:
            line: name of the workload, and its numbers separated by spaces.

        Raises:
            ConfigError: there is no such workload.
        """
        name, *numbers = line.split()
        if name not in WORKLOADS:
            raise ConfigError(f"a workload must be one of {', '.join(WORKLOADS)}, got {line!r}")
        work = getattr(self, name)(*map(int, numbers))
        _ = None if name == "local_pixels" else self.fedgen  # built before the clock starts
        started = time.perf_counter()
        work()
        return time.perf_counter() - started


class ReferenceProcess:
    """A process that runs the reference loop. It builds the objects of a workload when the workload is first requested.

    Args:
        overrides: words ``KEY=VALUE`` of ``fedkd run``.
    """

    def __init__(self, overrides: list[str]) -> None:
        command = [sys.executable, "-m", "simulations.benchmarks.reference_process", "serve", *overrides]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seconds(self, line: str) -> float:
        """Wall-clock time of a workload in the other process, while this process waits.

        Raises:
            RuntimeError: the process has ended. Its standard error says why.
        """
        assert self.process.stdin is not None and self.process.stdout is not None, "both streams are pipes"
        try:
            print(line, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"the reference process ended (exit code {self.process.wait()}) when {line!r} was requested")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None, "the stream is a pipe"
        self.process.stdin.close()
        self.process.wait()


def main(workload: str, *rest: str) -> None:
    """Serve workloads from standard input, or repeat one workload."""
    torch.set_num_threads(1)
    serves = workload == "serve"
    workloads = ReferenceWorkloads(list(rest if serves else rest[1:]))
    for line in sys.stdin if serves else [workload] * int(rest[0]):
        print(f"{workloads.seconds(line):.6f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
