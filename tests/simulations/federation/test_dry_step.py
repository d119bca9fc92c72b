"""What cannot train is refused before the first round, and what cannot be batched trains one client at a time."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from fedkd.errors import ConfigError
from fedkd.strategy import Strategy
from fedkd.training.step_program import Program
from simulations.config import compose
from simulations.engine.vmap_tuning import vmap_obstacle
from simulations.federation import runner
from simulations.federation.dry_step import check_training
from simulations.federation.runner import run_federation
from tests.small_runs import SMALL, STRATEGIES, small_simulation, strategy_overrides


def network(name: str) -> tuple[str, ...]:
    """Overrides that choose a network of :mod:`tests.own_networks`."""
    return ("~model", f"+model._target_=tests.own_networks.{name}", "+model._partial_=true")


@dataclass(kw_only=True)
class GradientPenalty(Strategy):
    """A loss with a gradient inside, which reads a value of a tensor."""

    def loss(self, model, batch, broadcast, client_state):
        value, metrics = super().loss(model, batch, broadcast, client_state)
        (gradient,) = torch.autograd.grad(value, [model.parameters()["head.bias"]], create_graph=True)
        return value + gradient.square().sum() * (1 if value.item() > 0 else 2), metrics


REFUSED = {
    "all_frozen": "model must have a parameter that is trained, got model, whose parameters are all frozen",
    "wrong_size": "model must return an Output with the shapes .* for 2 examples, got .*11",
    "squeezing": "model must return an Output with the shapes .* for 1 example,|model must be a network that strategy fedavg can eval",
    "raising": "model must be a network that strategy fedavg can train, got model, which raises KeyError on 2 examples: .an own error",
}


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_cannot_train_are_refused_before_the_first_round(name, tmp_path):
    with pytest.raises(ConfigError, match=REFUSED[name]) as refused:
        run_federation(compose([*SMALL, "strategy=fedavg", *network(name), f"output={tmp_path}", "progress=false"]))
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.rglob("metrics.csv"))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_dry_step_changes_no_random_stream_and_no_state(name, capsys):
    """All strategies train the head by which they are scored, so that there is no warning."""
    simulation, _ = small_simulation(f"strategy={name}", *strategy_overrides(name))
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    initial = {key: value.clone() for key, value in simulation.initial.items()}
    check_training(simulation)
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()
    assert all(torch.equal(value, simulation.initial[key]) for key, value in initial.items())
    assert capsys.readouterr().err == ""


@dataclass(kw_only=True)
class EmbeddingsAlone(Strategy):
    """A loss that does not read the head."""

    def loss(self, model, batch, broadcast, client_state):
        return model(batch.x).embedding.square().mean(), {}


@pytest.mark.parametrize(
    "overrides", [(f"strategy._target_={__name__}.EmbeddingsAlone",), network("head_frozen")], ids=["loss", "frozen head"]
)
def test_a_head_that_is_not_trained_is_said(overrides, capsys):
    simulation, _ = small_simulation("strategy=fedavg", *overrides)
    check_training(simulation)
    assert "do not train the head of" in capsys.readouterr().err


def test_a_learning_rate_that_changes_nothing_is_said(capsys):
    simulation, _ = small_simulation("strategy=fedavg", "optimizer.lr=1e-30")
    check_training(simulation)
    assert "change no parameter of fedgen_cnn in a step with the learning rate 1e-30" in capsys.readouterr().err


def test_every_architecture_is_tried(monkeypatch):
    simulation, _ = small_simulation("strategy=fedgen_head", "model=heterogeneous")
    tried, kind = [], type(simulation.strategy)
    train = kind.train
    monkeypatch.setattr(kind, "train", lambda self, client, *more: (tried.append(client.architecture), train(self, client, *more))[1])
    check_training(simulation)
    assert sorted(tried) == sorted({network.name for network in simulation.networks}) and len(tried) > 1


def test_nothing_is_compiled_in_a_dry_step(monkeypatch):
    simulation, _ = small_simulation("strategy=fedavg", "compile=true")
    compiled = []
    original = Program.__init__
    monkeypatch.setattr(Program, "__init__", lambda self, *a, compile=False: (compiled.append(compile), original(self, *a))[1])
    check_training(simulation)
    assert compiled == [False]


def test_a_network_without_program_is_named_and_trains(capsys):
    simulation, _ = small_simulation("strategy=fedavg", *network("untraceable"))
    check_training(simulation)
    assert "warning: model has no program when it is exported, as torch.export raises" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["recurrent", "weight_normalized", "lazy", "tied", "Plain"])
def test_networks_of_users_train(name, tmp_path, capsys):
    """A recurrent network trains one client at a time with every ``clients_per_vmap``, and needs no trial that fails."""
    config = compose(
        [
            *SMALL,
            "rounds=1",
            f"clients_per_vmap={3 if name == 'recurrent' else 'auto'}",
            "strategy=fedgen",
            *network(name),
            f"output={tmp_path}",
            "progress=false",
        ]
    )
    folder = run_federation(config)
    assert "torch.vmap cannot batch" not in capsys.readouterr().err
    assert (Path(folder) / "checkpoint.safetensors").is_file()


def test_a_number_of_clients_that_cannot_be_batched_is_refused(tmp_path):
    base = [*SMALL, "rounds=1", "strategy=fedavg", f"strategy._target_={__name__}.GradientPenalty", f"output={tmp_path}", "progress=false"]
    with pytest.raises(ConfigError, match="^clients_per_vmap must be 1 or auto, as torch.vmap cannot batch .*, got 3$"):
        run_federation(compose([*base, "clients_per_vmap=3"]))
    run_federation(compose([*base, "clients_per_vmap=1"]))


def test_batched_networks_have_no_obstacle():
    assert vmap_obstacle(small_simulation("strategy=fedgen", "clients_per_vmap=3")[0]) is None


def test_diagnostics_that_fail_keep_the_checkpoint(tmp_path, monkeypatch):
    from simulations.federation import generator_diagnostics

    def fail(*arguments):
        raise RuntimeError("diagnostics")

    monkeypatch.setattr(generator_diagnostics, "diagnose", fail)
    config = compose([*SMALL, "rounds=1", "strategy=fedgen", "generator_diagnostics_every=1", f"output={tmp_path}", "progress=false"])
    with pytest.raises(RuntimeError, match="diagnostics"):
        run_federation(config)
    assert len(list(tmp_path.rglob("checkpoint.safetensors"))) == 1
    assert runner.run_federation(config).is_dir()
