"""Figures of a report beside the curves: strategies by setting, the way to a target, clients, classes, and seconds by phase."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedkd.errors import require
from simulations.reports.figures.style import COLORS, canvas, legend, legend_shape, limits, line_style, rows
from simulations.reports.summary import PANELS, WAYS
from simulations.reports.tables.table import Cell

Paths = tuple[Path, Path]

SHADES = ("#0072B2", "#E69F00", "0.85")

HATCHES = ("", "////", "....")


def by_setting(lines: Mapping[str, Mapping[str, Sequence[Cell | None]]], names: Sequence[str], path_stem: Path | str, kind: str) -> Paths:
    """Final accuracy against the setting: a mean and its interval for each strategy, those of one strategy joined.

    Args:
        lines: by label and column of :data:`simulations.reports.summary.PANELS`, a cell for each setting, in percent; None where there is none.
        names: of the settings.
        path_stem: the file without suffix.
        kind: of the interval.
    """
    columns = [c for c in PANELS if any(cell is not None and np.isfinite(cell.value) for panels in lines.values() for cell in panels[c])]
    require(bool(columns), "lines", "must hold a result", list(lines))
    numbers = {label: range(max(cell.n or 1 for column in panels.values() for cell in column if cell)) for label, panels in lines.items()}
    longest = max(len(name) for name in names)
    turned = longest * len(names) > 44
    height = 0.45 + 1.4 * len(columns) + 0.14 * (1 + legend_shape(numbers)[0]) + (0.05 * min(longest, 28) if turned else 0)
    with canvas(height, path_stem) as (figure, paths):
        panels = np.atleast_1d(figure.subplots(len(columns), 1, sharex=True))
        for axes, column in zip(panels, columns, strict=True):
            for style, found in enumerate(lines.values()):
                shift = (style - (len(lines) - 1) / 2) * min(0.08, 0.6 / len(lines))
                _points(axes, [(i + shift, cell) for i, cell in enumerate(found[column]) if cell and np.isfinite(cell.value)], style)
            limits(axes)
            axes.set_ylabel(f"Accuracy (%),\n{PANELS[column]}")
        panels[-1].set_xticks(range(len(names)), [name if len(name) <= 28 else "…" + name[-27:] for name in names])
        panels[-1].set_xlim(-0.5, len(names) - 0.5)
        if turned:
            panels[-1].tick_params(axis="x", rotation=30)
            for text in panels[-1].get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")
        figure.align_ylabels()
        legend(figure, numbers, {label: style for style, label in enumerate(lines)}, kind)
    return paths


def _points(axes, points: Sequence[tuple[float, Cell]], style: int) -> None:
    """The means of one strategy, joined, with their intervals."""
    if not points:
        return
    axes.plot([x for x, _ in points], [cell.value for _, cell in points], **line_style(style), zorder=3)
    for x, cell in points:
        if np.isfinite(cell.low):
            low, high = np.clip((cell.low, cell.high), 0, 100)
            axes.plot([x, x], [low, high], color=COLORS[style % len(COLORS)], linewidth=0.8, zorder=2)


def to_target(lines: Mapping[str, Mapping[str, Sequence[tuple[float, bool]]]], path_stem: Path | str, target: float) -> Paths:
    """What each seed spends until it reaches the target: a dot; an open triangle at the end of a run that does not.

    Args:
        lines: by label and way (of :data:`simulations.reports.summary.WAYS`), for each seed what it spends and whether it gets there.
        path_stem: the file without suffix.
        target: the accuracy, in 0..1.
    """
    ways = [way for way in WAYS if any(np.isfinite([spent for spent, _ in found[way]]).all() for found in lines.values())]
    with canvas(0.72 + 0.24 * len(lines), path_stem) as (figure, paths):
        panels = figure.subplots(1, len(ways), sharey=True, squeeze=False)[0]
        for axes, way in zip(panels, ways, strict=True):
            for y, found in enumerate(lines.values()):
                for marker, reached in (("o", True), (">", False)):
                    values = [spent for spent, there in found[way] if there == reached]
                    fill = COLORS[0] if reached else "white"
                    edge = COLORS[0] if reached else COLORS[1]
                    axes.plot(values, [y] * len(values), marker, color=edge, markerfacecolor=fill, markersize=3.4, markeredgewidth=0.8)
            axes.set_xlabel({"rounds": "Rounds", "bytes": "MB", "time": "Simulated s"}[way])
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
            axes.grid(axis="both", linewidth=0.4, color="0.88")
        rows(panels[0], list(lines))
        handles = [
            Line2D([], [], linestyle="none", marker="o", color=COLORS[0], markersize=3.4, label=f"a seed reaches {100 * target:g} %"),
            Line2D(
                [], [], linestyle="none", marker=">", color=COLORS[1], markerfacecolor="white", markersize=3.4, label="it does not: more"
            ),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, handletextpad=0.2, borderpad=0.1)
    return paths


def clients(lines: Mapping[str, Sequence[np.ndarray]], tenths: Mapping[str, float], path_stem: Path | str, seeds: str) -> Paths:
    """The distribution of accuracy over clients, of all seeds: quartiles as a box, the extremes as whiskers, the worst tenth as a diamond.

    Args:
        lines: by label, each seed's accuracies by client [K] in 0..1.
        tenths: by label, the mean over seeds of the worst tenth.
        path_stem: the file without suffix.
        seeds: how many there are, in words.
    """
    with canvas(0.62 + 0.24 * len(lines), path_stem) as (figure, paths):
        axes = figure.subplots()
        values = [100 * np.concatenate(list(found)) for found in lines.values()]
        axes.boxplot(
            values,
            positions=range(len(values)),
            orientation="horizontal",
            widths=0.5,
            whis=(0, 100),
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": "0.88", "linewidth": 0.6},
            medianprops={"color": "black", "linewidth": 1.2},
            whiskerprops={"linewidth": 0.6},
            capprops={"linewidth": 0.6},
        )
        axes.plot([100 * tenth for tenth in tenths.values()], range(len(values)), "D", color=COLORS[1], markersize=3.4, zorder=4)
        figure.supxlabel("Accuracy of a client on its own labels (%)", fontsize=7.5)
        axes.grid(axis="x", linewidth=0.4, color="0.88")
        rows(axes, list(lines))
        handle = Line2D([], [], linestyle="none", marker="D", color=COLORS[1], markersize=3.4, label=f"mean of the worst tenth ({seeds})")
        figure.legend(handles=[handle], loc="outside upper center", frameon=False, handletextpad=0.2, borderpad=0.1)
    return paths


def classes(lines: Mapping[str, np.ndarray], path_stem: Path | str, seeds: str) -> Paths:
    """Accuracy in the balanced test by class: a shade for each strategy and class, with its number where there is room.

    Args:
        lines: by label, accuracy by class [C] in 0..1.
        path_stem: the file without suffix.
        seeds: how many there are, in words.
    """
    values = 100 * np.array(list(lines.values()))
    with canvas(0.62 + 0.24 * len(lines), path_stem) as (figure, paths):
        axes = figure.subplots()
        low, high = np.nanmin(values), np.nanmax(values)
        image = axes.imshow(values, cmap="Blues", vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
        if values.shape[1] <= 12:
            for (y, x), value in np.ndenumerate(values):
                dark = value > low + 0.55 * (high - low)
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=6, color="white" if dark else "black")
        figure.supxlabel(f"Class (accuracy in %, mean over seeds, {seeds})", fontsize=7.5)
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, steps=[1, 2, 5, 10]))
        axes.spines[:].set_visible(False)
        rows(axes, list(lines))
        if values.shape[1] > 12:
            figure.colorbar(image, ax=axes, label="Accuracy (%)", fraction=0.05, pad=0.02).outline.set_linewidth(0.4)
    return paths


def phases(lines: Mapping[str, Mapping[str, float]], path_stem: Path | str, seeds: str) -> Paths:
    """Seconds of a round by phase, one bar a strategy.

    Args:
        lines: by label and phase, seconds.
        path_stem: the file without suffix.
        seeds: how many there are, in words.
    """
    names = list(next(iter(lines.values())))
    with canvas(0.62 + 0.24 * len(lines), path_stem) as (figure, paths):
        axes = figure.subplots()
        left = np.zeros(len(lines))
        for name, shade, hatch in zip(names, SHADES, HATCHES, strict=False):
            seconds = np.nan_to_num([found[name] for found in lines.values()])
            axes.barh(
                range(len(lines)), seconds, left=left, height=0.6, color=shade, hatch=hatch, edgecolor="black", linewidth=0.4, label=name
            )
            left = left + seconds
        figure.supxlabel(f"Seconds a round: median of rounds, mean of seeds ({seeds})", fontsize=7.5)
        axes.grid(axis="x", linewidth=0.4, color="0.88")
        axes.set_axisbelow(True)
        rows(axes, list(lines))
        figure.legend(loc="outside upper center", ncols=3, frameon=False, borderpad=0.1, columnspacing=1.2)
    return paths
