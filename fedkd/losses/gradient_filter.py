"""A filter of gradients: a loss keeps its value, and some logits do not hear of it.

After "Embracing the dark knowledge: domain generalisation using regularised knowledge distillation" (Wang, Li, Chau, Kot, ACM MM 2021),
whose text and code were not at hand: the filters below are readings of its idea, to be chosen among by ablation.
"""

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.tensor_ops import one_hot, at_least_float32


def filter_gradient(logits: Tensor, mask: Tensor) -> Tensor:  # [B, C], [B, C] bool -> [B, C]
    """``logits``, bit for bit, whose gradient is zero where ``mask`` is false."""
    return torch.where(mask, logits, logits.detach())


def gradient_mask(
    name: str, teacher: Tensor, student: Tensor, y: Tensor, temperature: float = 1.0, threshold: float = 0.0
) -> Tensor:  # [B, C] x 2, [B] -> [B, C] bool
    """Which entries of a loss's gradient by the student's logits are kept.

    With p and q the teacher's and the student's softmax at T, "behind" means ``q_y < p_y``; at equality the student is not:

    - ``none``: all are kept.
    - ``sample_conf``: an example's are, while the student is behind.
    - ``target_only``: the label's is, while the student is behind; all others are.
    - ``nontarget_only``: the label's is; the others are, while the student is behind.
    - ``sym``: those with ``|p - q| > threshold``.
    - ``wrong_teacher``: an example's are, where the teacher is right.

    Args:
        name: one of ``FILTERS``.
        teacher: logits.
        student: logits.
        y: labels.
        temperature: T > 0.
        threshold: of ``sym``.
    """
    require(name in FILTERS, "filter", f"must be one of {', '.join(FILTERS)}", name)
    p, q = ((at_least_float32(logits) / temperature).softmax(-1) for logits in (teacher, student))
    label = one_hot(y, p.shape[-1]).bool()
    behind = q.gather(-1, y[:, None]) < p.gather(-1, y[:, None])  # [B, 1]
    right = teacher.argmax(-1, keepdim=True) == y[:, None]
    return FILTERS[name](behind, label, right, (p - q).abs() > threshold).expand_as(p)


FILTERS = {
    "none": lambda behind, label, right, apart: torch.ones_like(label),
    "sample_conf": lambda behind, label, right, apart: behind,
    "target_only": lambda behind, label, right, apart: behind | ~label,
    "nontarget_only": lambda behind, label, right, apart: behind | label,
    "sym": lambda behind, label, right, apart: apart,
    "wrong_teacher": lambda behind, label, right, apart: right,
}
