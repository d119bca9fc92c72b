"""How far an optimizer travels: of two ways to the same accuracy, the shorter had the easier mapping to learn (Wang et al., 2021)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedkd.check import require
from fedkd.types import Tensors


def norm(tensors: Tensors) -> Tensor:  # -> []
    """``||w||_2`` of all entries together, in float64."""
    return torch.stack([value.detach().double().square().sum() for value in tensors.values()]).sum().sqrt()


def distance(before: Tensors, after: Tensors) -> Tensor:  # -> []
    """``||after - before||_2`` over all parameters, in float64.

    Raises:
        ValueError: they are not parameters of one network.
    """
    unlike = sorted(before.keys() ^ after.keys()) or [key for key in before if before[key].shape != after[key].shape]
    require(not unlike, "distance", "must be between parameters of the same names and shapes", unlike)
    return norm({key: after[key].double() - value.double() for key, value in before.items()})


@dataclass(frozen=True, eq=False)
class Travel:
    """A way so far: ``sum_k ||w_k - w_{k-1}||_2 / ||w_0||_2``, k from one (epochs, or rounds).

    The paper's text was not at hand: this is its cumulative weight distance as others tell it. ``Travel.begin(w_0).to(w_1).to(w_2)``;
    parameters alone count, not buffers, and are not copied: give snapshots.
    """

    first: float
    """``||w_0||_2``."""
    here: Tensors
    length: float = 0.0
    """The sum of steps."""

    @classmethod
    def begin(cls, weights: Tensors) -> "Travel":
        """At w_0.

        Raises:
            ValueError: w_0 is zero, and no distance is any multiple of it.
        """
        first = norm(weights).item()
        require(first > 0, "travel", "must begin at parameters that are not all zero", first)
        return cls(first, weights)

    def to(self, weights: Tensors) -> "Travel":
        """One step further."""
        return replace(self, here=weights, length=self.length + distance(self.here, weights).item())

    @property
    def relative(self) -> float:
        """The cumulative weight distance."""
        return self.length / self.first
