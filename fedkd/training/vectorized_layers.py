"""Layers that compute several networks of one architecture with one kernel, inside ``torch.vmap``.

A pure loss is mapped over stacked clients with ``torch.vmap`` and differentiated outside the map. Plain ``vmap`` would compute the
convolutions of many small networks with slow kernels. Convolution, BatchNorm, ReLU, and linear layers therefore have their own rules: the
maps of K clients [K, B, C, H, W] are folded to [B, K*C, H, W] in the layout channels last, computed by one grouped kernel, and unfolded.
BatchNorm over K*C channels keeps the exact statistics of each client. Attention takes the kernel that has a rule. All other modules follow
the general rules of ``vmap``, of which that of embeddings would train the row of the padding.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


# ------------------------------------------------------------------------------------------------------------- public names
def vectorized_copy(module: nn.Module) -> nn.Module:
    """A copy of ``module`` in train mode with vectorized layers. Use it only inside ``torch.vmap``."""
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
        elif type(layer) is nn.MultiheadAttention:
            layer.__class__ = _MultiheadAttention
    return with_constant_padding(module).train()


def with_constant_padding(module: nn.Module) -> nn.Module:
    """``module``, changed in place: inside ``torch.vmap`` the padding row of its embeddings gets no gradient, as outside of it."""
    for layer in module.modules():
        if type(layer) is nn.Embedding and layer.padding_idx is not None and layer.max_norm is None and not layer.scale_grad_by_freq:
            layer.__class__ = _Embedding
    return module


def trains_alone(module: nn.Module) -> bool:
    """Whether clients with this network train one after the other: it draws random numbers in its forward pass (dropout), or is recurrent.

    The kernels of recurrent layers have no rule for ``vmap``.
    """
    dropout, recurrent = nn.modules.dropout._DropoutNd, nn.RNNBase | nn.RNNCellBase
    return any((isinstance(layer, dropout) and layer.p > 0) or isinstance(layer, recurrent) for layer in module.modules())


def fold_clients(x: Tensor, dim: int | None, clients: int) -> Tensor:  # [K at dim, B, C, H, W] -> [B, K*C, H, W]
    """Move the clients into the channels, in the layout channels last.

    Args:
        x: maps of all clients.
        dim: the dimension of the clients; None: all clients have the same maps [B, C, H, W].
        clients: number of clients, K.
    """
    x = x.unsqueeze(1).expand(-1, clients, -1, -1, -1) if dim is None else x.movedim(dim, 1)
    return x.flatten(1, 2).contiguous(memory_format=torch.channels_last)


def stack_clients(x: Tensor, dim: int | None, clients: int) -> Tensor:  # [K at dim, ...] -> [K, ...]
    """Move the clients to the first dimension. If ``dim`` is None, all clients have the same tensor, which is repeated."""
    return x.expand(clients, *x.shape) if dim is None else x.movedim(dim, 0)


# ------------------------------------------------------------------------------------------------- functions with vmap rules
class _Folded(torch.autograd.Function):
    """A function with a rule for ``vmap``. Autograd differentiates the operations inside the rule."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is saved: these functions are not differentiated outside ``vmap``."""


class _Convolution(_Folded):
    """A convolution, as one grouped convolution of all clients."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> tuple[Tensor, int]:
        clients, (stride, padding, dilation, groups) = info.batch_size, options
        weight = stack_clients(weight, dims[1], clients).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        bias = None if bias is None else stack_clients(bias, dims[2], clients).flatten()
        out = F.conv2d(fold_clients(x, dims[0], clients), weight, bias, stride, padding, dilation, clients * groups)
        return out.unflatten(1, (clients, -1)), 1


class _Normalization(_Folded):
    """BatchNorm in train mode, over the channels of all clients."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, momentum: float, eps: float) -> Tensor:
        return F.batch_norm(x, mean, variance, weight, bias, True, momentum, eps)

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], x: Tensor, *rest: Any) -> tuple[Tensor, int]:
        clients, (momentum, eps) = info.batch_size, rest[4:]
        weight, bias = (stack_clients(t, dim, clients).flatten() for t, dim in zip(rest[:2], dims[1:3]))
        mean, variance = (t.view(-1) for t in rest[2:4])  # views of stacked, contiguous statistics, which are updated in place
        out = F.batch_norm(fold_clients(x, dims[0], clients), mean, variance, weight, bias, True, momentum, eps)
        return out.unflatten(1, (clients, -1)), 1


class _Rectified(_Folded):
    """ReLU of folded maps."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return F.relu(x)

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], x: Tensor) -> tuple[Tensor, int]:
        return _Unfolded.apply(F.relu(fold_clients(x, dims[0], info.batch_size)), info.batch_size), 1


class _Unfolded(torch.autograd.Function):
    """[B, K*C, H, W] -> [B, K, C, H, W]. Its gradient is converted to channels last in one copy, as other layouts have slow kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clients: int) -> Tensor:
        return x.unflatten(1, (clients, -1))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.permute(0, 3, 4, 1, 2).flatten(3).contiguous().permute(0, 3, 1, 2), None


class _Linear(_Folded):
    """A linear layer, as one batched matrix product of all clients."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, int]:
        tensors = [stack_clients(t, dim, info.batch_size) for t, dim in zip((x, weight, bias), dims)]
        if torch.is_autocast_enabled(x.device.type):  # autocast does not convert inside the backward function of _Products
            tensors = [t.to(torch.get_autocast_dtype(x.device.type)) for t in tensors]
        return _Products.apply(*tensors), 0


class _Products(torch.autograd.Function):
    """K linear layers, [K, B, D] x [K, E, D] + [K, E] -> [K, B, E]. The gradient of the weights has the layout of the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias[:, None], x, weight.mT)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return torch.bmm(gradient, weight) if ctx.needs_input_grad[0] else None, torch.bmm(gradient.mT, x), gradient.sum(1)


# ------------------------------------------------------------------------------------------------------------------- layers
class _Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return _Convolution.apply(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class _BatchNorm2d(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        assert self.num_batches_tracked is not None, "statistics are tracked"
        self.num_batches_tracked.add_(1)
        return _Normalization.apply(x, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps)


class _ReLU(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return _Rectified.apply(x) if x.dim() == 4 else F.relu(x)


class _LinearLayer(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return _Linear.apply(x, self.weight, self.bias) if x.dim() == 2 else F.linear(x, self.weight, self.bias)


class _Embedding(nn.Embedding):
    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(self.num_embeddings, device=self.weight.device)[:, None]
        return F.embedding(x, torch.where(rows.eq(self.padding_idx or 0), self.weight.detach(), self.weight))


class _MultiheadAttention(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        with sdpa_kernel(SDPBackend.MATH):  # the others have no rule for vmap, and would compute one client after the other
            return super().forward(*args, **kwargs)
