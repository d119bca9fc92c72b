"""Options of a report: values, presets, names, order and choice, and their effect on tables and figures."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedkd.errors import ConfigError
from simulations.report import main
from simulations.reports.builder import build_sections, report_folders
from simulations.reports.curves import smoothed
from simulations.reports.options import ReportOptions, options_from
from simulations.run_folder.reader import find_run_folders
from tests.simulations.reports.folders import write_run, write_whole_run
from tests.simulations.reports.table_files import latex_rows, markdown_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three strategies on three settings with three seeds."""
    path = tmp_path_factory.mktemp("options")
    for alpha in (0.1, 1.0, 10.0):
        for place, strategy in enumerate(("fedavg", "fedgen", "fedprox")):
            for seed in range(3):
                write_whole_run(path / f"{strategy}-{alpha}-{seed}", strategy, seed, 0.05 * place, alpha=alpha)
    return path


def sections(folder: Path, **options):
    return build_sections(find_run_folders([folder]), Path("nowhere"), options_from(options))[0]


def rows_of(folder: Path, output: Path, **options) -> pd.DataFrame:
    """The first table of a report with these options."""
    report_folders([folder], options_from({"figures": False, **options}), output, quiet=True)
    return pd.read_csv(output / "headlines.csv")


# -------------------------------------------------------------------------------------------------------------- values
def test_the_preset_default_holds_the_default_values():
    assert options_from({"report": "default"}) == ReportOptions() == options_from({})


def test_a_value_beside_a_preset_replaces_the_preset_s_and_none_counts_as_absent():
    assert options_from({"report": "two_column"}).panels == "settings"
    assert options_from({"report": "two_column", "panels": "none", "font_size": None}) == ReportOptions(
        font_size=8, metric="local_test_accuracy"
    )
    assert options_from({"report": "slides"}).formats == ("png", "svg")


def test_a_yaml_file_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("labels: {fedgen: FedGen (ours)}\norder: [fedgen, fedavg]\nwidth: 5\nbaseline: null\n")
    found = options_from({"report": str(tmp_path / "mine.yaml")})
    assert (dict(found.labels), found.order, found.width) == ({"fedgen": "FedGen (ours)"}, ("fedgen", "fedavg"), 5)
    (tmp_path / "lab" / "conf" / "report").mkdir(parents=True)
    (tmp_path / "lab" / "conf" / "report" / "thesis.yaml").write_text("decimals: 1\n")
    (tmp_path / "fedkd.yaml").write_text("searchpath: lab\n")
    monkeypatch.chdir(tmp_path)
    assert options_from({"report": "thesis"}).decimals == 1


def test_lists_and_labels_as_the_command_gives_them():
    found = options_from({"strategies": "fedgen,fedavg", "formats": "pdf, svg", "labels": ["fedgen=FedGen (ours)", "fedavg=A=B"]})
    assert found.strategies == ("fedgen,fedavg",) and found.formats == ("pdf", "svg")
    assert dict(found.labels) == {"fedgen": "FedGen (ours)", "fedavg": "A=B"}


@pytest.mark.parametrize(("given", "message"), [
    ({"bnd": "fill"}, "got 'bnd'; did you mean 'band'?"),
    ({"band": "fil"}, "band must be one of fill, lines, none, got 'fil'; did you mean 'fill'?"),
    ({"report": "two_colum"}, "got 'two_colum'; did you mean 'two_column'?"),
    ({"metric": "local_acc"}, "did you mean 'local_test_accuracy'?"),
    ({"formats": "pdf,jpg"}, "formats must be one of pdf, png, svg, got 'jpg'"),
    ({"formats": ""}, "formats must be one of pdf, png, svg at least"),
    ({"decimals": 1.5}, "decimals must be a whole number in 0..6, got 1.5"),
    ({"decimals": True}, "decimals must be a whole number in 0..6, got True"),
    ({"smoothing": 0}, "smoothing must be a number of rounds >= 1, got 0"),
    ({"width": -1}, "width must be in inches, 1.5..40, got -1"),
    ({"font_size": "big"}, "font_size must be in points, 3..40, got 'big'"),
    ({"font_size": 12}, "width must be at least 4.32 inches for a font size of 12 points, got 3.4"),
    ({"target": 90}, "target must be an accuracy in 0..1 (0.9 is 90 %), got 90"),
    ({"until": 0}, "until must be a round, 1 or more, got 0"),
    ({"labels": ["fedgen"]}, "labels must be NAME=TEXT"),
    ({"labels": {"fedgen": 1}}, "labels must be names and the texts that replace them"),
    ({"interval": "normal"}, "interval must be one of t, bootstrap, got 'normal'"),
    ({"panels": "yes"}, "panels must be one of none, settings, got 'yes'"),
    ({"strategies": [1]}, "strategies must be a list of names"),
])  # fmt: skip
def test_a_wrong_value_is_an_error_in_one_line_with_the_nearest_name(given, message):
    with pytest.raises(ConfigError) as error:
        options_from(given)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["a: [1", "- band", "band: fill\nwith: 3"])
def test_a_wrong_yaml_file_is_an_error_in_one_line(text, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        options_from({"report": str(tmp_path / "mine.yaml")})
    assert "\n" not in str(error.value)


def test_every_option_is_explained_and_in_the_preset():
    names = {one.name for one in fields(ReportOptions)}
    text = (Path(__file__).parents[3] / "conf" / "report" / "default.yaml").read_text()
    assert {line.partition(":")[0] for line in text.splitlines() if not line.startswith("#")} == names
    assert all(f"\n        {name}: " in (ReportOptions.__doc__ or "") for name in names)


# --------------------------------------------------------------------------------------------- names, order and choice
def test_names_of_strategies_and_settings_are_the_user_s_in_tables_and_figures(folder, tmp_path):
    labels = ["fedgen=FedGen (ours)", "alpha=0.1=strong skew", "FedProx=Prox"]
    table = rows_of(folder, tmp_path, labels=labels)
    assert table["strategy"].tolist()[:3] == ["FedAvg, strong skew", "FedGen (ours), strong skew", "Prox, strong skew"]
    assert pd.read_csv(tmp_path / "results.csv")["strategy"].tolist()[:3] == ["fedavg", "fedgen", "fedprox"]
    assert latex_rows(tmp_path / "by_setting_global.tex")[0] == ["strategy", "strong skew", "alpha 1.0", "alpha 10.0"]
    (section,) = sections(folder, labels=labels)
    lines = next(one for one in section.drawings if one.stem.name == "convergence_alpha_0_1").given[0]
    assert list(lines) == ["FedAvg", "FedGen (ours)", "Prox"], "files keep the name of the setting"


def test_a_whole_row_can_have_a_name_of_its_own(tmp_path):
    for beta in (0.0, 1.0):
        write_run(tmp_path / str(beta), "fedgen", parameters={"beta": beta})
    table = rows_of(tmp_path, tmp_path / "a", labels={"FedGen, beta 1.0": "FedGen", "fedgen, beta 0.0": "FedGen without latents"})
    assert table["strategy"].tolist() == ["FedGen without latents", "FedGen"]
    with pytest.raises(ConfigError, match="labels must give different names, got 'x'"):
        rows_of(tmp_path, tmp_path / "b", labels={"FedGen, beta 1.0": "x", "FedGen, beta 0.0": "x"})


def test_the_order_of_strategies_and_settings(folder, tmp_path):
    table = rows_of(folder, tmp_path, order="fedprox,fedgen", settings="alpha 10.0,alpha=0.1")
    assert table["strategy"].tolist() == [
        f"{strategy}, {setting}" for setting in ("alpha 10.0", "alpha 0.1") for strategy in ("FedProx", "FedGen", "FedAvg")
    ]
    assert latex_rows(tmp_path / "by_setting_local.tex")[0] == ["strategy", "alpha 10.0", "alpha 0.1"]


def test_a_choice_of_strategies_and_settings(folder, tmp_path):
    table = rows_of(folder, tmp_path, strategies=["FedGen", "fedavg"], settings=["alpha 1.0"])
    assert table["strategy"].tolist() == ["FedAvg, alpha 1.0", "FedGen, alpha 1.0"]
    assert len(pd.read_csv(tmp_path / "differences.csv")) == 1 and not (tmp_path / "by_setting_global.csv").exists()


@pytest.mark.parametrize(("given", "message"), [
    ({"strategies": "fedgne"}, "strategies must name what the report contains, got 'fedgne'; did you mean 'fedgen'?"),
    ({"order": "FedProxx"}, "order must name what the report contains, got 'FedProxx'; did you mean 'FedProx'?"),
    ({"settings": "alpha 0.2"}, "settings must name what the report contains, got 'alpha 0.2'; did you mean 'alpha 0.1'?"),
    ({"labels": {"fedavgg": "x"}}, "labels must name what the report contains, got 'fedavgg'; did you mean 'fedavg'?"),
    ({"labels": {"fedavg": "x", "fedgen": "x"}}, "labels must give different names, got 'x'"),
    ({"baseline": "fedgenn"}, "got 'fedgenn'; did you mean 'fedgen'?"),
    ({"strategies": "fedgen", "baseline": "moon"}, "baseline must be a strategy of the runs"),
])  # fmt: skip
def test_a_name_that_no_run_has_is_an_error_in_one_line(folder, given, message):
    with pytest.raises(ConfigError) as error:
        sections(folder, **given)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_feddistill_and_its_variant_with_logits_alone_are_told_apart(tmp_path):
    """``FedDistill`` is the printed name of ``feddistill_logits``, ``feddistill`` the option of FedDistill+."""
    write_run(tmp_path / "a", "feddistill", accuracy=[0.5, 0.5]), write_run(tmp_path / "b", "feddistill_logits", accuracy=[0.6, 0.6])
    assert rows_of(tmp_path, tmp_path / "r1", strategies="feddistill")["strategy"].tolist() == ["FedDistill+"]
    assert rows_of(tmp_path, tmp_path / "r2", strategies="FedDistill")["strategy"].tolist() == ["FedDistill"]


# ------------------------------------------------------------------------------------------------------------- numbers
def test_standard_deviation_and_decimals(folder, tmp_path):
    rows_of(folder, tmp_path, spread="std", decimals=1)
    values = [pd.read_csv(folder / f"fedgen-0.1-{seed}" / "metrics.csv")["global_test_accuracy"].iloc[-1] for seed in range(3)]
    row = markdown_rows(tmp_path / "results.md", "All results:")[2]
    assert row[:3] == ["FedGen, alpha 0.1", "3", f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"]
    text = (tmp_path / "results.md").read_text()
    assert "± standard deviation (over seeds)" in text
    assert "half-width" in text.partition("Difference in percentage points")[2].partition("Tests against")[0], "differences have intervals"
    assert "global_test_accuracy_final_std" in pd.read_csv(tmp_path / "results.csv")


def test_a_chosen_metric_is_the_only_one_compared_and_drawn(folder, tmp_path):
    rows_of(folder, tmp_path, metric="local_test_accuracy_final")
    assert set(pd.read_csv(tmp_path / "comparisons.csv")["metric"]) == {"local acc., final"}
    assert [path.name for path in tmp_path.glob("by_setting*.csv")] == ["by_setting_local_test_accuracy_final.csv"]
    assert set(pd.read_csv(tmp_path / "curves.csv")["metric"]) == {"local_test_accuracy"}
    (section,) = sections(folder, metric="local_test_accuracy_final")
    named = {one.stem.name: one for one in section.drawings}
    assert len(named["convergence_alpha_0_1"].figure().axes) == 1 and len(named["by_setting"].figure().axes) == 1
    files = [pd.read_csv(folder / f"fedavg-0.1-{seed}" / "metrics.csv") for seed in range(3)]
    drawn = named["spread_alpha_0_1"].figure().axes[0].lines[0].get_xdata()[0]
    assert drawn == pytest.approx(100 * files[0]["local_test_accuracy"].iloc[-1])


def test_smoothing_is_a_moving_average_of_each_seed(folder, tmp_path):
    assert smoothed(np.array([1.0, 2.0, 6.0, 4.0]), 3).tolist() == [1.0, 1.5, 3.0, 4.0]
    rows_of(folder, tmp_path, smoothing=3)
    query = "label == 'FedAvg, alpha 0.1' and along == 'rounds' and metric == 'global_test_accuracy'"
    curve = pd.read_csv(tmp_path / "curves.csv").query(query)
    files = [pd.read_csv(folder / f"fedavg-0.1-{seed}" / "metrics.csv")["global_test_accuracy"] for seed in range(3)]
    wanted = np.mean([100 * values.rolling(3, min_periods=1).mean() for values in files], axis=0)
    assert curve["mean"].tolist() == pytest.approx(wanted)
    (section,) = sections(folder, smoothing=3)
    titles = {
        one.stem.name: one.figure().legends[0].get_title().get_text()
        for one in section.drawings
        if one.stem.name.startswith(("conv", "by_"))
    }
    assert "moving average of 3 rounds" in " ".join(titles["convergence_alpha_0_1"].split())
    assert "moving" not in titles["by_setting"], "headline metrics are not smoothed"


# ------------------------------------------------------------------------------------------------------------- figures
def test_formats_and_width_of_figures_and_a_page_without_png_files(tmp_path):
    for seed in range(2):
        write_run(tmp_path / str(seed), seed=seed)
    assert main([str(tmp_path), "--formats", "svg", "--width", "5"]) == 0
    report = tmp_path / "report"
    assert {path.suffix for path in report.iterdir()} == {".svg", ".csv", ".tex", ".md", ".html", ".txt"}
    assert 'width="360pt"' in (report / "convergence.svg").read_text(), "5 inches"
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list(report.glob("*.svg"))) and 'href="convergence.svg"' in page
    assert "png" not in (report / "written.txt").read_text()


def test_panels_are_one_figure_of_both_columns_with_one_legend(folder):
    (section,) = sections(folder, panels="settings", formats="png")
    named = {one.stem.name: one for one in section.drawings}
    assert "convergence_alpha_0_1" not in named
    for name in ("convergence_panels", "convergence_by_bytes_panels", "convergence_by_time_panels"):
        figure = named[name].figure()
        assert figure.get_size_inches()[0] == pytest.approx(7.1) and len(figure.axes) == 6 and len(figure.legends) == 1
        assert [axes.get_title() for axes in figure.axes[:3]] == ["alpha 0.1", "alpha 1.0", "alpha 10.0"]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["FedAvg", "FedGen", "FedProx"]
    (section,) = sections(folder, panels="settings", width=9.0)
    assert {one.stem.name: one for one in section.drawings}["convergence_panels"].figure().get_size_inches()[0] == pytest.approx(9)


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@x", "two\nlines"])
def test_a_label_is_no_formula_of_a_spreadsheet_and_has_one_line(text):
    with pytest.raises(ConfigError, match="^labels must be texts of one line"):
        options_from({"labels": {"fedgen": text}})
