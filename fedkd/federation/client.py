"""What code may see, by where it runs: a client sees its own data, the server sees no client's."""

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
        id: 0..N-1.
        task: what is learnt.
        seed: this round's and this client's; split it by purpose (``client.seed / "noise"``).
        model: the network with its initial weights in ``initial``; its own values are a workspace.
        initial: every parameter and buffer as the run begins.
        architecture: name of the network; clients of one name have the same keys and shapes.
        data: its examples (training, or test in an evaluation).
        num_steps: local optimizer steps.
        batch_size: as configured; a client with fewer examples takes batches of all it has.
        optimizer: ``(parameters, lr=...) -> optimizer``.
        lr: learning rate of this round, after the schedule.
        momentum: of the optimizer, 0 where it has none.
        dtype: of images, draws and weights.
        execution: how its steps are computed.
        public_data: unlabelled public examples, the same for all clients and the server, for strategies that declare that they need them.
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
    public_data: Examples | None = None

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return next(self.model.parameters()).device

    def stepper(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimizer at this round's learning rate."""
        return self.optimizer(parameters, lr=self.lr)

    def batches(self) -> Batches:
        """This round's steps: epochs in fresh orders, each without its ragged last batch, cut after ``num_steps``."""
        size = min(self.batch_size, len(self.data))
        per_epoch = len(self.data) // size
        random = (self.seed / "order").torch()
        epochs = [
            torch.randperm(len(self.data), generator=random)[: per_epoch * size].view(per_epoch, size)
            for _ in range(-(-self.num_steps // per_epoch))
        ]
        index = torch.cat(epochs)[: self.num_steps].to(self.device)
        return Batches(self.data.y[index], index, self.data, self.dtype)


def batchnorm_statistics(module: nn.Module) -> frozenset[str]:
    """Names of the BatchNorm statistics of ``module``: running means, variances and batch counts."""
    norms = [(name, child) for name, child in module.named_modules() if isinstance(child, nn.modules.batchnorm._NormBase)]
    return frozenset(f"{name}.{buffer}" if name else buffer for name, child in norms for buffer, _ in child.named_buffers(recurse=False))
