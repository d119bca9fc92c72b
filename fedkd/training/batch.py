"""The data of one training step, and of all steps of a training."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedkd.types import Examples


@dataclass(frozen=True)
class Batch:
    """The data of one step. The tensors in ``drawn`` can also be read as attributes: ``batch.noise``.

    Args:
        x: images [B, channels, height, width] or other inputs, or None.
        y: labels [B], or other targets, see :data:`fedkd.types.Target`.
        drawn: random numbers and schedules of this step, by name, from ``prepare_batches``.

    Raises:
        AttributeError: there is no such attribute.
    """

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
    """The data of all steps of a training. Iterating gives one :class:`Batch` per step.

    Args:
        y: labels [S, B], or other targets [S, B, ...].
        index: indices of the examples in ``data`` [S, B]; None if the training needs no images.
        data: the examples; None if the training needs no images.
        dtype: type of the images.
        drawn: random numbers and schedules, tensors [S, ...] by name. Each step has its part in ``Batch.drawn``.
        sizes: number of examples of each step [S], at most B. Smaller batches hold the first examples of their row. None: B in all steps.
        per_example: names of the tensors in ``drawn`` with one entry per example [S, B, ...], which are cut where a batch is smaller.
    """

    y: Tensor
    index: Tensor | None = None
    data: Examples | None = None
    dtype: torch.dtype = torch.float32
    drawn: dict[str, Tensor] = field(default_factory=dict)
    sizes: tuple[int, ...] | None = None
    per_example: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.y)

    def __iter__(self) -> Iterator[Batch]:
        for step in range(len(self)):
            size = self.y.shape[1] if self.sizes is None else self.sizes[step]
            x = None if self.data is None or self.index is None else self.data.images(self.index[step][:size], self.dtype)
            drawn = {name: value[step][:size] if name in self.per_example else value[step] for name, value in self.drawn.items()}
            yield Batch(x, self.y[step][:size], drawn)

    def with_drawn(self, drawn: dict[str, Tensor]) -> "Batches":
        """The same steps with other ``drawn`` tensors [S, ...]."""
        for name, value in drawn.items():
            assert len(value) == len(self), f"draw {name!r} has {len(value)} steps, the training {len(self)}"
        return replace(self, drawn=drawn)


def shuffled_epochs(y: Tensor, values: Tensor, num_epochs: int, size: int, generator: torch.Generator) -> Batches:
    """Batches of vectors in place of images, for several passes in random order. The last batch of a pass is smaller where it must be.

    Args:
        y: labels [M].
        values: one tensor for each label [M, ...]. A step has its part as ``batch.values``.
        num_epochs: number of passes, >= 1.
        size: examples per batch, >= 1.
        generator: draws the orders.
    """
    number, size = len(y), min(size, len(y))
    steps, rest = -(-number // size), number % size
    orders = [torch.randperm(number, generator=generator) for _ in range(num_epochs)]
    rows = torch.cat([torch.cat([order, order[: steps * size - number]]).view(steps, size) for order in orders]).to(y.device)
    sizes = tuple(([size] * (steps - 1) + [rest or size]) * num_epochs) if rest else None
    return Batches(y[rows], drawn={"values": values[rows]}, sizes=sizes, per_example=("values",))
