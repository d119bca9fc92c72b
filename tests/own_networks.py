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


def lazy(task: Task) -> Classifier:
    """A layer whose shape the first forward pass sets."""
    return Base(task, nn.LazyLinear(32))


def weight_normalized(task: Task) -> Classifier:
    """A parametrization."""
    return Base(task, nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)))


class Rows(nn.Module):
    """The last state of a recurrent network that reads the rows of an image."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.recurrent = nn.GRU(task.shape[2] * task.shape[0], 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # [B, channels, H, W] -> [B, 32]
        """The last state."""
        return self.recurrent(x.flatten(1, 2))[0][:, -1]


def recurrent(task: Task) -> Classifier:
    """``torch.vmap`` has no rule for it."""
    return Classifier(task, [Rows(task)], nn.Identity(), nn.Linear(32, task.num_classes), 32)


def batch_normalized(task: Task) -> Classifier:
    """BatchNorm over examples alone, which cannot take one of them."""
    return Base(task, nn.BatchNorm1d(32))


def head_frozen(task: Task) -> Classifier:
    """Only the layers before the head are trained."""
    model = Base(task)
    model.head.requires_grad_(False)
    return model


def all_frozen(task: Task) -> Classifier:
    """Nothing is trained."""
    model = Base(task)
    model.requires_grad_(False)
    return model


def wrong_size(task: Task) -> Classifier:
    """Logits of one class too many."""
    model = Base(task)
    model.head = nn.Linear(32, task.num_classes + 1)
    return model


class Squeezing(nn.Module):
    """Loses the batch where it is of one example."""

    def forward(self, x: Tensor) -> Tensor:
        """Without dimensions of size 1."""
        return x.squeeze()


def squeezing(task: Task) -> Classifier:
    """Works for two images and not for one."""
    return Base(task, Squeezing())


class Untraceable(nn.Module):
    """Branches on a value."""

    def forward(self, x: Tensor) -> Tensor:
        """``x``, or its double."""
        return x if x.sum() > 0 else 2 * x


def untraceable(task: Task) -> Classifier:
    """Trains, and cannot be exported."""
    return Base(task, Untraceable())


class Raising(nn.Module):
    """Raises in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        """``x``."""
        if self.training:
            raise KeyError("an own error\nof two lines")
        return x


def raising(task: Task) -> Classifier:
    """Cannot be trained."""
    return Base(task, Raising())


class Plain(nn.Module):
    """A module of torch alone."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(num_pixels(task), 16), nn.ReLU(), nn.Linear(16, task.num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.net(x)


class Pair(Plain):
    """Returns a tuple."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Logits and images."""
        return self.net(x), x


class Softmax(Plain):
    """Does not end with its last linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities."""
        return self.net(x).softmax(-1)


class RaisingInEvaluation(nn.Module):
    """Raises in eval mode alone, for images that are not black."""

    def forward(self, x: Tensor) -> Tensor:
        """``x``."""
        if not self.training and x.any():
            raise KeyError("an own error\nof two lines")
        return x


def raising_in_evaluation(task: Task) -> Classifier:
    """Cannot be evaluated."""
    return Base(task, RaisingInEvaluation())
