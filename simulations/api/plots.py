"""One figure of a report by itself, as :meth:`simulations.api.runs.Runs.plot` returns it."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import matplotlib
from matplotlib.figure import Figure

from fedkd.errors import ConfigError, require
from simulations.reports.arrangement import arrange, ordered_settings
from simulations.reports.attempts import Attempts
from simulations.reports.figures import comparison, convergence, generator, selection
from simulations.reports.figures.drawing import Drawing
from simulations.reports.figures.label_distribution import label_distribution
from simulations.reports.figures.style import DPI
from simulations.reports.groups import Group, gather
from simulations.reports.options import FORMATS, options_from
from simulations.run_folder.reader import SETTING

KINDS: dict[str, tuple[Callable[..., Figure], ...]] = {
    "convergence": (convergence.convergence, convergence.panels),
    "final": (comparison.by_seed,),
    "clients": (comparison.clients,),
    "classes": (comparison.classes,),
    "label_distribution": (label_distribution,),
    "settings": (comparison.by_setting,),
    "networks": (comparison.by_network,),
    "generator": (generator.label_accuracy,),
}
"""Kinds of figures, and the functions that draw them."""

AXES = {"round": "rounds", "bytes": "bytes", "time": "time"}
"""Horizontal axes of curves, and how a report calls them."""


def draw(groups: Sequence[Group], kind: str, metric: str | None, x: str, path: Path | None, options: Mapping[str, Any]) -> Figure:
    """A figure of groups of runs.

    Args:
        groups: of finished federated runs.
        kind: of :data:`KINDS`.
        metric: of the report's options; None for global and local test accuracy.
        x: of :data:`AXES`.
        path: the file that is written too; None for none.
        options: of a report.

    Raises:
        ConfigError: an argument is wrong, or the runs have nothing of this kind to draw, or several figures of it.
    """
    require(kind in KINDS, "kind", f"must be one of {', '.join(KINDS)}", kind)
    require(x in AXES, "x", f"must be one of {', '.join(AXES)}", x)
    suffixes = [f".{one}" for one in FORMATS]
    require(path is None or path.suffix in suffixes, "path", f"must end in {', '.join(suffixes)}", str(path))
    several = len(ordered_settings(groups)) > 1
    panels = "settings" if several and kind == "convergence" else "none"
    chosen = options_from({"metric": metric, "panels": panels, **options})
    arranged = arrange(groups, chosen)
    style = selection.style_of(arranged, chosen)
    if kind == "generator":
        scored = sorted((one for one in arranged if one.runs), key=lambda one: one.place)
        settings = gather(scored, lambda one: one.first.part(SETTING))
        drawings, _, _ = generator.planned(settings, Path(), style)
    else:
        drawings = selection.planned(arranged, Path(), chosen, style, Attempts())
    return _figure(_only(drawings, kind, x, arranged), path)


def _only(drawings: Sequence[Drawing], kind: str, x: str, groups: Sequence[Group]) -> Drawing:
    """The drawing of this kind.

    Raises:
        ConfigError: there is none, or several.
    """
    found = [one for one in drawings if one.draw in KINDS[kind] and one.named.get("along", AXES[x]) == AXES[x]]
    if not found:
        needs = {
            "settings": f"runs of several settings, got {len(ordered_settings(groups))}",
            "networks": "runs of clients with unlike networks (model=heterogeneous)",
            "generator": "runs with diagnostics (generator_diagnostics_every=10)",
            "convergence": f"runs with evaluated rounds and x={x} (time: a configured clock in systems)",
        }
        raise ConfigError(f"kind={kind} needs {needs.get(kind, 'runs that have such numbers')}; choose another kind or other runs")
    if len(found) > 1:
        names = ", ".join(one.title for one in found)
        raise ConfigError(f"kind={kind} must give one figure, got {len(found)} ({names}); choose runs with filter()")
    return found[0]


def _figure(drawing: Drawing, path: Path | None) -> Figure:
    """The figure, written to a file as a report writes it, and as a notebook shows it."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(drawing, stem=path.with_suffix(""), style=replace(drawing.style, formats=(path.suffix[1:],))).write()
    figure, image = drawing.figure(), io.BytesIO()
    with matplotlib.rc_context(cast(Any, drawing.style.parameters)):
        figure.savefig(image, format="png", dpi=DPI // 2)
    content = image.getvalue()
    figure._repr_png_ = lambda: content  # type: ignore[attr-defined]  # a Figure without pyplot has no representation of its own
    return figure
