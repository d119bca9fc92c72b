"""Who takes part, who fails to, and how long it would take: participation, dropout, stragglers, newcomers, a simulated clock."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Literal

import numpy as np

from fedkd.errors import ConfigError, require
from fedkd.seed import Seed


@dataclass(frozen=True, kw_only=True)
class Systems:
    """Unlike devices on a simulated clock, which never reads this machine's own.

    A client's time in a round is that of receiving the broadcast, of computing the examples of its local steps, and of sending its answer. A
    round lasts as long as the slowest client that answers; with a deadline, until the deadline where anyone is later or does not answer.

    Args:
        participation: a round's clients are drawn ``uniform``ly, or with chances in proportion to their examples (``by_size``), or taken in
            turn (``cyclic``), or read from a file (``trace``).
        trace: for ``trace``: a CSV file with the columns ``round`` and ``client``; its rounds are repeated from the beginning when they are over.
        dropout: 0..1 (1 excluded), chance of a chosen client not to answer; it receives nothing then, and does nothing.
        stragglers: 0..1, chance of a chosen client to do but a share of its steps,
        straggler_steps: drawn uniformly from ``straggler_steps..1``, in (0, 1]; at least one step.
        deadline: simulated seconds after which the server goes on without who has not answered; null: it waits for all. What comes later is
            as if it had never been: not counted as sent, and the client remembers nothing of the round.
        examples_per_second: > 0, training speed of the median client.
        speed_sigma: 0..10; a client's speed is the median times exp(sigma * normal), drawn once.
        bytes_per_second: > 0, bandwidth of the median client, in each direction.
        bandwidth_sigma: 0..10, likewise.
        newcomers: >= 0; so many clients, drawn, take no part
        join_round: >= 1, before this round.
    """

    participation: Literal["uniform", "by_size", "cyclic", "trace"]
    trace: str | None
    dropout: float
    stragglers: float
    straggler_steps: float
    deadline: float | None
    examples_per_second: float
    speed_sigma: float
    bytes_per_second: float
    bandwidth_sigma: float
    newcomers: int
    join_round: int

    def __post_init__(self) -> None:
        known = ("uniform", "by_size", "cyclic", "trace")
        require(self.participation in known, "participation", f"must be one of {', '.join(known)}", self.participation)
        needed = "must be a CSV file with the columns round and client where participation=trace, and null elsewhere"
        require((self.trace is not None) == (self.participation == "trace"), "trace", needed, self.trace)
        require(0 <= self.dropout < 1, "dropout", "must be a probability in 0..1, 1 excluded", self.dropout)
        require(0 <= self.stragglers <= 1, "stragglers", "must be a probability in 0..1", self.stragglers)
        require(0 < self.straggler_steps <= 1, "straggler_steps", "must be a share in (0, 1]", self.straggler_steps)
        require(self.deadline is None or self.deadline > 0, "deadline", "must be > 0 simulated seconds, or null for none", self.deadline)
        for name in ("examples_per_second", "bytes_per_second"):
            value = getattr(self, name)
            require(0 < value and isfinite(value), name, "must be > 0 and finite", value)
        for name in ("speed_sigma", "bandwidth_sigma"):
            value = getattr(self, name)
            require(0 <= value <= 10, name, "must be in 0..10 (0: all alike)", value)
        require(self.newcomers >= 0, "newcomers", "must be >= 0", self.newcomers)
        require(self.join_round >= 1, "join_round", "must be >= 1", self.join_round)


@dataclass(frozen=True)
class RoundTiming:
    """A round by the simulated clock: how many seconds it lasted, and who answered too late."""

    seconds: float
    late: frozenset[int]


@dataclass(frozen=True)
class Devices:
    """The clients of one run under its ``systems``: every answer follows from seed, round and client, and from nothing else.

    Args:
        systems: the rules.
        seed: the run's.
        shapes: batch size and local steps of a whole round, by client.
        num_examples: for training, by client.
        trace: the clients of each round of the trace, where there is one.
    """

    systems: Systems
    seed: Seed
    shapes: Sequence[tuple[int, int]]
    num_examples: Sequence[int]
    trace: Sequence[Sequence[int]] = ()

    # ------------------------------------------------------------------------------------------- who takes part
    @cached_property
    def newcomers(self) -> frozenset[int]:
        """Who takes no part before ``join_round``."""
        rng = (self.seed / "systems" / "newcomers").numpy()
        return frozenset(rng.choice(len(self.shapes), self.systems.newcomers, replace=False).tolist())

    def cohort(self, clients: Iterable[int], number: int, server_round: int) -> list[int]:
        """The clients of a round, ascending: ``number`` of them, or as many as the trace names."""
        away = self.newcomers if server_round < self.systems.join_round else frozenset()
        there = [client for client in sorted(clients) if client not in away]
        rules = {"uniform": self.uniform, "by_size": self.by_size, "cyclic": self.cyclic, "trace": self.traced}
        return sorted(rules[self.systems.participation](there, number, server_round))

    def uniform(self, there: Sequence[int], number: int, server_round: int) -> list[int]:
        """Drawn without replacement, all alike."""
        return (self.seed / "round" / server_round / "cohort").numpy().choice(there, number, replace=False).tolist()

    def by_size(self, there: Sequence[int], number: int, server_round: int) -> list[int]:
        """Drawn one after the other without replacement, each time with chances in proportion to the examples of who is left."""
        sizes = np.array([self.num_examples[client] for client in there], dtype=float)
        rng = (self.seed / "systems" / "round" / server_round / "cohort").numpy()
        return rng.choice(there, number, replace=False, p=sizes / sizes.sum()).tolist()

    def cyclic(self, there: Sequence[int], number: int, server_round: int) -> list[int]:
        """The next ones in an order drawn once for all; where newcomers join, it begins anew."""
        everyone, known = (self.seed / "systems" / "order").numpy().permutation(len(self.shapes)).tolist(), set(there)
        order = [client for client in everyone if client in known]
        joined = self.newcomers and server_round >= self.systems.join_round
        done = (server_round - (self.systems.join_round if joined else 1)) * number
        return [order[(done + place) % len(order)] for place in range(number)]

    def traced(self, there: Sequence[int], number: int, server_round: int) -> list[int]:
        """As the trace says, but for newcomers who have not joined."""
        return sorted(set(self.trace[(server_round - 1) % len(self.trace)]).intersection(there))

    # ------------------------------------------------------------------------------------------- who fails to
    def draws(self, server_round: int, client: int, purpose: str) -> np.random.Generator:
        """What is random about a client in a round."""
        return (self.seed / "systems" / "round" / server_round / "client" / client / purpose).numpy()

    def drops_out(self, client: int, server_round: int) -> bool:
        """Whether a client that is chosen does not answer."""
        return self.systems.dropout > 0 and self.draws(server_round, client, "dropout").random() < self.systems.dropout

    def steps(self, client: int, server_round: int) -> int:
        """The local steps that a client does: all, or, of a straggler, a share, to the nearest whole number."""
        whole = self.shapes[client][1]
        if self.systems.stragglers == 0:
            return whole
        rng = self.draws(server_round, client, "steps")
        straggles, share = rng.random() < self.systems.stragglers, rng.uniform(self.systems.straggler_steps, 1)
        return max(1, round(share * whole)) if straggles else whole

    # ------------------------------------------------------------------------------------------- how long it takes
    @cached_property
    def speeds(self) -> list[float]:
        """Training speed of each client, in examples per second."""
        return self.lognormal("speed", self.systems.examples_per_second, self.systems.speed_sigma)

    @cached_property
    def bandwidths(self) -> list[float]:
        """Bandwidth of each client, in bytes per second."""
        return self.lognormal("bandwidth", self.systems.bytes_per_second, self.systems.bandwidth_sigma)

    def lognormal(self, purpose: str, median: float, sigma: float) -> list[float]:
        """``median * exp(sigma * normal)`` for every client."""
        return (median * np.exp(sigma * (self.seed / "systems" / purpose).numpy().standard_normal(len(self.shapes)))).tolist()

    def seconds(self, client: int, server_round: int, received: int, sent: int) -> float:
        """A client's time in a round in which it receives and sends so many bytes; steps beside its local ones do not count."""
        examples = self.shapes[client][0] * self.steps(client, server_round)
        bandwidth = self.bandwidths[client]
        return received / bandwidth + examples / self.speeds[client] + sent / bandwidth

    def passed(self, server_round: int, num_chosen: int, traffic: Mapping[int, tuple[int, int]]) -> RoundTiming:
        """A round as the clock saw it: until the last answer that was waited for, or until the deadline where one is missing then.

        Without a deadline it is known at once who will not answer, and costs nothing. Neither does the server's computing, nor evaluation.

        Args:
            server_round: 1, 2, ...
            num_chosen: of how many clients an answer was wanted.
            traffic: bytes received and sent by each client that answers.
        """
        times = {client: self.seconds(client, server_round, *numbers) for client, numbers in traffic.items()}
        deadline = self.systems.deadline
        late = frozenset(client for client, seconds in times.items() if deadline is not None and seconds > deadline)
        if deadline is not None and (late or len(times) < num_chosen):
            return RoundTiming(float(deadline), late)
        return RoundTiming(max(times.values(), default=0.0), late)


HOMOGENEOUS = Systems(
    participation="uniform", trace=None, dropout=0.0, stragglers=0.0, straggler_steps=0.2, deadline=None, examples_per_second=1000.0,
    speed_sigma=0.0, bytes_per_second=1.0e6, bandwidth_sigma=0.0, newcomers=0, join_round=1,
)  # fmt: skip
"""What ``conf/systems/default.yaml`` says: everybody is there, alike, and on time."""


def make_devices(
    systems: Systems, seed: Seed, shapes: Sequence[tuple[int, int]], num_examples: Sequence[int], clients_per_round: int, rounds: int
) -> Devices:
    """The fleet of a run.

    Raises:
        ConfigError: the rules do not suit the run, or the trace is not one of its clients.
    """
    require(systems.join_round <= rounds, "join_round", f"must be at most rounds ({rounds})", systems.join_round)
    traced, population = systems.trace is not None, len(shapes)
    most = population - (1 if traced else clients_per_round)
    who = "one client" if traced else f"clients_per_round ({clients_per_round})"
    require(systems.newcomers <= most, "newcomers", f"must leave {who} of {population}, hence be at most {most}", systems.newcomers)
    trace = read_trace(systems.trace, population) if traced else ()
    return Devices(systems, seed, shapes, num_examples, trace)


def read_trace(path: str, num_clients: int) -> list[list[int]]:
    """The clients of rounds 1, 2, ... in a CSV file with the columns ``round`` and ``client``, ascending.

    Raises:
        ConfigError: it cannot be read, or says something else.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, columns = list(table), set(table.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"trace must be a CSV file that can be read, got {path!r}: {error}") from error
    require({"round", "client"} <= columns and rows, "trace", "must have the columns round and client, and a row for each client", path)
    rounds: dict[int, set[int]] = {}
    for line, row in enumerate(rows, start=2):
        where = f"{path}, row {line}: round {row['round']}, client {row['client']}"
        numbers = [str(row[name]).strip() for name in ("round", "client")]
        require(all(number.isdecimal() for number in numbers), "trace", "must hold whole numbers", where)
        server_round, client = map(int, numbers)
        known = f"must name clients in 0..{num_clients - 1} (num_clients={num_clients}), each once a round"
        require(client < num_clients and client not in rounds.setdefault(server_round, set()), "trace", known, where)
        rounds[server_round].add(client)
    for number, server_round in enumerate(sorted(rounds), start=1):
        rule = "must name a client or more in each of the rounds 1, 2, ..., its last"
        require(server_round == number, "trace", rule, f"{path}, where round {server_round} follows {number - 1}")
    return [sorted(clients) for _, clients in sorted(rounds.items())]
