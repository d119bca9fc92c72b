"""Aggregation of models: means over clients, in the order in which the clients are given."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from fedkd.training.functional_model import load
from fedkd.types import State, Tensors


def average(models: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
    """The weighted mean of models, ``sum_k weights[k] * models[k]``.

    Integer buffers, such as BatchNorm's counts of batches, take the maximum instead.

    Args:
        models: the tensors of each model [K], with equal names, shapes and types.
        weights: one weight per model [K]. They should sum to 1.
    """
    mean: Tensors = {}
    for key, first in models[0].items():
        values = torch.stack([model[key] for model in models])  # [K, ...]
        if first.is_floating_point():
            mean[key] = torch.tensordot(torch.tensor(weights, dtype=first.dtype, device=first.device), values, 1)
        else:
            mean[key] = values.amax(0)
    return mean


def mean_batchnorm_statistics(client_states: Sequence[State]) -> Tensors:
    """The mean of the BatchNorm statistics that clients keep, weighted by their numbers of training examples.

    Only clients that have trained count. The result is empty if there are none.

    Args:
        client_states: the states of clients, with the statistics in the part ``local``.
    """
    trained = [state for state in client_states if "local" in state and int(state["client"]["last_round"]) > 0]
    sizes = [int(state["client"]["num_examples"]) for state in trained]
    return average([state["local"] for state in trained], [size / sum(sizes) for size in sizes]) if trained else {}


def assemble_model(module: nn.Module, initial: Tensors, tensors: Tensors) -> nn.Module:
    """A copy of ``module`` in eval mode with the given tensors.

    Args:
        module: the network. It is not changed.
        initial: all parameters and buffers of ``module``, for names that ``tensors`` does not have.
        tensors: parameters and buffers by name.
    """
    model = copy.deepcopy(module)
    load(model, {**initial, **{key: value.to(initial[key].device) for key, value in tensors.items()}})
    return model.eval()
