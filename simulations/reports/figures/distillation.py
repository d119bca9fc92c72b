"""Figures of distillations: learning curves, information of layers, student against teacher accuracy, and synthetic images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill, wrap

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from simulations.reports.distillation_groups import DistillationRun
from simulations.reports.figures.legend import HANDLE, below, legend, legend_height, wrapped
from simulations.reports.figures.style import DASHES, MARKERS, NEUTRAL, PAGE, WIDTH, FigureStyle, band, canvas, grid, limits
from simulations.reports.statistics import interval
from simulations.reports.tables.distillation import rank_correlation

IMAGES_PER_CLASS = 10
"""Synthetic images of each class that the sheet shows."""


def curves(labelled: Mapping[str, Sequence[DistillationRun]], path_stem: Path | None, style: FigureStyle) -> Figure:
    """The student's accuracy by epoch: the mean over seeds, and its interval as a band."""
    style = style.with_labels(labelled)
    seeds = {label: len(same) for label, same in labelled.items()}
    with canvas(0.4 * style.text + 1.1 * style.panel_height() + legend_height(seeds, style), path_stem, style) as figure:
        axes, bands = figure.subplots(), []
        for label, same in labelled.items():
            accuracies = [one.metrics.set_index("epoch")["test_accuracy"].dropna() for one in same]
            values = 100 * pd.concat(accuracies, axis=1).dropna().loc[1:]
            runs, look = values.to_numpy().T, style.line(label)
            mean, low, high = interval(runs, style.kind)
            axes.plot(values.index, mean, **look, markevery=max(1, len(values) // 8))
            ends = {"low": low, "high": high, "n": len(same)}
            bands += band(axes, {"x": values.index, **ends}, look["color"], style, 0, 100)
        limits(axes, bands)
        axes.set_xlabel("Epoch")
        axes.set_ylabel("Accuracy (%)")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        legend(figure, seeds, style)
    return figure


def layer_information(known: pd.DataFrame, path_stem: Path | None, style: FigureStyle) -> Figure:
    """Quadratic mutual information between each layer and the labels, by epoch: a panel per method, dotted lines for the teacher.

    Args:
        known: of :func:`simulations.reports.tables.distillation.layer_information`.
        path_stem: the files without suffix; None writes nothing.
        style: of the figure.
    """
    names, layers = list(known["method"].unique()), sorted(known["layer"].unique())
    shades = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, len(layers)))  # a shade per layer: colors are for methods
    looks = [
        {"color": shade, "linestyle": DASHES[place % len(DASHES)], "linewidth": 1.1 * style.text, "marker": MARKERS[place % len(MARKERS)],
         "markersize": 3.2 * style.text, "markerfacecolor": "white"}
        for place, shade in enumerate(shades)
    ]  # fmt: skip
    letters = int(15 * style.width / style.text)
    height = (0.5 + 0.95 * len(names) + 0.12 * sum(len(wrap(name, letters)) for name in names)) * style.text
    with canvas(height, path_stem, style) as figure:
        panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(panels, names, strict=True):
            mine = known[known["method"] == name]
            for look, layer in zip(looks, layers, strict=True):
                teacher = {"color": look["color"], "linestyle": ":", "linewidth": style.text}
                for network, line in (("student", look), ("teacher", teacher)):
                    one = mine[(mine["network"] == network) & (mine["layer"] == layer)]
                    axes.plot(one["epoch"], one["information"], **line)  # type: ignore[arg-type]
            axes.set_title(fill(name, letters), loc="left", pad=2)
            grid(axes, "y")
        panels[-1].set_xlabel("Epoch")
        panels[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        figure.supylabel("Information about the labels", fontsize=style.font_size + 0.5)
        handles = [Line2D([], [], label=f"layer {layer}", **look) for look, layer in zip(looks, layers, strict=True)]  # type: ignore[arg-type]
        handles.append(Line2D([], [], color=NEUTRAL, linestyle=":", linewidth=style.text, label="teacher"))
        below(figure, handles, style, 3)
    return figure


def ladder(frames: Mapping[str, pd.DataFrame], path_stem: Path | None, style: FigureStyle) -> Figure:
    """The student's accuracy against its teacher's, by method: seeds as faint points, means joined, Spearman's rho in the legend.

    Args:
        frames: of :func:`simulations.reports.tables.distillation.ladder`.
        path_stem: the files without suffix; None writes nothing.
        style: of the figure.
    """
    style = style.with_labels(frames)
    height = 0.4 * style.text + 1.2 * style.panel_height() + 0.14 * style.text * (1 + len(frames))
    with canvas(height, path_stem, style) as figure:
        axes = figure.subplots()
        handles, ends = [], []
        for method, table in frames.items():
            look = style.line(method)
            means = 100 * table.groupby("name")[["teacher_accuracy", "student_accuracy"]].mean().sort_values("teacher_accuracy")
            axes.plot(means["teacher_accuracy"], means["student_accuracy"], **look)
            points = 100 * table[["teacher_accuracy", "student_accuracy"]].to_numpy()
            ends.append((float(points[:, 1].min()), float(points[:, 1].max())))
            axes.scatter(points[:, 0], points[:, 1], s=4 * style.text, color=look["color"], alpha=0.35, linewidths=0)
            text = wrapped(f"{method}: rho {rank_correlation(table)[0]:+.2f}", style, indent=HANDLE)
            handles.append(Line2D([], [], label=text, **look))
        limits(axes, ends, whole=True)
        axes.set_xlabel("Teacher accuracy (%)")
        axes.set_ylabel("Student accuracy (%)")
        below(figure, handles, style, 1)
    return figure


def synthetic_images(saved: Path, path_stem: Path | None, style: FigureStyle) -> Figure:
    """A sheet of the images in ``synthetic_images.npz``, a row per class that the teacher predicts.

    Args:
        saved: the file: ``images`` [N, channels, H, W] as bytes, ``labels`` [N], ``class_names`` [C].
        path_stem: the files without suffix; None writes nothing.
        style: of the figure.
    """
    with np.load(saved) as arrays:
        images, labels, names = arrays["images"], arrays["labels"], [str(name) for name in arrays["class_names"]]
    pixels = images[:, 0] / 255 if images.shape[1] == 1 else images.transpose(0, 2, 3, 1) / 255
    blank, rows = np.ones_like(pixels[:1]), []
    for label in range(len(names)):
        found = pixels[labels == label][:IMAGES_PER_CLASS]
        rows.append(np.concatenate([found, np.repeat(blank, IMAGES_PER_CLASS - len(found), 0)]))
    return sheet(np.stack(rows), names, path_stem, style)


def sheet(images: np.ndarray, names: Sequence[str], path_stem: Path | None, style: FigureStyle) -> Figure:
    """Images by class, a row each.

    Args:
        images: [classes, n, H, W] or [classes, n, H, W, 3] in 0..1.
        names: of the classes.
        path_stem: the files without suffix; None writes nothing.
        style: of the figure.
    """
    classes, number = images.shape[:2]
    width = style.width * (PAGE / WIDTH if number > 12 else 1)
    with canvas(width * classes / (number + 1.5), path_stem, style, width=width) as figure:
        figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0.0, hspace=0.0)
        cells = figure.subplots(classes, number, squeeze=False)
        for row, name in enumerate(names):
            for axes, image in zip(cells[row], images[row], strict=True):
                axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set(xticks=(), yticks=())
                axes.spines[:].set_visible(False)
            cells[row, 0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure
