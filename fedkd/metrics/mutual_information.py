"""The information that a representation has about the label, by layer of a network.

An estimator is ``(x [N, ...], y [N], num_classes) -> []``. Its values can be compared between layers and epochs of one network on the same
examples. They are not the mutual information in nats of the continuous representation, which is infinite for a network without noise.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.losses.probabilistic_transfer import KERNELS
from fedkd.tensor_ops import flatten_examples, gram_matrix, one_hot

Estimator = Callable[[Tensor, Tensor, int], Tensor]
"""``(x [N, ...], y [N], num_classes) -> []``."""

MIN_COMPONENT_SHARE = 1e-10
"""Principal components with a smaller share of a representation's sum of squares are rounding errors."""


def quadratic_mutual_information(x: Tensor, y: Tensor, num_classes: int, *, kernel: str) -> Tensor:  # [N, ...], [N] -> []
    """``QMI = V_in + V_all - 2 V_between``: how much closer examples of one class are than examples in general (Torkkola, JMLR 2003).

    With N_p examples of class p::

        V_in      = 1/N^2 sum_p sum_{k, l in p} K(x_k, x_l)
        V_all     = 1/N^2 sum_p (N_p/N)^2 sum_{k, l} K(x_k, x_l)
        V_between = 1/N^2 sum_p N_p/N sum_{j in p} sum_k K(x_j, x_k)

    It is 0 for a single class, and for a constant kernel.

    Args:
        x: representations.
        y: labels.
        num_classes: number of classes, C. Classes without examples add nothing.
        kernel: one of :data:`fedkd.losses.probabilistic_transfer.KERNELS`.

    Raises:
        ConfigError: there is no such kernel.
    """
    require(kernel in KERNELS, "kernel", f"must be one of {', '.join(KERNELS)}", kernel)
    k = KERNELS[kernel](x).exp()
    label = one_hot(y, num_classes).to(k.dtype)
    share = label.mean(0)  # [C]
    weight = gram_matrix(label) + share.square().sum() - 2 * (label * share).sum(-1, keepdim=True)
    return (weight * k).mean()


def binned_mutual_information(
    x: Tensor, y: Tensor, num_classes: int, *, num_components: int, num_bins: int
) -> Tensor:  # [N, ...], [N] -> []
    """``I(T; Y) = sum_t,y p(t, y) ln(p(t, y) / (p(t) p(y)))`` in nats, where T is the cell of an example's principal components.

    Each of the first principal components is divided into bins with equally many examples. A cell is one bin of each component. The
    function counts examples, so it cannot be part of a training step.

    Bias: binning and ignoring the later components lower the estimate. Few examples in many cells raise it by about
    ``(cells - 1)(C - 1) / (2 N)`` nats. It is at most ``ln C`` and ``ln cells``. Compare values of equal N, and keep
    ``num_bins ** num_components`` far below N.

    Args:
        x: representations.
        y: labels.
        num_classes: number of classes, C.
        num_components: number of principal components, >= 1. Fewer are used if the representation has fewer.
        num_bins: number of bins of each component, >= 2.

    Raises:
        ConfigError: a number is too small.
    """
    require(num_components >= 1, "num_components", "must be >= 1", num_components)
    require(num_bins >= 2, "num_bins", "must be >= 2", num_bins)
    bins = quantile_bins(principal_components(x, num_components), num_bins)
    radix = num_bins ** torch.arange(bins.shape[-1], device=bins.device)
    cells = (bins * radix).sum(-1).unique(return_inverse=True)[1]  # only cells with examples are numbered
    counts = torch.bincount(cells * num_classes + y, minlength=num_classes * int(cells.max() + 1)).view(-1, num_classes)
    joint = counts.double() / len(y)
    independent = joint.sum(1, keepdim=True) * joint.sum(0)
    return torch.xlogy(joint, joint / torch.where(joint > 0, independent, 1.0)).sum()


def principal_components(x: Tensor, num_components: int) -> Tensor:  # [N, ...] -> [N, d]
    """The scores of the principal components with the most variance, d <= ``num_components``. Scores that are rounding errors are zero."""
    x = flatten_examples(x)
    total, x = x.square().sum(), x - x.mean(0)
    if x.shape[1] <= x.shape[0]:
        scores = x @ torch.linalg.eigh(gram_matrix(x.mT)).eigenvectors.flip(-1)[:, :num_components]
    else:
        values, vectors = torch.linalg.eigh(gram_matrix(x))
        scores = (vectors * values.clamp_min(0).sqrt()).flip(-1)[:, :num_components]
    return torch.where(scores.square().sum(0) > MIN_COMPONENT_SHARE * total, scores, 0.0)


def quantile_bins(scores: Tensor, num_bins: int) -> Tensor:  # [N, d] -> [N, d], int64
    """The bin 0..num_bins-1 of each entry of each column. Bins have equally many entries, except that equal entries share a bin."""
    n = len(scores)
    edges = scores.sort(0).values[[n * b // num_bins for b in range(1, num_bins)]]  # [num_bins - 1, d]
    return (scores[:, None, :] >= edges).sum(1)
