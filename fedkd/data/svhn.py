"""SVHN in its original MATLAB files with published MD5s."""

from dataclasses import dataclass
from typing import ClassVar

import torchvision.datasets
from torchvision.datasets import VisionDataset

from fedkd.data.torchvision_base import TorchvisionSource

PARTS = {True: "train", False: "test"}
"""torchvision's name of the training part and of the test part."""


@dataclass(frozen=True, kw_only=True)
class SVHN(TorchvisionSource):
    """Street View House Numbers (Netzer et al. 2011): 73,257 training and 26,032 test images of 32x32 pixels, in color, with 10 digits.

    Label 10 of the files is digit 0.
    """

    dataset: ClassVar[type[VisionDataset]] = torchvision.datasets.SVHN
    channels: ClassVar[int] = 3

    def required(self, train: bool) -> dict[str, str | None]:
        """The MATLAB file of one part."""
        _, name, md5 = self.dataset.split_list[PARTS[train]]
        return {name: md5}

    def open(self, train: bool, download: bool) -> VisionDataset:
        """torchvision's object for the training part or the test part."""
        return self.dataset(self.folder, split=PARTS[train], download=download)

    def class_names(self, dataset: VisionDataset) -> tuple[str, ...]:
        """The digits 0 to 9."""
        return tuple(str(digit) for digit in range(10))
