"""KL divergences over parts of the classes: DKD (Zhao et al., CVPR 2022) and FedNTD (Lee et al., NeurIPS 2022)."""

import torch
from torch import Tensor

from fedkd.losses.kl import kl_divergence
from fedkd.tensor_ops import at_least_float32


# ------------------------------------------------------------------------------------------------- decoupled distillation
def decoupled(
    teacher: Tensor, student: Tensor, y: Tensor, alpha: float, beta: float, temperature: float = 1.0
) -> Tensor:  # [B, C] x 2, [B] -> [B]
    """``alpha TCKD + beta NCKD`` per example (DKD, Zhao et al., CVPR 2022).

    The paper has alpha 1, T 4, and beta 2 to 8 for different pairs of networks; the whole loss is warmed up over 20 epochs.
    Deviation from the public code: the label's logit is left out, where the code subtracts 1000 from it.

    Args:
        teacher: logits, detached unless the teacher is trained too.
        student: logits.
        y: labels.
        alpha: weight of the target class, see :func:`target_class`.
        beta: weight of the other classes, see :func:`non_target_class`.
        temperature: T > 0.
    """
    target = alpha * target_class(teacher, student, y, temperature)
    return target + beta * non_target_class(teacher, student, y, temperature)


def target_class(teacher: Tensor, student: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:  # [B, C] x 2, [B] -> [B]
    """TCKD: ``T^2 KL((p_y, 1 - p_y) || (q_y, 1 - q_y))`` with the softmax p of the teacher and q of the student at T, in log space.

    Args:
        teacher: logits, detached unless the teacher is trained too.
        student: logits.
        y: labels.
        temperature: T > 0.
    """
    p, q = (binary_logits(at_least_float32(logits) / temperature, y) for logits in (teacher, student))
    return temperature**2 * kl_divergence(p, q)


def non_target_class(teacher: Tensor, student: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:  # [B, C] x 2, [B] -> [B]
    """NCKD: ``T^2 KL(p~ || q~)`` with the softmax over all classes but the label. It is the divergence of FedNTD.

    Plain distillation has this term with the factor ``1 - p_y``, which is small where the teacher is confident:
    ``T^2 KL(p || q) = TCKD + (1 - p_y) NCKD`` with p_y at T.

    Args:
        teacher: logits, detached unless the teacher is trained too.
        student: logits.
        y: labels.
        temperature: T > 0.
    """
    return not_true_divergence(at_least_float32(teacher), at_least_float32(student), y, temperature)


def binary_logits(logits: Tensor, y: Tensor) -> Tensor:  # [B, C], [B] -> [B, 2]
    """Logits of "the label" and "any other class": ``z_y`` and ``ln sum_{c != y} e^z_c``. Their softmax is ``(p_y, 1 - p_y)``."""
    return torch.cat([logits.gather(-1, y[:, None]), non_target_logits(logits, y).logsumexp(-1, keepdim=True)], -1)


# -------------------------------------------------------------------------------------------------- not-true distillation
def not_true_divergence(teacher: Tensor, student: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:  # [B, C] x 2, [B] -> [B]
    """``T^2 KL(softmax(t / T) || softmax(s / T))`` over all classes but ``y``, per example (FedNTD, Lee et al., NeurIPS 2022).

    It does not depend on the student's logit of the label, which therefore receives no gradient. DKD calls the same term that of the
    non-target classes (Zhao et al., CVPR 2022).

    Args:
        teacher: logits, detached unless the teacher is trained too.
        student: logits.
        y: labels.
        temperature: T > 0.
    """
    return kl_divergence(non_target_logits(teacher, y), non_target_logits(student, y), temperature)


def non_target_logits(logits: Tensor, y: Tensor) -> Tensor:  # [B, C], [B] -> [B, C-1]
    """The logits of all classes but the label, in the order of classes."""
    index = torch.arange(logits.shape[-1] - 1, device=logits.device)
    return logits.gather(-1, index + (index >= y[:, None]))
