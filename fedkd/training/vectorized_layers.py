"""Many networks of one architecture as one tensor program.

A loss that is pure in its tensors is mapped over stacked clients with ``torch.vmap``, and differentiated outside the map. Plain
``vmap`` would send convolutions of many small networks through slow kernels; convolution, BatchNorm, ReLU and linear layers bring
rules of their own: K clients' maps [K, B, C, H, W] are folded to [B, K*C, H, W] in channels_last, computed by one grouped kernel, and
unfolded. BatchNorm over K*C channels keeps each client's own statistics, exactly. Every other module takes vmap's general way.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fold_clients(x: Tensor, dim: int | None, clients: int) -> Tensor:  # [K at dim, B, C, H, W] -> [B, K*C, H, W]
    """Clients side by side in the channels, channels_last."""
    x = x.unsqueeze(1).expand(-1, clients, -1, -1, -1) if dim is None else x.movedim(dim, 1)
    return x.flatten(1, 2).contiguous(memory_format=torch.channels_last)


def stack_clients(x: Tensor, dim: int | None, clients: int) -> Tensor:  # [K at dim, ...] -> [K, ...]
    """Clients first; what all clients share is repeated."""
    return x.expand(clients, *x.shape) if dim is None else x.movedim(dim, 0)


class _Folded(torch.autograd.Function):
    """A function that exists for its ``vmap`` rule; autograd sees the operations inside the rule."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Nothing to keep: outside of a map these functions are not used."""


class _Convolution(_Folded):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple, dilation: tuple, groups: int) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def vmap(info: Any, dims: tuple, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> tuple[Tensor, int]:
        clients, (stride, padding, dilation, groups) = info.batch_size, options
        weight = stack_clients(weight, dims[1], clients).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        bias = None if bias is None else stack_clients(bias, dims[2], clients).flatten()
        out = F.conv2d(fold_clients(x, dims[0], clients), weight, bias, stride, padding, dilation, clients * groups)
        return out.unflatten(1, (clients, -1)), 1


class _Normalisation(_Folded):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, momentum: float, eps: float) -> Tensor:
        return F.batch_norm(x, mean, variance, weight, bias, True, momentum, eps)

    @staticmethod
    def vmap(info: Any, dims: tuple, x: Tensor, *rest: Any) -> tuple[Tensor, int]:
        clients, (momentum, eps) = info.batch_size, rest[4:]
        weight, bias = (stack_clients(t, dim, clients).flatten() for t, dim in zip(rest[:2], dims[1:3]))
        mean, variance = (t.view(-1) for t in rest[2:4])  # stacked and contiguous: updated where they stand
        out = F.batch_norm(fold_clients(x, dims[0], clients), mean, variance, weight, bias, True, momentum, eps)
        return out.unflatten(1, (clients, -1)), 1


class _Rectified(_Folded):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return F.relu(x)

    @staticmethod
    def vmap(info: Any, dims: tuple, x: Tensor) -> tuple[Tensor, int]:
        return _Unfolded.apply(F.relu(fold_clients(x, dims[0], info.batch_size)), info.batch_size), 1


class _Unfolded(torch.autograd.Function):
    """[B, K*C, H, W] -> [B, K, C, H, W]; its gradient is brought to channels_last in one copy, before the kernels that are slow without."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clients: int) -> Tensor:
        return x.unflatten(1, (clients, -1))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.permute(0, 3, 4, 1, 2).flatten(3).contiguous().permute(0, 3, 1, 2), None


class _Linear(_Folded):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def vmap(info: Any, dims: tuple, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, int]:
        together = [stack_clients(t, dim, info.batch_size) for t, dim in zip((x, weight, bias), dims)]
        if torch.is_autocast_enabled(x.device.type):  # the products' own backward is not autocast's to see to
            together = [t.to(torch.get_autocast_dtype(x.device.type)) for t in together]
        return _Products.apply(*together), 0


class _Products(torch.autograd.Function):
    """K linear layers, [K, B, D] x [K, E, D] + [K, E] -> [K, B, E], whose weights' gradient comes out in the weights' own layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias[:, None], x, weight.mT)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return torch.bmm(gradient, weight) if ctx.needs_input_grad[0] else None, torch.bmm(gradient.mT, x), gradient.sum(1)


class _Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return _Convolution.apply(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class _BatchNorm2d(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        self.num_batches_tracked.add_(1)
        return _Normalisation.apply(x, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps)


class _ReLU(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return _Rectified.apply(x) if x.dim() == 4 else F.relu(x)


class _LinearLayer(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return _Linear.apply(x, self.weight, self.bias) if x.dim() == 2 else F.linear(x, self.weight, self.bias)


def vectorized_copy(module: nn.Module) -> nn.Module:
    """A copy of ``module`` in train mode whose layers know how to run for many clients; only inside ``torch.vmap``."""
    module = copy.deepcopy(module)
    for layer in module.modules():
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            layer.__class__ = _Conv2d
        elif type(layer) is nn.BatchNorm2d and layer.affine and layer.track_running_stats and layer.momentum is not None:
            layer.__class__ = _BatchNorm2d
        elif type(layer) is nn.ReLU:
            layer.__class__ = _ReLU
        elif type(layer) is nn.Linear and layer.bias is not None:
            layer.__class__ = _LinearLayer
    return module.train()


def has_randomness(module: nn.Module) -> bool:
    """Networks with dropout draw inside their forward pass and train one by one."""
    return any(isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0 for layer in module.modules())
