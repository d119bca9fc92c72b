"""Tables as one structure: marks of the best means, Markdown, CSV and LaTeX."""

import re

import numpy as np
import pytest

from simulations.report import main
from simulations.reports.statistics import paired
from simulations.reports.tables.federated import few, warnings
from simulations.reports.tables.latex import latex
from simulations.reports.tables.table import (
    DASH,
    Cell,
    Column,
    NumberFormat,
    Table,
    counts,
    frame,
    markdown,
    numbers,
    over_seeds,
    ranked,
    texts,
)
from tests.simulations.reports.folders import write_run, write_whole_run
from tests.simulations.reports.table_files import latex_rows


def test_the_best_and_the_second_of_each_block_are_marked():
    cells = [Cell("", value) for value in (1.0, 3.001, 2.0, 3.004, np.nan, 5.0, 6.0, 7.0)]
    marks = [cell.mark for cell in ranked(cells, "aaaaabbc")]
    assert marks == ["", "best", "second", "best", "", "", "best", ""], "equal as printed are alike, one alone is not ranked"
    assert [cell.mark for cell in ranked(cells, "aaaaaaaa", lowest=True)] == ["best", "", "second", *[""] * 5]


def test_the_loser_of_two_is_not_marked_as_second(tmp_path):
    for strategy, accuracy in (("fedavg", 0.5), ("fedgen", 0.7)):
        write_run(tmp_path / strategy, strategy, accuracy=[accuracy] * 2)
    assert main([str(tmp_path), "--no-figures"]) == 0
    text = (tmp_path / "report" / "headlines.tex").read_text()
    assert r"\textbf{70.00}" in text and "underline" not in text and "Bold: best mean." in text
    write_run(tmp_path / "prox", "fedprox", accuracy=[0.6] * 2)
    assert main([str(tmp_path), "--no-figures"]) == 0
    text = (tmp_path / "report" / "headlines.tex").read_text()
    assert r"\underline{60.00}" in text and "Bold: best mean; underlined: second." in text


def test_a_table_in_three_forms():
    table = Table(
        "x", "A & B at 5 %",
        (texts("strategy", ["fed_avg", "a|b", r"x^2 \ {y}"]), counts("n", [1, 2, 3000]),
         Column("gain", ranked([over_seeds([-1.0, -2.0, -1.5], "t", sign="+"), over_seeds([1.0], "t"), Cell("0.50", 0.5)], "aaa")),
         numbers("p", [0.5, np.nan, 0.25], ".3f")),
        "A legend.", tuple("aab"),
    )  # fmt: skip
    text = latex(table)
    assert r"fed\_avg & 1 & $-$1.50 $\pm$ 1.24 & 0.500 \\" in text and r"a|b & 2 & \textbf{1.00} & -- \\" in text
    assert r"x\textasciicircum{}2 \textbackslash{} \{y\} & 3,000 & \underline{0.50} & 0.250 \\" in text
    assert r"\caption{A \& B at 5 \%. A legend. Bold: best mean between two rules; underlined: second.}" in text
    assert text.count(r"\midrule") == 2 and text.splitlines().index(r"\midrule", 9) == text.splitlines().index(r"\bottomrule") - 2
    assert frame(table).columns.tolist() == ["strategy", "n", "gain", "gain: low", "gain: high", "gain: n", "p"]
    assert "| fed_avg   |     1 | -1.50 ± 1.24 | 0.500 |" in markdown(table) and "_0.50_" in markdown(table)
    assert "_0.50_" not in markdown(table, marks=False)


def test_a_formula_of_the_user_stays_in_latex_and_is_plain_text_elsewhere():
    table = Table("x", "", (texts("setting", [r"$\alpha=0.1$ & 5 %", r"$\Lambda_{max}$"]), counts("n", [1, 2])))
    assert r"$\alpha=0.1$ \& 5 \% & 1" in latex(table)
    assert "| α=0.1 & 5 % |" in markdown(table) and "| Λ_max" in markdown(table)
    assert list(frame(table)["setting"]) == ["α=0.1 & 5 %", "Λ_max"]


def test_the_remarks_on_one_and_two_seeds_stand_only_under_tables_that_have_such_cells():
    form = NumberFormat()
    for values, remarks in (([[0.1], [0.1, 0.2]], (True, True)), ([[0.1, 0.2]], (False, True)), ([[0.1, 0.2, 0.3]], (False, False))):
        table = Table("x", "", (form.percents("acc.", values),), legend=f"Each cell: {form.legend}.")
        assert ("none at n = 1" in markdown(table), "at n = 2 (lowest to highest)" in markdown(table)) == remarks


def test_greek_letters_of_the_user_are_mathematics_in_latex():
    text = latex(Table("x", "", (texts("setting", ["α = 0.1", "λ × 2"]), counts("n", [1, 2]))))
    assert r"$\alpha$ = 0.1 & 1" in text and r"$\lambda$ $\times$ 2 & 2" in text and text.isascii()


@pytest.mark.parametrize(("columns", "environment"), [(3, "table"), (4, "table*"), (12, "table*")])
def test_a_wide_table_spans_both_columns_and_none_is_wider_than_the_page(columns, environment):
    lines = latex(Table("x", "", tuple(texts(f"title {place}", ["81.20 ± 0.45"]) for place in range(columns)))).splitlines()
    assert lines[:2] == [rf"\begin{{{environment}}}[tb]", r"\centering"] and lines[-1] == rf"\end{{{environment}}}"
    assert (
        lines[lines.index(rf"\begin{{tabular}}{{{'l' * columns}}}") - 1]
        == r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    )
    assert r"\end{tabular}}" in lines


@pytest.mark.parametrize(("kind", "wanted"), [("t", "2.0 ± 2.5"), ("std", "2.0 ± 1.0")])
def test_a_mean_with_its_interval_or_its_standard_deviation(kind, wanted):
    form = NumberFormat(kind, 1)
    assert form.cell([1.0, 2.0, 3.0]).text == wanted and form.cell([1.0]).text == "1.0" and form.cell([np.nan]).text == DASH
    assert form.of_differences.cell([1.0, 2.0, 3.0]).text == "2.0 ± 2.5", "a difference has its interval"
    assert form.percent([0.1, 0.2, 0.3], sign="+").text.startswith("+20.0 ± ")
    assert form.percent([0.3, -0.1], sign="+").text == {"t": "+10.0 (-10.0 to +30.0)", "std": "+10.0 ± 28.3"}[kind]


def test_latex_rows_are_equally_long_and_hold_no_commands(tmp_path):
    """Every table is one tabular with rows of as many cells as columns, without characters that LaTeX would take for commands."""
    for alpha in (0.1, 1.0):
        for strategy in ("fedavg", "fedgen"):
            for seed in range(2):
                write_whole_run(tmp_path / f"{strategy}-{alpha}-{seed}", strategy, seed, alpha=alpha)
    assert main([str(tmp_path), "--no-figures", "--target", "0.7"]) == 0
    found = sorted((tmp_path / "report").glob("*.tex"))
    assert len(found) >= 9
    for path in found:
        assert len(latex_rows(path)) > 1
        body = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<!\\)[%#_^~]", body.replace(f"tab:{path.stem}", "").replace("{!}{%", "")) and body.isascii(), path.name


def test_seeds_that_suffice_for_one_comparison_can_be_too_few_for_many():
    six, ten = paired(np.arange(1.0, 7.0)), paired(np.arange(1.0, 11.0))
    assert warnings([six]) == [] and warnings([ten] * 4) == [] and few([3], 2)[0].count("no p < 0.5") == 1
    assert warnings([six] * 4) == ["n = 6 is too few for 4 comparisons: after correction the exact Wilcoxon test cannot give p < 0.125."]
    assert warnings([six, ten] * 4) == [], "the smallest p of all is another's"
    assert "correction" not in few([3, 20], 4)[0]
    assert few([1, np.nan], 1) == ["n = 1: a single pair has no interval and no test."]
