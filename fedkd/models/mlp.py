"""A multi-layer perceptron."""

from collections.abc import Sequence

from torch import nn

from fedkd.errors import require
from fedkd.models.base import Classifier
from fedkd.types import Task


class MLP(Classifier):
    """Flattened pixels through linear layers with ReLU; no BatchNorm, so nothing in it is a statistic of the data.

    Args:
        task: images of any size.
        widths: units of each hidden layer; the last is the size of the embedding.
    """

    def __init__(self, task: Task, *, widths: Sequence[int]) -> None:
        require(len(widths) > 0 and all(w > 0 for w in widths), "widths", "must be one or more positive integers", widths)
        pixels = task.shape[0] * task.shape[1] * task.shape[2]
        stages = [nn.Sequential(nn.Linear(before, width), nn.ReLU()) for before, width in zip((pixels, *widths), widths)]
        stages[0] = nn.Sequential(nn.Flatten(), *stages[0])
        super().__init__(task, stages, nn.Identity(), nn.Linear(widths[-1], task.num_classes), widths[-1])
