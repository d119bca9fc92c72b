"""The base of data sets: finding files, decoding images once through the cache, and checking pixels and labels."""

import pickle
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from fedkd.data import cache
from fedkd.data.cache import Allocate, Content
from fedkd.errors import ConfigError, require
from fedkd.types import Examples, Task

MODES = {1: "L", 3: "RGB"}
"""Pillow's mode for a number of channels."""


DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L")
"""Pillow's modes of more than 8 bits a channel."""


DECODER_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AssertionError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zlib.error,
    pickle.UnpicklingError,
    Image.DecompressionBombError,
)
"""What Pillow, torchvision, SciPy and pickle raise on files that are damaged. Out of memory is not among them."""


@contextmanager
def decoder_errors(where: str) -> Iterator[None]:
    """Turn whatever a decoder says of a broken file into a ``ValueError`` that names it."""
    try:
        yield
    except DECODER_ERRORS as error:
        raise damaged_file(where, f"{type(error).__name__}: {error}") from error


def damaged_file(where: str, why: str) -> ValueError:
    """The error for a file that is there but cannot be read."""
    return ValueError(f"root must hold intact files, got a damaged one: {where} ({why}); replace it by an intact copy")


def to_array(image: Image.Image, channels: int, size: Sequence[int] | None, where: str) -> np.ndarray:  # [channels, height, width]
    """An image as bytes, converted to ``channels`` and resized (bicubic, without keeping proportions) to ``size`` (height, width).

    Raises:
        ConfigError: naming ``where``, when the image is damaged or holds more than 8 bits a channel.
    """
    with decoder_errors(where):
        image.load()
    require(image.mode not in DEEP_MODES, where, "must hold 8 bits a channel", image.mode)
    image = image if image.mode == MODES[channels] else image.convert(MODES[channels])
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def fill_arrays(
    new: Allocate, part: str, num_examples: int, examples: Iterable[tuple[np.ndarray, int]], num_classes: int | None, where: str
) -> np.ndarray:  # [N]
    """Allocate and fill ``<part>_x`` [N, channels, height, width] and ``<part>_y`` [N]; gives the labels.

    Args:
        new: allocates an array.
        part: ``train`` or ``test``.
        num_examples: how many examples follow, N.
        examples: images [channels, height, width], bytes, and their labels.
        num_classes: labels must be below it; None takes what is below N.
        where: the file or folder they come from, for errors.

    Raises:
        ConfigError: when there is no example, when images differ in shape, or when a label is out of range.
    """
    require(num_examples > 0, where, f"must hold at least one {part} example", num_examples)
    x, y = None, new(f"{part}_y", (num_examples,), "int64")
    limit = num_examples if num_classes is None else num_classes
    for i, (image, label) in enumerate(examples):
        if x is None:
            x = new(f"{part}_x", (num_examples, *image.shape), "uint8")
        if image.shape != x.shape[1:]:
            raise ConfigError(f"{where}: images must have one shape, {x.shape[1:]} as the first, got {image.shape} at {i}; set data.size")
        if not 0 <= label < limit:
            raise damaged_file(where, f"labels must be in 0..{limit - 1}, got {label} at position {i}")
        x[i], y[i] = image, label
    return y


def check_size(size: Sequence[int] | None) -> None:
    """``size`` is None or (height, width) in pixels."""
    whole = size is None or (len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size))
    require(whole, "size", "must be null or two whole numbers > 0, height and width in pixels", size)


def check_channels(channels: int) -> None:
    """``channels`` is 1 (grey) or 3 (colour)."""
    require(channels in MODES, "channels", "must be 1 (grey) or 3 (colour)", channels)


@dataclass(frozen=True, kw_only=True)
class DataSource(ABC):
    """What the sources in files have in common.

    Args:
        root: the folder that holds the files.
        cache: the folder for decoded images; null is ``$XDG_CACHE_HOME/fedkd`` or ``~/.cache/fedkd``.
        scale: the byte that counts as 1.0, > 0.
        mean: per channel, subtracted after scaling.
        std: per channel, > 0, divided by.

    Raises:
        ConfigError: on calling, when files are missing or damaged, or when the cache cannot be written.
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
        content = cache.load_content(self.cache, self.name, self._key(), self.decode)
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

    def missing_file(self, path: Path, remedy: str) -> ValueError:
        """The error for a file that is not there."""
        return ValueError(f"root must hold the files of {self.name}, got {str(self.root)!r}, where {path} is missing; {remedy}")


@dataclass(frozen=True, kw_only=True)
class ResizedSource(DataSource):
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
