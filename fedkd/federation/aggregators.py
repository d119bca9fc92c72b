"""Aggregators: the mean, and rules that bound the influence of single clients. Every strategy that shares models can use them.

An update is the change of a client's shared parameters in a round, as one vector of P entries. BatchNorm statistics and integer buffers
take their mean. All but the mean need single updates, so they do not work under secure aggregation.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.errors import require


class Aggregator(ABC):
    """The base of all aggregators."""

    @abstractmethod
    def __call__(self, updates: Tensor, weights: Tensor, last: Tensor | None) -> Tensor:
        """The change of the global model.

        Args:
            updates: one row per client [K, P].
            weights: the weights of the strategy's mean [K], which sum to one.
            last: what the last round's call returned [P]; None in the first round.

        Returns:
            The change [P].
        """

    def check_cohort(self, num_clients: int) -> None:  # noqa: B027 (most aggregators take any number)
        """Check before the first round that a round's number of clients is large enough, which by default it is.

        Raises:
            ConfigError: it is not.
        """


@dataclass(frozen=True, kw_only=True)
class Mean(Aggregator):
    """The mean with the weights of the strategy (``strategy.aggregation``)."""

    def __call__(self, updates: Tensor, weights: Tensor, last: Tensor | None) -> Tensor:
        """See :meth:`Aggregator.__call__`."""
        return weights @ updates


@dataclass(frozen=True, kw_only=True)
class Median(Aggregator):
    """The median of each entry. For an even number of clients, the mean of the two in the middle. Weights are not used.

    Source:
        Yin, Chen, Kannan, Bartlett: Byzantine-robust distributed learning: Towards optimal statistical rates, ICML 2018.
    """

    def __call__(self, updates: Tensor, weights: Tensor, last: Tensor | None) -> Tensor:
        """See :meth:`Aggregator.__call__`."""
        ordered, number = updates.sort(0).values, len(updates)
        return (ordered[(number - 1) // 2] + ordered[number // 2]) / 2


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(Aggregator):
    """The mean of each entry without its ``num_trimmed`` largest and smallest values. Weights are not used.

    Source:
        Yin, Chen, Kannan, Bartlett: Byzantine-robust distributed learning: Towards optimal statistical rates, ICML 2018.

    Args:
        num_trimmed: values that are left out at each end, >= 0. Fewer where too few clients have replied. 0 is the uniform mean.

    Raises:
        ConfigError: the number is negative.
    """

    num_trimmed: int

    def __post_init__(self) -> None:
        require(self.num_trimmed >= 0, "num_trimmed", "must be >= 0 (0 is the uniform mean)", self.num_trimmed)

    def check_cohort(self, num_clients: int) -> None:
        """See :meth:`Aggregator.check_cohort`."""
        rule = f"must leave one of the {num_clients} clients of a round, with clients_per_round > 2 * num_trimmed"
        require(2 * self.num_trimmed < num_clients, "num_trimmed", rule, self.num_trimmed)

    def __call__(self, updates: Tensor, weights: Tensor, last: Tensor | None) -> Tensor:
        """See :meth:`Aggregator.__call__`."""
        number = min(self.num_trimmed, (len(updates) - 1) // 2)
        return updates.sort(0).values[number : len(updates) - number].mean(0)


@dataclass(frozen=True, kw_only=True)
class Krum(Aggregator):
    """The weighted mean of the ``num_selected`` updates with the least scores: the sum of squared distances to the nearest others.

    The score of an update sums the K - f - 2 least distances, f = ``num_malicious``.

    Source:
        Blanchard, El Mhamdi, Guerraoui, Stainer: Machine learning with adversaries: Byzantine tolerant gradient descent, NeurIPS 2017.

    Args:
        num_malicious: number f of clients of a round that may send anything, >= 0, with 2 f + 2 < K.
        num_selected: number of updates in the mean, > 0. 1 is Krum, more are multi-Krum. All K are the mean.

    Raises:
        ConfigError: a value is out of its range.
    """

    num_malicious: int
    num_selected: int

    def __post_init__(self) -> None:
        require(self.num_malicious >= 0, "num_malicious", "must be >= 0", self.num_malicious)
        require(self.num_selected > 0, "num_selected", "must be > 0 (1 is Krum)", self.num_selected)

    def check_cohort(self, num_clients: int) -> None:
        """See :meth:`Aggregator.check_cohort`."""
        rule = f"must be a number f with 2 f + 2 < {num_clients}, the clients of a round (clients_per_round)"
        require(2 * self.num_malicious + 2 < num_clients, "num_malicious", rule, self.num_malicious)

    def __call__(self, updates: Tensor, weights: Tensor, last: Tensor | None) -> Tensor:
        """See :meth:`Aggregator.__call__`."""
        number = len(updates)
        if self.num_selected >= number:
            return weights @ updates
        squares = torch.stack([(updates - one).square().sum(1) for one in updates])  # exact for equal updates, unlike torch.cdist
        others = squares.masked_fill(torch.eye(number, dtype=torch.bool, device=updates.device), float("inf")).sort(1).values
        scores = others[:, : max(1, number - self.num_malicious - 2)].sum(1)
        kept = scores.argsort(stable=True)[: self.num_selected].sort().values
        return (weights[kept] / weights[kept].sum()) @ updates[kept]


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(Aggregator):
    """RFA: the point with the least weighted sum of distances to the updates, by smoothed Weiszfeld steps from the weighted mean.

    Source:
        Pillutla, Kakade, Harchaoui: Robust aggregation for federated learning, IEEE Transactions on Signal Processing 2022.
        Public code: krishnap25/RFA @ 40945d2.

    Args:
        max_iterations: number of steps, >= 0. 0 is the mean.
        smoothing: least distance in the weights of a step, > 0.
        tolerance: relative gain of a step below which no more follow, >= 0.

    Raises:
        ConfigError: a value is out of its range.
    """

    max_iterations: int
    smoothing: float
    tolerance: float

    def __post_init__(self) -> None:
        require(self.max_iterations >= 0, "max_iterations", "must be >= 0 (0 is the mean)", self.max_iterations)
        require(self.smoothing > 0, "smoothing", "must be > 0", self.smoothing)
        require(self.tolerance >= 0, "tolerance", "must be >= 0", self.tolerance)

    def __call__(self, updates: Tensor, weights: Tensor, last: Tensor | None) -> Tensor:
        """See :meth:`Aggregator.__call__`."""
        point = weights @ updates
        distances = (updates - point).norm(dim=1)
        value = weights @ distances
        for _ in range(self.max_iterations):
            factors = weights / distances.clamp(min=self.smoothing)
            factors = factors / factors.sum()
            point, before = factors @ updates, value
            distances = (updates - point).norm(dim=1)
            value = weights @ distances
            if abs(before - value) < self.tolerance * value:
                break
        return point


@dataclass(frozen=True, kw_only=True)
class CenteredClipping(Aggregator):
    """``v <- v + mean_k (u_k - v) min(1, radius / |u_k - v|)``. v begins at 0 and is kept from round to round. Weights are not used.

    Source:
        Karimireddy, He, Jaggi: Learning from history for Byzantine robust optimization, ICML 2021.

    Args:
        radius: largest distance from v with which an update counts, > 0.
        num_iterations: steps of a round, > 0.

    Raises:
        ConfigError: a value is out of its range.
    """

    radius: float
    num_iterations: int

    def __post_init__(self) -> None:
        require(self.radius > 0, "radius", "must be > 0", self.radius)
        require(self.num_iterations > 0, "num_iterations", "must be > 0", self.num_iterations)

    def __call__(self, updates: Tensor, weights: Tensor, last: Tensor | None) -> Tensor:
        """See :meth:`Aggregator.__call__`."""
        center = torch.zeros_like(updates[0]) if last is None else last
        for _ in range(self.num_iterations):
            away = updates - center
            norms = away.norm(dim=1, keepdim=True).clamp(min=torch.finfo(updates.dtype).tiny)
            center = center + (away * (self.radius / norms).clamp(max=1)).mean(0)
        return center
