"""Tasks that are no images with one class: losses, accuracies, training of clients together, and what each strategy takes or refuses."""

import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.metrics import f1_score
from torch.testing import assert_close

from fedkd.errors import ConfigError
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.metrics.accuracy import Score, evaluate
from fedkd.training.vectorized_layers import trains_alone
from fedkd.types import INPUTS, TARGETS, Examples, Output, flatten
from simulations.config import compose
from simulations.setup.clients import read_data
from simulations.setup.compatibility import check_task
from simulations.setup.strategy_table import strategy_class, takes, task_table
from tests.own_data import TokenNetwork, of_kind
from tests.small_runs import TRAININGS, small_run, small_simulation, strategy_overrides


def overrides_of(input: str, target: str, *model: str) -> list[str]:
    """Overrides for the task of :func:`tests.own_data.of_kind`, and a network for it."""
    data = ["~data", "+data._target_=tests.own_data.of_kind", "+data._partial_=true", f"+data.input={input}", f"+data.target={target}"]
    network = ["~model", "+model._target_=tests.own_data.TokenNetwork", "+model._partial_=true", *model]
    return [
        *data,
        *(network if input == "tokens" else ["model=mlp"]),
        "partition=quantity_skew",
        "allow_targets=[tests]",
        "precision=float64",
    ]


# ------------------------------------------------------------------------------------------------------- losses and metrics
def test_losses_of_each_target():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 4))
    tokens, labels = np.array([[1, 0, 3], [0, 0, 0]]), np.array([[1.0, 0, 1, 0], [0, 0, 0, 1]])
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [-(log_softmax[0, 0, 1] + log_softmax[0, 2, 3]) / 2, 0.0]
    sigmoid = 1 / (1 + np.exp(-logits[:, 0]))
    binary = -(labels * np.log(sigmoid) + (1 - labels) * np.log(1 - sigmoid)).mean(-1)
    for y, scores, value in ((tokens, logits, expected), (labels, logits[:, 0], binary), (tokens[:, 2], logits[:, 0], None)):
        y, scores = torch.from_numpy(y), torch.from_numpy(scores)
        found = cross_entropy(scores, y)
        assert found.shape == (2,)
        if value is not None:
            assert_close(found, torch.tensor(value, dtype=torch.float64))
        clients = torch.vmap(cross_entropy)(torch.stack([scores, 2 * scores]), torch.stack([y, y]))
        assert_close(clients, torch.stack([found, cross_entropy(2 * scores, y)]))


def test_accuracy_of_next_tokens_leaves_out_padding_and_ends():
    """Row by row: 3 of 3 tokens, 1 of 2 tokens, and nothing that counts."""
    y = torch.tensor([[3, 4, 5, 2], [3, 4, 2, 0], [0, 0, 0, 0]])
    given = torch.tensor([[3, 4, 5, 1], [3, 3, 2, 0], [1, 1, 1, 1]])
    score = evaluate(lambda x: Output(torch.eye(6)[x], x), tokens_as_inputs(given, y), 2, 6, uncounted=(0, 2))
    assert (score.correct.sum(), score.total.sum(), score.num_examples) == (4, 5, 3)
    assert score.accuracy == 0.8 and score.total.tolist() == [0, 0, 0, 2, 2, 1]
    whole = evaluate(lambda x: Output(torch.eye(6)[x], x), tokens_as_inputs(given, y), 2, 6)
    assert (whole.correct.sum(), whole.total.sum()) == (5, 7)


def tokens_as_inputs(x: torch.Tensor, y: torch.Tensor) -> Examples:
    return Examples(x, y, 1.0, (0.0,), (1.0,), tokens=True)


@pytest.mark.parametrize("target", ["label", "multi_label"])
def test_macro_f1_is_that_of_scikit_learn(target):
    """One class of four neither occurs nor is predicted. The score of parts is that of the whole."""
    rng = np.random.default_rng(3)
    logits = torch.tensor(rng.normal(size=(40, 4))) - torch.tensor([0, 0, 0, 90])
    y = torch.tensor(rng.integers(0, 3, 40)) if target == "label" else torch.tensor(rng.integers(0, 2, (40, 4))).double() * (logits > -9)
    examples = Examples(logits, y, 1.0, (0.0,), (1.0,))
    model = lambda x: Output(x, x)
    score = evaluate(model, examples, 7, 4, torch.float64)
    given = logits.argmax(-1) if target == "label" else (logits > 0).long()
    names = [0, 1, 2]
    assert score.macro_f1 == pytest.approx(f1_score(y.long(), given, average="macro", labels=names))
    assert score.accuracy == pytest.approx((given == y).double().mean().item())
    parts = Score.merge([evaluate(model, examples.subset(part), 7, 4, torch.float64) for part in (range(11), range(11, 40))])
    assert parts.macro_f1 == score.macro_f1 and parts.num_examples == 40


# ------------------------------------------------------------------------------------------------------------------ training
@pytest.mark.parametrize(("name", "target"), [("fedgen", "label"), ("fedavg", "multi_label"), ("fedsam", "next_token")])
def test_clients_with_tokens_train_together_as_alone(name, target):
    """The padding has an embedding that is not zero, and gets no gradient."""
    alone, together = (
        small_run(f"strategy={name}", *strategy_overrides(name), *overrides_of("tokens", target), "rounds=2", f"clients_per_vmap={number}")
        for number in (1, 3)
    )
    for (key, value), other in zip(flatten(together.state).items(), flatten(alone.state).values(), strict=True):
        assert_close(value, other, rtol=1e-9, atol=1e-11, msg=lambda text, key=key: f"{key}: {text}")
    weight = alone.state["model"]["stages.0.weight"]
    assert torch.equal(weight[0], alone.simulation.initial["stages.0.weight"][0])
    assert not torch.equal(weight[1:], alone.simulation.initial["stages.0.weight"][1:])


def test_recurrent_networks_train_one_client_at_a_time(monkeypatch):
    """Also after the steps from which a graph is recorded."""
    monkeypatch.setattr("fedkd.training.step_program.REPLAY_AFTER", 2)
    assert trains_alone(TokenNetwork(of_kind("tokens", "next_token")[0], recurrent=True))
    ran = small_run("strategy=fedavg", *overrides_of("tokens", "next_token", "+model.recurrent=true"), "precision=float32", "rounds=2")
    assert ran.simulation.split_into_chunks(range(3), 3, 1) == [[0], [1], [2]]
    assert not torch.equal(ran.state["model"]["embed.lstm.weight_hh_l0"], ran.simulation.initial["embed.lstm.weight_hh_l0"])


@pytest.mark.parametrize("name", TRAININGS)
def test_each_strategy_trains_on_what_it_takes_and_refuses_the_rest(name):
    """One round on one of the tasks that it takes; the local test counts what the task counts. The rest is refused in one line."""
    strategy = strategy_class(name)
    row = next(line for line in task_table().splitlines() if line.startswith(f"| `{name}` |"))
    said = dict(zip((*INPUTS, *TARGETS), (cell == "yes" for cell in row.strip("| ").split(" | ")[1:]), strict=True))
    cells = [(input, target) for input in INPUTS for target in TARGETS if (target == "next_token") <= (input == "tokens")]
    taken = [cell for cell in cells if takes(strategy, *cell) and cell[0] != "image"]
    if taken:
        public = ["public_data=client_images"] if strategy.needs_public_data else []
        small = ("num_clients=3", "clients_per_round=2", "local_steps=2", "rounds=1")
        ran = small_run(
            f"strategy={name}",
            *strategy_overrides(name),
            *overrides_of(*max(taken, key=lambda cell: TARGETS.index(cell[1]))),
            *public,
            *small,
        )
        assert all(math.isfinite(value) for value in ran.metrics[1].values() if isinstance(value, float))
        client = ran.simulation.client(next(iter(ran.client_states)), 2, testing=True)
        trained = ran.simulation.strategy
        broadcast = {part: ran.state[part] for part in trained.broadcast_parts}
        score = trained.evaluate(client, broadcast, ran.client_states[client.id], 2, 100)[""]
        assert score.num_examples == len(client.data) and 0 < score.total.sum() <= len(client.data) * ran.simulation.task.decisions
    config = OmegaConf.create({"choices": {"strategy": name}, "strategy": {"_target_": ""}})
    assert taken == [cell for cell in cells if said[cell[0]] and said[cell[1]] and cell[0] != "image"]
    for cell in (cell for cell in cells if not (said[cell[0]] and said[cell[1]])):
        with pytest.raises(
            ConfigError, match=f"^strategy must be one that trains on {cell[0]} .*, got {name}, which .*use one of .*fedavg"
        ):
            check_task(config, object.__new__(strategy), of_kind(*cell)[0])


MULTI_LABEL = ("strategy=fedavg", *overrides_of("table", "multi_label"))
TOKENS = overrides_of("tokens", "label")
LACKING = {
    "shift must be none or label_noise for table": [*overrides_of("table", "label"), "shift=rotation"],
    "shift.label_noise must be 0 for the target multi_label": [*MULTI_LABEL, "shift=label_noise"],
    "partition must be iid, .* for the target multi_label, .* got 'client_dirichlet'": [*MULTI_LABEL, "partition=client_dirichlet"],
    "public_data must be held_out, client_images or other_dataset for tokens": [*TOKENS, "strategy=fedmd", "public_data=noise"],
    "model._target_ must make a network that reads tokens, such as model=fasttext.* got 'one that reads image'": [
        *TOKENS[:5], "model=fedgen_cnn", "allow_targets=[tests]",
    ],
}  # fmt: skip
"""By the message: what does not fit a task."""


@pytest.mark.parametrize("message", LACKING)
def test_what_a_task_lacks_is_refused_in_one_line(message):
    with pytest.raises(ConfigError, match=message):
        small_simulation(*LACKING[message])


def test_targets_and_tokens_that_do_not_fit_are_refused(monkeypatch):
    task, train, test = of_kind("tokens", "next_token")
    faults = {
        "the next tokens of each training example": (train.y[:, 0], train.x, True),
        r"token ids of training examples in 0\.\.11": (train.y, train.x + 5, True),
        "training examples with tokens=True": (train.y, train.x, False),
    }
    for message, (y, x, tokens) in faults.items():
        wrong = Examples(x, y, 1.0, (0.0,), (1.0,), tokens=tokens)
        monkeypatch.setattr("simulations.setup.clients.build", lambda config, part, wrong=wrong: lambda: (task, wrong, test))
        with pytest.raises(ConfigError, match=f"^data._target_ must return {message}"):
            read_data(compose([]))
