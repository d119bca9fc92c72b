"""Divergences over parts of the classes: decoupled distillation (Zhao et al., CVPR 2022) and not-true distillation (Lee et al., NeurIPS 2022)."""

import torch
from torch import Tensor

from fedkd.losses.kl import kl_divergence
from fedkd.tensor_ops import at_least_float32


def binary_logits(logits: Tensor, y: Tensor) -> Tensor:  # [B, C], [B] -> [B, 2]
    """Logits of "the label" and "any other class": ``z_y`` and ``ln sum_{c != y} e^z_c``, whose softmax is ``(p_y, 1 - p_y)``."""
    return torch.cat([logits.gather(-1, y[:, None]), non_target_logits(logits, y).logsumexp(-1, keepdim=True)], -1)


def target_class(teacher: Tensor, student: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:  # [B, C] x 2, [B] -> [B]
    """TCKD: ``T^2 KL((p_y, 1 - p_y) || (q_y, 1 - q_y))``, p and q the teacher's and the student's softmax at T, in log space.

    Args:
        teacher: logits; detach them where the teacher is not to learn.
        student: logits.
        y: labels.
        temperature: T > 0.
    """
    one, other = (binary_logits(at_least_float32(logits) / temperature, y) for logits in (teacher, student))
    return temperature**2 * kl_divergence(one, other)


def non_target_class(teacher: Tensor, student: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:  # [B, C] x 2, [B] -> [B]
    """NCKD: ``T^2 KL(p~ || q~)``, the softmax over the classes that are not the label; arguments as of :func:`target_class`.

    It is FedNTD's divergence. Plain distillation has it times ``1 - p_y``, next to nothing where the teacher is sure:
    ``T^2 KL(p || q) = TCKD + (1 - p_y) NCKD``, p_y at T.
    """
    return not_true_divergence(at_least_float32(teacher), at_least_float32(student), y, temperature)


def decoupled(
    teacher: Tensor, student: Tensor, y: Tensor, alpha: float, beta: float, temperature: float = 1.0
) -> Tensor:  # [B, C] x 2, [B] -> [B]
    """``alpha TCKD + beta NCKD``. The paper has alpha 1, T 4, beta 2 to 8 by pair of networks, all of it rising over 20 epochs.

    Deviations from the public code: the label's logit is left out, where the code lowers it by 1000.
    """
    target = alpha * target_class(teacher, student, y, temperature)
    return target + beta * non_target_class(teacher, student, y, temperature)


def non_target_logits(logits: Tensor, y: Tensor) -> Tensor:  # [B, C], [B] -> [B, C-1]
    """The logits of all classes but the label, in the order of classes."""
    others = torch.arange(logits.shape[-1] - 1, device=logits.device)
    return logits.gather(-1, others + (others >= y[:, None]))


def not_true_divergence(teacher: Tensor, student: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:  # [B, C] x 2, [B] -> [B]
    """``T^2 KL(softmax(t / T) || softmax(s / T))`` over the classes that are not ``y`` (Lee et al., NeurIPS 2022).

    It does not depend on the student's logit of the label, nor does its gradient reach it: decoupled distillation calls the same
    term that of the non-target classes (Zhao et al., CVPR 2022).

    Args:
        teacher: logits; detach them where the teacher is not to learn.
        student: logits.
        y: labels.
        temperature: T > 0.
    """
    return kl_divergence(non_target_logits(teacher, y), non_target_logits(student, y), temperature)
