"""Run and Runs: what they read, filters, tables, comparisons and figures."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import fedkd
from tests.simulations.reports.folders import CLOCK, write_run, write_whole_run


# ----------------------------------------------------------------------------------------------------------------- one
def test_a_run_shows_its_folder(runs):
    run = runs[2]
    assert run.path.is_absolute() and (run.seed, run.kind, run.name, run.finished, run.round) == (0, "federated", "fedgen", True, 3)
    assert run.config.partition.alpha == 1.0 and len(run.metrics) == 3
    assert set(run.clients.columns) >= {"round", "client_id", "local_test_accuracy"}
    assert run.label_counts.shape == (6, 10) and run.label_counts.sum() == run.clients.query("round == 3")["num_train_examples"].sum()
    assert set(run.generator["round"]) == {3} and runs[0].generator is None
    summary = run.summary()
    assert summary["local_test_accuracy_last10"] == pytest.approx(run.metrics["local_test_accuracy"].mean())
    assert summary["global_test_accuracy_final"] == run.metrics["global_test_accuracy"].iloc[-1]
    assert str(run) == f"fedgen, seed 0, finished: {run.path}"
    with pytest.raises(AttributeError):
        run.path = "/elsewhere"


def test_a_student_has_no_clients(student):
    assert student.clients.empty and student.generator is None and student.name == "kd"
    with pytest.raises(fedkd.RunFolderError, match="label_counts must be asked of a federated run"):
        _ = student.label_counts


# ------------------------------------------------------------------------------------------------------------- several
def test_slices_and_filters_give_runs(runs, student):
    assert isinstance(runs[1:3], fedkd.Runs) and [run.seed for run in runs[1:3]] == [1, 0] and runs[-1].seed == 1
    assert [run.path for run in runs.filter(strategy="fedgen")] == [run.path for run in runs[2:]]
    assert len(runs.filter(strategy=["fedgen", "fedavg"], seed=1)) == 2
    assert len(runs.filter(partition__alpha=1)) == 4 and len(runs.filter(partition__alpha=0.1)) == 0
    assert len(runs.filter(strategy__generator_steps=3)) == 2 and len(runs.filter(local_epochs=None)) == 4
    both = runs + fedkd.Runs([student])
    assert len(both.filter(kind="distillation")) == 1 and len(both.filter(finished=True)) == 5
    assert len(both.filter(distiller="kd", student="resnet8")) == 1
    with pytest.raises(
        fedkd.ConfigError, match="a filter must be a key of these runs, got 'partition.alph'; did you mean 'partition.alpha'"
    ):
        runs.filter(partition__alph=1)
    assert len(fedkd.Runs().filter(anything=1)) == 0


def test_a_row_per_run_round_and_client(runs):
    table = runs.to_dataframe()
    assert table["strategy"].tolist() == ["fedavg", "fedavg", "fedgen", "fedgen"] and table["seed"].tolist() == [0, 1, 0, 1]
    assert table["local_test_accuracy_last10"].tolist() == [run.summary()["local_test_accuracy_last10"] for run in runs]
    rounds = runs.to_dataframe("round")
    assert len(rounds) == 12 and rounds.groupby("run")["round"].max().tolist() == [3] * 4
    assert rounds["global_test_accuracy"].tolist() == [value for run in runs for value in run.metrics["global_test_accuracy"]]
    clients = runs.to_dataframe("client")
    assert len(clients) == sum(len(run.clients) for run in runs) and {"strategy", "client_id", "trained"} <= set(clients)
    with pytest.raises(fedkd.ConfigError, match="level must be one of run, round, client, got 'epoch'"):
        runs.to_dataframe("epoch")  # type: ignore[arg-type]
    assert fedkd.Runs().to_dataframe().empty and fedkd.Runs().to_dataframe("round").empty


def test_loaded_runs_are_in_order_whatever_their_folders_are_called(tmp_path):
    wanted = [(strategy, alpha, seed) for strategy in ("fedavg", "fedgen") for alpha in (0.1, 1.0, 10.0) for seed in (0, 2, 10)]
    for place, (strategy, alpha, seed) in enumerate(wanted):
        write_run(tmp_path / f"{(7 * place) % 19:02d}", strategy, seed, alpha=alpha)
    found = fedkd.load(tmp_path)
    assert [(run.name, run.config.partition.alpha, run.seed) for run in found] == wanted
    table = found.to_dataframe()
    assert table["path"].tolist() == [str(run.path) for run in found] and table["run"].tolist() == [run.path.name for run in found]


def test_simulated_seconds_are_numbers_only_where_a_clock_is_configured(tmp_path):
    for name, systems in (("with", CLOCK), ("without", {})):
        write_whole_run(tmp_path / name, "fedavg", 0, systems=systems)
    seconds = {run.path.name: run.summary()["simulated_seconds_total"] for run in fedkd.load(tmp_path)}
    assert seconds["with"] == 24.0 and np.isnan(seconds["without"])


def test_keys_that_differ_are_columns(runs, tmp_path):
    folder = shutil.copytree(runs[0].path, tmp_path / "other")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("alpha: 1.0", "alpha: 0.3").replace("batch_size: 32", "batch_size: 16", 1))
    table = (runs[:1] + fedkd.load(folder)).to_dataframe()
    assert table["partition.alpha"].tolist() == [1.0, 0.3] and "batch_size" in table and "num_clients" not in table


def test_the_summary_has_a_row_per_group_of_seeds(runs, student):
    table = runs.summary()
    assert table["label"].tolist() == ["FedAvg", "FedGen"] and table["num_seeds"].tolist() == [2, 2]
    values = [run.summary()["local_test_accuracy_last10"] for run in runs[:2]]
    assert table["local_test_accuracy_last10_mean"][0] == pytest.approx(np.mean(values))
    assert np.isnan(table["local_test_accuracy_last10_ci95"][0]), "two seeds have no interval, but a range"
    for ends in (
        [table[f"local_test_accuracy_last10_{end}"][0] for end in ("min", "max")],
        [runs.summary("bootstrap")[f"local_test_accuracy_last10_{end}"][0] for end in ("low", "high")],
    ):
        assert ends == pytest.approx(sorted(values))
    students = fedkd.Runs([student]).summary()
    assert students["num_seeds"].tolist() == [1] and students["test_accuracy_final_mean"][0] == student.summary()["test_accuracy_final"]
    with pytest.raises(fedkd.ConfigError, match=r"runs must all be federated, or all distillations \(filter"):
        (runs + fedkd.Runs([student])).summary()
    with pytest.raises(fedkd.ConfigError, match="interval must be one of t, bootstrap, got 'z'"):
        runs.summary("z")
    with pytest.raises(fedkd.RunFolderError, match="runs must hold a finished run, got 0"):
        fedkd.Runs().summary()


def test_differences_are_paired_by_seed(runs):
    found = runs.compare("fedavg")
    gains = [
        100 * (b.summary()["local_test_accuracy_last10"] - a.summary()["local_test_accuracy_last10"]) for a, b in zip(runs[:2], runs[2:])
    ]
    assert found["label"].tolist() == ["FedGen"] and found["baseline"].tolist() == ["FedAvg"] and found["n"].tolist() == [2]
    assert found["difference"][0] == pytest.approx(np.mean(gains))
    assert [found["low"][0], found["high"][0]] == pytest.approx(sorted(gains)), "the range of two differences"
    assert found["d"][0] == pytest.approx(np.mean(gains) / np.std(gains, ddof=1))
    plain = runs.compare("fedavg", metric="global_test_accuracy_final", correction="none")
    assert plain["difference"][0] != found["difference"][0]
    for arguments, message in {
        ("fedprox",): "baseline must be one of .*fedavg, .*got 'fedprox'",
        ("fedavg", "local"): "metric must be one of .*, got 'local'",
        ("fedavg", "best5_rounds", "x"): "interval must be one of",
        ("fedavg", "best5_rounds", "t", "bonferroni"): "correction must be holm or none, got 'bonferroni'",
    }.items():
        with pytest.raises(fedkd.ConfigError, match=message):
            runs.compare(*arguments)


def test_holm_corrects_over_the_rows(runs, tmp_path):
    """Two rows against one baseline: the smaller p-value is doubled."""
    folders = [shutil.copytree(run.path, tmp_path / run.path.name) for run in runs[2:]]
    for folder in folders:
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("generator_steps: 3", "generator_steps: 4"))
        table = pd.read_csv(folder / "metrics.csv")
        table["local_test_accuracy"] = (table["local_test_accuracy"] + 0.05).clip(0, 1)
        table.to_csv(folder / "metrics.csv", index=False)
    together = runs + fedkd.load(tmp_path)
    plain, holm = (together.compare("fedavg", correction=correction)["p_t"] for correction in ("none", "holm"))
    assert len(plain) == 2 and min(holm) == pytest.approx(min(1, 2 * min(plain)))


# ------------------------------------------------------------------------------------------------------------- figures
KINDS = ("convergence", "final", "clients", "classes", "label_distribution", "generator")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_figure(runs, kind, tmp_path):
    chosen = runs.filter(strategy="fedgen") if kind == "generator" else runs
    figure = chosen.plot(kind, path=tmp_path / "figure.svg")
    assert isinstance(figure, Figure) and figure.axes and (tmp_path / "figure.svg").stat().st_size > 1000
    assert figure._repr_png_().startswith(b"\x89PNG"), "a notebook shows it"


def test_curves_are_those_of_the_metrics(runs):
    figure = runs[:1].plot("convergence", metric="global_test_accuracy")
    (axes,) = figure.axes
    assert axes.lines[0].get_ydata().tolist() == pytest.approx((100 * runs[0].metrics["global_test_accuracy"]).tolist())
    by_bytes = runs[:1].plot("convergence", metric="global_test_accuracy", x="bytes").axes[0].lines[0].get_xdata()
    sent = (runs[0].metrics["uplink_bytes"] + runs[0].metrics["downlink_bytes"]).cumsum() / 1e6
    assert by_bytes.tolist() == pytest.approx(sent.tolist())


def test_what_cannot_be_drawn_is_said(runs, tmp_path):
    for arguments, message in {
        ("lines",): "kind must be one of convergence, .*, got 'lines'",
        ("convergence", "accuracy"): "metric must be one of .*, got 'accuracy'",
        ("convergence", None, "hours"): "x must be one of round, bytes, time, got 'hours'",
        ("settings",): "kind=settings needs runs of several settings, got 1",
    }.items():
        with pytest.raises(fedkd.ConfigError, match=message):
            runs.plot(*arguments)
    with pytest.raises(fedkd.ConfigError, match="kind=generator needs runs with diagnostics"):
        runs[:2].plot("generator")
    with pytest.raises(fedkd.ConfigError, match="path must end in .pdf, .png, .svg"):
        runs.plot("final", path=tmp_path / "figure.docx")


def test_accuracy_by_setting(runs, tmp_path):
    for run in runs:
        folder = shutil.copytree(run.path, tmp_path / run.path.name)
        (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("alpha: 1.0", "alpha: 0.3"))
    both = runs + fedkd.load(tmp_path)
    labels = {text.get_text() for axes in both.plot("settings").axes for text in axes.get_xticklabels()}
    assert any("0.3" in label for label in labels)


def test_a_notebook_shows_the_summary(runs, student):
    html = runs._repr_html_()
    assert html.count("<tr") == 3 and "FedGen" in html and f"{100 * runs.summary()['local_test_accuracy_last10_mean'][1]:.2f}" in html
    assert "kd" in fedkd.Runs([student])._repr_html_()
    assert repr(runs) == "Runs(4: fedavg, fedgen; seeds 0, 1)" and repr(fedkd.Runs()) == "Runs(0)"


# ------------------------------------------------------------------------------------------------- loading, reporting
def test_load_finds_runs_of_both_kinds(runs, student, output):
    found = fedkd.load(output)
    assert {run.path for run in [*runs, student]} <= {run.path for run in found}
    assert {run.path for run in fedkd.load(runs[0].path, str(runs[1].path))} == {run.path for run in runs[:2]}
    with pytest.raises(fedkd.RunFolderError, match="each folder must be a run folder .*, got '.*nothing'"):
        fedkd.load(output / "nothing")


BROKEN = {
    "config.yaml": "[1, 2",
    "metrics.csv": "round\n1\n",
    "checkpoint.json": "{",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_left_out_or_refused(runs, tmp_path, name):
    for run in runs[:2]:
        shutil.copytree(run.path, tmp_path / run.path.name)
    broken = tmp_path / runs[0].path.name
    (broken / name).write_text(BROKEN[name])
    with pytest.warns(UserWarning, match=f"left out: .*{broken.name}"):
        found = fedkd.load(tmp_path)
    assert [run.path.name for run in found] == [runs[1].path.name]
    with pytest.raises(fedkd.RunFolderError, match=broken.name):
        fedkd.load(tmp_path, strict=True)


def test_a_folder_of_another_schema_is_refused_in_a_line(runs, tmp_path):
    folder = shutil.copytree(runs[0].path, tmp_path / "old")
    header = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps({**header, "schema": 1}))
    with pytest.raises(fedkd.RunFolderError, match=r"must be of schema version \d, got 1; run it again in another output folder"):
        fedkd.load(folder, strict=True)


def test_unfinished_runs_are_loaded_and_left_out_of_tables(runs, tmp_path):
    for run in runs[:2]:
        shutil.copytree(run.path, tmp_path / run.path.name)
    path = tmp_path / runs[1].path.name / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "finished": False, "round": 2}))
    found = fedkd.load(tmp_path)
    assert sorted(run.finished for run in found) == [False, True] and len(found.to_dataframe()) == 2
    with pytest.warns(UserWarning, match="1 of 2 runs are unfinished and not shown: fedavg, seed 1, 2 of 3 rounds"):
        assert found.summary()["num_seeds"].tolist() == [1]


def test_a_report_has_page_tables_and_figures(runs, student, tmp_path):
    folder = fedkd.report(runs + fedkd.Runs([student]), tmp_path / "report")
    assert folder == tmp_path / "report" and (folder / "report.html").stat().st_size > 1000
    assert list(folder.glob("*.tex")) and list(folder.glob("*.pdf")) and (folder / "results.csv").is_file()
    plain = fedkd.report(runs, tmp_path / "plain", figures=False)
    assert not list(plain.glob("*.pdf"))
    with pytest.raises(fedkd.RunFolderError, match="runs must hold a run to report, got none"):
        fedkd.report(fedkd.Runs(), tmp_path / "empty")
    with pytest.raises(fedkd.ConfigError, match="baseline must"):
        fedkd.report(runs, tmp_path / "other", baseline="fedprox")
