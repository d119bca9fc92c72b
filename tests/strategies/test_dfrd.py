"""DFRD: each of its equations against the public code, its server against a plain loop over three rounds, and its limits."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from fedkd.distillation.image_synthesis import ensemble_logits, ensemble_parts
from fedkd.federation.aggregation import average
from fedkd.models.ensemble import Member, combine_logits
from fedkd.models.generators import ImageDCGAN, LabelMerger
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from strategies.dfrd import moving_average
from tests.public_code import public_code
from tests.small_runs import same_tensors, small_run, small_simulation, strategy_overrides
from tests.strategies.server_tools import LinearClient, check_close, clone, members, network_with, trained_clients

CODE = public_code("dfrd")
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
FLOAT32 = {"rtol": 1e-6, "atol": 1e-7}  # the public code's weights of labels have this precision


class Decoder(nn.Module):
    """The generator of the public code's inputs: ``tanh(h @ map)``."""

    def forward(self, merged: torch.Tensor) -> torch.Tensor:
        return (merged @ CODE["generator_map"]).tanh().view(-1, 3, 4, 4)


class Generator(nn.Module):
    """A merger and a decoder with the public code's embedding of labels."""

    def __init__(self) -> None:
        super().__init__()
        self.merger, self.decoder = LabelMerger(4, 6, "mul").double(), Decoder()
        self.merger.embedding.weight.data = CODE["embedding"].clone()

    def forward(self, noise: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.merger(noise, y))


NETWORK = LinearClient(CODE)
TEACHERS = [Member(NETWORK, {"weight": w, "bias": b}) for w, b in zip(CODE["client_weight"], CODE["client_bias"])]
STUDENT = {"weight": CODE["student_weight"], "bias": CODE["student_bias"]}


def strategy_with(*overrides: str):
    return small_simulation("strategy=dfrd", *strategy_overrides("dfrd"), *overrides)[0].strategy


def generator_loss(strategy, student=STUDENT, module: nn.Module | None = None):
    """The generator's loss on the public code's inputs, and its terms."""
    weights = strategy.ensemble_weights(CODE["counts"].double())
    batch, broadcast = Batch(None, CODE["labels"], {"noise": CODE["noise"]}), {**ensemble_parts(TEACHERS, weights), "student": student}
    module = Generator() if module is None else module
    return strategy.generator_loss(FunctionalModel(module), batch, broadcast, {}, networks=(NETWORK,) * 3, student_network=NETWORK)


def test_label_weights():
    strategy = strategy_with()
    assert_close(strategy.ensemble_weights(CODE["counts"].double()), CODE["label_weights"], **FLOAT32)
    assert strategy_with("strategy.label_weights=uniform").ensemble_weights(CODE["counts"].double()) is None
    none = strategy.ensemble_weights(torch.tensor([[2.0, 0.0], [6.0, 0.0]]))
    assert none.tolist() == [[0.25, 0.75], [0.0, 0.0]], "a class that no client has"


def test_generator_loss():
    """The public code's sum is that without the term of embeddings."""
    value, terms = generator_loss(strategy_with())
    assert_close(value.detach() - 0.25 * CODE["loss_embedding_norm"], CODE["loss_generator"], **FLOAT32)
    for name, key in (("fidelity", "fidelity"), ("diversity_loss", "diversity"), ("embedding_norm", "embedding_norm")):
        assert_close(terms[name].detach(), CODE[f"loss_{key}"], **(FLOAT32 if name == "fidelity" else CLOSE))


@pytest.mark.parametrize(("adversarial", "number"), [("ensemble_right", 1), ("all", 2), ("one_right", 3)])
def test_transfer_loss(adversarial, number):
    """The public code's three choices of images. The generator learns through the clients, and not through the model."""
    _, terms = generator_loss(strategy_with(f"strategy.adversarial={adversarial}"))
    assert_close(terms["transfer"].detach(), CODE[f"loss_transfer_strategy{number}"], **FLOAT32)
    module, strategy = Generator(), strategy_with("strategy.adversarial=all")
    _, terms = generator_loss(strategy, module=module)
    x, weights = module(CODE["noise"], CODE["labels"]), strategy.ensemble_weights(CODE["counts"].double())
    s = FunctionalModel(NETWORK).at(STUDENT)(x).logits.detach() / 10
    z = combine_logits(ensemble_logits(TEACHERS, x), weights, CODE["labels"]) / 10
    expected = -F.kl_div(z.log_softmax(-1), s.softmax(-1), reduction="batchmean")
    gradients = (torch.autograd.grad(one, module.merger.embedding.weight, retain_graph=True)[0] for one in (terms["transfer"], expected))
    assert_close(*gradients, rtol=1e-8, atol=1e-12)


def test_no_counted_image_is_no_loss():
    """The public code's loss is NaN where the model is right on all images."""
    assert CODE["empty_transfer"].isnan()
    certain = {"weight": torch.zeros_like(STUDENT["weight"]), "bias": torch.zeros_like(STUDENT["bias"])}
    strategy = strategy_with()
    module = Generator()
    batch = Batch(None, torch.zeros(12, dtype=torch.int64), {"noise": CODE["noise"]})
    right = {**certain, "bias": certain["bias"] + torch.tensor([1.0, 0, 0, 0])}
    broadcast = {**ensemble_parts(TEACHERS, strategy.ensemble_weights(CODE["counts"].double())), "student": right}
    value, terms = strategy.generator_loss(FunctionalModel(module), batch, broadcast, {}, networks=(NETWORK,) * 3, student_network=NETWORK)
    (gradient,) = torch.autograd.grad(value, module.merger.embedding.weight)
    assert terms["transfer"] == 0 and gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("ema", [False, True])
def test_model_loss(ema):
    strategy, drawn = strategy_with(), {}
    weights = strategy.ensemble_weights(CODE["counts"].double())
    for prefix, source in (("", "distil"), ("ema_", "ema"))[: 1 + ema]:
        y = CODE[f"{source}_labels"]
        x = Generator()(CODE[f"{source}_noise"], y).detach()
        drawn |= {f"{prefix}image": x, f"{prefix}teacher": combine_logits(ensemble_logits(TEACHERS, x), weights, y)}
    value, _ = strategy.distillation(FunctionalModel(NETWORK).at(STUDENT), Batch(None, CODE["distil_labels"], drawn), {}, {})
    assert_close(value, CODE["loss_distil_with_ema" if ema else "loss_distil"], **FLOAT32)


@pytest.mark.parametrize("corrected", [False, True])
def test_moving_average(corrected):
    """The public code's average begins with half of the first round. The weights of a corrected one sum to 1."""
    kept, ones = None, None
    for value in CODE["ema_sequence"]:
        kept = moving_average(kept, {"weight": value, "count": torch.tensor(7)}, 0.5, corrected=corrected)
        ones = moving_average(ones, {"weight": torch.ones(1)}, 0.5, corrected=corrected)
    assert torch.allclose(kept["weight"], CODE["ema_after"], rtol=1e-12) != corrected
    assert ones["weight"].item() == (1.0 if corrected else 0.875) and kept["count"] == 7


def plain_round(simulation, server, state, updates):
    """One round of the server: new optimizers in each iteration, and fresh noise and labels in each step."""
    strategy, models = simulation.strategy, [u.state["model"] for u in updates]
    counts = torch.stack([u.state["labels"]["counts"] for u in updates]).double()
    shares, teachers = (counts / counts.sum(0).clamp(min=1)).T, members(simulation, models)
    with torch.random.fork_rng():
        generator, other = (strategy.generator(simulation.task).double() for _ in range(2))
    generator.load_state_dict(state["generator"])
    student = network_with(simulation, average(models, strategy.aggregation_weights(updates)))
    z_of = lambda x, y: (shares[y].T[..., None] * torch.stack([network_with(simulation, one).eval()(x).logits for one in models])).sum(0)
    kl = lambda p, q: F.kl_div((q / 10).log_softmax(-1), (p / 10).softmax(-1), reduction="none").sum(-1)
    for iteration in range(strategy.iterations):
        seed = server.seed / "iteration" / iteration
        draw = lambda purpose, steps, seed=seed: zip(*strategy.draw_inputs(server, counts.sum(0), seed, purpose, steps))
        adam = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999), eps=1e-3)
        generator.train(), student.eval()
        for y, noise in draw("generator", strategy.generator_steps):
            h = noise * generator.merger.embedding.weight[y]
            x = generator.decoder(h)
            z, s = z_of(x, y), student(x).logits.detach()
            counted = ((z.argmax(-1) == y) & (s.argmax(-1) != y)).double()
            squares = lambda v: (v[:, None] - v).square().mean(-1)
            spread = (-(squares(x.flatten(1)) * squares(h)).mean()).exp()
            norm = (generator.merger.embedding.weight[y].norm(dim=1) - noise.shape[1] ** 0.5).clamp(min=0).mean()
            adam.zero_grad()
            (F.cross_entropy(z, y) - (counted * kl(s, z)).sum() / counted.sum().clamp(min=1) + spread + norm / 4).backward()
            adam.step()
        sgd = torch.optim.SGD(student.parameters(), lr=0.01, weight_decay=1e-4)
        generator.eval(), student.train()
        ema = "ema_generator" in state
        if ema:
            other.load_state_dict(state["ema_generator"])
        both = draw("student", strategy.student_steps), draw("ema_student", strategy.student_steps)
        for (y, noise), (ema_y, ema_noise) in zip(*both):
            sources = [(generator, y, noise, 1.0), (other.eval(), ema_y, ema_noise, 0.5)][: 1 + ema]
            sgd.zero_grad()
            loss = 0
            for source, label, far, weight in sources:
                with torch.no_grad():
                    x = source(far, label)
                    z = z_of(x, label)
                loss = loss + weight * kl(z, student(x).logits).mean()
            loss.backward()
            sgd.step()
    assert teachers
    return generator.state_dict(), student.state_dict()


def test_server_equals_plain_loop_over_three_rounds():
    """The average of the generator trains the model from the second round on. The loop takes the statistics of its images."""
    simulation, server, state, updates = trained_clients(
        "dfrd", "strategy.student_statistics=images", "precision=float64", "local_steps=15", "optimizer.lr=0.1"
    )
    sums = None
    for number in (1, 2, 3):
        at = replace(server, seed=simulation.seed / "round" / number / "server")
        generator, student = plain_round(simulation, at, state, updates)
        after, metrics = simulation.strategy.aggregate(at, state, updates, number)
        check_close(after["generator"], generator)
        check_close(after["model"], student)
        floats = {key: value.clone() for key, value in generator.items() if value.is_floating_point()}
        sums = floats if sums is None else {key: (sums[key] + value) / 2 for key, value in floats.items()}
        check_close({key: after["ema_generator"][key] for key in floats}, sums)
        state = clone({part: {key: value.contiguous() for key, value in tensors.items()} for part, tensors in after.items()})
    assert {name for name in metrics if name.startswith("generator_")} == {
        f"generator_{name}" for name in ("loss", "fidelity", "transfer", "diversity_loss", "embedding_norm")
    }


def test_weight_of_the_average():
    """0 is no average, another one changes the model from the second round on."""
    runs = {
        weight: small_run("strategy=dfrd", *strategy_overrides("dfrd"), f"strategy.ema_weight={weight}", "rounds=2") for weight in (0, 1)
    }
    biased = small_run("strategy=dfrd", *strategy_overrides("dfrd"), "strategy.ema_weight=0", "strategy.ema_correction=false", "rounds=2")
    assert not same_tensors(runs[0].state["model"], runs[1].state["model"])
    assert same_tensors(runs[0].state["model"], biased.state["model"]) and same_tensors(
        runs[0].state["generator"], biased.state["generator"]
    )
    assert not same_tensors(runs[0].state["ema_generator"], biased.state["ema_generator"])


def test_clients_keep_their_models_where_the_server_starts_from_its_own():
    ran = small_run(
        "strategy=dfrd",
        *strategy_overrides("dfrd"),
        "strategy.student=last",
        "strategy.student_statistics=images",
        "rounds=2",
        "clients_per_round=6",
    )
    strategy, states = ran.simulation.strategy, ran.client_states
    broadcast = {"model": ran.state["model"]}
    starts = [strategy.initial_weights(ran.simulation.client(k, 3), broadcast, states[k]) for k in range(2)]
    assert same_tensors(starts[0], states[0]["model"]) and not same_tensors(starts[0], starts[1])
    update, _ = strategy.train(ran.simulation.client(0, 3), broadcast, states[0], 3)
    after, _ = strategy.aggregate(ran.simulation.federation().server, ran.state, [update], 3)
    assert same_tensors(after["average"], ran.state["model"]) and not same_tensors(after["model"], ran.state["model"])


def test_labels_follow_label_counts():
    simulation, _ = small_simulation("strategy=dfrd", *strategy_overrides("dfrd"), "strategy.batch_size=100")
    server, counts = simulation.federation().server, torch.tensor([0, 30, 0, 10, 0, 0, 0, 0, 0, 0])
    y, noise = simulation.strategy.draw_inputs(server, counts, server.seed, "student", 50)
    assert y.unique().tolist() == [1, 3] and (y == 1).double().mean().item() == pytest.approx(0.75, abs=0.03)
    assert noise.shape[:2] == (50, 100) and noise.std().item() == pytest.approx(1, abs=0.02)
    uniform = replace(simulation.strategy, label_weights="uniform").draw_inputs(server, counts, server.seed, "student", 50)[0]
    assert uniform.unique().tolist() == list(range(10))


def test_generator_must_embed_labels():
    with pytest.raises(ValueError, match=r"^strategy\.generator must embed labels \(image_dcgan\), got 'ImageConv'$"):
        small_simulation("strategy=dfrd", "generator@strategy.generator=image_conv")
    assert ImageDCGAN.embeds_labels
