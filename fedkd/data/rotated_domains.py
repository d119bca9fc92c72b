"""A data set in several domains: a different part of it is rotated by each of several angles (rotated MNIST)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from fedkd.data.cache import content_digest
from fedkd.data.client_shift import ClientView, apply_view, full_scale, single_thread
from fedkd.errors import ConfigError, require
from fedkd.seed import Seed
from fedkd.types import Examples, Task


@dataclass(frozen=True, kw_only=True)
class RotatedDomains:
    """One domain per angle. One domain can be left out of the training, and is then the test set.

    Rotated MNIST of Ghifary et al., ICCV 2015, as in the public code of DomainBed (Gulrajani and Lopez-Paz 2021). The training images are
    divided into disjoint parts, the same for all seeds, and each part is rotated by its angle. ``Examples.groups`` holds the domain of
    each image, and batches have the same number of images of every domain. Deviation: the domain that is left out consists of the test
    set's images, and of no training images.

    Args:
        data: the data set to rotate.
        angles: degrees, counter-clockwise, one per domain, at least two.
        held_out: index of the domain that is tested on and not trained on, from 0; null: all domains are trained on and tested on.
        examples: training images per domain, > 0; null: as many as there are.

    Raises:
        ConfigError: a value is out of range; on calling if there are too few images.
    """

    data: Callable[[], tuple[Task, Examples, Examples]]
    angles: Sequence[float]
    held_out: int | None
    examples: int | None

    def __post_init__(self) -> None:
        require(len(self.angles) > 1, "angles", "must hold two or more angles in degrees", list(self.angles))
        valid = self.held_out is None or 0 <= self.held_out < len(self.angles)
        require(valid, "held_out", f"must be the index of an angle, 0..{len(self.angles) - 1}, or null", self.held_out)
        require(self.examples is None or self.examples > 0, "examples", "must be > 0 images per domain, or null for all", self.examples)

    def __call__(self) -> tuple[Task, Examples, Examples]:
        """The task, the training examples, and the test examples."""
        try:
            task, train, test = self.data()
        except ValueError as error:
            raise ConfigError(f"data.{error}") from error
        train_domains = [domain for domain in range(len(self.angles)) if domain != self.held_out]
        left_out = train.left_out
        test_domains = [self.held_out] if self.held_out is not None else train_domains
        train = self.rotate(train, "train", train_domains, len(self.angles))
        test = self.rotate(test, "test", test_domains, len(test_domains))
        return replace(task, name=f"rotated_{task.name}"), replace(train, left_out=left_out), test

    def rotate(self, images: Examples, part: str, domains: Sequence[int], num_parts: int) -> Examples:
        """Divide images into disjoint parts, and rotate one part for each domain.

        Args:
            images: the images.
            part: ``train`` or ``test``.
            domains: the domains to make.
            num_parts: number of parts. If it is the number of ``domains``, they use the parts in order; else domain d uses part d.

        Raises:
            ConfigError: there are fewer images than ``examples`` per part.
        """
        order = torch.randperm(len(images), generator=(Seed(0) / "domains" / part).torch())
        size = len(images) // num_parts if self.examples is None or part == "test" else self.examples
        limit = len(images) // num_parts
        require(size * num_parts <= len(images), "examples", f"must be at most {limit}, a part of the {part}ing images", size)
        full, x, y = full_scale(images), [], []
        for position, domain in enumerate(domains):
            start = (position if num_parts == len(domains) else domain) * size
            index = order[start : start + size].sort().values
            view = ClientView(domain=float(self.angles[domain]))
            with single_thread():
                x.append(apply_view(view, images.gather(images.storage_rows(index)), full, torch.Generator()))
            y.append(images.y[index])
        groups = torch.tensor(domains).repeat_interleave(size)
        rotated = Examples(torch.cat(x), torch.cat(y), images.scale, images.mean, images.std, groups=groups)
        return replace(rotated, digest=content_digest({"x": rotated.x.numpy(), "y": rotated.y.numpy()}))
