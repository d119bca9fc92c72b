"""The look of figures: colors, axes, legends, and figures in parts where there are many strategies."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from fedkd.errors import ConfigError
from simulations.report import main
from simulations.reports.builder import build_sections, collect
from simulations.reports.figures import comparison
from simulations.reports.figures.convergence import convergence
from simulations.reports.figures.drawing import parts
from simulations.reports.figures.label_distribution import label_distribution, sorted_clients
from simulations.reports.figures.legend import legend, legend_height, row_label, spread_text, wrapped
from simulations.reports.figures.style import COLORS, SLOTS, FigureStyle, assign_slots, canvas, limits
from simulations.reports.options import options_from
from simulations.run_folder.metric_names import STRATEGY_NAMES
from simulations.run_folder.reader import find_run_folders
from tests.simulations.reports.folders import COUNTS, write_run, write_whole_run


def drawings(folder: Path, output: Path = Path("nowhere"), **options):
    sections, _, _ = build_sections(find_run_folders([folder]), output, options_from(options))
    return {one.stem.name: one for one in sections[0].drawings}


# ------------------------------------------------------------------------------------------------------------ formulas
def test_figures_draw_the_formulas_of_labels_and_take_other_dollar_signs_as_text(tmp_path):
    for alpha in (0.1, 1.0):
        write_whole_run(tmp_path / f"runs/{alpha}", "fedavg", 0, alpha=alpha)
    drawn = {}
    for label in (r"$\alpha = 0.1$", "0.1 $"):
        figure = drawings(tmp_path / "runs", panels="settings", labels={"alpha 0.1": label})["convergence_panels"].figure()
        texts = [text for axes in figure.axes for text in (axes.title, axes._left_title) if "0.1" in text.get_text()]
        assert texts, "the label is the title of a panel"
        drawn[label] = {text.get_parse_math() for text in texts}
    assert drawn == {r"$\alpha = 0.1$": {True}, "0.1 $": {False}}


def test_a_formula_that_cannot_be_drawn_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"labels must hold formulas that Matplotlib draws"):
        options_from({"labels": {"fedavg": r"$\frac{1$"}})


# --------------------------------------------------------------------------------------------------------------- looks
def test_every_shipped_strategy_has_a_fixed_look_and_no_two_have_the_same():
    assert set(SLOTS) == set(STRATEGY_NAMES.values())
    looks = [tuple(FigureStyle().line_of(slot)[key] for key in ("color", "linestyle", "marker")) for slot in SLOTS.values()]
    assert len(set(map(str, looks))) == len(looks)
    same_color = [[look[1] for look in looks if look[0] == color] for color in COLORS]
    assert all(len(set(map(str, dashes))) == len(dashes) for dashes in same_color), "strategies of one color differ in dashes"


def test_a_strategy_keeps_its_look_whichever_others_are_there():
    common = {name: name for name in ("FedAvg", "FedGen", "FedProx")}
    assert assign_slots(common) == {name: SLOTS[name] for name in common}
    assert assign_slots({"FedGen": "FedGen"}) == {"FedGen": SLOTS["FedGen"]}
    renamed = assign_slots({"ours": "FedGen", "FedAvg": "FedAvg"})
    assert renamed == {"ours": SLOTS["FedGen"], "FedAvg": SLOTS["FedAvg"]}, "whatever the user calls it"


def test_up_to_seven_lines_have_seven_colors():
    names = {"FedAvg": "FedAvg", "FedNTD": "FedNTD", **{f"mine {number}": "mine" for number in range(5)}}
    slots = assign_slots(names)
    assert len({slot % len(COLORS) for slot in slots.values()}) == 7
    many = assign_slots({f"row {number}": "mine" for number in range(30)})
    assert len(set(many.values())) == 30


def test_a_strategy_looks_the_same_in_every_figure_and_on_every_setting(tmp_path):
    """One that is missing on a setting changes nothing for the others."""
    for name, alphas in (("fedavg", (0.1, 1.0)), ("fedgen", (0.1,)), ("fedprox", (0.1, 1.0))):
        for alpha in alphas:
            write_whole_run(tmp_path / f"{name}{alpha}", name, 0, alpha=alpha)
    colors: dict[str, set[str]] = {"FedAvg": set(), "FedProx": set()}
    names = ["FedAvg", "FedGen", "FedProx"]
    wanted = ("convergence_alpha", "by_setting", "to_target", "clients", "spread")
    for name, drawing in drawings(tmp_path, target=0.5).items():
        if not name.startswith(wanted):
            continue
        figure = drawing.figure()
        for shown_legend in figure.legends:
            for text, line in zip(shown_legend.get_texts(), shown_legend.get_lines()):
                colors.setdefault(text.get_text(), set()).add(str(line.get_color()))
        if name.startswith(("to_target", "clients", "spread")):
            shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
            assert shown == (names if "0_1" in name else ["FedAvg", "FedProx"])
            for row, label in enumerate(shown):
                found = [
                    line.get_color()
                    for line in figure.axes[0].lines
                    if len(line.get_ydata()) and np.allclose(line.get_ydata(), row, atol=0.3)
                ]
                colors.setdefault(label, set()).update(str(color) for color in found)
    assert colors["FedAvg"] == {COLORS[SLOTS["FedAvg"]]} and colors["FedProx"] == {COLORS[SLOTS["FedProx"]]}
    assert colors["FedGen"] == {COLORS[SLOTS["FedGen"]]}


# ---------------------------------------------------------------------------------------------------------------- axes
def test_of_long_curves_the_steep_beginning_alone_may_lie_off_the_axis():
    axes = Figure().subplots()
    axes.plot(np.concatenate([[10.0, 40.0, 70.0, 99.0], np.full(36, 90.0)]))  # up, a peak, and down
    limits(axes)
    low, high = axes.get_ylim()
    assert 85 < low < 90 and high > 99, "a peak is seen whenever it was"
    axes.plot([50.0, 80.0])
    limits(axes)
    assert axes.get_ylim()[0] < 50, "a short curve is seen whole"


def test_no_marker_of_a_curve_is_cut_by_the_axis():
    steep = np.concatenate([np.linspace(0.0, 80.0, 6), np.full(36, 85.0)])
    columns = {"x": np.arange(42.0), "mean": steep, "low": steep, "high": steep, "min": steep, "max": steep, "n": np.full(42, 1)}
    figure = convergence({"FedAvg": {"global_test_accuracy": pd.DataFrame(columns)}}, None, axis_labels={"global_test_accuracy": "global"})
    axes = figure.axes[0]
    (line,) = axes.lines
    low, marked = axes.get_ylim()[0], [steep[place] for place in line.get_markevery()]
    assert steep.min() < low < min(marked) - 1 and len(marked) > 4, "the curve begins below the axis, its markers do not"


def test_bands_make_the_axis_at_most_twice_as_long():
    axes = Figure().subplots()
    axes.plot([40.0, 60.0])
    limits(axes, [(35.0, 66.0)])
    assert axes.get_ylim() == pytest.approx((35, 66))
    limits(axes, [(0.0, 100.0)])
    assert axes.get_ylim() == pytest.approx((30, 70))
    limits(axes, [(0.0, 100.0)], whole=True)
    assert axes.get_ylim() == pytest.approx((0, 100))


@pytest.mark.parametrize(("sizes", "options", "text"), [
    ([3, 3], {}, "Mean and 95 % interval (Student's t), n = 3 seeds"),
    ([3, 3], {"kind": "bootstrap"}, "Mean and 95 % interval (bootstrap), n = 3 seeds"),
    ([3, 3], {"kind": "std"}, "Mean ± standard deviation, n = 3 seeds"),
    ([3, 3], {"band": "none"}, "Mean over seeds (n = 3)"),
    ([2, 2], {}, "Mean and range of n = 2 seeds"),
    ([2, 2], {"kind": "std"}, "Mean ± standard deviation, n = 2 seeds"),
    ([1, 1], {}, "One seed, no interval"),
    ([1, 2, 5], {}, "Mean and 95 % interval (Student's t) over seeds, none at n = 1, range at n = 2"),
    ([3], {"smoothing": 5}, "Mean and 95 % interval (Student's t), n = 3 seeds; moving average of 5 rounds"),
])  # fmt: skip
def test_a_legend_says_what_bands_are(sizes, options, text):
    assert spread_text(sizes, FigureStyle(**options)) == text


def test_the_spread_of_two_seeds_is_their_range_unless_the_standard_deviation_is_chosen():
    assert (comparison.spread_of([1.0, 3.0], "t").low, comparison.spread_of([1.0, 3.0], "t").high) == (1.0, 3.0)
    assert comparison.spread_of([1.0, 3.0], "std").high == pytest.approx(2 + 2**0.5)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(("width", "font_size"), [(3.4, 7.0), (3.4, 9.0), (2.6, 7.0), (7.1, 8.0), (10.0, 18.0)])
def test_figures_have_room_for_their_texts(tmp_path, width, font_size):
    """No layout fails at the narrowest width that a font size allows."""
    for alpha in (0.1, 1.0):
        for strategy in ("fedavg", "fedgen", "a long name, beta 1.0"):
            write_whole_run(tmp_path / f"{strategy}{alpha}", strategy, 0, alpha=alpha)
    for name, one in drawings(tmp_path, width=width, font_size=font_size, target=0.7, panels="settings").items():
        if not name.endswith("alpha_1_0"):
            figure = one.figure()
            figure.draw_without_rendering()
            assert figure.get_size_inches()[0] == pytest.approx(width), name


# --------------------------------------------------------------------------------------------------------------- parts
def test_many_strategies_are_drawn_in_parts_with_the_baseline_in_each(tmp_path):
    for name in ["fedavg", *"abcdefghi"]:
        for alpha in (0.1, 1.0):
            write_run(tmp_path / f"{name}{alpha}", name, alpha=alpha)
    groups, _ = collect(find_run_folders([tmp_path]))
    found = parts(groups, "fedavg", 8)
    assert [suffix for suffix, _ in found] == ["_1", "_2"] and all(part[0].line == "FedAvg" for _, part in found)
    assert sorted({one.line for _, part in found for one in part}) == sorted(["FedAvg", *"abcdefghi"])
    assert [len({one.line for one in part}) for _, part in found] == [6, 5]
    assert parts(groups, "fedavg", 10)[0][0] == ""
    looks = drawings(tmp_path)["convergence_alpha_0_1_1"].style.slots
    assert len(set(looks.values())) == 10, "each has a look of its own, in both parts"


def test_all_figures_of_whole_runs_are_the_same_in_several_processes_and_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr("simulations.reports.figures.drawing.FEW", 6)
    for strategy in ("fedavg", "fedgen"):
        write_whole_run(tmp_path / "runs" / strategy, strategy, 0)
    assert main([str(tmp_path / "runs"), "--target", "0.9", "--output", str(tmp_path / "a")]) == 0
    names = {path.stem for path in (tmp_path / "a").glob("*.png")}
    by = {"convergence", "convergence_by_bytes", "convergence_by_time"}
    assert names == by | {"spread", "to_target", "clients", "classes", "phases", "label_distribution"}
    (tmp_path / "b").mkdir()
    for one in drawings(tmp_path / "runs", tmp_path / "b", target=0.9).values():
        assert one.write() == one.paths
        for path in one.paths:
            assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes() and path.stat().st_size > 3000


# -------------------------------------------------------------------------------------------------- label distribution
@pytest.mark.parametrize("counts", [np.zeros((2, 2), int), np.array([1, 2]), np.array([[1, -1]])])
def test_a_label_distribution_needs_counts(tmp_path, counts):
    with pytest.raises(ValueError, match="counts must be"):
        label_distribution(counts, tmp_path / "x")


def test_ten_thousand_clients_are_shades_in_a_small_file_that_hold_every_example(tmp_path):
    rng = np.random.default_rng(0)
    counts = np.stack([rng.multinomial(rng.integers(0, 20), rng.dirichlet([0.1] * 10)) for _ in range(10_000)])
    figure = label_distribution(counts, tmp_path / "many")
    axes = figure.axes[0]
    shades = np.asarray(axes.images[0].get_array())
    assert (tmp_path / "many.pdf").stat().st_size < 300_000 and "a column: mean of 40" in axes.get_xlabel()
    assert shades.shape == (10, 250) and (40 * shades).sum() == pytest.approx(counts.sum())
    order = sorted_clients(counts)
    assert sorted(order) == list(range(10_000)) and counts[order[:40]].mean(axis=0) == pytest.approx(shades[:, 0])
    main_class = counts[order].argmax(axis=1)[counts[order].sum(axis=1) > 0]
    assert (np.diff(main_class) >= 0).all() and not label_distribution(counts[:400], None).axes[0].images


def test_a_figure_can_be_drawn_without_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(label_distribution(COUNTS, None), Figure) and not list(tmp_path.iterdir())


def test_long_labels_of_a_legend_stand_in_several_lines_beside_their_lines():
    label = "resnet14 widths [16, 32, 64] > resnet8, no KD, steps_per_epoch 10, temperature 4"
    style = FigureStyle().with_labels([label, "short"])
    with canvas(3.0, None, style) as figure:
        figure.subplots().plot([1, 2])
        legend(figure, {label: 3, "short": 3}, style)
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 and box.x1 <= figure.bbox.width
    assert [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()] == [label, "short"]
    assert legend_height({label: 3, "short": 3}, style) > legend_height({"short": 3, "other": 3}, style)


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("FedAvg", ["FedAvg"]),
        ("FedDistill+ (n = 3)", ["FedDistill+ (n = 3)"]),
        ("FedGen (ours, long), 1 of 3 diverged (n = 2)", ["FedGen (ours, long),", "1 of 3 diverged (n = 2)"]),
        ("one two three four five six seven (n = 2 to 3)", ["one two three four five six", "seven (n = 2 to 3)"]),
    ],
)
def test_a_label_of_a_row_is_broken_between_words_and_never_within_a_number_of_seeds(label, lines):
    assert row_label(label).splitlines() == lines
    assert "(n = 2 to 3)" in wrapped(f"{'x' * 40} (n = 2 to 3)", FigureStyle())


def test_the_figure_of_seeds_says_what_its_bars_are():
    table = pd.DataFrame({"a": [0.5, 0.6, 0.7]})
    figure = comparison.by_seed({"FedAvg": table, "FedGen": table}, {"a": "global test"}, None, FigureStyle(band="none"))
    assert figure.legends[0].get_title().get_text() == "Mean and 95 % interval (Student's t), n = 3 seeds"
