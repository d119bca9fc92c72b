"""The only training loop.

Local training, the server's training of a generator and distillation are all ``fit`` with another loss. A loss is a pure
function ``loss(model, batch, shared, own) -> (scalar, metrics)`` of a network bound to its tensors, so that the loop is
free to train one network or many at once, and to record a step once and replay it.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.errors import DivergedError
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, eval_copy
from fedkd.training.optimizers import OptimizerFactory, scaled_step, flatten_optimizer, copy_with_layout, restore_optimizer
from fedkd.training.step_program import Program, Tree
from fedkd.types import Examples, Metrics, State, Tensors

LossFunction = Callable[..., tuple[Tensor, Metrics]]


@dataclass(frozen=True)
class Execution:
    """How steps are computed. Both choices change rounding, and neither changes anything else.

    Args:
        compile: fuse the operations of a step with ``torch.compile``, which takes tens of seconds for each kind of step.
        autocast: compute convolutions and products in bfloat16; weights stay as they are.
    """

    compile: bool = False
    autocast: bool = False

    def casting(self, device: torch.device) -> AbstractContextManager:
        """The context in which losses are computed."""
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if self.autocast else nullcontext()


@dataclass(frozen=True)
class FitResult:
    """What training leaves: the tensors, the metrics summed over steps (``loss`` among them), the optimizer's state."""

    tensors: Tensors
    metric_sums: Metrics
    optimizer: Tensors


def fit(
    module: nn.Module,
    start: Tensors,
    batches: Batches,
    loss: LossFunction,
    optimizer: OptimizerFactory,
    *,
    broadcast: State | None = None,
    client_state: State | None = None,
    optimizer_state: Tensors | None = None,
    schedule: Sequence[float] | None = None,
    execution: Execution | None = None,
) -> FitResult:
    """Train ``module`` from ``start``, one optimizer step a batch. Images and kernels are laid out channels last.

    Args:
        module: the network; its own values are neither read nor written.
        start: every parameter and buffer at the beginning.
        batches: the steps.
        loss: pure, ``loss(model, batch, shared, own) -> (scalar, metrics)``.
        optimizer: ``parameters -> optimizer``.
        shared: what every client received; handed to the loss.
        own: this client's memory; handed to the loss.
        optimizer_state: as ``Fitted.optimizer`` of an earlier call; empty or None begins anew.
        schedule: by what the learning rate is multiplied in each step; None is one.
        execution: how steps are computed.

    Raises:
        DivergedError: the sum of losses is not finite.
        RuntimeError: ``start`` lacks a parameter or buffer.
    """
    if missing := sorted(module.state_dict().keys() - start.keys()):
        raise RuntimeError(f"training must start from every parameter and buffer, missing are {missing}")
    execution = execution or Execution()
    names = [name for name, _ in module.named_parameters()]
    tensors = {key: channels_last(value.detach().clone()) for key, value in start.items()}
    program = cached_program((module, loss, batches.data, batches.dtype, execution), lambda: single_client_program(module, loss, batches, execution))
    material = StepInputs.of([batches])
    fixed = {"tensors": tensors, "broadcast": broadcast or {}, "client_state": client_state or {}}
    fixed = program.placed(fixed, material)
    leaves = [fixed["tensors"][name].requires_grad_() for name in names]
    stepper = optimizer(leaves)
    restore_optimizer(stepper, names, optimizer_state or {})
    sums = run_steps(program, fixed, material, leaves, stepper, schedule=schedule)
    left = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in fixed["tensors"].items()}
    return FitResult(left, check_finite(sums, len(batches)), flatten_optimizer(stepper, names))


def single_client_program(module: nn.Module, loss: LossFunction, batches: Batches, execution: Execution) -> Program:
    """One step of one network."""
    awake, frozen = copy.deepcopy(module).train(), eval_copy(module)

    def values(tensors: Tensors, x: Tensor | None, y: Tensor, drawn: Tensors, own: State, shared: State) -> tuple[Tensor, Metrics]:
        x = None if x is None else channels_last(x)
        return loss(FunctionalModel(awake, tensors, frozen), Batch(x, y, drawn), shared, own)

    return Program(with_gradients(values, module, batches, execution), compile=execution.compile)


def with_gradients(values: Callable[..., tuple[Tensor, Metrics]], module: nn.Module, batches: Batches, execution: Execution) -> Callable:
    """``(fixed, step) -> {"losses", "metrics", "gradients"}``: what ``values`` gives, and the gradient of its sum by parameters."""
    names, dtype = [name for name, _ in module.named_parameters()], batches.dtype
    data = None if batches.data is None else batches.data.without_images()  # a program outlives its data

    def step(fixed: Tree, changing: Tree) -> Tree:
        tensors, x = dict(fixed["tensors"]), None
        tensors.update({name: tensors[name].detach().requires_grad_() for name in names})
        if "stored" in changing:
            x = data.normalize(changing["stored"], dtype)
        with execution.casting(changing["y"].device):
            losses, metrics = values(tensors, x, changing["y"], changing["drawn"], fixed["client_state"], fixed["broadcast"])
        gradients = torch.autograd.grad(losses.sum(), [tensors[name] for name in names], allow_unused=True)
        metrics = {name: metric.detach() for name, metric in metrics.items()}
        return {"losses": losses.detach(), "metrics": metrics, "gradients": gradients}

    return step


@dataclass(frozen=True)
class StepInputs(Sequence):
    """The steps of one training, or of several side by side, gathered when they are asked for.

    Args:
        data: where the images are; None where there are none.
        where: their places [S, B] or [S, K, B].
        y: labels alike.
        drawn: draws [S, ...] or [S, K, ...].
    """

    data: Examples | None
    where: Tensor | None
    y: Tensor
    drawn: Tensors

    @classmethod
    def of(cls, batches: Sequence[Batches], steps: slice = slice(None), *, together: bool = False) -> "StepInputs":
        """One training's steps, or those of several side by side."""
        first = batches[0]
        join = (lambda tensors: torch.stack(tensors, 1)) if together else (lambda tensors: tensors[0])
        where = None if first.data is None else join([one.data.storage_rows(one.index[steps]) for one in batches])
        drawn = {name: join([one.drawn[name][steps] for one in batches]) for name in first.drawn}
        return cls(first.data, where, join([one.y[steps] for one in batches]), drawn)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, step: int) -> Tree:
        images = {} if self.data is None else {"stored": self.data.gather(self.where[step])}
        return {**images, "y": self.y[step], "drawn": {name: value[step] for name, value in self.drawn.items()}}


def run_steps(
    program: Program,
    fixed: Tree,
    material: StepInputs,
    leaves: Sequence[Tensor],
    stepper: torch.optim.Optimizer,
    lr_scales: Sequence[Tensor] | None = None,
    schedule: Sequence[float] | None = None,
) -> Metrics:
    """One optimizer step for each of ``material``; the metrics, losses among them, summed.

    Args:
        program: gives losses, metrics and gradients.
        fixed: what the program takes beside each step's material; its tensors are those that are trained.
        material: the steps.
        leaves: the parameters among them, in the order of the gradients.
        stepper: the optimizer of ``leaves``.
        lr_scales: what every parameter's step is multiplied by, broadcast; None is one.
        schedule: what the learning rate is multiplied by in each step; None is one.
    """
    sums: Metrics = {}
    rates = [group["lr"] for group in stepper.param_groups]
    for number, result in enumerate(program.steps(fixed, material)):
        for group, rate in zip(stepper.param_groups, rates) if schedule is not None else ():
            group["lr"] = rate * schedule[number]
        for leaf, gradient in zip(leaves, result["gradients"]):
            leaf.grad = gradient if gradient is None or gradient.stride() == leaf.stride() else copy_with_layout(leaf, gradient)
        scaled_step(stepper, leaves, lr_scales)
        for name, metric in {"loss": result["losses"], **result["metrics"]}.items():
            sums[name] = sums[name] + metric if name in sums else metric.clone()
    return sums


def channels_last(tensor: Tensor) -> Tensor:
    """Images and kernels in the layout that convolutions are fast in; others as they are."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


_programs: OrderedDict[Hashable, tuple[tuple, Program]] = OrderedDict()


def cached_program(parts: tuple, make: Callable[[], Program]) -> Program:
    """The program made of ``parts`` earlier in this process, or a new one; the 32 used last are kept."""
    key = tuple(part_identity(one) for one in parts)
    if key not in _programs:
        kept = tuple(one for one in parts if not isinstance(one, Examples))  # so that nothing else can take their identity
        _programs[key] = (kept, make())
    _programs.move_to_end(key)
    if len(_programs) > 32:
        _programs.popitem(last=False)
    return _programs[key][1]


def part_identity(part: Any) -> Hashable:
    """What tells a part of a program from others: networks and strategies by being the same object, data by how it is scaled."""
    if isinstance(part, partial):
        return (part_identity(part.func), *map(id, part.args), *((name, id(value)) for name, value in part.keywords.items()))
    if isinstance(part, Examples):
        return (part.scale, part.mean, part.std)
    if hasattr(part, "__self__") and hasattr(part, "__func__"):
        return (id(part.__self__), id(part.__func__))
    return part if isinstance(part, Execution | torch.dtype) else id(part)


def check_finite(sums: Metrics, num_steps: int) -> Metrics:
    """``sums`` again, if the sum of losses is a number."""
    if sums and not torch.isfinite(sums["loss"]):
        raise DivergedError(f"the loss is no longer finite after {num_steps} steps (sum {sums['loss'].item()}): lower the learning rate")
    return sums
