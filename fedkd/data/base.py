"""The base class of data sets: finding files, decoding images once through the cache, and checking pixels and labels."""

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
"""Pillow's image mode for each number of channels."""

DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L")
"""Pillow's image modes with more than 8 bits per channel."""

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
"""Exceptions of Pillow, torchvision, SciPy, and pickle for damaged files. ``MemoryError`` is not one of them."""


# ------------------------------------------------------------------------------------------------------------------ errors
@contextmanager
def decoder_errors(location: str) -> Iterator[None]:
    """Convert the exceptions of decoders inside the block.

    Args:
        location: the file that is decoded, for the message.

    Raises:
        ConfigError: a decoder failed, so the file is damaged.
    """
    try:
        yield
    except DECODER_ERRORS as error:
        raise damaged_file(location, f"{type(error).__name__}: {error}") from error


def damaged_file(location: str, reason: str) -> ConfigError:
    """The error for a file that exists and cannot be decoded."""
    return ConfigError(f"root must hold intact files, got a damaged one: {location} ({reason}); replace it with an intact copy")


def check_size(size: Sequence[int] | None) -> None:
    """Check that ``size`` is None, or (height, width) in pixels.

    Raises:
        ConfigError: it is neither.
    """
    valid = size is None or (len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size))
    require(valid, "size", "must be null or two whole numbers > 0, height and width in pixels", size)


def check_channels(channels: int) -> None:
    """Check that ``channels`` is 1 (gray) or 3 (color).

    Raises:
        ConfigError: it is another number.
    """
    require(channels in MODES, "channels", "must be 1 (gray) or 3 (color)", channels)


# ------------------------------------------------------------------------------------------------------------------ images
def to_array(image: Image.Image, channels: int, size: Sequence[int] | None, location: str) -> np.ndarray:  # [channels, height, width]
    """An image as unsigned bytes.

    Args:
        image: a Pillow image.
        channels: number of channels to convert to, 1 or 3.
        size: (height, width) to resize to, bicubic, without keeping the proportions; None: no resizing.
        location: the image's file, for messages.

    Raises:
        ConfigError: the image is damaged, or has more than 8 bits per channel.
    """
    with decoder_errors(location):
        image.load()
    require(image.mode not in DEEP_MODES, location, "must hold 8 bits per channel", image.mode)
    image = image if image.mode == MODES[channels] else image.convert(MODES[channels])
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def fill_arrays(
    allocate: Allocate, part: str, num_examples: int, examples: Iterable[tuple[np.ndarray, int]], num_classes: int | None, location: str
) -> np.ndarray:  # [N]
    """Allocate and fill the arrays ``<part>_x`` [N, channels, height, width] and ``<part>_y`` [N].

    Args:
        allocate: allocates an array in the cache.
        part: ``train`` or ``test``.
        num_examples: number of examples, N.
        examples: images [channels, height, width], unsigned bytes, each with its label.
        num_classes: C; labels must be in 0..C-1. None: labels must be in 0..N-1.
        location: the file or folder of the examples, for messages.

    Returns:
        The labels.

    Raises:
        ConfigError: there is no example, images have different shapes, or a label is out of range.
    """
    require(num_examples > 0, location, f"must hold at least one {part} example", num_examples)
    x, y = None, allocate(f"{part}_y", (num_examples,), "int64")
    limit = num_examples if num_classes is None else num_classes
    for i, (image, label) in enumerate(examples):
        if x is None:
            x = allocate(f"{part}_x", (num_examples, *image.shape), "uint8")
        if image.shape != x.shape[1:]:
            raise ConfigError(
                f"{location}: images must have one shape, {x.shape[1:]} as the first, got {image.shape} at {i}; set data.size"
            )
        if not 0 <= label < limit:
            raise damaged_file(location, f"labels must be in 0..{limit - 1}, got {label} at position {i}")
        x[i], y[i] = image, label
    return y


# ----------------------------------------------------------------------------------------------------------------- sources
@dataclass(frozen=True, kw_only=True)
class DataSource(ABC):
    """A data set in files. Calling it returns the task, the training examples, and the test examples.

    The images are decoded on the first call on a machine. Later calls memory-map them from the cache.

    Args:
        root: the folder that holds the files.
        cache: the folder for decoded images; null: ``$XDG_CACHE_HOME/fedkd`` or ``~/.cache/fedkd``.
        scale: the byte that stands for 1.0, > 0.
        mean: per channel, subtracted after scaling.
        std: per channel, > 0; images are divided by it after that.

    Raises:
        ConfigError: on creation if a value is out of range; on calling if files are missing or damaged, or the cache cannot be written.
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
        """Name of the task."""

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that determine the decoded content.

        Raises:
            ConfigError: a file is missing.
        """

    @abstractmethod
    def recipe(self) -> dict[str, object]:
        """The parameters besides ``root`` that determine the decoded content."""

    @abstractmethod
    def decode(self, allocate: Allocate) -> tuple[str, ...]:
        """Allocate and fill the arrays ``train_x``, ``train_y``, ``test_x``, and ``test_y``.

        Args:
            allocate: allocates an array in the cache.

        Returns:
            The names of the classes; empty if the classes have no names.

        Raises:
            ConfigError: a file is damaged.
        """

    @property
    def folder(self) -> Path:
        """``root`` as an absolute path."""
        return Path(self.root).expanduser().resolve()

    def __call__(self) -> tuple[Task, Examples, Examples]:
        """The task, the training examples, and the test examples."""
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

    def missing_file(self, path: Path, remedy: str) -> ConfigError:
        """The error for a file that does not exist."""
        return ConfigError(f"root must hold the files of {self.name}, got {str(self.root)!r}, where {path} is missing; {remedy}")

    def _key(self) -> dict[str, object]:
        """Everything that determines the decoded content: decoder, parameters, folder, and name, size and time of every file."""
        stats = [(str(path.relative_to(self.folder)), path.stat()) for path in self.files()]
        return {
            "source": type(self).__qualname__,
            "pillow": PIL.__version__,
            "root": str(self.folder),
            "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
            **self.recipe(),
        }

    def _examples(self, content: Content, part: str) -> Examples:
        """The examples of one part: ``train`` or ``test``."""
        x, y = (torch.from_numpy(np.asarray(content.arrays[f"{part}_{which}"])) for which in "xy")
        return Examples(x, y, float(self.scale), tuple(map(float, self.mean)), tuple(map(float, self.std)), content.digest)


@dataclass(frozen=True, kw_only=True)
class ResizedSource(DataSource):
    """A data set whose files may have any size and number of channels.

    Args:
        size: (height, width) in pixels to resize to, bicubic; null where all images have one size.
        channels: 1 (gray) or 3 (color); images are converted.
    """

    size: Sequence[int] | None
    channels: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.size)
        check_channels(self.channels)

    def recipe(self) -> dict[str, object]:
        """``size`` and ``channels``."""
        return {"size": None if self.size is None else list(self.size), "channels": self.channels}
