"""The server in one round. It has access to public and held-out data, but to no client's training data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from fedkd.models.base import Classifier
from fedkd.seed import Seed
from fedkd.types import Examples, State, Task


@dataclass(frozen=True)
class Server:
    """The server in one round.

    Args:
        task: the classification task.
        seed: seed of this round. Divide it by purpose: ``server.seed / "noise"``.
        model: the network. Its parameters are overwritten before every use.
        initial: all parameters and buffers of the network before the first round.
        num_clients: number of clients N.
        batch_size: batch size of the server's evaluations.
        dtype: type of weights.
        public_data: public examples without labels, for strategies with ``needs_public_data``. None if the run has none.
        validation: labeled held-out training examples for early stopping. None if the run has none.
        client_states: the states of all clients by number, for evaluation only. A simulator can read them, a real server cannot. They are
            empty in ``aggregate`` and ``server_training``.
        client_networks: the network of each client [N], one object for all clients with the same network. Empty: that of the server.
    """

    task: Task
    seed: Seed
    model: Classifier
    initial: dict[str, torch.Tensor]
    num_clients: int
    batch_size: int
    dtype: torch.dtype
    public_data: Examples | None = None
    validation: Examples | None = None
    client_states: Mapping[int, State] = field(default_factory=dict)
    client_networks: Sequence[Classifier] = ()

    def network_of(self, client: int) -> Classifier:
        """The network of a client. It is ``model`` itself where client and server have the same one."""
        return self.client_networks[client] if self.client_networks else self.model

    @property
    def device(self) -> torch.device:
        """The device on which the server trains."""
        return next(self.model.parameters()).device
