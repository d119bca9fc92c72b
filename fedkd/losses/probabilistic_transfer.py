"""Probabilistic knowledge transfer: for each example, the probability that another example of the batch is its neighbor.

``p_j|i = K(x_i, x_j) / sum_k K(x_i, x_k)`` for a kernel K; the student imitates the teacher's probabilities (Passalis and Tefas, ECCV 2018;
Passalis, Tzelepi and Tefas, CVPR 2020). Kernels return their logarithm, so that distant neighbors still have a probability and a gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.tensor_ops import flatten_examples, gram_matrix, unit_rows


# ----------------------------------------------------------------------------------------------------------------- kernels
def cosine(x: Tensor) -> Tensor:  # [B, ...] -> [B, B]
    """``ln K`` with ``K = (cos(x_i, x_j) + 1) / 2``, where 1e-6 is added to norms. K is 1/2 for a zero row."""
    return shifted_cosine(x, 1e-6).clamp_min(torch.finfo(torch.float32).tiny).log()


def student_t(x: Tensor) -> Tensor:  # [B, ...] -> [B, B]
    """``ln K`` with ``K = 1 / (1 + d)`` for the distance d, not squared. K(x, x) is 1 / 1.001, see :func:`euclidean_distances`."""
    return -euclidean_distances(x).log1p()


def rbf(x: Tensor) -> Tensor:  # [B, ...] -> [B, B]
    """``ln K`` with ``K = exp(-d)`` for the distance d, not squared, and a width of 1."""
    return -euclidean_distances(x)


def adaptive_rbf(x: Tensor) -> Tensor:  # [B, ...] -> [B, B]
    """``ln K`` with ``K = exp(-d / s)``, where s is the mean of all B^2 distances and receives no gradient."""
    d = euclidean_distances(x)
    return -d / d.detach().mean()


def cauchy(x: Tensor) -> Tensor:  # [B, ...] -> [B, B]
    """``ln K`` with ``K = 1 / (1 + d^2)`` and a width of 1."""
    return -euclidean_distances(x).square().log1p()


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": cosine,
    "student_t": student_t,
    "rbf": rbf,
    "adaptive_rbf": adaptive_rbf,
    "cauchy": cauchy,
}
"""The kernels by name."""

MIXTURES = {"combined": ("cosine", "student_t")}
"""Sums of the losses of several kernels, by name."""


def shifted_cosine(x: Tensor, eps: float) -> Tensor:  # [B, ...] -> [B, B]
    """``(cos(x_i, x_j) + 1) / 2``, where ``eps`` is added to norms."""
    return (gram_matrix(unit_rows(flatten_examples(x), eps)) + 1) / 2


def euclidean_distances(x: Tensor) -> Tensor:  # [B, ...] -> [B, B]
    """``sqrt(||x_i - x_j||^2 + 1e-6)``, not divided by the number of features. The constant keeps the gradient finite for equal rows.

    The distances are computed from inner products of centered features. The mean changes no distance, but would increase rounding errors.
    """
    x = flatten_examples(x)
    products = gram_matrix(x - x.mean(0))
    squares = products.diagonal(dim1=-2, dim2=-1)
    squared_distances = (squares[:, None] + squares[None, :] - 2 * products).clamp_min(0)
    return (torch.where(diagonal_mask(squared_distances), 0.0, squared_distances) + 1e-6).sqrt()


def diagonal_mask(pairs: Tensor) -> Tensor:  # [B, B] -> [B, B] bool
    """True on the diagonal."""
    index = torch.arange(pairs.shape[-1], device=pairs.device)
    return index[:, None] == index


# ----------------------------------------------------------------------------------------------------------- probabilities
def conditional(x: Tensor, kernel: str, diagonal: bool) -> Tensor:  # [B, ...] -> [B, B]
    """``p_j|i = K(x_i, x_j) / sum_k K(x_i, x_k)``. Every row has sum 1.

    Args:
        x: features.
        kernel: one of :data:`KERNELS`.
        diagonal: whether an example is one of its own neighbors: true in the public code, false in the paper.

    Raises:
        ConfigError: there is no such kernel.
    """
    return log_conditional(x, kernel, diagonal).exp()


def log_conditional(x: Tensor, kernel: str, diagonal: bool) -> Tensor:  # [B, ...] -> [B, B]
    """``ln p_j|i``; a very large negative number for i = j without ``diagonal``. Arguments as of :func:`conditional`."""
    require(kernel in KERNELS, "kernel", f"must be one of {', '.join(KERNELS)}", kernel)
    log_k = KERNELS[kernel](x)
    if not diagonal:  # a finite number, so that the product of probability 0 and the difference of logarithms is 0
        log_k = log_k.masked_fill(diagonal_mask(log_k), torch.finfo(log_k.dtype).min / 2)
    return log_k.log_softmax(-1)


# ------------------------------------------------------------------------------------------------------------- divergences
def jeffreys(log_p: Tensor, log_q: Tensor) -> Tensor:  # [...], [...] -> [...]
    """``(p - q) (ln p - ln q)`` for each entry."""
    return (log_p.exp() - log_q.exp()) * (log_p - log_q)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:  # [...], [...] -> [...]
    """``p (ln p - ln q)`` for each entry."""
    return log_p.exp() * (log_p - log_q)


def absolute(log_p: Tensor, log_q: Tensor) -> Tensor:  # [...], [...] -> [...]
    """``|p - q|`` for each entry."""
    return (log_p.exp() - log_q.exp()).abs()


def squared(log_p: Tensor, log_q: Tensor) -> Tensor:  # [...], [...] -> [...]
    """``(p - q)^2`` for each entry."""
    return (log_p.exp() - log_q.exp()).square()


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "jeffreys": jeffreys,
    "kl": kl,
    "absolute": absolute,
    "squared": squared,
}
"""The divergences by name."""


# ------------------------------------------------------------------------------------------------------------------ losses
def probabilistic_knowledge_transfer(
    teacher: Tensor, student: Tensor, *, kernel: str, divergence: str, diagonal: bool
) -> Tensor:  # [B, ...], [B, ...] -> [B]
    """``1/B sum_j D(p_j|i, q_j|i)`` per example, with the probabilities p of the teacher and q of the student.

    The mean over the batch is the mean over all B^2 pairs. The paper's loss of a layer has the kernel ``combined``, the sum of ``cosine``
    and ``student_t``, and the divergence ``jeffreys``. It depends on the batch size: with the diagonal, doubling every example halves it.
    The public code has batches of 128.

    Deviations from the public code: ``kl`` has no 1e-6 inside its logarithm, and so is zero at equality; a zero row receives no gradient of
    the cosine.

    Args:
        teacher: features, detached unless the teacher is trained too.
        student: features of any width.
        kernel: one of :data:`KERNELS`, or ``combined``.
        divergence: one of :data:`DIVERGENCES`.
        diagonal: whether an example is one of its own neighbors: true in the public code, false in the paper. The mean is over B^2 pairs
            in both cases.

    Raises:
        ConfigError: there is no such kernel or divergence.
    """
    require(kernel in {**KERNELS, **MIXTURES}, "kernel", f"must be one of {', '.join([*KERNELS, *MIXTURES])}", kernel)
    require(divergence in DIVERGENCES, "divergence", f"must be one of {', '.join(DIVERGENCES)}", divergence)
    kernels = MIXTURES.get(kernel, (kernel,))
    pairs = [[log_conditional(x, name, diagonal) for x in (teacher, student)] for name in kernels]
    return torch.stack([DIVERGENCES[divergence](log_p, log_q) for log_p, log_q in pairs]).sum(0).mean(-1)


def cosine_knowledge_transfer(teacher: Tensor, student: Tensor) -> Tensor:  # [B, ...], [B, ...] -> [B]
    """``1/B sum_j p_j|i ln((p_j|i + e) / (q_j|i + e))`` with e = 1e-7 per example: the loss of ECCV 2018 as in RepDistiller.

    It has the cosine kernel with the diagonal, where 1e-7 is added to norms. The mean over the batch is the mean over all B^2 pairs. The
    published weight of 30000 applies to batches of 64.

    Args:
        teacher: embeddings, detached unless the teacher is trained too.
        student: embeddings of any width.
    """
    p, q = (k / k.sum(-1, keepdim=True) for k in (shifted_cosine(teacher, 1e-7), shifted_cosine(student, 1e-7)))
    return (p * ((p + 1e-7).log() - (q + 1e-7).log())).mean(-1)
