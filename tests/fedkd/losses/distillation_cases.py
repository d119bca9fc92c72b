"""The losses of centralized distillation with their oracles, and inputs for them."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from fedkd.losses.attention_transfer import attention_transfer
from fedkd.losses.decoupled_kl import decoupled, non_target_class, target_class
from fedkd.losses.hint import hint
from fedkd.losses.probabilistic_transfer import DIVERGENCES, KERNELS, cosine_knowledge_transfer, probabilistic_knowledge_transfer
from fedkd.losses.similarity_preserving import similarity_preserving
from fedkd.training.step_program import check_static_shapes, simplify
from tests import distillation_oracles

RNG = np.random.default_rng(0)
A, B = 2 * RNG.standard_normal((6, 5)), RNG.standard_normal((6, 5))
Y = np.array([0, 3, 1, 4, 0, 2])
MAPS, SMALL = RNG.standard_normal((6, 3, 4, 4)), RNG.standard_normal((6, 2, 2, 4))
STUDENT_LOGITS, TEACHER_LOGITS = [[1, 0, -1]], [[2, 1, -2]]


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(np.array(values, dtype=np.float64))


def with_labels(loss, **options):
    """A loss that needs labels as a function of teacher and student."""
    return lambda teacher, student: loss(teacher, student, torch.from_numpy(Y), **options)


def rotation_matrix(size: int) -> torch.Tensor:
    return torch.linalg.qr(tensor(np.random.default_rng(1).standard_normal((size, size)))).Q


def assert_recorded_and_mapped(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    """A recording of ``function`` gives the same bits for another input, and ``torch.vmap`` gives the results of single calls."""
    graph, other = simplify(make_fx(function)(x)), x.flip(0)
    check_static_shapes(graph)
    assert torch.equal(graph(other), function(other))
    assert_close(torch.vmap(function)(torch.stack([x, other])), torch.stack([function(x), function(other)]), rtol=1e-10, atol=0)


pkt = probabilistic_knowledge_transfer
WIDTH = np.mean([[np.sqrt(((a - b) ** 2).sum() + 1e-6) for b in A] for a in A])  # of the student's adaptive kernel
LOSSES = {  # name: (loss of teacher and student, its mean by the oracle, the teacher's features, the student's)
    "hint": (hint, lambda t, s: distillation_oracles.hint(t, s).mean(), SMALL, SMALL[::-1] + 0.3),
    "attention": (attention_transfer, lambda t, s: distillation_oracles.attention_transfer(t, s).mean(), MAPS, SMALL),
    "attention p=1": (
        partial(attention_transfer, power=1),
        lambda t, s: distillation_oracles.attention_transfer(t, s, 1).mean(),
        SMALL,
        MAPS,
    ),
    "similarity": (similarity_preserving, distillation_oracles.similarity_preserving, SMALL, A),
    "cosine transfer": (cosine_knowledge_transfer, distillation_oracles.cosine_transfer, B, A),
    **{
        f"{kernel} {divergence} {'with' if diagonal else 'without'} diagonal": (
            partial(pkt, kernel=kernel, divergence=divergence, diagonal=diagonal),
            partial(distillation_oracles.pairwise, name=kernel, divergence=divergence, diagonal=diagonal, width=WIDTH),
            B,
            A,
        )
        for kernel in KERNELS
        for divergence in DIVERGENCES
        for diagonal in (True, False)
        if divergence == "jeffreys" or (kernel, diagonal) in (("cosine", True), ("student_t", False))
    },
    "target class": (with_labels(target_class, temperature=3.0), lambda t, s: distillation_oracles.decoupled(t, s, Y, 3.0)[0].mean(), B, A),
    "non-target class": (
        with_labels(non_target_class, temperature=3.0),
        lambda t, s: distillation_oracles.decoupled(t, s, Y, 3.0)[1].mean(),
        B,
        A,
    ),
    "decoupled": (
        with_labels(decoupled, alpha=0.5, beta=4.0, temperature=2.0),
        lambda t, s: (np.array([0.5, 4.0]) @ distillation_oracles.decoupled(t, s, Y, 2.0)).mean(),
        B,
        A,
    ),
}
PAIRWISE = [name for name in LOSSES if name == "similarity" or "diagonal" in name or name == "cosine transfer"]
LABELED = ["target class", "non-target class", "decoupled"]
