"""What an experiment of conf/experiment/ says of itself beside its configuration: its sweep, and the numbers it is set beside."""

from dataclasses import dataclass, field

from pydantic import ConfigDict

from simulations.run_folder.metric_names import TABLE_METRICS

DRAWN = ("convergence", "labels", "differences")

Cells = dict[str, dict[str, float | list[float]]]
"""By row and column: a mean; a mean and its spread; or a mean, the lowest and the highest."""


@dataclass(frozen=True, kw_only=True)
class ReferenceNumbers:
    """Numbers of others.

    Args:
        source: where they stand.
        metric: what of ours they are set beside, one of ``TABLE_METRICS``.
        cells: in percent where it is an accuracy.
        note: what they are, where the table cannot show it.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    source: str
    metric: str
    cells: Cells
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A search of what columns that say ``tuned=...`` take: the same grid for every strategy, on held-out training examples.

    Args:
        key: what is searched.
        grid: its values.
        validation_fraction: share of each client's training examples that is held out.
        overrides: of the runs that are tried.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    key: str
    grid: list[float]
    validation_fraction: float
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The sweep of an experiment, and what it is set beside.

    Args:
        title: of the table.
        seeds: of every cell.
        settings: each the overrides of its name.
        strategies: strategies, likewise.
        metrics: what is shown of every cell beside what the sources ask for, of ``TABLE_METRICS``.
        without: columns that a row goes without.
        published: the paper's numbers.
        public_code: what was measured of the authors' code.
        baseline: the column from which every other's difference is shown, paired by seed.
        ratio_to: the column over which all figures are, by seed; a source's numbers too.
        tuning: where columns are tuned.
        serial: one run at a time, as times are measured.
        figures: figures of every setting, of ``DRAWN``: convergence, label distributions, differences from the reference.
        note: what the table cannot show.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    title: str
    seeds: list[int]
    settings: dict[str, list[str]]
    strategies: dict[str, list[str]]
    metrics: list[str] = field(default_factory=list)
    without: dict[str, list[str]] = field(default_factory=dict)
    published: ReferenceNumbers | None = None
    public_code: ReferenceNumbers | None = None
    baseline: str | None = None
    ratio_to: str | None = None
    tuning: Tuning | None = None
    serial: bool = False
    figures: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def sources(self) -> dict[str, ReferenceNumbers]:
        """By the name that the table has for it."""
        named = {"paper": self.published, "public code": self.public_code}
        return {name: source for name, source in named.items() if source is not None}

    @property
    def shown(self) -> list[str]:
        """All figures of the table."""
        return list(dict.fromkeys([*(source.metric for source in self.sources.values()), *self.metrics]))

    def cells(self) -> list[tuple[str, str]]:
        """Rows and columns that are run."""
        return [(row, column) for row in self.settings for column in self.strategies if column not in self.without.get(row, [])]

    def odd(self) -> list[str]:
        """What does not fit together."""
        told = [
            (f"published number of {name}", row, column)
            for name, one in self.sources.items()
            for row in one.cells
            for column in one.cells[row]
        ]
        told += [("without", row, column) for row, columns in self.without.items() for column in columns]
        said = [f"{what} for {row}, {column}" for what, row, column in told if row not in self.settings or column not in self.strategies]
        said += [f"{name!r}, whose comma parts the names of a command line" for name in (*self.settings, *self.strategies) if "," in name]
        said += [f"figure {name}" for name in self.shown if name not in TABLE_METRICS]
        said += [f"drawing {name}" for name in self.figures if name not in DRAWN or (name == "differences" and self.baseline is None)]
        return said + [f"column {name}" for name in (self.baseline, self.ratio_to) if name is not None and name not in self.strategies]
