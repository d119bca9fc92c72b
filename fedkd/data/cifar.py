"""CIFAR-10 and CIFAR-100 in the original files: pickled batches with published MD5s."""

import os
from dataclasses import dataclass
from typing import ClassVar

import torchvision.datasets
from torchvision.datasets import VisionDataset

from fedkd.data.torchvision_base import TorchvisionSource


@dataclass(frozen=True, kw_only=True)
class CIFAR10(TorchvisionSource):
    """CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 pixels, in color, with 10 classes."""

    dataset: ClassVar[type[VisionDataset]] = torchvision.datasets.CIFAR10
    channels: ClassVar[int] = 3

    def required(self, train: bool) -> dict[str, str | None]:
        """The batches of one part, and the file with the names of classes."""
        published = dict(self.dataset.train_list if train else self.dataset.test_list)
        published[self.dataset.meta["filename"]] = self.dataset.meta["md5"]
        return {os.path.join(self.dataset.base_folder, name): md5 for name, md5 in published.items()}


@dataclass(frozen=True, kw_only=True)
class CIFAR100(CIFAR10):
    """CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 pixels, in color, with 100 fine classes."""

    dataset: ClassVar[type[VisionDataset]] = torchvision.datasets.CIFAR100
