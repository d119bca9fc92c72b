"""The base class of data sets: finding files, decoding images once through the cache, and checking pixels and labels."""

import pickle
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from fedkd.data import cache
from fedkd.data.cache import Allocate, Content, Decoded
from fedkd.errors import ConfigError, require
from fedkd.types import Examples, LeftOut, Task

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

MAX_LISTED = 100
"""Unreadable examples that an error lists. If there are more, a file lists all of them."""

Load = Callable[[], tuple[np.ndarray, int]]
"""Reads one example: the image [channels, height, width], unsigned bytes, and its label."""


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
def to_array(image: Image.Image, channels: int, size: Sequence[int] | None) -> np.ndarray:  # [channels, height, width]
    """An image as unsigned bytes.

    Args:
        image: a Pillow image.
        channels: number of channels to convert to, 1 or 3.
        size: (height, width) to resize to, bicubic, without keeping the proportions; None: no resizing.

    Raises:
        ValueError: the image has more than 8 bits per channel. Their range is unknown: 12-bit images are often stored in 16 bits.
        OSError: the image is damaged. Pillow raises others of :data:`DECODER_ERRORS` too.
    """
    image.load()
    if image.mode in DEEP_MODES:
        raise ValueError(f"more than 8 bits per channel, Pillow's mode {image.mode}; scale it to 8 bits first")
    image = image if image.mode == MODES[channels] else image.convert(MODES[channels])
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def fill_arrays(
    allocate: Allocate,
    part: str,
    num_examples: int,
    examples: Callable[[], Iterable[tuple[str, Load]]],
    num_classes: int,
    location: str,
    skip_unreadable: bool = False,
    groups: np.ndarray | None = None,
) -> tuple[tuple[str, str], ...]:
    """Allocate and fill the arrays ``<part>_x`` [N, channels, height, width] and ``<part>_y`` [N], and ``<part>_groups`` [N] of groups.

    Args:
        allocate: allocates an array in the cache.
        part: ``train`` or ``test``.
        num_examples: number of examples, N.
        examples: begins an iteration over the location of each example, and a function that reads it.
        num_classes: C; labels must be in 0..C-1.
        location: the file or folder of the examples, for messages.
        skip_unreadable: leave out the examples that cannot be read. If not, the arrays are incomplete where there are such examples.
        groups: the group of each example [N], int64; None: no groups.

    Returns:
        (location, reason) of every example that cannot be read.

    Raises:
        ConfigError: there is no example, images have different shapes, or a label is out of range.
    """
    require(num_examples > 0, "root", f"must hold at least one {part} example in {location}", num_examples)
    unreadable = _fill(allocate, part, num_examples, examples(), num_classes, location)
    if groups is not None:
        bad = {where for where, _ in unreadable}
        kept = groups[[where not in bad for where, _ in examples()]] if bad else groups
        allocate(f"{part}_groups", kept.shape, "int64")[:] = kept
    if unreadable and skip_unreadable:
        bad = {where for where, _ in unreadable}
        num_readable = num_examples - len(unreadable)
        require(num_readable > 0, "root", f"must hold at least one {part} example that can be read in {location}", num_readable)
        _fill(allocate, part, num_readable, (one for one in examples() if one[0] not in bad), num_classes, location)
    return tuple(unreadable)


def _fill(
    allocate: Allocate, part: str, num_examples: int, examples: Iterable[tuple[str, Load]], num_classes: int, location: str
) -> list[tuple[str, str]]:
    """Fill both arrays in order. Examples that cannot be read are returned, and leave no gap."""
    x, y, row = None, allocate(f"{part}_y", (num_examples,), "int64"), 0
    unreadable = []
    for where, load in examples:
        try:
            image, label = load()
        except DECODER_ERRORS as error:
            unreadable.append((where, f"{type(error).__name__}: {error}"))
            continue
        if x is None:
            x = allocate(f"{part}_x", (num_examples, *image.shape), "uint8")
        if image.shape != x.shape[1:]:
            raise ConfigError(
                f"size must be set where images differ in size, got shape {x.shape[1:]} first and {image.shape} in {where}; "
                "set data.size=[height,width]"
            )
        if not 0 <= label < num_classes:
            raise damaged_file(location, f"labels must be in 0..{num_classes - 1}, got {label} in {where}")
        x[row], y[row], row = image, label, row + 1
    return unreadable


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
    def decode(self, allocate: Allocate) -> Decoded:
        """Allocate and fill the arrays ``train_x``, ``train_y``, ``test_x``, and ``test_y``, and those of groups, see :func:`fill_arrays`.

        Args:
            allocate: allocates an array in the cache.

        Returns:
            The names of the classes, empty if the classes have no names; and the examples that cannot be read.

        Raises:
            ConfigError: a file is damaged.
        """

    def passed_over(self) -> list[LeftOut]:
        """Files in ``root`` that belong to neither part, as far as the data set looks for them."""
        return []

    @property
    def skips_unreadable(self) -> bool:
        """Whether examples that cannot be read are left out. If not, they are an error."""
        return False

    @property
    def folder(self) -> Path:
        """``root`` as an absolute path."""
        return Path(self.root).expanduser().resolve()

    def __call__(self) -> tuple[Task, Examples, Examples]:
        """The task, the training examples, and the test examples."""
        content = cache.load_content(self.cache, self.name, self._key(), self._decode_all)
        train, test = self._examples(content, "train"), self._examples(content, "test")
        unreadable = [LeftOut(location, f"unreadable ({reason})") for location, reason in content.unreadable]
        train = replace(train, left_out=(*unreadable, *self.passed_over()))
        require(
            train.x.shape[1:] == test.x.shape[1:],
            "size",
            f"must be set (data.size=[height,width]) where test images differ from the training images of shape {tuple(train.x.shape[1:])}",
            tuple(test.x.shape[1:]),
        )
        channels, height, width = train.x.shape[1:]
        example = "data.mean=[0.5] data.std=[0.5]" if channels == 1 else "data.mean=[0.5,0.5,0.5] data.std=[0.5,0.5,0.5]"
        require(len(self.mean) == channels, "mean", f"must hold one number per channel, {channels} (such as {example})", list(self.mean))
        num_classes = len(content.class_names) or int(train.y.max()) + 1
        task = Task(self.name, (channels, height, width), num_classes, content.class_names, train.mean, train.std, 255 / train.scale)
        return task, train, test

    def missing_file(self, path: Path, remedy: str) -> ConfigError:
        """The error for a file that does not exist."""
        return ConfigError(f"root must hold the files of {self.name}, got {str(self.root)!r}, where {path} is missing; {remedy}")

    def _decode_all(self, allocate: Allocate) -> Decoded:
        """Decode both parts. Unreadable examples of both are one error, unless they are left out."""
        decoded = self.decode(allocate)
        if not decoded.unreadable or self.skips_unreadable:
            return decoded
        number, listed = len(decoded.unreadable), [f"{location} ({reason})" for location, reason in decoded.unreadable]
        shown = ", ".join(listed[:MAX_LISTED])
        if number > MAX_LISTED:
            path = cache.cache_directory(self.cache) / f"{self.name}-unreadable.txt"
            with cache.write_errors(path.parent):
                path.write_text("\n".join(listed) + "\n", encoding="utf-8")
            shown += f", and {number - MAX_LISTED} more; {path} lists all"
        remedy = "replace them with intact copies"
        if hasattr(self, "skip_unreadable"):
            remedy += ", or leave them out with data.skip_unreadable=true"
        raise ConfigError(f"root must hold images that can be read, got {number} that cannot: {' '.join(shown.split())}; {remedy}")

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
        return examples_of_content(content, part, float(self.scale), tuple(map(float, self.mean)), tuple(map(float, self.std)))


def examples_of_content(content: Content, part: str, scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> Examples:
    """The examples of one part of an entry of the cache. Their images stay in the mapped file until they are used.

    Args:
        content: the entry.
        part: ``train`` or ``test``.
        scale: the byte that stands for 1.0.
        mean: per channel.
        std: per channel.
    """
    x, y = (torch.from_numpy(np.asarray(content.arrays[f"{part}_{which}"])) for which in "xy")
    stored = content.arrays.get(f"{part}_groups")
    groups = None if stored is None else torch.from_numpy(np.asarray(stored))
    return Examples(x, y, scale, mean, std, content.digest, groups=groups, group_names=content.group_names)


@dataclass(frozen=True, kw_only=True)
class ResizedSource(DataSource):
    """A data set whose files may have any size and number of channels.

    Args:
        size: (height, width) in pixels to resize to, bicubic; null where all images have one size.
        channels: 1 (gray) or 3 (color); images are converted.
        skip_unreadable: leave out images that cannot be read, and list them in the run folder; if false, they are an error.
    """

    size: Sequence[int] | None
    channels: int
    skip_unreadable: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.size)
        check_channels(self.channels)
        require(isinstance(self.skip_unreadable, bool), "skip_unreadable", "must be true or false", self.skip_unreadable)

    @property
    def skips_unreadable(self) -> bool:
        """``skip_unreadable``."""
        return self.skip_unreadable

    def recipe(self) -> dict[str, object]:
        """``size`` and ``channels``, and whether images may be left out."""
        size = None if self.size is None else list(self.size)
        return {"size": size, "channels": self.channels, **({"skip_unreadable": True} if self.skip_unreadable else {})}
