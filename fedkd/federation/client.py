"""One client in one round: its data, its network, and how it trains. A client has access to its own data only."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from fedkd.models.base import Classifier
from fedkd.seed import Seed
from fedkd.training.batch import Batches
from fedkd.training.loop import Execution
from fedkd.training.optimizers import OptimizerFactory
from fedkd.types import Examples, Task


@dataclass(frozen=True)
class Client:
    """One client in one round.

    Args:
        id: number of the client, in 0..N-1.
        task: the classification task.
        seed: seed of this client and round. Divide it by purpose: ``client.seed / "noise"``.
        model: the network. Its parameters are overwritten before every use.
        initial: all parameters and buffers of the network before the first round.
        architecture: name of the network. Clients with equal names have equal keys and shapes.
        data: the client's training examples, or its test examples in an evaluation.
        train_data: its training examples in an evaluation, for strategies that personalize a model before it is tested.
        num_steps: number of local optimizer steps.
        batch_size: the configured batch size. A client with fewer examples puts all of them into each batch.
        optimizer: ``(parameters, lr=...) -> optimizer``.
        lr: learning rate of this round, with the schedule applied.
        momentum: momentum of the optimizer, 0 if it has none.
        dtype: type of images, draws and weights.
        execution: how local steps are computed.
        num_clients: number of clients N of the federation.
        num_total_examples: number of training examples of all clients.
        public_data: public examples without labels, the same for all clients and the server. None if the run has none.
        has_server_network: whether its network is that of the server.
        drop_last: leave out the last batch of each pass over the data if it is incomplete.
    """

    id: int
    task: Task
    seed: Seed
    model: Classifier
    initial: dict[str, torch.Tensor]
    architecture: str
    data: Examples
    num_steps: int
    batch_size: int
    optimizer: OptimizerFactory
    lr: float
    momentum: float
    dtype: torch.dtype
    execution: Execution = field(default_factory=Execution)
    num_clients: int = 1
    num_total_examples: int = 0
    public_data: Examples | None = None
    train_data: Examples | None = None
    has_server_network: bool = True
    drop_last: bool = True

    @property
    def device(self) -> torch.device:
        """The device on which the client trains."""
        return next(self.model.parameters()).device

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A new optimizer with this round's learning rate."""
        return self.optimizer(parameters, lr=self.lr)

    def batches(self) -> Batches:
        """The batches of this round's local steps [S, B].

        Each epoch has a new random order. Its last batch is smaller, or left out with ``drop_last``, if it is incomplete. The last epoch
        ends after ``num_steps`` steps.
        """
        size = min(self.batch_size, len(self.data))
        rest = 0 if self.drop_last else len(self.data) % size
        steps_per_epoch = len(self.data) // size + (rest > 0)
        num_epochs, generator = -(-self.num_steps // steps_per_epoch), (self.seed / "order").torch()
        orders = [torch.randperm(len(self.data), generator=generator) for _ in range(num_epochs)]
        if rest:  # the last row is filled, so that all rows have one length
            orders = [torch.cat([order, order[: size - rest]]) for order in orders]
        epochs = [order[: steps_per_epoch * size].view(steps_per_epoch, size) for order in orders]
        index = torch.cat(epochs)[: self.num_steps].to(self.device)
        sizes = ([size] * (steps_per_epoch - 1) + [rest]) * num_epochs
        return Batches(self.data.y[index], index, self.data, self.dtype, sizes=tuple(sizes[: self.num_steps]) if rest else None)


def batchnorm_names(module: nn.Module) -> frozenset[str]:
    """The names of all parameters and buffers of the BatchNorm layers of ``module``."""
    norms = [(name, child) for name, child in module.named_modules() if isinstance(child, nn.modules.batchnorm._NormBase)]
    return frozenset(f"{name}.{key}" if name else key for name, child in norms for key in child.state_dict())


def batchnorm_statistic_names(module: nn.Module) -> frozenset[str]:
    """The names of all BatchNorm buffers of ``module``: running means, running variances, and counts of batches."""
    norms = [(name, child) for name, child in module.named_modules() if isinstance(child, nn.modules.batchnorm._NormBase)]
    return frozenset(f"{name}.{buffer}" if name else buffer for name, child in norms for buffer, _ in child.named_buffers(recurse=False))
