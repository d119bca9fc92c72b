"""Figures of the server's generator: label accuracy by class and round, loss terms, and embeddings in two dimensions."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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

from fedkd.errors import RunFolderError, one_line
from simulations.reports.figures.drawing import MAX_LINES, Drawing, parts
from simulations.reports.figures.legend import below, legend, legend_height, spread_text, wrapped
from simulations.reports.figures.style import COLORS, DASHES, NEUTRAL, FigureStyle, band, canvas, grid, limits
from simulations.reports.groups import Group, file_slugs
from simulations.reports.statistics import interval
from simulations.run_folder.reader import FederatedRun

READERS = {
    "label_accuracy_ensemble": "Ensemble of the round's clients",
    "label_accuracy_global_model": "Global model",
    "label_accuracy_clients_with_class": "Clients with the class",
    "label_accuracy_clients_without_class": "Clients without the class",
}
"""Columns of ``generator.csv`` on the models that classify generated examples, and the titles of their panels."""

DIAGNOSTICS = {"class", "pairwise_distance_generated", "pairwise_distance_real", "coverage", *READERS}
"""Columns of ``generator.csv`` that the figures need."""

EMBEDDINGS = {"class", "is_generated", "pca_1", "pca_2", "tsne_1", "tsne_2"}
"""Columns of ``latents.csv`` that the figures need."""

TERM = re.compile(r"(generator|synthesis|distillation)_(?!steps$)|train_(?!loss$)")
"""Columns of ``metrics.csv`` with terms of losses."""

TERMS = {
    "train_generated_loss": "Client:\nhead on\ngenerated",
    "train_latent_divergence": "Client:\nlatent\ndivergence",
    "generator_loss": "Generator:\nloss",
    "generator_teacher_loss": "Generator:\ncross-entropy",
    "generator_diversity_loss": "Generator:\ndiversity",
    "generator_label_loss": "Generator:\ncross-entropy",
    "generator_discrepancy": "Generator:\ndiscrepancy",
    "generator_fidelity": "Generator:\ncross-entropy",
    "generator_transfer": "Generator:\ntransfer",
    "generator_embedding_norm": "Generator:\nembedding\nnorm",
    "synthesis_loss": "Synthesis:\nloss",
    "synthesis_bn": "Synthesis:\nstatistics",
    "synthesis_oh": "Synthesis:\ncross-entropy",
    "synthesis_adv": "Synthesis:\nadversary",
    "distillation_loss": "Distillation:\nloss",
}
"""Axis labels of the terms, in the order of the panels."""

STAGES = {
    "global_test_accuracy_before_distillation": "mean of models",
    "global_test_accuracy": "after distillation",
    "ensemble_test_accuracy": "ensemble",
}
"""Columns of ``metrics.csv`` on server-side distillation, and their names."""

MAX_NAMED = 30
"""Classes of which each is named in a scatter plot, at most."""


def planned(settings: Sequence[Sequence[Group]], output: Path, style: FigureStyle) -> tuple[list[Drawing], pd.DataFrame | None, list[str]]:
    """All figures that the runs have data for, the numbers by class and round, and notes on files that cannot be read.

    Args:
        settings: groups by setting.
        output: the folder of the report.
        style: with a look for each line.
    """
    drawings: list[Drawing] = []
    notes: list[str] = []
    tables: list[pd.DataFrame] = []
    several = len(settings) > 1
    together = parts([one for same in settings for one in same], "", MAX_LINES)

    def add(title: str, name: str, function: Callable[..., Figure], *given: object) -> None:
        drawings.append(Drawing(title, output / name, function, given, style))

    for groups in settings:
        suffix, here = (f"_{groups[0].slug}", f", {groups[0].setting}") if several and groups[0].setting else ("", "")
        for number, part in together:
            mine = [one for one in part if one in groups]
            if terms := loss_terms(mine):
                add(f"Loss terms of server and clients, unweighted{here}", f"server_losses{suffix}{number}", losses, mine, terms)
        if distilled := [one for one in groups if all("global_test_accuracy_before_distillation" in run.metrics for run in one.runs)]:
            add(f"Before and after server-side distillation{here}", f"server_accuracy{suffix}", stages, distilled)
        found = [(one, *diagnostics(one, notes)) for one in groups]
        found = [(one, table, embeddings) for one, table, embeddings in found if len(table) or len(embeddings)]
        slugs = file_slugs([one.line for one, _, _ in found])
        for (one, table, embeddings), slug in zip(found, slugs, strict=True):
            name, whose = (f"{suffix}_{slug}", f", {one.label}") if len(found) > 1 else (suffix, here)
            if len(table):
                add(f"Label accuracy of generated examples{whose}", f"generator_fidelity{name}", label_accuracy, table, len(one.runs))
                add(f"Diversity of generated examples{whose}", f"generator_diversity{name}", diversity, table, len(one.runs))
                tables.append(table.assign(label=one.label, num_seeds=len(one.runs)))
            if len(embeddings):
                add(f"Generated and real embeddings{whose}", f"generator_latents{name}", scatter, embeddings)
    if not tables:
        return drawings, None, notes
    return drawings, pd.concat(tables)[["label", "num_seeds", *tables[0].columns[:-2]]], notes


def diagnostics(one: Group, notes: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The generator's diagnostics of a group, and the embeddings of its first seed in the last diagnosed round.

    Args:
        one: the group.
        notes: gains a line for each file that cannot be read.

    Returns:
        The mean over seeds of ``generator.csv``, a row per round and class that all seeds have, with the number of seeds that know each
        label accuracy (``*_seeds``); and the rows of ``latents.csv``. Either is empty where a run has none.
    """
    frames = [read_table(run, "generator", DIAGNOSTICS, notes) for run in one.runs]
    embeddings = read_table(one.runs[0], "latents", EMBEDDINGS, notes)
    embeddings = embeddings[embeddings["round"] == embeddings["round"].max()] if len(embeddings) else embeddings
    if not all(len(table) for table in frames):
        return pd.DataFrame(), embeddings
    by_class = pd.concat(frames).groupby(["round", "class"])
    known = by_class[list(READERS)].count().add_suffix("_seeds")  # every client of a round can have a class, or none
    return by_class.mean().join(known)[by_class.size() == len(frames)].reset_index(), embeddings


def read_table(run: FederatedRun, name: str, needed: set[str], notes: list[str]) -> pd.DataFrame:
    """The rows of a file of the run, up to its last reported round; empty where there is no file, or ``notes`` says why it is unusable."""
    path = run.folder / f"{name}.csv"
    if not (path.is_file() and path.stat().st_size):
        return pd.DataFrame()
    try:
        table = pd.read_csv(path)
        if lacking := sorted({"round", *needed} - set(table)):
            raise RunFolderError(f"it lacks {', '.join(lacking)}")
        if odd := [str(column) for column in table if not pd.api.types.is_numeric_dtype(table[column])]:
            raise RunFolderError(f"text is in {', '.join(odd)}")
    except (ValueError, OSError) as error:
        notes.append(f"no figure of the generator: {path} must be a table of numbers ({one_line(error)})")
        return pd.DataFrame()
    return table[table["round"] <= run.config["rounds"]]


# ------------------------------------------------------------------------------------------------------------ heat maps
def label_accuracy(table: pd.DataFrame, number: int, path_stem: Path | None, style: FigureStyle) -> Figure:
    """How often a model assigns its intended label to a generated example, by class and round; gray where no such client exists.

    Args:
        table: of :func:`diagnostics`, means over seeds.
        number: of seeds.
        path_stem: the files without suffix; None writes nothing.
        style: of the figure.
    """
    columns = [column for column in READERS if table[column].notna().any()]
    with canvas((0.45 + panel_height(table) * len(columns)) * style.text, path_stem, style) as figure:
        panels = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
        shown = [heat_map(axes, table, 100 * table[column], READERS[column], Normalize(0, 100)) for axes, column in zip(panels, columns)]
        panels[-1].set_xlabel("Server round")
        known = table[[f"{column}_seeds" for column in columns]].to_numpy()
        seeds = f"n = {number}" if (known[known > 0] == number).all() else f"of up to {number} seeds"
        figure.colorbar(shown[-1], ax=list(panels), label=f"Label accuracy (%), {seeds}", aspect=40, pad=0.02)
    return figure


def diversity(table: pd.DataFrame, number: int, path_stem: Path | None, style: FigureStyle) -> Figure:
    """The distance of generated embeddings of a class relative to real ones, and the coverage of real ones; gray where unknown.

    Args:
        table: of :func:`diagnostics`, means over seeds.
        number: of seeds.
        path_stem: the files without suffix; None writes nothing.
        style: of the figure.
    """
    ratio = (table["pairwise_distance_generated"] / table["pairwise_distance_real"]).where(lambda value: np.isfinite(value) & (value > 0))
    maps: list[tuple[pd.Series, str, Normalize]] = [
        (ratio, f"Distance in a class: generated / real, n = {number}", ratio_norm(ratio)),
        (table["coverage"], f"Coverage of real embeddings, n = {number}", Normalize(0, 1)),
    ]
    maps = [part for part in maps if part[0].notna().any()]
    with canvas((0.45 + panel_height(table) * max(1, len(maps))) * style.text, path_stem, style) as figure:
        panels = figure.subplots(max(1, len(maps)), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (values, title, norm) in zip(panels, maps):
            bar = figure.colorbar(heat_map(axes, table, values, title, norm), ax=axes, aspect=14, pad=0.02)
            if isinstance(norm, LogNorm):
                wide = (norm.vmax or 1.0) > 5 * (norm.vmin or 1.0)
                bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(4))
                bar.ax.yaxis.set_major_formatter("{x:g}")
                bar.ax.yaxis.set_minor_locator(NullLocator())
        panels[-1].set_xlabel("Server round")
    return figure


def ratio_norm(ratio: pd.Series) -> LogNorm:
    """A logarithmic scale that holds 1, where distances are equal, and all values."""
    return LogNorm(min(0.8, ratio.min()), max(1.25, ratio.max()))


def panel_height(table: pd.DataFrame) -> float:
    """Inches of one heat map, at 7 points."""
    return float(np.clip(0.09 * table["class"].nunique() + 0.2, 0.8, 1.9))


def heat_map(axes: Axes, table: pd.DataFrame, values: pd.Series, title: str, norm: Normalize) -> AxesImage:
    """Classes by rounds; a bright cell is a large value, in grayscale too."""
    cells = values.set_axis(pd.MultiIndex.from_frame(table[["class", "round"]])).unstack("round")
    axes.set_facecolor("0.8")
    masked = np.ma.masked_invalid(cells.to_numpy(float))
    shown = axes.imshow(masked, cmap="cividis", norm=norm, aspect="auto", interpolation="nearest")
    axes.set_title(title, loc="left", pad=2)
    every, classes = -(-len(cells.columns) // 8), -(-len(cells) // 10)
    axes.set_xticks(range(0, len(cells.columns), every), [str(name) for name in cells.columns[::every]])
    axes.set_yticks(range(0, len(cells), classes), [str(name) for name in cells.index[::classes]])
    axes.set_ylabel("Class")
    return shown


# ---------------------------------------------------------------------------------------------------------------- lines
def loss_terms(groups: Sequence[Group]) -> list[str]:
    """The terms of the server's losses, and of the clients' losses without cross-entropy, in the order of the panels."""
    metrics = [one.runs[0].metrics for one in groups]
    terms = list(dict.fromkeys(str(name) for table in metrics for name in table if TERM.match(str(name)) and table[name].notna().any()))
    return sorted(terms, key=lambda term: list(TERMS).index(term) if term in TERMS else len(TERMS))


def losses(groups: Sequence[Group], terms: Sequence[str], path_stem: Path | None, style: FigureStyle) -> Figure:
    """Each of ``terms`` by round: means over seeds and their intervals, a panel per term."""
    drawn = {one.line: one for one in groups if any(term in one.runs[0].metrics for term in terms)}
    frames = {label: [run.metrics for run in one.runs] for label, one in drawn.items()}
    style = style.with_labels(drawn)
    seeds = {label: len(tables) for label, tables in frames.items()}
    height = (0.4 + 0.95 * len(terms)) * style.text + legend_height(seeds, style)
    with canvas(height, path_stem, style) as figure:
        panels = list(figure.subplots(len(terms), 1, sharex=True, squeeze=False)[:, 0])
        for axes, term in zip(panels, terms, strict=True):
            for label, tables in frames.items():
                if all(term in table for table in tables):
                    curve(axes, tables, term, 1.0, style.line(label), style)
            axes.set_ylabel(TERMS.get(term, term.replace("_", "\n", 1)))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            grid(axes, "y")
        by_round(figure, panels)
        legend(figure, seeds, style)
    return figure


def stages(groups: Sequence[Group], path_stem: Path | None, style: FigureStyle) -> Figure:
    """Global test accuracy before and after server-side distillation, and of the ensemble where it was measured: a panel per strategy."""
    style = style.with_labels(one.line for one in groups)
    with canvas((0.5 + 1.25 * len(groups)) * style.text, path_stem, style) as figure:
        panels = list(figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0])
        shown = set()
        for axes, one in zip(panels, groups, strict=True):
            ends = []
            for place, column in enumerate(STAGES):
                if all(column in run.metrics and run.metrics[column].notna().any() for run in one.runs):
                    shown.add(column)
                    look = {**style.line(one.line), "linestyle": DASHES[place], "marker": "osD"[place]}
                    ends += curve(axes, [run.metrics for run in one.runs], column, 100.0, look, style)
            limits(axes, ends)
            axes.set_title(f"{one.line} (n = {len(one.runs)})", loc="left", pad=2)
            axes.set_ylabel("Accuracy (%)")
        by_round(figure, panels)
        handles = []
        for place, (column, label) in enumerate(STAGES.items()):
            if column in shown:
                look = {**style.line_of(0), "color": NEUTRAL, "linestyle": DASHES[place], "marker": "osD"[place]}
                handles.append(Line2D([], [], label=label, **look))
        below(figure, handles, style, 3, spread_text([len(one.runs) for one in groups], style))
    return figure


def curve(
    axes: Axes, frames: Sequence[pd.DataFrame], column: str, scale: float, look: dict[str, Any], style: FigureStyle
) -> list[tuple[float, float]]:
    """Draw the mean over seeds by round and its band where there are several seeds, and return the ends of the band."""
    values = scale * pd.concat([table.set_index("round")[column] for table in frames], axis=1).dropna()
    if values.empty:
        return []
    seeds = values.to_numpy().T
    mean, low, high = interval(seeds, style.kind)
    axes.plot(values.index, mean, **look, markevery=max(1, len(values) // 7))
    ends = {"low": low, "high": high, "n": len(seeds)}
    return band(axes, {"x": values.index, **ends}, look["color"], style)


def by_round(figure: Figure, panels: Sequence[Axes]) -> None:
    """The axis of rounds below the last of the panels."""
    figure.align_ylabels()
    panels[-1].set_xlabel("Server round")
    panels[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


# ---------------------------------------------------------------------------------------------------------- embeddings
def scatter(embeddings: pd.DataFrame, path_stem: Path | None, style: FigureStyle) -> Figure:
    """Generated and real embeddings of one round by PCA and by t-SNE.

    The number of a class stands at its median, in a box beside the median of its generated embeddings.
    """
    few = embeddings["class"].nunique() <= MAX_NAMED
    with canvas(5.3 * style.width / 3.4, path_stem, style) as figure:
        for axes, (name, title) in zip(figure.subplots(2, 1), {"pca": "PCA", "tsne": "t-SNE"}.items(), strict=True):
            for label in sorted(embeddings["class"].unique()):
                cloud(axes, embeddings[embeddings["class"] == label], name, int(label), few, style)
            axes.margins(0.09)
            axes.set(xticks=(), yticks=(), xlabel=f"{title} 1", ylabel=f"{title} 2")
        empty = np.empty(0)
        handles = [generated_points(axes, empty, empty, "0.2", style, "generated"), real_points(axes, empty, empty, "0.2", style, "real")]
        named = ", numbers are classes (boxed: generated)" if few else " over classes"
        title = wrapped(f"Round {int(embeddings['round'].iloc[0])}; colors repeat{named}", style)
        shown = figure.legend(handles=handles, title=title, loc="outside lower center", ncols=2, frameon=False)
        shown.get_title().set_multialignment("center")
    return figure


def cloud(axes: Axes, points: pd.DataFrame, name: str, label: int, named: bool, style: FigureStyle) -> None:
    """The embeddings of one class, and its number at their medians."""
    color = COLORS[label % len(COLORS)]
    for generated, draw in ((0, real_points), (1, generated_points)):
        at = points.loc[points["is_generated"] == generated, [f"{name}_1", f"{name}_2"]].to_numpy(float)
        draw(axes, at[:, 0], at[:, 1], color, style)
        if named and len(at):
            box = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": color, "linewidth": 0.8} if generated else None
            x, y = np.median(at, axis=0)
            axes.annotate(
                str(label),
                (float(x), float(y)),
                (7, 7) if generated else (0, 0),
                textcoords="offset points",
                bbox=box,
                ha="center",
                va="center",
                fontsize=style.font_size,
                fontweight="bold",
                zorder=4,
                path_effects=() if generated else (withStroke(linewidth=1.8, foreground="white"),),
            )


def real_points(axes: Axes, x: np.ndarray, y: np.ndarray, color: str, style: FigureStyle, label: str | None = None) -> PathCollection:
    """Real embeddings, as dots."""
    return axes.scatter(x, y, s=9 * style.text, marker="o", facecolor=color, alpha=0.55, linewidths=0, zorder=2, label=label)


def generated_points(axes: Axes, x: np.ndarray, y: np.ndarray, color: str, style: FigureStyle, label: str | None = None) -> PathCollection:
    """Generated embeddings, as crosses."""
    return axes.scatter(x, y, s=9 * style.text, marker="x", color=color, linewidths=0.6, zorder=3, label=label)
