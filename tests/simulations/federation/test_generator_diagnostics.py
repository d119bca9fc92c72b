"""Diagnostics of the server's generator: rows against plain computations, embeddings, and no effect on training."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.manifold import TSNE

from fedkd.checkpoint import read_checkpoint
from fedkd.seed import Seed
from simulations.federation import generator_diagnostics
from simulations.federation.generator_diagnostics import examples_per_class, latent_rows
from simulations.setup.simulation import build_simulation
from tests.fedkd.metrics.plain_measures import plain_coverage, plain_diversity
from tests.processes import differing, metrics
from tests.simulations.federation.generator_tools import read_table, run_strategy
from tests.small_runs import InterruptedGrid

FILES = {"generator.csv", "latents.csv"}


@pytest.fixture(autouse=True)
def few_points(monkeypatch):
    """t-SNE of 60 points in the fewest iterations is fast."""
    monkeypatch.setattr(generator_diagnostics, "MAX_POINTS", 60)
    monkeypatch.setattr(generator_diagnostics, "TSNE", partial(TSNE, max_iter=250))


def test_embedded_latents_are_those_of_scikit_learn():
    """PCA equals the projection on eigenvectors of the covariance, up to signs. A second call gives the same rows."""
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(60, 5)) * [4, 2, 1, 1, 0.5], np.arange(60) % 3
    generated, real = (z[:30], y[:30]), (z[30:], y[30:])
    rows = latent_rows(generated, real, 3, 7, 0)
    assert rows == latent_rows(generated, real, 3, 7, 0)
    frame = pd.DataFrame(rows)
    expected_sizes = {(is_generated, label): 10 for is_generated in (0, 1) for label in range(3)}
    assert frame.groupby(["is_generated", "class"]).size().to_dict() == expected_sizes
    points = np.concatenate([part[0][part[1] == c] for part in (real, generated) for c in range(3)])
    _, vectors = np.linalg.eigh(np.cov(points.T))
    expected = (points - points.mean(0)) @ vectors[:, ::-1][:, :2]
    assert np.abs(frame[["pca_1", "pca_2"]]).to_numpy() == pytest.approx(np.abs(expected), rel=1e-4, abs=1e-4)
    assert np.isfinite(frame[["tsne_1", "tsne_2"]]).all(axis=None)


@pytest.mark.parametrize("z", [np.full((20, 3), np.nan), np.zeros((20, 3))], ids=["not finite", "all equal"])
def test_no_rows_for_latents_that_cannot_be_embedded(z):
    assert latent_rows((z, np.arange(20) % 2), (z, np.arange(20) % 2), 2, 1, 0) == []


def test_latents_of_one_dimension_are_embedded():
    z = np.random.default_rng(0).normal(size=(20, 1))
    assert len(latent_rows((z, np.arange(20) % 2), (z + 1, np.arange(20) % 2), 2, 1, 0)) == 40


def test_rows_of_fedgen_equal_a_plain_computation_from_the_checkpoint(tmp_path):
    options = ("model=mlp", "model.widths=[12]", "precision=float64", "generator_diagnostics_every=2", "local_steps=20")
    folder = run_strategy(tmp_path, "fedgen", *options)
    table, state = read_table(folder), read_checkpoint(folder).state
    simulation = build_simulation((folder / "config.yaml").read_text())
    assert table["round"].tolist() == [2] * 10 + [4] * 10 and table["class"].tolist() == [*range(10)] * 2
    seed, y = Seed(0) / "diagnostics", torch.arange(10).repeat_interleave(100)
    generator = simulation.strategy.generator(simulation.task, 12).double()
    generator.load_state_dict(state["generator"])
    simulation.model.load_state_dict(state["model"])
    with torch.no_grad():
        z = generator.eval()(torch.rand(1000, 32, generator=(seed / "noise").torch(), dtype=torch.float64), y)
        correct = simulation.model.head(z).argmax(-1) == y
        real = simulation.global_test.subset(examples_per_class(simulation.global_test.y, 100, seed / "real"))
        latents = simulation.model.eval()(real.images(torch.arange(len(real)), torch.float64)).embedding.numpy()
    last = table[table["round"] == 4]
    assert last["label_accuracy_global_model"].to_numpy() == pytest.approx(correct.view(10, 100).double().mean(1).numpy())
    assert last["num_generated"].tolist() == [100] * 10
    for label, row in enumerate(last.itertuples()):
        generated_z, real_z = z[y == label].numpy(), latents[(real.y == label).numpy()]
        expected = [plain_diversity(generated_z), plain_diversity(real_z), plain_coverage(real_z, generated_z)]
        assert [row.pairwise_distance_generated, row.pairwise_distance_real, row.coverage] == pytest.approx(expected, rel=2e-5)
    embedded = read_table(folder, "latents")
    assert embedded.groupby(["round", "is_generated", "class"]).size().unique().tolist() == [3] and len(embedded) == 2 * 60


def mean_or_nan(values: list[float]) -> float:
    """The mean of a list, NaN if it is empty."""
    return float(np.mean(values)) if values else math.nan


def test_rows_of_dense_equal_a_plain_computation_from_the_models_of_its_clients(tmp_path):
    """The checkpoint of DENSE has the models of the round's clients and the generated images."""
    options = ("strategy.batch_size=40", "generator_diagnostics_every=4", "local_steps=20", "partition.alpha=0.1")
    folder = run_strategy(tmp_path, "dense", *options)
    table, state = read_table(folder), read_checkpoint(folder).state
    simulation = build_simulation((folder / "config.yaml").read_text())
    x, y, client_logits, has_class = state["made"]["images"], state["made"]["y"], [], []
    for client in (c for c in range(6) if f"member-{c}" in state):
        simulation.model.load_state_dict(state[f"member-{client}"])
        with torch.no_grad():
            client_logits.append(simulation.model.eval()(x).logits)
        client_labels = simulation.train.y[simulation.partition.train[client]]
        has_class.append([bool((client_labels == label).any()) for label in range(10)])
    simulation.model.load_state_dict(state["model"])
    with torch.no_grad():
        model_logits = simulation.model.eval()(x).logits
    assert len(client_logits) == 4 and not np.array(has_class).all()
    for label, row in enumerate(table.itertuples()):
        chosen = y == label
        assert row.num_generated == int(chosen.sum())
        assert row.num_clients_without_class == sum(not client[label] for client in has_class)
        accuracies = [(z[chosen].argmax(-1) == label).double().mean().item() for z in client_logits]
        pairs = list(zip(accuracies, has_class, strict=True))
        expected = {
            "label_accuracy_ensemble": (sum(client_logits)[chosen].argmax(-1) == label).double().mean().item(),
            "label_accuracy_global_model": (model_logits[chosen].argmax(-1) == label).double().mean().item(),
            "label_accuracy_clients_with_class": mean_or_nan([accuracy for accuracy, client in pairs if client[label]]),
            "label_accuracy_clients_without_class": mean_or_nan([accuracy for accuracy, client in pairs if not client[label]]),
        }
        assert {name: getattr(row, name) for name in expected} == pytest.approx(expected, rel=1e-5, nan_ok=True), label


def test_client_networks_embed_images_where_there_is_no_global_model(tmp_path):
    table = read_table(run_strategy(tmp_path, "fedgen_head", "generator_diagnostics_every=4"))
    columns = ["label_accuracy_ensemble", "label_accuracy_global_model", "pairwise_distance_real"]
    assert len(table) == 10 and table[columns].notna().all(axis=None)


def test_no_rows_in_rounds_without_updates(tmp_path):
    """With heterogeneous models and dropouts."""
    options = ("model=heterogeneous", "generator_diagnostics_every=1", "systems.dropout_rate=0.75", "rounds=6", "seed=3")
    folder = run_strategy(tmp_path, "fedgen_head", *options)
    aggregated = metrics(folder).set_index("round")["num_clients_aggregated"].astype(int)
    assert (aggregated == 0).any() and (aggregated > 0).any()
    assert set(read_table(folder)["round"]) == {int(number) for number, clients in aggregated.items() if clients > 0}


@pytest.mark.parametrize("strategy", ["fedgen", "dense", "fedavg"])
def test_diagnostics_change_no_other_file(tmp_path, strategy):
    """Neither the name of the run folder nor a byte of its other files. A strategy without a generator has no diagnostics."""
    without = run_strategy(tmp_path / "without", strategy, "rounds=2")
    diagnosed = run_strategy(tmp_path / "diagnosed", strategy, "rounds=2", "generator_diagnostics_every=1")
    assert without.name == diagnosed.name
    assert set(differing(without, diagnosed)) == {"config.yaml", *(set() if strategy == "fedavg" else {*FILES, "rows.json"})}
    assert not FILES & {path.name for path in without.iterdir()}
    assert (diagnosed / "generator.csv").exists() == (strategy != "fedavg")


@pytest.mark.parametrize(("strategy", "every"), [("fedgen", 1), ("fedftg", 2)])
def test_resumed_diagnostics_equal_those_of_an_uninterrupted_run(tmp_path, strategy, every):
    options = (f"generator_diagnostics_every={every}", "checkpoint_every=2" if every == 1 else "checkpoint_every=1")
    uninterrupted = run_strategy(tmp_path / "uninterrupted", strategy, *options)
    with pytest.raises(KeyboardInterrupt):
        run_strategy(tmp_path / "interrupted", strategy, *options, make_grid=InterruptedGrid)
    resumed = run_strategy(tmp_path / "interrupted", strategy, *options)
    assert list(differing(uninterrupted, resumed)) == ["config.yaml"], "config.yaml names the output folder"
    assert sorted(read_table(resumed)["round"].unique()) == list(range(every, 5, every))


def test_rows_after_the_checkpoint_are_removed(tmp_path):
    options = ("fedgen", "generator_diagnostics_every=1")
    uninterrupted = run_strategy(tmp_path / "uninterrupted", *options)
    with pytest.raises(KeyboardInterrupt):
        run_strategy(tmp_path / "interrupted", *options, make_grid=InterruptedGrid)
    (folder,) = (tmp_path / "interrupted" / "digits").iterdir()
    for name in FILES:
        lines = (folder / name).read_text().splitlines()
        (folder / name).write_text("\n".join([*lines, "3" + lines[-1][1:], "3,4,"]))
    assert list(differing(uninterrupted, run_strategy(tmp_path / "interrupted", *options))) == ["config.yaml"]
