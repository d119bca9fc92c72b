"""Data sets and networks of a user that are no images: words as whole numbers, series, tables and tokens, with every kind of target."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.models.base import Classifier
from fedkd.types import Examples, Task

NUM_WORDS = 30_000


def words() -> tuple[Task, Examples, Examples]:
    """Texts of 20 words [N, 20]; the first word is the label."""
    rng = np.random.default_rng(0)
    y, x = torch.tensor(rng.integers(0, 4, 240)), torch.tensor(rng.integers(0, NUM_WORDS, (240, 20)))
    x[:, 0] = y
    return Task("news", (20,), 4), *divided(x, y)


def series() -> tuple[Task, Examples, Examples]:
    """Series of three channels [N, 3, 50], with another mean in each channel."""
    rng = np.random.default_rng(0)
    y, x = torch.tensor(rng.integers(0, 4, 240)), torch.tensor(rng.normal(size=(240, 3, 50)), dtype=torch.float32)
    x[:, 0, 0] = 9.0 * y
    return Task("series", (3, 50), 4), *divided(x, y, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))


def many_classes() -> tuple[Task, Examples, Examples]:
    """Two training examples and one test example of each of 2,000 classes [N, 1, 10]: the digits of its number."""
    y = torch.arange(6000) % 2000
    x = (y[:, None, None] >> torch.arange(10)).bitwise_and(1).float()
    return Task("many", (1, 10), 2000), Examples(x[:4000], y[:4000], 1.0, (0.0,), (1.0,)), Examples(x[4000:], y[4000:], 1.0, (0.0,), (1.0,))


def divided(x: Tensor, y: Tensor, mean: tuple[float, ...] = (0.0,), std: tuple[float, ...] = (1.0,)) -> tuple[Examples, Examples]:
    """200 training examples and 40 test examples."""
    return Examples(x[:200], y[:200], 1.0, mean, std, "train"), Examples(x[200:], y[200:], 1.0, mean, std, "test")


class MeanOfWords(nn.Module):
    """The mean of the words' embeddings [B, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_WORDS, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(x.long()).mean(1)


class WordNetwork(Classifier):
    """A linear classifier of mean embeddings."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, [MeanOfWords()], nn.Identity(), nn.Linear(16, task.num_classes), 16)


class SeriesNetwork(Classifier):
    """One convolution over time."""

    def __init__(self, task: Task) -> None:
        stage = nn.Sequential(nn.Conv1d(task.shape[0], 8, 5), nn.ReLU(), nn.Flatten())
        super().__init__(task, [stage], nn.Linear(8 * (task.shape[1] - 4), 16), nn.Linear(16, task.num_classes), 16)


VOCABULARY = ("<pad>", "<unknown>", "<end>", *"abcdefghi")
"""The tokens of the texts below."""


def of_kind(input: str, target: str) -> tuple[Task, Examples, Examples]:
    """240 examples of 6 features or tokens, which can be learned: the label is the first token, or the sign of features."""
    rng = np.random.default_rng(1)
    if input == "tokens":
        x = torch.tensor(rng.integers(2, len(VOCABULARY), (240, 6)))
        x[:, 4:] *= torch.tensor(rng.integers(0, 2, (240, 1)))  # half of the texts have four tokens
    else:
        x = torch.tensor(rng.normal(size=(240, *((2, 3) if input == "series" else (6,)))), dtype=torch.float32)
    signs = (x.flatten(1)[:, :4] > (5 if input == "tokens" else 0)).float()
    y = {"label": 2 * signs[:, 0].long() + signs[:, 1].long(), "multi_label": signs, "next_token": x.roll(-1, 1)}[target]
    task = Task(
        f"{input}_{target}", tuple(x.shape[1:]), len(VOCABULARY) if target == "next_token" else 4, input=input, target=target,
        vocabulary=VOCABULARY if input == "tokens" else (), uncounted=(0, 2),
    )  # fmt: skip
    train, test = divided(x, y)
    return task, replace(train, tokens=input == "tokens"), replace(test, tokens=input == "tokens")


class TokenNetwork(Classifier):
    """The mean of the embeddings of tokens; with next tokens the embedding of each token, or a recurrent layer over them."""

    def __init__(self, task: Task, *, recurrent: bool = False) -> None:
        stage = nn.Embedding(len(task.vocabulary), 8, padding_idx=0)
        embed = Recurrent() if recurrent else nn.Identity() if task.positions else Mean()
        super().__init__(task, [stage], embed, nn.Linear(8, task.num_classes), 8)


class Mean(nn.Module):
    """The mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Recurrent(nn.Module):
    """The outputs of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]
