"""System heterogeneity on a simulated clock: dropout, stragglers, speeds, bandwidths, and a deadline.

The simulated clock is computed from examples and bytes. It does not depend on the speed of the machine that runs the simulation.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Literal

import numpy as np

from fedkd.errors import require
from fedkd.federation.client_sampling import RULES, ClientSampler, read_trace
from fedkd.seed import Seed


@dataclass(frozen=True, kw_only=True)
class Systems:
    """The rules of client sampling and system heterogeneity.

    A client's time in a round is the sum of the time to receive the broadcast, to compute the examples of its local steps, and to send its
    update. A round lasts as long as its slowest client. With a deadline, it lasts until the deadline where a client is later or missing.

    Args:
        client_sampling: ``uniform``; ``proportional`` to the clients' examples; ``cyclic``, in turn; ``trace``, from a file.
        trace: for ``trace``: a CSV file with the columns ``round`` and ``client``. Its rounds are repeated from the start when they end.
        dropout_rate: 0..1 (1 excluded), probability that a sampled client does not answer. It then receives nothing and does not train.
        straggler_rate: 0..1, probability that a sampled client does only a fraction of its local steps.
        straggler_min_fraction: (0, 1]; the fraction is drawn uniformly from ``straggler_min_fraction..1``. At least one step is done.
        deadline: simulated seconds after which the server continues without the missing clients; null: it waits for all. A late update is
            discarded: it is not counted as sent, and the client keeps its state of the round before.
        examples_per_second: > 0, training speed of the median client.
        speed_sigma: 0..10; a client's speed is the median times exp(sigma * normal), drawn once.
        bytes_per_second: > 0, bandwidth of the median client, in each direction.
        bandwidth_sigma: 0..10, the same for bandwidths.
        num_new_clients: >= 0, clients, drawn once, that do not take part before ``new_clients_join_round``.
        new_clients_join_round: >= 1.

    Raises:
        ConfigError: a value is out of its range.
    """

    client_sampling: Literal["uniform", "proportional", "cyclic", "trace"]
    trace: str | None
    dropout_rate: float
    straggler_rate: float
    straggler_min_fraction: float
    deadline: float | None
    examples_per_second: float
    speed_sigma: float
    bytes_per_second: float
    bandwidth_sigma: float
    num_new_clients: int
    new_clients_join_round: int

    def __post_init__(self) -> None:
        require(self.client_sampling in RULES, "client_sampling", f"must be one of {', '.join(RULES)}", self.client_sampling)
        needed = "must be a CSV file with the columns round and client where client_sampling=trace, and null elsewhere"
        require((self.trace is not None) == (self.client_sampling == "trace"), "trace", needed, self.trace)
        require(0 <= self.dropout_rate < 1, "dropout_rate", "must be a probability in 0..1, 1 excluded", self.dropout_rate)
        require(0 <= self.straggler_rate <= 1, "straggler_rate", "must be a probability in 0..1", self.straggler_rate)
        fraction = self.straggler_min_fraction
        require(0 < fraction <= 1, "straggler_min_fraction", "must be a fraction in (0, 1]", fraction)
        require(self.deadline is None or self.deadline > 0, "deadline", "must be > 0 simulated seconds, or null for none", self.deadline)
        for name in ("examples_per_second", "bytes_per_second"):
            value = getattr(self, name)
            require(0 < value and isfinite(value), name, "must be > 0 and finite", value)
        for name in ("speed_sigma", "bandwidth_sigma"):
            value = getattr(self, name)
            require(0 <= value <= 10, name, "must be in 0..10 (0: all clients are equal)", value)
        require(self.num_new_clients >= 0, "num_new_clients", "must be >= 0", self.num_new_clients)
        require(self.new_clients_join_round >= 1, "new_clients_join_round", "must be >= 1", self.new_clients_join_round)


@dataclass(frozen=True)
class RoundTiming:
    """A round on the simulated clock.

    Args:
        seconds: duration of the round in simulated seconds.
        late: the clients that missed the deadline.
    """

    seconds: float
    late: frozenset[int]


@dataclass(frozen=True)
class Devices:
    """The devices of all clients in one run. All results depend on seed, round, and client alone.

    Args:
        systems: the rules of the run.
        seed: seed of the run.
        workloads: batch size, and number of local steps in a round without stragglers, of each client [K].
        num_examples: number of training examples of each client [K].
        trace: the clients of each round of the trace. Empty without a trace.
        drop_last: an incomplete last batch of a pass is left out. If false, it is smaller.
    """

    systems: Systems
    seed: Seed
    workloads: Sequence[tuple[int, int]]
    num_examples: Sequence[int]
    trace: Sequence[Sequence[int]] = ()
    drop_last: bool = True

    @cached_property
    def sampler(self) -> ClientSampler:
        """Samples the cohort of each round."""
        rules = self.systems
        new = rules.num_new_clients, rules.new_clients_join_round
        return ClientSampler(rules.client_sampling, self.seed, self.num_examples, *new, self.trace)

    @property
    def new_clients(self) -> frozenset[int]:
        """The clients that do not take part before ``new_clients_join_round``."""
        return self.sampler.new_clients

    def sample_clients(self, clients: Iterable[int], number: int, server_round: int) -> list[int]:
        """The cohort of a round, ascending: ``number`` of ``clients``, or as many as the trace names."""
        return self.sampler.sample(clients, number, server_round)

    # ------------------------------------------------------------------------------------------- dropout and stragglers
    def generator(self, server_round: int, client: int, purpose: str) -> np.random.Generator:
        """The random generator of a client in a round, for one purpose."""
        return (self.seed / "systems" / "round" / server_round / "client" / client / purpose).numpy()

    def drops_out(self, client: int, server_round: int) -> bool:
        """Whether a sampled client does not answer."""
        rate = self.systems.dropout_rate
        return rate > 0 and self.generator(server_round, client, "dropout").random() < rate

    def local_steps(self, client: int, server_round: int) -> int:
        """The number of local steps of a client in a round. A straggler does a fraction of its steps, rounded, and at least one."""
        all_steps = self.workloads[client][1]
        if self.systems.straggler_rate == 0:
            return all_steps
        rng = self.generator(server_round, client, "steps")
        straggles, fraction = rng.random() < self.systems.straggler_rate, rng.uniform(self.systems.straggler_min_fraction, 1)
        return max(1, round(fraction * all_steps)) if straggles else all_steps

    def num_processed_examples(self, client: int, server_round: int) -> int:
        """The number of examples in the local steps of a client in a round."""
        (size, _), number, steps = self.workloads[client], self.num_examples[client], self.local_steps(client, server_round)
        if self.drop_last or size == 0:
            return size * steps
        passes, more = divmod(steps, -(-number // size))
        return passes * number + more * size

    # ------------------------------------------------------------------------------------------- the simulated clock
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
        return (median * np.exp(sigma * (self.seed / "systems" / purpose).numpy().standard_normal(len(self.workloads)))).tolist()

    def client_seconds(self, client: int, server_round: int, received: int, sent: int) -> float:
        """The simulated seconds of a client in a round in which it receives and sends so many bytes.

        The computation counts the examples of the local steps only. Other work, such as FedMD's digest, takes no simulated time.
        """
        examples = self.num_processed_examples(client, server_round)
        bandwidth = self.bandwidths[client]
        return received / bandwidth + examples / self.speeds[client] + sent / bandwidth

    def round_timing(self, server_round: int, num_sampled: int, traffic: Mapping[int, tuple[int, int]]) -> RoundTiming:
        """The duration of a round, and the clients that missed the deadline.

        A round lasts until the last update arrives, or until the deadline if an update is missing then. Without a deadline, the server
        knows at once which clients drop out and does not wait for them. The server's computation and the evaluation take no simulated time.

        Args:
            server_round: 1, 2, ...
            num_sampled: number of sampled clients.
            traffic: the bytes that each replying client receives and sends.
        """
        times = {client: self.client_seconds(client, server_round, *numbers) for client, numbers in traffic.items()}
        deadline = self.systems.deadline
        late = frozenset(client for client, seconds in times.items() if deadline is not None and seconds > deadline)
        if deadline is not None and (late or len(times) < num_sampled):
            return RoundTiming(float(deadline), late)
        return RoundTiming(max(times.values(), default=0.0), late)


HOMOGENEOUS = Systems(
    client_sampling="uniform", trace=None, dropout_rate=0.0, straggler_rate=0.0, straggler_min_fraction=0.2, deadline=None,
    examples_per_second=1000.0, speed_sigma=0.0, bytes_per_second=1.0e6, bandwidth_sigma=0.0, num_new_clients=0, new_clients_join_round=1,
)  # fmt: skip
"""The values of ``conf/systems/default.yaml``: all clients are available, equally fast, and in time."""


def make_devices(
    systems: Systems,
    seed: Seed,
    workloads: Sequence[tuple[int, int]],
    num_examples: Sequence[int],
    clients_per_round: int,
    rounds: int,
    drop_last: bool = True,
) -> Devices:
    """The devices of a run.

    Args:
        systems: the rules of the run.
        seed: seed of the run.
        workloads: batch size, and number of local steps in a round without stragglers, of each client [K].
        num_examples: number of training examples of each client [K].
        clients_per_round: number of clients in the cohort of a round.
        rounds: number of rounds.
        drop_last: an incomplete last batch of a pass is left out.

    Raises:
        ConfigError: the rules do not fit the run, or the trace names clients that do not exist.
    """
    join_round = systems.new_clients_join_round
    require(join_round <= rounds, "new_clients_join_round", f"must be at most rounds ({rounds})", join_round)
    has_trace, num_clients = systems.trace is not None, sum(number > 0 for number in num_examples)
    most = num_clients - (1 if has_trace else clients_per_round)
    rest = "one client" if has_trace else f"clients_per_round ({clients_per_round})"
    rule = f"must leave {rest} of {num_clients} clients with training examples from the first round on, so it must be at most {most}"
    require(systems.num_new_clients <= most, "num_new_clients", rule, systems.num_new_clients)
    trace = read_trace(systems.trace, len(workloads)) if systems.trace is not None else ()
    idle = sorted({client for clients in trace for client in clients if num_examples[client] == 0})
    require(not idle, "trace", "must name clients with training examples", f"client {(idle or [0])[0]} without any")
    return Devices(systems, seed, workloads, num_examples, trace, drop_last)
