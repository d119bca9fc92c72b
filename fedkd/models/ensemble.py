"""A weighted mean of teachers is a teacher; and many heads at once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedkd.errors import ConfigError
from fedkd.types import Output, Tensors

Teacher = Callable[[Tensor], Output]


class Ensemble:
    """``logits(x) = sum_k weights_k logits_k(x)``; the embedding is the members' side by side.

    Args:
        members: functions from images [B, channels, height, width] to an Output, in eval mode.
        weights: one a member; uniform, summing to one, if None.
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
    """An ensemble as one network, of members of one form: the mean of their logits, their embeddings side by side, no stages."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Output:
        return Ensemble(list(self.members))(x)

    def split_members(self, tensors: Tensors) -> tuple[nn.Module, list[Tensors]]:
        """The members' form, and each one's share of ``tensors``."""
        each = [f"members.{number}." for number in range(len(self.members))]
        parts = [{key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)} for prefix in each]
        return self.members[0], parts


def stacked_head_logits(head: nn.Module, heads: Tensors, z: Tensor) -> Tensor:  # [K, ...], [B, D] -> [K, B, C]
    """What K heads, stacked, say of the same embeddings; linear heads as one product."""
    if type(head) is nn.Linear and head.bias is not None:
        products = heads["weight"].flatten(0, 1) @ z.mT + heads["bias"].flatten()[:, None]  # [K*C, B]
        return products.unflatten(0, (-1, head.out_features)).mT
    return torch.vmap(lambda tensors: functional_call(head, tensors, (z,)))(heads)
