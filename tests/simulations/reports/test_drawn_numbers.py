"""The figures of a report, read back: every number drawn is computed again from the files of the runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from simulations.experiments import published_table
from simulations.experiments.definition import Experiment
from simulations.reports.builder import build_sections
from simulations.reports.figures import style
from simulations.reports.figures.forest_plot import forest
from simulations.reports.options import options_from
from simulations.run_folder.reader import find_run_folders, read_run
from tests.simulations.reports.folders import COUNTS, NUM_CLASSES, NUM_CLIENTS, NUM_ROUNDS, half_width, write_whole_run

SEEDS, STRATEGIES, ALPHAS, TARGET = range(3), {"fedavg": "FedAvg", "fedgen": "FedGen"}, (0.1, 1.0), 0.7
LABELS = list(STRATEGIES.values())
LAST = slice(-10, None)
"""The rounds of which a headline metric is the mean."""

COLUMNS = ("global_test_accuracy", "local_test_accuracy")

Rows = Callable[..., list[pd.DataFrame]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two strategies on two settings with three seeds. FedGen's server has losses and distills."""
    path = tmp_path_factory.mktemp("drawn")
    for alpha in ALPHAS:
        for strategy in STRATEGIES:
            for seed in SEEDS:
                run = write_whole_run(
                    path / f"{strategy}-{alpha}-{seed}", strategy, seed, 0.05 * alpha * (strategy == "fedgen"), alpha=alpha
                )
                if strategy == "fedgen":
                    rng, metrics = np.random.default_rng(seed), pd.read_csv(run / "metrics.csv")
                    names = ("train_generated_loss", "generator_loss", "global_test_accuracy_before_distillation")
                    metrics.assign(**{name: rng.uniform(0, 1, NUM_ROUNDS) for name in names}).to_csv(run / "metrics.csv", index=False)
    return path


@pytest.fixture(scope="module")
def drawn(folder, tmp_path_factory) -> dict[str, Figure]:
    """All figures of the report, by the name of their file, as they were when they were written."""
    sections, _, missing = build_sections(find_run_folders([folder]), tmp_path_factory.mktemp("figures"), options_from({"target": TARGET}))
    assert not missing
    chosen = [one for one in sections[0].drawings if not one.stem.name.endswith("alpha_1_0")]
    with kept() as figures:
        for one in chosen:
            assert one.write() == one.paths and all(path.exists() for path in one.paths)
    return figures


def figure_of(folder: Path, name: str, **options) -> Figure:
    """One figure of a report with these options, not written."""
    sections, _, _ = build_sections(find_run_folders([folder]), Path("nowhere"), options_from(options))
    return next(one for one in sections[0].drawings if one.stem.name == name).figure()


@contextmanager
def kept() -> Iterator[dict[str, Figure]]:
    """Every figure that is written is kept, by the name of its file."""
    figures: dict[str, Figure] = {}

    class Canvas(FigureCanvasPdf):
        def print_pdf(self, filename, **given):
            figures[Path(filename).stem] = self.figure
            super().print_pdf(filename, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "FigureCanvasPdf", Canvas)
        yield figures


@pytest.fixture
def rows(folder) -> Rows:
    """The files of a strategy on a setting, by seed."""
    return lambda strategy, name="metrics.csv", alpha=0.1: [pd.read_csv(folder / f"{strategy}-{alpha}-{seed}" / name) for seed in SEEDS]


def lines(axes: Axes) -> Iterator[tuple[list[float], list[float]]]:
    for line in axes.lines:
        yield np.asarray(line.get_xdata(), float).tolist(), np.asarray(line.get_ydata(), float).tolist()


def band(axes: Axes, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the ``number``-th band, by its points from left to right."""
    vertices = [one for one in axes.collections if isinstance(one, PolyCollection)][number].get_paths()[0].vertices
    ends = pd.DataFrame(vertices, columns=["x", "y"]).groupby("x")["y"]
    return ends.min().to_numpy(), ends.max().to_numpy()


def percent(frames: list[pd.DataFrame], column: str) -> np.ndarray:  # [n, rounds]
    return 100 * np.array([frame[column] for frame in frames])


def check_curves(axes: Axes, column: str, rows: Rows, alpha: float) -> None:
    """The panel has the means over seeds by round, and their intervals as bands."""
    assert len(axes.lines) == len(STRATEGIES)
    for number, (strategy, (x, y)) in enumerate(zip(STRATEGIES, lines(axes), strict=True)):
        values = percent(rows(strategy, alpha=alpha), column)
        assert x == list(range(1, NUM_ROUNDS + 1)) and y == pytest.approx(values.mean(axis=0))
        halves = np.array([half_width(each) for each in values.T])
        low, high = band(axes, number)
        assert low == pytest.approx(np.clip(values.mean(axis=0) - halves, 0, 100))
        assert high == pytest.approx(np.clip(values.mean(axis=0) + halves, 0, 100))


def test_curves_by_round_and_their_bands(drawn, rows):
    figure = drawn["convergence_alpha_0_1"]
    for axes, column in zip(figure.axes, COLUMNS, strict=True):
        check_curves(axes, column, rows, 0.1)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == LABELS and "n = 3 seeds" in legend.get_title().get_text()
    colors = [line.get_color() for line in legend.get_lines()]
    assert [line.get_color() for line in figure.axes[0].lines] == colors and len(set(colors)) == 2


def test_panels_hold_the_curves_of_their_setting(folder, rows):
    figure = figure_of(folder, "convergence_panels", panels="settings")
    for place, axes in enumerate(figure.axes):
        check_curves(axes, COLUMNS[place // 2], rows, ALPHAS[place % 2])


@pytest.mark.parametrize("smoothing", [1, 4])
def test_bands_of_standard_deviations_and_of_smoothed_curves(smoothing, folder, rows):
    axes = figure_of(folder, "convergence_alpha_0_1", metric="global_test_accuracy", spread="std", smoothing=smoothing).axes[0]
    values = percent(rows("fedavg"), "global_test_accuracy")
    values = pd.DataFrame(values.T).rolling(smoothing, min_periods=1).mean().to_numpy().T
    low, high = band(axes, 0)
    mean, half = values.mean(axis=0), values.std(axis=0, ddof=1)
    assert next(lines(axes))[1] == pytest.approx(mean)
    assert low == pytest.approx(np.clip(mean - half, 0, 100)) and high == pytest.approx(np.clip(mean + half, 0, 100))


def test_the_band_of_two_seeds_is_their_range(folder, tmp_path):
    """Student's interval of two seeds is 12.7 times as wide as they are apart, and would fill every figure."""
    for seed in SEEDS[:2]:
        (tmp_path / f"run{seed}").symlink_to(folder / f"fedavg-0.1-{seed}")
    runs = [tmp_path / f"run{seed}" for seed in SEEDS[:2]]
    sections, _, _ = build_sections(find_run_folders(runs), tmp_path / "report", options_from({}))
    figure = next(one for one in sections[0].drawings if one.stem.name == "convergence").figure()
    for axes, column in zip(figure.axes, COLUMNS, strict=True):
        values = percent([pd.read_csv(run / "metrics.csv") for run in runs], column)
        low, high = band(axes, 0)
        assert low == pytest.approx(values.min(axis=0)) and high == pytest.approx(values.max(axis=0))
        assert axes.get_ylim()[0] <= low.min() and high.max() <= axes.get_ylim()[1], "the whole band is seen"
    assert figure.legends[0].get_title().get_text() == "Mean and range of n = 2 seeds"


@pytest.mark.parametrize(("kind", "number"), [("lines", 4), ("none", 0)])
def test_bands_as_lines_and_no_bands(kind, number, folder, rows):
    axes = figure_of(folder, "convergence_alpha_0_1", band=kind).axes[0]
    assert not [one for one in axes.collections if isinstance(one, PolyCollection)]
    ends = [line.get_ydata() for line in axes.lines if line.get_label() == "_band"]
    assert len(ends) == number
    if number:
        values = percent(rows("fedavg"), "global_test_accuracy")
        halves = np.array([half_width(each) for each in values.T])
        assert ends[0] == pytest.approx(np.clip(values.mean(axis=0) - halves, 0, 100))


def test_curves_by_bytes_and_by_time(drawn, rows):
    for axes, column in zip(drawn["convergence_by_bytes_alpha_0_1"].axes, COLUMNS, strict=True):
        for strategy, (x, y) in zip(STRATEGIES, lines(axes), strict=True):
            files = rows(strategy)
            assert x == pytest.approx(1e-6 * (files[0]["uplink_bytes"] + files[0]["downlink_bytes"]).cumsum())
            assert y == pytest.approx(percent(files, column).mean(axis=0))
    for axes, column in zip(drawn["convergence_by_time_alpha_0_1"].axes, COLUMNS, strict=True):
        for strategy, (x, y) in zip(STRATEGIES, lines(axes), strict=True):
            seeds = [np.interp(x, file["simulated_seconds"], 100 * file[column]) for file in rows(strategy)]
            assert len(x) > 3 and y == pytest.approx(np.mean(seeds, axis=0))


def test_results_by_seed(drawn, rows):
    figure = drawn["spread_alpha_0_1"]
    for axes, column in zip(figure.axes, COLUMNS, strict=True):
        found = list(lines(axes))
        means = {strategy: percent(rows(strategy), column)[:, LAST].mean(axis=1) for strategy in STRATEGIES}
        for seed in SEEDS:
            assert found[seed][0] == pytest.approx([means[strategy][seed] for strategy in STRATEGIES]), "runs of a seed are joined"
        for place, strategy in enumerate(STRATEGIES):
            (dots, _), (ends, _), (middle, _) = found[len(SEEDS) + 3 * place : len(SEEDS) + 3 * place + 3]
            mean, half = means[strategy].mean(), half_width(means[strategy])
            assert dots == pytest.approx(means[strategy]) and middle == pytest.approx([mean])
            assert ends == pytest.approx([mean - half, mean + half])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == LABELS


def test_the_cost_to_the_target(drawn, rows):
    figure, reached_once, missed_once = drawn["to_target_alpha_0_1"], 0, 0
    for axes, way in zip(figure.axes, ("rounds", "MB", "seconds"), strict=True):
        found = list(lines(axes))
        for place, strategy in enumerate(STRATEGIES):
            reached, missed = [], []
            for file in rows(strategy):
                got = np.flatnonzero(file["global_test_accuracy"] >= TARGET)
                last = got[0] if len(got) else len(file) - 1
                sent = 1e-6 * (file["uplink_bytes"] + file["downlink_bytes"]).cumsum()
                spent = {"rounds": last + 1, "MB": sent[last], "seconds": file["simulated_seconds"][last]}[way]
                (reached if len(got) else missed).append(float(spent))
            assert found[2 * place][0] == pytest.approx(reached) and found[2 * place + 1][0] == pytest.approx(missed)
            assert all(round(y) == place for y in (*found[2 * place][1], *found[2 * place + 1][1]))
            reached_once, missed_once = reached_once + len(reached), missed_once + len(missed)
        assert axes.get_xlim()[0] == 0 and axes.get_xlim()[1] > max(max(x) for x, _ in found if x), "no marker is at the end of the axis"
        assert not any(line.get_clip_on() for line in axes.lines), "a marker at 0 is whole"
    assert reached_once and missed_once and "70 %" in figure.legends[0].get_texts()[0].get_text()


def test_clients_and_their_bottom_tenth(drawn, rows):
    axes = drawn["clients_alpha_0_1"].axes[0]
    for place, strategy in enumerate(STRATEGIES):
        last = [file[file["round"] == NUM_ROUNDS]["local_test_accuracy"].dropna().to_numpy() for file in rows(strategy, "clients.csv")]
        assert all(len(one) == NUM_CLIENTS - 1 for one in last), "one client has no test examples"
        tenth = np.mean([100 * one.min() for one in last])  # of 11 clients: the lowest
        (diamond,) = [x for line, (x, y) in zip(axes.lines, lines(axes), strict=True) if line.get_marker() == "D" and y == [place]]
        assert diamond == pytest.approx([tenth])
        values = 100 * np.concatenate(last)
        mine = {round(v, 6) for x, y in lines(axes) if len(y) and abs(np.mean(y) - place) < 0.3 for v in x}
        assert {round(each, 6) for each in (values.min(), np.median(values), values.max())} <= mine
        box = axes.patches[place].get_path().vertices[:, 0]
        assert (box.min(), box.max()) == pytest.approx(tuple(np.quantile(values, (0.25, 0.75))))


def test_classes(drawn, rows):
    axes = drawn["classes_alpha_0_1"].axes[0]
    names = [f"global_test_accuracy_class_{label:02d}" for label in range(NUM_CLASSES)]
    wanted = np.array([np.mean([100 * file[names][LAST].mean() for file in rows(strategy)], axis=0) for strategy in STRATEGIES])
    np.testing.assert_allclose(axes.images[0].get_array(), wanted)
    written = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert written == {(y, x): f"{value:.0f}" for (y, x), value in np.ndenumerate(wanted)}


def test_phases(drawn, rows):
    axes, names = drawn["phases_alpha_0_1"].axes[0], ("local_training_seconds", "server_seconds", "evaluation_seconds")
    bars = {(round(bar.get_y() + bar.get_height() / 2), number): bar for number, each in enumerate(axes.containers) for bar in each}
    for place, strategy in enumerate(STRATEGIES):
        seconds = [np.mean([file[name].median() for file in rows(strategy)]) for name in names]
        assert [bars[place, number].get_width() for number in range(3)] == pytest.approx(seconds)
        assert [bars[place, number].get_x() for number in range(3)] == pytest.approx([0, seconds[0], seconds[0] + seconds[1]])


def test_label_distributions(drawn):
    axes = drawn["label_distribution_alpha_0_1"].axes[0]
    circles = axes.collections[0]
    at = {tuple(place): size for place, size in zip(circles.get_offsets().astype(int).tolist(), circles.get_sizes().tolist(), strict=True)}
    assert at.keys() == {(client, label) for client, label in zip(*np.nonzero(COUNTS), strict=True)}
    areas = {place: size / max(at.values()) for place, size in at.items()}
    assert areas == pytest.approx({(k, c): COUNTS[k, c] / COUNTS.max() for k, c in at}), "areas are proportional to counts"


def test_accuracy_by_setting(drawn, rows):
    for axes, column in zip(drawn["by_setting"].axes, COLUMNS, strict=True):
        curves, bars = [one for one in lines(axes) if len(set(one[0])) > 1], [one for one in lines(axes) if len(set(one[0])) == 1]
        for place, strategy in enumerate(STRATEGIES):
            for number, alpha in enumerate(ALPHAS):
                values = percent(rows(strategy, alpha=alpha), column)[:, LAST].mean(axis=1)
                assert curves[place][1][number] == pytest.approx(values.mean())
                mean, half = values.mean(), half_width(values)
                assert bars[2 * place + number][1] == pytest.approx([max(0, mean - half), min(100, mean + half)])
        low, high = axes.get_ylim()
        assert all(low <= end <= high for _, ends in bars for end in ends), "intervals are whole"
        assert [text.get_text() for text in axes.figure.axes[-1].get_xticklabels()] == ["alpha 0.1", "alpha 1.0"]


def test_losses_of_the_server_and_accuracy_before_and_after_distillation(drawn, rows):
    for axes, column in zip(drawn["server_losses_alpha_0_1"].axes, ("train_generated_loss", "generator_loss"), strict=True):
        ((x, y),) = lines(axes)
        values = np.array([file[column] for file in rows("fedgen")])
        assert x == list(range(1, NUM_ROUNDS + 1)) and y == pytest.approx(values.mean(axis=0))
        low, high = band(axes, 0)
        halves = np.array([half_width(each) for each in values.T])
        assert low == pytest.approx(values.mean(axis=0) - halves) and high == pytest.approx(values.mean(axis=0) + halves)
    (axes,) = drawn["server_accuracy_alpha_0_1"].axes
    names = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert names == ["mean of models", "after distillation"], "no ensemble was tested"
    found = [y for _, y in lines(axes)]
    for column in ("global_test_accuracy_before_distillation", "global_test_accuracy"):
        assert any(y == pytest.approx(percent(rows("fedgen"), column).mean(axis=0)) for y in found), column


def test_differences_of_an_ablation(folder, rows, tmp_path):
    """Each strategy's mean difference from the baseline and its interval; a filled marker where the interval excludes 0."""
    metric = "global_test_accuracy_last10"
    experiment = Experiment(title="t", seeds=list(SEEDS), settings={"r": []}, strategies={"a": [], "b": []}, baseline="a", metrics=[metric])
    found = {("r", name): {seed: read_run(folder / f"{strategy}-1.0-{seed}") for seed in SEEDS} for name, strategy in zip("ab", STRATEGIES)}
    axes = forest(published_table.compare(experiment, found), metric, "a", tmp_path / "differences").axes[0]
    values = [percent(rows(strategy, alpha=1.0), "global_test_accuracy")[:, LAST].mean(axis=1) for strategy in STRATEGIES]
    gains = values[1] - values[0]
    (container,) = axes.containers
    (point, _, (bar,)) = container.lines
    assert point.get_xdata().tolist() == pytest.approx([gains.mean()]) and [text.get_text() for text in axes.get_yticklabels()] == ["b"]
    ends = bar.get_segments()[0][:, 0]
    assert ends.tolist() == pytest.approx([gains.mean() - half_width(gains), gains.mean() + half_width(gains)])
    assert (point.get_markerfacecolor() != "white") == (abs(gains.mean()) > half_width(gains))
