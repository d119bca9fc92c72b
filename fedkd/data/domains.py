"""Several data sets as one task: each data set is a domain, and the domains are the groups of the examples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import PIL
import torch
from PIL import Image

from fedkd.data import cache
from fedkd.data.base import Load, check_channels, check_size, examples_of_content, fill_arrays, to_array
from fedkd.data.cache import Allocate, Decoded, content_digest
from fedkd.data.client_shift import full_scale
from fedkd.errors import ConfigError, require
from fedkd.seed import Seed
from fedkd.types import Examples, LeftOut, Task

Source = Callable[[], tuple[Task, Examples, Examples]]
"""A data set."""

FULL = 255.0
"""The byte of a white pixel. Every domain is stored with this scale."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A data set that has been read.

    Args:
        examples: the images of ``train`` and of ``test`` that are used.
        labels: the class of the task for each class of the data set [C], int64.
        left_out: files that are not used.
    """

    examples: dict[str, Examples]
    labels: np.ndarray
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, kw_only=True)
class Domains:
    """Data sets with the same classes, as one task. ``Examples.groups`` is the domain of each example, in alphabetical order of the names.

    The images of all domains are converted to one number of channels and one size, and are stored with the scale 255. The training set
    holds the examples of all domains one after the other, and so does the test set. Li et al. (FedBN, ICLR 2021) use digits of this kind;
    they resize images by bilinear interpolation, and this class by bicubic interpolation.

    Args:
        domains: the data set of each domain, by name; at least two.
        size: (height, width) in pixels to resize to, bicubic; null where all images have one size.
        channels: 1 (gray) or 3 (color); gray images are copied to all channels.
        num_train: training images of each domain, > 0: the first ones of a random order that is the same for all seeds; null: all.
        num_test: test images of each domain, by the same rule; null: all.
        match_classes: ``name``: data sets with class names must have the same ones, and classes with equal names are one class; data sets
            without names follow by number. ``number``: classes with equal numbers are one class, under the first data set's names.
        held_out: name of the domain that is tested on and not trained on; null: all domains are trained on and tested on.
        cache: the folder for converted images; null: ``$XDG_CACHE_HOME/fedkd`` or ``~/.cache/fedkd``.
        mean: per channel, subtracted after scaling to 0..1.
        std: per channel, > 0; images are divided by it after that.

    Raises:
        ConfigError: a value is out of range; on calling if there are fewer than two data sets, one cannot be read or is too small, or the
            classes differ.
    """

    domains: Mapping[str, Source]
    size: Sequence[int] | None
    channels: int
    num_train: int | None
    num_test: int | None
    match_classes: Literal["name", "number"]
    held_out: str | None
    cache: str | None
    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        check_size(self.size)
        check_channels(self.channels)
        for name in ("num_train", "num_test"):
            value = getattr(self, name)
            require(value is None or value > 0, name, "must be > 0 images per domain, or null for all", value)
        kinds = ("name", "number")
        require(self.match_classes in kinds, "match_classes", f"must be one of {', '.join(kinds)}", self.match_classes)
        known = self.held_out is None or self.held_out in self.domains
        require(known, "held_out", f"must be one of {', '.join(self.names)}, or null", self.held_out)
        for name in ("mean", "std"):
            values = list(getattr(self, name))
            require(len(values) == self.channels, name, f"must hold one number per channel, {self.channels}", values)
        require(all(value > 0 for value in self.std), "std", "must hold numbers > 0", list(self.std))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the domains, in alphabetical order."""
        return tuple(sorted(self.domains))

    def __call__(self) -> tuple[Task, Examples, Examples]:
        """The task, the training examples, and the test examples."""
        require(len(self.domains) > 1, "domains", "must hold two or more data sets, each under its name", sorted(self.domains))
        tasks: dict[str, Task] = {}
        read: dict[str, list[Examples]] = {}
        for name in self.names:
            try:
                tasks[name], *read[name] = self.domains[name]()
            except ValueError as error:
                raise ConfigError(f"domains.{name}.{error}") from error
        classes = class_names_of(tasks, self.match_classes == "name")
        num_classes = next(iter(tasks.values())).num_classes
        domains = [self._domain(name, tasks[name], dict(zip(("train", "test"), read[name])), classes) for name in self.names]
        key = {
            "size": None if self.size is None else list(self.size),
            "channels": self.channels,
            "pillow": PIL.__version__,
            "domains": [[name, domain.labels.tolist(), _digests(domain)] for name, domain in zip(self.names, domains)],
        }
        decode = partial(self._decode, domains, classes, num_classes)
        content = cache.load_content(self.cache, "domains", key, decode)
        mean, std = tuple(map(float, self.mean)), tuple(map(float, self.std))
        train, test = (replace(examples_of_content(content, part, FULL, mean, std), group_names=self.names) for part in ("train", "test"))
        train = replace(train, left_out=tuple(item for domain in domains for item in domain.left_out))
        shape = tuple(train.x.shape[1:])
        return Task("domains", shape, num_classes, classes, mean, std), train, test

    def _domain(self, name: str, task: Task, parts: Mapping[str, Examples], classes: Sequence[str]) -> Domain:
        """The examples of one domain that are used."""
        held_out = self.held_out is not None
        used = {"train": name != self.held_out, "test": not held_out or name == self.held_out}
        examples = {}
        for part, number in (("train", self.num_train), ("test", self.num_test)):
            there = parts[part]
            bytes_only = there.x.dtype == torch.uint8 and there.x.ndim == 4
            require(bytes_only, f"domains.{name}", "must be a data set of images, as bytes", f"{there.x.dtype} {list(there.x.shape[1:])}")
            number = len(there) if number is None else number
            limit = f"must be at most {len(there)}, the {part}ing images of {name}" if part == "train" else f"must be at most {len(there)}"
            require(number <= len(there), f"num_{part}", limit, number)
            order = torch.randperm(len(there), generator=(Seed(0) / "domains" / name / part).torch())
            whole = torch.arange(len(there)) if number == len(there) else order[:number].sort().values
            examples[part] = replace(there.subset(whole if used[part] else whole[:0]), digest=there.digest or _digest(there))
        by_name = self.match_classes == "name" and task.class_names
        labels = np.array([classes.index(one) for one in task.class_names]) if by_name else np.arange(task.num_classes)
        return Domain(examples=examples, labels=labels, left_out=parts["train"].left_out)

    def _decode(self, domains: Sequence[Domain], classes: tuple[str, ...], num_classes: int, allocate: Allocate) -> Decoded:
        """Fill the arrays of the cache, see :meth:`fedkd.data.base.DataSource.decode`."""
        for part in ("train", "test"):
            numbers = [len(domain.examples[part]) for domain in domains]
            groups = np.arange(len(domains)).repeat(numbers)
            examples = partial(self._examples_of, domains, part)
            fill_arrays(allocate, part, sum(numbers), examples, num_classes, ", ".join(self.names), groups=groups)
        return Decoded(classes)

    def _examples_of(self, domains: Sequence[Domain], part: str) -> Iterator[tuple[str, Load]]:
        """The name of every example, and a function that converts it."""
        for name, domain in zip(self.names, domains):
            examples = domain.examples[part]
            full = full_scale(examples)
            rows = examples.storage_rows(torch.arange(len(examples))).tolist()
            for place, (row, label) in enumerate(zip(rows, domain.labels[examples.y.numpy()].tolist())):
                yield f"{name}, {part} image {place}", partial(self._load, examples.x, row, label, full)

    def _load(self, x: torch.Tensor, row: int, label: int, full: float) -> tuple[np.ndarray, int]:
        """One image [channels, height, width] with its label."""
        stored = x[row].numpy()
        if full != FULL:
            stored = np.rint(stored * (FULL / full)).astype(np.uint8)
        image = Image.fromarray(stored[0] if len(stored) == 1 else np.ascontiguousarray(stored.transpose(1, 2, 0)))
        return to_array(image, self.channels, self.size), label


def class_names_of(tasks: Mapping[str, Task], by_name: bool) -> tuple[str, ...]:
    """The names of the classes of all tasks: those of the first task that has names, or none.

    Args:
        tasks: the task of each domain.
        by_name: whether tasks with names must have the same ones.

    Raises:
        ConfigError: the classes differ in number or in name.
    """
    first, owner, names = next(iter(tasks)), "", tuple[str, ...]()
    for name, task in tasks.items():
        number = tasks[first].num_classes
        require(task.num_classes == number, f"domains.{name}", f"must have the {number} classes of {first}", f"{task.num_classes} classes")
        if not names:
            names, owner = task.class_names, name
        differ = sorted({*task.class_names} ^ {*names}) if task.class_names and by_name else []
        rule = f"must have the class names of {owner}; rename classes, or set data.match_classes=number"
        require(not differ, f"domains.{name}", rule, f"{', '.join(differ[:10])} in one of them only")
    return names


def _digests(domain: Domain) -> list[list[str]]:
    """What identifies the examples of a domain: the content of each part, and the rows that are used."""
    return [[examples.digest, content_digest({"rows": _rows(examples)})] for examples in domain.examples.values()]


def _rows(examples: Examples) -> np.ndarray:
    """The rows of the stored images that are used."""
    return examples.storage_rows(torch.arange(len(examples))).numpy()


def _digest(examples: Examples) -> str:
    """A digest of the content, for data sets that give none."""
    return content_digest({"x": examples.x.numpy(), "y": examples.y.numpy()})
