"""Networks that read token ids: fastText, a convolutional network over words, and a recurrent network over characters."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedkd.errors import require
from fedkd.models.base import Classifier
from fedkd.types import PADDING, Input, Task


class TokenClassifier(Classifier):
    """A network that reads token ids [B, L] alone."""

    inputs: ClassVar[tuple[Input, ...]] = ("tokens",)


class MeanEmbedding(nn.Module):
    """The mean of the embeddings of the tokens of a text.

    Args:
        num_tokens: size of the vocabulary.
        size: D.
        mean: ``masked``: over the tokens that are no padding; ``padded``: over all positions, with 0 for padding.
    """

    def __init__(self, num_tokens: int, size: int, mean: str) -> None:
        super().__init__()
        self.embedding, self.mean = nn.Embedding(num_tokens, size, padding_idx=PADDING), mean

    def forward(self, x: Tensor) -> Tensor:  # [B, L] -> [B, D]
        """The mean embeddings. Without any token the mean is 0."""
        z = self.embedding(x)
        if self.mean == "padded":
            return z.mean(1)
        is_token = (x != PADDING).to(z.dtype)[..., None]
        return (z * is_token).sum(1) / is_token.sum(1).clamp(min=1)


class FastText(TokenClassifier):
    """The mean of the embeddings of all words, and two linear layers.

    Joulin, Grave, Bojanowski, Mikolov: Bag of tricks for efficient text classification, EACL 2017, without n-grams, and with the linear
    layer between mean and head of PFLlib. Initialization: PyTorch's default.

    Args:
        task: texts.
        embedding_size: size of a word's embedding, and of the classifier's, > 0.
        mean: ``masked``: over the words of a text; ``padded``: over all positions, as in PFLlib, where padding counts.

    Raises:
        ConfigError: a value is out of its range.
    """

    def __init__(self, task: Task, *, embedding_size: int, mean: Literal["masked", "padded"]) -> None:
        require(embedding_size > 0, "embedding_size", "must be > 0", embedding_size)
        require(mean in ("masked", "padded"), "mean", "must be masked or padded", mean)
        stage = MeanEmbedding(len(task.vocabulary), embedding_size, mean)
        embed, head = nn.Linear(embedding_size, embedding_size), nn.Linear(embedding_size, task.num_classes)
        super().__init__(task, [stage], embed, head, embedding_size)


class WordMaps(nn.Module):
    """The embeddings of a text's words as a map [B, D, L]."""

    def __init__(self, num_tokens: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, size, padding_idx=PADDING)

    def forward(self, x: Tensor) -> Tensor:  # [B, L] -> [B, D, L]
        """The map."""
        return self.embedding(x).mT


class MaxOverTime(nn.Module):
    """Convolutions of several widths over time, ReLU, and the largest value of each channel.

    Args:
        size: channels of the map.
        widths: words that each convolution sees.
        channels: channels of each convolution.
    """

    def __init__(self, size: int, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv1d(size, channels, width) for width in widths])

    def forward(self, x: Tensor) -> Tensor:  # [B, D, L] -> [B, channels * widths]
        """The largest values of all convolutions."""
        return torch.cat([convolution(x).relu().amax(-1) for convolution in self.convolutions], dim=-1)


class TextCNN(TokenClassifier):
    """Convolutions of several widths over the embeddings of words, the largest values over time, dropout, and a linear layer.

    Kim: Convolutional neural networks for sentence classification, EMNLP 2014, with random embeddings. PFLlib has a dropout of 0.8.
    Initialization: PyTorch's default.

    Args:
        task: texts.
        embedding_size: size of a word's embedding, > 0.
        widths: words that each convolution sees, at most the length of a text.
        channels: channels of each convolution, > 0. The classifier's embedding has as many values for each width.
        dropout: probability with which a value of the embedding is dropped in training, in 0..1. With 0 clients train together.

    Raises:
        ConfigError: a value is out of its range.
    """

    def __init__(self, task: Task, *, embedding_size: int, widths: Sequence[int], channels: int, dropout: float) -> None:
        require(embedding_size > 0, "embedding_size", "must be > 0", embedding_size)
        require(channels > 0, "channels", "must be > 0", channels)
        sound = len(widths) > 0 and all(0 < width <= task.shape[0] for width in widths)
        require(sound, "widths", f"must be one or more numbers in 1..{task.shape[0]}, the length of a text", list(widths))
        require(0 <= dropout < 1, "dropout", "must be in 0..1, 1 excluded", dropout)
        stages = [WordMaps(len(task.vocabulary), embedding_size), MaxOverTime(embedding_size, widths, channels)]
        size = channels * len(widths)
        super().__init__(task, stages, nn.Dropout(dropout), nn.Linear(size, task.num_classes), size)


class RecurrentOutputs(nn.Module):
    """The outputs of an LSTM at every position."""

    def __init__(self, size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(size, hidden_size, num_layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # [B, L, D] -> [B, L, hidden_size]
        """The outputs."""
        outputs: Tensor = self.lstm(x)[0]
        return outputs


class CharLSTM(TokenClassifier):
    """An LSTM that predicts the next character at every position.

    The network of federated experiments on Shakespeare has two layers of 256 units (819,920 parameters with 80 characters); the shipped one
    is smaller. LEAF predicts from the last output alone, and TFF and FedJAX from every output, as here. FedJAX has a tanh between layers,
    which this network does not have. Initialization: PyTorch's default.

    Args:
        task: sequences whose next tokens are predicted.
        embedding_size: size of a character's embedding, > 0.
        hidden_size: units of each layer, > 0.
        num_layers: layers, > 0.

    Raises:
        ConfigError: a value is out of its range, or the task has another target.
    """

    def __init__(self, task: Task, *, embedding_size: int, hidden_size: int, num_layers: int) -> None:
        for name, value in (("embedding_size", embedding_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            require(value > 0, name, "must be > 0", value)
        rule = f"must be fasttext or text_cnn for the target {task.target}, as char_lstm predicts next tokens"
        require(task.target == "next_token", "model", rule, "char_lstm")
        stage = nn.Embedding(len(task.vocabulary), embedding_size, padding_idx=PADDING)
        embed, head = RecurrentOutputs(embedding_size, hidden_size, num_layers), nn.Linear(hidden_size, task.num_classes)
        super().__init__(task, [stage], embed, head, hidden_size)
