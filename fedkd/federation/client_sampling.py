"""Which clients train in a round: uniform, proportional, and cyclic sampling, a trace from a file, and new clients that join later."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedkd.errors import ConfigError, require
from fedkd.seed import Seed

RULES = ("uniform", "proportional", "cyclic", "trace")
"""The rules by which a round's clients are sampled."""


@dataclass(frozen=True)
class ClientSampler:
    """Samples the cohort of each round. The cohort depends on seed and round alone. Clients without training examples are never sampled.

    Args:
        rule: one of :data:`RULES`.
        seed: seed of the run.
        num_examples: number of training examples of each client [K].
        num_new_clients: number of clients that do not take part before round ``new_clients_join_round``, >= 0. They are drawn once.
        new_clients_join_round: the first round of the new clients, >= 1.
        trace: the clients of each round of the trace, for the rule ``trace``.
    """

    rule: str
    seed: Seed
    num_examples: Sequence[int]
    num_new_clients: int = 0
    new_clients_join_round: int = 1
    trace: Sequence[Sequence[int]] = ()

    @cached_property
    def new_clients(self) -> frozenset[int]:
        """The clients that do not take part before ``new_clients_join_round``."""
        rng = (self.seed / "systems" / "newcomers").numpy()
        return frozenset(rng.choice(self.trainable, self.num_new_clients, replace=False).tolist())

    @cached_property
    def trainable(self) -> list[int]:
        """The clients that have training examples, ascending."""
        return [client for client, number in enumerate(self.num_examples) if number > 0]

    def sample(self, clients: Iterable[int], number: int, server_round: int) -> list[int]:
        """The cohort of a round in ascending order: ``number`` of ``clients``, or the clients that the trace names."""
        absent = self.new_clients if server_round < self.new_clients_join_round else frozenset()
        available = [client for client in sorted(clients) if client not in absent and self.num_examples[client] > 0]
        rules = {"uniform": self.uniform, "proportional": self.proportional, "cyclic": self.cyclic, "trace": self.from_trace}
        return sorted(rules[self.rule](available, number, server_round))

    def uniform(self, available: Sequence[int], number: int, server_round: int) -> list[int]:
        """Drawn without replacement, each client with the same probability."""
        return (self.seed / "round" / server_round / "cohort").numpy().choice(available, number, replace=False).tolist()

    def proportional(self, available: Sequence[int], number: int, server_round: int) -> list[int]:
        """Drawn one after the other without replacement, with probabilities proportional to the examples of the remaining clients.

        A large client therefore takes part less often than in proportion to its examples.
        """
        sizes = np.array([self.num_examples[client] for client in available], dtype=float)
        rng = (self.seed / "systems" / "round" / server_round / "cohort").numpy()
        return rng.choice(available, number, replace=False, p=sizes / sizes.sum()).tolist()

    def cyclic(self, available: Sequence[int], number: int, server_round: int) -> list[int]:
        """The next clients of an order that is drawn once. The order starts again when new clients join."""
        permutation = (self.seed / "systems" / "order").numpy().permutation(len(self.num_examples)).tolist()
        candidates = set(available)
        order = [client for client in permutation if client in candidates]
        joined = self.new_clients and server_round >= self.new_clients_join_round
        start = (server_round - (self.new_clients_join_round if joined else 1)) * number
        return [order[(start + place) % len(order)] for place in range(number)]

    def from_trace(self, available: Sequence[int], number: int, server_round: int) -> list[int]:
        """The clients that the trace names, without new clients that have not joined."""
        return sorted(set(self.trace[(server_round - 1) % len(self.trace)]).intersection(available))


def read_trace(path: str, num_clients: int) -> list[list[int]]:
    """The clients of rounds 1, 2, ... from a CSV file with the columns ``round`` and ``client``, ascending.

    Raises:
        ConfigError: the file cannot be read, or does not name at least one valid client for every round.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, skipinitialspace=True)
            rows, columns = list(table), set(table.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"trace must be a CSV file that can be read, got {path!r}: {error}") from error
    rule = "must have the columns round and client, separated by a comma, and a row for each client"
    require({"round", "client"} <= columns and bool(rows), "trace", rule, f"{path} with the header {', '.join(map(repr, columns))}")
    rounds: dict[int, set[int]] = {}
    for line, row in enumerate(rows, start=2):
        where = f"{path}, row {line}: round {row['round']}, client {row['client']}"
        numbers = [str(row[name]).strip() for name in ("round", "client")]
        require(all(number.isdecimal() for number in numbers), "trace", "must hold whole numbers", where)
        server_round, client = map(int, numbers)
        rule = f"must name clients in 0..{num_clients - 1} (num_clients={num_clients}), each once per round"
        require(client < num_clients and client not in rounds.setdefault(server_round, set()), "trace", rule, where)
        rounds[server_round].add(client)
    for number, server_round in enumerate(sorted(rounds), start=1):
        rule = "must name at least one client in each of the rounds 1, 2, ... up to its last round"
        require(server_round == number, "trace", rule, f"{path}, where round {server_round} follows {number - 1}")
    return [sorted(clients) for _, clients in sorted(rounds.items())]
