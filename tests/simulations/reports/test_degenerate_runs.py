"""Reports of runs that leave little to report: random small sets of run folders, and parts of a report that fail."""

import csv
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fedkd.errors import ReportError, RunFolderError
from simulations.report import main
from simulations.reports.builder import report_folders
from simulations.reports.figures import comparison
from simulations.reports.options import options_from
from simulations.reports.statistics import interval, paired, signed_ranks
from simulations.reports.tables import clients
from tests.simulations.reports.folders import write_run, write_whole_run

ACCURACIES = st.sampled_from([0.0, 0.5, 0.5, 0.9, 0.123456789, None])
"""Global test accuracies of rounds, 0.1 below the local ones; None for a round that was not evaluated."""

RUNS = st.fixed_dictionaries({
    "strategy": st.sampled_from(["fedavg", "fedgen", "fedproto"]), "seed": st.integers(0, 2), "alpha": st.sampled_from([0.1, 1.0]),
    "accuracy": st.lists(ACCURACIES, min_size=1, max_size=3), "finished": st.sampled_from([True, True, True, False]),
    "global_model": st.sampled_from([True, True, False]), "systems": st.sampled_from([{}, {"speed_sigma": 0.5}]),
    "extras": st.sets(st.sampled_from(["clients", "classes", "time", "no partition", "empty partition"])),
})  # fmt: skip
"""Contents of run folders."""

OPTIONS = st.fixed_dictionaries({
    "target": st.sampled_from([None, 0.5, 1.0]), "interval": st.sampled_from(["t", "t", "bootstrap"]),
    "spread": st.sampled_from(["interval", "std"]),
    "metric": st.sampled_from([None, "global_test_accuracy", "best5_rounds"]), "panels": st.sampled_from(["none", "settings"]),
    "smoothing": st.sampled_from([1, 5]),
})  # fmt: skip
"""Options of a report."""

ONCE = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": [Phase.explicit, Phase.generate],
    "suppress_health_check": list(HealthCheck),
}
"""The same examples each time, without a file of earlier ones, a limit of time, or minutes of shrinking."""


def write(folder: Path, strategy, seed, alpha, accuracy, finished, global_model, systems, extras) -> None:
    """A run folder with these contents."""
    write_run(folder, strategy, seed, accuracy, finished=finished, alpha=alpha, global_model=global_model, systems=systems)
    metrics, rounds = pd.read_csv(folder / "metrics.csv"), len(accuracy)
    if "time" in extras:
        metrics["simulated_seconds"] = np.arange(1.0, rounds + 1)
    if "classes" in extras and global_model:
        metrics = metrics.assign(global_test_accuracy_class_00=metrics["global_test_accuracy"], global_test_accuracy_class_01=0.0)
    metrics.to_csv(folder / "metrics.csv", index=False)
    if "clients" in extras:
        rows = [(number, k, "net", value, k) for number, value in enumerate(accuracy, 1) for k in (1, 2)]
        names = ["round", "client_id", "architecture", "local_test_accuracy", "num_test_examples"]
        pd.DataFrame(rows, columns=names).to_csv(folder / "clients.csv", index=False)
    if "no partition" in extras:
        (folder / "partition.npz").unlink()
    elif "empty partition" in extras:
        np.savez(folder / "partition.npz", counts=np.zeros((2, 3), int))


def check(runs, options, figures: bool) -> None:
    """Every run is in a row or excluded with a reason, every number that is a mean lies in its range, and no part fails."""
    with TemporaryDirectory() as base:
        for number, run in enumerate(runs):
            write(Path(base) / f"run{number}", **run)
        try:
            report = report_folders([Path(base)], options_from({**options, "figures": figures}), quiet=True)
        except RunFolderError as error:
            assert "no finished run is left" in str(error) and not any(
                one["finished"] and any(value is not None for value in one["accuracy"]) for one in runs
            )
            return
        results = pd.read_csv(report / "results.csv")
        excluded = len(pd.read_csv(report / "excluded_runs.csv")) if (report / "excluded_runs.csv").exists() else 0
        assert results["num_seeds"].sum() + excluded == len(runs)
        for name in [name.removesuffix("_mean") for name in results if name.endswith("_mean")]:
            low, mean, high = (results[f"{name}_{which}"] for which in ("min", "mean", "max"))
            assert (mean.isna() | ((low <= mean + 1e-9) & (mean <= high + 1e-9))).all(), name
        for name in (report / "written.txt").read_text().split():
            assert (report / name).stat().st_size > 0, name
            if name.endswith(".csv"):
                assert len({len(row) for row in csv.reader((report / name).open())}) == 1, name


@settings(max_examples=25, **ONCE)
@given(st.lists(RUNS, min_size=1, max_size=4), OPTIONS)
def test_any_small_set_of_runs_has_all_its_tables(runs, options):
    check(runs, options, figures=False)


@settings(max_examples=4, **ONCE)
@given(st.lists(RUNS, min_size=1, max_size=2), OPTIONS)
def test_any_small_set_of_runs_has_all_its_figures(runs, options):
    check(runs, options, figures=True)


# ----------------------------------------------------------------------------------------------------------- statistics
@settings(max_examples=100, **ONCE)
@given(st.lists(st.sampled_from([0.0, 0.0, 1.2, -1.2, 0.3, 5.0, 1e-15]), max_size=8))
def test_tests_of_any_differences_are_probabilities_and_do_not_depend_on_the_sign(values):
    found, other = paired(values), paired([-value for value in values])
    for name in ("t_test", "wilcoxon"):
        p = getattr(found, name)
        assert np.isnan(p) or 0 <= p <= 1
        assert p == pytest.approx(getattr(other, name), nan_ok=True, abs=1e-12)
    assert found.n == len(values) and (len(values) < 2 or not np.isnan(found.wilcoxon))
    if len(values) > 1 and not np.any(values):
        assert found.wilcoxon == found.t_test == 1.0


@pytest.mark.parametrize("values", [[0.0, 1.2], [0.0, 0.0, -3.0], [0.0, 0.0]])
def test_one_difference_among_zeros_shows_nothing(values):
    assert signed_ranks(np.array(values)) == 1.0


@pytest.mark.parametrize("kind", ["t", "bootstrap", "std"])
def test_a_constant_column_has_an_interval_of_width_zero(kind):
    mean, low, high = interval(np.full((3, 2), 0.25), kind)
    assert mean.tolist() == low.tolist() == high.tolist() == [0.25, 0.25]


# ------------------------------------------------------------------------------------------------------ parts that fail
def broken(*given, **named):
    """A part that fails."""
    raise ZeroDivisionError("of a\ntest")


def test_parts_that_fail_are_named_and_all_others_are_written(tmp_path, monkeypatch, capsys):
    for seed in (0, 1):
        write_whole_run(tmp_path / f"a{seed}", "fedavg", seed)

    assert main([str(tmp_path)]) == 0
    whole = set((tmp_path / "report" / "written.txt").read_text().split())
    monkeypatch.setitem(clients.TABLES, "skew", broken)
    monkeypatch.setattr(comparison, "phases", broken)
    capsys.readouterr()
    assert main([str(tmp_path)]) == 1
    (last,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    for name in ("table skew", "figure phases"):
        assert f"{name} failed: ZeroDivisionError: of a test" in last
    written = set((tmp_path / "report" / "written.txt").read_text().split())
    assert whole - written == {"skew.csv", "skew.tex", "phases.png", "phases.pdf"} and all(
        (tmp_path / "report" / name).exists() for name in written
    )
    page = (tmp_path / "report" / "report.html").read_text()
    assert "table skew failed: ZeroDivisionError: of a test" in page and "Accuracy over clients" in page
    with pytest.raises(ReportError) as error:
        report_folders([tmp_path], output=tmp_path / "other", quiet=True)
    assert isinstance(error.value.__cause__, ZeroDivisionError) and (tmp_path / "other" / "report.html").exists()


# ------------------------------------------------------------------------------------- files that another program has saved
@pytest.mark.parametrize("how", ["CRLF", "BOM", "both"])
def test_files_with_line_ends_and_marks_of_windows_are_read(tmp_path, how):
    plain = report_folders([write_whole_run(tmp_path / "plain", "fedavg", 0)], options_from({"figures": False}), tmp_path / "1", quiet=True)
    folder = write_whole_run(tmp_path / "saved" / "plain", "fedavg", 0)
    for name in ("metrics.csv", "clients.csv", "config.yaml", "checkpoint.json"):
        text = (folder / name).read_text()
        text = text if how == "BOM" else text.replace("\n", "\r\n")
        (folder / name).write_bytes((b"" if how == "CRLF" else b"\xef\xbb\xbf") + text.encode())
    saved = report_folders([folder], options_from({"figures": False}), tmp_path / "2", quiet=True)
    for name in ("results.csv", "clients.csv"):
        assert (saved / name).read_text() == (plain / name).read_text()


def test_metrics_saved_with_semicolons_are_excluded_in_one_line(tmp_path, capsys):
    write_run(tmp_path / "a")
    path = write_run(tmp_path / "b", seed=1) / "metrics.csv"
    path.write_text(path.read_text().replace(",", ";"))
    assert main([str(tmp_path), "--no-figures"]) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("excluded: ")]
    assert "metrics.csv must separate its columns by commas" in said and str(tmp_path / "b") in said


def test_other_folders_and_files_among_the_runs_change_nothing(tmp_path, capsys):
    write_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "metrics.csv").write_text("a,b\n")
    (tmp_path / "readme.txt").write_text("x")
    assert main([str(tmp_path), "--no-figures"]) == 0
    excluded = [line for line in capsys.readouterr().err.splitlines() if line.startswith("excluded: ")]
    assert excluded == [f"excluded: {tmp_path / 'notes'}: unfinished: no checkpoint.json"]
    assert len(pd.read_csv(tmp_path / "report" / "results.csv")) == 1


def test_a_run_without_a_global_model_stands_beside_one_with(tmp_path):
    write_run(tmp_path / "a", "fedavg")
    write_run(tmp_path / "b", "feddistill_logits", global_model=False)
    assert main([str(tmp_path), "--no-figures", "--until", "2"]) == 0
    row = pd.read_csv(tmp_path / "report" / "results.csv").set_index("strategy").loc["feddistill_logits"]
    assert np.isnan(row["global_test_accuracy_final_mean"]) and row["local_test_accuracy_final_mean"] == 0.7
