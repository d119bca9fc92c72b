"""The section ``reproduce`` of an experiment file: its settings and strategies, its seeds, and the published numbers."""

from dataclasses import dataclass, field

from pydantic import ConfigDict

from simulations.run_folder.metric_names import TABLE_METRICS

FIGURES = ("convergence", "labels", "differences")
"""Figures that an experiment may ask for: convergence, label distributions, and differences from the baseline."""

Cells = dict[str, dict[str, float | list[float]]]
"""By setting and strategy: a mean; a mean and its spread; or a mean, the minimum and the maximum."""


@dataclass(frozen=True, kw_only=True)
class ReferenceNumbers:
    """Numbers that were published, or measured with the authors' code.

    Args:
        source: where the numbers are from.
        metric: the metric of ours that they are compared with, one of ``TABLE_METRICS``.
        cells: the numbers, in percent if the metric is an accuracy.
        note: a sentence below the table.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    source: str
    metric: str
    cells: Cells
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The hyperparameter search for strategies that say ``tuned_params=...``. The grid is the same for all of them.

    Args:
        key: the key that is searched.
        grid: its values.
        validation_fraction: fraction of each client's training examples that is held out.
        overrides: overrides of the trials.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    key: str
    grid: list[float]
    validation_fraction: float
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The runs of an experiment and its table. Every combination of a setting and a strategy is one cell.

    Args:
        title: title of the table.
        seeds: seeds of every cell.
        settings: overrides by the name of the setting, which is a row block of the table.
        strategies: overrides by the name of the strategy, which is a row of the table.
        metrics: further metrics of the table, of ``TABLE_METRICS``. Those of the reference numbers come first.
        without: strategies that a setting leaves out.
        published: the paper's numbers.
        public_code: numbers that were measured with the authors' code.
        baseline: the strategy from which differences are shown, paired by seed.
        ratio_to: the strategy by whose metrics all others are divided, by seed.
        tuning: the search for strategies that are tuned.
        serial: one run at a time, because times are measured.
        figures: figures of every setting, of :data:`FIGURES`.
        note: a sentence below the table.
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
        """The reference numbers by their name in the table."""
        named = {"paper": self.published, "public code": self.public_code}
        return {name: source for name, source in named.items() if source is not None}

    @property
    def shown(self) -> list[str]:
        """All metrics of the table."""
        return list(dict.fromkeys([*(source.metric for source in self.sources.values()), *self.metrics]))

    def cells(self) -> list[tuple[str, str]]:
        """The combinations of setting and strategy that are run."""
        return [(row, column) for row in self.settings for column in self.strategies if column not in self.without.get(row, [])]

    def inconsistencies(self) -> list[str]:
        """Names in the section that do not exist in it, one phrase each."""
        used = [
            (f"published number of {name}", setting, strategy)
            for name, source in self.sources.items()
            for setting, numbers in source.cells.items()
            for strategy in numbers
        ]
        used += [("without", setting, strategy) for setting, left_out in self.without.items() for strategy in left_out]
        unknown = [f"{use} for {row}, {column}" for use, row, column in used if row not in self.settings or column not in self.strategies]
        unknown += [f"{name!r}, which must not contain a comma" for name in (*self.settings, *self.strategies) if "," in name]
        unknown += [f"metric {name}" for name in self.shown if name not in TABLE_METRICS]
        unknown += [f"figure {name}" for name in self.figures if name not in FIGURES or (name == "differences" and self.baseline is None)]
        return unknown + [f"strategy {name}" for name in (self.baseline, self.ratio_to) if name is not None and name not in self.strategies]
