"""CelebA, with one attribute as the label."""

import os
from dataclasses import dataclass
from typing import Any, ClassVar

import torchvision.datasets
from torchvision.datasets import VisionDataset

from fedkd.data.torchvision_base import TorchvisionSource
from fedkd.errors import require


@dataclass(frozen=True, kw_only=True)
class CelebA(TorchvisionSource):
    """CelebA (Liu et al., ICCV 2015): 162,770 training and 19,962 test images of faces, in color, with two classes.

    Class 0 are faces without the attribute, class 1 faces with it. FedGen resizes to 84x84, keeps the values 0..255 (scale 1), and uses
    the attribute ``Smiling``. Its code distributes the celebrities of LEAF's JSON file. This source has torchvision's training and test
    images without the identities, and leaves out the validation images. The cache recognizes a change of the 202,599 image files by the
    time of their folder, not of each file.

    Args:
        attribute: one of the 40 attributes in ``list_attr_celeba.txt``, such as ``Smiling``.

    Raises:
        ConfigError: on calling if there is no such attribute, or files are missing or damaged.
    """

    attribute: str

    dataset: ClassVar[type[VisionDataset]] = torchvision.datasets.CelebA
    channels: ClassVar[int] = 3

    @property
    def name(self) -> str:
        """``celeba_`` and the attribute in lower case."""
        return f"celeba_{self.attribute.lower()}"

    def recipe(self) -> dict[str, object]:
        """``size`` and ``attribute``."""
        return {**super().recipe(), "attribute": self.attribute}

    def required(self, train: bool) -> dict[str, str | None]:
        """The text files with their MD5, and the folder of images. Both parts use the same files."""
        published = {name: md5 for _, md5, name in self.dataset.file_list if name.endswith(".txt")}
        return {os.path.join(self.dataset.base_folder, name): md5 for name, md5 in {**published, "img_align_celeba": None}.items()}

    def open(self, train: bool, download: bool) -> VisionDataset:
        """torchvision's object for the training part or the test part, with attributes as targets."""
        return self.dataset(self.folder, split="train" if train else "test", target_type="attr", download=download)

    def origin(self, dataset: VisionDataset, i: int) -> str:
        """The file of image ``i``."""
        return os.path.join(dataset.root, dataset.base_folder, "img_align_celeba", dataset.filename[i])

    def label(self, dataset: VisionDataset, target: Any) -> int:
        """1 where the face has the attribute, else 0."""
        return int(target[dataset.attr_names.index(self.attribute)])

    def class_names(self, dataset: VisionDataset) -> tuple[str, ...]:
        """``not <attribute>`` and ``<attribute>``.

        Raises:
            ConfigError: there is no such attribute.
        """
        names = [name for name in dataset.attr_names if name]  # the header of the file ends with a space
        require(self.attribute in names, "attribute", f"must be one of {', '.join(names)}", self.attribute)
        return (f"not {self.attribute}", self.attribute)
