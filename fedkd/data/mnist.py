"""MNIST, Fashion-MNIST, and EMNIST: gray images of 28x28 pixels in IDX files (format: http://yann.lecun.com/exdb/mnist)."""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torchvision.datasets
from PIL import Image
from torchvision.datasets import VisionDataset

from fedkd.data.base import damaged_file, decoder_errors
from fedkd.data.torchvision_base import TorchvisionSource
from fedkd.errors import require


def check_idx(path: Path) -> None:
    """Check that an IDX file of bytes, plain or compressed by gzip, has the length that its header implies.

    Raises:
        ConfigError: it has another length, or no valid header.
    """
    if path.suffix == ".gz":
        with decoder_errors(str(path)):
            content = gzip.decompress(path.read_bytes())
        head, length = content[:16], len(content)
    else:
        with decoder_errors(str(path)), path.open("rb") as file:
            head = file.read(16)
        length = path.stat().st_size
    num_dimensions = head[3] if len(head) >= 8 and head[:3] == b"\x00\x00\x08" else 0
    sizes = [int.from_bytes(head[4 * d + 4 : 4 * d + 8], "big") for d in range(num_dimensions)]
    if not 1 <= num_dimensions <= 3 or length != 4 + 4 * num_dimensions + int(np.prod(sizes)):
        raise damaged_file(str(path), f"it holds {length} bytes, and its header promises images or labels of sizes {sizes}")


class IdxFiles(VisionDataset):
    """IDX files outside torchvision's layout, such as those of Debian's package ``dataset-fashion-mnist``.

    Args:
        images: file of the images, plain or compressed by gzip.
        labels: file of the labels, likewise.
        classes: names of the classes.
    """

    def __init__(self, images: Path, labels: Path, classes: Sequence[str]) -> None:
        self.images, self.labels, self.classes = _read_idx(images, 3), _read_idx(labels, 1), tuple(classes)
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images and {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.labels[index])


def _read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """The bytes of an IDX file, in the shape that its header gives. Its length has been checked."""
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    if content[3] != num_dimensions:
        raise ValueError(f"{path.name} has {content[3]} dimensions instead of {num_dimensions}")
    sizes = np.frombuffer(content, ">u4", num_dimensions, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions).reshape(*map(int, sizes))


@dataclass(frozen=True, kw_only=True)
class MNIST(TorchvisionSource):
    """MNIST (LeCun et al. 1998): 60,000 training and 10,000 test images of handwritten digits, gray, 28x28 pixels, 10 classes."""

    dataset: ClassVar[type[VisionDataset]] = torchvision.datasets.MNIST
    channels: ClassVar[int] = 1

    def inspect(self, path: Path) -> None:
        """Check the length of an IDX file, see :func:`check_idx`."""
        check_idx(path)

    def required(self, train: bool) -> dict[str, str | None]:
        """The files of images and of labels of one part, where they lie."""
        prefix = "train" if train else "t10k"
        return {self._place(f"{prefix}-images-idx3-ubyte"): None, self._place(f"{prefix}-labels-idx1-ubyte"): None}

    def open(self, train: bool, download: bool) -> VisionDataset:
        """torchvision's object, or :class:`IdxFiles` where the files have not torchvision's layout."""
        images, labels = paths = [self.folder / name for name in self.required(train)]
        if download or not any(path.exists() for path in paths) or all(path.parent.name == "raw" and not path.suffix for path in paths):
            return super().open(train, download)
        return IdxFiles(images, labels, self.dataset.classes)

    def _place(self, name: str) -> str:
        """The file ``name`` relative to ``root``: torchvision's place, or beside it as gzip, or in ``root`` itself."""
        raw = f"{self.dataset.__name__}/raw/{name}"
        return next((place for place in (raw, f"{raw}.gz", name, f"{name}.gz") if (self.folder / place).is_file()), raw)


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(MNIST):
    """Fashion-MNIST (Xiao et al. 2017): 60,000 training and 10,000 test images of clothes, gray, 28x28 pixels, 10 classes."""

    dataset: ClassVar[type[VisionDataset]] = torchvision.datasets.FashionMNIST


@dataclass(frozen=True, kw_only=True)
class EMNIST(TorchvisionSource):
    """EMNIST (Cohen et al. 2017): handwritten letters and digits, gray, 28x28 pixels. The transposed images of the files are made upright.

    Args:
        split: ``letters`` (26 classes, upper and lower case together), ``balanced``, ``byclass``, ``bymerge``, ``digits`` or ``mnist``.

    Raises:
        ConfigError: there is no such split; on calling if files are missing or damaged.
    """

    split: str

    dataset: ClassVar[type[VisionDataset]] = torchvision.datasets.EMNIST
    channels: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.split in self.dataset.splits, "split", f"must be one of {', '.join(self.dataset.splits)}", self.split)

    @property
    def name(self) -> str:
        """``emnist_<split>``."""
        return f"emnist_{self.split}"

    def recipe(self) -> dict[str, object]:
        """``size`` and ``split``."""
        return {**super().recipe(), "split": self.split}

    def inspect(self, path: Path) -> None:
        """Check the length of an IDX file, see :func:`check_idx`."""
        check_idx(path)

    def required(self, train: bool) -> dict[str, str | None]:
        """The files of images and of labels of one part."""
        prefix = f"EMNIST/raw/emnist-{self.split}-{'train' if train else 'test'}"
        return {f"{prefix}-images-idx3-ubyte": None, f"{prefix}-labels-idx1-ubyte": None}

    def open(self, train: bool, download: bool) -> VisionDataset:
        """torchvision's object for the training part or the test part of the split."""
        return self.dataset(self.folder, split=self.split, train=train, download=download)

    def label(self, dataset: VisionDataset, target: Any) -> int:
        """The label in 0..C-1. The files number letters from 1, and torchvision names class 0 ``N/A``."""
        return int(target) - (dataset.classes[0] == "N/A")

    def class_names(self, dataset: VisionDataset) -> tuple[str, ...]:
        """The characters."""
        return tuple(name for name in dataset.classes if name != "N/A")

    def upright(self, image: Image.Image) -> Image.Image:
        """The transposed image."""
        return image.transpose(Image.Transpose.TRANSPOSE)
