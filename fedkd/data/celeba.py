"""CelebA with one attribute as the label."""

import os
from dataclasses import dataclass
from typing import Any, ClassVar

import torchvision.datasets
from torchvision.datasets import VisionDataset

from fedkd.data.torchvision_base import TorchvisionSource
from fedkd.errors import require


@dataclass(frozen=True, kw_only=True)
class CelebA(TorchvisionSource):
    """Faces: 162,770 and 19,962 colour images; two classes, without the attribute (0) and with it (1).

    FedGen resizes to 84x84, keeps the values 0..255 as they are (scale 1) and asks for ``Smiling``. It deals out the celebrities
    of LEAF's json; this source holds torchvision's training and test images, without their identities, and leaves the
    validation images out. The 202,599 image files are known by the time of their folder, not one by one.

    Args:
        attribute: one of the 40 attributes in ``list_attr_celeba.txt``, such as ``Smiling``.
    """

    attribute: str

    dataset: ClassVar[type[VisionDataset]] = torchvision.datasets.CelebA
    channels: ClassVar[int] = 3

    @property
    def name(self) -> str:
        return f"celeba_{self.attribute.lower()}"

    def recipe(self) -> dict[str, object]:
        return {**super().recipe(), "attribute": self.attribute}

    def required(self, train: bool) -> dict[str, str | None]:
        published = {name: md5 for _, md5, name in self.dataset.file_list if name.endswith(".txt")}
        return {os.path.join(self.dataset.base_folder, name): md5 for name, md5 in {**published, "img_align_celeba": None}.items()}

    def open(self, train: bool, download: bool) -> VisionDataset:
        return self.dataset(self.folder, split="train" if train else "test", target_type="attr", download=download)

    def origin(self, dataset: VisionDataset, i: int) -> str:
        return os.path.join(dataset.root, dataset.base_folder, "img_align_celeba", dataset.filename[i])

    def label(self, dataset: VisionDataset, target: Any) -> int:
        return int(target[dataset.attr_names.index(self.attribute)])

    def class_names(self, dataset: VisionDataset) -> tuple[str, ...]:
        names = [name for name in dataset.attr_names if name]  # the file's header ends in a blank
        require(self.attribute in names, "attribute", f"must be one of {', '.join(names)}", self.attribute)
        return (f"not {self.attribute}", self.attribute)
