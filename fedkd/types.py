"""The data types of fedkd. Read this file first.

Letters in shape comments: B batch, C classes, D features of the embedding, K clients, S local steps, N examples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Tensors = dict[str, Tensor]
"""Named tensors: the parameters and buffers of one network, or any other part of a state."""


State = dict[str, Tensors]
"""``{part: {key: tensor}}``: what is on the wire is what is in memory is what is in the checkpoint."""


Metrics = dict[str, Tensor]
"""Named tensors of any fixed shape that a loss gives besides its value; the training loop sums them over steps."""


@dataclass(frozen=True)
class Task:
    """What is to be learnt: images of one ``shape`` (channels, height, width) into ``num_classes`` classes.

    Networks see ``(pixel - mean) / std`` of pixels 0..max_pixel; mean and std are per channel, or one for all.
    """

    name: str
    shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    max_pixel: float = 1.0
    """The pixel of full brightness: 1, but 255 where bytes are kept as they are (``scale`` 1)."""


class Output(NamedTuple):
    """What a classifier says of a batch: logits [B, C], the embedding that its head reads [B, D], and the maps of its stages."""

    logits: Tensor
    embedding: Tensor
    stages: tuple[Tensor, ...] = ()


class Generated(NamedTuple):
    """What a server's generator makes, for labels y [N]: embeddings [N, D], which heads read, or images, which whole networks read."""

    values: Tensor
    y: Tensor
    are_embeddings: bool


Loss = Callable[[Output, Output, Tensor], Tensor]
"""``(student, teacher, y [B]) -> [B]``: a loss never reduces; means stand in strategies and distillers."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled images, kept as they are stored; they become floats batch by batch.

    Args:
        x: images [N or more, channels, height, width], unsigned bytes; or floats, where they were generated.
        y: labels [N], int64, in 0..C-1.
        scale: the byte that counts as 1.0 (255 for ordinary images, 16 for scikit-learn's digits).
        mean: per channel, subtracted after scaling.
        std: per channel, divided by.
        digest: hash of the decoded content, so that a run is known by its data and not by a path.
        rows: which of ``x`` these examples are [N], int64, so that a subset shares its images; None is all, in order.
        groups: where examples come from (their domain) [N], int64, of which a batch shall have equally many; None: nobody asks.
    """

    x: Tensor
    y: Tensor
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str = ""
    rows: Tensor | None = None
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def images(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The images at ``index`` (any shape) as floats."""
        return self.normalize(self.gather(self.storage_rows(index)), dtype)

    def gather(self, places: Tensor) -> Tensor:
        """The images as they are stored at ``places`` in ``x`` (any shape): whole images are copied, several times faster than ``x[places]``."""
        return self.x.index_select(0, places.flatten()).unflatten(0, places.shape)

    def storage_rows(self, index: Tensor) -> Tensor:
        """The places in ``x`` of the examples at ``index`` (any shape)."""
        return index if self.rows is None else self.rows[index]

    def normalize(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """Images as they are stored, [..., channels, height, width], as floats: ``(x / scale - mean) / std``."""
        x = stored.to(dtype, copy=True)
        factor = torch.tensor([1 / (self.scale * s) for s in self.std], dtype=dtype, device=x.device)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std)], dtype=dtype, device=x.device)
        return x.mul_(factor[:, None, None]).add_(shift[:, None, None])

    def without_labels(self) -> "Examples":
        """The same images, whose labels are all 0."""
        return replace(self, y=torch.zeros_like(self.y))

    def without_images(self) -> "Examples":
        """How images become floats, without any images."""
        return Examples(torch.empty(0), torch.empty(0), self.scale, self.mean, self.std)

    def subset(self, index: np.ndarray | Tensor) -> "Examples":
        """The examples at ``index`` [n]; the images are shared, not copied."""
        index = torch.as_tensor(index, dtype=torch.int64, device=self.y.device)
        groups = None if self.groups is None else self.groups[index]
        return Examples(self.x, self.y[index], self.scale, self.mean, self.std, rows=self.storage_rows(index), groups=groups)

    def to(self, device: torch.device | str) -> "Examples":
        """The same examples on ``device``; itself if they are there already."""
        if self.x.device == torch.device(device):
            return self
        rows, groups = (None if one is None else one.to(device) for one in (self.rows, self.groups))
        return Examples(self.x.to(device), self.y.to(device), self.scale, self.mean, self.std, self.digest, rows, groups)


@dataclass(frozen=True)
class Partition:
    """Who holds what: ``train[k]`` and ``test[k]`` are the indices, ascending, of client k's own examples."""

    train: list[np.ndarray]
    test: list[np.ndarray]
    num_draws: int = 1
    """How many random splits were drawn until one obeyed the rules; 1 if the first did."""


@dataclass(frozen=True)
class Update:
    """What the server sees of a client, and all it sees."""

    client: int
    num_examples: int
    architecture: str
    state: State
    metrics: dict[str, float] = field(default_factory=dict)


def flatten(state: State) -> Tensors:
    """``{part: {key: tensor}}`` to ``{"part:key": tensor}``."""
    return {f"{part}:{key}": value for part, tensors in state.items() for key, value in tensors.items()}


def unflatten(tensors: Mapping[str, torch.Tensor]) -> State:
    """The inverse of :func:`flatten`; a part without tensors does not survive."""
    state: State = {}
    for name, value in tensors.items():
        part, _, key = name.partition(":")
        state.setdefault(part, {})[key] = value
    return state
