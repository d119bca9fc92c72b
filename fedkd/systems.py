"""Who takes part, who fails to, and how long it would take: participation, dropout, stragglers, newcomers, a simulated clock."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from fedkd.check import require


@dataclass(frozen=True, kw_only=True)
class Systems:
    """Unlike devices on a simulated clock, which never reads this machine's own.

    Args:
        participation: a round's clients are drawn ``uniform``ly, or with chances in proportion to their examples (``by_size``), or taken in
            turn (``cyclic``), or read from a file (``trace``).
        trace: for ``trace``: a CSV file with the columns ``round`` and ``client``; its rounds are repeated from the beginning when they are over.
        dropout: 0..1 (1 excluded), chance of a chosen client not to answer.
        stragglers: 0..1, chance of a chosen client to do but a share of its steps,
        straggler_steps: drawn uniformly from ``straggler_steps..1``, in (0, 1]; at least one step.
        deadline: simulated seconds after which the server goes on without who has not answered; null: it waits for all.
        examples_per_second: > 0, training speed of the median client.
        speed_sigma: >= 0; a client's speed is the median times exp(sigma * normal), drawn once.
        bytes_per_second: > 0, bandwidth of the median client, in each direction.
        bandwidth_sigma: >= 0, likewise.
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
            require(0 <= value and isfinite(value), name, "must be >= 0 (0: all alike) and finite", value)
        require(self.newcomers >= 0, "newcomers", "must be >= 0", self.newcomers)
        require(self.join_round >= 1, "join_round", "must be >= 1", self.join_round)
