"""Optimizers: made for a training, stepped client by client, their state by name."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedkd.types import Tensors

OptimizerFactory = Callable[..., torch.optim.Optimizer]
"""``(parameters, ...) -> optimizer``."""


def scale_lr(optimizer: OptimizerFactory, factor: float) -> OptimizerFactory:
    """The same optimizer with its learning rate multiplied by ``factor``."""

    def make(parameters: Any) -> torch.optim.Optimizer:
        made = optimizer(parameters)
        for group in made.param_groups:
            group["lr"] = group["lr"] * factor
        return made

    return make


def scaled_step(stepper: torch.optim.Optimizer, leaves: Sequence[Tensor], lr_scales: Sequence[Tensor] | None) -> None:
    """One optimizer step, of which every parameter takes its own multiple."""
    if lr_scales is None:
        stepper.step()
    elif is_plain_sgd(stepper):  # the step is the gradient times the learning rate
        for leaf, scale in zip(leaves, lr_scales):
            if leaf.grad is not None:
                leaf.grad = leaf.grad * scale
        stepper.step()
    else:
        before = [leaf.detach().clone() for leaf in leaves]
        stepper.step()
        with torch.no_grad():
            for leaf, old, scale in zip(leaves, before, lr_scales):
                leaf.copy_(old + scale * (leaf - old))


def is_plain_sgd(stepper: torch.optim.Optimizer) -> bool:
    """Gradient descent without momentum or decay."""
    return type(stepper) is torch.optim.SGD and all(g["momentum"] == 0 == g["weight_decay"] for g in stepper.param_groups)


def copy_with_layout(leaf: Tensor, value: Tensor) -> Tensor:
    """A copy of ``value``, a gradient or a moment, in the layout of its parameter: fused optimizers read all as they lie in memory."""
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device).copy_(value)


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
    """Put what :func:`flatten_optimizer` gave back into a fresh optimizer of the same parameters, whose layouts it takes on."""
    if not tensors:
        return
    leaves = [leaf for group in optimizer.param_groups for leaf in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, parameter = key.partition("/")
        place = names.index(parameter)
        alike = value.dim() > 0 and value.shape == leaves[place].shape
        state.setdefault(place, {})[name] = copy_with_layout(leaves[place], value) if alike else value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
