"""Two methods in a folder of the user's, each under 80 lines, of which the project knows nothing: per_fedavg and elastic."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch.func import functional_call
from torch.testing import assert_close

from fedkd.checkpoint import read_checkpoint
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Update
from simulations.cli.main import cli
from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.report import main
from simulations.setup.simulation import build_simulation
from tests.fedkd.training.test_vectorized import assert_equal_alone, six_clients
from tests.processes import ROOT, TINY, differing, metrics, quick
from tests.small_runs import InterruptedGrid, same_tensors, small_run, small_simulation

OUTSIDE = ROOT / "tests" / "outside"
METHODS = {"per_fedavg": "strategy.alpha=0.0", "elastic": "strategy.strength=0.0"}
"""The methods, each with its neutral value."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with the methods, outside the project. ``sys.path`` and the modules are put back."""
    where, path = tmp_path_factory.mktemp("outside"), list(sys.path)
    shutil.copytree(OUTSIDE, where / "lab", ignore=shutil.ignore_patterns("__pycache__"))
    yield where / "lab"
    sys.path[:] = path
    for name in METHODS:
        sys.modules.pop(name, None)


def words(lab: Path, name: str) -> list[str]:
    tiny = [word for word in TINY if not word.startswith("strategy.")]
    return [*tiny, "rounds=4", "output=runs", f"strategy={name}", f"searchpath={lab}"]


@pytest.fixture(scope="module", params=METHODS)
def local(request, lab) -> tuple[str, Path]:
    """A method, and its run folder of the command with ``engine=local``."""
    (where := lab.parent / request.param).mkdir()
    ended = quick(where, *words(lab, request.param), "engine=local")
    assert ended.code == 0, ended.err
    return request.param, ended.folder


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_short_and_the_project_does_not_name_it(name):
    number = sum(len(path.read_text().splitlines()) for path in (OUTSIDE / f"{name}.py", OUTSIDE / "conf" / "strategy" / f"{name}.yaml"))
    assert number < 80
    for folder in ("fedkd", "strategies", "simulations", "conf"):
        assert not [path for path in (ROOT / folder).rglob("*.py") if f"{name}." in path.read_text()]


def test_ray_actors_give_the_same_bits(local, lab, tmp_path, monkeypatch):
    name, folder = local
    monkeypatch.chdir(tmp_path)
    found = run_federation(compose([*words(lab, name), "engine.workers=2"]))
    expected, actual = read_checkpoint(folder), read_checkpoint(found)
    assert same_tensors(actual.state, expected.state) and same_tensors(actual.client_states, expected.client_states)
    assert metrics(found).equals(metrics(folder))


def test_an_interrupted_run_continues_with_the_same_bits(local, lab, tmp_path, monkeypatch):
    name, folder = local
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_federation(compose([*words(lab, name), "engine=local"]), InterruptedGrid)
    build_simulation.cache_clear()
    ended = quick(tmp_path, *words(lab, name), "engine=local")
    assert ended.code == 0 and "round 4" in ended.out + ended.err, ended.err
    assert list(differing(folder, ended.folder)) == []


def test_lists_and_reports_name_the_methods(local):
    name, folder = local
    (row,) = json.loads(CliRunner().invoke(cli, ["list", str(folder), "--json"]).stdout)
    assert row["strategy"] == name and row["status"] == "finished"
    assert main([str(folder), "--no-figures", "--output", str(folder.parent / "report")]) == 0
    (found,) = pd.read_csv(folder.parent / "report" / "headlines.csv")["strategy"]
    assert found == {"per_fedavg": "Per-FedAvg", "elastic": "Elastic"}[name]


@pytest.mark.parametrize(("name", "neutral"), METHODS.items())
def test_the_neutral_value_is_fedavg_bit_for_bit_and_another_is_not(lab, name, neutral):
    given = f"strategy={name}", f"searchpath={lab}"
    fedavg, ran, without = small_run("strategy=fedavg"), small_run(*given), small_run(*given, neutral)
    assert same_tensors(without.state["model"], fedavg.state["model"]) and without.client_states.keys() == fedavg.client_states.keys()
    assert not same_tensors(ran.state["model"], fedavg.state["model"])


@pytest.mark.parametrize("name", METHODS)
def test_clients_trained_together_equal_clients_trained_alone(lab, name):
    assert_equal_alone(*six_clients(name, f"searchpath={lab}"), rtol=1e-9)


def test_per_fedavg_takes_the_gradient_after_one_step(lab):
    simulation, _ = small_simulation("strategy=per_fedavg", f"searchpath={lab}", "model=mlp", "precision=float64", "strategy.alpha=0.3")
    module = simulation.client(0, 1).model.double().train()
    x, y = torch.rand(5, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4])
    found = torch.autograd.grad(simulation.strategy.loss(FunctionalModel(module), Batch(x, y), {}, {})[0], list(module.parameters()))
    names, weights = zip(*module.named_parameters())
    inner = torch.autograd.grad(torch.nn.functional.cross_entropy(module(x[:3]).logits, y[:3]), weights)
    moved = [(w - 0.3 * g).detach().requires_grad_() for w, g in zip(weights, inner)]
    outer = torch.nn.functional.cross_entropy(functional_call(module, dict(zip(names, moved)), (x[2:],)).logits, y[2:])
    for actual, expected in zip(found, torch.autograd.grad(outer, moved), strict=True):
        assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_per_fedavg_adapts_to_a_client_before_its_test(lab, monkeypatch):
    simulation, _ = small_simulation("strategy=per_fedavg", f"searchpath={lab}", "strategy.alpha=0.3")
    client, broadcast = simulation.client(0, 1, testing=True), {"model": simulation.initial}
    correct = {}
    for steps in (0, 1, 20):
        monkeypatch.setattr(simulation.strategy, "adapt_steps", steps)
        score = simulation.strategy.evaluate(client, broadcast, None, 1, 64)[""]
        correct[steps] = int(score.correct.sum()), score.losses
    assert correct[0][1] != correct[1][1] and correct[20][0] > correct[0][0]


def test_elastic_moves_sensitive_parameters_less(lab):
    """By hand: two clients of equal size, of which the mean of sensitivities 1 and 3 is two thirds of the largest."""
    simulation, _ = small_simulation("strategy=elastic", f"searchpath={lab}", "strategy.tau=0.5")
    before = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.0])}
    after = [{"w": torch.tensor([2.0, 2.0]), "b": torch.tensor([1.0])}, {"w": torch.tensor([4.0, 0.0]), "b": torch.tensor([3.0])}]
    sensitivity = [{"w": torch.tensor(1.0), "b": torch.tensor(0.0)}, {"w": torch.tensor(3.0), "b": torch.tensor(0.0)}]
    updates = [Update(k, 10, "net", {"model": after[k], "sensitivity": sensitivity[k]}) for k in (0, 1)]
    state, _ = simulation.strategy.aggregate(simulation.strategy.federation.server, {"model": before}, updates, 1)
    factor = 1 + 0.5 - 2 / 3
    assert np.allclose(state["model"]["w"], [1 + factor * 2.0, 2 - factor * 1.0]) and np.allclose(state["model"]["b"], 1.5 * 2.0)
