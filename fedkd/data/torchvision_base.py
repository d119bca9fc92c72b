"""The base class of torchvision's data sets: its classes download, check, and parse the files; every example is read once."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torchvision.datasets import VisionDataset
from torchvision.datasets.utils import check_integrity

from fedkd.data import cache
from fedkd.data.base import DataSource, Load, check_size, damaged_file, decoder_errors, fill_arrays, to_array
from fedkd.data.cache import Allocate, Decoded
from fedkd.errors import ConfigError, require


@dataclass(frozen=True, kw_only=True)
class TorchvisionSource(DataSource):
    """A data set of torchvision in the folder ``root``, in torchvision's own layout.

    Args:
        download: let torchvision download missing files.
        size: (height, width) in pixels to resize to, bicubic; null: no resizing.
    """

    download: bool
    size: Sequence[int] | None

    dataset: ClassVar[type[VisionDataset]]
    """torchvision's class."""

    channels: ClassVar[int]
    """Number of channels, 1 or 3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.size)
        require(isinstance(self.download, bool), "download", "must be true or false", self.download)

    # --------------------------------------------------------------------------------------------- hooks of a data set
    @abstractmethod
    def required(self, train: bool) -> dict[str, str | None]:
        """The files of the training part or of the test part, relative to ``root``, each with its published MD5 or None."""

    def open(self, train: bool, download: bool) -> VisionDataset:
        """torchvision's object for the training part or the test part."""
        return self.dataset(self.folder, train=train, download=download)

    def label(self, dataset: VisionDataset, target: Any) -> int:
        """The label in 0..C-1 for torchvision's target."""
        return int(target)

    def class_names(self, dataset: VisionDataset) -> tuple[str, ...]:
        """The names of classes 0..C-1."""
        return tuple(dataset.classes)

    def upright(self, image: Image.Image) -> Image.Image:
        """The image in its upright orientation."""
        return image

    def origin(self, dataset: VisionDataset, i: int) -> str:
        """The file of image ``i``, for messages; empty if the images have no files of their own."""
        return ""

    def inspect(self, path: Path) -> None:
        """Check a file that has no published MD5.

        Raises:
            ConfigError: it is damaged.
        """

    # ------------------------------------------------------------------------------------------------- hooks of the base
    @property
    def name(self) -> str:
        """The class name in lower case."""
        return type(self).__name__.lower()

    def recipe(self) -> dict[str, object]:
        """``size``."""
        return {"size": None if self.size is None else list(self.size)}

    def files(self) -> list[Path]:
        """The files of both parts; missing ones are downloaded first if ``download`` is true.

        Raises:
            ConfigError: a file is missing, or a download failed.
        """
        paths = [self.folder / name for train in (True, False) for name in self.required(train)]
        if self.download and not all(path.exists() for path in paths):
            self._fetch()
        for path in paths:
            if not path.exists():
                raise self.missing_file(path, "point data.root to them, or set data.download=true")
        return paths

    def decode(self, allocate: Allocate) -> Decoded:
        """Check and decode both parts, see :meth:`fedkd.data.base.DataSource.decode`."""
        locations = {train: self._check_files(train) for train in (True, False)}  # all checks come before the long decoding
        unreadable: list[tuple[str, str]] = []
        for train, location in locations.items():
            with decoder_errors(location):
                dataset = self.open(train, download=False)
            names = self.class_names(dataset)
            part = "train" if train else "test"
            examples = partial(self._examples_of, dataset, location)
            unreadable += fill_arrays(allocate, part, len(dataset), examples, len(names), location)
        return Decoded(names, tuple(unreadable))

    def _examples_of(self, dataset: VisionDataset, location: str) -> Iterator[tuple[str, Load]]:
        """The location of every example, and a function that reads it."""
        for i in range(len(dataset)):
            yield self.origin(dataset, i) or f"{location}, image {i}", partial(self._load, dataset, i)

    def _load(self, dataset: VisionDataset, i: int) -> tuple[np.ndarray, int]:
        """Image ``i`` [channels, height, width] with its label."""
        image, target = dataset[i]
        return to_array(self.upright(image), self.channels, self.size), self.label(dataset, target)

    def _fetch(self) -> None:
        """Let torchvision download both parts. Only one process of a machine downloads at a time."""
        directory = cache.cache_directory(self.cache)
        with cache.process_lock(directory, f"download-{self.name}"):
            for train in (True, False):
                try:
                    self.open(train, download=True)
                except (OSError, RuntimeError) as error:
                    raise ConfigError(
                        f"download of {self.name} must succeed, got {type(error).__name__}: {error}; "
                        f"bring the files to {self.folder} by other means and set data.download=false"
                    ) from error

    def _check_files(self, train: bool) -> str:
        """Check the files of one part.

        Returns:
            Their paths, for messages.

        Raises:
            ConfigError: a file is damaged, or its MD5 is not the published one.
        """
        required = self.required(train)
        for name, md5 in required.items():
            path = self.folder / name
            with decoder_errors(str(path)):
                intact = path.is_dir() or check_integrity(path, md5)
            if not intact:
                raise damaged_file(str(path), "its MD5 is not the published one")
            self.inspect(path)
        return ", ".join(str(self.folder / name) for name in required)
