"""Images in folders that are named after their classes: ``root/train/<class>/*.png`` and ``root/test/<class>/*.png``."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fedkd.data.base import ResizedSource, decoder_errors, fill_arrays, to_array
from fedkd.data.cache import Allocate
from fedkd.errors import require

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Suffixes of image files, in lower case."""


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ResizedSource):
    """Images in one folder per class. The classes are the folders in ``root/train``, in alphabetical order.

    Hidden files and files with other suffixes are ignored.
    """

    @property
    def name(self) -> str:
        """``image_folder``."""
        return "image_folder"

    def files(self) -> list[Path]:
        """All image files, see :meth:`fedkd.data.base.DataSource.files`."""
        return [path for part in ("train", "test") for paths in self._by_class(part).values() for path in paths]

    def decode(self, allocate: Allocate) -> tuple[str, ...]:
        """Decode both parts, see :meth:`fedkd.data.base.DataSource.decode`."""
        class_names = tuple(self._by_class("train"))
        for part in ("train", "test"):
            by_class = self._by_class(part)
            num_examples = sum(map(len, by_class.values()))
            images = self._labeled_images(by_class, class_names)
            fill_arrays(allocate, part, num_examples, images, len(class_names), str(self.folder / part))
        return class_names

    def _by_class(self, part: str) -> dict[str, list[Path]]:
        """The image files of each class, classes and files in alphabetical order."""
        folder = self.folder / part
        if not folder.is_dir():
            raise self.missing_file(folder, "point data.root to a folder with train/<class>/ and test/<class>/")
        classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        by_class = {path.name: sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != ".") for path in classes}
        require(len(classes) > 0, str(folder), "must hold one folder of images per class", 0)
        if part == "train":
            empty = [name for name, paths in by_class.items() if not paths]
            require(not empty, str(folder), f"must hold at least one image ({', '.join(SUFFIXES)}) of every class; empty ones", empty)
        else:
            unknown = sorted(set(by_class) - set(self._by_class("train")))
            require(not unknown, str(folder), "must hold classes of the training folder only", unknown)
        return by_class

    def _labeled_images(self, by_class: dict[str, list[Path]], class_names: tuple[str, ...]) -> Iterator[tuple[np.ndarray, int]]:
        """Every image [channels, height, width] with its label."""
        for name, paths in by_class.items():
            for path in paths:
                with decoder_errors(str(path)), Image.open(path) as image:
                    image.load()
                yield to_array(image, self.channels, self.size, str(path)), class_names.index(name)
