"""Aggregation of models: means over clients, in the order in which the clients are given."""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fedkd.federation.aggregators import Aggregator, Mean
from fedkd.federation.server_optimizers import NoServerOptimizer, ServerOptimizer
from fedkd.training.functional_model import load, trained_names
from fedkd.types import State, Tensors

AGGREGATION_PARTS = ("aggregator", "server_optimizer")
"""Parts of the server's state in which an aggregator and a server optimizer keep tensors from round to round. They are not broadcast."""


def aggregate_models(
    state: State,
    models: Sequence[Tensors],
    weights: Sequence[float],
    module: nn.Module,
    aggregator: Aggregator,
    server_optimizer: ServerOptimizer,
    server_round: int,
) -> State:
    """The model after a round, with what aggregator and server optimizer keep for the next round.

    Args:
        state: the server's state before the round, with the part ``model`` that was broadcast.
        models: the clients' models [K].
        weights: one weight per model [K]. They sum to 1.
        module: the network of ``model``.
        aggregator: from the changes of the trained parameters to one change. Other tensors take the mean.
        server_optimizer: the server's step along this change.
        server_round: 1, 2, ...

    Returns:
        The part ``model``, and where they are used the parts of :data:`AGGREGATION_PARTS`.
    """
    after, kept = average(models, weights), dict[str, Tensors]()
    if isinstance(aggregator, Mean) and isinstance(server_optimizer, NoServerOptimizer):
        return {"model": after}
    before = state["model"]
    names = [name for name in trained_names(module) if name in before]
    if not isinstance(aggregator, Mean):
        changes, last = change_of(before, models, names), state.get("aggregator", {}).get("change")
        change = aggregator(changes, torch.tensor(weights, dtype=changes.dtype, device=changes.device), last)
        after, kept["aggregator"] = {**after, **changed_by(before, change, names)}, {"change": change}
    left, right = ({name: tensors[name] for name in names} for tensors in (before, after))
    stepped, kept["server_optimizer"] = server_optimizer(left, right, state.get("server_optimizer", {}), server_round)
    return {"model": {**after, **stepped}, **{part: tensors for part, tensors in kept.items() if tensors}}


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


def change_of(before: Tensors, models: Sequence[Tensors], names: Sequence[str]) -> Tensor:
    """The changes of some tensors of models [K], as one vector each [K, P]."""
    return torch.stack([torch.cat([(model[name] - before[name]).flatten() for name in names]) for model in models])


def changed_by(before: Tensors, change: Tensor, names: Sequence[str]) -> Tensors:
    """Tensors after a change [P] of :func:`change_of`."""
    sizes = [before[name].numel() for name in names]
    return {name: before[name] + part.view_as(before[name]) for name, part in zip(names, change.split(sizes))}


def mean_batchnorm_statistics(client_states: Iterable[State]) -> Tensors:
    """The mean of the BatchNorm statistics that clients keep, weighted by their numbers of training examples.

    Only clients that have trained count. The result is empty if there are none.

    Args:
        client_states: the states of clients, with the statistics in the part ``local``. All have this part, or none.
    """
    kept, sizes = list[Tensors](), list[int]()
    for state in client_states:  # one at a time, as each may be read from a file
        if "local" not in state:
            break
        if int(state["client"]["last_round"]) > 0:
            kept.append(state["local"])
            sizes.append(int(state["client"]["num_examples"]))
    total = sum(sizes)
    return average(kept, [size / total for size in sizes]) if kept else {}


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
