"""Clients of unlike networks: which client has which."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedkd.errors import require
from fedkd.models.base import Classifier


@dataclass(frozen=True, kw_only=True)
class HeterogeneousModels:
    """Several networks, of which every client has one. The first is the server's, where it has a network at all.

    What such clients can share is up to the strategy: heads and embeddings, where embeddings are of one size, or logits.

    Args:
        networks: by name, ``task -> network``.
        assignment: ``in_turn``: client k has network k modulo their number; ``proportions``: so many of each, drawn; ``random``: each client draws
            one, with ``proportions`` as chances; ``listed``: by name in ``client_models``.
        proportions: > 0, one a network, in any unit; null: all alike.
        client_models: for ``listed``, one name a client; null elsewhere.
    """

    networks: Mapping[str, Callable[..., Classifier]]
    assignment: Literal["in_turn", "proportions", "random", "listed"]
    proportions: Sequence[float] | None
    client_models: Sequence[str] | None

    def __post_init__(self) -> None:
        known = ("in_turn", "proportions", "random", "listed")
        require(len(self.networks) > 0, "networks", "must hold one network or more", dict(self.networks))
        require(self.assignment in known, "assignment", f"must be one of {', '.join(known)}", self.assignment)
        wanted = self.proportions is None or (len(self.proportions) == len(self.networks) and all(share > 0 for share in self.proportions))
        require(
            wanted, "proportions", f"must hold one number > 0 for each of the {len(self.networks)} networks, or be null", self.proportions
        )
        listed = "must name a network for each client where assignment=listed, and be null elsewhere"
        require((self.client_models is not None) == (self.assignment == "listed"), "client_models", listed, self.client_models)
        for name in self.client_models or ():
            require(name in self.networks, "client_models", f"must name networks ({', '.join(self.networks)})", name)

    def assign(self, num_clients: int, rng: np.random.Generator) -> list[str]:
        """Each client's network.

        Raises:
            ConfigError: ``client_models`` names another number of clients.
        """
        names = list(self.networks)
        proportions = np.ones(len(names)) if self.proportions is None else np.array(self.proportions, float)
        if self.assignment == "listed":
            require(
                len(self.client_models) == num_clients,
                "client_models",
                f"must name one network for each of {num_clients} clients",
                self.client_models,
            )
            return list(self.client_models)
        if self.assignment == "random":
            return [names[place] for place in rng.choice(len(names), num_clients, p=proportions / proportions.sum())]
        if self.assignment == "proportions":
            ends = np.round(np.cumsum(proportions) / proportions.sum() * num_clients).astype(int)
            places = np.searchsorted(ends, np.arange(num_clients), side="right")
            return [names[place] for place in rng.permutation(places)]
        return [names[client % len(names)] for client in range(num_clients)]
