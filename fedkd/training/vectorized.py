"""Train many clients of one architecture at once, to the numbers of one after the other."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, eval_copy
from fedkd.training.loop import Execution, FitResult, LossFunction, StepInputs, run_steps, with_gradients, check_finite, cached_program
from fedkd.training.optimizers import OptimizerFactory, flatten_optimizer, restore_optimizer
from fedkd.training.step_program import Program
from fedkd.training.vectorized_layers import vectorized_copy
from fedkd.types import Metrics, State, Tensors


def fit_clients(
    module: nn.Module,
    starts: Sequence[Tensors],
    batches: Sequence[Batches],
    loss: LossFunction,
    optimizer: OptimizerFactory,
    *,
    broadcast: State,
    client_states: Sequence[State],
    lr_factors: Sequence[float],
    execution: Execution | None = None,
) -> list[FitResult]:
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
    program = cached_program((*parts, "together"), lambda: vectorized_program(module, loss, first, execution))
    order = sorted(range(len(starts)), key=lambda k: -len(batches[k]))  # whoever is done first stands last
    tensors, own = stack_trees([starts[k] for k in order]), stack_trees([client_states[k] for k in order])
    sums: Metrics = {}
    kept: Tensors = {}
    fitted: dict[int, FitResult] = {}
    begin = 0
    while order:
        number, end = len(order), len(batches[order[-1]])
        rows = [
            *range(number),
            *[number - 1] * (padded_number(number, tensors[names[0]].device) - number),
        ]  # the last stands in for who is missing
        seats = [order[row] for row in rows]
        material = StepInputs.of([batches[k] for k in seats], slice(begin, end), together=True)
        fixed = {"tensors": select_clients(tensors, rows), "broadcast": broadcast, "client_state": select_clients(own, rows)}
        fixed = program.placed(fixed, material)
        leaves = [fixed["tensors"][name].requires_grad_() for name in names]
        stepper = optimizer(leaves)
        restore_optimizer(stepper, names, select_clients(kept, rows))
        more = run_steps(program, fixed, material, leaves, stepper, lr_scales(leaves, [lr_factors[k] for k in seats]))
        sums = {name: sums[name] + value[:number] if name in sums else value[:number] for name, value in more.items()}
        staying = [k for k in order if len(batches[k]) > end]
        tensors = {key: value.detach() for key, value in fixed["tensors"].items()}
        for place, k in list(enumerate(order))[len(staying) :]:
            fitted[k] = FitResult(client_tensors(tensors, place), check_finite(client_tensors(sums, place), end), {})
        if staying:
            stays = list(range(len(staying)))
            kept = select_clients(flatten_optimizer(stepper, names), stays)
            tensors, sums, own = select_clients(tensors, stays), select_clients(sums, stays), select_clients(own, stays)
        order, begin = staying, end
    return [fitted[k] for k in range(len(starts))]


def vectorized_program(module: nn.Module, loss: LossFunction, batches: Batches, execution: Execution) -> Program:
    """One step of many networks."""
    many, frozen = vectorized_copy(module), eval_copy(module)

    def values(tensors: Tensors, x: Tensor | None, y: Tensor, drawn: Tensors, own: State, shared: State) -> tuple[Tensor, Metrics]:
        def one(tensors: Tensors, x: Tensor, y: Tensor, drawn: Tensors, own: State) -> tuple[Tensor, Metrics]:
            return loss(FunctionalModel(many, tensors, frozen), Batch(x, y, drawn), shared, own)

        return torch.vmap(one)(tensors, x, y, drawn, own)

    return Program(with_gradients(values, module, batches, execution), compile=execution.compile)


def lr_scales(leaves: Sequence[Tensor], factors: Sequence[float]) -> list[Tensor] | None:
    """``factors`` of the clients, shaped for each of the stacked parameters; None where all are one."""
    if all(factor == 1 for factor in factors):
        return None
    return [torch.tensor(factors, dtype=leaf.dtype, device=leaf.device).view(-1, *[1] * (leaf.dim() - 1)) for leaf in leaves]


def stack_trees(trees: Sequence[Any]) -> Any:
    """Nested dictionaries of tensors, alike in keys and shapes, to one of tensors [K, ...]."""
    if isinstance(trees[0], Tensor):
        return torch.stack(list(trees))
    return {key: stack_trees([tree[key] for tree in trees]) for key in trees[0]}


def select_clients(tree: Any, rows: Sequence[int]) -> Any:
    """These clients of a stacked tree; what has no dimension, such as an optimizer's count of steps, is all clients'."""
    if isinstance(tree, Tensor):
        return tree if tree.dim() == 0 or list(rows) == list(range(len(tree))) else tree[list(rows)]
    return {key: select_clients(value, rows) for key, value in tree.items()}


def padded_number(number: int, device: torch.device) -> int:
    """How many clients are computed where ``number`` train: as they are, but on a GPU the next multiple of five, as every number that
    occurs is captured as a graph of its own, which takes longer than a round."""
    return number if device.type == "cpu" else -(-number // 5) * 5


def client_tensors(tensors: Tensors, place: int) -> Tensors:
    """One client's tensors."""
    return {key: value[place].clone() for key, value in tensors.items()}
