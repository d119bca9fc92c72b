"""The tables and curves of a report, each number computed again from the files, in Markdown, CSV and LaTeX."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from simulations.report import main
from simulations.reports.attempts import Attempts
from simulations.reports.builder import collect, tables
from simulations.reports.options import ReportOptions
from simulations.run_folder.reader import find_run_folders
from tests.simulations.reports.folders import NUM_CLASSES, half_width, write_run, write_whole_run
from tests.simulations.reports.table_files import latex_rows, markdown_rows

GROUPS = [("fedavg", 0.1), ("fedgen", 0.1), ("fedavg", 1.0), ("fedgen", 1.0)]
"""The rows of the tables, as the runs are written."""

Files = Callable[..., list[pd.DataFrame]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two strategies on two settings with four seeds, and the report of them, tables alone."""
    path = tmp_path_factory.mktemp("report")
    for alpha in (0.1, 1.0):
        for strategy, gain in (("fedavg", 0.0), ("fedgen", 0.05 * alpha)):
            for seed in range(4):
                write_whole_run(path / f"{strategy}-{alpha}-{seed}", strategy, seed, gain, alpha=alpha)
    assert main([str(path), "--no-figures", "--target", "0.7"]) == 0
    return path


@pytest.fixture
def files(folder) -> Files:
    """The files of a strategy on a setting, by seed."""
    return lambda strategy, alpha, name="metrics.csv": [pd.read_csv(folder / f"{strategy}-{alpha}-{seed}" / name) for seed in range(4)]


def shown(values: Sequence[float], form: str = ".2f", sign: str = "") -> str:
    if len(values) == 2:
        return f"{np.mean(values):{sign}{form}} ({min(values):{sign}{form}} to {max(values):{sign}{form}})"
    return f"{np.mean(values):{sign}{form}} ± {half_width(values):{form}}"


def check(folder: Path, name: str, first: str, title: str, wanted: Sequence[Sequence[float]], form: str = ".2f", sign: str = "") -> None:
    """One column has these numbers in all three files, in the CSV with all their digits."""
    report = folder / "report"
    for rows in (latex_rows(report / f"{name}.tex"), markdown_rows(report / "results.md", first)):
        column = rows[0].index(title)
        assert [row[column] for row in rows[1:]] == [shown(values, form, sign) for values in wanted]
    table = pd.read_csv(report / f"{name}.csv")
    assert table[title].tolist() == pytest.approx([np.mean(values) for values in wanted])
    assert (table[f"{title}: high"] - table[title]).tolist() == pytest.approx(
        [np.ptp(values) / 2 if len(values) == 2 else half_width(values) for values in wanted]
    )


def test_headlines(folder, files):
    for title, column, number in (
        ("global acc., final", "global_test_accuracy", 1),
        ("global acc., last 10", "global_test_accuracy", 10),
        ("local acc., final", "local_test_accuracy", 1),
        ("local acc., last 10", "local_test_accuracy", 10),
        ("bottom 10 % clients", "local_test_accuracy_bottom10", 1),
    ):
        wanted = [[100 * file[column].tail(number).mean() for file in files(*one)] for one in GROUPS]
        check(folder, "headlines", "All results:", title, wanted)
    wanted = [[100 * file["local_test_accuracy"].nlargest(5).mean() for file in files(*one)] for one in GROUPS]
    check(folder, "headlines", "All results:", "best 5 rounds", wanted)
    assert pd.read_csv(folder / "report" / "headlines.csv")["uplink MB"].tolist() == pytest.approx([0.012] * 4)


@pytest.mark.parametrize(("name", "column", "title"), [
    ("global", "global_test_accuracy", "Global acc., last 10, by setting:"),
    ("local", "local_test_accuracy", "Local acc., last 10, by setting:"),
])  # fmt: skip
def test_by_setting(folder, files, name, column, title):
    for alpha in (0.1, 1.0):
        wanted = [[100 * file[column].tail(10).mean() for file in files(one, alpha)] for one in ("fedavg", "fedgen")]
        check(folder, f"by_setting_{name}", title, f"alpha {alpha}", wanted)


def test_settings_by_strategies(folder, files, tmp_path):
    """With panels, one table has a row per setting and a column per strategy, and the best mean of each row is bold."""
    assert main([str(folder), "--no-figures", "--panels", "settings", "--output", str(tmp_path)]) == 0
    rows = latex_rows(tmp_path / "by_setting.tex")
    assert rows[0] == ["metric", "setting", "FedAvg", "FedGen"] and not list(tmp_path.glob("by_setting_*"))
    columns = [("global acc., last 10", "global_test_accuracy"), ("local acc., last 10", "local_test_accuracy")]
    wanted = []
    for heading, column in columns:
        for alpha in (0.1, 1.0):
            cells = [shown([100 * file[column].tail(10).mean() for file in files(one, alpha)]) for one in ("fedavg", "fedgen")]
            wanted.append([heading, f"alpha {alpha}", *cells])
    assert rows[1:] == wanted
    text = (tmp_path / "by_setting.tex").read_text()
    bold = re.findall(r"\\textbf\{([\d.]+) ", text)
    assert bold == [max((cell.split()[0] for cell in row[2:]), key=float) for row in wanted]
    assert text.count(r"\midrule") == 2 and "Bold: best mean of a row." in text


def test_clients(folder, files):
    last = [[file.query("round == 12")["local_test_accuracy"].dropna() for file in files(*one, "clients.csv")] for one in GROUPS]
    for title, figure, form in (
        ("mean", lambda x: 100 * x.mean(), ".2f"),
        ("standard deviation", lambda x: 100 * x.std(ddof=0), ".2f"),
        ("lowest", lambda x: 100 * x.min(), ".2f"),
        ("bottom 10 % clients", lambda x: 100 * x.nsmallest(1).mean(), ".2f"),
        ("Jain's index", lambda x: x.sum() ** 2 / (11 * (x**2).sum()), ".4f"),
    ):
        check(folder, "clients", "Accuracy over clients:", title, [[figure(seed) for seed in one] for one in last], form)


def test_classes(folder, files):
    for label in range(NUM_CLASSES):
        wanted = [[100 * file[f"global_test_accuracy_class_0{label}"].tail(10).mean() for file in files(*one)] for one in GROUPS]
        check(folder, "classes", "Global test accuracy by class:", str(label), wanted, ".1f")


def test_phases(folder, files):
    for title, column in (("local training", "local_training_seconds"), ("server", "server_seconds"), ("evaluation", "evaluation_seconds")):
        wanted = [[file[column].median() for file in files(*one)] for one in GROUPS]
        check(folder, "phases", "Seconds per round by phase:", title, wanted, ".3f")


def test_architectures_count_all_test_examples_of_their_clients(tmp_path):
    for seed in range(2):
        path = write_whole_run(tmp_path / str(seed), "fedavg", seed) / "clients.csv"
        rows = pd.read_csv(path)
        rows.assign(architecture=np.where(rows["client_id"] < 5, "mlp", "cnn")).to_csv(path, index=False)
    assert main([str(tmp_path), "--no-figures"]) == 0
    wanted = {}
    for name, few in (("mlp", True), ("cnn", False)):
        wanted[name] = []
        for seed in range(2):
            rows = pd.read_csv(tmp_path / str(seed) / "clients.csv").query("round > 2").dropna(subset="local_test_accuracy")
            mine = rows[(rows["client_id"] < 5) == few]
            wanted[name].append(100 * np.average(mine["local_test_accuracy"], weights=mine["num_test_examples"]))
        check(tmp_path, "networks", "Local test accuracy by architecture:", name, [wanted[name]])


def test_groups_count_all_test_examples_of_their_clients_and_clients_of_several_groups_give_no_table(tmp_path):
    paths = [write_whole_run(tmp_path / str(seed), "fedavg", seed) for seed in range(2)]
    names = ["usps", "mnist", "svhn"]
    groups = pd.DataFrame({"client_id": range(12), "group": [0, 1, 2] * 4, "name": names * 4, "num_test_examples": 9})
    wanted: dict[str, list[float]] = {name: [] for name in names}
    for path in paths:
        groups.to_csv(path / "groups.csv", index=False)
        rows = pd.read_csv(path / "clients.csv").query("round > 2").dropna(subset="local_test_accuracy")
        for number, name in enumerate(names):
            mine = rows[rows["client_id"] % 3 == number]
            wanted[name].append(100 * np.average(mine["local_test_accuracy"], weights=mine["num_test_examples"]))
    wanted["mean"] = list(np.mean(list(wanted.values()), axis=0))
    assert main([str(tmp_path), "--no-figures"]) == 0
    for name, values in wanted.items():
        check(tmp_path, "groups", "Local test accuracy by group:", name, [values])
    groups.assign(client_id=groups["client_id"].clip(upper=10)).to_csv(paths[0] / "groups.csv", index=False)
    assert main([str(tmp_path), "--no-figures"]) == 0 and not (tmp_path / "report/groups.csv").exists()


def test_server_side_distillation_before_and_after(tmp_path, capsys):
    for seed in range(2):
        path = write_run(tmp_path / str(seed), "feddf", seed, [0.5, 0.6 + seed / 10]) / "metrics.csv"
        pd.read_csv(path).assign(global_test_accuracy_before_distillation=[0.1, 0.3]).to_csv(path, index=False)
    assert main([str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "report" / "server.csv")
    assert table["mean of models"][0] == pytest.approx(20) and table["after server-side distillation"][0] == pytest.approx(57.5)
    assert "Before and after server-side distillation:" in capsys.readouterr().out


def test_comparisons(folder, files):
    rows, csv = latex_rows(folder / "report" / "comparisons.tex"), pd.read_csv(folder / "report" / "comparisons.csv")
    assert csv["strategy"].tolist() == ["FedGen, alpha 0.1", "FedGen, alpha 1.0"] * 2
    assert csv["baseline"].tolist() == ["FedAvg, alpha 0.1", "FedAvg, alpha 1.0"] * 2
    assert csv["metric"].unique().tolist() == ["global acc., last 10", "local acc., last 10"]
    pairs = []
    for column in ("global_test_accuracy", "local_test_accuracy"):
        for alpha in (0.1, 1.0):
            pairs.append([[100 * file[column].tail(10).mean() for file in files(one, alpha)] for one in ("fedgen", "fedavg")])
    check(folder, "comparisons", "Tests against the baseline:", "difference", [np.subtract(*pair) for pair in pairs], sign="+")
    tests = {
        "p, t": [stats.ttest_rel(*pair).pvalue for pair in pairs],
        "p, Wilcoxon": [stats.wilcoxon(*pair, method="exact").pvalue for pair in pairs],
    }
    for title, wanted in tests.items():
        assert csv[title].tolist() == pytest.approx(wanted)
        assert csv[f"{title}, Holm"].tolist() == pytest.approx(multipletests(wanted, method="holm")[1])
    assert csv["d"].tolist() == pytest.approx([np.mean(np.subtract(*p)) / np.std(np.subtract(*p), ddof=1) for p in pairs])
    assert [row[3] for row in rows[1:]] == ["4"] * 4
    text = " ".join((folder / "report" / "results.md").read_text().split())
    warning = "n = 4 is too few: the exact two-sided Wilcoxon test cannot give p < 0.125, and after correction for 4 comparisons no p < 0.5"
    assert warning in text


def test_curves_are_the_files(folder, files):
    curves = pd.read_csv(folder / "report" / "curves.csv").query("label == 'FedGen, alpha 0.1' and metric == 'global_test_accuracy'")
    rounds, sent = curves.query("along == 'rounds'"), curves.query("along == 'bytes'")
    values = np.array([file["global_test_accuracy"] for file in files("fedgen", 0.1)])
    assert rounds["x"].tolist() == list(range(1, 13)) and rounds["mean"].tolist() == pytest.approx(100 * values.mean(axis=0))
    assert (rounds["high"] - rounds["mean"]).tolist() == pytest.approx([100 * half_width(column) for column in values.T])
    assert rounds["min"].tolist() == pytest.approx(100 * values.min(axis=0))
    assert rounds["max"].tolist() == pytest.approx(100 * values.max(axis=0))
    assert sent["x"].tolist() == pytest.approx([0.003 * r for r in range(1, 13)]) and sent["mean"].tolist() == rounds["mean"].tolist()


def test_curves_by_time_stand_where_all_seeds_got(folder, files):
    """Seed s needs 2 + s seconds per round: up to the quickest seed's last, interpolated linearly between rounds."""
    query = "label == 'FedAvg, alpha 1.0' and along == 'time' and metric == 'global_test_accuracy'"
    curves = pd.read_csv(folder / "report" / "curves.csv").query(query)
    assert curves["x"].min() >= 5 and curves["x"].max() <= 24 and len(curves) == 5
    for x, mean in zip(curves["x"], curves["mean"], strict=True):
        seeds = [np.interp(x, file["simulated_seconds"], 100 * file["global_test_accuracy"]) for file in files("fedavg", 1.0)]
        assert mean == pytest.approx(np.mean(seeds))


def test_bootstrap_intervals_are_shown_by_their_ends(folder, files, tmp_path):
    assert main([str(folder), "--no-figures", "--interval", "bootstrap", "--output", str(tmp_path)]) == 0
    text = (tmp_path / "results.md").read_text()
    assert "BCa" in text and "too narrow" in text and "±" not in text.partition("Accuracy in %")[0]
    row = pd.read_csv(tmp_path / "headlines.csv").iloc[0]
    values = [100 * file["global_test_accuracy"].iloc[-1] for file in files("fedavg", 0.1)]
    rng = np.random.default_rng(1)
    wanted = stats.bootstrap((values,), np.mean, n_resamples=50_000, rng=rng).confidence_interval
    low, high = row["global acc., final: low"], row["global acc., final: high"]
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=0.5)
    assert f"[{low:.2f}, {high:.2f}]" in (tmp_path / "headlines.tex").read_text()


def test_by_setting_the_numbers_of_seeds_stand_in_the_cells_where_they_differ(tmp_path):
    for seed in range(3):
        for strategy in ("fedavg", "fedgen")[: 1 + (seed < 2)]:
            for alpha in (0.1, 1.0):
                write_run(tmp_path / f"{strategy}{alpha}{seed}", strategy, seed, [0.5, 0.6 + seed / 100], alpha=alpha)
    assert main([str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "report" / "by_setting_global.csv")
    assert table["alpha 0.1: n"].tolist() == [3, 2] and table["alpha 1.0: n"].tolist() == [3, 2]
    assert "(n = 2)" in (tmp_path / "report" / "by_setting_global.tex").read_text()
    for seed in (1, 2):
        shutil.rmtree(tmp_path / f"fedavg0.1{seed}")
        shutil.rmtree(tmp_path / f"fedgen0.1{seed}", ignore_errors=True)
    shutil.rmtree(tmp_path / "fedavg1.02")
    assert main([str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "report" / "by_setting_global.csv")
    assert table["alpha 1.0: n"].tolist() == [2, 2], "two seeds everywhere in this column, one in the other"


def test_a_strategy_that_is_missing_on_a_setting_has_an_empty_cell(tmp_path, capsys):
    for alpha, accuracy in ((0.1, 0.5), (1.0, 0.75)):
        for strategy, gain in (("fedavg", 0.0), ("fedgen", 0.125)):
            write_run(tmp_path / f"{strategy}{alpha}", strategy, alpha=alpha, accuracy=[accuracy + gain] * 2)
    write_run(tmp_path / "prox", "fedprox", alpha=1.0, accuracy=[0.25, 0.25])
    assert main([str(tmp_path), "--no-figures"]) == 0
    rows = markdown_rows(tmp_path / "report" / "results.md", "Global acc., last 2, by setting:")
    assert rows == [
        ["strategy", "alpha 0.1", "alpha 1.0"],
        ["FedAvg", "50.00", "75.00"],
        ["FedGen", "62.50", "87.50"],
        ["FedProx", "", "25.00"],
    ]


def test_tables_come_without_files(folder):
    groups, _ = collect(find_run_folders([folder]))
    names = [table.name for table in tables(groups, ReportOptions(target=0.7), Attempts())]
    assert names[:4] == ["headlines", "times", "differences", "comparisons"]
