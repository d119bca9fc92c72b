"""What torchvision's data sets have in common: its classes download, check and parse; we ask them for every example once."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torchvision.datasets import VisionDataset
from torchvision.datasets.utils import check_integrity

from fedkd.data import cache
from fedkd.data.base import DataSource, check_size, damaged_file, fill_arrays, to_array, decoder_errors
from fedkd.data.cache import Allocate
from fedkd.errors import ConfigError, require


@dataclass(frozen=True, kw_only=True)
class TorchvisionSource(DataSource):
    """A data set of torchvision under ``root``, in torchvision's own layout.

    Args:
        download: whether torchvision may download the files that are missing.
        size: (height, width) in pixels to resize to; null keeps the images as they are.
    """

    download: bool
    size: Sequence[int] | None

    dataset: ClassVar[type[VisionDataset]]
    channels: ClassVar[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.size)
        require(isinstance(self.download, bool), "download", "must be true or false", self.download)

    @abstractmethod
    def required(self, train: bool) -> dict[str, str | None]:
        """The files of one part, relative to ``root``, and the MD5 that torchvision wants of them."""

    def open(self, train: bool, download: bool) -> VisionDataset:
        """One part as torchvision reads it."""
        return self.dataset(self.folder, train=train, download=download)

    def label(self, dataset: VisionDataset, target: Any) -> int:
        """The label in 0..C-1 of torchvision's target."""
        return int(target)

    def class_names(self, dataset: VisionDataset) -> tuple[str, ...]:
        """The names of classes 0..C-1."""
        return tuple(dataset.classes)

    def upright(self, image: Image.Image) -> Image.Image:
        """The image as it should be seen."""
        return image

    def origin(self, dataset: VisionDataset, i: int) -> str:
        """The file of image ``i``, for errors; empty if it has none of its own."""
        return ""

    def inspect(self, path: Path) -> None:
        """Raise ``ValueError`` if a file without a published MD5 cannot be intact."""

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def recipe(self) -> dict[str, object]:
        return {"size": None if self.size is None else list(self.size)}

    def files(self) -> list[Path]:
        paths = [self.folder / name for train in (True, False) for name in self.required(train)]
        if self.download and not all(path.exists() for path in paths):
            self._fetch()
        for path in paths:
            if not path.exists():
                raise self.missing_file(path, "point data.root to them, or set data.download=true")
        return paths

    def decode(self, new: Allocate) -> tuple[str, ...]:
        sources = {train: self._intact(train) for train in (True, False)}  # before the hard work
        for train, where in sources.items():
            with decoder_errors(where):
                dataset = self.open(train, download=False)
            names = self.class_names(dataset)
            fill_arrays(new, "train" if train else "test", len(dataset), self._examples_of(dataset, where), len(names), where)
        return names

    def _examples_of(self, dataset: VisionDataset, where: str) -> Iterator[tuple[np.ndarray, int]]:
        for i in range(len(dataset)):
            origin = self.origin(dataset, i) or where
            with decoder_errors(origin):
                image, target = dataset[i]
            yield to_array(self.upright(image), self.channels, self.size, origin), self.label(dataset, target)

    def _fetch(self) -> None:
        """Let torchvision download both parts, one process at a time."""
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

    def _intact(self, train: bool) -> str:
        """The files of one part, for errors; a ``ValueError`` names the first that is not what torchvision wants."""
        required = self.required(train)
        for name, md5 in required.items():
            path = self.folder / name
            with decoder_errors(str(path)):
                intact = path.is_dir() or check_integrity(path, md5)
            if not intact:
                raise damaged_file(str(path), "its MD5 is not the published one")
            self.inspect(path)
        return ", ".join(str(self.folder / name) for name in required)
