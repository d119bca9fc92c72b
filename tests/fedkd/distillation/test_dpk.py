"""DPK: its priors, patches and tokens."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fedkd.distillation.methods.dpk import Priors, choose_teacher_patches
from fedkd.distillation.methods.weighted_sum import WeightedSum
from fedkd.distillation.student_training import Progress
from fedkd.losses.cka import unbiased_cka
from fedkd.seed import Seed
from fedkd.training.functional_model import snapshot
from simulations.distillation.setup import make_setup
from tests.fedkd.distillation.method_tools import SMALL_DPK, has_gradient, small_setup, step


def test_full_prior_gives_no_gradient():
    _, whole = step(small_setup(*SMALL_DPK, "distiller.ratio=1.0", "distiller.ce=0", "distiller.alpha=0"))
    assert not has_gradient(whole, "student.") and has_gradient(whole, "method.")
    _, half = step(small_setup(*SMALL_DPK, "distiller.ratio=0.5", "distiller.ce=0", "distiller.alpha=0"))
    assert has_gradient(half, "student.")


def test_no_prior_ignores_the_teacher():
    setup = small_setup(*SMALL_DPK, "distiller.ratio=0.0")
    priors, stage = setup.learner.method, setup.learner.method.stages[0]
    student, teacher = torch.rand(4, 5, 8, 8, dtype=torch.float64), torch.rand(4, 6, 8, 8, dtype=torch.float64)
    none = torch.zeros(4, 4, dtype=torch.bool)
    assert torch.equal(stage(student, teacher, none), stage(student, teacher + 1, none))
    assert not torch.equal(stage(student, teacher, ~none), stage(student, teacher + 1, ~none))
    assert isinstance(priors, Priors) and (priors.share == 0).all()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_number_of_teacher_patches(share):
    chosen = choose_teacher_patches(torch.tensor(share), torch.rand(1000, 16, generator=torch.Generator().manual_seed(0)))
    assert (chosen.sum(-1) == round(share * 16)).all()
    where = chosen.double().mean(0)  # by patch: all have the same probability
    assert ((where - round(share * 16) / 16).abs() <= 3.5 * (0.25 / 1000) ** 0.5).all()


def test_identity_modules_err_at_student_patches_only():
    setup = small_setup(
        "distiller=dpk", "teacher.widths=[5,6,7]", "distiller.grid=8", "distiller.width=8", "distiller.heads=2", "distiller.depth=0"
    )
    stage = setup.learner.method.stages[0]  # maps of 8 x 8 pixels in patches of one pixel
    with torch.no_grad():
        for tokens in (stage.student, stage.teacher):
            tokens.embed.weight.copy_(torch.eye(8, 5, dtype=torch.float64)[..., None, None])
            tokens.embed.bias.zero_()
            tokens.position.zero_()
        stage.patches.project.weight.copy_(torch.eye(5, 8, dtype=torch.float64))
        stage.patches.project.bias.zero_()
    s, t = torch.rand(2, 3, 5, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    chosen = choose_teacher_patches(torch.tensor(0.25), torch.rand(3, 64, generator=torch.Generator().manual_seed(2)))
    reconstructed = stage(s, t, chosen)
    error = ((s - t) ** 2).flatten(2) * ~chosen[:, None]
    assert_close(setup.distiller.error(t, reconstructed, chosen), error.mean())
    assert_close(replace(setup.distiller, positions="student").error(t, reconstructed, chosen), error.sum() / (5 * (~chosen).sum()))
    assert_close(setup.distiller.error(t, stage(t, t, chosen), chosen), torch.zeros((), dtype=torch.float64))
    assert_close(reconstructed.flatten(2)[~chosen[:, None].expand(-1, 5, -1)], s.flatten(2)[~chosen[:, None].expand(-1, 5, -1)])


@pytest.mark.parametrize(
    ("teacher", "student", "patches"), [(8, 8, 8), (14, 14, 7), (14, 7, 7), (28, 28, 7), (7, 7, 7), (2, 2, 2), (3, 1, 1)]
)
def test_patches_divide_both_maps(teacher, student, patches):
    assert small_setup("distiller=dpk").distiller.patches((3, student, student), (3, teacher, teacher)) == patches


def test_share_follows_the_gap():
    setup = small_setup(*SMALL_DPK)
    teacher_tensors = snapshot(setup.teacher)
    training = setup.training(teacher_tensors)
    batches = training.batches(setup.fixed_images, 0, Seed(3))
    one = replace(batches, y=batches.y[:1], index=batches.index[:1], drawn={k: v[:1] for k, v in batches.drawn.items()})
    after = training.fit(Progress(0, setup.initial_tensors), one).tensors["method.share"]
    x = next(iter(one)).x
    student = setup.learner.student.train()
    maps = torch.func.functional_call(
        student, {k.removeprefix("student."): v for k, v in setup.initial_tensors.items() if k.startswith("student.")}, (x,)
    ).stages
    known = setup.teacher.student.eval()(x).stages
    gaps = torch.stack([1 - unbiased_cka(t.flatten(1), s.flatten(1)).clamp(0, 1) for t, s in zip(known, maps)])
    assert_close(after, (0.9 * 0.5 + 0.1 * gaps).to(after))
    assert ((gaps > 0) & (gaps < 1)).all()


def test_tokens_are_mapped_back():
    setup = small_setup(
        "distiller=dpk", "distiller.grid=2", "distiller.width=64", "distiller.heads=2", "distiller.depth=0", "teacher.widths=[4,6,7]"
    )
    stage = setup.learner.method.stages[0]
    with torch.no_grad():  # 4 channels and patches of 4 x 4 pixels: 64 values per token
        stage.teacher.embed.weight.copy_(torch.eye(64, dtype=torch.float64).view(64, 4, 4, 4))
        stage.teacher.embed.bias.zero_()
        stage.teacher.position.zero_()
        stage.patches.project.weight.copy_(torch.eye(64, dtype=torch.float64))
        stage.patches.project.bias.zero_()
    t = torch.rand(2, 4, 8, 8, dtype=torch.float64)
    assert_close(stage.patches(stage.teacher(t)), t)


def test_bernoulli_patches_and_minimum():
    noise = torch.rand(500, 16, generator=torch.Generator().manual_seed(0))
    each = choose_teacher_patches(torch.tensor(0.3), noise, "bernoulli")
    assert torch.equal(each, noise < 0.3) and len(each.sum(-1).unique()) > 3
    assert (choose_teacher_patches(torch.tensor(0.0), noise, least=2).sum(-1) == 2).all() and (
        choose_teacher_patches(torch.tensor(0.5), noise, least=2).sum(-1) == 8
    ).all()
    with pytest.raises(ValueError, match=r"^distiller\.least must be >= 0 patches, got -1$"):
        small_setup(*SMALL_DPK, "distiller.least=-1")


@pytest.mark.parametrize("stitch_at", ["encoded", "embed"])
def test_gap_of_tokens(stitch_at):
    setup = small_setup(*SMALL_DPK, "distiller.gap=tokens", f"distiller.stitch_at={stitch_at}")
    training = setup.training(snapshot(setup.teacher))
    batches = training.batches(setup.fixed_images, 0, Seed(3))
    one = replace(batches, y=batches.y[:1], index=batches.index[:1], drawn={k: v[:1] for k, v in batches.drawn.items()})
    after = training.fit(Progress(0, setup.initial_tensors), one).tensors["method.share"]
    x, learner = next(iter(one)).x, make_setup(setup.config).learner.train()
    with torch.no_grad():
        maps = zip(learner.method.stages, learner.student(x).stages, setup.teacher.student.eval()(x).stages)
        gaps = torch.stack([1 - unbiased_cka(*(each.flatten(1) for each in stage.tokens(s, t))).clamp(0, 1) for stage, s, t in maps])
    assert_close(after, (0.9 * 0.5 + 0.1 * gaps).to(after))


def test_module_learning_rate():
    setup = small_setup(*SMALL_DPK, "distiller.module_lr=0.25")
    rates = {name: setup.distiller.lr_factor_of(name, 0) for name, _ in setup.learner.named_parameters()}
    assert {name.partition(".")[0]: rate for name, rate in rates.items()} == {"student": 1.0, "method": 0.25}
    both = WeightedSum(ce=1.0, parts={"dpk": replace(setup.distiller, ce=0.0)}, weights={"dpk": 1.0})
    assert (
        both.lr_factor_of("method.dpk.stages.0.encoder.layers.0.norm1.weight", 0) == 0.25
        and both.lr_factor_of("student.head.bias", 0) == 1.0
    )
    with pytest.raises(ValueError, match=r"^module_lr must be > 0 \(1: the student's\), got 0"):
        replace(setup.distiller, module_lr=0.0)
