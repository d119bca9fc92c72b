"""A network with explicit tensors, as a loss receives it, and operations on the named tensors of networks."""

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedkd.types import Tensors


class FunctionalModel:
    """A network that is called with explicit tensors instead of its own parameters and buffers.

    ``model(x)`` runs the network, ``model.head(z)`` its head. ``model.parameters()`` are the trained parameters, by name.
    ``model.at(tensors)`` is the same network with other weights, in eval mode and without gradients. ``model.gradient(loss)`` is the
    gradient of a loss, and ``model.moved(changes)`` the same network in the same mode at other weights.

    Args:
        module: the network, in train mode if it is trained.
        tensors: all parameters and buffers, by name; None: those of ``module``.
        frozen: the same network in eval mode; None: it is created when it is needed.
        plain: the same network in the same mode with PyTorch's own layers, for gradients inside a loss; None: ``module``.
    """

    def __init__(
        self, module: nn.Module, tensors: Tensors | None = None, frozen: nn.Module | None = None, plain: nn.Module | None = None
    ) -> None:
        self._module, self._frozen, self._plain = module, frozen, module if plain is None else plain
        self._tensors = dict(module.state_dict(keep_vars=True)) if tensors is None else tensors

    def __call__(self, *inputs: Any) -> Any:
        return call_with(self._module, self._tensors, *inputs)

    def head(self, z: Tensor) -> Tensor:  # [..., D] -> [..., C]
        """The logits of embeddings."""
        logits: Tensor = functional_call(self._module.get_submodule("head"), submodule_tensors(self._tensors, "head"), (z,))
        return logits

    def submodule(self, name: str) -> "FunctionalModel":
        """The submodule ``name`` with its part of the tensors."""
        frozen = None if self._frozen is None else self._frozen.get_submodule(name)
        plain = self._plain.get_submodule(name)
        return FunctionalModel(self._module.get_submodule(name), submodule_tensors(self._tensors, name), frozen, plain)

    def parameters(self) -> Tensors:
        """The trained parameters by name, with gradients. Frozen parameters and buffers are not included."""
        return {name: self._tensors[name] for name in trained_names(self._module)}

    def moved(self, changes: Tensors) -> "FunctionalModel":
        """The same network in the same mode with changed weights, through which gradients reach this model's parameters.

        Args:
            changes: what is added to parameters, by name.
        """
        tensors = {name: value + changes[name] if name in changes else value for name, value in self._tensors.items()}
        return FunctionalModel(self._module, tensors, self._frozen, self._plain)

    def gradient(self, loss: Callable[["FunctionalModel"], Tensor]) -> Tensors:
        """The gradient of a loss with respect to the trained parameters, by name, as constants.

        The network runs in its own mode. Its buffers, such as BatchNorm statistics, do not change.

        Args:
            loss: from a model with these weights to a scalar.
        """
        parameters = self.parameters()
        buffers = {name: value for name, value in self._tensors.items() if name not in parameters}

        def value(parameters: Tensors) -> Tensor:
            copies = {name: buffer.clone() for name, buffer in buffers.items()}
            return loss(FunctionalModel(self._plain, {**copies, **parameters}, self._frozen))

        return {name: gradient.detach() for name, gradient in torch.func.grad(value)(parameters).items()}

    def at(self, tensors: Tensors) -> "FunctionalModel":
        """The same network with other weights, in eval mode and without gradients.

        Args:
            tensors: parameters and buffers by name. Missing ones are those of this model.
        """
        frozen = eval_copy(self._module) if self._frozen is None else self._frozen
        return FunctionalModel(frozen, {key: value.detach() for key, value in {**self._tensors, **tensors}.items()}, frozen)

    def frozen(self) -> "FunctionalModel":
        """The same network with the same weights, in eval mode and without gradients."""
        return self.at({})


def trained_names(module: nn.Module) -> list[str]:
    """The names of the parameters that training changes. Those with ``requires_grad=False`` are frozen."""
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def keep_frozen(module: nn.Module, initial: Tensors, tensors: Tensors) -> Tensors:
    """``tensors`` with the frozen parameters of ``initial``. A mean of equal values is rounded, and their bits would change."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {key: initial[key] if key in frozen else value for key, value in tensors.items()}


_tied_names: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()


def tied_names(module: nn.Module) -> dict[str, str]:
    """The further names of each parameter and buffer that ``module`` uses in several places, with the first name of each."""
    if module not in _tied_names:
        first: dict[int, str] = {}
        named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
        names = [(name, first.setdefault(id(tensor), name)) for name, tensor in named]
        _tied_names[module] = {name: original for name, original in names if name != original}
    return _tied_names[module]


def tie(module: nn.Module, tensors: Tensors) -> Tensors:
    """``tensors``, with one object under all names of a tensor that ``module`` uses in several places."""
    tied = {name: tensors[first] for name, first in tied_names(module).items() if name in tensors and first in tensors}
    return {**tensors, **tied} if tied else tensors


def call_with(module: nn.Module, tensors: Tensors, *inputs: Any) -> Any:
    """``module(*inputs)`` with these parameters and buffers instead of its own."""
    return functional_call(module, tie(module, tensors), inputs)


_eval_copies: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def eval_copy(module: nn.Module) -> nn.Module:
    """A copy of ``module`` in eval mode that shares its tensors. It is created once per module, also while a step is recorded.

    Use the copy only with explicit tensors, as in :class:`FunctionalModel`.
    """
    if module not in _eval_copies:
        shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        _eval_copies[module] = copy.deepcopy(module, shared).eval()
    return _eval_copies[module]


def submodule_tensors(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors of the submodule ``prefix``, with the names that the submodule gives them."""
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}


def snapshot(module: nn.Module) -> Tensors:
    """Copies of all parameters and buffers, by name."""
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def load(module: nn.Module, tensors: Tensors) -> None:
    """Copy ``tensors`` into ``module`` in place.

    Args:
        module: the network to change.
        tensors: all parameters and buffers, by name.

    Raises:
        RuntimeError: a tensor is missing, unknown, or has another shape; the message names it.
    """
    targets = module.state_dict()
    if {name: target.shape for name, target in targets.items()} != {name: value.shape for name, value in tensors.items()}:
        module.load_state_dict(tensors, strict=True)  # raises an error that explains the difference; too slow for the normal case
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])
