"""What code may see, by where it runs: a client sees its own data, the server sees no client's."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fedkd.models.base import Classifier
from fedkd.seed import Seed
from fedkd.types import Examples, State, Task


@dataclass(frozen=True)
class Server:
    """The server in one round.

    Args:
        task: what is learnt.
        seed: this round's; split it by purpose.
        model: the network; its own values are a workspace.
        initial: every parameter and buffer as the run begins.
        num_clients: how many clients there are.
        batch_size: of the server's evaluations.
        dtype: of weights.
        public_data: unlabelled public examples, for strategies that declare that they need them.
        validation: held-out training examples, for early stopping.
        memories: the clients' memories, in evaluations alone: a simulator's privilege. Empty in ``update``.
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
    memories: Mapping[int, State] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the server trains."""
        return next(self.model.parameters()).device
