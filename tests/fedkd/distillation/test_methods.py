"""Each method of central distillation against what its equations imply, on tiny networks and real digits."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fedkd.distillation.methods.base import Steps, TeacherStudent, classification
from fedkd.distillation.methods.dpk import Priors, choose
from fedkd.distillation.methods.hsakd import Branches, rotations
from fedkd.distillation.methods.information_flow import InformationFlow
from fedkd.distillation.methods.online_ensemble import Members
from fedkd.distillation.methods.sp import SP
from fedkd.distillation.methods.weighted_sum import WeightedSum
from fedkd.distillation.student_training import Progress
from fedkd.losses.cka import unbiased_cka
from fedkd.losses.kl import kl_divergence
from fedkd.models.resnet import ResNet, WideResNet
from fedkd.seed import Seed
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel, snapshot
from fedkd.types import Output, Task
from simulations.distillation.runner import compose_distillation
from simulations.distillation.scores import scores
from simulations.distillation.setup import Setup, make_setup

TINY = (
    "teacher=resnet8", "teacher.widths=[6,8,10]", "student=resnet8", "student.widths=[5,6,7]", "batch_size=8", "precision=float64", "steps_per_epoch=3",
)  # fmt: skip
SMALL_DPK = ("distiller=dpk", "distiller.grid=2", "distiller.width=8", "distiller.heads=2", "distiller.depth=1")


def ready(*overrides: str) -> Setup:
    """A small distillation, whose teacher is untrained."""
    return make_setup(compose_distillation([*TINY, *overrides]))


def step(setup: Setup, taught=None, start=None) -> tuple[dict, dict]:
    """The terms of one real batch, and the gradients of their sum by all that trains, None where there is none."""
    taught = {} if setup.teacher is None else (snapshot(setup.teacher) if taught is None else taught)
    training = setup.training(setup.start, taught)
    batch = next(iter(training.batches(setup.pool, 0, Seed(3))))
    tensors = {key: value.clone() for key, value in (start or setup.start).items()}
    leaves = {name: tensors[name].requires_grad_() for name, _ in setup.learner.named_parameters()}
    shared = {"teacher": taught, "images": {"black": training.black}}
    value, terms = training.loss(FunctionalModel(setup.learner.train(), tensors), batch, shared, {})
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    assert_close(value, sum(terms.values()))
    return {name: term.item() for name, term in terms.items()}, dict(zip(leaves, gradients))


def first_batch(setup: Setup) -> Batch:
    """The batch of :func:`step`."""
    return next(iter(setup.training(setup.start, {} if setup.teacher is None else snapshot(setup.teacher)).batches(setup.pool, 0, Seed(3))))


def moved(gradients: dict, prefix: str) -> bool:
    """Some parameter called so has a gradient that is not zero."""
    return any(g is not None and bool((g != 0).any()) for name, g in gradients.items() if name.startswith(prefix))


# ------------------------------------------------------------------------------------------------------------------ DPK
def test_with_a_whole_prior_the_maps_teach_the_student_nothing():
    _, whole = step(ready(*SMALL_DPK, "distiller.ratio=1.0", "distiller.ce=0", "distiller.alpha=0"))
    assert not moved(whole, "student.") and moved(whole, "method.")
    _, half = step(ready(*SMALL_DPK, "distiller.ratio=0.5", "distiller.ce=0", "distiller.alpha=0"))
    assert moved(half, "student.")


def test_without_a_prior_the_teacher_s_maps_are_not_looked_at():
    setup = ready(*SMALL_DPK, "distiller.ratio=0.0")
    priors, stage = setup.learner.method, setup.learner.method.stages[0]
    student, teacher = torch.rand(4, 5, 8, 8, dtype=torch.float64), torch.rand(4, 6, 8, 8, dtype=torch.float64)
    none = torch.zeros(4, 4, dtype=torch.bool)
    assert torch.equal(stage(student, teacher, none), stage(student, teacher + 1, none))
    assert not torch.equal(stage(student, teacher, ~none), stage(student, teacher + 1, ~none))
    assert isinstance(priors, Priors) and (priors.share == 0).all()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_as_many_patches_are_the_teacher_s_as_the_share_says(share):
    chosen = choose(torch.tensor(share), torch.rand(1000, 16, generator=torch.Generator().manual_seed(0)))
    assert (chosen.sum(-1) == round(share * 16)).all()
    where = chosen.double().mean(0)  # by place: every one has the same chance
    assert ((where - round(share * 16) / 16).abs() <= 3.5 * (0.25 / 1000) ** 0.5).all()


def test_with_modules_that_do_nothing_only_the_student_s_patches_err():
    setup = ready(
        "distiller=dpk", "teacher.widths=[5,6,7]", "distiller.grid=8", "distiller.width=8", "distiller.heads=2", "distiller.depth=0"
    )
    stage = setup.learner.method.stages[0]  # maps of 8 x 8 in 8 x 8 patches of a pixel
    with torch.no_grad():
        for tokens in (stage.student, stage.teacher):
            tokens.embed.weight.copy_(torch.eye(8, 5, dtype=torch.float64)[..., None, None])
            tokens.embed.bias.zero_()
            tokens.position.zero_()
        stage.patches.project.weight.copy_(torch.eye(5, 8, dtype=torch.float64))
        stage.patches.project.bias.zero_()
    s, t = torch.rand(2, 3, 5, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    chosen = choose(torch.tensor(0.25), torch.rand(3, 64, generator=torch.Generator().manual_seed(2)))
    made = stage(s, t, chosen)
    error = ((s - t) ** 2).flatten(2) * ~chosen[:, None]
    assert_close(setup.distiller.apart(t, made, chosen), error.mean())
    assert_close(replace(setup.distiller, positions="student").apart(t, made, chosen), error.sum() / (5 * (~chosen).sum()))
    assert_close(setup.distiller.apart(t, stage(t, t, chosen), chosen), torch.zeros((), dtype=torch.float64))
    assert_close(made.flatten(2)[~chosen[:, None].expand(-1, 5, -1)], s.flatten(2)[~chosen[:, None].expand(-1, 5, -1)])


@pytest.mark.parametrize(
    ("teacher", "student", "patches"), [(8, 8, 8), (14, 14, 7), (14, 7, 7), (28, 28, 7), (7, 7, 7), (2, 2, 2), (3, 1, 1)]
)
def test_patches_divide_both_maps(teacher, student, patches):
    assert ready("distiller=dpk").distiller.patches((3, student, student), (3, teacher, teacher)) == patches


def test_the_share_follows_the_gap_between_the_networks():
    setup = ready(*SMALL_DPK)
    taught = snapshot(setup.teacher)
    training = setup.training(setup.start, taught)
    batches = training.batches(setup.pool, 0, Seed(3))
    one = replace(batches, y=batches.y[:1], index=batches.index[:1], drawn={k: v[:1] for k, v in batches.drawn.items()})
    after = training.fit(Progress(0, setup.start), one).tensors["method.share"]
    x = next(iter(one)).x
    student = setup.learner.student.train()
    maps = torch.func.functional_call(
        student, {k.removeprefix("student."): v for k, v in setup.start.items() if k.startswith("student.")}, (x,)
    ).stages
    known = setup.teacher.student.eval()(x).stages
    gaps = torch.stack([1 - unbiased_cka(t.flatten(1), s.flatten(1)).clamp(0, 1) for t, s in zip(known, maps)])
    assert_close(after, (0.9 * 0.5 + 0.1 * gaps).to(after))
    assert ((gaps > 0) & (gaps < 1)).all()


def test_tokens_become_the_map_that_they_came_from():
    setup = ready(
        "distiller=dpk", "distiller.grid=2", "distiller.width=64", "distiller.heads=2", "distiller.depth=0", "teacher.widths=[4,6,7]"
    )
    stage = setup.learner.method.stages[0]
    with torch.no_grad():  # 4 channels, patches of 4 x 4 pixels: 64 numbers a token
        stage.teacher.embed.weight.copy_(torch.eye(64, dtype=torch.float64).view(64, 4, 4, 4))
        stage.teacher.embed.bias.zero_()
        stage.teacher.position.zero_()
        stage.patches.project.weight.copy_(torch.eye(64, dtype=torch.float64))
        stage.patches.project.bias.zero_()
    t = torch.rand(2, 4, 8, 8, dtype=torch.float64)
    assert_close(stage.patches(stage.teacher(t)), t)


# ---------------------------------------------------------------------------------------------------------------- HSAKD
def trained_branches(*overrides: str) -> Setup:
    return ready("distiller=hsakd", "student.widths=[6,8,10]", *overrides)


def test_a_student_that_is_its_teacher_has_only_labels_to_learn():
    setup = trained_branches()
    setup.learner.eval()  # with the same statistics, no batch's
    taught = snapshot(setup.learner)
    value, terms = setup.distiller.loss(
        FunctionalModel(setup.learner.eval(), taught), FunctionalModel(setup.learner.eval(), taught), batch_of(setup), True
    )
    assert terms["joint"].abs() < 1e-12 and terms["kd"].abs() < 1e-12
    assert_close(value, terms["ce"])


def batch_of(setup: Setup) -> Batch:
    return Batch(setup.train.images(torch.arange(8), torch.float64), setup.train.y[:8])


def test_branches_answer_with_class_and_rotation_at_every_stage():
    setup = trained_branches()
    x = batch_of(setup).x
    maps = setup.learner.student.eval()(x).stages
    answers = setup.learner.method.eval()(maps, False)
    assert [tuple(q.shape) for q in answers] == [(8, 40)] * 3


@pytest.mark.parametrize("detach", ["true", "false"])
def test_the_branches_train_the_stages_unless_detached(detach):
    setup = trained_branches(f"distiller.detach={detach}", "distiller.ce=0", "distiller.kd=0")
    _, gradients = step(setup, taught=snapshot(setup.teacher))
    assert moved(gradients, "student.stages.") == (detach == "false") and moved(gradients, "method.")


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_a_frozen_teacher_s_branches_alone_are_trained(frozen):
    setup = ready("distiller=hsakd_teacher", f"distiller.frozen={frozen}")
    _, gradients = step(setup)
    assert moved(gradients, "student.") == (frozen == "false") and moved(gradients, "method.")
    training = setup.training(setup.start, {})
    after, _ = training.epoch(Progress(0, setup.start))
    stays = all(torch.equal(after.tensors[k], v) for k, v in setup.start.items() if k.startswith("student."))
    assert stays == (frozen == "true"), "statistics included"


def test_online_the_two_networks_are_each_other_s_teachers():
    setup = ready("distiller=hsakd_online")
    terms, gradients = step(setup)
    assert moved(gradients, "student.") and moved(gradients, "method.network.")
    swapped = {}
    for key, value in setup.start.items():
        other = (
            key.replace("student.", "method.network.", 1) if key.startswith("student.") else key.replace("method.network.", "student.", 1)
        )
        other = (
            other.replace("method.own.", "method.x.").replace("method.branches.", "method.own.", 1).replace("method.x.", "method.branches.")
        )
        swapped[other] = value
    again, _ = step(setup, start=swapped)
    assert again == pytest.approx(terms, rel=1e-12)


def test_online_a_peer_s_answers_are_targets_alone():
    """A head's bias is pulled by ``T (q - p)``, p the peer's answers; nothing comes back through these."""
    setup = ready("distiller=hsakd_online", "distiller.ce=0", "distiller.self_supervised=0", "distiller.joint=0")
    _, gradients = step(setup)
    x, learner = rotations(first_batch(setup).x), setup.learner.train()
    own, peer = ((network(x).logits / 3).softmax(-1) for network in (learner.student, learner.method.network))
    assert_close(gradients["student.head.bias"], 3 * (own - peer).mean(0))
    assert_close(gradients["method.network.head.bias"], 3 * (peer - own).mean(0))


def test_branches_of_a_wide_network_end_in_four_logits_a_class():
    task = Task("small", (3, 16, 16), 100)
    network = WideResNet(task, depth=40, widen_factor=2).eval()
    x = rotations(torch.rand(1, 3, 16, 16))
    output = network(x)
    assert [tuple(q.shape) for q in Branches(lambda: network).eval()(output.stages, False)] == [(4, 400)] * 3
    assert_close(output.logits[::4], network(x[::4]).logits, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------------ online ensemble
def ensemble(*overrides: str) -> Setup:
    return ready("distiller=online_ensemble", "student.widths=[6,8,10]", "distiller.members=3", *overrides)


def test_members_are_as_wide_as_the_rule_says_and_leave_whole():
    setup = ensemble()
    networks = setup.distiller.networks(setup.learner, setup.start)
    assert [n.widths for n, _ in networks.values()] == [(6, 8, 10), (4, 5, 6), (2, 2, 3)]
    x = batch_of(setup).x
    together = setup.learner.eval()(x)
    for (network, tensors), output in zip(networks.values(), together, strict=True):
        alone = torch.func.functional_call(network.eval(), tensors, (x,))
        assert_close(alone.logits, output.logits)
        assert all(torch.equal(a, b) for a, b in zip(alone.stages, output.stages, strict=True))


def test_the_widest_member_s_maps_are_a_target_alone():
    _, gradients = step(ensemble("distiller.ce=0", "distiller.kd=0"))
    own = [name for name in gradients if name.startswith("student.") and not name.startswith("student.stages.0.0.")]
    assert own and not any(moved(gradients, name) for name in own)
    assert moved(gradients, "method.members.") and moved(gradients, "method.adapters.") and moved(gradients, "student.stages.0.0.")


@pytest.mark.parametrize("detach", ["true", "false"])
def test_the_stem_learns_from_all_members_or_from_the_widest(detach):
    _, gradients = step(ensemble("distiller.ce=0", "distiller.kd=0", f"distiller.detach={detach}"))
    assert moved(gradients, "student.stages.0.0.") == (detach == "false")


@pytest.mark.parametrize(("classes", "first", "last"), [(10, 1_730_714, 63_063), (100, 1_736_564, 64_233)])
def test_five_members_of_a_resnet_110_have_the_paper_s_widths_and_sizes(classes, first, last):
    kind = ready("distiller=online_ensemble", "student=resnet110", "student.widths=[16,32,64]").config.student
    task = Task("cifar", (3, 32, 32), classes, (), (0.0,) * 3, (1.0,) * 3)

    def fresh(**changes):
        return ResNet(task, **{"depth": kind.depth, "widths": (16, 32, 64), "stem": None, **changes})

    members = Members(TeacherStudent(task, fresh(), fresh), 5, 3, False)
    networks = [members.student, *members.whole]
    assert [list(one.widths) for one in networks] == [[16, 32, 64], [12, 25, 51], [9, 19, 38], [6, 12, 25], [3, 6, 12]]
    sizes = [sum(p.numel() for p in one.parameters()) for one in networks]
    assert (sizes[0], sizes[-1]) == (first, last) and (classes == 100 or sizes == [1_730_714, 1_086_716, 610_198, 262_161, 63_063])


def test_members_of_one_answer_have_nothing_to_learn_from_it():
    setup = ensemble("distiller.ce=0", "distiller.maps=0")
    same = {key: torch.zeros_like(value) if ".head." in key else value for key, value in setup.start.items()}
    terms, gradients = step(setup, start=same)
    assert float(terms["kd"]) == 0 and all(value.abs().max() < 1e-14 for value in gradients.values() if value is not None)


def test_the_stem_s_gradient_is_the_sum_of_all_members_or_the_widest_s():
    """Labels alone: with each member's own answer as the only loss, the parts add up to the whole."""
    whole, detached = (step(ensemble("distiller.kd=0", "distiller.maps=0", f"distiller.detach={flag}"))[1] for flag in ("false", "true"))
    setup = ensemble("distiller.kd=0", "distiller.maps=0")
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


def test_members_stand_on_a_stem_of_any_width():
    terms, _ = step(ready("distiller=online_ensemble", "student.stem=4", "distiller.members=3"))
    assert float(terms["maps"]) > 0
    setup = ready("distiller=online_ensemble", "student.stem=4", "distiller.members=3")
    assert setup.distiller.changes(setup.learner, "member-1") == {"stem": 4, "widths": [3, 4, 4]}


def test_images_that_are_not_square_cannot_be_turned():
    setup = ready("distiller=hsakd_online")
    oblong = TeacherStudent(replace(setup.task, shape=(1, 8, 6)), setup.learner.student, lambda: None)
    for name in ("hsakd_online", "hsakd_teacher"):
        with pytest.raises(ValueError, match=r"^data must have square images: .*, got '8x6'$"):
            ready(f"distiller={name}").distiller.check(oblong, 8)


def test_the_ensemble_s_answer_is_a_target_alone():
    """A head's bias is pulled by ``T (p_j - p_E)`` alone."""
    setup = ensemble("distiller.ce=0", "distiller.maps=0", "distiller.kd=1")
    _, gradients = step(setup)
    logits = [output.logits for output in setup.learner.train()(first_batch(setup).x)]
    mean = (torch.stack(logits).mean(0) / 2).softmax(-1)
    for z, name in zip(logits, ("student", "method.members.0", "method.members.1"), strict=True):
        assert_close(gradients[f"{name}.head.bias"], 2 * ((z / 2).softmax(-1) - mean).mean(0))


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_an_answer_depends_on_the_rest_of_a_test_batch_in_the_public_code_alone(statistics):
    by_size = [ensemble(f"distiller.bn_eval={statistics}", f"evaluation_batch_size={size}") for size in (40, 80)]
    losses = [scores(setup, setup.start)["loss_member-1"] for setup in by_size]
    assert (losses[0] == pytest.approx(losses[1], rel=1e-12)) == (statistics == "running")


def test_the_ensemble_s_answer_pulls_by_the_equation():
    logits = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = logits.mean(0).detach()
    (pull,) = torch.autograd.grad(sum(kl_divergence(target, z, 2.0).mean() for z in logits), logits)
    assert_close(pull, 2.0 * ((logits / 2).softmax(-1) - (target / 2).softmax(-1)) / 5)


def test_one_member_alone_has_only_labels():
    terms, _ = step(ensemble("distiller.members=1", "distiller.ce=1"))
    assert terms["maps"] == 0 and abs(terms["kd"]) < 1e-15


def test_adapters_learn_at_their_own_rate():
    setup = ensemble("optimizer.momentum=0", "optimizer.weight_decay=0")
    training = setup.training(setup.start, {})
    rates = {}
    leaves = [parameter for _, parameter in setup.learner.named_parameters()]
    stepper = training.stepper(leaves, epoch=0)
    for group in stepper.param_groups:
        rates |= {id(one): group["lr"] for one in group["params"]}
    by_name = {name: rates[id(one)] for name, one in setup.learner.named_parameters()}
    assert {rate for name, rate in by_name.items() if "adapters" in name} == {0.025}
    assert {rate for name, rate in by_name.items() if "adapters" not in name} == {0.05}


def test_adapters_may_rest_in_the_first_epoch_as_in_the_public_code():
    setup = ensemble("distiller.official_warm=true", "steps_per_epoch=3", "epochs=3")
    training, progress = setup.training(setup.start, {}), Progress(0, setup.start)
    adapters = [name for name, _ in setup.learner.named_parameters() if "adapters" in name]
    first, _ = training.epoch(progress)
    assert adapters and all(torch.equal(first.tensors[name], setup.start[name]) for name in adapters)
    second, _ = training.epoch(first)
    assert not any(torch.equal(second.tensors[name], setup.start[name]) for name in adapters)
    anew, _ = training.epoch(replace(first, optimizer={}))
    assert all(torch.equal(anew.tensors[name], value) for name, value in second.tensors.items()), "the optimizer was forgotten"
    third, _ = training.epoch(second)
    without, _ = training.epoch(replace(second, optimizer={}))
    assert not all(torch.equal(without.tensors[name], value) for name, value in third.tensors.items()), "and is not any more"


# ------------------------------------------------------------------------------------------------------- the other ones
@pytest.mark.parametrize("flag", ["true", "false"])
def test_information_flow_s_optimizer_may_be_new_in_every_epoch_as_in_the_public_code(flag):
    setup = ready(
        "distiller=information_flow", "distiller.teaching=[]", f"distiller.forgetful={flag}", "steps_per_epoch=3", "optimizer=adam"
    )
    taught = {key: value.clone() for key, value in snapshot(setup.teacher).items()}
    training = setup.training(setup.start, taught)
    first, _ = training.epoch(Progress(0, setup.start))
    (went_on, _), (began, _) = training.epoch(first), training.epoch(replace(first, optimizer={}))
    assert all(torch.equal(began.tensors[name], value) for name, value in went_on.tensors.items()) == (flag == "true")


def test_the_critical_period_s_weights():
    setup = ready("distiller=information_flow", "distiller.teaching=[]")
    weights = [setup.distiller.draw(Steps(2, 4, epoch, 50, Seed(0)))["critical"] for epoch in (0, 1, 5, 13, 20)]
    assert torch.stack(weights)[:, 0].tolist() == pytest.approx([100, 70, 16.807, 0.9689, 0.0798], rel=1e-3)


def test_a_student_whose_similarities_are_the_teacher_s_has_nothing_to_learn():
    setup = ready("distiller=information_flow", "distiller.teaching=[]", "student.widths=[6,8,10]")
    same = {**setup.start, **{k: v for k, v in snapshot(setup.teacher).items() if k.startswith("student.")}}
    taught = {k: v for k, v in same.items() if k in snapshot(setup.teacher)}
    learner = setup.learner.eval()
    _, terms = setup.distiller.loss(
        FunctionalModel(learner, same),
        FunctionalModel(setup.teacher.eval(), taught),
        Batch(batch_of(setup).x, batch_of(setup).y, {"critical": torch.tensor(100.0)}),
        True,
    )
    assert all(abs(float(term)) < 1e-12 for term in terms.values())


@pytest.mark.parametrize("name", ["none", "sample_conf", "target_only", "nontarget_only", "sym", "wrong_teacher"])
def test_a_filter_leaves_the_value_and_takes_from_the_gradient(name):
    plain, full = step(ready("distiller=kddg", "distiller.filter=none"))
    terms, gradients = step(ready("distiller=kddg", f"distiller.filter={name}", "distiller.threshold=0.01"))
    assert terms == plain
    same = all(torch.equal(gradients[key], value) for key, value in full.items() if value is not None)
    assert same == (name == "none")


def test_a_weighted_sum_is_the_sum_of_its_parts():
    both, _ = step(ready("distiller=kd_sp", "distiller.weights.sp=0.5"))
    kd, _ = step(ready("distiller=kd"))
    sp, _ = step(ready("distiller=sp"))
    assert both == pytest.approx({"ce": kd["ce"], "kd_kd": kd["kd"], "sp_similarity": 0.5 * sp["similarity"]}, rel=1e-12)


def test_patches_may_be_drawn_each_by_itself_or_at_least_so_many():
    noise = torch.rand(500, 16, generator=torch.Generator().manual_seed(0))
    each = choose(torch.tensor(0.3), noise, "bernoulli")
    assert torch.equal(each, noise < 0.3) and len(each.sum(-1).unique()) > 3
    assert (choose(torch.tensor(0.0), noise, least=2).sum(-1) == 2).all() and (choose(torch.tensor(0.5), noise, least=2).sum(-1) == 8).all()
    with pytest.raises(ValueError, match=r"^distiller\.least must be >= 0 patches, got -1$"):
        ready(*SMALL_DPK, "distiller.least=-1")


@pytest.mark.parametrize("stitch_at", ["encoded", "embed"])
def test_the_gap_may_be_that_of_tokens(stitch_at):
    setup = ready(*SMALL_DPK, "distiller.gap=tokens", f"distiller.stitch_at={stitch_at}")
    training = setup.training(setup.start, snapshot(setup.teacher))
    batches = training.batches(setup.pool, 0, Seed(3))
    one = replace(batches, y=batches.y[:1], index=batches.index[:1], drawn={k: v[:1] for k, v in batches.drawn.items()})
    after = training.fit(Progress(0, setup.start), one).tensors["method.share"]
    x, learner = next(iter(one)).x, make_setup(setup.config).learner.train()
    with torch.no_grad():
        maps = zip(learner.method.stages, learner.student(x).stages, setup.teacher.student.eval()(x).stages)
        gaps = torch.stack([1 - unbiased_cka(*(each.flatten(1) for each in stage.tokens(s, t))).clamp(0, 1) for stage, s, t in maps])
    assert_close(after, (0.9 * 0.5 + 0.1 * gaps).to(after))


def test_modules_of_dpk_learn_at_their_own_rate_in_a_sum_too():
    setup = ready(*SMALL_DPK, "distiller.module_lr=0.25")
    rates = {name: setup.distiller.lr_of(name, 0) for name, _ in setup.learner.named_parameters()}
    assert {name.partition(".")[0]: rate for name, rate in rates.items()} == {"student": 1.0, "method": 0.25}
    both = WeightedSum(ce=1.0, parts={"dpk": replace(setup.distiller, ce=0.0)}, weights={"dpk": 1.0})
    assert both.lr_of("method.dpk.stages.0.encoder.layers.0.norm1.weight", 0) == 0.25 and both.lr_of("student.head.bias", 0) == 1.0
    with pytest.raises(ValueError, match=r"^module_lr must be > 0 \(1: the student's\), got 0"):
        replace(setup.distiller, module_lr=0.0)


def test_a_weighted_sum_forgets_where_a_part_does():
    parts = {"flow": replace(ready("distiller=information_flow", "distiller.teaching=[]").distiller, forgetful=True)}
    assert WeightedSum(ce=1.0, parts=parts, weights={"flow": 1.0}).forgets(1)
    assert not WeightedSum(ce=1.0, parts={"flow": replace(parts["flow"], forgetful=False)}, weights={"flow": 1.0}).forgets(1)


def test_a_weighted_sum_s_teacher_is_prepared_as_its_part_asks():
    flow = make_flow(["student_init=alone"])
    both = {"flow": flow, "sp": SP(ce=0.0, weight=1.0, stage=-1)}
    assert WeightedSum(ce=1.0, parts=both, weights=dict.fromkeys(both, 1.0)).preparation() == ["student_init=alone"]
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


def test_a_teacher_s_probabilities_stand_for_labels_and_half_precision_is_computed_in_single():
    t, s = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    teacher, student = (Output(z, z) for z in (t, s))
    with torch.autocast("cpu", torch.bfloat16):
        value = classification(student, teacher, torch.zeros(5, dtype=torch.int64), False)
    assert_close(value, -(t.float().softmax(-1) * s.float().log_softmax(-1)).sum(-1).mean(), rtol=0, atol=0)


def test_decoupled_distillation_warms_up():
    setup = ready("distiller=dkd", "distiller.warmup=4")
    weights = [setup.distiller.draw(Steps(1, 4, epoch, 9, Seed(0)))["warm"].item() for epoch in range(6)]
    assert weights == [0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize("name", ["kd", "fitnet", "at", "sp", "pkt", "dkd", "dpk"])
def test_the_student_is_pulled_and_the_method_s_modules_learn_along(name):
    small = SMALL_DPK[1:] if name == "dpk" else ()
    setup = ready(f"distiller={name}", "distiller.ce=0", *small)
    _, gradients = step(setup)
    assert moved(gradients, "student.")
    assert moved(gradients, "method.") == any(True for _ in setup.learner.method.parameters())
    assert isinstance(setup.learner.method, nn.Module)
