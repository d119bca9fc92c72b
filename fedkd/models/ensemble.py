"""Several models as one, and several heads at once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedkd.errors import ConfigError
from fedkd.types import Output, Tensors

Teacher = Callable[[Tensor], Output]
"""From images [B, channels, height, width] to an :class:`~fedkd.types.Output`, in eval mode."""


class Ensemble:
    """The weighted mean of several teachers' logits: ``logits(x) = sum_k weights_k logits_k(x)``.

    The embedding is the concatenation of the members' embeddings [B, sum of D]. There are no stages.

    Args:
        members: the teachers, at least one.
        weights: one per member; None: equal weights that sum to 1.

    Raises:
        ConfigError: there is no member.
    """

    def __init__(self, members: Sequence[Teacher], weights: Sequence[float] | None = None) -> None:
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
    """An :class:`Ensemble` with equal weights as one network.

    Args:
        members: networks of one architecture.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Output:  # [B, channels, height, width]
        """The mean of the members' logits, and their concatenated embeddings."""
        return Ensemble(list(self.members))(x)

    def split_members(self, tensors: Tensors) -> tuple[nn.Module, list[Tensors]]:
        """The first member as the architecture of all members, and each member's part of ``tensors``."""
        prefixes = [f"members.{number}." for number in range(len(self.members))]
        parts = [{key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)} for prefix in prefixes]
        return self.members[0], parts


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
