"""A source of images in files: finds the files, decodes them once through the cache, and gives (task, train, test)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import PIL
import torch

from fedkd.check import require
from fedkd.data import cache
from fedkd.data.cache import Allocate, Content
from fedkd.data.images import check_channels, check_size
from fedkd.types import Examples, Task


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """What the sources in files have in common.

    Args:
        root: the folder that holds the files.
        cache: the folder for decoded images; null is ``$XDG_CACHE_HOME/fedkd`` or ``~/.cache/fedkd``.
        scale: the byte that counts as 1.0, > 0.
        mean: per channel, subtracted after scaling.
        std: per channel, > 0, divided by.

    Raises:
        ValueError: on calling, when files are missing or damaged, or when the cache cannot be written.
    """

    root: str
    cache: str | None
    scale: float
    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        require(isfinite(self.scale) and self.scale > 0, "scale", "must be > 0 (255 maps bytes to 0..1)", self.scale)
        require(all(isfinite(m) for m in self.mean), "mean", "must hold one number per channel", self.mean)
        require(all(isfinite(s) and s > 0 for s in self.std), "std", "must hold one number > 0 per channel", self.std)
        require(len(self.mean) == len(self.std) > 0, "std", f"must hold as many numbers as mean, {len(self.mean)}", self.std)

    @property
    @abstractmethod
    def name(self) -> str:
        """What the task is called."""

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that determine the content; a ``ValueError`` naming ``root`` if one is missing."""

    @abstractmethod
    def recipe(self) -> dict[str, object]:
        """The parameters, besides ``root``, that determine the decoded content."""

    @abstractmethod
    def decode(self, new: Allocate) -> tuple[str, ...]:
        """Fill train_x, train_y, test_x and test_y; gives the classes' names, none if they have none."""

    @property
    def folder(self) -> Path:
        """``root``, absolute."""
        return Path(self.root).expanduser().resolve()

    def __call__(self) -> tuple[Task, Examples, Examples]:
        """Task, training and test examples; decoded on the first call on a machine, memory-mapped on every later one."""
        content = cache.load(self.cache, self.name, self._key(), self.decode)
        train, test = self._examples(content, "train"), self._examples(content, "test")
        require(
            train.x.shape[1:] == test.x.shape[1:],
            f"{self.folder}: test images",
            f"must have the shape {tuple(train.x.shape[1:])} of the training images; set data.size",
            tuple(test.x.shape[1:]),
        )
        channels, height, width = train.x.shape[1:]
        require(len(self.mean) == channels, "mean", f"must hold one number per channel, {channels}", self.mean)
        num_classes = len(content.class_names) or int(train.y.max()) + 1
        task = Task(self.name, (channels, height, width), num_classes, content.class_names, train.mean, train.std, 255 / train.scale)
        return task, train, test

    def _key(self) -> dict[str, object]:
        """What determines the decoded content: decoder, parameters, place, and every file's name, size and time."""
        stats = [(str(path.relative_to(self.folder)), path.stat()) for path in self.files()]
        return {
            "source": type(self).__qualname__,
            "pillow": PIL.__version__,
            "root": str(self.folder),
            "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
            **self.recipe(),
        }

    def _examples(self, content: Content, part: str) -> Examples:
        x, y = (torch.from_numpy(np.asarray(content.arrays[f"{part}_{which}"])) for which in "xy")
        return Examples(x, y, float(self.scale), tuple(map(float, self.mean)), tuple(map(float, self.std)), content.digest)

    def missing(self, path: Path, remedy: str) -> ValueError:
        """The error for a file that is not there."""
        return ValueError(f"root must hold the files of {self.name}, got {str(self.root)!r}, where {path} is missing; {remedy}")


@dataclass(frozen=True, kw_only=True)
class Resized(Source):
    """A source whose images may be of any size and colour until they are decoded.

    Args:
        size: (height, width) in pixels to resize to, bicubic; null where all images have one size already.
        channels: 1 (grey) or 3 (colour).
    """

    size: Sequence[int] | None
    channels: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.size)
        check_channels(self.channels)

    def recipe(self) -> dict[str, object]:
        return {"size": None if self.size is None else list(self.size), "channels": self.channels}
