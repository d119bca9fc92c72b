"""The task's own training images."""

from dataclasses import dataclass

from fedkd.seed import Seed
from fedkd.sources.source import Source
from fedkd.types import Examples, Task


@dataclass(frozen=True, kw_only=True)
class Real(Source):
    """The training images with their labels: the papers' own setting; after a federation, an upper bound that no server has.

    Args:
        labels: they may be learnt from.
    """

    labels: bool

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        return self.labels

    def open(self, task: Task, train: Examples, seed: Seed) -> Examples:
        return train
