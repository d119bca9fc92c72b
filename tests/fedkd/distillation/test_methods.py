"""Information flow, KDDG, weighted sums, DKD, and laws of all methods."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fedkd.distillation.methods.base import EpochSteps, classification_loss
from fedkd.distillation.methods.information_flow import InformationFlow
from fedkd.distillation.methods.sp import SP
from fedkd.distillation.methods.weighted_sum import WeightedSum
from fedkd.distillation.student_training import Progress
from fedkd.seed import Seed
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel, snapshot
from fedkd.types import Output
from tests.fedkd.distillation.method_tools import SMALL_DPK, first_examples, has_gradient, small_setup, step


@pytest.mark.parametrize("flag", ["true", "false"])
def test_information_flow_forgetful_optimizer(flag):
    setup = small_setup(
        "distiller=information_flow", "distiller.teaching=[]", f"distiller.forgetful={flag}", "steps_per_epoch=3", "optimizer=adam"
    )
    teacher_tensors = {key: value.clone() for key, value in snapshot(setup.teacher).items()}
    training = setup.training(teacher_tensors)
    first, _ = training.epoch(Progress(0, setup.initial_tensors))
    (went_on, _), (began, _) = training.epoch(first), training.epoch(replace(first, optimizer={}))
    assert all(torch.equal(began.tensors[name], value) for name, value in went_on.tensors.items()) == (flag == "true")


def test_information_flow_weights():
    setup = small_setup("distiller=information_flow", "distiller.teaching=[]")
    weights = [setup.distiller.draw(EpochSteps(2, 4, epoch, 50, Seed(0)))["critical"] for epoch in (0, 1, 5, 13, 20)]
    assert torch.stack(weights)[:, 0].tolist() == pytest.approx([100, 70, 16.807, 0.9689, 0.0798], rel=1e-3)


def test_information_flow_of_equal_networks():
    setup = small_setup("distiller=information_flow", "distiller.teaching=[]", "student.widths=[6,8,10]")
    same = {**setup.initial_tensors, **{k: v for k, v in snapshot(setup.teacher).items() if k.startswith("student.")}}
    teacher_tensors = {k: v for k, v in same.items() if k in snapshot(setup.teacher)}
    learner = setup.learner.eval()
    _, terms = setup.distiller.loss(
        FunctionalModel(learner, same),
        FunctionalModel(setup.teacher.eval(), teacher_tensors),
        Batch(first_examples(setup).x, first_examples(setup).y, {"critical": torch.tensor(100.0)}),
        True,
    )
    assert all(abs(float(term)) < 1e-12 for term in terms.values())


@pytest.mark.parametrize("name", ["none", "sample_conf", "target_only", "nontarget_only", "sym", "wrong_teacher"])
def test_kddg_filters_change_gradients_only(name):
    plain, full = step(small_setup("distiller=kddg", "distiller.filter=none"))
    terms, gradients = step(small_setup("distiller=kddg", f"distiller.filter={name}", "distiller.threshold=0.01"))
    assert terms == plain
    same = all(torch.equal(gradients[key], value) for key, value in full.items() if value is not None)
    assert same == (name == "none")


def test_weighted_sum():
    both, _ = step(small_setup("distiller=kd_sp", "distiller.weights.sp=0.5"))
    kd, _ = step(small_setup("distiller=kd"))
    sp, _ = step(small_setup("distiller=sp"))
    assert both == pytest.approx({"ce": kd["ce"], "kd_kd": kd["kd"], "sp_similarity": 0.5 * sp["similarity"]}, rel=1e-12)


def test_weighted_sum_resets_optimizer():
    parts = {"flow": replace(small_setup("distiller=information_flow", "distiller.teaching=[]").distiller, forgetful=True)}
    assert WeightedSum(ce=1.0, parts=parts, weights={"flow": 1.0}).resets_optimizer(1)
    assert not WeightedSum(ce=1.0, parts={"flow": replace(parts["flow"], forgetful=False)}, weights={"flow": 1.0}).resets_optimizer(1)


def test_weighted_sum_teacher_training():
    flow = make_flow(["student_init=alone"])
    both = {"flow": flow, "sp": SP(ce=0.0, weight=1.0, stage=-1)}
    assert WeightedSum(ce=1.0, parts=both, weights=dict.fromkeys(both, 1.0)).teacher_training() == ["student_init=alone"]
    twice = {"flow": flow, "again": make_flow(["student_init=teacher"])}
    with pytest.raises(ValueError, match=r"^parts must have one teacher: at most one of them prepares it \(teaching\), got"):
        WeightedSum(ce=1.0, parts=twice, weights=dict.fromkeys(twice, 1.0))


def make_flow(teaching: list[str]) -> InformationFlow:
    return InformationFlow(
        ce=0.0,
        weight=1.0,
        kernels=["cosine"],
        divergence="jeffreys",
        diagonal=True,
        layers="last",
        initial=1.0,
        decay=0.5,
        forgetful=False,
        teaching=teaching,
    )


def test_classification_loss_without_labels():
    t, s = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    teacher, student = (Output(z, z) for z in (t, s))
    with torch.autocast("cpu", torch.bfloat16):
        value = classification_loss(student, teacher, torch.zeros(5, dtype=torch.int64), False)
    assert_close(value, -(t.float().softmax(-1) * s.float().log_softmax(-1)).sum(-1).mean(), rtol=0, atol=0)


def test_dkd_warmup():
    setup = small_setup("distiller=dkd", "distiller.warmup=4")
    weights = [setup.distiller.draw(EpochSteps(1, 4, epoch, 9, Seed(0)))["warm"].item() for epoch in range(6)]
    assert weights == [0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize("name", ["kd", "fitnet", "at", "sp", "pkt", "dkd", "dpk"])
def test_gradients_of_student_and_method(name):
    small = SMALL_DPK[1:] if name == "dpk" else ()
    setup = small_setup(f"distiller={name}", "distiller.ce=0", *small)
    _, gradients = step(setup)
    assert has_gradient(gradients, "student.")
    assert has_gradient(gradients, "method.") == any(True for _ in setup.learner.method.parameters())
    assert isinstance(setup.learner.method, nn.Module)
