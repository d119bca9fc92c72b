"""HSAKD: branches, the frozen teacher, and the online version."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fedkd.distillation.methods.base import TeacherStudent
from fedkd.distillation.methods.hsakd import Branches, rotations
from fedkd.distillation.student_training import Progress
from fedkd.models.resnet import WideResNet
from fedkd.training.functional_model import FunctionalModel, snapshot
from fedkd.types import Task
from simulations.distillation.setup import Setup
from tests.fedkd.distillation.method_tools import first_batch, first_examples, has_gradient, small_setup, step


def hsakd_setup(*overrides: str) -> Setup:
    return small_setup("distiller=hsakd", "student.widths=[6,8,10]", *overrides)


def test_student_equal_to_teacher():
    setup = hsakd_setup()
    setup.learner.eval()  # with equal running statistics
    teacher_tensors = snapshot(setup.learner)
    value, terms = setup.distiller.loss(
        FunctionalModel(setup.learner.eval(), teacher_tensors),
        FunctionalModel(setup.learner.eval(), teacher_tensors),
        first_examples(setup),
        True,
    )
    assert terms["joint"].abs() < 1e-12 and terms["kd"].abs() < 1e-12
    assert_close(value, terms["ce"])


def test_shapes_of_branches():
    setup = hsakd_setup()
    x = first_examples(setup).x
    maps = setup.learner.student.eval()(x).stages
    answers = setup.learner.method.eval()(maps, False)
    assert [tuple(q.shape) for q in answers] == [(8, 40)] * 3


@pytest.mark.parametrize("detach", ["true", "false"])
def test_detach(detach):
    setup = hsakd_setup(f"distiller.detach={detach}", "distiller.ce=0", "distiller.kd=0")
    _, gradients = step(setup, teacher_tensors=snapshot(setup.teacher))
    assert has_gradient(gradients, "student.stages.") == (detach == "false") and has_gradient(gradients, "method.")


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_frozen_teacher(frozen):
    setup = small_setup("distiller=hsakd_teacher", f"distiller.frozen={frozen}")
    _, gradients = step(setup)
    assert has_gradient(gradients, "student.") == (frozen == "false") and has_gradient(gradients, "method.")
    training = setup.training({})
    after, _ = training.epoch(Progress(0, setup.initial_tensors))
    stays = all(torch.equal(after.tensors[k], v) for k, v in setup.initial_tensors.items() if k.startswith("student."))
    assert stays == (frozen == "true"), "including the statistics"


def test_online_networks_are_symmetric():
    setup = small_setup("distiller=hsakd_online")
    terms, gradients = step(setup)
    assert has_gradient(gradients, "student.") and has_gradient(gradients, "method.network.")
    swapped = {}
    for key, value in setup.initial_tensors.items():
        other = (
            key.replace("student.", "method.network.", 1) if key.startswith("student.") else key.replace("method.network.", "student.", 1)
        )
        other = (
            other.replace("method.own.", "method.x.").replace("method.branches.", "method.own.", 1).replace("method.x.", "method.branches.")
        )
        swapped[other] = value
    again, _ = step(setup, start=swapped)
    assert again == pytest.approx(terms, rel=1e-12)


def test_online_peer_has_no_gradient():
    """The gradient of a head's bias is ``T (q - p)``, where p are the peer's probabilities without gradient."""
    setup = small_setup("distiller=hsakd_online", "distiller.ce=0", "distiller.self_supervised=0", "distiller.joint=0")
    _, gradients = step(setup)
    x, learner = rotations(first_batch(setup).x), setup.learner.train()
    own, peer = ((network(x).logits / 3).softmax(-1) for network in (learner.student, learner.method.network))
    assert_close(gradients["student.head.bias"], 3 * (own - peer).mean(0))
    assert_close(gradients["method.network.head.bias"], 3 * (peer - own).mean(0))


def test_branches_of_a_wide_network():
    task = Task("small", (3, 16, 16), 100)
    network = WideResNet(task, depth=40, widen_factor=2).eval()
    x = rotations(torch.rand(1, 3, 16, 16))
    output = network(x)
    assert [tuple(q.shape) for q in Branches(lambda: network).eval()(output.stages, False)] == [(4, 400)] * 3
    assert_close(output.logits[::4], network(x[::4]).logits, rtol=1e-3, atol=1e-4)


def test_images_must_be_square():
    setup = small_setup("distiller=hsakd_online")
    oblong = TeacherStudent(replace(setup.task, shape=(1, 8, 6)), setup.learner.student, lambda: None)
    for name in ("hsakd_online", "hsakd_teacher"):
        with pytest.raises(ValueError, match=r"^data must have square images, .*, got '8x6'$"):
            small_setup(f"distiller={name}").distiller.check(oblong, 8)
