"""Prototypes: mean embeddings of classes, and predictions by the nearest one."""

import torch
from torch import Tensor

from fedkd.federation.client import Client
from fedkd.tensor_ops import channels_last
from fedkd.training.functional_model import load
from fedkd.types import Tensors


def prototype_scores(embedding: Tensor, prototypes: Tensor, known: Tensor) -> Tensor:
    """Minus the mean squared distance of embeddings [B, D] to prototypes [C, D]. A class that is not ``known`` [C] is below all others."""
    distances = (embedding[:, None] - prototypes).square().mean(-1)
    return torch.where(known > 0, -distances, -distances.amax(1, keepdim=True) - 1)


@torch.no_grad()
def class_means(client: Client, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """The mean embedding of each class of the client's examples [C, D], in eval mode, and the numbers of examples [C].

    Args:
        client: the client.
        tensors: all parameters and buffers of its network.
    """
    load(client.model, tensors)
    model, classes = client.model.eval(), client.task.num_classes
    sums = torch.zeros(classes, client.model.embedding_size, dtype=client.dtype, device=client.device)
    counts = torch.zeros(classes, dtype=client.dtype, device=client.device)
    for index in torch.arange(len(client.data), device=client.device).split(max(client.batch_size, 256)):
        embedding = model(channels_last(client.data.images(index, client.dtype))).embedding
        sums.index_add_(0, client.data.y[index], embedding)
        counts += torch.bincount(client.data.y[index], minlength=classes)
    return sums / counts.clamp(min=1)[:, None], counts
