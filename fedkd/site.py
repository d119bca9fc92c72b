"""What code may see, by where it runs: a client sees its own data, the server sees no client's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from fedkd.batch import Batches
from fedkd.models.classifier import Classifier
from fedkd.optimize import OptimizerFactory
from fedkd.seed import Seed
from fedkd.train import Execution
from fedkd.types import Examples, State, Task


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
        public: unlabelled public examples, the same for all clients and the server, for strategies that declare that they need them.
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
    public: Examples | None = None

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
        public: unlabelled public examples, for strategies that declare that they need them.
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
    public: Examples | None = None
    validation: Examples | None = None
    memories: Mapping[int, State] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the server trains."""
        return next(self.model.parameters()).device


def statistics(module: nn.Module) -> frozenset[str]:
    """Names of the BatchNorm statistics of ``module``: running means, variances and batch counts."""
    norms = [(name, child) for name, child in module.named_modules() if isinstance(child, nn.modules.batchnorm._NormBase)]
    return frozenset(f"{name}.{buffer}" if name else buffer for name, child in norms for buffer, _ in child.named_buffers(recurse=False))
