"""A filter of gradients: a loss keeps its value, and some logits receive no gradient of it.

After "Embracing the dark knowledge: domain generalization using regularized knowledge distillation" (Wang, Li, Chau and Kot, ACM MM
2021). Text and code of the paper were not available. The filters are interpretations of its idea, among which an ablation can choose.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.tensor_ops import at_least_float32, one_hot

Filter = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``(behind [B, 1], is_label [B, C], teacher_correct [B, 1], differs [B, C]) -> mask``, all bool; the mask is broadcast to [B, C]."""

FILTERS: dict[str, Filter] = {
    "none": lambda behind, is_label, teacher_correct, differs: torch.ones_like(is_label),
    "sample_conf": lambda behind, is_label, teacher_correct, differs: behind,
    "target_only": lambda behind, is_label, teacher_correct, differs: behind | ~is_label,
    "nontarget_only": lambda behind, is_label, teacher_correct, differs: behind | is_label,
    "sym": lambda behind, is_label, teacher_correct, differs: differs,
    "wrong_teacher": lambda behind, is_label, teacher_correct, differs: teacher_correct,
}
"""The filters by name, see :func:`gradient_mask`."""


def filter_gradient(logits: Tensor, mask: Tensor) -> Tensor:  # [B, C], [B, C] bool -> [B, C]
    """The same ``logits``, bit for bit, with zero gradient where ``mask`` is false."""
    return torch.where(mask, logits, logits.detach())


def gradient_mask(
    name: str, teacher: Tensor, student: Tensor, y: Tensor, temperature: float = 1.0, threshold: float = 0.0
) -> Tensor:  # [B, C] x 2, [B] -> [B, C] bool
    """The entries of the gradient by the student's logits that a filter keeps.

    Let p and q be the softmax of teacher and student at T. The student is behind if ``q_y < p_y``.

    - ``none``: all entries are kept.
    - ``sample_conf``: an example's entries are kept while the student is behind.
    - ``target_only``: the label's entry is kept while the student is behind, the others always.
    - ``nontarget_only``: the label's entry is always kept, the others while the student is behind.
    - ``sym``: entries with ``|p - q| > threshold`` are kept.
    - ``wrong_teacher``: an example's entries are kept if the teacher's prediction is correct.

    Args:
        name: one of :data:`FILTERS`.
        teacher: logits.
        student: logits.
        y: labels.
        temperature: T > 0.
        threshold: threshold of ``sym``, >= 0.

    Raises:
        ConfigError: there is no such filter.
    """
    require(name in FILTERS, "filter", f"must be one of {', '.join(FILTERS)}", name)
    p, q = ((at_least_float32(logits) / temperature).softmax(-1) for logits in (teacher, student))
    is_label = one_hot(y, p.shape[-1]).bool()
    behind = q.gather(-1, y[:, None]) < p.gather(-1, y[:, None])  # [B, 1]
    teacher_correct = teacher.argmax(-1, keepdim=True) == y[:, None]
    return FILTERS[name](behind, is_label, teacher_correct, (p - q).abs() > threshold).expand_as(p)
