"""Train many clients of one architecture at once, to the numbers of one after the other."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.batch import Batch, Batches
from fedkd.bound import Bound, asleep
from fedkd.folding import twin
from fedkd.program import Program
from fedkd.train import (
    Execution,
    Fitted,
    LossFunction,
    Material,
    OptimizerFactory,
    descend,
    differentiated,
    finite,
    flatten_optimizer,
    restore_optimizer,
    stored,
)  # fmt: skip
from fedkd.types import Metrics, State, Tensors


def fit_cohort(
    module: nn.Module,
    starts: Sequence[Tensors],
    batches: Sequence[Batches],
    loss: LossFunction,
    optimizer: OptimizerFactory,
    *,
    shared: State,
    owns: Sequence[State],
    lr_factors: Sequence[float],
    execution: Execution | None = None,
) -> list[Fitted]:
    """K copies of ``module`` as one tensor program; client by client what :func:`fedkd.train.fit` gives, but for rounding.

    The loss is mapped over stacked clients and differentiated outside the map. Clients with fewer steps leave when they are done.

    Args:
        module: the network all share.
        starts: every parameter and buffer of each client at the beginning.
        batches: each client's steps, all of one batch size and of one set of images.
        loss: pure, ``loss(model, batch, shared, own) -> (scalar, metrics)``.
        optimizer: ``parameters -> optimizer``; its steps must be proportional to its learning rate, as those of torch's are.
        shared: what every client received.
        owns: each client's memory.
        lr_factors: > 0; client k's learning rate over that of ``optimizer``.
        execution: how steps are computed.

    Returns:
        What training leaves of each client, in the order given; optimizers' states are not kept.

    Raises:
        FloatingPointError: the sum of a client's losses is not finite.
    """
    execution = execution or Execution()
    names, first = [name for name, _ in module.named_parameters()], batches[0]
    parts = (module, loss, first.data, first.dtype, execution)
    program = stored((*parts, "together"), lambda: together(module, loss, first, execution))
    order = sorted(range(len(starts)), key=lambda k: -len(batches[k]))  # whoever is done first stands last
    tensors, own = stack([starts[k] for k in order]), stack([owns[k] for k in order])
    sums: Metrics = {}
    kept: Tensors = {}
    fitted: dict[int, Fitted] = {}
    begin = 0
    while order:
        end, staying = len(batches[order[-1]]), [k for k in order if len(batches[k]) > len(batches[order[-1]])]
        leaves = [tensors[name].requires_grad_() for name in names]
        stepper = optimizer(leaves)
        restore_optimizer(stepper, names, kept)
        material = Material.of([batches[k] for k in order], slice(begin, end), together=True)
        more = descend(
            program,
            {"tensors": tensors, "shared": shared, "own": own},
            material,
            leaves,
            stepper,
            scales(leaves, [lr_factors[k] for k in order]),
        )
        sums = {name: sums[name] + value if name in sums else value for name, value in more.items()}
        tensors = {key: value.detach() for key, value in tensors.items()}
        for place, k in list(enumerate(order))[len(staying) :]:
            fitted[k] = Fitted(pick(tensors, place), finite(pick(sums, place), end), {})
        if staying:
            kept = head(flatten_optimizer(stepper, names), len(staying))
            tensors, sums, own = head(tensors, len(staying)), head(sums, len(staying)), head(own, len(staying))
        order, begin = staying, end
    return [fitted[k] for k in range(len(starts))]


def together(module: nn.Module, loss: LossFunction, batches: Batches, execution: Execution) -> Program:
    """One step of many networks."""
    many, frozen = twin(module), asleep(module)

    def values(tensors: Tensors, x: Tensor | None, y: Tensor, drawn: Tensors, own: State, shared: State) -> tuple[Tensor, Metrics]:
        def one(tensors: Tensors, x: Tensor, y: Tensor, drawn: Tensors, own: State) -> tuple[Tensor, Metrics]:
            return loss(Bound(many, tensors, frozen), Batch(x, y, drawn), shared, own)

        return torch.vmap(one)(tensors, x, y, drawn, own)

    return Program(differentiated(values, module, batches, execution), compile=execution.compile)


def scales(leaves: Sequence[Tensor], factors: Sequence[float]) -> list[Tensor] | None:
    """``factors`` of the clients, shaped for each of the stacked parameters; None where all are one."""
    if all(factor == 1 for factor in factors):
        return None
    return [torch.tensor(factors, dtype=leaf.dtype, device=leaf.device).view(-1, *[1] * (leaf.dim() - 1)) for leaf in leaves]


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
