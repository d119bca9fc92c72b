"""The metrics that a report can compare and draw: columns, headings and axis labels."""

from dataclasses import dataclass

from simulations.run_folder.metric_names import COMPARED, HEADLINES


@dataclass(frozen=True)
class Metric:
    """A headline metric of a run.

    Args:
        name: as :func:`simulations.reports.summary.summarize` calls it.
        heading: of a column in tables.
        column: of ``metrics.csv``, from which curves are drawn.
        axis: what an axis label says after "Accuracy (%)".
    """

    name: str
    heading: str
    column: str
    axis: str


AXIS_LABELS = {
    "global_test_accuracy": "global test",
    "local_test_accuracy": "local test",
    "local_test_accuracy_bottom10": "local test, bottom 10 %",
}
"""Axis labels by column of ``metrics.csv``."""


def _metric(name: str, heading: str) -> Metric:
    """A metric by its name; ``best5_rounds`` is taken from local test accuracy."""
    column = "local_test_accuracy" if name == "best5_rounds" else name.removesuffix("_final").removesuffix("_last10")
    return Metric(name, heading, column, AXIS_LABELS[column])


METRICS = {name: _metric(name, heading) for name, heading in {**HEADLINES, "best5_rounds": "best 5 rounds"}.items()}
"""All metrics by name."""

ALIASES = {
    "global_test_accuracy": "global_test_accuracy_last10",
    "local_test_accuracy": "local_test_accuracy_last10",
    "local_test_accuracy_bottom10": "local_test_accuracy_bottom10_final",
}
"""Columns of ``metrics.csv``, and the metrics that they stand for."""

DEFAULT_METRICS = tuple(METRICS[name] for name in COMPARED)
"""The metrics that a report compares and draws unless another one is chosen."""

CURVES = {metric.column: metric.axis for metric in DEFAULT_METRICS}
"""Axis labels by column, of the curves that a report draws by default."""


def chosen_metrics(name: str | None) -> tuple[Metric, ...]:
    """The metric of that name or alias; the default metrics for None."""
    return DEFAULT_METRICS if name is None else (METRICS[ALIASES.get(name, name)],)
