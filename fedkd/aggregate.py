"""Means over clients: of tensors, of BatchNorm statistics, of scores. Always in the order given."""

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from fedkd.bound import load
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


def mean_statistics(memories: Sequence[State]) -> Tensors:
    """The example-weighted mean of the BatchNorm statistics that clients keep, over those that have trained; {} if none."""
    trained = [m for m in memories if "local" in m and int(m["client"]["last_round"]) > 0]
    sizes = [int(m["client"]["num_examples"]) for m in trained]
    return average([m["local"] for m in trained], [size / sum(sizes) for size in sizes]) if trained else {}


def assemble(module: nn.Module, initial: Tensors, tensors: Tensors) -> nn.Module:
    """A copy of ``module`` in eval mode that holds ``tensors``, and ``initial`` where they are silent."""
    model = copy.deepcopy(module)
    load(model, {**initial, **{key: value.to(initial[key].device) for key, value in tensors.items()}})
    return model.eval()


def own_labels(counts: Sequence[tuple[int, int]]) -> dict[str, float] | None:
    """Metrics of clients on their own test shards, from ``(examples, correct)`` of each; clients without examples do not count.

    The worst tenth is the mean accuracy of the lowest tenth of clients (at least one), the spread the population standard
    deviation over clients; both give every client the same weight.
    """
    counts = [(n, c) for n, c in counts if n > 0]
    if not counts:
        return None
    each = torch.tensor([c / n for n, c in counts], dtype=torch.float64).sort().values
    return {
        "accuracy_own_labels": sum(c for _, c in counts) / sum(n for n, _ in counts),
        "accuracy_worst_tenth": each[: max(1, len(each) // 10)].mean().item(),
        "accuracy_spread": each.std(correction=0).item(),
    }


def of_newcomers(counts: Mapping[int, tuple[int, int]], newcomers: Iterable[int]) -> dict[str, float]:
    """``accuracy_newcomers``, from ``(examples, correct)`` by client: over all of newcomers' test examples; nothing where they have none."""
    tested = [counts[client] for client in newcomers if client in counts]
    total = sum(n for n, _ in tested)
    return {"accuracy_newcomers": sum(c for _, c in tested) / total} if total else {}
