"""One local training of a client: its batches, its loss, and what is trained with which optimizer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.training.batch import Batches
from fedkd.training.functional_model import trained_names
from fedkd.training.loop import LossFunction
from fedkd.training.optimizers import OptimizerFactory


@dataclass(frozen=True)
class Phase:
    """One local training of a client.

    Args:
        batches: its steps.
        loss: as :meth:`fedkd.strategy.Strategy.loss`.
        trained: which parameters are trained, by name. The others are constants, without weight decay or momentum. None: all.
        optimizer: ``(parameters, lr=...) -> optimizer``; None: that of the client.
        lr_factor: factor of the client's learning rate, > 0.
    """

    batches: Batches
    loss: LossFunction
    trained: Callable[[str], bool] | None = None
    optimizer: OptimizerFactory | None = None
    lr_factor: float = 1.0

    def names(self, module: nn.Module) -> list[str]:
        """The names of the parameters that are trained.

        Raises:
            ConfigError: there are none.
        """
        names = [name for name in trained_names(module) if self.trained is None or self.trained(name)]
        require(bool(names), "model", "must have parameters that the strategy trains in each local phase", type(module).__name__)
        return names

    def make_optimizer(self, client: Client) -> OptimizerFactory:
        """``parameters -> optimizer``, with the learning rate of the client in this phase."""
        if self.optimizer is None and self.lr_factor == 1:
            return client.make_optimizer
        return partial(self.optimizer or client.optimizer, lr=client.lr * self.lr_factor)


def is_head(name: str) -> bool:
    """Whether a parameter belongs to the head."""
    return name.startswith("head.")


def is_body(name: str) -> bool:
    """Whether a parameter belongs to a layer before the head."""
    return not is_head(name)
