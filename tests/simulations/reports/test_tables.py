"""The report's tables and curves, each number computed again from the files, in Markdown, CSV and LaTeX."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from scipy import stats
from statsmodels.stats.multitest import multipletests

from simulations.reports.builder import collect, main, tables
from simulations.reports.figures import selection
from simulations.reports.statistics import paired
from simulations.reports.tables.federated import few, warnings
from simulations.reports.tables.latex import latex
from simulations.reports.tables.table import DASH, Cell, Column, Table, counts, frame, markdown, numbers, over_seeds, ranked, texts
from simulations.run_folder.reader import configuration, find_run_folders, read_run
from tests.processes import ROOT
from tests.simulations.reports.test_builder import half_width, write

CLIENTS, CLASSES, ROUNDS = 12, 3, 12


def whole(folder: Path, strategy: str, seed: int, gain: float = 0.0, **options) -> Path:
    """A run folder with all that a run leaves: a clock, classes, clients."""
    rng = np.random.default_rng([seed, int(1000 * gain)])
    accuracy = np.sort(rng.uniform(0.3, 0.8, ROUNDS)) + gain
    write(folder, strategy, seed, accuracy.round(4).tolist(), **options)
    table = pd.read_csv(folder / "metrics.csv").assign(simulated_seconds=np.arange(1, ROUNDS + 1) * (2.0 + seed))
    for label in range(CLASSES):
        table[f"global_test_accuracy_class_{label:02d}"] = rng.uniform(0, 1, ROUNDS)
    table[["local_training_seconds", "server_seconds", "evaluation_seconds"]] = rng.uniform(0, 1, (ROUNDS, 3))
    table.to_csv(folder / "metrics.csv", index=False)
    rows = [(r, k, "net", rng.uniform(0, 1) if k else None, 10 * k) for r in range(1, ROUNDS + 1) for k in range(CLIENTS)]
    columns = ["round", "client", "architecture", "local_test_accuracy", "num_test_examples"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "clients.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """Two strategies on two settings with four seeds, and the report of them, tables alone."""
    folder = tmp_path_factory.mktemp("report")
    for alpha in (0.1, 1.0):
        for strategy, gain in (("fedavg", 0.0), ("fedgen", 0.05 * alpha)):
            for seed in range(4):
                whole(folder / f"{strategy}-{alpha}-{seed}", strategy, seed, gain, alpha=alpha)
    assert main([str(folder), "--no-figures", "--target", "0.7"]) == 0
    return folder


def files(house: Path, strategy: str, alpha: float, name: str = "metrics.csv") -> list[pd.DataFrame]:
    return [pd.read_csv(house / f"{strategy}-{alpha}-{seed}" / name) for seed in range(4)]


GROUPS = [("fedavg", 0.1), ("fedgen", 0.1), ("fedavg", 1.0), ("fedgen", 1.0)]


def in_latex(path: Path) -> list[list[str]]:
    """The rows of a table in LaTeX, its header first: cells as they would be read."""
    text = path.read_text(encoding="utf-8")
    assert text.count("{") == text.count("}") and r"\toprule" in text and r"\bottomrule" in text
    lines = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r"\\")]
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text).group(1)
    rows = [re.split(r"(?<!\\)&", line) for line in lines]
    assert {len(row) for row in rows} == {len(columns)}
    bare = [[re.sub(r"\\(textbf|underline)\{([^{}]*)\}", r"\2", cell).strip() for cell in row] for row in rows]
    signs = {r"$\pm$": "±", r"$-$": "-", r"$>$": ">", r"$<$": "<", r"\_": "_", r"\%": "%"}
    for sign, shown in signs.items():
        bare = [[cell.replace(sign, shown) for cell in row] for row in bare]
    return [["-" if cell == "--" else cell for cell in row] for row in bare]


def in_markdown(house: Path, first: str) -> list[list[str]]:
    """The table that follows the line ``first`` (the first of all, where that is empty)."""
    text = (house / "report" / "results.md").read_text(encoding="utf-8")
    lines = (text.partition(first)[2] if first else text).strip().splitlines()
    block = lines[: next((i for i, line in enumerate(lines) if not line.startswith("|")), None)]
    rows = [[cell.strip().strip("*_") for cell in line.split("|")[1:-1]] for line in block]
    return [rows[0], *rows[2:]]


def shown(values: Sequence[float], form: str = ".2f", sign: str = "") -> str:
    return f"{np.mean(values):{sign}{form}} ± {half_width(values):{form}}"


def check(house: Path, name: str, first: str, title: str, wanted: Sequence[Sequence[float]], form: str = ".2f", sign: str = "") -> None:
    """One column: in all three files the numbers of these seeds, the CSV's with all their digits."""
    for rows in (in_latex(house / "report" / f"{name}.tex"), in_markdown(house, first)):
        column = rows[0].index(title)
        assert [row[column] for row in rows[1:]] == [shown(values, form, sign) for values in wanted]
    table = pd.read_csv(house / "report" / f"{name}.csv")
    assert table[title].tolist() == pytest.approx([np.mean(values) for values in wanted])
    assert (table[f"{title}: high"] - table[title]).tolist() == pytest.approx([half_width(values) for values in wanted])


def test_headlines(house):
    for title, column, number in (("test, last", "accuracy", 1), ("own, last ten", "local_test_accuracy", 10)):
        wanted = [[100 * file[column].tail(number).mean() for file in files(house, *one)] for one in GROUPS]
        check(house, "headlines", "", title, wanted)


def test_by_setting(house):
    for alpha in (0.1, 1.0):
        wanted = [[100 * file["accuracy"].tail(10).mean() for file in files(house, one, alpha)] for one in ("fedavg", "fedgen")]
        check(house, "by_setting_test", "Test, last ten, by setting:", f"alpha {alpha}", wanted)


def test_clients(house):
    last = [[file.query("round == 12")["local_test_accuracy"].dropna() for file in files(house, *one, "clients.csv")] for one in GROUPS]
    for title, figure, form in (
        ("mean", lambda x: 100 * x.mean(), ".2f"),
        ("standard deviation", lambda x: 100 * x.std(ddof=0), ".2f"),
        ("lowest", lambda x: 100 * x.min(), ".2f"),
        ("worst tenth", lambda x: 100 * x.nsmallest(1).mean(), ".2f"),
        ("Jain's index", lambda x: x.sum() ** 2 / (11 * (x**2).sum()), ".4f"),
    ):
        check(house, "clients", "Accuracy over clients:", title, [[figure(seed) for seed in one] for one in last], form)


def test_classes(house):
    for label in range(CLASSES):
        wanted = [[100 * file[f"global_test_accuracy_class_0{label}"].tail(10).mean() for file in files(house, *one)] for one in GROUPS]
        check(house, "classes", "Accuracy by class:", str(label), wanted, ".1f")


def test_phases(house):
    for title, column in (("local training", "local_training_seconds"), ("server", "server_seconds"), ("evaluation", "evaluation_seconds")):
        wanted = [[file[column].median() for file in files(house, *one)] for one in GROUPS]
        check(house, "phases", "Seconds a round:", title, wanted, ".3f")


def test_the_way_to_the_target_and_runs_that_do_not_get_there(house):
    rows = in_latex(house / "report" / "times.tex")
    assert rows[0][2:] == ["simulated s", "round to 70 %", "MB to 70 %", "simulated s to 70 %"]
    csv = pd.read_csv(house / "report" / "times.csv")
    some = set()
    for place, one in enumerate(GROUPS):
        got = [file[file["accuracy"] >= 0.7] for file in files(house, *one)]
        ends = [(found if len(found) else file).iloc[0 if len(found) else -1] for found, file in zip(got, files(house, *one), strict=True)]
        reached = sum(map(bool, map(len, got)))
        some.add(reached)
        for column, values in (
            (3, [end["round"] for end in ends]),
            (4, [0.003 * end["round"] for end in ends]),
            (5, [e["simulated_seconds"] for e in ends]),
        ):
            mean = f"{np.mean(values):.4g}"
            if reached == 4:
                assert rows[1 + place][column] == f"{mean} ± {half_width(values):.4g}"
            else:
                assert rows[1 + place][column] == f"> {mean} ({reached} of 4)"
                assert np.isnan(csv[rows[0][column]][place]) and csv[f"{rows[0][column]}: low"][place] == pytest.approx(np.mean(values))
    assert 4 in some and len(some) > 1, "the case has to hold both"


def test_comparisons(house):
    rows, csv = in_latex(house / "report" / "comparisons.tex"), pd.read_csv(house / "report" / "comparisons.csv")
    assert csv["strategy"].tolist() == ["fedgen, alpha 0.1", "fedgen, alpha 1.0"] * 2
    assert csv["less"].tolist() == ["fedavg, alpha 0.1", "fedavg, alpha 1.0"] * 2 and csv["accuracy"].unique().tolist() == [
        "test, last ten",
        "own, last ten",
    ]
    pairs = []
    for column in ("accuracy", "local_test_accuracy"):
        for alpha in (0.1, 1.0):
            pairs.append([[100 * file[column].tail(10).mean() for file in files(house, one, alpha)] for one in ("fedgen", "fedavg")])
    check(house, "comparisons", "Tests against the baseline:", "difference", [np.subtract(*pair) for pair in pairs], sign="+")
    tests = {
        "p, t": [stats.ttest_rel(*pair).pvalue for pair in pairs],
        "p, Wilcoxon": [stats.wilcoxon(*pair, method="exact").pvalue for pair in pairs],
    }
    for title, wanted in tests.items():
        assert csv[title].tolist() == pytest.approx(wanted)
        assert csv[f"{title}, Holm"].tolist() == pytest.approx(multipletests(wanted, method="holm")[1])
    assert csv["d"].tolist() == pytest.approx([np.mean(np.subtract(*p)) / np.std(np.subtract(*p), ddof=1) for p in pairs])
    assert [row[3] for row in rows[1:]] == ["4"] * 4
    said = " ".join((house / "report" / "results.md").read_text().split())
    assert (
        "n = 4 is too few: the exact two-sided Wilcoxon test cannot have a p below 0.125; corrected for 4 comparisons no p below 0.5"
        in said
    )


def test_curves_are_the_files(house):
    curves = pd.read_csv(house / "report" / "curves.csv")
    rounds = curves.query("label == 'fedgen, alpha 0.1' and along == 'rounds' and accuracy == 'accuracy'")
    values = np.array([file["accuracy"] for file in files(house, "fedgen", 0.1)])
    assert rounds["x"].tolist() == list(range(1, 13)) and rounds["mean"].tolist() == pytest.approx(100 * values.mean(axis=0))
    assert (rounds["high"] - rounds["mean"]).tolist() == pytest.approx([100 * half_width(column) for column in values.T])
    sent = curves.query("label == 'fedgen, alpha 0.1' and along == 'bytes' and accuracy == 'accuracy'")
    assert sent["x"].tolist() == pytest.approx([0.003 * r for r in range(1, 13)]) and sent["mean"].tolist() == rounds["mean"].tolist()


def test_curves_by_time_stand_where_all_seeds_got(house):
    """Seed s needs 2 + s seconds a round: up to the quickest seed's last, between rounds on a straight line."""
    curves = pd.read_csv(house / "report" / "curves.csv").query(
        "label == 'fedavg, alpha 1.0' and along == 'time' and accuracy == 'accuracy'"
    )
    assert curves["x"].min() >= 5 and curves["x"].max() <= 24 and len(curves) == 5
    for x, mean in zip(curves["x"], curves["mean"], strict=True):
        seeds = [np.interp(x, file["simulated_seconds"], 100 * file["accuracy"]) for file in files(house, "fedavg", 1.0)]
        assert mean == pytest.approx(np.mean(seeds))


def test_bootstrap_intervals_are_shown_by_their_ends(house, tmp_path):
    assert main([str(house), "--no-figures", "--interval", "bootstrap", "--output", str(tmp_path)]) == 0
    text = (tmp_path / "results.md").read_text()
    assert "BCa" in text and "too narrow" in text and "±" not in text.partition("Accuracy in %")[0]
    row = pd.read_csv(tmp_path / "headlines.csv").iloc[0]
    values = [100 * file["accuracy"].iloc[-1] for file in files(house, "fedavg", 0.1)]
    rng = np.random.default_rng(1)
    wanted = stats.bootstrap((values,), np.mean, n_resamples=50_000, rng=rng).confidence_interval
    assert (row["test, last: low"], row["test, last: high"]) == pytest.approx((wanted.low, wanted.high), abs=0.5)
    assert f"[{row['test, last: low']:.2f}, {row['test, last: high']:.2f}]" in (tmp_path / "headlines.tex").read_text()


def test_another_baseline(house, tmp_path, capsys):
    given = [str(house), "--no-figures", "--output", str(tmp_path), "--baseline"]
    assert main([*given, "fedgen"]) == 0
    table = pd.read_csv(tmp_path / "comparisons.csv")
    assert table["strategy"].tolist() == ["fedavg, alpha 0.1", "fedavg, alpha 1.0"] * 2 and set(table["less"]) == {
        "fedgen, alpha 0.1",
        "fedgen, alpha 1.0",
    }
    assert table["difference"][0] == pytest.approx(-pd.read_csv(house / "report" / "comparisons.csv")["difference"][0])
    assert main([*given, "fedprox"]) == 2
    assert "--baseline must be a strategy of the runs, or one of 'fedavg', 'fedgen'; got 'fedprox'" in capsys.readouterr().err


def test_one_variant_as_the_baseline(tmp_path):
    """In an ablation a row of the table can be the baseline of all others of the same strategy."""
    for beta in (0.0, 1.0, 2.0):
        for seed in range(2):
            write(tmp_path / f"{beta}-{seed}", "fedgen", seed, [0.5 + beta / 10 + seed / 100 * beta] * 2, knobs={"beta": beta})
    assert main([str(tmp_path), "--no-figures", "--baseline", "fedgen, beta 1.0"]) == 0
    table = pd.read_csv(tmp_path / "report" / "comparisons.csv")
    assert table["strategy"].tolist() == ["fedgen, beta 0.0", "fedgen, beta 2.0"] * 2 and set(table["less"]) == {"fedgen, beta 1.0"}


def test_one_seed_is_not_tested(tmp_path, capsys):
    for strategy, accuracy in (("fedavg", 0.5), ("fedgen", 0.7)):
        write(tmp_path / strategy, strategy, accuracy=[accuracy] * 2)
    assert main([str(tmp_path), "--no-figures"]) == 0
    text = capsys.readouterr().out
    assert "Tests against the baseline" not in text and "+20.00 |" in text and "none at n = 1" in text
    assert not (tmp_path / "report" / "comparisons.csv").exists()


def test_tuned_runs_are_called_so_ranked_apart_and_compared_with_the_tuned_baseline(tmp_path):
    """The tuned baseline has a learning rate of its own; the untuned one is no opponent of a tuned strategy."""
    for seed in range(2):
        for strategy, lr, tuned, accuracy in (
            ("fedavg", 0.01, None, 0.5), ("fedavg", 0.1, "t.csv", 0.7), ("fedgen", 0.01, "t.csv", 0.8), ("fedprox", 0.01, None, 0.6),
        ):  # fmt: skip
            folder = tmp_path / f"{strategy}{lr}-{seed}"
            write(folder, strategy, seed, [accuracy + seed / 100] * 2, optimizer={"_target_": "torch.optim.SGD", "lr": lr}, tuned=tuned)
    assert main([str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "report" / "differences.csv")
    assert table["strategy"].tolist() == ["fedgen, lr 0.01, tuned", "fedprox, lr 0.01, untuned"]
    assert table["less"].tolist() == ["fedavg, lr 0.1, tuned", "fedavg, lr 0.01, untuned"]
    assert table["test, last"].tolist() == pytest.approx([10, 10])
    text = (tmp_path / "report" / "headlines.tex").read_text()
    assert re.findall(r"^(\S+), .*textbf", text, re.MULTILINE) == ["fedgen", "fedprox"]
    assert pd.read_csv(tmp_path / "report" / "results.csv")["tuned"].tolist() == ["tuned", "tuned", "untuned", "untuned"]


# ------------------------------------------------------------------------------------------------------------------- the structure
def test_a_run_whose_choice_is_the_configuration_s_own_value_is_in_both_blocks(tmp_path):
    """FedGen's choice is what it has anyway: one run, a row as tuned and a row as untuned, each against FedAvg's of its kind."""
    for seed in range(2):
        for strategy, lr, tuned, accuracy in (("fedavg", 0.01, None, 0.5), ("fedavg", 0.1, "t.csv", 0.7), ("fedgen", 0.01, None, 0.8)):
            folder = tmp_path / f"{strategy}{lr}-{seed}"
            write(folder, strategy, seed, [accuracy + seed / 100] * 2, optimizer={"_target_": "torch.optim.SGD", "lr": lr}, tuned=tuned)
            if strategy == "fedgen":
                (folder / "tuned.json").write_text('{"shipped": true}')
    assert main([str(tmp_path), "--no-figures"]) == 0
    rows = pd.read_csv(tmp_path / "report" / "results.csv").set_index("label")
    assert rows["tuned"].to_dict() == {"fedavg, lr 0.1, tuned": "tuned", "fedgen, lr 0.01, tuned": "tuned", "fedavg, lr 0.01, untuned": "untuned",
                                       "fedgen, lr 0.01, untuned": "untuned"}  # fmt: skip
    assert rows["num_seeds"].tolist() == [2] * 4
    pairs = pd.read_csv(tmp_path / "report" / "differences.csv").set_index("strategy")
    assert pairs["test, last"].to_dict() == pytest.approx({"fedgen, lr 0.01, tuned": 10.0, "fedgen, lr 0.01, untuned": 30.0})
    assert main([str(tmp_path), "--no-figures", "--baseline", "fedgen"]) == 0
    pairs = pd.read_csv(tmp_path / "report" / "differences.csv").set_index("strategy")["less"]
    assert pairs.to_dict() == {"fedavg, lr 0.1, tuned": "fedgen, lr 0.01, tuned", "fedavg, lr 0.01, untuned": "fedgen, lr 0.01, untuned"}
    for seed in range(2):
        (tmp_path / f"fedavg0.01-{seed}" / "tuned.json").write_text('{"shipped": true}')
        shutil.rmtree(tmp_path / f"fedavg0.1-{seed}")
    assert main([str(tmp_path), "--no-figures"]) == 0
    assert len(pd.read_csv(tmp_path / "report" / "results.csv")) == 4, "both are tuned and untuned,"
    assert len(pd.read_csv(tmp_path / "report" / "comparisons.csv")) == 2, "which is one comparison of each accuracy,"
    assert "4 in 4 rows" in (tmp_path / "report" / "report.html").read_text(), "and four runs"


@pytest.mark.parametrize(("tuned", "note", "kinds"), [
    (None, None, ("untuned",)), ("t.csv", None, ("tuned",)), (None, '{"shipped": false}', ("tuned", "untuned")),
    ("t.csv", '{"shipped": false}', ("tuned",)), ("t.csv", '{"shipped": true}', ("tuned", "untuned")), ("t.csv", "{", ("tuned",)),
])  # fmt: skip
def test_what_a_run_folder_says_of_its_tuning(tuned, note, kinds, tmp_path):
    """Whichever came first, the run as tuned or as shipped."""
    folder = write(tmp_path / "a", tuned=tuned)
    if note is not None:
        (folder / "tuned.json").write_text(note)
    assert read_run(folder).kinds == kinds


def test_of_seeds_that_are_not_all_tuned_each_block_has_its_own(tmp_path):
    for seed in range(3):
        folder = write(tmp_path / str(seed), seed=seed)
        if seed < 2:
            (folder / "tuned.json").write_text('{"shipped": true}')
    groups, _ = collect(find_run_folders([tmp_path]))
    assert [(one.tuned, one.seeds) for one in groups] == [("tuned", (0, 1)), ("untuned", (0, 1, 2))]


def test_ways_to_the_target_are_ranked_among_those_that_are_judged_alike(tmp_path):
    """Without a global model the target is reached on own labels, which is another race."""
    for name, accuracy, whole_model in (
        ("fedavg", [0.2, 0.4, 0.7], True),
        ("fedgen", [0.2, 0.7, 0.7], True),
        ("local", [0.7, 0.7, 0.7], False),
    ):
        write(tmp_path / name, name, accuracy=accuracy, global_model=whole_model)
    assert main([str(tmp_path), "--no-figures", "--target", "0.65"]) == 0
    text = (tmp_path / "report" / "times.tex").read_text()
    assert r"\textbf{2}" in text and r"\underline{3}" in text and r"{1}" not in text


def test_the_numbers_of_seeds_are_in_a_table_by_setting_where_they_differ(tmp_path):
    for seed in range(3):
        for strategy in ("fedavg", "fedgen")[: 1 + (seed < 2)]:
            for alpha in (0.1, 1.0):
                write(tmp_path / f"{strategy}{alpha}{seed}", strategy, seed, [0.5, 0.6 + seed / 100], alpha=alpha)
    assert main([str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "report" / "by_setting_test.csv")
    assert table["alpha 0.1: n"].tolist() == [3, 2] and table["alpha 1.0: n"].tolist() == [3, 2]
    for seed in (1, 2):
        shutil.rmtree(tmp_path / f"fedavg0.1{seed}")
        shutil.rmtree(tmp_path / f"fedgen0.1{seed}", ignore_errors=True)
    shutil.rmtree(tmp_path / "fedavg1.02")
    assert main([str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "report" / "by_setting_test.csv")
    assert table["alpha 1.0: n"].tolist() == [2, 2], "two everywhere here, one there"


def test_seeds_that_suffice_for_one_comparison_can_be_too_few_for_many():
    six, ten = paired(np.arange(1.0, 7.0)), paired(np.arange(1.0, 11.0))
    assert warnings([six]) == [] and warnings([ten] * 4) == [] and few([3], 2)[0].count("no p below 0.5") == 1
    assert warnings([six] * 4) == [
        "n = 6 is too few for 4 comparisons: corrected for them the exact Wilcoxon test cannot have a p below 0.125."
    ]
    assert warnings([six, ten] * 4) == [], "the smallest of all is corrected by their number, and it is another's"
    assert "corrected" not in few([3, 20], 4)[0]


def test_the_best_and_the_second_of_each_block_are_marked():
    cells = [Cell("", value) for value in (1.0, 3.001, 2.0, 3.004, np.nan, 5.0, 6.0, 7.0)]
    marks = [cell.mark for cell in ranked(cells, "aaaaabbc")]
    assert marks == ["", "best", "second", "best", "", "second", "best", ""], "equal as shown are alike, one alone is not ranked"
    assert [cell.mark for cell in ranked(cells, "aaaaaaaa", lowest=True)] == ["best", "", "second", *[""] * 5]


def test_a_table_in_three_forms():
    table = Table(
        "x", "A & B at 5 %",
        (texts("strategy", ["fed_avg", "a|b", r"x^2 \ {y}"]), counts("n", [1, 2, 3000]),
         Column("gain", ranked([over_seeds([-1.0, -2.0], "t", sign="+"), over_seeds([1.0], "t"), Cell(DASH)], "aab")),
         numbers("p", [0.5, np.nan, 0.25], ".3f")),
        "A legend.", tuple("aab"),
    )  # fmt: skip
    text = latex(table)
    assert r"fed\_avg & 1 & \underline{$-$1.50 $\pm$ 6.35} & 0.500 \\" in text and r"a|b & 2 & \textbf{1.00} & -- \\" in text
    assert r"x\textasciicircum{}2 \textbackslash{} \{y\} & 3,000 & -- & 0.250 \\" in text
    assert r"\caption{A \& B at 5 \%. A legend. Bold: the best mean between two rules; underlined: the second.}" in text
    assert text.count(r"\midrule") == 2 and text.splitlines().index(r"\midrule", 8) == text.splitlines().index(r"\bottomrule") - 2
    assert frame(table).columns.tolist() == ["strategy", "n", "gain", "gain: low", "gain: high", "gain: n", "p"]
    assert "| fed_avg   |     1 | _-1.50 ± 6.35_ | 0.500 |" in markdown(table) and "_-" not in markdown(table, marks=False)


def test_latex_needs_booktabs_alone(house):
    """Every table: one tabular, rows of as many cells as columns, no character that LaTeX would take for a command."""
    found = sorted((house / "report").glob("*.tex"))
    assert len(found) >= 9
    for path in found:
        assert len(in_latex(path)) > 1
        body = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<!\\)[%#_^~]", body.replace("position", "")) and body.isprintable() or "\n" in body
        assert body.isascii(), path.name


# ------------------------------------------------------------------------------------------------------------------- what is left out
def test_clients_that_are_corrupt_leave_a_run_out_and_the_report_lists_it(tmp_path):
    for seed in range(3):
        whole(tmp_path / f"r{seed}", "fedavg", seed)
    lines = (tmp_path / "r1/clients.csv").read_text().splitlines()
    (tmp_path / "r1/clients.csv").write_text("\n".join(lines[:40]))
    (tmp_path / "r2/clients.csv").write_text("")
    assert main([str(tmp_path), "--no-figures"]) == 0
    table = pd.read_csv(tmp_path / "report" / "left_out.csv")
    assert [Path(folder).name for folder in table["run"]] == ["r1", "r2"]
    assert "up to the last evaluated round, 12" in table["why"][0] and "unreadable" in table["why"][1]
    assert "Left out:" in (tmp_path / "report" / "results.md").read_text() and len(in_latex(tmp_path / "report" / "left_out.tex")) == 3
    assert pd.read_csv(tmp_path / "report" / "headlines.csv")["n"].tolist() == [1]


@pytest.mark.parametrize(
    ("name", "spoil", "why"),
    [
        ("metrics.csv", lambda rows: rows.assign(global_test_accuracy_class_00="good"), "something else in global_test_accuracy_class_00"),
        (
            "metrics.csv",
            lambda rows: rows.assign(global_test_accuracy_class_00=100 * rows["global_test_accuracy_class_00"]),
            "accuracies in 0..1",
        ),
        ("metrics.csv", lambda rows: rows.assign(generator_loss="low"), "something else in generator_loss"),
        ("metrics.csv", lambda rows: rows.assign(train_generated_loss="low"), "something else in train_generated_loss"),
        ("clients.csv", lambda rows: rows[:-2], "the same clients, each once"),
        ("clients.csv", lambda rows: pd.concat([rows, rows[-3:]]), "the same clients, each once"),
    ],
)
def test_what_is_corrupt_anywhere_is_left_out_and_not_averaged(name, spoil, why, tmp_path):
    for seed in range(2):
        whole(tmp_path / f"r{seed}", "fedavg", seed)
    path = tmp_path / "r1" / name
    spoil(pd.read_csv(path)).to_csv(path, index=False)
    assert main([str(tmp_path), "--no-figures"]) == 0
    (said,) = pd.read_csv(tmp_path / "report" / "left_out.csv")["why"]
    assert why in said and pd.read_csv(tmp_path / "report" / "headlines.csv")["n"].tolist() == [1]


def test_until_cuts_clients_too(tmp_path):
    whole(tmp_path / "a", "fedavg", 0)
    run = read_run(tmp_path / "a", until=5)
    assert run.clients["round"].max() == 5 and len(run.metrics) == 5


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda path: str(path.relative_to(ROOT / "conf")))
def test_configurations_are_read_as_omegaconf_reads_them(path, tmp_path):
    config = OmegaConf.load(path)
    if not OmegaConf.is_dict(config):
        return
    OmegaConf.save(config, tmp_path / "config.yaml")
    if "${" not in (tmp_path / "config.yaml").read_text():
        assert configuration(tmp_path / "config.yaml") == OmegaConf.to_container(config)


def test_numbers_in_configurations(tmp_path):
    given = {
        "a": 1e-05,
        "b": 1e16,
        "c": "2020-01-01",
        "d": [1, 2.5, None, True, "1e3x"],
        "e": float("inf"),
        "f": "1e-5",
        "g": "${a}",
        "h": -3e-7,
    }
    for keys in ("abcdefgh", "abcdefh"):
        OmegaConf.save(OmegaConf.create({key: given[key] for key in keys}), tmp_path / "c.yaml")
        assert configuration(tmp_path / "c.yaml") == OmegaConf.to_container(OmegaConf.load(tmp_path / "c.yaml"), resolve=True)


# ------------------------------------------------------------------------------------------------------------------- figures
def test_many_strategies_are_drawn_in_parts_with_the_baseline_in_each(tmp_path):
    for name in ["fedavg", *"abcdefghi"]:
        for alpha in (0.1, 1.0):
            write(tmp_path / f"{name}{alpha}", name, alpha=alpha)
    groups, _ = collect(find_run_folders([tmp_path]))
    found = selection.parts(groups, "fedavg", 8)
    assert [suffix for suffix, _ in found] == ["_1", "_2"] and all(part[0].line == "fedavg" for _, part in found)
    assert sorted({one.line for _, part in found for one in part}) == sorted(["fedavg", *"abcdefghi"])
    assert [len({one.line for one in part}) for _, part in found] == [6, 5]
    assert selection.parts(groups, "fedavg", 10)[0][0] == ""


def test_all_figures_of_whole_runs(tmp_path, capsys):
    """Every figure there is, in more than one process; the same files again where they are drawn one by one."""
    for alpha in (0.1, 1.0):
        for strategy in ("fedavg", "fedgen"):
            whole(tmp_path / "runs" / f"{strategy}{alpha}", strategy, 0, alpha=alpha)
    assert main([str(tmp_path / "runs"), "--target", "0.9", "--output", str(tmp_path / "a")]) == 0
    names = {re.sub(r"_alpha-.*", "", path.stem) for path in (tmp_path / "a").glob("*.png")}
    by = {"convergence", "convergence_by_bytes", "convergence_by_time"}
    assert names == by | {"by_setting", "spread", "to_target", "clients", "classes", "phases", "partition"}
    groups, _ = collect(find_run_folders([tmp_path / "runs"]))
    planned, _ = selection.planned(groups, tmp_path / "b", "fedavg", 0.9, "t")
    (tmp_path / "b").mkdir()
    for one in planned:
        assert one.write() == one.paths
        for path in one.paths:
            assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes() and path.stat().st_size > 3000
    assert all(str(tmp_path / "a" / one.paths[1].name) in capsys.readouterr().out for one in planned[:1])


def test_a_strategy_looks_the_same_on_every_setting(tmp_path):
    """One that is missing on a setting leaves its place in the order of looks empty."""
    for name, alphas in (("fedavg", (0.1, 1.0)), ("fedgen", (0.1,)), ("fedprox", (0.1, 1.0))):
        for alpha in alphas:
            write(tmp_path / f"{name}{alpha}", name, alpha=alpha)
    planned, _ = selection.planned(collect(find_run_folders([tmp_path]))[0], tmp_path, "fedavg", None, "t")
    lines = [one.given[0] for one in planned if one.stem.name.startswith("convergence_alpha")]
    assert [list(one) for one in lines] == [["fedavg", "fedgen", "fedprox"]] * 2
    assert [[len(frames["accuracy"]) for frames in one.values()] for one in lines] == [[2, 2, 2], [2, 0, 2]]


def test_tables_come_without_files(house):
    groups, _ = collect(find_run_folders([house]))
    assert [table.name for table in tables(groups, "fedavg", 0.7)][:4] == ["headlines", "times", "differences", "comparisons"]
