"""MLflow: a run of an experiment on a tracking server or in a local store."""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedkd.errors import StopRun
from simulations.trackers.base import TrackedRun, Tracker, require_package

MAX_PARAMETERS, MAX_LENGTH = 100, 6000
"""Limits of MLflow: parameters in one call, and characters of a value."""


class MLflowTracker(Tracker):
    """Logs metrics at their round, the configuration as parameters, and hash, name and strategy as tags.

    Args:
        tracking_uri: of the server, or a store such as ``sqlite:///mlflow.db``; null: ``MLFLOW_TRACKING_URI``, or MLflow's default.
        experiment: name of the experiment, which is created if it does not exist.

    Raises:
        ConfigError: the package ``mlflow`` is not installed.
    """

    def __init__(self, *, tracking_uri: str | None, experiment: str) -> None:
        require_package("mlflow", "mlflow")
        self.tracking_uri, self.experiment = tracking_uri, experiment
        self._client: Any = None
        self._id = ""

    def begin(self, run: TrackedRun) -> str:
        """Create a run, or continue the one of this run folder."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # by default a server that is gone stops the run for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        import mlflow
        from mlflow.entities import Param

        self._client = mlflow.MlflowClient(tracking_uri=self.tracking_uri)
        if run.id is not None:
            self._client.update_run(run.id, status="RUNNING")
            self._id = run.id
            return run.id
        title = f"{run.strategy} {run.key}"
        self._id = self._client.create_run(self._experiment_id(), run_name=title, tags=run.tags).info.run_id
        parameters = [Param(allowed(name), str(value)[:MAX_LENGTH]) for name, value in run.parameters.items()]
        for some in chunks(parameters, MAX_PARAMETERS):
            self._client.log_batch(self._id, params=some)
        return self._id

    def log(self, number: int, metrics: Mapping[str, float]) -> None:
        """Log a round in one call."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[Metric(allowed(name), value, now, number) for name, value in metrics.items()])

    def end(self, error: Exception | None) -> None:
        """Set the status of the run."""
        status = "FINISHED" if error is None else "KILLED" if isinstance(error, StopRun) else "FAILED"
        self._client.set_terminated(self._id, status)

    def _experiment_id(self) -> str:
        """The identifier of the experiment, which another process may create at the same time."""
        known = self._client.get_experiment_by_name(self.experiment)
        if known is None:
            try:
                return self._client.create_experiment(self.experiment)
            except Exception:
                known = self._client.get_experiment_by_name(self.experiment)
                if known is None:
                    raise
        return known.experiment_id


def allowed(name: str) -> str:
    """A name with MLflow's characters alone: ``choices.model@student`` becomes ``choices.model_student``."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """``items`` in parts of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
