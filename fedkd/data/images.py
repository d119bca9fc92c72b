"""What every source of images does alike: pixels to bytes, labels to checked integers."""

import pickle
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image

from fedkd.check import require
from fedkd.data.cache import Allocate

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
def reading(where: str) -> Iterator[None]:
    """Turn whatever a decoder says of a broken file into a ``ValueError`` that names it."""
    try:
        yield
    except DECODER_ERRORS as error:
        raise damaged(where, f"{type(error).__name__}: {error}") from error


def damaged(where: str, why: str) -> ValueError:
    """The error for a file that is there but cannot be read."""
    return ValueError(f"root must hold intact files, got a damaged one: {where} ({why}); replace it by an intact copy")


def pixels(image: Image.Image, channels: int, size: Sequence[int] | None, where: str) -> np.ndarray:  # [channels, height, width]
    """An image as bytes, converted to ``channels`` and resized (bicubic, without keeping proportions) to ``size`` (height, width).

    Raises:
        ValueError: naming ``where``, when the image is damaged or holds more than 8 bits a channel.
    """
    with reading(where):
        image.load()
    require(image.mode not in DEEP_MODES, where, "must hold 8 bits a channel", image.mode)
    image = image if image.mode == MODES[channels] else image.convert(MODES[channels])
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def fill(
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
        ValueError: when there is no example, when images differ in shape, or when a label is out of range.
    """
    require(num_examples > 0, where, f"must hold at least one {part} example", num_examples)
    x, y = None, new(f"{part}_y", (num_examples,), "int64")
    limit = num_examples if num_classes is None else num_classes
    for i, (image, label) in enumerate(examples):
        if x is None:
            x = new(f"{part}_x", (num_examples, *image.shape), "uint8")
        if image.shape != x.shape[1:]:
            raise ValueError(f"{where}: images must have one shape, {x.shape[1:]} as the first, got {image.shape} at {i}; set data.size")
        if not 0 <= label < limit:
            raise damaged(where, f"labels must be in 0..{limit - 1}, got {label} at position {i}")
        x[i], y[i] = image, label
    return y


def check_size(size: Sequence[int] | None) -> None:
    """``size`` is None or (height, width) in pixels."""
    whole = size is None or (len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size))
    require(whole, "size", "must be null or two whole numbers > 0, height and width in pixels", size)


def check_channels(channels: int) -> None:
    """``channels`` is 1 (grey) or 3 (colour)."""
    require(channels in MODES, "channels", "must be 1 (grey) or 3 (colour)", channels)
