"""Callbacks of the Python API: they follow a run round by round, and cannot change its result."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fedkd.errors import ConfigError, RunFolderError, StopRun, nearest, one_line, require
from fedkd.files import write_atomically
from simulations.api.run import CHECKPOINTS, Run
from simulations.run_folder.observers import RunObserver, SaveCheckpoint

BEST = CHECKPOINTS["best"]


class Callback:
    """The base of all callbacks. Every method does nothing.

    The methods are called in the driver's process, after the rows of the round are on disk, and are given copies, so that nothing they do
    changes a result. ``raise fedkd.StopRun`` in :meth:`on_run_begin` or :meth:`on_round` ends the run after a checkpoint. The run is then
    unfinished, and the same call continues it. Any other exception ends the run, and is raised by the call. A run that is finished
    already is skipped, and no method is called.
    """

    def on_run_begin(self, run: Run) -> None:
        """The run begins, or continues after its last checkpoint. ``run.metrics`` has the rounds that are done."""

    def on_round(self, run: Run, round: int, metrics: Mapping[str, float], clients: Sequence[Mapping[str, Any]]) -> None:
        """A round of a federated run, or an epoch of a distillation, has ended.

        Args:
            run: the run, whose folder has all rows up to this round.
            round: its number, >= 1.
            metrics: the row of ``metrics.csv``, without the metrics that this round has not. Accuracies are in 0..1; only evaluated rounds
                have them.
            clients: the rows of ``clients.csv``; empty in a distillation.
        """

    def on_run_end(self, run: Run, error: Exception | None) -> None:
        """The run has ended.

        Args:
            run: the run.
            error: None if all rounds are done, :class:`fedkd.StopRun` if the run ended early and can be continued, otherwise the exception
                that ended it.
        """


class CallbackObserver(RunObserver):
    """A callback as an observer of a run.

    Args:
        callback: of the user.
    """

    def __init__(self, callback: Callback) -> None:
        require(isinstance(callback, Callback), "callbacks", "must be objects of subclasses of fedkd.Callback", callback)
        self._callback = callback
        self._folder = Path()

    def begin(self, folder: Path, first: int) -> None:
        """Call ``on_run_begin``."""
        self._folder = folder
        self._tell("on_run_begin", Run(folder))

    def round(self, number: int, metrics: Mapping[str, Any], clients: Sequence[Mapping[str, Any]], save: SaveCheckpoint) -> None:
        """Call ``on_round``."""
        run = Run(self._folder)
        object.__setattr__(run, "_save", save)  # for BestCheckpoint; to everybody else the run is frozen
        self._tell("on_round", run, number, metrics, clients)

    def end(self, error: Exception | None) -> None:
        """Call ``on_run_end``."""
        self._tell("on_run_end", Run(self._folder), error)

    def _tell(self, method: str, run: Run, *given: Any) -> None:
        """Call a method; an exception says which callback has raised it."""
        try:
            getattr(self._callback, method)(run, *given)
        except StopRun:
            raise
        except Exception as error:
            where = f" of round {given[0]}" if method == "on_round" else ""
            error.add_note(
                f"raised by {type(self._callback).__name__}.{method}{where}; the run {run.path} continues from its last checkpoint"
            )
            raise


class _Best:
    """The best value of a metric so far.

    Args:
        metric: a column of ``metrics.csv``.
        mode: ``max`` or ``min``.
        min_delta: >= 0, by which a value must be better to count.
    """

    def __init__(self, metric: str, mode: Literal["max", "min"], min_delta: float = 0.0) -> None:
        require(mode in ("max", "min"), "mode", "must be max or min", mode)
        require(min_delta >= 0, "min_delta", "must be >= 0", min_delta)
        self.metric, self.mode, self.min_delta = metric, mode, min_delta
        self.value: float | None = None

    def improves(self, value: float) -> bool:
        """Whether ``value`` is better than all before; it is noted then."""
        sign = 1 if self.mode == "max" else -1
        better = self.value is None or sign * (value - self.value) > self.min_delta
        if better:
            self.value = value
        return better

    def of(self, metrics: Mapping[str, float]) -> float | None:
        """The metric in a row; None in a round without it.

        Raises:
            ConfigError: the round was evaluated, and has no such metric.
        """
        value = metrics.get(self.metric)
        if value is not None and math.isfinite(value):
            return value
        evaluated = [name for name in metrics if "test_accuracy" in name]
        if value is None and evaluated and self.metric != "train_loss":
            known = ", ".join(name for name in metrics if "_class_" not in name)
            raise ConfigError(f"metric must be one of {known}, got {self.metric!r}{nearest(self.metric, metrics)}")
        return None

    def warn(self, run: Run, name: str) -> None:
        """Say in a line that a metric of the test set selects on the test set."""
        config = run.config
        held_out = config.validation_fraction > 0 and (run.kind == "distillation" or config.evaluation.split == "validation")
        if "test_" in self.metric and not held_out:
            remedy = "validation_fraction=0.2" if run.kind == "distillation" else "evaluation.split=validation validation_fraction=0.2"
            warnings.warn(f"{name} selects a round on the test set ({self.metric}); hold out training data instead: {remedy}", stacklevel=2)


class EarlyStopping(Callback):
    """End a run when a metric has not improved for some evaluated rounds.

    With a metric of the test set this selects the number of rounds on the test set, and the accuracy of the last round is optimistic. Hold
    out training data instead: ``evaluation__split="validation", validation_fraction=0.2`` scores the held-out examples under the same names
    of metrics.

    The same call stops at the same round again, as the rounds on disk count.

    Args:
        metric: a column of ``metrics.csv``.
        patience: >= 1, evaluated rounds without an improvement after which the run ends.
        mode: ``max`` if more is better, ``min`` if less is.
        min_delta: >= 0, by which a round must be better to count as an improvement.
    """

    def __init__(
        self, metric: str = "local_test_accuracy", patience: int = 10, mode: Literal["max", "min"] = "max", min_delta: float = 0.0
    ) -> None:
        require(patience >= 1, "patience", "must be >= 1 evaluated rounds", patience)
        self.metric, self.patience, self.mode, self.min_delta = metric, patience, mode, min_delta
        self._best, self._waited = _Best(metric, mode, min_delta), 0

    def on_run_begin(self, run: Run) -> None:
        """Count the rounds that are done already."""
        self._best, self._waited = _Best(self.metric, self.mode, self.min_delta), 0
        self._best.warn(run, type(self).__name__)
        metrics = run.metrics
        for row in metrics.to_dict("records") if self.metric in metrics else ():
            numbers = {str(name): float(value) for name, value in row.items()}
            self._count(int(numbers.get("round", numbers.get("epoch", 0))), numbers)

    def on_round(self, run: Run, round: int, metrics: Mapping[str, float], clients: Sequence[Mapping[str, Any]]) -> None:
        """Count the round."""
        self._count(round, metrics)

    def _count(self, number: int, metrics: Mapping[str, float]) -> None:
        """Note a round.

        Raises:
            StopRun: the patience is at its end.
        """
        value = self._best.of(metrics)
        if value is None:
            return
        self._waited = 0 if self._best.improves(value) else self._waited + 1
        if self._waited >= self.patience:
            raise StopRun(
                f"{self.metric} has not improved on {self._best.value:.4f} for {self._waited} evaluated rounds, up to round {number}"
            )


class BestCheckpoint(Callback):
    """Keep the checkpoint of the best round: ``best_checkpoint.safetensors`` and ``best_checkpoint.json`` in the run folder.

    ``run.model(which="best")`` gives its model. Of equal rounds the first is kept. With a metric of the test set this selects the round
    on the test set, and its accuracy is optimistic. Hold out training data instead: ``evaluation__split="validation",
    validation_fraction=0.2``.

    Args:
        metric: a column of ``metrics.csv``.
        mode: ``max`` if more is better, ``min`` if less is.
    """

    def __init__(self, metric: str = "local_test_accuracy", mode: Literal["max", "min"] = "max") -> None:
        self.metric, self.mode = metric, mode
        self._best = _Best(metric, mode)

    def on_run_begin(self, run: Run) -> None:
        """Take up the best round of an interrupted run; one of another metric does not count."""
        self._best = _Best(self.metric, self.mode)
        self._best.warn(run, type(self).__name__)
        path = run.path / f"{BEST}.json"
        if path.is_file():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                same = (kept["metric"], kept["mode"]) == (self.metric, self.mode) and kept["round"] <= run.round
                self._best.value = kept["value"] if same else None
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise RunFolderError(f"{path} must be what BestCheckpoint has written: {one_line(error)}; remove it") from error

    def on_round(self, run: Run, round: int, metrics: Mapping[str, float], clients: Sequence[Mapping[str, Any]]) -> None:
        """Keep the round if it is the best."""
        value = self._best.of(metrics)
        if value is None or not self._best.improves(value):
            return
        assert run._save is not None, "the run is under way"
        run._save(BEST)
        path = run.path / f"{BEST}.json"
        header = json.loads(path.read_text(encoding="utf-8")) | {"metric": self.metric, "mode": self.mode, "value": value}
        write_atomically(path, (json.dumps(header, indent=1) + "\n").encode())
