"""How one client sees the world: its levels of rotation, blur, colour and noise, and images as they look through them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from fedkd.seed import Seed
from fedkd.types import Examples

CHUNK = 4096
"""Images that are computed at once, as floats."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One client's levels; without arguments, it sees images as they are.

    Args:
        rotation: degrees, counter-clockwise.
        domain: degrees likewise, on top of it: the angle of the domain that the client is in.
        noise: >= 0, standard deviation, as a share of the full scale.
        blur: >= 0, standard deviation in pixels.
        brightness: factor of all values.
        contrast: factor of the distances from the image's mean grey.
        hue: -0.5..0.5, part of the circle of colours by which they turn; 0 for grey images.
        label_noise: 0..1, share of its training labels that are replaced.
    """

    rotation: float = 0.0
    domain: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    hue: float = 0.0
    label_noise: float = 0.0


def seen(shards: Sequence[Examples], views: Sequence[View], full: float, seed: Seed, name: str) -> list[Examples]:
    """``shards`` as their clients see them, images in one new storage that all share; computed on the CPU, kept where they were.

    Args:
        shards: each client's examples; where two clients hold the same one, each gets its own version of it.
        views: each client's levels.
        full: the byte that counts as full scale.
        seed: of the noise, split by client and ``name``.
        name: of these shards, so that training and test examples have noise of their own.
    """
    device, shape = shards[0].x.device, shards[0].x.shape[1:]
    storage = torch.empty((sum(map(len, shards)), *shape), dtype=torch.uint8)
    places = torch.arange(len(storage)).split([len(shard) for shard in shards])
    with one_thread():
        for client, (shard, view, place) in enumerate(zip(shards, views, places)):
            random = (seed / client / name).torch()
            for part in torch.arange(len(shard)).split(CHUNK):
                storage[place[part]] = through(view, shard.gather(shard.where(part.to(device))).cpu(), full, random)
    storage = storage.to(device)
    return [replace(shard, x=storage, rows=place.to(device)) for shard, place in zip(shards, places)]


def through(view: View, stored: Tensor, full: float, random: torch.Generator) -> Tensor:  # [N, C, H, W]
    """Images as they look: turned, blurred, in other colours, and noisy, in this order; bytes, rounded once, at the end.

    Turning is bilinear, about the centre; what comes into the picture is 0. A blur sees the picture mirrored at its edges.

    Args:
        view: the levels.
        stored: unsigned bytes.
        full: the byte that counts as full scale.
        random: of the noise.
    """
    from torchvision.transforms.v2 import InterpolationMode, functional  # seconds, which a run that needs it not does not wait for

    x = stored.float() / full
    if angle := view.rotation + view.domain:
        x = functional.rotate(x, angle, InterpolationMode.BILINEAR)
    if view.blur:
        rows, columns = (blurring(side, view.blur) for side in x.shape[-2:])
        x = rows @ x @ columns.T
    if view.brightness != 1:
        x = functional.adjust_brightness(x, view.brightness)
    if view.contrast != 1:
        x = functional.adjust_contrast(x, view.contrast)
    if view.hue:
        x = functional.adjust_hue(x, view.hue)
    if view.noise:
        x = x + view.noise * torch.randn(x.shape, generator=random)
    return (x * full).round_().clamp_(0, full).to(torch.uint8)


def blurring(side: int, deviation: float) -> Tensor:  # [side, side]
    """A Gaussian blur along one axis of ``side`` pixels, three standard deviations wide to each hand, as a matrix: far faster than a convolution."""
    from torchvision.transforms.v2 import functional

    reach = min(ceil(3 * min(deviation, side)), side - 1)
    return functional.gaussian_blur(torch.eye(side)[None], [1, 2 * reach + 1], [deviation] * 2)[0]


def full_scale(examples: Examples) -> float:
    """The byte that stands for white: the one that counts as 1.0, or 255 where images are kept as 0..255."""
    return examples.scale if len(examples.x) == 0 or examples.x.max() <= examples.scale else 255.0


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread within the block: on their number hangs which algorithm torch takes for a product, and so the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
