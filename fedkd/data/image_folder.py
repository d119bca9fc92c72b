"""Images in folders that are named after their classes: ``root/train/<class>/**/*.png`` and ``root/test/<class>/**/*.png``."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from fedkd.data.base import Load, ResizedSource, fill_arrays, to_array
from fedkd.data.cache import Allocate, Decoded
from fedkd.errors import ConfigError, require
from fedkd.types import LeftOut

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Suffixes of image files, in lower case."""

TEST_PARTS = ("test", "val", "valid", "validation")
"""Folders of test images. The first one that has images in folders of classes is the test set."""


@dataclass
class Layout:
    """The image files of a data set, and what is passed over.

    Args:
        test_part: the folder that is the test set, one of :data:`TEST_PARTS`.
        parts: by folder, ``train`` or ``test_part``, and by class: the files in alphabetical order.
        counts: number of files that are not used, by folder and reason.
        first: one of these files, by folder and reason.
    """

    test_part: str = TEST_PARTS[0]
    parts: dict[str, dict[str, list[Path]]] = field(default_factory=dict)
    counts: Counter[tuple[Path, str]] = field(default_factory=Counter)
    first: dict[tuple[Path, str], Path] = field(default_factory=dict)

    def pass_over(self, folder: Path, reason: str, path: Path, number: int = 1) -> None:
        """Count files of ``folder`` that are not used; ``path`` is one of them."""
        self.counts[folder, reason] += number
        self.first.setdefault((folder, reason), path)

    def images(self, folder: Path) -> list[Path]:
        """All images below ``folder``, in alphabetical order. Other files and hidden ones are counted as passed over."""
        found: list[Path] = []
        misnamed: list[Path] = []
        seen: set[str] = set()
        for parent, folders, files in os.walk(folder, followlinks=True):
            here = Path(parent)
            if (real := os.path.realpath(parent)) in seen:  # a link to a folder above it
                folders.clear()
                continue
            seen.add(real)
            for name in sorted(folders):
                if name.startswith("."):
                    folders.remove(name)
                    self.pass_over(folder, "hidden files", here / name)
                elif is_image_name(name):
                    misnamed.append(here / name)
            for name in sorted(files):
                if name.startswith("."):
                    self.pass_over(folder, "hidden files", here / name)
                elif is_image_name(name):
                    found.append(here / name)
                else:
                    self.pass_over(folder, "files that are no images", here / name)
        for path in misnamed:
            if not any(path in image.parents for image in found):
                self.pass_over(folder, "folders named like images", path)
        return sorted(found)


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ResizedSource):
    """Images in one folder per class. The classes are the folders in ``root/train``, in alphabetical order.

    Images in sub-folders of a class belong to the class. Without ``root/test``, the images in ``root/val`` are the test set. Hidden files,
    files with other suffixes, and images outside the folders of classes are not used; they are counted in a warning.

    Args:
        groups: ``subfolder``: the group of an image is its folder below that of its class, such as a writer in
            ``train/<class>/<writer>/1.png``. Groups are numbered in alphabetical order of both parts. null: no groups.
    """

    groups: Literal["subfolder"] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.groups in (None, "subfolder"), "groups", "must be subfolder, or null for none", self.groups)

    def recipe(self) -> dict[str, object]:
        """Those of the base, and ``groups``."""
        return {**super().recipe(), **({} if self.groups is None else {"groups": self.groups})}

    @property
    def name(self) -> str:
        """``image_folder``."""
        return "image_folder"

    def files(self) -> list[Path]:
        """All image files, see :meth:`fedkd.data.base.DataSource.files`."""
        return [path for by_class in self.layout().parts.values() for paths in by_class.values() for path in paths]

    def passed_over(self) -> list[LeftOut]:
        """Files in ``root`` that are not used, one item for each folder and reason."""
        layout = self.layout()
        return [
            LeftOut(str(layout.first[key].relative_to(self.folder)), key[1], number)
            for key, number in sorted(layout.counts.items(), key=lambda item: (item[0][1], item[0][0]))
        ]

    def decode(self, allocate: Allocate) -> Decoded:
        """Decode both parts, see :meth:`fedkd.data.base.DataSource.decode`."""
        layout = self.layout()
        class_names = tuple(layout.parts["train"])
        groups, group_names = self._groups(layout)
        unreadable: list[tuple[str, str]] = []
        for part, name, group in zip(("train", "test"), ("train", layout.test_part), groups):
            by_class = layout.parts[name]
            examples = partial(self._examples_of, by_class, class_names)
            num_examples = sum(map(len, by_class.values()))
            location = str(self.folder / name)
            unreadable += fill_arrays(allocate, part, num_examples, examples, len(class_names), location, self.skip_unreadable, group)
        return Decoded(class_names, tuple(unreadable), group_names)

    def layout(self) -> Layout:
        """The files of both parts, and what is passed over.

        Raises:
            ConfigError: a part is missing, a class has no training images, or a class has test images only.
        """
        layout = Layout()
        for part in ("train", *TEST_PARTS):
            layout.parts[part] = self._by_class(part, layout)
        found = [part for part in TEST_PARTS if any(layout.parts[part].values())]
        self._check_train(layout)
        if not found:
            raise self._no_test_images()
        layout.test_part = found[0]
        test = layout.parts[layout.test_part]
        unknown = sorted(name for name in set(test) - set(layout.parts["train"]) if test[name])
        rule = f"must hold the classes of train/ in {layout.test_part}/, and no others (remove them, or add training images)"
        require(not unknown, "root", rule, f"{', '.join(unknown)} in {layout.test_part}/ only")
        for part in found[1:]:
            paths = [path for paths in layout.parts[part].values() for path in paths]
            layout.pass_over(self.folder / part, f"images of {part}/, as {layout.test_part}/ is the test set", paths[0], len(paths))
        layout.parts = {part: layout.parts[part] for part in ("train", layout.test_part)}
        self._count_outside(layout)
        return layout

    def _groups(self, layout: Layout) -> tuple[Sequence[np.ndarray | None], tuple[str, ...]]:
        """The group of each image of both parts, and the names of the groups; None where there are no groups.

        Raises:
            ConfigError: an image lies in the folder of its class itself.
        """
        if self.groups is None:
            return [None, None], ()
        found: list[list[str]] = []
        for part in ("train", layout.test_part):
            places = [path.relative_to(self.folder / part) for paths in layout.parts[part].values() for path in paths]
            flat = [str(place) for place in places if len(place.parts) < 3]
            rule = f"must be null where images lie in no folder below that of their class ({len(flat)} in {part}/, such as {flat[:1]})"
            require(not flat, "groups", rule, self.groups)
            found.append([place.parts[1] for place in places])
        names, numbers = np.unique(np.concatenate(found), return_inverse=True)
        return np.split(numbers.astype(np.int64), [len(found[0])]), tuple(map(str, names))

    def _by_class(self, part: str, layout: Layout) -> dict[str, list[Path]]:
        """The image files of each class of a part, classes in alphabetical order."""
        folder, by_class = self.folder / part, dict[str, list[Path]]()
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.startswith("."):
                layout.pass_over(folder, "hidden files", path)
            elif not path.is_dir():
                is_image = is_image_name(path.name)
                layout.pass_over(folder, "images outside the folders of classes" if is_image else "files that are no images", path)
            elif (paths := layout.images(path)) or not is_image_name(path.name):
                by_class[path.name] = paths
            else:
                layout.pass_over(folder, "folders named like images", path)
        return by_class

    def _check_train(self, layout: Layout) -> None:
        """Require images of every class."""
        folder, classes = self.folder / "train", layout.parts["train"]
        if not folder.is_dir():
            raise self.missing_file(folder, "point data.root to a folder with train/<class>/ and test/<class>/")
        require(len(classes) > 0, "root", f"must hold one folder of images per class in {folder}", "none")
        empty = [name for name, paths in classes.items() if not paths]
        rule = f"must hold at least one image ({', '.join(SUFFIXES)}) of every class in {folder}"
        require(not empty, "root", rule, f"none of {', '.join(empty)}")

    def _no_test_images(self) -> ConfigError:
        """The error for a data set without test images in folders of classes."""
        there = [part for part in TEST_PARTS if (self.folder / part).is_dir()]
        if not there:
            remedy = "point data.root to a folder with train/<class>/ and test/<class>/ (val/<class>/ serves as a test set too)"
            return self.missing_file(self.folder / "test", remedy)
        number = sum(is_image_name(name) for part in there for name in os.listdir(self.folder / part))
        flat = f"; {number} images outside folders of classes have no label" if number else ""
        return ConfigError(f"root must hold one folder of images per class in {self.folder / there[0]}, got none{flat}")

    def _count_outside(self, layout: Layout) -> None:
        """Count the images in ``root`` that are neither in ``train`` nor in a folder of test images."""
        reason = f"images outside train/ and {layout.test_part}/"
        for path in sorted(self.folder.iterdir()):
            if path.name.startswith(".") or path.name in ("train", *TEST_PARTS):
                continue
            images = Layout().images(path) if path.is_dir() else [path] * is_image_name(path.name)
            if images:
                layout.pass_over(self.folder, reason, images[0], len(images))

    def _examples_of(self, by_class: dict[str, list[Path]], class_names: tuple[str, ...]) -> Iterator[tuple[str, Load]]:
        """The location of every example, and a function that reads it."""
        for name, paths in by_class.items():
            for path in paths:
                yield str(path.relative_to(self.folder)), partial(self._load, path, class_names.index(name))

    def _load(self, path: Path, label: int) -> tuple[np.ndarray, int]:
        """One image [channels, height, width] with its label."""
        with Image.open(path) as image:
            return to_array(image, self.channels, self.size), label


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an image, by its suffix."""
    return name.lower().endswith(SUFFIXES)
