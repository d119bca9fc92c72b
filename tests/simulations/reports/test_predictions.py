"""The line on what a client's test measures, accuracies beside the headlines, and accuracy by network."""

import numpy as np
import pandas as pd
import pytest

from fedkd.errors import ConfigError
from simulations.report import main
from simulations.reports.builder import build_sections, collect
from simulations.reports.options import options_from
from simulations.reports.summary import by_seed
from simulations.run_folder.metric_names import accuracy_labels, is_accuracy
from simulations.run_folder.reader import find_run_folders
from tests.simulations.reports.folders import write_run


def add(folder, **columns):
    """Add columns to ``metrics.csv``."""
    pd.read_csv(folder / "metrics.csv").assign(**columns).to_csv(folder / "metrics.csv", index=False)


@pytest.fixture
def folder(tmp_path):
    """FedAvg, and Ditto with a further accuracy and clients of two networks, with two seeds."""
    for seed in (0, 1):
        write_run(tmp_path / f"fedavg{seed}", seed=seed)
        target = {"_target_": "strategies.ditto.Ditto"}
        path = write_run(tmp_path / f"ditto{seed}", "ditto", seed, parameters=target)
        add(path, local_test_accuracy_shared=[0.2, 0.3 + seed / 10], global_test_accuracy_class_0=[0.1, 0.5])
        rows = [(r, k, "mlp" if k else "cnn", (r + k + seed) / 10, 10) for r in (1, 2) for k in (0, 1)]
        names = ["round", "client_id", "architecture", "local_test_accuracy", "num_test_examples"]
        pd.DataFrame(rows, columns=names).to_csv(path / "clients.csv", index=False)
    return tmp_path


@pytest.mark.parametrize(("column", "labels"), [
    ("local_test_accuracy", ("local", "")), ("local_test_accuracy_shared", ("local", "shared model")),
    ("global_test_accuracy_class_03", ("global", "class 03")), ("new_client_test_accuracy", ("new clients", "")),
    ("local_test_accuracy_my_head", ("local", "my head")), ("local_test_accuracy_std", None), ("local_test_loss", None),
])  # fmt: skip
def test_accuracies_have_labels(column, labels):
    assert is_accuracy(column) == (labels is not None)
    if labels is not None:
        assert accuracy_labels(column) == labels


def test_further_accuracies_are_printed_and_what_a_test_measures_is_said(folder, capsys):
    assert main([str(folder), "--no-figures"]) == 0
    text = capsys.readouterr().out
    assert "- A client is tested with: FedAvg: the global model; Ditto: its private network" in text
    table = pd.read_csv(folder / "report" / "predictions.csv").set_index("strategy")
    assert table.columns[1] == "local acc., last 2" and table.index.tolist() == ["Ditto"]
    assert table.loc["Ditto", "local acc., shared model, last 2"] == pytest.approx(27.5)
    results = pd.read_csv(folder / "report" / "results.csv").set_index("label")["local_test_accuracy_shared_final_mean"]
    assert results["Ditto"] == pytest.approx(0.35) and np.isnan(results["FedAvg"])


@pytest.mark.parametrize(("metric", "wanted"), [
    ("local_test_accuracy_shared", [0.25, 0.3]), ("local_test_accuracy_shared_final", [0.3, 0.4]),
    ("global_test_accuracy_class_0_last10", [0.3, 0.3]),
])  # fmt: skip
def test_every_accuracy_of_a_run_can_be_compared_and_drawn(folder, metric, wanted):
    groups, _ = collect(find_run_folders([folder]))
    options = options_from({"metric": metric, "baseline": "ditto"})
    assert (
        by_seed(groups[1], options.metrics[0].name) == pytest.approx(wanted) and np.isnan(by_seed(groups[0], options.metrics[0].name)).all()
    )
    (section,), _, _ = build_sections(find_run_folders([folder]), folder / "report", options)
    drawing = next(one for one in section.drawings if one.stem.name == "spread")
    assert options.metrics[0].axis in drawing.figure().axes[0].get_xlabel()


def test_an_accuracy_that_no_run_has_is_refused_with_the_nearest_one(folder):
    with pytest.raises(ConfigError, match="metric must name what the report contains, .*did you mean 'local_test_accuracy_shared'"):
        build_sections(find_run_folders([folder]), folder / "report", options_from({"metric": "local_test_accuracy_sharde"}))


def test_the_figure_by_network_draws_the_means_and_ranges_of_the_table(folder):
    (section,), _, _ = build_sections(find_run_folders([folder]), folder / "report", options_from({}))
    axes = next(one for one in section.drawings if one.stem.name == "networks").figure().axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["cnn", "mlp"]
    means = next(line for line in axes.lines if line.get_label() != "_band")
    table = next(one for one in section.tables if one.name == "networks")
    assert means.get_ydata() == pytest.approx([column.cells[0].value for column in table.columns[2:]]) and means.get_linestyle() == "None"
    ends = [line.get_ydata() for line in axes.lines if line.get_label() == "_band"]
    assert np.array(ends) == pytest.approx(np.array([[15, 25], [25, 35]]))
