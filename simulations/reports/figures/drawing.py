"""Figures that a report is going to draw: title, files and function of each; drawn in as many processes as there are cores."""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from simulations.process import cores
from simulations.reports.arrangement import ordered_lines
from simulations.reports.attempts import Attempts
from simulations.reports.figures.style import FigureStyle, figure_paths
from simulations.reports.groups import Group, gather

MAX_LINES, MAX_ROWS = 8, 20
"""Strategies that one figure tells apart, as curves and as rows. More are drawn in parts, the baseline in each."""

FEW = 6
"""Figures that are not worth more processes."""


@dataclass(frozen=True)
class Drawing:
    """A figure of a report.

    Args:
        title: a short caption.
        stem: the files without suffix.
        draw: the function that draws and writes the figure. Its last two arguments are the stem and, by name, the style.
        given: its other arguments.
        style: of the figure.
        named: further arguments by name.
    """

    title: str
    stem: Path
    draw: Callable[..., Figure]
    given: tuple[Any, ...]
    style: FigureStyle
    named: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The figure in a message."""
        return f"figure {self.stem.name}"

    @property
    def paths(self) -> list[Path]:
        """The files, one per format."""
        return figure_paths(self.stem, self.style)

    def write(self) -> list[Path]:
        """Draw the figure and write its files.

        Raises:
            ConfigError: there is nothing to draw.
        """
        self.draw(*self.given, path_stem=self.stem, style=self.style, **self.named)
        return self.paths

    def figure(self) -> Figure:
        """Draw the figure without writing a file."""
        return self.draw(*self.given, path_stem=None, style=self.style, **self.named)


def write_all(drawings: Sequence[Drawing], attempts: Attempts) -> list[Drawing]:
    """Draw all figures and write their files. Returns the figures that are written; ``attempts`` gains the others."""
    workers = min(cores() if sys.platform == "linux" else 1, len(drawings))  # elsewhere forks are not safe
    if workers <= 1 or len(drawings) <= FEW:
        return [one for one in drawings if attempts.make(one.name, one.write)]
    with ProcessPoolExecutor(workers, get_context("fork")) as pool:
        written = [(one, pool.submit(one.write)) for one in drawings]
        return [one for one, done in written if attempts.make(one.name, done.result)]


def parts(groups: Sequence[Group], baseline: str, most: int) -> list[tuple[str, list[Group]]]:
    """Groups in parts of at most ``most`` lines, each with a suffix for files; tuned and untuned apart where there are many.

    The baseline is first in each part. A line is in the same part and in the same place there on every setting.

    Args:
        groups: of all settings.
        baseline: a strategy or a line.
        most: lines of a part.
    """
    lines = ordered_lines(groups)
    if len(lines) <= most:
        return [("", sorted(groups, key=lambda one: lines.index(one.line)))]
    tuned = {one.line: one.tuned for one in groups}
    base = {one.line for one in groups if one.is_called(baseline)}
    cut: list[list[str]] = []
    for same in gather(lines, lambda line: tuned[line]):
        first = [line for line in same if line in base][: most // 2]
        rest = [line for line in same if line not in first]
        number = max(1, -(-len(rest) // (most - len(first))))
        size = max(1, -(-len(rest) // number))  # equally many in each part
        cut += [first + rest[start : start + size] for start in range(0, len(rest), size)] or [first]
    return [
        (f"_{number}", sorted((o for o in groups if o.line in part), key=lambda o: part.index(o.line)))
        for number, part in enumerate(cut, 1)
    ]
