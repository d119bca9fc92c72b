"""Training of several clients with one architecture as one tensor program."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, eval_copy, tie, trained_names
from fedkd.training.loop import (
    Execution,
    FitResult,
    LossFunction,
    StepInputs,
    cached_program,
    check_finite,
    run_steps,
    with_gradients,
)
from fedkd.training.optimizers import OptimizerFactory, flatten_optimizer, restore_optimizer
from fedkd.training.step_program import Program
from fedkd.training.vectorized_layers import vectorized_copy, with_constant_padding
from fedkd.types import Metrics, State, Tensors

GPU_MULTIPLE = 5
"""On a GPU the number of clients is padded to a multiple of this."""


def fit_clients(
    module: nn.Module,
    starts: Sequence[Tensors],
    batches: Sequence[Batches],
    loss: LossFunction,
    make_optimizer: OptimizerFactory,
    *,
    broadcast: State,
    client_states: Sequence[State],
    lr_factors: Sequence[float],
    execution: Execution | None = None,
    trained: Sequence[str] | None = None,
) -> list[FitResult]:
    """Train K clients together. The result of each client equals that of :func:`fedkd.training.loop.fit`, except for rounding.

    The loss is mapped over the stacked clients with ``torch.vmap`` and differentiated outside the map. Clients with fewer steps are
    removed when they have finished.

    Args:
        module: the network that all clients have.
        starts: for each client all parameters and buffers at the beginning, by name.
        batches: for each client its steps, all of one data set and with batches of the same sizes, as far as the steps go.
        loss: ``loss(model, batch, broadcast, client_state) -> (scalar, metrics)``, pure.
        make_optimizer: ``parameters -> optimizer``. Its steps must be proportional to its learning rate, as those of torch's optimizers.
        broadcast: the state that the server sent to all clients.
        client_states: each client's own state.
        lr_factors: for each client its learning rate over that of ``make_optimizer``, > 0.
        execution: how steps are computed; None: the defaults.
        trained: names of the parameters that are trained; None: all that are not frozen.

    Returns:
        The result of each client, in the order of ``starts``, without the state of the optimizer.

    Raises:
        DivergedError: the sum of losses of a client is not finite.
    """
    execution = execution or Execution()
    names, first = trained_names(module) if trained is None else list(trained), batches[0]
    key_parts = (module, tuple(names), loss, first.data, first.dtype, execution, "together")
    program = cached_program(key_parts, lambda: vectorized_program(module, loss, first, execution, names))
    active = sorted(range(len(starts)), key=lambda k: -len(batches[k]))  # clients with the fewest steps are last
    tensors, states = stack_trees([starts[k] for k in active]), stack_trees([client_states[k] for k in active])
    sums: Metrics = {}
    optimizer_state: Tensors = {}
    results: dict[int, FitResult] = {}
    start = 0
    while active:
        number, end = len(active), len(batches[active[-1]])
        num_padded = padded_number(number, tensors[names[0]].device)
        rows = [*range(number), *[number - 1] * (num_padded - number)]  # copies of the last client are padding
        padded = [active[row] for row in rows]
        inputs = StepInputs.of([batches[k] for k in padded], slice(start, end), together=True)
        fixed = {"tensors": select_clients(tensors, rows), "broadcast": broadcast, "client_state": select_clients(states, rows)}
        fixed = program.placed(fixed, inputs.parts()[0])
        parameters = [fixed["tensors"][name].requires_grad_() for name in names]
        optimizer = make_optimizer(parameters)
        restore_optimizer(optimizer, names, select_clients(optimizer_state, rows))
        more = run_steps(program, fixed, inputs, parameters, optimizer, lr_scales(parameters, [lr_factors[k] for k in padded]))
        sums = {name: sums[name] + value[:number] if name in sums else value[:number] for name, value in more.items()}
        remaining = [k for k in active if len(batches[k]) > end]
        tensors = {key: value.detach() for key, value in tie(module, fixed["tensors"]).items()}
        for row, k in list(enumerate(active))[len(remaining) :]:
            results[k] = FitResult(client_tensors(tensors, row), check_finite(client_tensors(sums, row), end), {})
        if remaining:
            kept = list(range(len(remaining)))
            optimizer_state = select_clients(flatten_optimizer(optimizer, names), kept)
            tensors, sums, states = select_clients(tensors, kept), select_clients(sums, kept), select_clients(states, kept)
        active, start = remaining, end
    return [results[k] for k in range(len(starts))]


def vectorized_program(module: nn.Module, loss: LossFunction, batches: Batches, execution: Execution, names: Sequence[str]) -> Program:
    """The program of one step of several networks, of which the parameters ``names`` are trained."""
    vectorized, frozen, plain = vectorized_copy(module), eval_copy(module), with_constant_padding(copy.deepcopy(module)).train()

    def loss_values(
        tensors: Tensors, x: Tensor | None, y: Tensor, drawn: Tensors, client_state: State, broadcast: State
    ) -> tuple[Tensor, Metrics]:
        def client_loss(tensors: Tensors, x: Tensor | None, y: Tensor, drawn: Tensors, client_state: State) -> tuple[Tensor, Metrics]:
            return loss(FunctionalModel(vectorized, tensors, frozen, plain), Batch(x, y, drawn), broadcast, client_state)

        losses, metrics = torch.vmap(client_loss)(tensors, x, y, drawn, client_state)
        return losses, metrics

    return Program(with_gradients(loss_values, module, batches, execution, names), compile=execution.compile)


def lr_scales(parameters: Sequence[Tensor], factors: Sequence[float]) -> list[Tensor] | None:
    """The factors of the clients, shaped for each stacked parameter [K, ...]; None if all factors are 1."""
    if all(factor == 1 for factor in factors):
        return None
    return [torch.tensor(factors, dtype=p.dtype, device=p.device).view(-1, *[1] * (p.dim() - 1)) for p in parameters]


def padded_number(number: int, device: torch.device) -> int:
    """The number of clients that are computed for ``number`` clients.

    On a GPU it is the next multiple of :data:`GPU_MULTIPLE`. Every number is captured as a CUDA graph, which takes longer than a round.
    """
    return number if device.type == "cpu" else -(-number // GPU_MULTIPLE) * GPU_MULTIPLE


# ----------------------------------------------------------------------------------------------------------- stacked clients
def stack_trees(trees: Sequence[Any]) -> Any:
    """Stack nested dictionaries of tensors with the same keys and shapes: the result has tensors [K, ...]."""
    if isinstance(trees[0], Tensor):
        return torch.stack(list(trees))
    return {key: stack_trees([tree[key] for tree in trees]) for key in trees[0]}


def select_clients(tree: Any, rows: Sequence[int]) -> Any:
    """The clients ``rows`` of a stacked tree. Tensors without dimensions, such as an optimizer's step count, belong to all clients."""
    if isinstance(tree, Tensor):
        return tree if tree.dim() == 0 or list(rows) == list(range(len(tree))) else tree[list(rows)]
    return {key: select_clients(value, rows) for key, value in tree.items()}


def client_tensors(tensors: Tensors, row: int) -> Tensors:
    """Copies of the tensors of one client."""
    return {key: value[row].clone() for key, value in tensors.items()}
