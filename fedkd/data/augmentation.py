"""Random crops and horizontal flips of a whole batch of images. All random numbers are drawn before the training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.seed import Seed
from fedkd.types import Examples, Tensors


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A random crop of the padded image, then a random horizontal flip, as in the standard recipe for CIFAR.

    Args:
        crop: maximum shift in pixels, up, down, left, and right, >= 0. New pixels are black.
        flip: flip every image horizontally with probability 1/2.

    Raises:
        ConfigError: ``crop`` is negative.
    """

    crop: int
    flip: bool

    def __post_init__(self) -> None:
        require(self.crop >= 0, "crop", "must be >= 0 pixels (0 does not move images)", self.crop)

    def draw(self, num_steps: int, batch_size: int, seed: Seed) -> Tensors:
        """The random numbers for all steps of a training.

        Args:
            num_steps: number of steps, S.
            batch_size: images per step, B.
            seed: random stream.

        Returns:
            ``moves`` [S, B, 2]: shift down and right in -crop..crop, unless ``crop`` is 0. ``mirrored`` [S, B]: 1 where an image is
            flipped, unless ``flip`` is false.
        """
        draws = {}
        if self.crop:
            moves = torch.randint(2 * self.crop + 1, (num_steps, batch_size, 2), generator=(seed / "moves").torch())
            draws["moves"] = moves - self.crop
        if self.flip:
            draws["mirrored"] = torch.randint(2, (num_steps, batch_size), generator=(seed / "mirrored").torch())
        return draws

    def __call__(self, x: Tensor, draws: Tensors, black: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, H, W]
        """Augment the images of one step.

        Args:
            x: images.
            draws: the random numbers of this step: ``moves`` [B, 2] and ``mirrored`` [B].
            black: value of a black pixel [C], see :func:`black_pixel`.
        """
        if not draws:
            return x
        height, width = x.shape[2:]
        rows, columns = (torch.arange(n, device=x.device).expand(len(x), n) for n in (height, width))  # [B, H], [B, W]
        if "moves" in draws:
            rows, columns = rows + draws["moves"][:, :1], columns + draws["moves"][:, 1:]
        if "mirrored" in draws:
            columns = torch.where(draws["mirrored"][:, None] == 1, columns.flip(1), columns)
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        index = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]  # [B, H, W]
        moved = x.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view(x.shape)
        return torch.where(inside[:, None], moved, black[:, None, None])


def black_pixel(data: Examples, dtype: torch.dtype) -> Tensor:  # [channels]
    """The normalized value of a black pixel."""
    return torch.tensor([-mean / std for mean, std in zip(data.mean, data.std)], dtype=dtype, device=data.y.device)
