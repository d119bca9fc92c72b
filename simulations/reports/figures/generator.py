"""Figures of the server's generator: label accuracy by class and round, loss terms, and latents in two dimensions."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from fedkd.errors import RunFolderError
from simulations.reports.figures.selection import LINES, Drawing, parts
from simulations.reports.figures.style import COLORS, canvas, legend, legend_shape, limits, line_style
from simulations.reports.groups import Group
from simulations.reports.statistics import interval
from simulations.run_folder.reader import FederatedRun

READERS = {
    "label_accuracy_ensemble": "Ensemble of the round's clients",
    "label_accuracy_global_model": "Global model",
    "label_accuracy_clients_with_class": "Clients that hold the class",
    "label_accuracy_clients_without_class": "Clients that hold none of it",
}

TERM = re.compile(r"(generator|synthesis|distillation)_(?!steps$)|train_(?!loss$)")

TERMS = {
    "train_generated_loss": "Client:\nhead on\ngenerated",
    "train_latent_divergence": "Client:\nlatent\ndivergence",
    "generator_loss": "Generator:\nloss",
    "generator_teacher_loss": "Generator:\ncross-entropy",
    "generator_diversity_loss": "Generator:\ndiversity",
    "generator_label_loss": "Generator:\ncross-entropy",
    "generator_discrepancy": "Generator:\ndiscrepancy",
    "synthesis_loss": "Synthesis:\nloss",
    "synthesis_bn": "Synthesis:\nstatistics",
    "synthesis_oh": "Synthesis:\ncross-entropy",
    "synthesis_adv": "Synthesis:\nadversary",
    "distillation_loss": "Distillation:\nloss",
}

STAGES = {
    "global_test_accuracy_before_distillation": "mean of models",
    "global_test_accuracy": "after distillation",
    "ensemble_test_accuracy": "ensemble",
}


def planned(
    settings: Sequence[Sequence[Group]], order: Sequence[str], output: Path, kind: str
) -> tuple[list[Drawing], pd.DataFrame | None, list[str]]:
    """All figures that the runs have something for, the numbers of those by class and round, and notes on what could not be read.

    Args:
        settings: groups by setting.
        order: all lines in the order of their colours.
        output: the folder.
        kind: of the intervals.
    """
    drawings, notes, tables = [], [], []

    def draw(title: str, name: str, function: Callable[..., tuple[Path, Path]], *given: object) -> None:
        drawings.append(Drawing(title, output / name, function, (*given, output / name)))

    together = parts([one for same in settings for one in same], "", LINES)
    for groups in settings:
        several = len(settings) > 1
        suffix, here = (f"_{slug(groups[0].setting)}", f" ({groups[0].setting})") if several else ("", "")
        for number, part in together:
            mine = [one for one in part if one in groups]
            if terms := loss_terms(mine):
                title, name = f"Losses of server and clients, and their terms without weights{here}", f"server_losses{suffix}{number}"
                draw(title, name, losses, mine, terms, order, kind)
        if told := [one for one in groups if all("global_test_accuracy_before_distillation" in run.metrics for run in one.runs)]:
            draw(f"Before and after the server's own training{here}", f"server_accuracy{suffix}", stages, told, kind)
        found = [(one, *diagnosed(one, notes)) for one in groups]
        found = [(one, table, latents) for one, table, latents in found if len(table) or len(latents)]
        for one, table, latents in found:
            name, whose = (f"{suffix}_{slug(one.line)}", f": {one.label}") if len(found) > 1 else (suffix, here)
            if len(table):
                draw(f"How often generated labels are read back{whose}", f"generator_fidelity{name}", fidelity, table, len(one.runs))
                draw(f"Diversity of what is generated{whose}", f"generator_diversity{name}", diversity, table, len(one.runs))
                tables.append(table.assign(label=one.label, num_seeds=len(one.runs)))
            if len(latents):
                draw(f"Generated and real latents{whose}", f"generator_latents{name}", scatter, latents)
    if not tables:
        return drawings, None, notes
    return drawings, pd.concat(tables)[["label", "num_seeds", *tables[0].columns[:-2]]], notes


def slug(text: str) -> str:
    """A label as part of a file's name."""
    return re.sub(r"[^\w.]+", "-", text).strip("-")


def diagnosed(one: Group, notes: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The mean over seeds of ``generator.csv``, a row for a round and class that all of them have, with the number of seeds of which each reader's
    fidelity is known; and the first seed's latents of its last round. Either is empty where a run has none, or where it cannot be read, for
    which ``notes`` gains a line."""
    frames = [
        rows(run, "generator", {"class", "pairwise_distance_generated", "pairwise_distance_real", "coverage", *READERS}, notes)
        for run in one.runs
    ]
    latents = rows(one.runs[0], "latents", {"class", "is_generated", "pca_1", "pca_2", "tsne_1", "tsne_2"}, notes)
    latents = latents[latents["round"] == latents["round"].max()] if len(latents) else latents
    if not all(len(frame) for frame in frames):
        return pd.DataFrame(), latents
    by_class = pd.concat(frames).groupby(["round", "class"])
    told = by_class[list(READERS)].count().add_suffix("_seeds")  # of a class nobody may hold, or everybody
    return by_class.mean().join(told)[by_class.size() == len(frames)].reset_index(), latents


def rows(run: FederatedRun, name: str, needed: set[str], notes: list[str]) -> pd.DataFrame:
    """A table of a run as far as its rounds are reported; empty where there is none, or it holds something else than these numbers."""
    path = run.folder / f"{name}.csv"
    if not (path.is_file() and path.stat().st_size):
        return pd.DataFrame()
    try:
        table = pd.read_csv(path)
        if lacking := sorted({"round", *needed} - set(table)):
            raise RunFolderError(f"it lacks {', '.join(lacking)}")
        if odd := [column for column in table if not pd.api.types.is_numeric_dtype(table[column])]:
            raise RunFolderError(f"something else is in {', '.join(odd)}")
    except (ValueError, OSError) as error:
        notes.append(f"no figure of the generator: {path} must be a table of numbers ({' '.join(str(error).split())})")
        return pd.DataFrame()
    return table[table["round"] <= run.config["rounds"]]


# ------------------------------------------------------------------------------------------------------------ heat maps
def fidelity(table: pd.DataFrame, number: int, path_stem: Path) -> tuple[Path, Path]:
    """The mean over ``number`` seeds: how often the label of what was generated is read back, by class and round and by who reads; grey where nobody can."""
    columns = [column for column in READERS if table[column].notna().any()]
    with canvas(0.45 + panel_height(table) * len(columns), path_stem) as (figure, paths):
        panels = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
        for axes, column in zip(panels, columns, strict=True):
            shown = heat(axes, table, 100 * table[column], READERS[column], Normalize(0, 100))
        panels[-1].set_xlabel("Communication round")
        told = table[[f"{column}_seeds" for column in columns]].to_numpy()
        seeds = f"n = {number}" if (told[told > 0] == number).all() else f"of up to {number} seeds"
        figure.colorbar(shown, ax=list(panels), label=f"Label read back (%), {seeds}", aspect=40, pad=0.02)
    return paths


def diversity(table: pd.DataFrame, number: int, path_stem: Path) -> tuple[Path, Path]:
    """Means over ``number`` seeds: how far apart generated latents of a class lie in proportion to real ones, and how many of these they cover; grey where unknown."""
    ratio = (table["pairwise_distance_generated"] / table["pairwise_distance_real"]).where(lambda value: np.isfinite(value) & (value > 0))
    parts = [(ratio, f"Distance within a class: generated / real, n = {number}", ratio_norm(ratio))]
    parts += [(table["coverage"], f"Coverage of real latents, n = {number}", Normalize(0, 1))]
    parts = [part for part in parts if part[0].notna().any()]
    with canvas(0.45 + panel_height(table) * max(1, len(parts)), path_stem) as (figure, paths):
        panels = figure.subplots(max(1, len(parts)), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (values, title, norm) in zip(panels, parts):
            bar = figure.colorbar(heat(axes, table, values, title, norm), ax=axes, aspect=14, pad=0.02)
            if isinstance(norm, LogNorm):
                bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if norm.vmax > 5 * norm.vmin else MaxNLocator(4))
                bar.ax.yaxis.set_major_formatter("{x:g}")
                bar.ax.yaxis.set_minor_locator(NullLocator())
        panels[-1].set_xlabel("Communication round")
    return paths


def ratio_norm(ratio: pd.Series) -> LogNorm:
    """A logarithmic scale that holds 1, equal distances, and all values."""
    return LogNorm(min(0.8, ratio.min()), max(1.25, ratio.max()))


def panel_height(table: pd.DataFrame) -> float:
    """Inches of one heat map."""
    return float(np.clip(0.09 * table["class"].nunique() + 0.2, 0.8, 1.9))


def heat(axes: Axes, table: pd.DataFrame, values: pd.Series, title: str, norm: Normalize) -> AxesImage:
    """Classes by rounds; bright is much, in greyscale too."""
    grid = values.set_axis(pd.MultiIndex.from_frame(table[["class", "round"]])).unstack("round")
    axes.set_facecolor("0.8")
    shown = axes.imshow(np.ma.masked_invalid(grid.to_numpy(float)), cmap="cividis", norm=norm, aspect="auto", interpolation="nearest")
    axes.set_title(title, fontsize=7, loc="left", pad=2)
    every, classes = -(-len(grid.columns) // 8), -(-len(grid) // 10)
    axes.set_xticks(range(0, len(grid.columns), every), grid.columns[::every])
    axes.set_yticks(range(0, len(grid), classes), grid.index[::classes])
    axes.set_ylabel("Class")
    return shown


# ---------------------------------------------------------------------------------------------------------------- lines
def loss_terms(groups: Sequence[Group]) -> list[str]:
    """The terms that the server's training has, and the clients' beside cross-entropy, in their order."""
    terms = list(dict.fromkeys(c for one in groups for c in one.runs[0].metrics if TERM.match(c) and one.runs[0].metrics[c].notna().any()))
    return sorted(terms, key=lambda term: list(TERMS).index(term) if term in TERMS else len(TERMS))


def losses(groups: Sequence[Group], terms: Sequence[str], order: Sequence[str], kind: str, path_stem: Path) -> tuple[Path, Path]:
    """Every one of ``terms`` by round: means over seeds and 95 % intervals."""
    told = {one.line: one for one in groups if any(term in one.runs[0].metrics for term in terms)}
    styles, frames = (
        {label: order.index(label) for label in told},
        {label: [run.metrics for run in one.runs] for label, one in told.items()},
    )
    with canvas(0.4 + 0.95 * len(terms) + 0.14 * (1 + legend_shape(frames)[0]), path_stem) as (figure, paths):
        panels = figure.subplots(len(terms), 1, sharex=True, squeeze=False)[:, 0]
        for axes, term in zip(panels, terms, strict=True):
            for label in told:
                if all(term in frame for frame in frames[label]):
                    curve(axes, frames[label], term, 1.0, line_style(styles[label]), kind)
            axes.set_ylabel(TERMS.get(term, term.replace("_", "\n", 1)))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.grid(axis="y", linewidth=0.4, color="0.88")
        by_round(figure, panels)
        legend(figure, frames, styles, kind)
    return paths


def stages(told: Sequence[Group], kind: str, path_stem: Path) -> tuple[Path, Path]:
    """Balanced test before and after each distillation on the server, and of the ensemble where it was measured: a panel a strategy."""
    with canvas(0.5 + 1.25 * len(told), path_stem) as (figure, paths):
        panels, shown = figure.subplots(len(told), 1, sharex=True, squeeze=False)[:, 0], set()
        for axes, one in zip(panels, told, strict=True):
            for style, column in enumerate(STAGES):
                if all(column in run.metrics and run.metrics[column].notna().any() for run in one.runs):
                    shown.add(column)
                    curve(axes, [run.metrics for run in one.runs], column, 100.0, line_style(style), kind)
            limits(axes)
            axes.set_title(f"{one.line} (n = {len(one.runs)})", fontsize=7, loc="left", pad=2)
            axes.set_ylabel("Accuracy (%)")
        by_round(figure, panels)
        handles = [
            Line2D([], [], **line_style(style), label=label) for style, (column, label) in enumerate(STAGES.items()) if column in shown
        ]
        title = f"Mean and 95 % interval ({kind}) over seeds" if any(len(one.runs) > 1 for one in told) else None
        figure.legend(handles=handles, title=title, loc="outside lower center", ncols=3, frameon=False, handlelength=2.6, columnspacing=1.0)
    return paths


def curve(axes: Axes, frames: Sequence[pd.DataFrame], column: str, scale: float, style: dict, kind: str) -> None:
    """The mean over seeds, and its interval where there are several."""
    values = scale * pd.concat([frame.set_index("round")[column] for frame in frames], axis=1).dropna()
    if values.empty:
        return
    mean, low, high = interval(values.to_numpy().T, kind)
    axes.plot(values.index, mean, **style, markevery=max(1, len(values) // 7))
    if values.shape[1] > 1:
        axes.fill_between(values.index, low, high, color=style["color"], alpha=0.16, linewidth=0)


def by_round(figure: Figure, panels: Sequence[Axes]) -> None:
    """Rounds below the last of the panels."""
    figure.align_ylabels()
    panels[-1].set_xlabel("Communication round")
    panels[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


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
    colour = COLORS[label % len(COLORS)]
    for generated, mark in ((0, dot), (1, cross)):
        at = points.loc[points["is_generated"] == generated, [f"{name}_1", f"{name}_2"]]
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
