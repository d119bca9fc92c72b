"""The reference loop in a process of its own, timed piece by piece: local training, generator, aggregation, evaluation, whole rounds."""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property, lru_cache

import torch
from omegaconf import OmegaConf

from fedkd.config.build import build, call_part
from fedkd.seed import Seed
from simulations.benchmarks.reference_fedgen import NaiveFedGen
from simulations.benchmarks.reference_loop import PIXELS, PIXELS_PER_CLIENT, NaiveClient, NaiveFedAvg, pixels
from simulations.config import compose
from simulations.setup.simulation import build_simulation


class Pieces:
    """What can be timed. ``"generator 20 5"`` is the method of that name with the numbers after it; it returns the work.

    Whatever the work needs is built when it is asked for, which is not part of the work.

    Args:
        overrides: of ``simulations.run``; ``strategy=fedgen`` unless they say more.
    """

    def __init__(self, overrides: list[str]) -> None:
        self.config = compose(["strategy=fedgen", "engine=local", *overrides])
        self.server_round = 0
        self.federated_pixels = lru_cache(maxsize=1)(self.federated_pixels)

    @cached_property
    def fedgen(self) -> NaiveFedGen:
        """The federation of the overrides."""
        return NaiveFedGen(build_simulation(OmegaConf.to_yaml(self.config, resolve=True)))

    def federated_pixels(self, clients: int) -> NaiveFedAvg:
        """A federation of the configured model on random images."""
        config, seed = self.config, Seed(self.config.seed) / "pixels"
        with (seed / "model").globally():
            model = call_part("model", build(config, "model"), PIXELS)
        data = [pixels(seed / number, PIXELS_PER_CLIENT) for number in range(clients)]
        sites = [NaiveClient(model, own, config.batch_size, config.optimizer.lr, seed / n / "order") for n, own in enumerate(data)]
        return NaiveFedAvg(model, sites, config.local_steps)

    def some(self, number: int) -> list[int]:
        """The first ``number`` clients, over and over if there are fewer."""
        return [client % self.config.num_clients for client in range(number)]

    def local(self, clients: int = 10) -> Callable[[], object]:
        """FedGen's local training of so many clients."""
        return lambda: self.fedgen.local_training(self.some(clients))

    def local_fedavg(self, clients: int = 10) -> Callable[[], object]:
        """FedAvg's local training of so many clients, on the configured data."""
        return lambda: self.fedgen.local_fedavg(self.some(clients))

    def local_pixels(self, clients: int = 10, steps: int = 2) -> Callable[[], object]:
        """FedAvg's local training of so many clients on random images in CIFAR's shape, so many steps each."""
        federation = self.federated_pixels(clients)
        federation.local_steps = steps
        return lambda: federation.local_fedavg(range(clients))

    def generator(self, heads: int = 10, steps: int = 50) -> Callable[[], object]:
        """So many steps of the generator from so many heads."""
        return lambda: self.fedgen.generator_steps(self.some(heads), steps)

    def aggregate(self, clients: int = 10) -> Callable[[], object]:
        """The mean of so many models, and its way to all clients."""
        return lambda: (self.fedgen.aggregate(self.some(clients)), self.fedgen.broadcast())

    def shards(self) -> Callable[[], object]:
        """All clients' own test shards."""
        return self.fedgen.evaluate_shards

    def balanced(self) -> Callable[[], object]:
        """The balanced test."""
        return self.fedgen.evaluate_balanced

    def evaluate(self) -> Callable[[], object]:
        """Both."""
        return self.fedgen.evaluate

    def round(self) -> Callable[[], object]:
        """The next round, the first being the second: the first has no generator in it."""
        self.server_round += 1
        return lambda: self.fedgen.round(self.server_round + 1)

    def seconds(self, line: str) -> float:
        """Wall time of the piece that ``line`` names.

        Raises:
            ValueError: there is no such piece.
        """
        name, *numbers = line.split()
        if name not in PIECES:
            raise ValueError(f"a piece of work must be one of {', '.join(PIECES)}, got {line!r}")
        work = getattr(self, name)(*map(int, numbers))
        _ = None if name == "local_pixels" else self.fedgen
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin


PIECES = ("local", "local_fedavg", "local_pixels", "generator", "aggregate", "shards", "balanced", "evaluate", "round")


class Opponent:
    """The process in which the opponent lives; it starts at once and builds what a piece needs when it is first asked for it.

    Args:
        overrides: of ``simulations.run``.
    """

    def __init__(self, overrides: list[str]) -> None:
        command = [sys.executable, "-m", "simulations.benchmarks.reference_process", "serve", *overrides]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seconds(self, line: str) -> float:
        """How long the piece of work that ``line`` names takes over there; this process waits.

        Raises:
            RuntimeError: the process has ended; it says why on standard error.
        """
        try:
            print(line, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"the opponent ended (exit code {self.process.wait()}) when asked for {line!r}")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def main(piece: str, *rest: str) -> None:
    """Serve, or repeat one piece."""
    torch.set_num_threads(1)
    serving = piece == "serve"
    pieces = Pieces(list(rest if serving else rest[1:]))
    for line in sys.stdin if serving else [piece] * int(rest[0]):
        print(f"{pieces.seconds(line):.6f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
