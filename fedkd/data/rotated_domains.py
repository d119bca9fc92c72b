"""One data set in several domains: a part of it turned by each of several angles (rotated MNIST)."""

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
    """The training images in as many parts as there are angles, each turned by its own; the one left out is the test.

    Ghifary et al., ICCV 2015, as the public code of DomainBed (Gulrajani, Lopez-Paz 2021) has it: the parts are disjoint, drawn once for
    all seeds; which domain an image is of is kept, and batches have equally many of each. Here the test set's images make up the domain
    that is left out, and none of the training images.

    Args:
        data: the source of images.
        angles: degrees, counter-clockwise, one a domain.
        held_out: the place of the angle, from 0, that is tested on and not trained on; null: all are both.
        examples: > 0, training images of each domain; null is as many as there are.
    """

    data: Callable[[], tuple[Task, Examples, Examples]]
    angles: Sequence[float]
    held_out: int | None
    examples: int | None

    def __post_init__(self) -> None:
        require(len(self.angles) > 1, "angles", "must hold two or more angles in degrees", list(self.angles))
        within = self.held_out is None or 0 <= self.held_out < len(self.angles)
        require(within, "held_out", f"must be the place of an angle, 0..{len(self.angles) - 1}, or null", self.held_out)
        require(self.examples is None or self.examples > 0, "examples", "must be > 0 images a domain, or null for all", self.examples)

    def __call__(self) -> tuple[Task, Examples, Examples]:
        """Task, training and test examples."""
        try:
            task, train, test = self.data()
        except ValueError as error:
            raise ConfigError(f"data.{error}") from error
        trained = [domain for domain in range(len(self.angles)) if domain != self.held_out]
        tested = [self.held_out] if self.held_out is not None else trained
        train, test = self.turned(train, "train", trained, len(self.angles)), self.turned(test, "test", tested, len(tested))
        return replace(task, name=f"rotated_{task.name}"), train, test

    def turned(self, images: Examples, part: str, domains: Sequence[int], parts: int) -> Examples:
        """Disjoint parts of ``images``, one for each of ``domains``, turned."""
        order = torch.randperm(len(images), generator=(Seed(0) / "domains" / part).torch())
        size = len(images) // parts if self.examples is None or part == "test" else self.examples
        require(size * parts <= len(images), "examples", f"must be at most {len(images) // parts}, a part of the {part}ing images", size)
        full, x, y = full_scale(images), [], []
        for place, domain in enumerate(domains):
            index = order[(place if parts == len(domains) else domain) * size :][:size].sort().values
            with single_thread():
                x.append(
                    apply_view(ClientView(domain=float(self.angles[domain])), images.gather(images.storage_rows(index)), full, torch.Generator())
                )
            y.append(images.y[index])
        groups = torch.arange(len(domains)).repeat_interleave(size)
        new = Examples(torch.cat(x), torch.cat(y), images.scale, images.mean, images.std, groups=groups)
        return replace(new, digest=content_digest({"x": new.x.numpy(), "y": new.y.numpy()}))
