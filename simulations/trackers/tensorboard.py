"""TensorBoard: events in the folder ``tensorboard`` of the run folder."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from simulations.trackers.base import TrackedRun, Tracker, require_package

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardTracker(Tracker):
    """Writes every metric as a scalar at its round. Events that an interrupted run has written of rounds to come are hidden.

    Raises:
        ConfigError: the package ``tensorboard`` is not installed.
    """

    replaces = True

    def __init__(self) -> None:
        require_package("tensorboard", "tensorboard")
        self._writer: SummaryWriter | None = None

    def begin(self, run: TrackedRun) -> None:
        """Open the events."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.first)

    def log(self, number: int, metrics: Mapping[str, float]) -> None:
        """Write a round."""
        assert self._writer is not None, "the run has begun"
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()

    def end(self, error: Exception | None) -> None:
        """Close the events."""
        assert self._writer is not None, "the run has begun"
        self._writer.close()
