"""The divergence between what teacher and student say of the classes that are not the label."""

import torch
from torch import Tensor

from fedkd.losses.kl import kl_divergence


def not_true(logits: Tensor, y: Tensor) -> Tensor:  # [B, C], [B] -> [B, C-1]
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
    return kl_divergence(not_true(teacher, y), not_true(student, y), temperature)
