"""A look at the server's generator: measures with known answers, whole rounds against plain loops, and nothing of it in what is trained."""

import math
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fedkd.checkpoint import read_checkpoint
from fedkd.metrics.generator_quality import coverage, diversity, label_accuracy
from fedkd.seed import Seed
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Generated
from simulations.config import compose
from simulations.federation import generator_diagnostics
from simulations.federation.generator_diagnostics import chosen, embedded, read
from simulations.federation.runner import run_federation
from simulations.setup.simulation import build_simulation
from tests.conftest import options, settle
from tests.processes import TINY, differing, metrics
from tests.simulations.federation.test_resume import Dying

GIVEN = [*(one for one in TINY if not one.startswith("strategy.")), "engine=local", "rounds=4"]
FILES = {"generator.csv", "latents.csv"}


@pytest.fixture(autouse=True)
def few_points(monkeypatch):
    """t-SNE of sixty points takes no time."""
    monkeypatch.setattr(generator_diagnostics, "POINTS", 60)


def launch(where: Path, name: str, *more: str, make_grid=None) -> Path:
    """The folder of a tiny run of a strategy."""
    build_simulation.cache_clear()
    return run_federation(compose([*GIVEN, f"strategy={name}", *options(name), *more, f"output={where}"]), make_grid)


def table(folder: Path, name: str = "generator") -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv")


# ------------------------------------------------------------------------------------------------------------- measures
def test_fidelity_of_heads_whose_answers_are_known():
    """Embeddings are one-hot labels. Client 0 reads them, client 1 reads the next class, client 2 says 3 whatever it sees."""
    home, _ = settle("model=mlp", "model.widths=[10]")
    y = torch.arange(10).repeat_interleave(5)
    made = Generated(torch.eye(10)[y], y, are_embeddings=True)
    shifted, constant = torch.eye(10).roll(1, 0), torch.zeros(10, 10)
    heads = [(5 * torch.eye(10), torch.zeros(10)), (shifted, torch.zeros(10)), (constant, 0.5 * torch.eye(10)[3])]
    networks = [FunctionalModel(home.model).at({**home.initial, "head.weight": weight, "head.bias": bias}) for weight, bias in heads]
    said = np.stack([read(network, made, 7).detach().numpy() for network in networks])
    held = np.ones((3, 10), dtype=bool)
    held[0, 4] = held[1, 5] = held[1, 6] = held[2, 6] = held[2, 3] = False
    found = label_accuracy(said, said[1], y.numpy(), held)
    assert found["label_accuracy_ensemble"].tolist() == [1.0] * 10, "the first client is the surest"
    assert found["label_accuracy_global_model"].tolist() == [0.0] * 10
    assert found["num_clients_without_class"].tolist() == [0, 0, 0, 1, 1, 1, 2, 0, 0, 0] and found["num_generated"].tolist() == [5] * 10
    third = 1 / 3
    assert found["label_accuracy_clients_with_class"] == pytest.approx([third, third, third, 0.5, 0.0, 0.5, 1.0, third, third, third])
    assert found["label_accuracy_clients_without_class"][3:7].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert np.isnan(found["label_accuracy_clients_without_class"][[0, 1, 2, 7, 8, 9]]).all()


def test_a_class_of_which_nothing_was_generated_has_no_fidelity():
    found = label_accuracy(np.eye(3)[None, :2], None, np.array([0, 1]), np.array([[True, False, False]]))
    assert found["label_accuracy_ensemble"][:2].tolist() == [1.0, 1.0] and np.isnan(found["label_accuracy_ensemble"][2])
    assert np.isnan(found["label_accuracy_clients_without_class"][[0, 2]]).all() and found["label_accuracy_clients_without_class"][1] == 1.0
    assert np.isnan(found["label_accuracy_global_model"]).all()


def plain_diversity(z: np.ndarray) -> float:
    return float(np.mean([math.dist(a, b) for a, b in combinations(z, 2)]))


def plain_coverage(real: np.ndarray, generated: np.ndarray, k: int = 5) -> float:
    covered = 0
    for i, point in enumerate(real):
        radius = sorted(math.dist(point, other) for j, other in enumerate(real) if j != i)[k - 1]
        covered += any(math.dist(point, one) <= radius for one in generated)
    return covered / len(real)


def test_diversity_and_coverage_are_plain_loops():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(40, 6)), rng.normal(0.8, 0.7, size=(30, 6))
    assert diversity(real) == pytest.approx(plain_diversity(real), rel=1e-12)
    assert 0 < coverage(real, generated) < 1
    assert coverage(real, generated) == pytest.approx(plain_coverage(real, generated), rel=1e-12)


def test_diversity_and_coverage_at_their_limits():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(50, 4))
    assert coverage(real, real) == 1.0 and coverage(real, real + 100) == 0.0
    assert coverage(real, np.repeat(real[:1], 50, 0)) < 0.3, "collapsed to one point"
    assert diversity(np.repeat(real[:1], 50, 0)) == 0.0
    assert math.isnan(diversity(real[:1])) and math.isnan(coverage(real[:5], real)) and math.isnan(coverage(real, real[:0]))
    many = [coverage(rng.normal(size=(300, 3)), rng.normal(size=(300, 3))) for _ in range(10)]
    assert np.mean(many) == pytest.approx(1 - 2**-5, abs=0.015), "the same distribution"


def test_half_of_the_modes_met_is_about_half_covered():
    rng = np.random.default_rng(0)
    centres = 50 * np.eye(4)
    real = np.concatenate([centre + rng.normal(size=(50, 4)) for centre in centres])
    half = np.concatenate([centre + rng.normal(size=(100, 4)) for centre in centres[:2]])
    assert coverage(real, half) == pytest.approx(0.5, abs=0.03)


# ------------------------------------------------------------------------------------------------------------ embedding
def test_embedded_latents_are_scikit_learn_s_and_the_same_again():
    """PCA against the eigenvectors of the covariance, up to signs."""
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(60, 5)) * [4, 2, 1, 1, 0.5], np.arange(60) % 3
    generated, real = (z[:30], y[:30]), (z[30:], y[30:])
    rows = embedded(generated, real, 3, 7, 0)
    assert rows == embedded(generated, real, 3, 7, 0)
    frame = pd.DataFrame(rows)
    assert frame.groupby(["generated", "class"]).size().to_dict() == {(g, c): 10 for g in (0, 1) for c in range(3)}
    points = np.concatenate([part[0][part[1] == c] for part in (real, generated) for c in range(3)])
    _, vectors = np.linalg.eigh(np.cov(points.T))
    wanted = (points - points.mean(0)) @ vectors[:, ::-1][:, :2]
    assert np.abs(frame[["pca_1", "pca_2"]]).to_numpy() == pytest.approx(np.abs(wanted), rel=1e-4, abs=1e-4)
    assert np.isfinite(frame[["tsne_1", "tsne_2"]]).all(axis=None)


@pytest.mark.parametrize("z", [np.full((20, 3), np.nan), np.zeros((20, 3))], ids=["diverged", "all the same"])
def test_latents_that_cannot_be_embedded_are_not(z):
    assert embedded((z, np.arange(20) % 2), (z, np.arange(20) % 2), 2, 1, 0) == []


def test_latents_of_one_dimension_are_embedded():
    z = np.random.default_rng(0).normal(size=(20, 1))
    assert len(embedded((z, np.arange(20) % 2), (z + 1, np.arange(20) % 2), 2, 1, 0)) == 40


# --------------------------------------------------------------------------------------------------------- whole rounds
def test_fedgen_s_rows_are_a_plain_computation_from_the_checkpoint(tmp_path):
    folder = launch(
        tmp_path, "fedgen", "model=mlp", "model.widths=[12]", "precision=float64", "generator_diagnostics_every=2", "local_steps=20"
    )
    found, home, state = table(folder), build_simulation((folder / "config.yaml").read_text()), read_checkpoint(folder).state
    assert found["round"].tolist() == [2] * 10 + [4] * 10 and found["class"].tolist() == [*range(10)] * 2
    seed, y = Seed(0) / "diagnostics", torch.arange(10).repeat_interleave(100)
    generator = home.strategy.generator(home.task, 12).double()
    generator.load_state_dict(state["generator"])
    home.model.load_state_dict(state["model"])
    with torch.no_grad():
        z = generator.eval()(torch.rand(1000, 32, generator=(seed / "noise").torch(), dtype=torch.float64), y)
        right = home.model.head(z).argmax(-1) == y
        real = home.test.subset(chosen(home.test.y, 100, seed / "real"))
        latents = home.model.eval()(real.images(torch.arange(len(real)), torch.float64)).embedding.numpy()
    last = found[found["round"] == 4]
    assert last["label_accuracy_global_model"].to_numpy() == pytest.approx(right.view(10, 100).double().mean(1).numpy())
    assert last["num_generated"].tolist() == [100] * 10
    for c, row in enumerate(last.itertuples()):
        mine, theirs = z[y == c].numpy(), latents[(real.y == c).numpy()]
        wanted = [plain_diversity(mine), plain_diversity(theirs), plain_coverage(theirs, mine)]
        assert [row.pairwise_distance_generated, row.pairwise_distance_real, row.coverage] == pytest.approx(wanted, rel=2e-5)
    clouds = table(folder, "latents")
    assert clouds.groupby(["round", "generated", "class"]).size().unique().tolist() == [3] and len(clouds) == 2 * 60


def test_dense_s_rows_are_a_plain_computation_from_its_members(tmp_path):
    """Its checkpoint holds the round's clients and the images: who reads them, and who has never seen what they show."""
    folder = launch(tmp_path, "dense", "strategy.batch_size=40", "generator_diagnostics_every=4", "local_steps=20", "partition.alpha=0.1")
    found, home, state = table(folder), build_simulation((folder / "config.yaml").read_text()), read_checkpoint(folder).state
    x, y, said, has = state["made"]["images"], state["made"]["y"], [], []
    for client in (c for c in range(6) if f"member-{c}" in state):
        home.model.load_state_dict(state[f"member-{client}"])
        with torch.no_grad():
            said.append(home.model.eval()(x).logits)
        has.append([bool((home.train.y[home.partition.train[client]] == c).any()) for c in range(10)])
    home.model.load_state_dict(state["model"])
    with torch.no_grad():
        overall = home.model.eval()(x).logits
    assert len(said) == 4 and not np.array(has).all()
    for c, row in enumerate(found.itertuples()):
        mine = y == c
        assert row.num_generated == int(mine.sum()) and row.num_clients_without_class == sum(not one[c] for one in has)
        each = [(z[mine].argmax(-1) == c).double().mean().item() for z in said]
        wanted = {
            "label_accuracy_ensemble": (sum(said)[mine].argmax(-1) == c).double().mean().item(),
            "label_accuracy_global_model": (overall[mine].argmax(-1) == c).double().mean().item(),
            "label_accuracy_clients_with_class": np.mean(given)
            if (given := [one for one, h in zip(each, has, strict=True) if h[c]])
            else math.nan,
            "label_accuracy_clients_without_class": np.mean(given)
            if (given := [one for one, h in zip(each, has, strict=True) if not h[c]])
            else math.nan,
        }
        assert {name: getattr(row, name) for name in wanted} == pytest.approx(wanted, rel=1e-5, nan_ok=True), c


def test_where_no_global_model_is_the_clients_own_networks_encode(tmp_path):
    folder = launch(tmp_path, "fedgen_head", "generator_diagnostics_every=4")
    found = table(folder)
    assert len(found) == 10 and found[["label_accuracy_ensemble", "label_accuracy_global_model", "pairwise_distance_real"]].notna().all(
        axis=None
    )


def test_unlike_networks_and_rounds_in_which_nobody_answers(tmp_path):
    """Where no update came there is nothing to read back."""
    folder = launch(
        tmp_path, "fedgen_head", "model=heterogeneous", "generator_diagnostics_every=1", "systems.dropout=0.75", "rounds=6", "seed=3"
    )
    answered = metrics(folder).set_index("round")["num_clients_aggregated"].astype(int)
    assert (answered == 0).any() and (answered > 0).any()
    assert set(table(folder)["round"]) == {int(r) for r, number in answered.items() if number > 0}


@pytest.mark.parametrize("name", ["fedgen", "fedgen_head", "fedftg", "dense", "fedavg"])
def test_a_run_that_is_diagnosed_is_the_run_that_is_not(tmp_path, name):
    """Bit for bit; and a strategy without a generator has nothing to tell."""
    without, with_ = (
        launch(tmp_path / where, name, "rounds=2", *more) for where, more in (("a", ()), ("b", ("generator_diagnostics_every=1",)))
    )
    assert without.name == with_.name, "the hash knows nothing of it"
    assert set(differing(without, with_)) == {"config.yaml", *(set() if name == "fedavg" else FILES)}
    assert not FILES & {path.name for path in without.iterdir()}
    assert (with_ / "generator.csv").exists() == (name != "fedavg")


@pytest.mark.parametrize("name", ["fedgen", "fedftg"])
@pytest.mark.parametrize("every", [1, 2])
def test_interrupted_and_resumed_the_files_are_those_of_one_run(tmp_path, name, every):
    more = (f"generator_diagnostics_every={every}", "checkpoint_every=2" if every == 1 else "checkpoint_every=1")
    whole = launch(tmp_path / "whole", name, *more)
    with pytest.raises(KeyboardInterrupt):
        launch(tmp_path / "cut", name, *more, make_grid=Dying)
    resumed = launch(tmp_path / "cut", name, *more)
    assert list(differing(whole, resumed)) == ["config.yaml"], "which names the output"
    assert sorted(table(resumed)["round"].unique()) == list(range(every, 5, every))


def test_rows_behind_the_checkpoint_are_cut(tmp_path):
    whole = launch(tmp_path / "whole", "fedgen", "generator_diagnostics_every=1")
    with pytest.raises(KeyboardInterrupt):
        launch(tmp_path / "cut", "fedgen", "generator_diagnostics_every=1", make_grid=Dying)
    (folder,) = (tmp_path / "cut" / "digits").iterdir()
    for name in FILES:
        lines = (folder / name).read_text().splitlines()
        (folder / name).write_text("\n".join([*lines, "3" + lines[-1][1:], "3,4,"]))
    assert list(differing(whole, launch(tmp_path / "cut", "fedgen", "generator_diagnostics_every=1"))) == ["config.yaml"]


# ---------------------------------------------------------------------------------------------------------- TensorBoard
def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show: steps and values by tag."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What it should show: the run's own tables, in single precision."""
    wanted = {}
    for part, name in (("", "metrics"), ("generator/", "generator")):
        for row in table(folder, name).to_dict("records"):
            tail = f"/class_{int(row['class']):02d}" if "class" in row else ""
            for column, value in row.items():
                if column not in ("round", "class") and not pd.isna(value):
                    wanted.setdefault(f"{part}{column}{tail}", []).append((int(row["round"]), float(np.float32(value))))
    return wanted


@pytest.mark.parametrize("every", [1, 2])
def test_tensorboard_shows_what_the_files_say(tmp_path, every):
    """Also where the run was interrupted, and has done a round twice."""
    pytest.importorskip("tensorboard")
    more = ("tensorboard=true", "generator_diagnostics_every=1", f"checkpoint_every={every}", "evaluation.every=2")
    whole = launch(tmp_path / "whole", "fedgen", *more)
    assert events(whole) == shown(whole) and len(shown(whole)) > 60
    with pytest.raises(KeyboardInterrupt):
        launch(tmp_path / "cut", "fedgen", *more, make_grid=Dying)
    (before,) = (tmp_path / "cut" / "digits").iterdir()
    assert [step for step, _ in events(before)["train_loss"]] == [1], "it is there while the run goes on"
    resumed = launch(tmp_path / "cut", "fedgen", *more)
    assert len(list((resumed / "tensorboard").iterdir())) == 2
    assert events(resumed) == shown(resumed)
    assert metrics(resumed).equals(metrics(whole)) and table(resumed).equals(table(whole))


def test_tensorboard_changes_nothing_else(tmp_path):
    pytest.importorskip("tensorboard")
    without, with_ = (launch(tmp_path / where, "fedavg", "rounds=2", f"tensorboard={where}") for where in ("false", "true"))
    assert without.name == with_.name and not (without / "tensorboard").exists()
    for path in (with_ / "tensorboard").iterdir():
        path.unlink()
    (with_ / "tensorboard").rmdir()
    assert list(differing(without, with_)) == ["config.yaml"]


def test_flower_s_own_strategies_are_shown_too(tmp_path):
    pytest.importorskip("tensorboard")
    own = ("~strategy", "+strategy._target_=flwr.serverapp.strategy.FedAdam", "+strategy.fraction_evaluate=0.0", "tensorboard=true")
    folder = run_federation(compose([*GIVEN, *own, "rounds=2", f"output={tmp_path}"]))
    assert [step for step, _ in events(folder)["accuracy"]] == [1, 2]


def test_without_the_package_the_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ValueError, match=r"tensorboard must be false .*fedkd\[tensorboard\].*, got True"):
        launch(tmp_path, "fedgen", "tensorboard=true")
    assert not list(tmp_path.rglob("metrics.csv"))
