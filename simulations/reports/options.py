"""Options of a report: names, order and choice of rows, numbers, and the look of figures.

The command ``fedkd report``, the function ``fedkd.report`` and the yaml files of ``conf/report`` have the same options.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from fedkd.errors import ConfigError, is_plain_name, one_line, require
from simulations.overrides import nearest, options
from simulations.reports.metrics import ALIASES, METRICS, Metric, chosen_metrics, metric_of
from simulations.reports.statistics import INTERVALS
from simulations.reports.tables.mathematics import has_formula, is_readable, tidy

CHOICES = {
    "interval": tuple(INTERVALS),
    "spread": ("interval", "std"),
    "panels": ("none", "settings"),
    "band": ("fill", "lines", "none"),
}
"""Values of the options that have few."""

FORMATS = ("pdf", "png", "svg")
"""File formats of figures."""

ONE_COLUMN = 3.4
"""Default width of figures in inches: one column of a two-column paper."""

INCHES_PER_POINT = 0.36
"""Width that a figure needs per point of its font size."""

LISTS = ("order", "strategies", "settings", "formats")

PRESET = "report"
"""The key that names a yaml file, or an option of ``conf/report``, with options of a report."""


@dataclass(frozen=True)
class ReportOptions:
    """How runs are reported.

    Names of strategies are those of the yaml file (``fedgen``), the printed name (``FedGen``), or a whole row (``FedGen, beta 1.0``). Names
    of settings are as the report prints them (``alpha 0.1``, or ``alpha=0.1``).

    Args:
        baseline: the strategy that all others are compared with. None: ``fedavg``, where there is one.
        target: an accuracy in (0, 1]. The report adds the rounds, bytes and simulated seconds until it is reached.
        until: every run is reported as if it had ended after this round.
        metric: of :data:`simulations.reports.metrics.METRICS`, or an accuracy in ``metrics.csv`` such as ``local_test_accuracy_shared``,
            for comparisons and figures. None: global and local test accuracy.
        interval: ``t`` or ``bootstrap``, the kind of 95 % interval over seeds.
        spread: ``interval``, or ``std`` for the standard deviation over seeds in tables and bands. Differences keep their interval.
        decimals: digits after the point of accuracies in percent, 0 to 6.
        labels: printed names of strategies, rows and settings. Text between two dollar signs is a formula.
        order: strategies in this order. Those that are not listed follow.
        strategies: only these; empty for all.
        settings: only these, in this order; empty for all.
        figures: whether figures are drawn.
        panels: ``settings`` for one figure with a panel per setting and one table of settings x strategies, or ``none``.
        width: of figures, in inches. None: 3.4, one column of a paper, and 7.1, both columns, for a figure with panels.
        font_size: in points.
        smoothing: each seed's curve is a moving average over this many evaluated rounds. 1: as measured.
        band: how the spread over seeds is drawn around curves: ``fill``, ``lines`` or ``none``.
        formats: of figures, some of ``pdf``, ``png`` and ``svg``.

    Raises:
        ConfigError: a value breaks its rule.
    """

    baseline: str | None = None
    target: float | None = None
    until: int | None = None
    metric: str | None = None
    interval: str = "t"
    spread: str = "interval"
    decimals: int = 2
    labels: Mapping[str, str] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    figures: bool = True
    panels: str = "none"
    width: float | None = None
    font_size: float = 7.0
    smoothing: int = 1
    band: str = "fill"
    formats: tuple[str, ...] = ("pdf", "png")

    def __post_init__(self) -> None:
        """Check all values."""
        for name, known in CHOICES.items():
            _require_one_of(name, getattr(self, name), known)
        if self.metric is not None and (not isinstance(self.metric, str) or metric_of(self.metric) is None):
            _require_one_of("metric", self.metric, (*ALIASES, *METRICS))
        require(self.baseline is None or isinstance(self.baseline, str), "baseline", "must be the name of a strategy", self.baseline)
        target = self.target
        require(target is None or _number(target) and 0 < target <= 1, "target", "must be an accuracy in 0..1 (0.9 is 90 %)", target)
        require(self.until is None or _whole(self.until) and self.until >= 1, "until", "must be a round, 1 or more", self.until)
        require(_whole(self.decimals) and 0 <= self.decimals <= 6, "decimals", "must be a whole number in 0..6", self.decimals)
        require(_whole(self.smoothing) and self.smoothing >= 1, "smoothing", "must be a number of rounds >= 1", self.smoothing)
        require(_number(self.font_size) and 3 <= self.font_size <= 40, "font_size", "must be in points, 3..40", self.font_size)
        width = self.width
        require(width is None or _number(width) and 1.5 <= width <= 40, "width", "must be in inches, 1.5..40", width)
        smallest = round(INCHES_PER_POINT * self.font_size, 2)
        rule = f"must be at least {smallest:g} inches for a font size of {self.font_size:g} points"
        require((ONE_COLUMN if width is None else width) >= smallest, "width", rule, ONE_COLUMN if width is None else width)
        require(isinstance(self.figures, bool), "figures", "must be true or false", self.figures)
        labels = isinstance(self.labels, Mapping) and all(isinstance(text, str) for text in (*self.labels, *self.labels.values()))
        require(labels, "labels", "must be names and the texts that replace them, such as fedgen: FedGen (ours)", self.labels)
        rule = r"must hold formulas that Matplotlib draws, such as '$\alpha=0.1$'"
        for text in self.labels.values():
            require(not has_formula(text) or is_readable(text), "labels", rule, text)
            require(
                text == "" or is_plain_name(text),
                "labels",
                "must be texts of one line that do not begin with one of = + - @, a formula for spreadsheets",
                text,
            )
        object.__setattr__(self, "labels", {name: tidy(text) for name, text in self.labels.items()})
        for name in LISTS:
            value = getattr(self, name)
            require(isinstance(value, tuple) and all(isinstance(one, str) for one in value), name, "must be a list of names", value)
        for one in self.formats:
            _require_one_of("formats", one, FORMATS)
        require(bool(self.formats), "formats", f"must be one of {', '.join(FORMATS)} at least", self.formats)

    @property
    def kind(self) -> str:
        """What surrounds a mean: ``t``, ``bootstrap`` or ``std``."""
        return "std" if self.spread == "std" else self.interval

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that are compared and drawn."""
        return chosen_metrics(self.metric)


def options_from(given: Mapping[str, Any]) -> ReportOptions:
    """The options that ``given`` describes. A key whose value is None counts as absent.

    Args:
        given: values by the name of the option. ``report`` names an option of ``conf/report`` or a yaml file; the other keys replace its
            values. Lists can be texts with commas between the names. ``labels`` can be a list of texts such as ``fedgen=FedGen (ours)``.

    Raises:
        ConfigError: a key, a file or a value is wrong. The message is one line and names the nearest valid name.
    """
    values = {key: value for key, value in given.items() if value is not None}
    preset = values.pop(PRESET, None)
    values = {**({} if preset is None else read_preset(str(preset))), **values}
    known = [one.name for one in fields(ReportOptions)]
    for key in values:
        if key not in known:
            raise ConfigError(f"an option of a report must be one of {', '.join([PRESET, *known])}, got {key!r}{nearest(str(key), known)}")
    return ReportOptions(**{key: _converted(key, value) for key, value in values.items()})


def read_preset(name: str) -> dict[str, Any]:
    """The values in a yaml file, or in the option ``name`` of ``conf/report`` (fedkd's or the user's).

    Raises:
        ConfigError: there is no such file or option, or the file does not hold keys and values.
    """
    presets = options(PRESET)
    path = presets.get(name, Path(name).expanduser())
    if name not in presets and not path.is_file():
        raise ConfigError(f"{PRESET} must be a yaml file, or one of {', '.join(presets)}, got {name!r}{nearest(name, presets)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{PRESET} must be a yaml file, got {name!r}: {one_line(error)}") from error
    require(isinstance(content, dict), PRESET, "must be a yaml file of options and values, such as decimals: 1", content)
    return {key: value for key, value in content.items() if value is not None}


def names_from(given: Iterable[str], known: Iterable[str], option: str) -> list[str]:
    """The names of ``known`` that ``given`` lists. A text that is no name is cut at its commas.

    Raises:
        ConfigError: a name is not known; the message has the nearest one.
    """
    known = list(dict.fromkeys(known))
    found: list[str] = []
    for text in given:
        parts = [text] if find_name(text, known) is not None else [part.strip() for part in text.split(",") if part.strip()]
        for part in parts:
            name = find_name(part, known)
            if name is None:
                raise unknown_name(part, known, option)
            found.append(name)
    return list(dict.fromkeys(found))


def find_name(text: str, known: Sequence[str]) -> str | None:
    """The name that ``text`` means: ``alpha=0.1`` and ``Alpha 0.1`` mean ``alpha 0.1``, unless another name has these very letters."""
    words = " ".join(text.replace("=", " ").split())
    equal = [name for name in known if name == words]
    alike = [name for name in known if name.lower() == words.lower()]
    return next(iter([*equal, *alike]), None)


def unknown_name(name: str, known: Sequence[str], option: str) -> ConfigError:
    """The error for a name that the report does not contain."""
    hint = nearest(name, known) or f"; choose from {', '.join(map(repr, known))}"
    return ConfigError(f"{option} must name what the report contains, got {name!r}{hint}")


def _converted(key: str, value: Any) -> Any:
    """A value as :class:`ReportOptions` takes it: lists as tuples, labels as a mapping."""
    if key == "formats" and isinstance(value, str):
        return tuple(one.strip() for one in value.split(",") if one.strip())
    if key in LISTS:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else value
    if key == "labels" and isinstance(value, str):
        value = (value,)
    if key == "labels" and not isinstance(value, Mapping) and isinstance(value, Sequence):
        pairs = [str(text).partition("=") for text in value]
        require(all(name and sign for name, sign, _ in pairs), key, "must be NAME=TEXT, such as fedgen='FedGen (ours)'", list(value))
        return {name: text for name, _, text in pairs}
    return value


def _require_one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Raise ``ConfigError`` with the nearest value unless ``value`` is known."""
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}{nearest(str(value), known)}")


def _number(value: object) -> bool:
    """``value`` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _whole(value: object) -> bool:
    """``value`` is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)
