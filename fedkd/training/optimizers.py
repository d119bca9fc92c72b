"""Optimizers: factories, steps with one learning rate per client, and their state as named tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.types import Tensors

OptimizerFactory = Callable[..., torch.optim.Optimizer]
"""``(parameters, ...) -> optimizer``."""


class ClippedSGD(torch.optim.SGD):
    """SGD with ``g min(1, max_norm / (||g|| + 1e-6))`` in place of the gradient g of all parameters, as by torch's ``clip_grad_norm_``.

    The public code of FedDyn and FedFTG trains clients so, with a norm of 10.

    Args:
        params: the parameters.
        lr: learning rate.
        momentum: >= 0.
        weight_decay: >= 0. Its gradient is added after the clipping.
        max_norm: > 0.

    Raises:
        ConfigError: ``max_norm`` is not positive.
    """

    stacked = False
    """Parameters are [K, ...], those of K networks, each of which has a norm of its own. The training loop sets it."""

    def __init__(self, params: Any, *, lr: float, momentum: float, weight_decay: float, max_norm: float) -> None:
        require(max_norm > 0, "max_norm", "must be > 0", max_norm)
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self._max_norm = max_norm

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Clip the gradients, then take a step of SGD."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"] if parameter.grad is not None]
        rows = [parameter.grad.reshape(len(parameter) if self.stacked else 1, -1) for parameter in parameters]
        norm = torch.stack([row.square().sum(1) for row in rows]).sum(0).sqrt()  # [K]
        factor = (self._max_norm / (norm + 1e-6)).clamp(max=1)
        for parameter in parameters:
            scale = factor.view(-1, *[1] * (parameter.dim() - 1)) if self.stacked else factor.view([1] * parameter.dim())
            parameter.grad = parameter.grad * scale
        return super().step(closure)


def scale_lr(optimizer: OptimizerFactory, factor: float) -> OptimizerFactory:
    """The same factory with the learning rate multiplied by ``factor``."""

    def make(parameters: Any) -> torch.optim.Optimizer:
        instance = optimizer(parameters)
        for group in instance.param_groups:
            group["lr"] = group["lr"] * factor
        return instance

    return make


def clip_gradients(optimizer: OptimizerFactory, max_norm: float) -> OptimizerFactory:
    """The same factory, whose optimizers scale the gradients of all parameters down to the norm ``max_norm`` where they are longer."""

    def make(*arguments: Any, **options: Any) -> torch.optim.Optimizer:
        instance = optimizer(*arguments, **options)
        parameters = [parameter for group in instance.param_groups for parameter in group["params"]]

        def clip(*step: Any) -> None:
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)

        instance.register_step_pre_hook(clip)
        return instance

    return make


def scaled_step(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], lr_scales: Sequence[Tensor] | None) -> None:
    """One optimizer step, in which the change of each parameter is multiplied by its scale.

    Args:
        optimizer: the optimizer of ``parameters``. The change must be proportional to its learning rate.
        parameters: the parameters, with gradients.
        lr_scales: one tensor per parameter, broadcast to its shape; None: no scaling.
    """
    if isinstance(optimizer, ClippedSGD):
        optimizer.stacked = lr_scales is not None
    if lr_scales is None:
        optimizer.step()
    elif is_plain_sgd(optimizer):  # the change is the gradient times the learning rate, so the gradient can be scaled
        for parameter, scale in zip(parameters, lr_scales):
            if parameter.grad is not None:
                parameter.grad = parameter.grad * scale
        optimizer.step()
    else:
        before = [parameter.detach().clone() for parameter in parameters]
        optimizer.step()
        with torch.no_grad():
            for parameter, old, scale in zip(parameters, before, lr_scales):
                parameter.copy_(old + scale * (parameter - old))


def is_plain_sgd(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer is SGD without momentum and weight decay."""
    return type(optimizer) is torch.optim.SGD and all(g["momentum"] == 0 == g["weight_decay"] for g in optimizer.param_groups)


def copy_with_layout(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy of ``value``, a gradient or a moment, with the strides of its parameter.

    Fused optimizers ignore strides: they read parameter, gradient, and moments in the order of memory.
    """
    return torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype, device=parameter.device).copy_(value)


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> Tensors:
    """The state of an optimizer as ``{"exp_avg/fc.weight": tensor}``.

    Args:
        optimizer: the optimizer.
        names: names of its parameters, in order.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"{field}/{names[i]}": torch.as_tensor(value).clone()
        for i in sorted(state)
        for field, value in state[i].items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Tensors) -> None:
    """Load the state of :func:`flatten_optimizer` into a new optimizer of the same parameters.

    Args:
        optimizer: the optimizer to change.
        names: names of its parameters, in order.
        tensors: the state; empty: nothing is changed.
    """
    if not tensors:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        field, _, name = key.partition("/")
        i = list(names).index(name)
        same_shape = value.dim() > 0 and value.shape == parameters[i].shape
        state.setdefault(i, {})[field] = copy_with_layout(parameters[i], value) if same_shape else value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def require_sgd(optimizer: torch.optim.Optimizer, reason: str) -> None:
    """Refuse optimizers whose steps are not those of SGD with or without momentum.

    Args:
        optimizer: the clients' optimizer.
        reason: why, for the message.

    Raises:
        ConfigError: the optimizer is another one, or has an option that changes its steps.
    """
    group = optimizer.param_groups[0]
    reasons = {
        type(optimizer).__name__: type(optimizer) is not torch.optim.SGD,
        "nesterov=true": bool(group.get("nesterov")),
        f"dampening={group.get('dampening', 0)}": group.get("dampening", 0) != 0,
        "maximize=true": bool(group.get("maximize")),
    }
    found = ", ".join(name for name, holds in reasons.items() if holds)
    require(not found, "optimizer", f"must be SGD without nesterov, dampening and maximize, as {reason}", found)


def effective_steps(steps: int, momentum: float) -> float:
    """Number of plain gradient steps that ``steps`` with ``momentum`` amount to for a constant gradient."""
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
