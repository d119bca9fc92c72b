"""What figures show is what the run folders hold: lines, bands, bars, boxes and circles are read back from the figures that are written."""

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
from simulations.reports.builder import collect
from simulations.reports.figures import generator, selection, style
from simulations.reports.figures.forest_plot import forest
from simulations.reports.figures.style import limits
from simulations.reports.groups import gather
from simulations.run_folder.reader import SETTING, find_run_folders, read_run
from tests.simulations.reports.test_builder import COUNTS, half_width
from tests.simulations.reports.test_tables import CLASSES, CLIENTS, ROUNDS, whole

SEEDS, STRATEGIES, ALPHAS, TARGET = range(3), ("fedavg", "fedgen"), (0.1, 1.0), 0.7
LAST = slice(-10, None)
"""The rounds of which a headline is the mean."""


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """Two strategies on two settings with three seeds; what FedGen's server did, too."""
    folder = tmp_path_factory.mktemp("drawn")
    for alpha in ALPHAS:
        for strategy in STRATEGIES:
            for seed in SEEDS:
                path = whole(folder / f"{strategy}-{alpha}-{seed}", strategy, seed, 0.05 * alpha * (strategy == "fedgen"), alpha=alpha)
                if strategy == "fedgen":
                    rng, metrics = np.random.default_rng(seed), pd.read_csv(path / "metrics.csv")
                    more = {
                        name: rng.uniform(0, 1, ROUNDS)
                        for name in ("train_generated_loss", "generator_loss", "global_test_accuracy_before_distillation")
                    }
                    metrics.assign(**more).to_csv(path / "metrics.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def drawn(house, tmp_path_factory) -> dict[str, Figure]:
    """All figures of the report, by the name of their file, as they were when they were written."""
    output = tmp_path_factory.mktemp("figures")
    groups, _ = collect(find_run_folders([house]))
    planned, notes = selection.planned(groups, output, "fedavg", TARGET, "t")
    settings = gather(groups, lambda one: one.runs[0].part(SETTING))
    more, _, _ = generator.planned(settings, list(STRATEGIES), output, "t")
    assert not notes
    with kept() as figures:
        for one in [*planned, *more]:
            one.write()
    return figures


@contextmanager
def kept() -> Iterator[dict[str, Figure]]:
    """While it lasts, every figure that is written is kept, by the name of its file."""
    figures: dict[str, Figure] = {}

    class Canvas(FigureCanvasPdf):
        def print_pdf(self, filename, **given):
            figures[Path(filename).stem] = self.figure
            super().print_pdf(filename, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "FigureCanvasPdf", Canvas)
        yield figures


@pytest.fixture
def rows(house) -> Callable[[str, str], list[pd.DataFrame]]:
    """The files of a strategy at alpha 0.1, by seed."""
    return lambda strategy, name="metrics.csv": [pd.read_csv(house / f"{strategy}-0.1-{seed}" / name) for seed in SEEDS]


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


def test_of_long_curves_the_steep_beginning_alone_may_lie_off_the_axis():
    axes = Figure().subplots()
    axes.plot(np.concatenate([[10.0, 40.0, 70.0, 99.0], np.full(36, 90.0)]))  # up, a peak, and down
    limits(axes)
    low, high = axes.get_ylim()
    assert 85 < low < 90 and high > 99, "a peak is seen whenever it was"
    axes.plot([50.0, 80.0])
    limits(axes)
    assert axes.get_ylim()[0] < 50, "a short curve is seen whole"


COLUMNS = ("accuracy", "local_test_accuracy")


def test_curves_by_round_and_their_bands(drawn, rows):
    figure = drawn["convergence_alpha-0.1"]
    for axes, column in zip(figure.axes, COLUMNS, strict=True):
        assert len(axes.lines) == len(STRATEGIES)
        for number, (strategy, (x, y)) in enumerate(zip(STRATEGIES, lines(axes), strict=True)):
            values = percent(rows(strategy), column)
            assert x == list(range(1, ROUNDS + 1)) and y == pytest.approx(values.mean(axis=0))
            halves = np.array([half_width(each) for each in values.T])
            low, high = band(axes, number)
            assert low == pytest.approx(np.clip(values.mean(axis=0) - halves, 0, 100))
            assert high == pytest.approx(np.clip(values.mean(axis=0) + halves, 0, 100))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(STRATEGIES) and "(n = 3)" in legend.get_title().get_text()
    colours = [line.get_color() for line in legend.get_lines()]
    assert [line.get_color() for line in figure.axes[0].lines] == colours and len(set(colours)) == 2


def test_curves_by_bytes_and_by_time(drawn, rows):
    for axes, column in zip(drawn["convergence_by_bytes_alpha-0.1"].axes, COLUMNS, strict=True):
        for strategy, (x, y) in zip(STRATEGIES, lines(axes), strict=True):
            files = rows(strategy)
            assert x == pytest.approx(1e-6 * (files[0]["uplink_bytes"] + files[0]["downlink_bytes"]).cumsum())
            assert y == pytest.approx(percent(files, column).mean(axis=0))
    for axes, column in zip(drawn["convergence_by_time_alpha-0.1"].axes, COLUMNS, strict=True):
        for strategy, (x, y) in zip(STRATEGIES, lines(axes), strict=True):
            seeds = [np.interp(x, file["simulated_seconds"], 100 * file[column]) for file in rows(strategy)]
            assert len(x) > 3 and y == pytest.approx(np.mean(seeds, axis=0))


def test_results_by_seed(drawn, rows):
    figure = drawn["spread_alpha-0.1"]
    for axes, column in zip(figure.axes, COLUMNS, strict=True):
        found = list(lines(axes))
        means = {strategy: percent(rows(strategy), column)[:, LAST].mean(axis=1) for strategy in STRATEGIES}
        for seed in SEEDS:
            assert found[seed][0] == pytest.approx([means[strategy][seed] for strategy in STRATEGIES]), "a seed's runs are joined"
        for place, strategy in enumerate(STRATEGIES):
            (dots, _), (ends, _), (middle, _) = found[len(SEEDS) + 3 * place : len(SEEDS) + 3 * place + 3]
            mean, half = means[strategy].mean(), half_width(means[strategy])
            assert (
                dots == pytest.approx(means[strategy])
                and middle == pytest.approx([mean])
                and ends == pytest.approx([mean - half, mean + half])
            )
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(STRATEGIES)


def test_the_way_to_the_target(drawn, rows):
    figure, reached_once, missed_once = drawn["to_target_alpha-0.1"], 0, 0
    for axes, way in zip(figure.axes, ("rounds", "MB", "seconds"), strict=True):
        found = list(lines(axes))
        for place, strategy in enumerate(STRATEGIES):
            reached, missed = [], []
            for file in rows(strategy):
                got = np.flatnonzero(file["accuracy"] >= TARGET)
                last = got[0] if len(got) else len(file) - 1
                sent = 1e-6 * (file["uplink_bytes"] + file["downlink_bytes"]).cumsum()
                spent = {"rounds": last + 1, "MB": sent[last], "seconds": file["simulated_seconds"][last]}[way]
                (reached if len(got) else missed).append(float(spent))
            assert found[2 * place] == (pytest.approx(reached), [place] * len(reached))
            assert found[2 * place + 1] == (pytest.approx(missed), [place] * len(missed))
            reached_once, missed_once = reached_once + len(reached), missed_once + len(missed)
    assert reached_once and missed_once and "70 %" in figure.legends[0].get_texts()[0].get_text()


def test_clients_and_their_worst_tenth(drawn, rows):
    axes = drawn["clients_alpha-0.1"].axes[0]
    found = list(lines(axes))
    by_seed = {}
    for strategy in STRATEGIES:
        last = [file[file["round"] == ROUNDS]["local_test_accuracy"].dropna().to_numpy() for file in rows(strategy, "clients.csv")]
        assert all(len(one) == CLIENTS - 1 for one in last), "one client has no test examples"
        by_seed[strategy] = [100 * one for one in last]
    tenths = [np.mean([one.min() for one in by_seed[strategy]]) for strategy in STRATEGIES]  # of 11 clients: the lowest
    assert found[-1] == (pytest.approx(tenths), [0, 1])
    for place, strategy in enumerate(STRATEGIES):
        values = np.concatenate(by_seed[strategy])
        mine = [x for x, y in found[:-1] if len(y) and abs(np.mean(y) - place) < 0.3]
        drawn_values = {round(x, 6) for each in mine for x in each}
        assert {round(each, 6) for each in (values.min(), np.median(values), values.max())} <= drawn_values
        box = axes.patches[place].get_path().vertices[:, 0]
        assert (box.min(), box.max()) == pytest.approx(tuple(np.quantile(values, (0.25, 0.75))))


def test_classes(drawn, rows):
    axes = drawn["classes_alpha-0.1"].axes[0]
    names = [f"global_test_accuracy_class_{label:02d}" for label in range(CLASSES)]
    wanted = np.array([np.mean([100 * file[names][LAST].mean() for file in rows(strategy)], axis=0) for strategy in STRATEGIES])
    np.testing.assert_allclose(axes.images[0].get_array(), wanted)
    written = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert written == {(y, x): f"{value:.0f}" for (y, x), value in np.ndenumerate(wanted)}


def test_phases(drawn, rows):
    axes, names = drawn["phases_alpha-0.1"].axes[0], ("local_training_seconds", "server_seconds", "evaluation_seconds")
    bars = {(round(bar.get_y() + bar.get_height() / 2), number): bar for number, each in enumerate(axes.containers) for bar in each}
    for place, strategy in enumerate(STRATEGIES):
        seconds = [np.mean([file[name].median() for file in rows(strategy)]) for name in names]
        assert [bars[place, number].get_width() for number in range(3)] == pytest.approx(seconds)
        assert [bars[place, number].get_x() for number in range(3)] == pytest.approx([0, seconds[0], seconds[0] + seconds[1]])


def test_label_distributions(drawn):
    axes = drawn["partition_alpha-0.1"].axes[0]
    circles = axes.collections[0]
    at = {tuple(place): size for place, size in zip(circles.get_offsets().astype(int).tolist(), circles.get_sizes().tolist(), strict=True)}
    assert at.keys() == {(client, label) for client, label in zip(*np.nonzero(COUNTS), strict=True)}
    assert {place: size / max(at.values()) for place, size in at.items()} == pytest.approx(
        {(k, c): COUNTS[k, c] / COUNTS.max() for k, c in at}
    ), "areas are in proportion to counts"


def test_accuracy_by_setting(drawn, house):
    for axes, column in zip(drawn["by_setting"].axes, COLUMNS, strict=True):
        curves, bars = [one for one in lines(axes) if len(set(one[0])) > 1], [one for one in lines(axes) if len(set(one[0])) == 1]
        for place, strategy in enumerate(STRATEGIES):
            for number, alpha in enumerate(ALPHAS):
                files = [pd.read_csv(house / f"{strategy}-{alpha}-{seed}" / "metrics.csv") for seed in SEEDS]
                values = percent(files, column)[:, LAST].mean(axis=1)
                assert curves[place][1][number] == pytest.approx(values.mean())
                mean, half = values.mean(), half_width(values)
                assert bars[2 * place + number][1] == pytest.approx([max(0, mean - half), min(100, mean + half)])
        assert [text.get_text() for text in axes.figure.axes[-1].get_xticklabels()] == ["alpha 0.1", "alpha 1.0"]


def test_what_the_server_minimises_and_what_it_gains(drawn, rows):
    for axes, column in zip(drawn["server_losses_alpha-0.1"].axes, ("train_generated_loss", "generator_loss"), strict=True):
        ((x, y),) = lines(axes)
        values = np.array([file[column] for file in rows("fedgen")])
        assert x == list(range(1, ROUNDS + 1)) and y == pytest.approx(values.mean(axis=0))
        low, high = band(axes, 0)
        halves = np.array([half_width(each) for each in values.T])
        assert low == pytest.approx(values.mean(axis=0) - halves) and high == pytest.approx(values.mean(axis=0) + halves)
    (axes,) = drawn["server_accuracy_alpha-0.1"].axes
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["mean of models", "after distillation"], (
        "no ensemble was tested"
    )
    found = [y for _, y in lines(axes)]
    for column in ("global_test_accuracy_before_distillation", "accuracy"):
        assert any(y == pytest.approx(percent(rows("fedgen"), column).mean(axis=0)) for y in found), column


def test_differences_of_an_ablation(house, tmp_path):
    """Each strategy's mean difference from the reference and its interval, from the files; a filled marker where that excludes 0."""
    experiment = Experiment(
        title="t",
        seeds=list(SEEDS),
        settings={"r": []},
        strategies={"a": [], "b": []},
        baseline="a",
        metrics=["global_test_accuracy_last10"],
    )
    found = {("r", name): {seed: read_run(house / f"{strategy}-1.0-{seed}") for seed in SEEDS} for name, strategy in zip("ab", STRATEGIES)}
    with kept() as figures:
        forest(published_table.compare(experiment, found), "global_test_accuracy_last10", "a", tmp_path / "differences")
    axes = figures["differences"].axes[0]
    values = [
        percent([pd.read_csv(house / f"{strategy}-1.0-{seed}" / "metrics.csv") for seed in SEEDS], "accuracy")[:, LAST].mean(axis=1)
        for strategy in STRATEGIES
    ]
    gains = values[1] - values[0]
    (container,) = axes.containers
    (point, _, (bar,)) = container.lines
    assert point.get_xdata().tolist() == pytest.approx([gains.mean()]) and [text.get_text() for text in axes.get_yticklabels()] == ["b"]
    ends = bar.get_segments()[0][:, 0]
    assert ends.tolist() == pytest.approx([gains.mean() - half_width(gains), gains.mean() + half_width(gains)])
    assert (point.get_markerfacecolor() != "white") == (abs(gains.mean()) > half_width(gains))
