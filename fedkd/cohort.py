"""Train many clients of one architecture at once, to the numbers of one after the other."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.folding import twin
from fedkd.train import Batch, Batches, Bound, Fitted, OptimizerFactory, finite, flatten_optimizer, restore_optimizer
from fedkd.types import Metrics, State, Tensors


def fit_cohort(
    module: nn.Module,
    starts: Sequence[Tensors],
    batches: Sequence[Batches],
    loss: Callable[..., tuple[Tensor, Metrics]],
    optimizer: OptimizerFactory,
    *,
    shared: State,
    owns: Sequence[State],
    lr_factors: Sequence[float],
) -> list[Fitted]:
    """K copies of ``module`` as one tensor program; client by client what :func:`fedkd.train.fit` gives, but for rounding.

    The loss is mapped over stacked clients and differentiated outside the map. Clients with fewer steps leave when they are done.

    Args:
        module: the network all share.
        starts: every parameter and buffer of each client at the beginning.
        batches: each client's steps, all of one batch size.
        loss: pure, ``loss(model, batch, shared, own) -> (scalar, metrics)``.
        optimizer: ``parameters -> optimizer``; its steps must be proportional to its learning rate, as those of torch's are.
        shared: what every client received.
        owns: each client's memory.
        lr_factors: > 0; client k's learning rate over that of ``optimizer``.

    Returns:
        What training leaves of each client, in the order given; optimizers' states are not kept.

    Raises:
        FloatingPointError: the sum of a client's losses is not finite.
    """
    names = [name for name, _ in module.named_parameters()]
    order = sorted(range(len(starts)), key=lambda k: -len(batches[k]))  # whoever is done first stands last
    tensors, own = stack([starts[k] for k in order]), stack([owns[k] for k in order])
    step_of_all = mapped(module, loss, shared)
    sums: Metrics = {}
    kept: Tensors = {}
    fitted: dict[int, Fitted] = {}
    begin = 0
    while order:
        end, staying = len(batches[order[-1]]), [k for k in order if len(batches[k]) > len(batches[order[-1]])]
        leaves = [tensors[name].requires_grad_() for name in names]
        stepper = optimizer(leaves)
        restore_optimizer(stepper, names, kept)
        factors = [lr_factors[k] for k in order]
        for step in range(begin, end):
            losses, metrics = step_of_all(tensors, *material([batches[k] for k in order], step), own)
            stepper.zero_grad(set_to_none=True)
            losses.sum().backward()
            advance(stepper, leaves, factors)
            for name, metric in {"loss": losses, **metrics}.items():
                sums[name] = sums[name] + metric.detach() if name in sums else metric.detach()
        tensors = {key: value.detach() for key, value in tensors.items()}
        for place, k in list(enumerate(order))[len(staying) :]:
            fitted[k] = Fitted(pick(tensors, place), finite(pick(sums, place), end), {})
        kept = head(flatten_optimizer(stepper, names), len(staying))
        tensors, sums, own = head(tensors, len(staying)), head(sums, len(staying)), head(own, len(staying))
        order, begin = staying, end
    return [fitted[k] for k in range(len(starts))]


def mapped(module: nn.Module, loss: Callable[..., tuple[Tensor, Metrics]], shared: State) -> Callable[..., tuple[Tensor, Metrics]]:
    """``(tensors, x, y, drawn, own)``, all stacked, to each client's loss [K] and metrics [K, ...]."""
    together, frozen = twin(module), copy.deepcopy(module).eval()

    def one(tensors: Tensors, x: Tensor, y: Tensor, drawn: dict[str, Tensor], own: State) -> tuple[Tensor, Metrics]:
        return loss(Bound(together, tensors, frozen), Batch(x, y, drawn), shared, own)

    return torch.vmap(one)


def material(batches: Sequence[Batches], step: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One step of every client: images [K, B, ...], labels [K, B], draws [K, ...]."""
    raw = torch.stack([one.data.x[one.index[step]] for one in batches])
    drawn = {name: torch.stack([one.drawn[name][step] for one in batches]) for name in batches[0].drawn}
    return batches[0].data.normalise(raw, batches[0].dtype), torch.stack([one.y[step] for one in batches]), drawn


def advance(stepper: torch.optim.Optimizer, leaves: list[Tensor], factors: list[float]) -> None:
    """One optimizer step, of which each client takes its own multiple."""
    if all(factor == 1 for factor in factors):
        stepper.step()
        return
    before = [leaf.detach().clone() for leaf in leaves]
    stepper.step()
    with torch.no_grad():
        for leaf, old in zip(leaves, before):
            scale = torch.tensor(factors, dtype=leaf.dtype, device=leaf.device).view(-1, *[1] * (leaf.dim() - 1))
            leaf.copy_(old + scale * (leaf - old))


def stack(trees: Sequence[Any]) -> Any:
    """Nested dictionaries of tensors, alike in keys and shapes, to one of tensors [K, ...]."""
    if isinstance(trees[0], Tensor):
        return torch.stack(list(trees))
    return {key: stack([tree[key] for tree in trees]) for key in trees[0]}


def head(tree: Any, number: int) -> Any:
    """The first ``number`` clients of a stacked tree; what has no dimension, such as an optimizer's count of steps, is all clients'."""
    if isinstance(tree, Tensor):
        return tree[:number].clone() if tree.dim() else tree
    return {key: head(value, number) for key, value in tree.items()}


def pick(tensors: Tensors, place: int) -> Tensors:
    """One client's tensors."""
    return {key: value[place].clone() for key, value in tensors.items()}
