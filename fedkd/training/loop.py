"""The training loop. There is only one.

Local training, the server's training of a generator, and distillation all call :func:`fit` with different losses. A loss is a pure
function ``loss(model, batch, broadcast, client_state) -> (scalar, metrics)`` of a network with explicit tensors. The loop can therefore
train one network or several at once, and can record a step and replay it.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.errors import DivergedError
from fedkd.tensor_ops import channels_last
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, eval_copy, tie, trained_names
from fedkd.training.optimizers import OptimizerFactory, copy_with_layout, flatten_optimizer, restore_optimizer, scaled_step
from fedkd.training.step_counter import count_step
from fedkd.training.step_program import Program, Tree
from fedkd.types import Examples, Metrics, State, Tensors

LossFunction = Callable[..., tuple[Tensor, Metrics]]
"""``(model, batch, broadcast, client_state) -> (scalar, metrics)``, pure."""

MAX_PROGRAMS = 32
"""Number of step programs that a process keeps, the most recently used ones."""


@dataclass(frozen=True)
class Execution:
    """How steps are computed. Both settings change rounding and nothing else.

    Args:
        compile: compile a step with ``torch.compile``, which takes tens of seconds for each kind of step.
        autocast: compute convolutions and matrix products in bfloat16; weights keep their type.
    """

    compile: bool = False
    autocast: bool = False

    def casting(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context in which losses are computed on ``device``."""
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if self.autocast else nullcontext()


@dataclass(frozen=True)
class FitResult:
    """The result of a training.

    Args:
        tensors: all parameters and buffers, by name.
        metric_sums: metrics of the loss, and ``loss`` itself, summed over the steps.
        optimizer: state of the optimizer, see :func:`fedkd.training.optimizers.flatten_optimizer`.
    """

    tensors: Tensors
    metric_sums: Metrics
    optimizer: Tensors


def fit(
    module: nn.Module,
    start: Tensors,
    batches: Batches,
    loss: LossFunction,
    make_optimizer: OptimizerFactory,
    *,
    broadcast: State | None = None,
    client_state: State | None = None,
    optimizer_state: Tensors | None = None,
    schedule: Sequence[float] | None = None,
    execution: Execution | None = None,
    trained: Sequence[str] | None = None,
    on_step: Callable[[Metrics], None] | None = None,
) -> FitResult:
    """Train ``module`` from ``start`` with one optimizer step per batch. Images and their kernels have the layout channels last.

    Frozen parameters (``requires_grad=False``) keep their bits. The optimizer does not see them, so they have no weight decay either.

    Args:
        module: the network. Its own parameters and buffers are neither read nor changed.
        start: all parameters and buffers at the beginning, by name.
        batches: the steps.
        loss: ``loss(model, batch, broadcast, client_state) -> (scalar, metrics)``, pure.
        make_optimizer: ``parameters -> optimizer``.
        broadcast: the state that the server sent to all clients; an argument of the loss.
        client_state: the client's own state; an argument of the loss.
        optimizer_state: ``FitResult.optimizer`` of an earlier call; None or empty: a new optimizer.
        schedule: factor of the learning rate in each step; None: 1.
        execution: how steps are computed; None: the defaults.
        trained: names of the parameters that are trained. The others are constants, without weight decay or momentum. None: all that are
            not frozen.
        on_step: called after each step with its metrics, and ``loss``. They must be copied to be kept.

    Raises:
        DivergedError: the sum of losses is not finite.
        RuntimeError: ``start`` lacks a parameter or buffer.
    """
    if missing := sorted(module.state_dict().keys() - start.keys()):
        raise RuntimeError(f"training must start from every parameter and buffer, missing are {missing}")
    execution = execution or Execution()
    names = trained_names(module) if trained is None else list(trained)
    tensors = {key: channels_last(value.detach().clone()) for key, value in start.items()}
    key_parts = (module, tuple(names), loss, batches.data, batches.dtype, execution)
    program = cached_program(key_parts, lambda: single_client_program(module, loss, batches, execution, names))
    inputs = StepInputs.of([batches])
    fixed = {"tensors": tensors, "broadcast": broadcast or {}, "client_state": client_state or {}}
    fixed = program.placed(fixed, inputs.parts()[0])
    parameters = [fixed["tensors"][name].requires_grad_() for name in names]
    optimizer = make_optimizer(parameters)
    restore_optimizer(optimizer, names, optimizer_state or {})
    sums = run_steps(program, fixed, inputs, parameters, optimizer, schedule=schedule, on_step=on_step)
    tied = tie(module, fixed["tensors"])
    result = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in tied.items()}
    return FitResult(result, check_finite(sums, len(batches)), flatten_optimizer(optimizer, names))


# ------------------------------------------------------------------------------------------------------------------- steps
def single_client_program(module: nn.Module, loss: LossFunction, batches: Batches, execution: Execution, names: Sequence[str]) -> Program:
    """The program of one step of one network, of which the parameters ``names`` are trained."""
    train_module, frozen = copy.deepcopy(module).train(), eval_copy(module)

    def loss_values(
        tensors: Tensors, x: Tensor | None, y: Tensor, drawn: Tensors, client_state: State, broadcast: State
    ) -> tuple[Tensor, Metrics]:
        x = None if x is None else channels_last(x)
        return loss(FunctionalModel(train_module, tensors, frozen), Batch(x, y, drawn), broadcast, client_state)

    return Program(with_gradients(loss_values, module, batches, execution, names), compile=execution.compile)


def with_gradients(
    loss_values: Callable[..., tuple[Tensor, Metrics]], module: nn.Module, batches: Batches, execution: Execution, names: Sequence[str]
) -> Callable[[Tree, Tree], Tree]:
    """The function of a step program: ``(fixed, changing) -> {"losses", "metrics", "gradients"}``.

    Args:
        loss_values: ``(tensors, x, y, drawn, client_state, broadcast) -> (losses, metrics)``. The gradient is that of the sum of losses.
        module: the network, for tensors that it uses in several places.
        batches: a training with the same normalization and type of images.
        execution: how steps are computed.
        names: the trained parameters, in the order of the gradients.
    """
    dtype = batches.dtype
    data = None if batches.data is None else batches.data.without_images()  # the program is kept longer than its data

    def step(fixed: Tree, changing: Tree) -> Tree:
        tensors, x = dict(fixed["tensors"]), None
        tensors.update({name: tensors[name].detach().requires_grad_() for name in names})
        tensors = tie(module, tensors)
        if data is not None:
            x = data.normalize(changing["stored"], dtype)
        with execution.casting(changing["y"].device):
            losses, metrics = loss_values(tensors, x, changing["y"], changing["drawn"], fixed["client_state"], fixed["broadcast"])
        gradients = torch.autograd.grad(losses.sum(), [tensors[name] for name in names], allow_unused=True)
        metrics = {name: metric.detach() for name, metric in metrics.items()}
        return {"losses": losses.detach(), "metrics": metrics, "gradients": gradients}

    return step


@dataclass(frozen=True)
class StepInputs:
    """The inputs of all steps of one training, or of several trainings side by side. Images are gathered when a step is read.

    Args:
        data: the examples; None if there are no images.
        rows: rows of the images in the storage of ``data``, [S, B] or [S, K, B]; None if there are no images.
        y: labels, of the same shape.
        drawn: random numbers and schedules, [S, ...] or [S, K, ...], by name.
        sizes: number of examples of each step, see :class:`~fedkd.training.batch.Batches`; None: B in all steps.
        per_example: names of the tensors in ``drawn`` with one entry per example.
    """

    data: Examples | None
    rows: Tensor | None
    y: Tensor
    drawn: Tensors
    sizes: tuple[int, ...] | None = None
    per_example: tuple[str, ...] = ()

    @classmethod
    def of(cls, batches: Sequence[Batches], steps: slice = slice(None), *, together: bool = False) -> "StepInputs":
        """The inputs of some steps.

        Args:
            batches: one training, or several with the same data and the same sizes of batches.
            steps: the steps to include.
            together: stack the trainings side by side; if false, ``batches`` is a single training.
        """
        first = batches[0]
        join = (lambda tensors: torch.stack(tensors, 1)) if together else (lambda tensors: tensors[0])
        indices = [one.data.storage_rows(one.index[steps]) for one in batches if one.data is not None and one.index is not None]
        rows = None if first.data is None else join(indices)
        drawn = {name: join([one.drawn[name][steps] for one in batches]) for name in first.drawn}
        sizes = None if first.sizes is None else first.sizes[steps]
        same = all((None if one.sizes is None else one.sizes[steps]) == sizes for one in batches)
        assert same, "trainings side by side have batches of the same sizes"
        return cls(first.data, rows, join([one.y[steps] for one in batches]), drawn, sizes, first.per_example)

    def __len__(self) -> int:
        return len(self.y)

    def parts(self) -> list["StepInputs"]:
        """Consecutive steps with batches of one size, one part after the other. At least one part."""
        if self.sizes is None or not self.sizes:
            return [replace(self, sizes=None)]
        parts, start = [], 0
        dim = (self.y if self.rows is None else self.rows).dim() - 1  # the dimension of the examples; y may have more after it

        for size, group in groupby(self.sizes):
            end = start + len(list(group))
            rows, y = (None if tensor is None else tensor[start:end].narrow(dim, 0, size) for tensor in (self.rows, self.y))
            drawn = {
                name: value[start:end].narrow(dim, 0, size) if name in self.per_example else value[start:end]
                for name, value in self.drawn.items()
            }
            assert y is not None, "there are labels"
            parts.append(StepInputs(self.data, rows, y, drawn))
            start = end
        return parts

    def __getitem__(self, step: int) -> Tree:
        images = {} if self.data is None or self.rows is None else {"stored": self.data.gather(self.rows[step])}
        return {**images, "y": self.y[step], "drawn": {name: value[step] for name, value in self.drawn.items()}}


def run_steps(
    program: Program,
    fixed: Tree,
    inputs: StepInputs,
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    lr_scales: Sequence[Tensor] | None = None,
    schedule: Sequence[float] | None = None,
    on_step: Callable[[Metrics], None] | None = None,
) -> Metrics:
    """Train with one optimizer step for each of ``inputs``.

    Args:
        program: computes losses, metrics, and gradients.
        fixed: the program's inputs that are the same in all steps. Its tensors are trained in place.
        inputs: the program's inputs of each step.
        parameters: the trained tensors, in the order of the gradients.
        optimizer: the optimizer of ``parameters``.
        lr_scales: factor of the change of each parameter, broadcast to its shape; None: 1.
        schedule: factor of the learning rate in each step; None: 1.
        on_step: called after each step with its metrics, and ``loss``.

    Returns:
        Metrics, and ``loss``, summed over the steps.
    """
    sums: Metrics = {}
    rates = [group["lr"] for group in optimizer.param_groups]
    for number, result in enumerate(chain.from_iterable(program.steps(fixed, part) for part in inputs.parts())):
        if schedule is not None:
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * schedule[number]
        for parameter, gradient in zip(parameters, result["gradients"]):
            same_layout = gradient is None or gradient.stride() == parameter.stride()
            parameter.grad = gradient if same_layout else copy_with_layout(parameter, gradient)
        scaled_step(optimizer, parameters, lr_scales)
        metrics = {"loss": result["losses"], **result["metrics"]}
        if on_step is not None:
            on_step(metrics)
        for name, metric in metrics.items():
            sums[name] = sums[name] + metric if name in sums else metric.clone()
        count_step()
    return sums


def check_finite(sums: Metrics, num_steps: int) -> Metrics:
    """``sums`` if the sum of losses is finite.

    Raises:
        DivergedError: it is not.
    """
    if sums and not torch.isfinite(sums["loss"]):
        total = sums["loss"].item()
        raise DivergedError(f"the loss is no longer finite after {num_steps} steps (sum {total}): lower the learning rate", loss=total)
    return sums


# -------------------------------------------------------------------------------------------------- the cache of programs
_programs: OrderedDict[Hashable, tuple[tuple[Any, ...], Program]] = OrderedDict()


def cached_program(parts: tuple[Any, ...], make: Callable[[], Program]) -> Program:
    """The program for ``parts``: one that this process has kept, or else a new one.

    Args:
        parts: everything that the program depends on: network, names of its trained parameters, loss, data, type of images, execution.
        make: creates the program.
    """
    key = tuple(part_identity(part) for part in parts)
    if key not in _programs:
        kept = tuple(part for part in parts if not isinstance(part, Examples))  # kept alive, so that no new object gets their id
        _programs[key] = (kept, make())
    _programs.move_to_end(key)
    if len(_programs) > MAX_PROGRAMS:
        _programs.popitem(last=False)
    return _programs[key][1]


def part_identity(part: Any) -> Hashable:
    """The key of one part of a program. Data are identified by their normalization, networks and strategies by the object itself."""
    if isinstance(part, partial):
        values = {name: tuple(map(id, value)) if isinstance(value, tuple) else id(value) for name, value in part.keywords.items()}
        return (part_identity(part.func), *map(id, part.args), *values.items())
    if isinstance(part, Examples):
        return (part.scale, part.mean, part.std, part.tokens)
    if hasattr(part, "__self__") and hasattr(part, "__func__"):
        return (id(part.__self__), id(part.__func__))
    return part if isinstance(part, Execution | torch.dtype | tuple) else id(part)
