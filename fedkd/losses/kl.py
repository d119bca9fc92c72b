"""The KL divergence of logit distillation (Hinton et al. 2015)."""

from torch import Tensor

from fedkd.tensor_ops import at_least_float32


def kl_divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:  # [B, C], [B, C] -> [B]
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))`` per example, in log space, in float32 at least.

    Args:
        teacher: logits of the target distribution, detached unless the teacher is trained too.
        student: logits of the distribution that is trained.
        temperature: T > 0; the factor T^2 keeps the scale of the gradient.
    """
    teacher, student = at_least_float32(teacher), at_least_float32(student)
    if temperature != 1:
        return temperature**2 * kl_divergence(teacher / temperature, student / temperature)
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
