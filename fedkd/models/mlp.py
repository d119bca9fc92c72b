"""A multi-layer perceptron."""

from collections.abc import Sequence
from math import prod

from torch import nn

from fedkd.errors import require
from fedkd.models.base import Classifier
from fedkd.types import Task


class MLP(Classifier):
    """Linear layers with ReLU on flattened pixels, or on the columns of a table.

    There is no BatchNorm, and so there are no statistics of the data.

    Each hidden layer is a stage; the last one is the embedding. Initialization: PyTorch's default.

    Args:
        task: images of any size, tables or series.
        widths: units of each hidden layer; the last is the embedding size.

    Raises:
        ConfigError: ``widths`` is empty or not positive.
    """

    def __init__(self, task: Task, *, widths: Sequence[int]) -> None:
        require(len(widths) > 0 and all(w > 0 for w in widths), "widths", "must be one or more positive integers", widths)
        stages = [nn.Sequential(nn.Linear(size, width), nn.ReLU()) for size, width in zip((prod(task.shape), *widths), widths)]
        stages[0] = nn.Sequential(nn.Flatten(), *stages[0])
        super().__init__(task, stages, nn.Identity(), nn.Linear(widths[-1], task.num_classes), widths[-1])
