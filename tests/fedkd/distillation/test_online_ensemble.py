"""The online ensemble: members, adapters, and gradients."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fedkd.distillation.methods.base import TeacherStudent
from fedkd.distillation.methods.online_ensemble import Members
from fedkd.distillation.student_training import Progress
from fedkd.losses.kl import kl_divergence
from fedkd.models.resnet import ResNet
from fedkd.training.functional_model import load
from fedkd.types import Task
from simulations.distillation.scores import evaluate_networks
from simulations.distillation.setup import Setup, make_setup
from tests.fedkd.distillation.method_tools import first_batch, first_examples, has_gradient, small_setup, step


def ensemble_setup(*overrides: str) -> Setup:
    return small_setup("distiller=online_ensemble", "student.widths=[6,8,10]", "distiller.members=3", *overrides)


def test_widths_of_members():
    setup = ensemble_setup()
    networks = setup.distiller.networks(setup.learner, setup.initial_tensors)
    assert [n.widths for n, _ in networks.values()] == [(6, 8, 10), (4, 5, 6), (2, 2, 3)]
    x = first_examples(setup).x
    together = setup.learner.eval()(x)
    for (network, tensors), output in zip(networks.values(), together, strict=True):
        alone = torch.func.functional_call(network.eval(), tensors, (x,))
        assert_close(alone.logits, output.logits)
        assert all(torch.equal(a, b) for a, b in zip(alone.stages, output.stages, strict=True))


def test_widest_maps_have_no_gradient():
    _, gradients = step(ensemble_setup("distiller.ce=0", "distiller.kd=0"))
    own = [name for name in gradients if name.startswith("student.") and not name.startswith("student.stages.0.0.")]
    assert own and not any(has_gradient(gradients, name) for name in own)
    assert (
        has_gradient(gradients, "method.members.")
        and has_gradient(gradients, "method.adapters.")
        and has_gradient(gradients, "student.stages.0.0.")
    )


@pytest.mark.parametrize("detach", ["true", "false"])
def test_stem_with_detach(detach):
    _, gradients = step(ensemble_setup("distiller.ce=0", "distiller.kd=0", f"distiller.detach={detach}"))
    assert has_gradient(gradients, "student.stages.0.0.") == (detach == "false")


@pytest.mark.parametrize(("classes", "first", "last"), [(10, 1_730_714, 63_063), (100, 1_736_564, 64_233)])
def test_sizes_of_the_paper(classes, first, last):
    kind = small_setup("distiller=online_ensemble", "student=resnet110", "student.widths=[16,32,64]").config.student
    task = Task("cifar", (3, 32, 32), classes, (), (0.0,) * 3, (1.0,) * 3)

    def fresh(**changes):
        return ResNet(task, **{"depth": kind.depth, "widths": (16, 32, 64), "stem": None, **changes})

    members = Members(TeacherStudent(task, fresh(), fresh), 5, 3, False)
    networks = [members.student, *members.whole]
    assert [list(one.widths) for one in networks] == [[16, 32, 64], [12, 25, 51], [9, 19, 38], [6, 12, 25], [3, 6, 12]]
    sizes = [sum(p.numel() for p in one.parameters()) for one in networks]
    assert (sizes[0], sizes[-1]) == (first, last) and (classes == 100 or sizes == [1_730_714, 1_086_716, 610_198, 262_161, 63_063])


def test_equal_members_have_no_divergence():
    setup = ensemble_setup("distiller.ce=0", "distiller.maps=0")
    same = {key: torch.zeros_like(value) if ".head." in key else value for key, value in setup.initial_tensors.items()}
    terms, gradients = step(setup, start=same)
    assert float(terms["kd"]) == 0 and all(value.abs().max() < 1e-14 for value in gradients.values() if value is not None)


def test_gradient_of_the_stem():
    """With the cross-entropy alone, the gradient is the sum over members, or that of the widest member."""
    whole, detached = (
        step(ensemble_setup("distiller.kd=0", "distiller.maps=0", f"distiller.detach={flag}"))[1] for flag in ("false", "true")
    )
    setup = ensemble_setup("distiller.kd=0", "distiller.maps=0")
    x, y = (value := first_batch(setup)).x, value.y
    stem = [name for name in whole if name.startswith("student.stages.0.0.") and name.endswith("weight")]
    parts = []
    for member in range(3):
        learner = make_setup(setup.config).learner.train()
        (0.7 * torch.nn.functional.cross_entropy(learner(x)[member].logits, y)).backward()
        parts.append({name: dict(learner.named_parameters())[name].grad for name in stem})
    for name in stem:
        assert_close(whole[name], sum(part[name] for part in parts))
        assert_close(detached[name], parts[0][name])


def test_width_of_the_stem():
    terms, _ = step(small_setup("distiller=online_ensemble", "student.stem=4", "distiller.members=3"))
    assert float(terms["maps"]) > 0
    setup = small_setup("distiller=online_ensemble", "student.stem=4", "distiller.members=3")
    assert setup.distiller.config_changes(setup.learner, "member-1") == {"stem": 4, "widths": [3, 4, 4]}


def test_ensemble_has_no_gradient():
    """The gradient of a head's bias is ``T (p_j - p_E)``."""
    setup = ensemble_setup("distiller.ce=0", "distiller.maps=0", "distiller.kd=1")
    _, gradients = step(setup)
    logits = [output.logits for output in setup.learner.train()(first_batch(setup).x)]
    mean = (torch.stack(logits).mean(0) / 2).softmax(-1)
    for z, name in zip(logits, ("student", "method.members.0", "method.members.1"), strict=True):
        assert_close(gradients[f"{name}.head.bias"], 2 * ((z / 2).softmax(-1) - mean).mean(0))


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_batchnorm_in_evaluation(statistics):
    by_size = [ensemble_setup(f"distiller.bn_eval={statistics}", f"evaluation_batch_size={size}") for size in (40, 80)]
    losses = [evaluate_networks(setup, setup.initial_tensors)["test_loss_member-1"] for setup in by_size]
    assert (losses[0] == pytest.approx(losses[1], rel=1e-12)) == (statistics == "running")


def test_gradient_of_the_divergence():
    logits = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = logits.mean(0).detach()
    (pull,) = torch.autograd.grad(sum(kl_divergence(target, z, 2.0).mean() for z in logits), logits)
    assert_close(pull, 2.0 * ((logits / 2).softmax(-1) - (target / 2).softmax(-1)) / 5)


def test_single_member():
    terms, _ = step(ensemble_setup("distiller.members=1", "distiller.ce=1"))
    assert terms["maps"] == 0 and abs(terms["kd"]) < 1e-15


def test_adapter_learning_rate():
    setup = ensemble_setup("optimizer.momentum=0", "optimizer.weight_decay=0")
    training = setup.training({})
    rates = {}
    leaves = [parameter for _, parameter in setup.learner.named_parameters()]
    stepper = training.make_optimizer(leaves, epoch=0)
    for group in stepper.param_groups:
        rates |= {id(one): group["lr"] for one in group["params"]}
    by_name = {name: rates[id(one)] for name, one in setup.learner.named_parameters()}
    assert {rate for name, rate in by_name.items() if "adapters" in name} == {0.025}
    assert {rate for name, rate in by_name.items() if "adapters" not in name} == {0.05}


def test_official_warm():
    setup = ensemble_setup("distiller.official_warm=true", "steps_per_epoch=3", "epochs=3")
    training, progress = setup.training({}), Progress(0, setup.initial_tensors)
    adapters = [name for name, _ in setup.learner.named_parameters() if "adapters" in name]
    first, _ = training.epoch(progress)
    assert adapters and all(torch.equal(first.tensors[name], setup.initial_tensors[name]) for name in adapters)
    second, _ = training.epoch(first)
    assert not any(torch.equal(second.tensors[name], setup.initial_tensors[name]) for name in adapters)
    anew, _ = training.epoch(replace(first, optimizer={}))
    assert all(torch.equal(anew.tensors[name], value) for name, value in second.tensors.items()), (
        "the optimizer is reset after the first epoch"
    )
    third, _ = training.epoch(second)
    without, _ = training.epoch(replace(second, optimizer={}))
    assert not all(torch.equal(without.tensors[name], value) for name, value in third.tensors.items()), "and not after the second"


def test_all_parts_of_a_member_have_the_type_of_the_training():
    """Also the stems of the narrower members, which no training reads, so that all members can be evaluated and saved."""
    setup = ensemble_setup("precision=float64")
    x = first_examples(setup).x
    for network, tensors in setup.distiller.networks(setup.learner, setup.initial_tensors).values():
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}
        load(network, tensors)
        assert network.eval()(x).logits.dtype == torch.float64
