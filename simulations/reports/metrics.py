"""The metrics that a report can compare and draw: columns, headings and axis labels."""

from dataclasses import dataclass

from simulations.run_folder.metric_names import COMPARED, HEADLINES, accuracy_labels, is_accuracy


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


FINAL, LAST = "_final", "_last10"
"""Ends of names of metrics: the last evaluated round, and the mean of the last ten."""

AXIS_LABELS = {
    "global_test_accuracy": "global test",
    "local_test_accuracy": "local test",
    "local_test_accuracy_bottom10": "local test, bottom 10 %",
}
"""Axis labels by column of ``metrics.csv``."""


def column_of(name: str) -> str:
    """The column of ``metrics.csv`` that a metric is taken from; ``best5_rounds`` is taken from local test accuracy."""
    return "local_test_accuracy" if name == "best5_rounds" else name.removesuffix(FINAL).removesuffix(LAST)


def is_class_accuracy(column: str) -> bool:
    """A column holds the accuracy of one class."""
    return column.startswith("global_test_accuracy_class_")


def accuracy_heading(name: str) -> str:
    """The heading of any accuracy: ``local acc., shared model, last 10``."""
    test, prediction = accuracy_labels(column_of(name))
    return ", ".join(part for part in (f"{test} acc.", prediction, "final" if name.endswith(FINAL) else "last 10") if part)


def _metric(name: str, heading: str) -> Metric:
    """A metric by its name."""
    return Metric(name, heading, column_of(name), AXIS_LABELS[column_of(name)])


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


def metric_of(name: str) -> Metric | None:
    """The metric of that name or alias, or of any other accuracy in ``metrics.csv``: ``local_test_accuracy_shared``, or with ``_final``.

    None where the name is no accuracy.
    """
    name = ALIASES.get(name, name)
    if name in METRICS:
        return METRICS[name]
    if not is_accuracy(column_of(name)):
        return None
    full = name if name.endswith((FINAL, LAST)) else f"{name}{LAST}"
    test, prediction = accuracy_labels(column_of(full))
    return Metric(full, accuracy_heading(full), column_of(full), ", ".join(part for part in (f"{test} test", prediction) if part))


def chosen_metrics(name: str | None) -> tuple[Metric, ...]:
    """The metric of that name; the default metrics for None, and for a name that :func:`metric_of` does not know."""
    found = None if name is None else metric_of(name)
    return DEFAULT_METRICS if found is None else (found,)
