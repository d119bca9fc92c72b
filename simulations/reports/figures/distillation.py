"""Figures of distillations: learning curves, student against teacher accuracy, and synthetic images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill, wrap

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from simulations.reports.distillation_groups import DistillationRun
from simulations.reports.figures.style import PAGE, WIDTH, canvas, legend, legend_shape, limits, line_style
from simulations.reports.statistics import spread
from simulations.reports.tables.distillation import monotone


def curves(labelled: Mapping[str, Sequence[DistillationRun]], path_stem: Path) -> tuple[Path, Path]:
    """Accuracy by epoch: the mean over seeds, its 95 % interval as a band."""
    with canvas(1.9 + 0.14 * (1 + legend_shape(labelled)[0]), path_stem) as (figure, paths):
        axes = figure.subplots()
        for style, same in enumerate(labelled.values()):
            frames = [one.metrics.set_index("epoch")["test_accuracy"].dropna() for one in same]
            values = 100 * pd.concat(frames, axis=1).dropna().loc[1:]
            mean, half = spread(values.to_numpy().T)
            axes.plot(values.index, mean, **line_style(style), markevery=max(1, len(values) // 8))
            if len(same) > 1:
                axes.fill_between(values.index, mean - half, mean + half, color=line_style(style)["color"], alpha=0.15, linewidth=0)
        limits(axes)
        axes.set_xlabel("Epoch")
        axes.set_ylabel("Accuracy (%)")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        legend(figure, labelled, {name: style for style, name in enumerate(labelled)})
    return paths


def flow(known: pd.DataFrame, path_stem: Path) -> tuple[Path, Path]:
    """Quadratic mutual information between each layer and the labels, by epoch: a panel for each way of training, the teacher's as dotted lines.

    Args:
        known: of :func:`simulations.reports.tables.distillation.flows`.
    """
    names = list(known["strategy"].unique())
    layers = sorted(known["layer"].unique())
    with canvas(0.5 + 0.95 * len(names) + 0.12 * sum(len(wrap(name, 52)) for name in names), path_stem) as (figure, paths):
        panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(panels, names, strict=True):
            mine = known[known["strategy"] == name]
            for style, layer in enumerate(layers):
                for network, line in (
                    ("student", line_style(style)),
                    ("teacher", {"color": line_style(style)["color"], "linestyle": ":", "linewidth": 1.0}),
                ):
                    one = mine[(mine["network"] == network) & (mine["layer"] == layer)]
                    axes.plot(one["epoch"], one["information"], **line)
            axes.set_title(fill(name, 52), fontsize=7, loc="left", pad=2)
            axes.grid(axis="y", linewidth=0.4, color="0.88")
            axes.set_axisbelow(True)
        panels[-1].set_xlabel("Epoch")
        panels[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        figure.supylabel("Information about the labels", fontsize=7.5)
        handles = [Line2D([], [], **line_style(style), label=f"layer {layer}") for style, layer in enumerate(layers)]
        handles.append(Line2D([], [], color="0.3", linestyle=":", linewidth=1.0, label="teacher's"))
        figure.legend(
            handles=handles, loc="outside lower center", ncols=3, frameon=False, handlelength=3.2, labelspacing=0.3, borderpad=0.1
        )
    return paths


def ladder(frames: Mapping[str, pd.DataFrame], path_stem: Path) -> tuple[Path, Path]:
    """The student's accuracy against its teacher's, by method: every seed a faint point, means joined; Spearman's rho of the means in the legend."""
    with canvas(2.0 + 0.14 * (1 + len(frames)), path_stem) as (figure, paths):
        axes = figure.subplots()
        for style, (method, frame) in enumerate(frames.items()):
            means = 100 * frame.groupby("name")[["teacher", "student"]].mean().sort_values("teacher")
            axes.plot(means["teacher"], means["student"], **line_style(style), label=f"{method}: rho {monotone(frame)[0]:+.2f}")
            axes.scatter(100 * frame["teacher"], 100 * frame["student"], s=4, color=line_style(style)["color"], alpha=0.35, linewidth=0)
        limits(axes)
        axes.set_xlabel("Teacher's accuracy (%)")
        axes.set_ylabel("Student's accuracy (%)")
        figure.legend(loc="outside lower center", ncols=1, frameon=False, handlelength=3.2, labelspacing=0.3, borderpad=0.1)
    return paths


def sheet(
    images: np.ndarray, names: Sequence[str], path_stem: Path
) -> tuple[Path, Path]:  # [classes, n, H, W] or [classes, n, H, W, 3] in 0..1
    """Images by class, a row each."""
    classes, number = images.shape[:2]
    width = PAGE if number > 12 else WIDTH
    with canvas(width * classes / (number + 1.5), path_stem, width=width) as (figure, paths):
        figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0.0, hspace=0.0)
        grid = figure.subplots(classes, number, squeeze=False)
        for row, name in enumerate(names):
            for axes, image in zip(grid[row], images[row], strict=True):
                axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set(xticks=(), yticks=())
                axes.spines[:].set_visible(False)
            grid[row, 0].set_ylabel(name, rotation=0, ha="right", va="center")
    return paths


IMAGES_PER_CLASS = 10
"""Synthetic images of each class that the sheet shows."""


def synthetic_images(saved: Path, path_stem: Path) -> tuple[Path, Path]:
    """The images of ``synthetic_images.npz``, one row per class that the teacher predicts.

    Args:
        saved: the file: ``images`` [N, channels, H, W], bytes; ``labels`` [N]; ``class_names`` [C].
        path_stem: the figure's file without suffix.
    """
    with np.load(saved) as arrays:
        images, labels, names = arrays["images"], arrays["labels"], [str(name) for name in arrays["class_names"]]
    pixels = images[:, 0] / 255 if images.shape[1] == 1 else images.transpose(0, 2, 3, 1) / 255
    blank, rows = np.ones_like(pixels[:1]), []
    for label in range(len(names)):
        found = pixels[labels == label][:IMAGES_PER_CLASS]
        rows.append(np.concatenate([found, np.repeat(blank, IMAGES_PER_CLASS - len(found), 0)]))
    return sheet(np.stack(rows), names, path_stem)
