"""The losses and measures of central distillation against their equations, and the laws they keep."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from fedkd.distillation.methods.hsakd import class_logits, joint_labels, rotations
from fedkd.losses.attention_transfer import attention_transfer
from fedkd.losses.cka import biased_cka, cka, unbiased_hsic, hsic_values, unbiased_cka
from fedkd.losses.decoupled_kl import decoupled, non_target_class, target_class
from fedkd.losses.gradient_filter import FILTERS, filter_gradient, gradient_mask
from fedkd.losses.hint import hint
from fedkd.losses.kl import kl_divergence
from fedkd.losses.probabilistic_transfer import (
    DIVERGENCES,
    KERNELS,
    conditional,
    cosine_knowledge_transfer,
    probabilistic_knowledge_transfer,
)
from fedkd.losses.similarity_preserving import similarity_preserving
from fedkd.metrics.mutual_information import binned_mutual_information, principal_components, quadratic_mutual_information
from fedkd.metrics.parameter_path import parameter_distance, parameter_path_length
from fedkd.metrics.retrieval import retrieval
from fedkd.training.step_program import check_static_shapes, simplify
from tests import oracles

RNG = np.random.default_rng(0)
A, B = 2 * RNG.standard_normal((6, 5)), RNG.standard_normal((6, 5))
Y = np.array([0, 3, 1, 4, 0, 2])
MAPS, SMALL = RNG.standard_normal((6, 3, 4, 4)), RNG.standard_normal((6, 2, 2, 4))
ORDER = torch.tensor([3, 0, 5, 1, 4, 2])
TWO, SAME = [[1, 0], [0, 1]], [[1, 1], [1, 1]]
THREE, TEACHER = [[1, 0], [1, 1], [0, 2]], [[1, 0], [0, 1], [1, 1]]
STUDENT_LOGITS, TEACHER_LOGITS = [[1, 0, -1]], [[2, 1, -2]]


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(np.array(values, dtype=np.float64))


def labelled(loss, **options):
    """A loss that needs labels, of teacher and student alone."""
    return lambda teacher, student: loss(teacher, student, torch.from_numpy(Y), **options)


pkt = probabilistic_knowledge_transfer
WIDTH = np.mean([[np.sqrt(((a - b) ** 2).sum() + 1e-6) for b in A] for a in A])  # of the student's adaptive kernel
LOSSES = {  # name: (loss of teacher and student, its mean by the oracle, the teacher's features, the student's)
    "hint": (hint, lambda t, s: oracles.hint(t, s).mean(), SMALL, SMALL[::-1] + 0.3),
    "attention": (attention_transfer, lambda t, s: oracles.attention_transfer(t, s).mean(), MAPS, SMALL),
    "attention p=1": (partial(attention_transfer, power=1), lambda t, s: oracles.attention_transfer(t, s, 1).mean(), SMALL, MAPS),
    "similarity": (similarity_preserving, oracles.similarity_preserving, SMALL, A),
    "cosine transfer": (cosine_knowledge_transfer, oracles.cosine_transfer, B, A),
    **{
        f"{kernel} {divergence} {'with' if diagonal else 'without'} diagonal": (
            partial(pkt, kernel=kernel, divergence=divergence, diagonal=diagonal),
            partial(oracles.pairwise, name=kernel, divergence=divergence, diagonal=diagonal, width=WIDTH),
            B,
            A,
        )
        for kernel in KERNELS
        for divergence in DIVERGENCES
        for diagonal in (True, False)
        if divergence == "jeffreys" or (kernel, diagonal) in (("cosine", True), ("student_t", False))
    },
    "target class": (labelled(target_class, temperature=3.0), lambda t, s: oracles.decoupled(t, s, Y, 3.0)[0].mean(), B, A),
    "non-target class": (labelled(non_target_class, temperature=3.0), lambda t, s: oracles.decoupled(t, s, Y, 3.0)[1].mean(), B, A),
    "decoupled": (
        labelled(decoupled, alpha=0.5, beta=4.0, temperature=2.0),
        lambda t, s: (np.array([0.5, 4.0]) @ oracles.decoupled(t, s, Y, 2.0)).mean(),
        B,
        A,
    ),
}
PAIRWISE = [name for name in LOSSES if name == "similarity" or "diagonal" in name or name == "cosine transfer"]
LABELLED = ["target class", "non-target class", "decoupled"]


# ------------------------------------------------------------------------------------------------- values, gradients, laws
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_the_equations(name):
    loss, oracle, teacher, student = LOSSES[name]
    s = tensor(student).requires_grad_()
    value = loss(tensor(teacher), s)
    assert value.shape == (6,), "one number an example"
    value.mean().backward()
    assert value.mean().item() == pytest.approx(oracle(teacher, student), rel=1e-9, abs=0) and value.mean() > 1e-5
    slopes = oracles.gradient(lambda at: oracle(teacher, at["s"]), {"s": np.array(student)})["s"]
    np.testing.assert_allclose(s.grad.numpy(), slopes, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in LOSSES if "adaptive" not in name])
def test_the_gradient_reaches_whoever_is_not_detached(name):
    """Of teacher and student, against finite differences of the loss itself; the adaptive width has none by design."""
    loss, _, teacher, student = LOSSES[name]
    assert torch.autograd.gradcheck(loss, (tensor(teacher).requires_grad_(), tensor(student).requires_grad_()))
    s = tensor(student).requires_grad_()
    t = tensor(teacher).requires_grad_()
    loss(t.detach(), s).sum().backward()
    assert t.grad is None and s.grad.norm() > 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_lost_between_equals(name):
    loss, _, _, student = LOSSES[name]
    s = tensor(student).requires_grad_()
    value = loss(s.detach().clone(), s)
    value.sum().backward()
    assert_close(value, torch.zeros(6, dtype=torch.float64), atol=1e-14, rtol=0)
    assert s.grad.norm() < (1e-4 if name == "cosine transfer" else 1e-13), "with 1e-7 in its logarithms its minimum is a little aside"


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_follows_a_permutation_of_the_batch(name):
    loss, _, teacher, student = LOSSES[name]
    if name in LABELLED:
        loss = {"target class": target_class, "non-target class": non_target_class, "decoupled": partial(decoupled, alpha=1, beta=8)}[name]
        whole = loss(tensor(teacher), tensor(student), torch.from_numpy(Y))
        assert_close(loss(tensor(teacher)[ORDER], tensor(student)[ORDER], torch.from_numpy(Y)[ORDER]), whole[ORDER], rtol=0, atol=0)
        return
    whole = loss(tensor(teacher), tensor(student))
    assert whole.std() > 1e-6, "examples differ"
    assert_close(loss(tensor(teacher)[ORDER], tensor(student)[ORDER]), whole[ORDER], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in LABELLED and "without" not in name])
def test_each_example_twice_halves_what_depends_on_pairs_and_leaves_the_rest(name):
    """Squares shrink by four and pairs grow by four where absolute values shrink by two; the adaptive width stays what it was."""
    loss, _, teacher, student = LOSSES[name]
    once, twice = (
        loss(tensor(teacher).repeat(n, *[1] * (teacher.ndim - 1)), tensor(student).repeat(n, *[1] * (student.ndim - 1))).mean()
        for n in (1, 2)
    )
    ratio = 1 if name not in PAIRWISE else 0.25 if "squared" in name else 0.5
    assert (twice / once).item() == pytest.approx(ratio, rel=1e-4 if name == "cosine transfer" else 1e-9)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(name, precision):
    """Also where products are cast to a lower precision."""
    loss, _, teacher, student = LOSSES[name]
    t, s = tensor(teacher).to(precision), tensor(student).to(precision)
    single = loss(t.float(), s.float())
    assert single.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(t, s), single)
    assert_close(single.double(), loss(t.double(), s.double()), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_recorded_loss_gives_its_bits_for_other_numbers(name):
    """Forward and backward; so no operation looked at a value."""
    loss, _, teacher, student = LOSSES[name]

    def step(t, s):
        value = loss(t, s := s.detach().requires_grad_())
        return value.detach(), *torch.autograd.grad(value.mean(), s)

    graph = simplify(make_fx(step)(tensor(teacher), tensor(student)))
    check_static_shapes(graph)
    others = -0.7 * tensor(teacher).flip(0), tensor(student).flip(0) + 1
    assert all(torch.equal(found, told) for found, told in zip(graph(*others), step(*others)))


@pytest.mark.parametrize("name", LOSSES)
def test_many_students_at_once_have_the_losses_of_one_after_the_other(name):
    loss, _, teacher, student = LOSSES[name]
    students = torch.stack([tensor(student), 1.5 * tensor(student).flip(0)])
    together = torch.vmap(loss, in_dims=(None, 0))(tensor(teacher), students)
    assert_close(together, torch.stack([loss(tensor(teacher), s) for s in students]), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in LABELLED])
@pytest.mark.parametrize("level", [0.0, 1.5], ids=["zero", "equal"])
def test_examples_without_a_direction_and_equal_ones_have_finite_losses_and_gradients(name, level):
    """Two examples are the same, and are zero in one case; then all are."""
    loss, _, teacher, student = LOSSES[name]
    for rows in (2, 6):
        t, s = tensor(teacher).float(), tensor(student).float()
        s[:rows], t[1:rows] = level, level
        value = loss(t, s.requires_grad_())
        value.sum().backward()
        assert value.isfinite().all() and s.grad.isfinite().all() and s.grad.abs().max() < 1e4


# ---------------------------------------------------------------------------------------------------------------- constants
def test_attention_of_the_example():
    teacher, student = tensor([[[[1, 2], [3, 4]]]]), torch.ones(1, 1, 2, 2, dtype=torch.float64)
    value = attention_transfer(teacher, student).item()
    assert value == pytest.approx(0.1013795, abs=5e-8)
    assert 4 * value == pytest.approx(0.4055180, abs=5e-8) and math.sqrt(4 * value) == pytest.approx(0.6368029, abs=5e-8)


@pytest.mark.parametrize(("teacher", "student", "value"), [(SAME, TWO, 0.2928932), (TEACHER, THREE, 0.1431822)])
def test_similarity_preserving_of_the_examples(teacher, student, value):
    assert similarity_preserving(tensor(teacher), tensor(student)).mean().item() == pytest.approx(value, abs=5e-8)


@pytest.mark.parametrize(
    ("teacher", "student", "kernel", "divergence", "diagonal", "value"),
    [
        (SAME, TWO, "cosine", "kl", True, 0.0294458), (SAME, TWO, "cosine", "jeffreys", True, 0.0577623),
        (SAME, TWO, "student_t", "jeffreys", True, 0.0910746), (SAME, TWO, "combined", "jeffreys", True, 0.1488369),
        (SAME, TWO, "combined", "jeffreys", False, 0.0),
        (TEACHER, THREE, "cosine", "jeffreys", True, 0.0300768), (TEACHER, THREE, "student_t", "jeffreys", True, 0.0119473),
        (TEACHER, THREE, "combined", "jeffreys", True, 0.0420241),
        (TEACHER, THREE, "cosine", "jeffreys", False, 0.0465639), (TEACHER, THREE, "student_t", "jeffreys", False, 0.0185620),
        (TEACHER, THREE, "combined", "jeffreys", False, 0.0651260),
    ],
)  # fmt: skip
def test_probabilistic_transfer_of_the_examples(teacher, student, kernel, divergence, diagonal, value):
    """The t-part to the last digit; the cosine has 1e-6 added to its lengths."""
    found = pkt(tensor(teacher), tensor(student), kernel=kernel, divergence=divergence, diagonal=diagonal).mean().item()
    assert found == pytest.approx(value, abs=1e-7 if kernel == "student_t" else 1e-6)


def test_the_transfer_of_2018_of_the_example():
    assert cosine_knowledge_transfer(tensor(SAME), tensor(TWO)).mean().item() == pytest.approx(0.0294458, abs=1e-6)


def test_decoupled_distillation_of_the_example_and_its_sum():
    teacher, student, y = tensor(TEACHER_LOGITS), tensor(STUDENT_LOGITS), torch.tensor([0])
    target, others = (term(teacher, student, y, 4.0).item() for term in (target_class, non_target_class))
    assert (target, others) == pytest.approx((0.0707503, 0.4585242), abs=5e-8)
    assert decoupled(teacher, student, y, 1, 8, 4.0).item() == pytest.approx(3.7389440, abs=5e-7)
    share = (teacher / 4).softmax(-1)[0, 0].item()
    assert target + (1 - share) * others == pytest.approx(0.3156777, abs=5e-8)


# --------------------------------------------------------------------------------------------------------------- identities
def rotation_matrix(size: int) -> torch.Tensor:
    return torch.linalg.qr(tensor(np.random.default_rng(1).standard_normal((size, size)))).Q


def test_attention_is_blind_to_a_factor_of_any_example_and_pools_the_larger():
    """Features that are constant on patches are pooled to what they are made of."""
    t, s, factor = tensor(MAPS), tensor(MAPS).flip(0), torch.tensor([0.5, 3, -1, 7, 2, 9], dtype=torch.float64)[:, None, None, None]
    assert_close(attention_transfer(factor * t, s), attention_transfer(t, s), rtol=1e-10, atol=0)
    blown = tensor(SMALL).repeat_interleave(2, -2).repeat_interleave(3, -1)
    assert_close(attention_transfer(blown, tensor(SMALL)), torch.zeros(6, dtype=torch.float64), atol=1e-25, rtol=0)
    assert_close(
        attention_transfer(tensor(SMALL).flip(0), blown), attention_transfer(tensor(SMALL).flip(0), tensor(SMALL)), rtol=1e-10, atol=0
    )


def test_similarity_preserving_sees_angles_and_relative_lengths_alone():
    t, s, turn = tensor(B), tensor(A), rotation_matrix(5)
    value = similarity_preserving(t, s)
    for same in (-3 * s, s @ turn, s.view(6, 1, 5, 1)):
        assert_close(similarity_preserving(t, same), value, rtol=1e-10, atol=0)
    assert_close(similarity_preserving(s, -2 * s @ turn), torch.zeros(6, dtype=torch.float64), atol=1e-28, rtol=0)
    uneven = s * torch.arange(1, 7)[:, None]
    assert (similarity_preserving(t, uneven) - value).abs().max() > 0.01
    assert similarity_preserving(t[:1], s[:1]).item() == 0, "one example is alike to itself"
    assert value.mean() <= 4 / 6 and similarity_preserving(t.relu(), s.relu()).mean() <= 2 / 6


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_see_what_they_are_to_see(kernel, diagonal):
    """Turned alike, none sees it. The cosine sees no factor of an example but shifts, the others see factors but no shifts."""
    t, s, turn, factors = tensor(B), tensor(A), rotation_matrix(5), torch.arange(1, 7)[:, None]
    loss = partial(pkt, kernel=kernel, divergence="jeffreys", diagonal=diagonal)
    value = loss(t, s)
    scaled, shifted = (((loss(t, other) - value).abs() / value).max() for other in (s * factors, s + 1))
    assert_close(loss(t @ turn, s @ turn), value, rtol=1e-9, atol=0)
    assert (scaled < 1e-5) == (kernel == "cosine") and (shifted < 1e-9) == (kernel != "cosine")
    if kernel == "adaptive_rbf":
        assert ((loss(t, 5 * s) - value).abs() / value).max() < 0.01, "its width follows"


@pytest.mark.parametrize("kernel", KERNELS)
def test_conditional_probabilities_are_kernels_of_rows_that_sum_to_one(kernel):
    with_self, without = (conditional(tensor(A), kernel, diagonal) for diagonal in (True, False))
    for found in (with_self, without):
        assert_close(found.sum(-1), torch.ones(6, dtype=torch.float64))
    assert (with_self.diagonal() > 0.1).all() and (without.diagonal() == 0).all()
    k = oracles.kernel(kernel, A)
    np.testing.assert_allclose(with_self.numpy(), k / k.sum(1, keepdims=True), rtol=1e-9)
    np.testing.assert_allclose(without.numpy()[0, 1:], k[0, 1:] / k[0, 1:].sum(), rtol=1e-9)


def test_the_kernel_of_an_example_and_itself_and_of_nothing():
    x = tensor([[0, 0], [3, 4]])
    assert_close(KERNELS["student_t"](x).exp().diagonal(), torch.full((2,), 1 / 1.001, dtype=torch.float64), rtol=1e-12, atol=0)
    assert_close(KERNELS["cosine"](x).exp()[0], torch.full((2,), 0.5, dtype=torch.float64), rtol=1e-15, atol=0)


def test_neighbours_far_apart_still_have_a_probability_and_a_gradient():
    """exp(-d) of these distances is nothing in 32 bits."""
    s = (1e3 * tensor(A).float()).requires_grad_()
    value = pkt(1e3 * tensor(B).float(), s, kernel="rbf", divergence="jeffreys", diagonal=False)
    value.sum().backward()
    assert value.isfinite().all() and value.max() > 100 and s.grad.isfinite().all() and s.grad.norm() > 0


def test_plain_distillation_is_the_sum_of_its_decoupled_parts():
    teacher, student, y = tensor(A), tensor(B), torch.from_numpy(Y)
    for temperature in (1.0, 4.0):
        p = (teacher / temperature).softmax(-1).gather(-1, y[:, None])[:, 0]
        parts = (term(teacher, student, y, temperature) for term in (target_class, non_target_class))
        assert_close(kl_divergence(teacher, student, temperature), sum(w * part for w, part in zip((1, 1 - p), parts)), rtol=1e-11, atol=0)


def test_decoupled_distillation_stays_finite_for_large_logits():
    teacher = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]])
    student = (-teacher).requires_grad_()
    value = decoupled(teacher, student, torch.tensor([0, 0]), 1, 8)
    value.sum().backward()
    assert value.isfinite().all() and (value > 1e3).all() and student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x: hint(x, x[:, :2]), r"hint must compare features of one shape, \(6, 5\), got \(6, 2\)"),
        (lambda x: attention_transfer(x, x, 0.5), "power must be >= 1"),
        (lambda x: pkt(x, x, kernel="normal", divergence="kl", diagonal=True), "kernel must be one of cosine, .*, combined, got 'normal'"),
        (lambda x: pkt(x, x, kernel="cosine", divergence="js", diagonal=True), "divergence must be one of jeffreys, .*, got 'js'"),
        (lambda x: gradient_mask("all", x, x, torch.from_numpy(Y)), "filter must be one of none, .*, got 'all'"),
        (lambda x: unbiased_cka(x[:3], x[:3]), "batch_size must be > 3 .*, got 3"),
        (lambda x: rotations(x.view(6, 1, 1, 5)), "rotations must be of square images, got '1x5'"),
        (lambda x: quadratic_mutual_information(x, torch.from_numpy(Y), 5, kernel="combined"), "kernel must be one of"),
        (lambda x: binned_mutual_information(x, torch.from_numpy(Y), 5, num_components=0, num_bins=2), "num_components must be >= 1"),
        (lambda x: binned_mutual_information(x, torch.from_numpy(Y), 5, num_components=1, num_bins=1), "num_bins must be >= 2"),
        (lambda x: parameter_distance({"w": x}, {"v": x}), r"must be between parameters of the same names and shapes, got \['v', 'w'\]"),
        (lambda x: parameter_distance({"w": x}, {"w": x[:1]}), r"must be between parameters of the same names and shapes, got \['w'\]"),
        (lambda x: parameter_path_length(0.0, {"w": x}, {"w": x}, {"w": 0 * x}), "travel must begin at parameters that are not all zero"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_the_rule(loss, message):
    with pytest.raises(ValueError, match=message):
        loss(tensor(A))


# ---------------------------------------------------------------------------------------------------------------- alignment
X = tensor([[1, 0], [0, 1], [1, 1], [2, 0], [0, 3]])
OTHER = tensor([[0, 1], [1, 0], [1, 2], [0, 1], [2, 2]])


def test_alignment_of_the_example():
    """And not the uncentred one, which is 0.8468188."""
    assert_close(hsic_values(X, OTHER), tensor([0.7333333, 2.0, 0.8]), atol=5e-8, rtol=0)
    assert unbiased_cka(X, OTHER).item() == pytest.approx(0.5797509, abs=5e-8)
    assert biased_cka(X, OTHER).item() == pytest.approx(0.7343898, abs=5e-8)
    k, other = X @ X.T, OTHER @ OTHER.T
    assert ((k * other).sum() / k.norm() / other.norm()).item() == pytest.approx(0.8468188, abs=5e-8)


@pytest.mark.parametrize(("measure", "estimate"), [(unbiased_cka, oracles.hsic1), (biased_cka, oracles.hsic0)])
def test_alignment_is_its_equation_for_any_width_and_blind_to_rotation_factor_and_shift(measure, estimate):
    x, y = tensor(SMALL), tensor(A)  # [6, 2, 2, 4] and [6, 5]
    value = measure(x, y)
    assert value.item() == pytest.approx(oracles.cka(SMALL.reshape(6, -1), A, estimate), rel=1e-10)
    assert measure(y, x).item() == pytest.approx(value.item(), rel=1e-12)
    for same in (y @ rotation_matrix(5), -3 * y, y + torch.arange(5)):
        assert measure(x, same).item() == pytest.approx(value.item(), rel=1e-10)
        assert measure(y, same).item() == pytest.approx(1, rel=1e-12)
    assert abs(measure(x, y * torch.arange(1, 6)).item() - value.item()) > 1e-3
    assert torch.autograd.gradcheck(measure, (x.requires_grad_(), tensor(A).requires_grad_()))


def test_the_printed_hsic_is_that_of_centred_products():
    k, other = A @ A.T, SMALL.reshape(6, -1) @ SMALL.reshape(6, -1).T
    assert unbiased_hsic(tensor(k), tensor(other)).item() == pytest.approx(oracles.hsic1(k, other), rel=1e-10)


def test_the_ratio_is_formed_of_means_over_minibatches():
    values = torch.stack([hsic_values(tensor(A), tensor(B)), hsic_values(tensor(B) ** 2, tensor(A))])
    cross, one, other = values.mean(0).tolist()
    assert cka(values.mean(0)).item() == pytest.approx(cross / math.sqrt(one * other))
    assert cka(values).mean().item() != pytest.approx(cka(values.mean(0)).item(), rel=0.05)


def test_the_unbiased_alignment_of_unrelated_wide_features_is_near_nothing():
    x, y = (tensor(np.random.default_rng(seed).standard_normal((16, 400))) for seed in (0, 1))
    assert abs(unbiased_cka(x, y).item()) < 0.1 and biased_cka(x, y).item() > 0.9
    assert unbiased_cka(torch.zeros(6, 2), tensor(A)).item() == 0, "a dead layer is like nothing"
    assert unbiased_cka(X.bfloat16(), OTHER.half()).dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------- gradient filter
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("name", FILTERS)
def test_masks_are_their_definitions(name, temperature):
    found = gradient_mask(name, *(torch.from_numpy(array) for array in (A, B, Y)), temperature, 0.1)
    expected = oracles.filter_mask(name, A, B, Y, temperature, 0.1)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found.shape == (6, 5) and found.any() and found.all() == (name == "none")


@pytest.mark.parametrize("name", FILTERS)
def test_a_filtered_loss_has_its_value_and_only_the_gradient_that_is_kept(name):
    """The gradient of T^2 KL is T (p_s - p_t)."""
    t, s, y = tensor(A), tensor(B).requires_grad_(), torch.from_numpy(Y)
    kept = gradient_mask(name, t, s, y, 2.0, 0.1)
    through = filter_gradient(s, kept)
    assert torch.equal(through, s) and torch.equal(kl_divergence(t, through, 2.0), kl_divergence(t, s, 2.0))
    (slope,) = torch.autograd.grad(kl_divergence(t, through, 2.0).mean(), s)
    assert_close(slope, kept * 2.0 * ((s / 2).softmax(-1) - (t / 2).softmax(-1)) / 6, atol=1e-14, rtol=0)
    assert (slope[~kept] == 0).all()


def test_the_filter_of_the_example():
    """The teacher is surer of the label: kept. The other way round, and among equals: dropped."""
    student, teacher, y = tensor(STUDENT_LOGITS).requires_grad_(), tensor(TEACHER_LOGITS), torch.tensor([0])

    def slope(teacher, student):
        logits = student.detach().requires_grad_()
        return torch.autograd.grad(kl_divergence(teacher, filter_gradient(logits, gradient_mask("sample_conf", teacher, logits, y))).mean(), logits)[0]

    assert_close(slope(teacher, student), tensor([[-0.0561582, -0.0206595, 0.0768177]]), atol=5e-8, rtol=0)
    assert (slope(student, teacher) == 0).all()
    assert not gradient_mask("sample_conf", teacher, teacher, y).any() and not gradient_mask("target_only", teacher, teacher, y)[0, 0]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_filtered_out_may_be_infinite(value):
    logits, kept = torch.zeros(1, 2, requires_grad=True), torch.tensor([[True, False]])
    slopes = torch.autograd.grad(filter_gradient(logits, kept), logits, torch.tensor([[1.0, value]]))[0]
    assert slopes.tolist() == [[1, 0]]


def test_the_filter_works_in_a_network_of_other_weights_and_in_a_recorded_step():
    class Filtering(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(5, 5, dtype=torch.float64)

        def forward(self, x, t, y):
            logits = self.head(x)
            return filter_gradient(logits, gradient_mask("target_only", t, logits, y))

    def step(weights, x, t, y):
        weights = {key: value.detach().requires_grad_() for key, value in weights.items()}
        loss = kl_divergence(t, functional_call(net, weights, (x, t, y))).sum()
        return loss.detach(), *torch.autograd.grad(loss, list(weights.values()))

    net, y = Filtering(), torch.from_numpy(Y)
    weights = {"head.weight": tensor(B[:5]), "head.bias": tensor(A[0])}
    graph = simplify(make_fx(step)(weights, tensor(A), tensor(B), y))
    found, told = graph(weights, tensor(A).flip(0), tensor(B), y), step(weights, tensor(A).flip(0), tensor(B), y)
    assert all(torch.equal(one, other) for one, other in zip(found, told))
    logits = tensor(A).flip(0) @ weights["head.weight"].T + weights["head.bias"]
    kept = gradient_mask("target_only", tensor(B), logits, y)
    assert_close(told[2], (kept * (logits.softmax(-1) - tensor(B).softmax(-1))).sum(0))
    assert not kept.all()


# ----------------------------------------------------------------------------------------------------------------- rotation
def test_rotations_stand_beside_their_image_and_labels_beside_them():
    x = tensor(RNG.standard_normal((3, 2, 4, 4)))
    turned, labels = rotations(x), joint_labels(torch.tensor([5, 0, 2]))
    assert turned.shape == (12, 2, 4, 4) and torch.equal(turned[0::4], x), "those not turned are the images, bit for bit"
    for b in range(3):
        for k in range(4):
            np.testing.assert_array_equal(turned[4 * b + k].numpy(), np.rot90(x[b].numpy(), k, (1, 2)))
    assert labels.tolist() == [20, 21, 22, 23, 0, 1, 2, 3, 8, 9, 10, 11] and labels.dtype == torch.int64
    assert torch.equal(rotations(rotations(x))[5::16], turned[2::4]), "two quarters are a half"
    assert torch.equal(rotations(turned[3::4])[1::4], x), "four quarters are nothing"


def test_class_logits_sum_the_four_of_a_class():
    joint = tensor(RNG.standard_normal((2, 3, 12)))
    found = class_logits(joint)
    assert found.shape == (2, 3, 3)
    for c in range(3):
        assert_close(found[..., c], sum(joint[..., 4 * c + k] for k in range(4)))


def test_the_divergence_at_a_high_temperature_is_half_the_variance_of_differences():
    """Hinton's limit, ``|centred difference|^2 / (2 C)``."""
    teacher, student = tensor(TEACHER_LOGITS), tensor(STUDENT_LOGITS)
    assert kl_divergence(teacher, student, 1000.0).item() == pytest.approx(0.44402, abs=5e-6)
    assert ((teacher - student).var(correction=0) / 2).item() == pytest.approx(0.4444444, abs=5e-8)


# -------------------------------------------------------------------------------------------------------------- information
@pytest.mark.parametrize("kernel", KERNELS)
def test_quadratic_information_is_its_equation(kernel):
    found = quadratic_mutual_information(tensor(A), torch.from_numpy(Y), 5, kernel=kernel).item()
    assert found == pytest.approx(oracles.quadratic_information(oracles.kernel(kernel, A), Y), rel=1e-9)
    more = quadratic_mutual_information(tensor(A), torch.from_numpy(Y), 9, kernel=kernel).item()
    assert more == pytest.approx(found, rel=1e-12), "classes without examples add nothing"


def test_quadratic_information_of_one_class_of_equal_examples_and_of_separate_ones():
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    apart = tensor(B) * 0.1 + 5 * y[:, None]
    measure = partial(quadratic_mutual_information, num_classes=2, kernel="rbf")
    assert measure(tensor(A), 0 * y).item() == pytest.approx(0, abs=1e-15)
    assert measure(torch.ones(6, 5, dtype=torch.float64), y).item() == pytest.approx(0, abs=1e-15)
    assert measure(apart, y).item() > 0.1 and measure(apart, torch.tensor([0, 1, 0, 1, 0, 1])).item() < 0.05


def test_binned_information_is_what_is_counted():
    """Two features of unlike variance are their own principal components, and are cut into thirds."""
    rng = np.random.default_rng(2)
    grid = np.array([(3.0 * i, j) for i in range(3) for j in range(3)] * 4) - [3, 1]
    y = np.where(rng.random(36) < 0.3, rng.integers(0, 3, 36), np.arange(36) % 3)
    found = binned_mutual_information(tensor(grid), torch.from_numpy(y), 3, num_components=2, num_bins=3).item()
    assert found == pytest.approx(oracles.mutual_information(grid, y), rel=1e-10) and 0.2 < found < math.log(3)
    one = binned_mutual_information(tensor(grid), torch.from_numpy(y), 3, num_components=1, num_bins=3).item()
    assert one == pytest.approx(oracles.mutual_information(grid[:, 0], y), rel=1e-10) and one < found


def test_binned_information_of_what_tells_all_and_what_tells_nothing():
    measure = partial(binned_mutual_information, num_classes=4, num_bins=4, num_components=1)
    y = torch.arange(200) % 4
    noise = tensor(np.random.default_rng(3).standard_normal((200, 6)))
    assert measure(y[:, None] + 0.01 * noise[:, :1], y).item() == pytest.approx(math.log(4), rel=1e-12)
    assert measure(torch.full((200, 6), 0.1), y).item() == pytest.approx(0, abs=1e-12), "one cell"
    assert 0 < measure(noise, y).item() < 3 * (4 - 1) * (4 - 1) / (2 * 200), "of the size of its bias"
    several = partial(binned_mutual_information, num_classes=4, num_bins=3, num_components=2)
    spread = noise * torch.arange(1, 7)
    assert several(-2 * spread @ rotation_matrix(6) + 1, y).item() == pytest.approx(several(spread, y).item(), abs=0.03)


@pytest.mark.parametrize("shape", [(30, 4), (4, 30)])
def test_principal_components_are_those_of_the_decomposition(shape):
    x = np.random.default_rng(4).standard_normal(shape)
    left, values, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    found = principal_components(tensor(x), 2).numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(left * values)[:, :2], atol=1e-10)
    flat = principal_components(tensor(np.outer(x[:, 0], np.ones(3))), 2)
    assert (flat[:, 0] != 0).all() and (flat[:, 1] == 0).all(), "rounding is no feature"


def filter_by(name):
    return lambda logits: filter_gradient(logits, gradient_mask(name, tensor(A), logits, torch.from_numpy(Y), 2.0, 0.1))


MEASURES = {
    "rotations": (rotations, tensor(MAPS)),
    "joint labels": (joint_labels, torch.from_numpy(Y)),
    "class logits": (class_logits, tensor(MAPS)),
    "unbiased alignment": (lambda x: unbiased_cka(x, tensor(B)), tensor(A)),
    "biased alignment": (lambda x: biased_cka(x, tensor(B)), tensor(A)),
    "quadratic information": (lambda x: quadratic_mutual_information(x, torch.from_numpy(Y), 5, kernel="student_t"), tensor(A)),
    **{f"filter {name}": (filter_by(name), tensor(B)) for name in FILTERS},
}


@pytest.mark.parametrize("name", MEASURES)
def test_what_else_may_stand_in_a_step_is_recorded_and_mapped_too(name):
    function, x = MEASURES[name]
    graph, other = simplify(make_fx(function)(x)), x.flip(0)
    check_static_shapes(graph)
    assert torch.equal(graph(other), function(other))
    assert_close(torch.vmap(function)(torch.stack([x, other])), torch.stack([function(x), function(other)]), rtol=1e-10, atol=0)


# ---------------------------------------------------------------------------------------------------- retrieval and travel
KNOWN, ASKED = RNG.standard_normal((40, 3)), RNG.standard_normal((11, 3))
KNOWN[[3, 7]], KNOWN[30] = (2, 0, 0), 0  # equals of unlike labels, and one without a direction
LABELS, ASKED_LABELS = RNG.integers(0, 4, 40), RNG.integers(0, 4, 11)
LABELS[:8] = [0, 1, 2, 3, 0, 1, 2, 4]  # 4 is there once, 5 is not there
ASKED_LABELS[:3] = [3, 4, 5]


def retrieved(**options) -> tuple:
    found = retrieval(*(torch.from_numpy(array) for array in (KNOWN, LABELS, ASKED, ASKED_LABELS)), **options)
    return found.mean_average_precision, found.precision_at_k, found.precision_at_1


@pytest.mark.parametrize("batch_size", [1, 4, 128])
@pytest.mark.parametrize("first", [5, 100])
@pytest.mark.parametrize("interp", ["full", "official"])
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_retrieval_is_what_a_slow_one_finds(similarity, interp, first, batch_size):
    expected = oracles.retrieval(KNOWN, LABELS, ASKED, ASKED_LABELS, similarity, interp, first, batch_size)
    assert retrieved(similarity=similarity, interp=interp, first=first, batch_size=batch_size) == pytest.approx(expected, rel=1e-12)


def test_looking_ahead_over_the_whole_database_finds_no_less():
    """And a batch's queries matter to the official interpolation alone; as many as the database has answers, and it is the full one."""
    full = retrieved(similarity="cosine", interp="full", first=5)
    assert full == pytest.approx(retrieved(similarity="cosine", interp="full", first=5, batch_size=2), rel=1e-12)
    few, more = (retrieved(similarity="cosine", interp="official", first=5, batch_size=n) for n in (2, 11))
    assert few[0] < more[0] <= full[0] and full[2] <= few[2] < more[2]
    queries = (torch.from_numpy(np.tile(array, (4, 1) if array.ndim == 2 else 4)) for array in (ASKED, ASKED_LABELS))
    all_at_once = retrieval(torch.from_numpy(KNOWN), torch.from_numpy(LABELS), *queries, similarity="cosine", interp="official", first=5)
    assert all_at_once.mean_average_precision == pytest.approx(full[0], rel=1e-12)


def test_retrieval_among_separate_classes_is_perfect_and_sees_lengths_only_where_it_is_to():
    labels = torch.arange(12) % 3
    x = torch.nn.functional.one_hot(labels, 3).double() * torch.arange(1, 13)[:, None]
    perfect, by_distance = (
        retrieval(x, labels, x[:3] * 20, labels[:3], similarity=how, interp="full", first=4) for how in ("cosine", "euclidean")
    )
    assert (perfect.mean_average_precision, perfect.precision_at_k, perfect.precision_at_1) == (1, 1, 1)
    swapped = retrieval(x, labels, -x[:3], labels[:3], similarity="cosine", interp="full", first=4)
    assert (swapped.precision_at_k, swapped.precision_at_1) == (0, 0)
    assert by_distance.precision_at_1 == 1
    with pytest.raises(ValueError, match="similarity must be one of cosine, euclidean, got 'c'"):
        retrieval(x, labels, x, labels, similarity="c", interp="full")
    with pytest.raises(ValueError, match="interp must be one of full, official, got 'half'"):
        retrieval(x, labels, x, labels, similarity="cosine", interp="half")
    with pytest.raises(ValueError, match="retrieval must have a database and queries"):
        retrieval(x[:0], labels[:0], x, labels, similarity="cosine", interp="full")


def test_travel_counts_every_step_in_lengths_of_the_beginning():
    start = {"w": tensor(A), "b": tensor(B[0]).float()}
    assert parameter_path_length(0.0, start, start, start) == 0
    way = [{key: value * (1 + 0.25 * k) for key, value in start.items()} for k in range(6)]
    length = 0.0
    for before, after in itertools.pairwise(way):
        length = parameter_path_length(length, before, after, start)
    assert length == pytest.approx(5 * 0.25, rel=1e-6)
    double = {key: 2 * value for key, value in start.items()}
    there = parameter_path_length(0.0, start, double, start)
    assert parameter_path_length(there, double, start, start) == pytest.approx(2, rel=1e-12), "the way, not the distance from the beginning"


def test_distance_is_the_length_over_all_parameters():
    before, after = {"w": tensor([[0, 3]]), "b": tensor([1])}, {"b": tensor([13]), "w": tensor([[4, 0]])}
    assert parameter_distance(before, after).item() == pytest.approx(13)
