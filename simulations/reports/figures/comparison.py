"""Figures that compare strategies: by seed, by setting, cost to a target, clients, classes, and seconds by phase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedkd.errors import require
from simulations.reports.figures.legend import (
    below,
    legend,
    legend_height,
    legend_shape,
    legend_texts,
    name_horizontal_axis,
    row_labels,
    spread_text,
    wrapped,
)
from simulations.reports.figures.style import NEUTRAL, FigureStyle, canvas, grid, limits
from simulations.reports.statistics import interval

SHADES, HATCHES = ("0.45", "0.75", "0.95"), ("", "////", "....")
"""Fills of the phases of a round, which belong to no strategy."""

MAX_NAME = 28
"""Characters of the name of a setting on an axis."""

COST_AXES = {"rounds": "Rounds", "bytes": "MB", "time": "Simulated s"}
"""Axis labels of the resources until a target."""


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and what surrounds it.

    Args:
        mean: over seeds.
        low: lower end; NaN for one seed.
        high: upper end; NaN for one seed.
        n: number of seeds.
    """

    mean: float
    low: float
    high: float
    n: int


def spread_of(values: Sequence[float] | np.ndarray, kind: str) -> Spread:
    """The spread as figures show it: an interval or a standard deviation, but the range of two seeds."""
    seeds = np.asarray(values, float)
    mean, low, high = (float(value) for value in interval(seeds, kind))
    return Spread(mean, low, high, len(seeds))


def by_seed(lines: Mapping[str, pd.DataFrame], axis_labels: Mapping[str, str], path_stem: Path | str | None, style: FigureStyle) -> Figure:
    """Each seed's result by strategy, the runs of one seed joined by a gray line, beside the mean and its interval.

    Args:
        lines: by label, a table with a row per seed (its index) and a column per metric, in 0..1 or NaN.
        axis_labels: by metric, a panel each.
        path_stem: the files without suffix; None writes nothing.
        style: of the figure.

    Raises:
        ConfigError: there is no result.
    """
    metrics = [metric for metric in axis_labels if any(table[metric].notna().any() for table in lines.values())]
    require(bool(metrics), "lines", "must hold a result", list(lines))
    style = style.with_labels(lines)
    seeds = {label: len(table) for label, table in lines.items()}
    title = wrapped(spread_text(seeds.values(), replace(style, band="fill")), style)
    height = 0.6 + 0.26 * len(lines) + 0.14 * (1 + title.count("\n"))
    with canvas(height * style.text, path_stem, style) as figure:
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            values = pd.DataFrame({label: 100 * table[metric] for label, table in lines.items()})
            axes.plot(values.to_numpy().T, range(len(lines)), color="0.8", linewidth=0.5 * style.text, zorder=1)
            for row, label in enumerate(lines):
                _seeds_and_mean(axes, values[label].dropna().to_numpy(), row, style, label)
            axes.set_xlabel(f"Accuracy (%),\n{axis_labels[metric]}")
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
            axes.margins(x=0.08)
            grid(axes, "x")
        row_labels(panels[0], legend_texts(seeds), style)
        below(figure, [], style, 1, title)
    return figure


def _seeds_and_mean(axes: Axes, values: np.ndarray, row: int, style: FigureStyle, label: str) -> None:  # [n]
    """The seeds of one label as small dots, the mean as its marker, the interval as a bar."""
    if not len(values):
        return
    look, found = style.mark(label, 3.2), spread_of(values, style.kind)
    axes.plot(values, np.full(len(values), row), ".", color=look["color"], markersize=2.5 * style.text, alpha=0.6, zorder=2)
    if len(values) > 1:
        axes.plot([found.low, found.high], [row + 0.22] * 2, color=look["color"], linewidth=1.1 * style.text, zorder=2)
    axes.plot([found.mean], [row + 0.22], **look, zorder=3)


def by_setting(
    lines: Mapping[str, Mapping[str, Sequence[Spread | None]]],
    names: Sequence[str],
    axis_labels: Mapping[str, str],
    path_stem: Path | str | None,
    style: FigureStyle,
    joined: bool = True,
) -> Figure:
    """Accuracy against the setting: a mean and its interval for each strategy, those of one strategy joined.

    Args:
        lines: by label and metric, one value per setting, in percent; None where there is none.
        names: of the settings.
        axis_labels: by metric, a panel each.
        path_stem: the files without suffix; None writes nothing.
        style: of the figure.
        joined: the means of one strategy are joined by a line.

    Raises:
        ConfigError: there is no result.
    """
    found = {label: {metric: list(values) for metric, values in metrics.items()} for label, metrics in lines.items()}
    metrics = [name for name in axis_labels if any(one and np.isfinite(one.mean) for panel in found.values() for one in panel[name])]
    require(bool(metrics), "lines", "must hold a result", list(lines))
    style = style.with_labels(lines)
    seeds = {label: max(one.n for values in panel.values() for one in values if one) for label, panel in found.items()}
    shown = [name if len(name) <= MAX_NAME else "…" + name[1 - MAX_NAME :] for name in names]
    longest = max(map(len, shown))
    turned = longest * len(names) > 13 * style.width / style.text
    height = (0.45 + (0.05 * longest if turned else 0)) * style.text + style.panel_height() * len(metrics) + legend_height(seeds, style)
    with canvas(height, path_stem, style) as figure:
        panels = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
        for axes, metric in zip(panels, metrics, strict=True):
            for place, label in enumerate(lines):
                shift = (place - (len(lines) - 1) / 2) * min(0.08, 0.6 / len(lines))
                points = [(i + shift, one) for i, one in enumerate(found[label][metric]) if one and np.isfinite(one.mean)]
                _points(axes, points, style, label, joined)
            shown_ends = [(one.low, one.high) for panel in found.values() for one in panel[metric] if one and np.isfinite(one.low)]
            limits(axes, np.clip(shown_ends, 0, 100).tolist() if style.band != "none" else (), whole=True)
            axes.set_ylabel(f"Accuracy (%),\n{axis_labels[metric]}")
        panels[-1].set_xticks(range(len(names)), shown)
        panels[-1].set_xlim(-0.5, len(names) - 0.5)
        if turned:
            panels[-1].tick_params(axis="x", rotation=30)
            for text in panels[-1].get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")
        figure.align_ylabels()
        legend(figure, seeds, style, joined=joined)
    return figure


def by_network(
    lines: Mapping[str, Mapping[str, Sequence[Spread | None]]],
    names: Sequence[str],
    axis_labels: Mapping[str, str],
    path_stem: Path | str | None,
    style: FigureStyle,
) -> Figure:
    """Accuracy by network: the figure of :func:`by_setting` with networks for settings, whose means are not joined."""
    return by_setting(lines, names, axis_labels, path_stem, style, joined=False)


def _points(axes: Axes, points: Sequence[tuple[float, Spread]], style: FigureStyle, label: str, joined: bool) -> None:
    """The means of one strategy with their intervals."""
    if not points:
        return
    look = style.line(label) if joined else style.mark(label)
    axes.plot([x for x, _ in points], [one.mean for _, one in points], **look, zorder=3)
    for x, one in points:
        if np.isfinite(one.low) and style.band != "none":
            low, high = np.clip((one.low, one.high), 0, 100)
            axes.plot([x, x], [low, high], color=look["color"], linewidth=0.8 * style.text, zorder=2, label="_band")


def to_target(
    lines: Mapping[str, Mapping[str, Sequence[tuple[float, bool]]]], path_stem: Path | str | None, target: float, style: FigureStyle
) -> Figure:
    """The resources of each seed until the target: a filled marker; an open triangle at the end of a run that does not reach the target.

    Args:
        lines: by label and resource (of :data:`COST_AXES`), for each seed the amount and whether the target is reached.
        path_stem: the files without suffix; None writes nothing.
        target: the accuracy, in 0..1.
        style: of the figure.
    """
    style = style.with_labels(lines)
    given = {name: [[amount for amount, _ in found[name]] for found in lines.values() if name in found] for name in COST_AXES}
    resources = [name for name, rows in given.items() if any(np.isfinite(amounts).all() for amounts in rows)]
    texts = (f"seed that reaches {round(100 * target, 6):g} %", "seed that does not: lower bound")
    legend_rows, legend_columns = legend_shape(texts, style)
    with canvas((0.58 + 0.24 * len(lines) + 0.14 * legend_rows) * style.text, path_stem, style) as figure:
        panels = figure.subplots(1, len(resources), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, resources, strict=True):
            for row, (label, found) in enumerate(lines.items()):
                for reached, look in ((True, _reached(style, label)), (False, _missed(style, label))):
                    values = [amount for amount, there in found[name] if there == reached]
                    (marks,) = axes.plot(values, [row if reached else row + 0.22] * len(values), **look)
                    marks.set_in_layout(bool(values))  # an empty line has no extent
            axes.set_xlabel(COST_AXES[name])
            axes.margins(x=0.12)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
            grid(axes, "both")
        row_labels(panels[0], list(lines), style)
        look = {"linestyle": "none", "color": NEUTRAL, "markersize": 3.4 * style.text}
        handles = [
            Line2D([], [], marker="o", label=texts[0], **look),
            Line2D([], [], marker=">", markerfacecolor="white", label=texts[1], **look),
        ]
        below(figure, handles, style, legend_columns)
    return figure


def _reached(style: FigureStyle, label: str) -> dict:
    """The marker of a seed that reaches the target, whole where it touches the axis."""
    look = style.mark(label)
    return {**look, "markerfacecolor": look["color"], "marker": "o", "clip_on": False, "zorder": 4}


def _missed(style: FigureStyle, label: str) -> dict:
    """The marker of a seed that does not."""
    return {**style.mark(label), "marker": ">", "clip_on": False, "zorder": 4}


def clients(
    lines: Mapping[str, Sequence[np.ndarray]], tenths: Mapping[str, float], path_stem: Path | str | None, seeds: str, style: FigureStyle
) -> Figure:
    """The distribution of accuracy over clients, of all seeds: quartiles, extremes, and the mean of the bottom 10 % as a diamond.

    Args:
        lines: by label, each seed's accuracies by client [K] in 0..1.
        tenths: by label, the mean over seeds of the bottom tenth.
        path_stem: the files without suffix; None writes nothing.
        seeds: the number of seeds in words.
        style: of the figure.
    """
    style = style.with_labels(lines)
    width = 0.6 * style.text
    with canvas((0.62 + 0.24 * len(lines)) * style.text, path_stem, style) as figure:
        axes = figure.subplots()
        for row, (label, found) in enumerate(lines.items()):
            color = style.line(label)["color"]
            axes.boxplot(
                [100 * np.concatenate(list(found))],
                positions=[row],
                orientation="horizontal",
                widths=0.5,
                whis=(0, 100),
                patch_artist=True,
                manage_ticks=False,
                boxprops={"facecolor": "white", "edgecolor": color, "linewidth": width},
                medianprops={"color": color, "linewidth": 2 * width},
                whiskerprops={"color": color, "linewidth": width},
                capprops={"color": color, "linewidth": width},
            )
            axes.plot([100 * tenths[label]], [row], "D", color=color, markersize=3.4 * style.text, zorder=4, clip_on=False)
        name_horizontal_axis(figure, "Local test accuracy of a client (%)", style)
        grid(axes, "x")
        row_labels(axes, list(lines), style)
        handle = Line2D(
            [], [], linestyle="none", marker="D", color=NEUTRAL, markersize=3.4 * style.text, label=f"bottom 10 % clients ({seeds})"
        )
        figure.legend(handles=[handle], loc="outside upper center", frameon=False, handletextpad=0.2, borderpad=0.1)
    return figure


def classes(
    lines: Mapping[str, np.ndarray], path_stem: Path | str | None, seeds: str, style: FigureStyle, names: Sequence[str] = ()
) -> Figure:
    """Accuracy by class or group: a shade for each strategy and class, with the number where there is room.

    Args:
        lines: by label, accuracy by class [C] in 0..1.
        path_stem: the files without suffix; None writes nothing.
        seeds: the number of seeds in words.
        style: of the figure.
        names: of the groups [C]; empty: numbers of classes.
    """
    values = 100 * np.array(list(lines.values()))
    with canvas((0.62 + 0.24 * len(lines)) * style.text, path_stem, style) as figure:
        axes = figure.subplots()
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        image = axes.imshow(values, cmap="Greys", vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
        if values.shape[1] <= 12:
            for (row, place), value in np.ndenumerate(values):
                color = "white" if value > low + 0.55 * (high - low) else "black"
                axes.text(
                    place,
                    row,
                    f"{value:.1f}" if names else f"{value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=style.font_size - 1,
                    color=color,
                )
        name_horizontal_axis(figure, f"{'Group' if names else 'Class'} (accuracy in %, mean over seeds, {seeds})", style)
        if names:
            axes.set_xticks(range(len(names)), names)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, steps=[1, 2, 5, 10]))
        axes.spines[:].set_visible(False)
        row_labels(axes, list(lines), style)
        if values.shape[1] > 12:
            bar = figure.colorbar(image, ax=axes, label="Accuracy (%)", fraction=0.05, pad=0.02)
            bar.outline.set_linewidth(0.4)  # type: ignore[operator]
    return figure


def phases(lines: Mapping[str, Mapping[str, float]], path_stem: Path | str | None, seeds: str, style: FigureStyle) -> Figure:
    """Seconds per round by phase, one bar per strategy.

    Args:
        lines: by label and phase, seconds.
        path_stem: the files without suffix; None writes nothing.
        seeds: the number of seeds in words.
        style: of the figure.
    """
    names = list(next(iter(lines.values())))
    with canvas((0.62 + 0.24 * len(lines)) * style.text, path_stem, style) as figure:
        axes = figure.subplots()
        left = np.zeros(len(lines))
        for name, shade, hatch in zip(names, SHADES, HATCHES, strict=False):
            seconds = np.nan_to_num([found[name] for found in lines.values()])
            look = {"height": 0.6, "color": shade, "hatch": hatch, "edgecolor": "black", "linewidth": 0.4 * style.text}
            axes.barh(range(len(lines)), seconds, left=left, label=name, **look)  # type: ignore[arg-type]
            left = left + seconds
        name_horizontal_axis(figure, f"Seconds per round: median of rounds, mean of seeds ({seeds})", style)
        grid(axes, "x")
        row_labels(axes, list(lines), style)
        figure.legend(loc="outside upper center", ncols=3, frameon=False, borderpad=0.1, columnspacing=1.2)
    return figure
