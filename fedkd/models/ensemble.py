"""Several models as one, and several heads at once."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedkd.errors import ConfigError
from fedkd.types import Output, Tensors

Teacher = Callable[[Tensor], Output]
"""From images [B, channels, height, width] to an :class:`~fedkd.types.Output`, in eval mode."""


class Member(NamedTuple):
    """A network and its tensors: one model of several, whose networks may differ.

    Args:
        network: the network. Its own parameters and buffers are not used.
        tensors: all parameters and buffers by name.
    """

    network: nn.Module
    tensors: Tensors


def combine_logits(logits: Tensor, weights: Tensor | None = None, y: Tensor | None = None) -> Tensor:  # [K, B, C] -> [B, C]
    """The logits of an ensemble: ``sum_k weights_k logits_k``, or their mean.

    Args:
        logits: logits of each member.
        weights: one per member [K], or one per class and member [C, K]. They need not sum to 1, and may have a gradient. None: the mean.
        y: labels [B], with which weights [C, K] are chosen.
    """
    if weights is None:
        return logits.mean(0)
    if weights.dim() == 2:
        assert y is not None, "weights by class need labels"
        weights = weights[y].mT  # [K, B]
    return (weights.reshape(len(logits), -1, 1) * logits).sum(0)


class Ensemble:
    """The weighted mean of several teachers' logits: ``logits(x) = sum_k weights_k logits_k(x)``.

    The embedding is the concatenation of the members' embeddings [B, sum of D]. There are no stages.

    Args:
        members: the teachers, at least one.
        weights: one per member [K]. A tensor may have a gradient. None: equal weights that sum to 1.

    Raises:
        ConfigError: there is no member.
    """

    def __init__(self, members: Sequence[Teacher], weights: Sequence[float] | Tensor | None = None) -> None:
        if not members:
            raise ConfigError("members must hold at least one teacher, got none")
        self.members = list(members)
        self.weights = [1 / len(self.members)] * len(self.members) if weights is None else list(weights)
        assert len(self.weights) == len(self.members), "as many weights as members"

    def __call__(self, x: Tensor) -> Output:
        outputs = [member(x) for member in self.members]
        logits = torch.stack([weight * output.logits for weight, output in zip(self.weights, outputs)]).sum(0)
        return Output(logits, torch.cat([output.embedding for output in outputs], dim=-1))


class EnsembleModel(nn.Module):
    """An :class:`Ensemble` as one network.

    Args:
        members: the networks, each an object of its own.
        weights: one per member; None: equal weights that sum to 1.
    """

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.members, self.weights = nn.ModuleList(members), weights

    def forward(self, x: Tensor) -> Output:  # [B, channels, height, width]
        """The weighted mean of the members' logits, and their concatenated embeddings."""
        return Ensemble(list(self.members), self.weights)(x)

    def split_members(self, tensors: Tensors) -> list[Member]:
        """The members, each with its part of ``tensors``."""
        prefixes = [f"members.{number}." for number in range(len(self.members))]
        parts = [{key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)} for prefix in prefixes]
        return [Member(network, part) for network, part in zip(self.members, parts)]


def stacked_head_logits(head: nn.Module, heads: Tensors, z: Tensor) -> Tensor:  # [K, ...], [B, D] -> [K, B, C]
    """The logits of K heads for the same embeddings. Linear heads are computed as one matrix product.

    Args:
        head: the architecture of all heads.
        heads: the stacked tensors of the heads.
        z: embeddings.
    """
    if type(head) is nn.Linear and head.bias is not None:
        products = heads["weight"].flatten(0, 1) @ z.mT + heads["bias"].flatten()[:, None]  # [K*C, B]
        return products.unflatten(0, (-1, head.out_features)).mT
    return torch.vmap(lambda tensors: functional_call(head, tensors, (z,)))(heads)
