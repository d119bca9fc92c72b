"""What is trained on: one step's material, and that of a whole training."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedkd.types import Examples


@dataclass(frozen=True)
class Batch:
    """One step's material: images x, labels y [B], and the strategy's own draws of this step as further attributes."""

    x: Tensor | None
    y: Tensor
    drawn: dict[str, Tensor] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["drawn"][name]
        except KeyError:
            raise AttributeError(f"this batch has no {name!r}; it has x, y and {sorted(self.__dict__.get('drawn', ()))}") from None


@dataclass(frozen=True)
class Batches:
    """All steps of one training at once.

    Args:
        y: labels [S, B].
        index: which examples of ``data`` [S, B]; None where nothing but draws is trained on.
        data: where the images are.
        dtype: of the images.
        drawn: tensors [S, ...] that steps see as attributes of their batch.
    """

    y: Tensor
    index: Tensor | None = None
    data: Examples | None = None
    dtype: torch.dtype = torch.float32
    drawn: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.y)

    def __iter__(self) -> Iterator[Batch]:
        for step in range(len(self)):
            x = None if self.data is None else self.data.images(self.index[step], self.dtype)
            yield Batch(x, self.y[step], {name: value[step] for name, value in self.drawn.items()})

    def with_drawn(self, drawn: dict[str, Tensor]) -> "Batches":
        """The same steps with these draws; each must have the number of steps as its first dimension."""
        for name, value in drawn.items():
            assert len(value) == len(self), f"draw {name!r} has {len(value)} steps, the training {len(self)}"
        return replace(self, drawn=drawn)
