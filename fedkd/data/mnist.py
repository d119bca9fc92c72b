"""MNIST and its kin: grey images of 28x28 pixels in IDX files (format: http://yann.lecun.com/exdb/mnist)."""

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
    """An IDX file of bytes is as long as its header promises; else a ``ValueError`` names it."""
    with decoder_errors(str(path)), path.open("rb") as file:
        head = file.read(16)
    num_dimensions = head[3] if len(head) >= 8 and head[:3] == b"\x00\x00\x08" else 0
    sizes = [int.from_bytes(head[4 * d + 4 : 4 * d + 8], "big") for d in range(num_dimensions)]
    if not 1 <= num_dimensions <= 3 or path.stat().st_size != 4 + 4 * num_dimensions + int(np.prod(sizes)):
        raise damaged_file(str(path), f"it holds {path.stat().st_size} bytes, and its header promises images or labels of sizes {sizes}")


@dataclass(frozen=True, kw_only=True)
class MNIST(TorchvisionSource):
    """Handwritten digits: 60,000 and 10,000 grey images of 28x28 pixels, 10 classes."""

    dataset: ClassVar[type[VisionDataset]] = torchvision.datasets.MNIST
    channels: ClassVar[int] = 1

    def inspect(self, path: Path) -> None:
        check_idx(path)

    def required(self, train: bool) -> dict[str, str | None]:
        prefix = f"{self.dataset.__name__}/raw/{'train' if train else 't10k'}"
        return {f"{prefix}-images-idx3-ubyte": None, f"{prefix}-labels-idx1-ubyte": None}


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(MNIST):
    """Clothes: 60,000 and 10,000 grey images of 28x28 pixels, 10 classes."""

    dataset: ClassVar[type[VisionDataset]] = torchvision.datasets.FashionMNIST


@dataclass(frozen=True, kw_only=True)
class EMNIST(TorchvisionSource):
    """Handwritten letters and digits, grey, 28x28 pixels, turned upright (the files hold them transposed).

    Args:
        split: ``letters`` (26 classes, case ignored), ``balanced``, ``byclass``, ``bymerge``, ``digits`` or ``mnist``.
    """

    split: str

    dataset: ClassVar[type[VisionDataset]] = torchvision.datasets.EMNIST
    channels: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.split in self.dataset.splits, "split", f"must be one of {', '.join(self.dataset.splits)}", self.split)

    @property
    def name(self) -> str:
        return f"emnist_{self.split}"

    def recipe(self) -> dict[str, object]:
        return {**super().recipe(), "split": self.split}

    def inspect(self, path: Path) -> None:
        check_idx(path)

    def required(self, train: bool) -> dict[str, str | None]:
        prefix = f"EMNIST/raw/emnist-{self.split}-{'train' if train else 'test'}"
        return {f"{prefix}-images-idx3-ubyte": None, f"{prefix}-labels-idx1-ubyte": None}

    def open(self, train: bool, download: bool) -> VisionDataset:
        return self.dataset(self.folder, split=self.split, train=train, download=download)

    def label(self, dataset: VisionDataset, target: Any) -> int:
        return int(target) - (dataset.classes[0] == "N/A")  # the letters are numbered from 1 in the files

    def class_names(self, dataset: VisionDataset) -> tuple[str, ...]:
        return tuple(name for name in dataset.classes if name != "N/A")

    def upright(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.TRANSPOSE)
