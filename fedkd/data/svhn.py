"""SVHN in its original MATLAB files, of which torchvision knows the MD5."""

from dataclasses import dataclass
from typing import ClassVar

import torchvision.datasets
from torchvision.datasets import VisionDataset

from fedkd.data.torchvision_base import TorchvisionSource

PARTS = {True: "train", False: "test"}


@dataclass(frozen=True, kw_only=True)
class SVHN(TorchvisionSource):
    """House numbers: 73,257 and 26,032 colour images of 32x32 pixels, 10 digits (the files' label 10 is digit 0)."""

    dataset: ClassVar[type[VisionDataset]] = torchvision.datasets.SVHN
    channels: ClassVar[int] = 3

    def required(self, train: bool) -> dict[str, str | None]:
        _, name, md5 = self.dataset.split_list[PARTS[train]]
        return {name: md5}

    def open(self, train: bool, download: bool) -> VisionDataset:
        return self.dataset(self.folder, split=PARTS[train], download=download)

    def class_names(self, dataset: VisionDataset) -> tuple[str, ...]:
        return tuple(str(digit) for digit in range(10))
