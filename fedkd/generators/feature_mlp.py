"""FedGen's generator: labels and noise to embeddings (Zhu et al., ICML 2021, section 4; public code for the sizes)."""

import torch
from torch import Tensor, nn

from fedkd.check import require
from fedkd.one_hot import one_hot
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

    makes = "embeddings"

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
