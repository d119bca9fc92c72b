"""The only training loop, and the only evaluation loop.

Local training, the server's training of a generator and distillation are all ``fit`` with another loss. A loss is a pure
function ``loss(model, batch, shared, own) -> (scalar, metrics)`` of a network bound to its tensors, so that the loop is
free to train one network or many at once.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedkd.losses.cross_entropy import cross_entropy
from fedkd.types import Examples, Metrics, State, Tensors

OptimizerFactory = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class Batch:
    """One step's material: images x, labels y [B], and the strategy's own draws of this step as further attributes."""

    x: Tensor | None
    y: Tensor
    drawn: dict[str, Tensor] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["drawn"][name]
        except KeyError:
            raise AttributeError(f"this batch has no {name!r}; it has x, y and {sorted(self.__dict__.get('drawn', ()))}") from None


@dataclass(frozen=True)
class Batches:
    """All steps of one training at once.

    Args:
        y: labels [S, B].
        index: which examples of ``data`` [S, B]; None where nothing but draws is trained on.
        data: where the images are.
        dtype: of the images.
        drawn: tensors [S, ...] that steps see as attributes of their batch.
    """

    y: Tensor
    index: Tensor | None = None
    data: Examples | None = None
    dtype: torch.dtype = torch.float32
    drawn: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.y)

    def __iter__(self) -> Iterator[Batch]:
        for step in range(len(self)):
            x = None if self.data is None else self.data.images(self.index[step], self.dtype)
            yield Batch(x, self.y[step], {name: value[step] for name, value in self.drawn.items()})

    def with_drawn(self, drawn: dict[str, Tensor]) -> "Batches":
        """The same steps with these draws; each must have the number of steps as its first dimension."""
        for name, value in drawn.items():
            assert len(value) == len(self), f"draw {name!r} has {len(value)} steps, the training {len(self)}"
        return replace(self, drawn=drawn)


class Bound:
    """A network bound to tensors: what a loss sees of it.

    ``model(x)`` runs it, ``model.head(z)`` its head, ``model.parameters()`` are its live parameters by name, and
    ``model.at(tensors)`` is the same network with other weights: in eval mode, detached.
    """

    def __init__(self, module: nn.Module, tensors: Tensors | None = None, twin: nn.Module | None = None) -> None:
        self._module, self._tensors, self._twin = module, tensors, twin

    def __call__(self, *inputs: Tensor) -> Any:
        if self._tensors is None:
            return self._module(*inputs)
        return functional_call(self._module, self._tensors, inputs)

    def head(self, z: Tensor) -> Tensor:
        """Logits [..., C] of embeddings z [..., D]."""
        if self._tensors is None:
            return self._module.head(z)
        return functional_call(self._module.head, part(self._tensors, "head"), (z,))

    def parameters(self) -> Tensors:
        """The parameters (no buffers) by name, with gradients."""
        names = [name for name, _ in self._module.named_parameters()]
        return dict(self._module.named_parameters()) if self._tensors is None else {name: self._tensors[name] for name in names}

    def at(self, tensors: Tensors) -> "Bound":
        """This network with ``tensors``, which may be parameters alone (buffers are then this network's)."""
        if self._twin is None:
            self._twin = copy.deepcopy(self._module).eval()
        mine = snapshot(self._module) if self._tensors is None else self._tensors
        return Bound(self._twin, {key: value.detach() for key, value in {**mine, **tensors}.items()})


def part(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors of one submodule, named as it names them."""
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}


def one_hot(y: Tensor, num_classes: int) -> Tensor:  # [...] -> [..., C]
    """Integers 0 and 1. ``F.one_hot`` looks at the values of ``y``, which a loss that trains many clients at once cannot."""
    return (y[..., None] == torch.arange(num_classes, device=y.device)).long()


def snapshot(module: nn.Module) -> Tensors:
    """Copies of all parameters and buffers."""
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def load(module: nn.Module, tensors: Tensors) -> None:
    """Copy ``tensors`` into ``module``; every parameter and buffer must be there."""
    module.load_state_dict(tensors, strict=True)


@dataclass(frozen=True)
class Fitted:
    """What training leaves: the tensors, the metrics summed over steps (``loss`` among them), the optimizer's state."""

    tensors: Tensors
    sums: Metrics
    optimizer: Tensors


def fit(
    module: nn.Module,
    start: Tensors,
    batches: Batches,
    loss: Callable[..., tuple[Tensor, Metrics]],
    optimizer: OptimizerFactory,
    *,
    shared: State | None = None,
    own: State | None = None,
    optimizer_state: Tensors | None = None,
) -> Fitted:
    """Train ``module`` from ``start``, one optimizer step a batch.

    Args:
        module: the network; its own values are overwritten (it is a workspace).
        start: every parameter and buffer at the beginning.
        batches: the steps.
        loss: pure, ``loss(model, batch, shared, own) -> (scalar, metrics)``.
        optimizer: ``parameters -> optimizer``.
        shared: what every client received; handed to the loss.
        own: this client's memory; handed to the loss.
        optimizer_state: as ``Fitted.optimizer`` of an earlier call; empty or None begins anew.

    Raises:
        FloatingPointError: the sum of losses is not finite.
    """
    load(module, start)
    module.train()
    model, names = Bound(module), [name for name, _ in module.named_parameters()]
    stepper = optimizer(module.parameters())
    restore_optimizer(stepper, names, optimizer_state or {})
    sums: Metrics = {}
    for batch in batches:
        value, metrics = loss(model, batch, shared or {}, own or {})
        stepper.zero_grad(set_to_none=True)
        value.backward()
        stepper.step()
        for name, metric in {"loss": value, **metrics}.items():
            sums[name] = sums[name] + metric.detach() if name in sums else metric.detach()
    return Fitted(snapshot(module), finite(sums, len(batches)), flatten_optimizer(stepper, names))


def finite(sums: Metrics, num_steps: int) -> Metrics:
    """``sums`` again, if the sum of losses is a number."""
    if sums and not torch.isfinite(sums["loss"]):
        raise FloatingPointError(
            f"the loss is no longer finite after {num_steps} steps (sum {sums['loss'].item()}): lower the learning rate"
        )
    return sums


def scaled(optimizer: OptimizerFactory, factor: float) -> OptimizerFactory:
    """The same optimizer with its learning rate multiplied by ``factor``."""

    def make(parameters: Any) -> torch.optim.Optimizer:
        made = optimizer(parameters)
        for group in made.param_groups:
            group["lr"] = group["lr"] * factor
        return made

    return make


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: list[str]) -> Tensors:
    """An optimizer's state as ``{"exp_avg/fc.weight": tensor}``, parameters called by ``names`` in their order."""
    state = optimizer.state_dict()["state"]
    return {
        f"{field}/{names[i]}": torch.as_tensor(value).clone()
        for i in sorted(state)
        for field, value in state[i].items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: Tensors) -> None:
    """Put what :func:`flatten_optimizer` gave back into a fresh optimizer of the same parameters."""
    if not tensors:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, parameter = key.partition("/")
        state.setdefault(names.index(parameter), {})[name] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@dataclass(frozen=True)
class Score:
    """Counts of one evaluation: per class the number of examples and of correct answers [C], and the sum of losses."""

    total: Tensor
    correct: Tensor
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of correct answers, 0..1; nan where there was no example."""
        return self.correct.sum().item() / n if (n := self.total.sum().item()) else float("nan")


@torch.no_grad()
def evaluate(
    model: Callable[[Tensor], Any], examples: Examples, batch_size: int, num_classes: int, dtype: torch.dtype = torch.float32
) -> Score:
    """Score ``model`` (images to :class:`~fedkd.types.Output`, in eval mode already) on all of ``examples``."""
    device = examples.y.device
    total = torch.zeros(num_classes, dtype=torch.int64, device=device)
    correct, loss = total.clone(), 0.0
    for index in torch.arange(len(examples), device=device).split(batch_size):
        y = examples.y[index]
        logits = model(examples.images(index, dtype)).logits
        total += torch.bincount(y, minlength=num_classes)
        correct += torch.bincount(y[logits.argmax(-1) == y], minlength=num_classes)
        loss += cross_entropy(logits, y).sum().item()
    return Score(total.cpu(), correct.cpu(), loss)
