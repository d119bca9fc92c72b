"""Generators: labels and noise to embeddings (FedGen) or to images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd.errors import require
from fedkd.tensor_ops import one_hot
from fedkd.types import Task


class FeatureMLP(nn.Module):
    """``G(noise [B, noise_size], y [B]) -> [B, D]``: noise and one-hot label through linear, BatchNorm, ReLU, linear.

    With hidden 256 and noise_size 32, for ten classes and D = 32: 19,744 parameters.

    Args:
        task: gives the number of classes.
        embedding_size: D of the classifiers whose heads read the output.
        hidden: units of the hidden layer.
        noise_size: entries of the noise vector.
    """

    output_kind = "embeddings"

    def __init__(self, task: Task, embedding_size: int, *, hidden: int, noise_size: int) -> None:
        require(hidden > 0, "hidden", "must be > 0", hidden)
        require(noise_size > 0, "noise_size", "must be > 0", noise_size)
        super().__init__()
        self.num_classes = task.num_classes
        self.noise_size = noise_size
        self.hidden = nn.Sequential(nn.Linear(noise_size + task.num_classes, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.output = nn.Linear(hidden, embedding_size)

    def forward(self, noise: Tensor, y: Tensor) -> Tensor:
        label = one_hot(y, self.num_classes).to(noise.dtype)
        return self.output(self.hidden(torch.cat([noise, label], dim=-1)))


class ImageConv(nn.Module):
    """``G(noise [B, noise_size], y [B]) -> images [B, channels, height, width]`` as networks see them.

    A linear layer to maps of a quarter of height and width, then twice: enlarge to twice the size, 3x3 convolution, BatchNorm, leaky ReLU; a last
    convolution and a sigmoid give pixels 0..max_pixel, which are scaled as the task's images are. Sizes are rounded up, so images may be of any.

    Args:
        task: gives the images' shape and scaling, and the number of classes.
        width: channels of the last hidden map; the first has twice as many.
        noise_size: entries of the noise vector.
        conditional: the label is an input, as a one-hot vector beside the noise; otherwise ``y`` is not looked at.
    """

    output_kind = "images"

    def __init__(self, task: Task, *, width: int, noise_size: int, conditional: bool) -> None:
        require(width > 0, "width", "must be > 0", width)
        require(noise_size > 0, "noise_size", "must be > 0", noise_size)
        super().__init__()
        channels, height, width_of = task.shape
        self.num_classes, self.noise_size, self.conditional, self.max_pixel = task.num_classes, noise_size, conditional, task.max_pixel
        self.sizes = [(-(-height // part), -(-width_of // part)) for part in (4, 2, 1)]
        first = self.sizes[0]
        self.project = nn.Linear(noise_size + task.num_classes * conditional, 2 * width * first[0] * first[1])
        self.begin = nn.BatchNorm2d(2 * width)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.LeakyReLU(0.2))
            for before, after in ((2 * width, 2 * width), (2 * width, width))
        )
        self.end = nn.Conv2d(width, channels, 3, padding=1)
        self.register_buffer("mean", torch.tensor(task.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(task.std).view(-1, 1, 1))

    def forward(self, noise: Tensor, y: Tensor) -> Tensor:
        given = torch.cat([noise, one_hot(y, self.num_classes).to(noise.dtype)], dim=-1) if self.conditional else noise
        x = self.begin(self.project(given).unflatten(1, (self.begin.num_features, *self.sizes[0])))
        for stage, size in zip(self.stages, self.sizes[1:]):
            x = stage(F.interpolate(x, size))
        return (self.max_pixel * torch.sigmoid(self.end(x)) - self.mean) / self.std
