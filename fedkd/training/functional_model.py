"""A network bound to tensors: what a loss sees of it, and the handling of a network's tensors by name."""

import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedkd.types import Tensors


class FunctionalModel:
    """A network bound to tensors: what a loss sees of it.

    ``model(x)`` runs it, ``model.head(z)`` its head, ``model.parameters()`` are its live parameters by name, and
    ``model.at(tensors)`` is the same network with other weights: in eval mode, detached.

    Args:
        module: the network; in train mode where it is to train.
        tensors: every parameter and buffer; those of ``module`` if None.
        frozen: the same network in eval mode; made when it is asked for if None.
    """

    def __init__(self, module: nn.Module, tensors: Tensors | None = None, frozen: nn.Module | None = None) -> None:
        self._module, self._frozen = module, frozen
        self._tensors = dict(module.state_dict(keep_vars=True)) if tensors is None else tensors

    def __call__(self, *inputs: Any) -> Any:
        return functional_call(self._module, self._tensors, inputs)

    def head(self, z: Tensor) -> Tensor:
        """Logits [..., C] of embeddings z [..., D]."""
        return functional_call(self._module.head, submodule_tensors(self._tensors, "head"), (z,))

    def submodule(self, name: str) -> "FunctionalModel":
        """One submodule, bound to its share of the tensors."""
        frozen = None if self._frozen is None else getattr(self._frozen, name)
        return FunctionalModel(getattr(self._module, name), submodule_tensors(self._tensors, name), frozen)

    def eval_copy(self) -> "FunctionalModel":
        """The same network in eval mode, detached."""
        return self.at({})

    def parameters(self) -> Tensors:
        """The parameters (no buffers) by name, with gradients."""
        return {name: self._tensors[name] for name, _ in self._module.named_parameters()}

    def at(self, tensors: Tensors) -> "FunctionalModel":
        """This network with ``tensors``, which may be parameters alone (buffers are then this network's)."""
        frozen = eval_copy(self._module) if self._frozen is None else self._frozen
        return FunctionalModel(frozen, {key: value.detach() for key, value in {**self._tensors, **tensors}.items()}, frozen)


_asleep: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def eval_copy(module: nn.Module) -> nn.Module:
    """``module`` in eval mode, made once, of the same tensors; only for use with others. It may be asked for while a step is recorded."""
    if module not in _asleep:
        own = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        _asleep[module] = copy.deepcopy(module, own).eval()
    return _asleep[module]


def submodule_tensors(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors of one submodule, named as it names them."""
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}


def snapshot(module: nn.Module) -> Tensors:
    """Copies of all parameters and buffers."""
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def load(module: nn.Module, tensors: Tensors) -> None:
    """Copy ``tensors`` into ``module``; every parameter and buffer must be there.

    Raises:
        RuntimeError: one is missing, unknown, or of another shape; says which.
    """
    places = module.state_dict()
    if {name: place.shape for name, place in places.items()} != {name: value.shape for name, value in tensors.items()}:
        module.load_state_dict(tensors, strict=True)  # many times slower, and explains what is wrong
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(tensors[name])
