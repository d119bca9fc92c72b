"""Trackers of experiments: TensorBoard, MLflow, Weights & Biases, or one of your own. They are told of a run, and cannot change it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedkd.errors import require


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run.

    Args:
        folder: the run folder.
        key: the hash of the run.
        name: the key ``name``, which groups runs.
        strategy: the strategy, or the distillation method.
        config: the resolved configuration, nested.
        first: the first round (or epoch) that is computed now, > 1 where the run was interrupted.
        id: what :meth:`Tracker.begin` has returned for this run folder before; None at the first time.
    """

    folder: Path
    key: str
    name: str
    strategy: str
    config: dict[str, Any]
    first: int
    id: str | None

    @property
    def tags(self) -> dict[str, str]:
        """Hash, name and strategy."""
        return {"hash": self.key, "name": self.name, "strategy": self.strategy}

    @property
    def parameters(self) -> dict[str, Any]:
        """The configuration with dotted keys."""
        return dict(_flat(self.config))


class Tracker:
    """The base of all trackers. Every method does nothing.

    An exception that a method raises does not end the run: it is one line on standard error, and the run goes on without the tracker.

    Attributes:
        replaces: a round that is logged again replaces the earlier one. An interrupted run computes the rounds after its last checkpoint
            again. A tracker that does not replace is not told of these again.
    """

    replaces = False

    def begin(self, run: TrackedRun) -> str | None:
        """The run begins or continues.

        Returns:
            An identifier, with which the tracker continues after an interruption; None if it needs none.
        """
        return None

    def log(self, number: int, metrics: Mapping[str, float]) -> None:
        """A round has ended.

        Args:
            number: of the round or epoch.
            metrics: the numbers of its row of ``metrics.csv``, without those that it has not measured; and those of ``generator.csv``.
        """

    def end(self, error: Exception | None) -> None:
        """The run has ended.

        Args:
            error: None if all rounds are done, ``StopRun`` if the run can be continued, otherwise the exception that ended it.
        """


def require_package(package: str, extra: str) -> None:
    """Check that the package of a tracker is installed.

    Raises:
        ConfigError: it is not; the message names the extra of fedkd that installs it.
    """
    require(find_spec(package) is not None, "package", f"must be installed (pip install 'fedkd[{extra}]')", package)


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested values under dotted keys."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
