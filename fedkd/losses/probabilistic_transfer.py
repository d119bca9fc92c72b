"""Probabilistic knowledge transfer: whom of a batch each example would choose as its neighbour.

``p_j|i = K(x_i, x_j) / sum_k K(x_i, x_k)`` for a kernel K, the teacher's against the student's (Passalis and Tefas, ECCV 2018; Passalis,
Tzelepi and Tefas, CVPR 2020). Kernels give their logarithm, so that neighbours however far apart have a probability and a gradient.
"""

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.tensor_ops import flatten_examples, gram_matrix, unit_rows


def cosine(x: Tensor) -> Tensor:  # [B, ...] -> [B, B]
    """``ln K, K = (cos(x_i, x_j) + 1) / 2``, 1e-6 added to lengths; with a row of zeros K is a half."""
    return shifted_cosine(x, 1e-6).clamp_min(torch.finfo(torch.float32).tiny).log()


def student_t(x: Tensor) -> Tensor:  # [B, ...] -> [B, B]
    """``ln K, K = 1 / (1 + d)``: of the distance, not of its square. K(x, x) is 1 / 1.001, see :func:`distances`."""
    return -euclidean_distances(x).log1p()


def rbf(x: Tensor) -> Tensor:  # [B, ...] -> [B, B]
    """``ln K, K = exp(-d)``: of the distance, not of its square, at a width of one."""
    return -euclidean_distances(x)


def adaptive_rbf(x: Tensor) -> Tensor:  # [B, ...] -> [B, B]
    """``ln K, K = exp(-d / s)``, s the mean of all B^2 distances, taken as a constant."""
    d = euclidean_distances(x)
    return -d / d.detach().mean()


def cauchy(x: Tensor) -> Tensor:  # [B, ...] -> [B, B]
    """``ln K, K = 1 / (1 + d^2)``, at a width of one."""
    return -euclidean_distances(x).square().log1p()


KERNELS = {"cosine": cosine, "student_t": student_t, "rbf": rbf, "adaptive_rbf": adaptive_rbf, "cauchy": cauchy}

MIXTURES = {"combined": ("cosine", "student_t")}


def shifted_cosine(x: Tensor, eps: float) -> Tensor:  # [B, ...] -> [B, B]
    """``(cos(x_i, x_j) + 1) / 2``, ``eps`` added to lengths."""
    return (gram_matrix(unit_rows(flatten_examples(x), eps)) + 1) / 2


def euclidean_distances(x: Tensor) -> Tensor:  # [B, ...] -> [B, B]
    """``sqrt(||x_i - x_j||^2 + 1e-6)``, not divided by the number of features; the small number keeps the gradient finite at equality.

    From products of features less their mean, which a distance does not see and rounding does.
    """
    x = flatten_examples(x)
    products = gram_matrix(x - x.mean(0))
    squares = products.diagonal(dim1=-2, dim2=-1)
    apart = (squares[:, None] + squares[None, :] - 2 * products).clamp_min(0)
    return (torch.where(diagonal_mask(apart), 0.0, apart) + 1e-6).sqrt()


def diagonal_mask(pairs: Tensor) -> Tensor:  # [B, B] -> [B, B]
    """Which pairs are an example and itself."""
    index = torch.arange(pairs.shape[-1], device=pairs.device)
    return index[:, None] == index


def log_conditional(x: Tensor, kernel: str, diagonal: bool) -> Tensor:  # [B, ...] -> [B, B]
    """``ln p_j|i``; next to nothing at i = j without the ``diagonal``."""
    require(kernel in KERNELS, "kernel", f"must be one of {', '.join(KERNELS)}", kernel)
    log_k = KERNELS[kernel](x)
    if not diagonal:
        log_k = log_k.masked_fill(diagonal_mask(log_k), torch.finfo(log_k.dtype).min / 2)  # finite: 0 times their difference is 0
    return log_k.log_softmax(-1)


def conditional(x: Tensor, kernel: str, diagonal: bool) -> Tensor:  # [B, ...] -> [B, B]
    """``p_j|i = K(x_i, x_j) / sum_k K(x_i, x_k)``, rows of sum one.

    Args:
        x: features.
        kernel: one of ``KERNELS``.
        diagonal: an example is among its own neighbours, as in the public code; the paper leaves it out.
    """
    return log_conditional(x, kernel, diagonal).exp()


def jeffreys(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``(p - q) (ln p - ln q)``, entry by entry."""
    return (log_p.exp() - log_q.exp()) * (log_p - log_q)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``p (ln p - ln q)``, entry by entry."""
    return log_p.exp() * (log_p - log_q)


def absolute(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``|p - q|``, entry by entry."""
    return (log_p.exp() - log_q.exp()).abs()


def squared(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``(p - q)^2``, entry by entry."""
    return (log_p.exp() - log_q.exp()).square()


DIVERGENCES = {"jeffreys": jeffreys, "kl": kl, "absolute": absolute, "squared": squared}


def probabilistic_knowledge_transfer(
    teacher: Tensor, student: Tensor, *, kernel: str, divergence: str, diagonal: bool
) -> Tensor:  # [B, ...], [B, ...] -> [B]
    """``1/B sum_j D(p_j|i, q_j|i)``, p the teacher's and q the student's, whose mean over the batch is that over all B^2 pairs.

    The paper's loss of a layer is the kernel ``combined``, the sum of ``cosine`` and ``student_t``, with ``jeffreys``. It depends on
    the size of the batch (each example twice gives half of it with the diagonal); the public code's goes with 128.

    Deviations from the public code: ``kl`` has no 1e-6 within its logarithm, and is zero at equality; a row of zeros passes no gradient
    through the cosine.

    Args:
        teacher: features; detach them where the teacher is not to learn.
        student: features, of any width.
        kernel: one of ``KERNELS``, or ``combined``.
        divergence: one of ``DIVERGENCES``.
        diagonal: an example is among its own neighbours, as in the public code; the paper leaves it out. The mean is over B^2 in both.
    """
    require(kernel in {**KERNELS, **MIXTURES}, "kernel", f"must be one of {', '.join([*KERNELS, *MIXTURES])}", kernel)
    require(divergence in DIVERGENCES, "divergence", f"must be one of {', '.join(DIVERGENCES)}", divergence)
    kernels = MIXTURES.get(kernel, (kernel,))
    pairs = [[log_conditional(x, name, diagonal) for x in (teacher, student)] for name in kernels]
    return torch.stack([DIVERGENCES[divergence](*pair) for pair in pairs]).sum(0).mean(-1)


def cosine_knowledge_transfer(teacher: Tensor, student: Tensor) -> Tensor:  # [B, ...], [B, ...] -> [B]
    """``1/B sum_j p_j|i ln((p_j|i + e) / (q_j|i + e))``, e = 1e-7: the loss of ECCV 2018 as RepDistiller has it.

    Cosine kernel, an example among its own neighbours, 1e-7 added to lengths; its mean over the batch is that over all B^2 pairs. The
    published weight 30000 goes with batches of 64.

    Args:
        teacher: embeddings; detach them where the teacher is not to learn.
        student: embeddings, of any width.
    """
    p, q = (k / k.sum(-1, keepdim=True) for k in (shifted_cosine(teacher, 1e-7), shifted_cosine(student, 1e-7)))
    return (p * ((p + 1e-7).log() - (q + 1e-7).log())).mean(-1)
