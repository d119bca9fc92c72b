"""Server optimizers: the change of a round is a gradient for an optimizer of the server. Every strategy that shares models can use them.

D is the change of the shared parameters in a round, from the broadcast w to the model that the strategy's aggregation gives. BatchNorm
statistics and integer buffers take the aggregated values.

Source:
    Hsu, Qi, Brown: Measuring the effects of non-identical data distribution for federated visual classification, 2019 (momentum).
    Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan: Adaptive federated optimization, ICLR 2021 (Adam, Yogi, Adagrad).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.types import Tensors


class ServerOptimizer(ABC):
    """The base of all server optimizers."""

    @abstractmethod
    def __call__(self, before: Tensors, after: Tensors, moments: Tensors, server_round: int) -> tuple[Tensors, Tensors]:
        """The parameters after the server's step, and its new moments.

        Args:
            before: the shared parameters that were broadcast, by name.
            after: the aggregated parameters, with the same names.
            moments: what the last call returned; empty in the first round.
            server_round: 1, 2, ...
        """


@dataclass(frozen=True, kw_only=True)
class NoServerOptimizer(ServerOptimizer):
    """The aggregated parameters are the new ones."""

    def __call__(self, before: Tensors, after: Tensors, moments: Tensors, server_round: int) -> tuple[Tensors, Tensors]:
        """See :meth:`ServerOptimizer.__call__`."""
        return after, {}


@dataclass(frozen=True, kw_only=True)
class ServerMomentum(ServerOptimizer):
    """FedAvgM: ``m <- momentum m - D``, ``w <- w - lr m``. With ``nesterov``: ``w <- w + lr (D - momentum m)``.

    lr = 1 and momentum = 0 are the strategy itself, bit for bit.

    Args:
        lr: the server's learning rate, > 0.
        momentum: in [0, 1).
        nesterov: look ahead along the new momentum, as in the public code of FL-bench.

    Raises:
        ConfigError: a value is out of its range.
    """

    lr: float
    momentum: float
    nesterov: bool

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "must be > 0 (1 takes the mean itself)", self.lr)
        require(0 <= self.momentum < 1, "momentum", "must be in [0, 1) (0 switches it off)", self.momentum)

    def __call__(self, before: Tensors, after: Tensors, moments: Tensors, server_round: int) -> tuple[Tensors, Tensors]:
        """See :meth:`ServerOptimizer.__call__`."""
        if self.momentum == 0 and self.lr == 1:
            return after, {}
        stepped, kept = Tensors(), Tensors()
        for name, w in before.items():
            change = after[name] - w
            m = self.momentum * moments.get(name, torch.zeros_like(w)) - change
            stepped[name] = w + self.lr * (change - self.momentum * m) if self.nesterov else w - self.lr * m
            kept[name] = m
        return stepped, kept


@dataclass(frozen=True, kw_only=True)
class AdaptiveServerOptimizer(ServerOptimizer):
    """``m <- beta1 m + (1 - beta1) D``, v as in the subclass, ``w <- w + lr m / (sqrt(v) + tau)``. m and v begin at 0.

    Args:
        lr: the server's learning rate, > 0.
        beta1: decay of the first moment, in [0, 1).
        tau: smallest denominator, > 0. It bounds how far a step can go.

    Raises:
        ConfigError: a value is out of its range.
    """

    lr: float
    beta1: float
    tau: float

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "must be > 0", self.lr)
        require(0 <= self.beta1 < 1, "beta1", "must be in [0, 1)", self.beta1)
        require(self.tau > 0, "tau", "must be > 0 (the smallest denominator)", self.tau)

    @abstractmethod
    def second_moment(self, v: Tensor, change: Tensor) -> Tensor:
        """The new second moment, of the same shape."""

    def corrected_lr(self, server_round: int) -> float:
        """The learning rate of a round."""
        return self.lr

    def __call__(self, before: Tensors, after: Tensors, moments: Tensors, server_round: int) -> tuple[Tensors, Tensors]:
        """See :meth:`ServerOptimizer.__call__`."""
        stepped, kept, lr = Tensors(), Tensors(), self.corrected_lr(server_round)
        for name, w in before.items():
            change, zeros = after[name] - w, torch.zeros_like(w)
            m = self.beta1 * moments.get(f"m.{name}", zeros) + (1 - self.beta1) * change
            v = self.second_moment(moments.get(f"v.{name}", zeros), change)
            stepped[name] = w + lr * m / (v.sqrt() + self.tau)
            kept |= {f"m.{name}": m, f"v.{name}": v}
        return stepped, kept


@dataclass(frozen=True, kw_only=True)
class ServerAdam(AdaptiveServerOptimizer):
    """FedAdam: ``v <- beta2 v + (1 - beta2) D^2``.

    Args:
        beta2: decay of the second moment, in [0, 1).
        bias_correction: ``none``, as in the paper. ``flower``: Flower's FedAdam multiplies the learning rate in round r by
            ``sqrt(1 - beta2^(r + 1)) / (1 - beta1^(r + 1))``.
    """

    beta2: float
    bias_correction: Literal["none", "flower"]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.beta2 < 1, "beta2", "must be in [0, 1)", self.beta2)
        require(self.bias_correction in ("none", "flower"), "bias_correction", "must be none or flower", self.bias_correction)

    def second_moment(self, v: Tensor, change: Tensor) -> Tensor:
        """See the class."""
        return self.beta2 * v + (1 - self.beta2) * change.square()

    def corrected_lr(self, server_round: int) -> float:
        """The learning rate of a round, with Flower's correction where it is asked for."""
        if self.bias_correction == "none":
            return self.lr
        return self.lr * (1 - self.beta2 ** (server_round + 1)) ** 0.5 / (1 - self.beta1 ** (server_round + 1))


@dataclass(frozen=True, kw_only=True)
class ServerYogi(AdaptiveServerOptimizer):
    """FedYogi: ``v <- v - (1 - beta2) D^2 sign(v - D^2)``.

    Args:
        beta2: decay of the second moment, in [0, 1).
    """

    beta2: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.beta2 < 1, "beta2", "must be in [0, 1)", self.beta2)

    def second_moment(self, v: Tensor, change: Tensor) -> Tensor:
        """See the class."""
        square = change.square()
        return v - (1 - self.beta2) * square * torch.sign(v - square)


@dataclass(frozen=True, kw_only=True)
class ServerAdagrad(AdaptiveServerOptimizer):
    """FedAdagrad: ``v <- v + D^2``."""

    def second_moment(self, v: Tensor, change: Tensor) -> Tensor:
        """See the class."""
        return v + change.square()
