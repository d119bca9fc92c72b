"""Model heterogeneity: clients have different networks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedkd.errors import require
from fedkd.models.base import Classifier
from fedkd.models.construction import make_classifier
from fedkd.models.pooled_embedding import PooledEmbedding
from fedkd.types import Task


@dataclass(frozen=True, kw_only=True)
class HeterogeneousModels:
    """Several networks, one of which each client has. The server has the first one, if it has a network at all.

    The strategy determines what such clients can share: heads and embeddings where the embedding sizes are equal, or logits.

    Args:
        networks: the networks by name, each ``task -> Classifier``.
        assignment: the network of a client. ``in_turn``: client k has network k modulo their number; ``proportions``: each network has a
            fixed number of randomly drawn clients; ``random``: each client draws a network with probability ``proportions``;
            ``listed``: ``client_models`` names it.
        proportions: one number > 0 per network, in any unit; null: equal.
        client_models: one name per client where ``assignment`` is ``listed``; otherwise null.
        embedding_size: size to which the embedding of every network is averaged, see
            :class:`~fedkd.models.pooled_embedding.PooledEmbedding`; null: each network has its own.

    Raises:
        ConfigError: a value is out of range, or a name is unknown.
    """

    networks: Mapping[str, Callable[..., Classifier]]
    assignment: Literal["in_turn", "proportions", "random", "listed"]
    proportions: Sequence[float] | None
    client_models: Sequence[str] | None
    embedding_size: int | None

    def __post_init__(self) -> None:
        known = ("in_turn", "proportions", "random", "listed")
        require(len(self.networks) > 0, "networks", "must hold one network or more", dict(self.networks))
        require(self.assignment in known, "assignment", f"must be one of {', '.join(known)}", self.assignment)
        valid = self.proportions is None or (len(self.proportions) == len(self.networks) and all(p > 0 for p in self.proportions))
        rule = f"must hold one number > 0 for each of the {len(self.networks)} networks, or be null"
        require(valid, "proportions", rule, self.proportions)
        rule = "must name a network for each client where assignment=listed, and be null elsewhere"
        require((self.client_models is not None) == (self.assignment == "listed"), "client_models", rule, self.client_models)
        for name in self.client_models or ():
            rule = f"must name networks ({', '.join(self.networks)})"
            require(name in self.networks, "client_models", rule, name)
        size, rule = self.embedding_size, "must be > 0, or null for the networks' own sizes"
        require(size is None or size > 0, "embedding_size", rule, size)

    def make(self, name: str, task: Task) -> Classifier:
        """A network by its name.

        Raises:
            ConfigError: the network does not fit the task.
        """
        network = make_classifier(self.networks[name], task)
        return network if self.embedding_size is None else PooledEmbedding(network, self.embedding_size)

    def assign(self, num_clients: int, rng: np.random.Generator) -> list[str]:
        """The name of each client's network.

        Args:
            num_clients: number of clients, K.
            rng: draws the assignment where it is random.

        Raises:
            ConfigError: ``client_models`` does not name K networks.
        """
        names = list(self.networks)
        proportions = np.ones(len(names)) if self.proportions is None else np.array(self.proportions, float)
        if self.client_models is not None:
            rule = f"must name one network for each of {num_clients} clients"
            require(len(self.client_models) == num_clients, "client_models", rule, self.client_models)
            return list(self.client_models)
        if self.assignment == "random":
            return [names[i] for i in rng.choice(len(names), num_clients, p=proportions / proportions.sum())]
        if self.assignment == "proportions":
            ends = np.round(np.cumsum(proportions) / proportions.sum() * num_clients).astype(int)
            networks = np.searchsorted(ends, np.arange(num_clients), side="right")
            return [names[i] for i in rng.permutation(networks)]
        return [names[client % len(names)] for client in range(num_clients)]
