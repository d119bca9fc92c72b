"""Train many clients of one architecture at once, to the numbers of one after the other."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, eval_copy
from fedkd.training.loop import Execution, Fitted, LossFunction, Material, descend, differentiated, finite, stored
from fedkd.training.optimizers import OptimizerFactory, flatten_optimizer, restore_optimizer
from fedkd.training.step_program import Program
from fedkd.training.vectorized_layers import twin
from fedkd.types import Metrics, State, Tensors


def fit_clients(
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
    """K copies of ``module`` as one tensor program; client by client what :func:`fedkd.training.loop.fit` gives, but for rounding.

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
        DivergedError: the sum of a client's losses is not finite.
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
        number, end = len(order), len(batches[order[-1]])
        rows = [
            *range(number),
            *[number - 1] * (bucket(number, tensors[names[0]].device) - number),
        ]  # the last stands in for who is missing
        seats = [order[row] for row in rows]
        material = Material.of([batches[k] for k in seats], slice(begin, end), together=True)
        fixed = {"tensors": take(tensors, rows), "shared": shared, "own": take(own, rows)}
        fixed = program.placed(fixed, material)
        leaves = [fixed["tensors"][name].requires_grad_() for name in names]
        stepper = optimizer(leaves)
        restore_optimizer(stepper, names, take(kept, rows))
        more = descend(program, fixed, material, leaves, stepper, scales(leaves, [lr_factors[k] for k in seats]))
        sums = {name: sums[name] + value[:number] if name in sums else value[:number] for name, value in more.items()}
        staying = [k for k in order if len(batches[k]) > end]
        tensors = {key: value.detach() for key, value in fixed["tensors"].items()}
        for place, k in list(enumerate(order))[len(staying) :]:
            fitted[k] = Fitted(pick(tensors, place), finite(pick(sums, place), end), {})
        if staying:
            stays = list(range(len(staying)))
            kept = take(flatten_optimizer(stepper, names), stays)
            tensors, sums, own = take(tensors, stays), take(sums, stays), take(own, stays)
        order, begin = staying, end
    return [fitted[k] for k in range(len(starts))]


def together(module: nn.Module, loss: LossFunction, batches: Batches, execution: Execution) -> Program:
    """One step of many networks."""
    many, frozen = twin(module), eval_copy(module)

    def values(tensors: Tensors, x: Tensor | None, y: Tensor, drawn: Tensors, own: State, shared: State) -> tuple[Tensor, Metrics]:
        def one(tensors: Tensors, x: Tensor, y: Tensor, drawn: Tensors, own: State) -> tuple[Tensor, Metrics]:
            return loss(FunctionalModel(many, tensors, frozen), Batch(x, y, drawn), shared, own)

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


def take(tree: Any, rows: Sequence[int]) -> Any:
    """These clients of a stacked tree; what has no dimension, such as an optimizer's count of steps, is all clients'."""
    if isinstance(tree, Tensor):
        return tree if tree.dim() == 0 or list(rows) == list(range(len(tree))) else tree[list(rows)]
    return {key: take(value, rows) for key, value in tree.items()}


def bucket(number: int, device: torch.device) -> int:
    """How many clients are computed where ``number`` train: as they are, but on a GPU the next multiple of five, as every number that
    occurs is captured as a graph of its own, which takes longer than a round."""
    return number if device.type == "cpu" else -(-number // 5) * 5


def pick(tensors: Tensors, place: int) -> Tensors:
    """One client's tensors."""
    return {key: value[place].clone() for key, value in tensors.items()}
