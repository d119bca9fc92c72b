"""Weights & Biases, offline by default: files in ``.wandb`` of the run folder, which ``wandb sync`` uploads."""

from collections.abc import Mapping
from typing import Any, Literal

from simulations.trackers.base import TrackedRun, Tracker, require_package


class WandbTracker(Tracker):
    """Logs metrics at their round, the configuration, and hash, name and strategy as tags.

    Args:
        project: name of the project.
        entity: user or team that owns the project; null: that of the login.
        mode: ``offline`` writes files alone, ``online`` sends them too.

    Raises:
        ConfigError: the package ``wandb`` is not installed.
    """

    def __init__(self, *, project: str, entity: str | None, mode: Literal["offline", "online"]) -> None:
        require_package("wandb", "wandb")
        self.project, self.entity, self.mode = project, entity, mode
        self._run: Any = None

    def begin(self, run: TrackedRun) -> str:
        """Create a run, or continue the one of this run folder."""
        import wandb

        (run.folder / ".wandb").mkdir(exist_ok=True)  # the name that wandb then takes; run folders are not searched in hidden folders
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            id=run.id,
            resume=None if run.id is None else "allow",
            name=f"{run.strategy} {run.key}",
            config=run.config,
            tags=list(run.tags.values()),
            dir=str(run.folder),
            settings=wandb.Settings(console="off", silent=True),
        )
        return self._run.id

    def log(self, number: int, metrics: Mapping[str, float]) -> None:
        """Log a round."""
        self._run.log(dict(metrics), step=number)

    def end(self, error: Exception | None) -> None:
        """Finish the run."""
        self._run.finish(exit_code=0 if error is None else 1)
