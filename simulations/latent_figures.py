"""Generated and real latents in two dimensions."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.patheffects import withStroke

from simulations.look import COLOURS, canvas

LABELLED = 30
"""Classes at most that are named within a scatter."""


def scatter(latents: pd.DataFrame, path_stem: Path) -> tuple[Path, Path]:
    """Generated and real latents of one round by PCA and by t-SNE; a class's number stands at its median, or, boxed, beside that of the
    generated ones."""
    with canvas(5.3, path_stem) as (figure, paths):
        for axes, (name, title) in zip(figure.subplots(2, 1), {"pca": "PCA", "tsne": "t-SNE"}.items(), strict=True):
            for label, points in latents.groupby("class"):
                cloud(axes, points, name, int(label), latents["class"].nunique() <= LABELLED)
            axes.margins(0.09)
            axes.set(xticks=(), yticks=(), xlabel=f"{title} 1", ylabel=f"{title} 2")
        handles = [cross(axes, [], [], "0.2", "generated"), dot(axes, [], [], "0.2", "real")]
        named = ", numbers are classes (boxed: generated)" if latents["class"].nunique() <= LABELLED else " over classes"
        title = f"Round {int(latents['round'].iloc[0])}; colours repeat{named}"
        figure.legend(handles=handles, title=title, loc="outside lower center", ncols=2, frameon=False)
    return paths


def cloud(axes: Axes, points: pd.DataFrame, name: str, label: int, named: bool) -> None:
    """The latents of one class, and its number at their medians."""
    colour = COLOURS[label % len(COLOURS)]
    for generated, mark in ((0, dot), (1, cross)):
        at = points.loc[points["generated"] == generated, [f"{name}_1", f"{name}_2"]]
        mark(axes, at[f"{name}_1"], at[f"{name}_2"], colour)
        if named and len(at):
            box = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": colour, "linewidth": 0.8} if generated else None
            effects = () if generated else (withStroke(linewidth=1.8, foreground="white"),)
            style = {"ha": "center", "va": "center", "fontsize": 7, "fontweight": "bold", "zorder": 4, "path_effects": effects}
            axes.annotate(str(label), at.median(), (7, 7) if generated else (0, 0), textcoords="offset points", bbox=box, **style)


def dot(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, label: str | None = None) -> PathCollection:
    """Real latents."""
    return axes.scatter(x, y, s=9, marker="o", facecolor=colour, alpha=0.55, linewidths=0, zorder=2, label=label)


def cross(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, label: str | None = None) -> PathCollection:
    """Generated latents."""
    return axes.scatter(x, y, s=9, marker="x", color=colour, linewidths=0.6, zorder=3, label=label)
