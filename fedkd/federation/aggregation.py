"""Means over clients: of tensors, of BatchNorm statistics, of scores. Always in the order given."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from fedkd.training.functional_model import load
from fedkd.types import State, Tensors


def average(models: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
    """The weighted mean, as one product of ``weights`` and the models in the order given; integer buffers (batch counts) take the largest."""
    mean: Tensors = {}
    for key, first in models[0].items():
        values = torch.stack([model[key] for model in models])  # [K, ...]
        if first.is_floating_point():
            mean[key] = torch.tensordot(torch.tensor(weights, dtype=first.dtype, device=first.device), values, 1)
        else:
            mean[key] = values.amax(0)
    return mean


def mean_batchnorm_statistics(memories: Sequence[State]) -> Tensors:
    """The example-weighted mean of the BatchNorm statistics that clients keep, over those that have trained; {} if none."""
    trained = [m for m in memories if "local" in m and int(m["client"]["last_round"]) > 0]
    sizes = [int(m["client"]["num_examples"]) for m in trained]
    return average([m["local"] for m in trained], [size / sum(sizes) for size in sizes]) if trained else {}


def assemble_model(module: nn.Module, initial: Tensors, tensors: Tensors) -> nn.Module:
    """A copy of ``module`` in eval mode that holds ``tensors``, and ``initial`` where they are silent."""
    model = copy.deepcopy(module)
    load(model, {**initial, **{key: value.to(initial[key].device) for key, value in tensors.items()}})
    return model.eval()
