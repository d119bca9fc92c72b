"""Networks as users write them: frozen and tied parameters, counters, and the like."""

import torch
from torch import Tensor, nn

from fedkd.models.base import Classifier
from fedkd.types import Task


def num_pixels(task: Task) -> int:
    """Values of one image."""
    channels, height, width = task.shape
    return channels * height * width


class Base(Classifier):
    """Flattened pixels, a linear layer with ReLU, and the layers ``more``, which keep the size of 32."""

    def __init__(self, task: Task, *more: nn.Module) -> None:
        stage = nn.Sequential(nn.Flatten(), nn.Linear(num_pixels(task), 32), nn.ReLU(), *more)
        super().__init__(task, [stage], nn.Identity(), nn.Linear(32, task.num_classes), 32)


def frozen(task: Task) -> Classifier:
    """All layers before the head are frozen."""
    model = Base(task, nn.Linear(32, 32))
    model.stages.requires_grad_(False)
    return model


def tied(task: Task) -> Classifier:
    """Two layers share one weight."""
    first, second = nn.Linear(32, 32), nn.Linear(32, 32)
    second.weight = first.weight
    return Base(task, first, nn.ReLU(), second)


class Counting(nn.Module):
    """Counts the examples that it has seen in training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """``x``."""
        if self.training:
            self.seen += x.shape[0]
        return x


def counting(task: Task) -> Classifier:
    """An integer buffer."""
    return Base(task, Counting())
