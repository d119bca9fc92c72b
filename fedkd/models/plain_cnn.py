"""The small convolutional networks of information flow's experiments (Passalis et al., CVPR 2020; public code)."""

from collections.abc import Sequence

import torch
from torch import nn

from fedkd.check import require
from fedkd.models.classifier import Classifier
from fedkd.types import Task


class PlainCNN(Classifier):
    """3x3 convolutions without padding, each with BatchNorm, ReLU and 2x2 max pooling; then two linear layers, ReLU between them.

    Stages are the pooled blocks; the embedding is the first linear layer's output after ReLU. For CIFAR-10: widths (16, 32, 64) and an
    embedding of 128, the auxiliary teacher, 57,994 parameters; (8, 16, 32) and 64, the student, 15,050. Layers begin as PyTorch's.

    Args:
        task: images of any size that survives the blocks; 32x32 leaves 2x2 after three.
        widths: channels of each convolution.
        embedding_size: units of the first linear layer.

    Raises:
        ValueError: the images are too small, or a size is not positive.
    """

    def __init__(self, task: Task, *, widths: Sequence[int], embedding_size: int) -> None:
        require(len(widths) > 0 and all(w > 0 for w in widths), "widths", "must be one or more positive integers", widths)
        require(embedding_size > 0, "embedding_size", "must be > 0", embedding_size)
        stages, size = [], torch.tensor(task.shape[1:])
        for before, width in zip((task.shape[0], *widths), widths):
            size = (size - 2) // 2
            require(bool((size > 0).all()), "widths", f"must leave at least one pixel of images {task.shape}", widths)
            stages.append(nn.Sequential(nn.Conv2d(before, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)))
        flat = int(widths[-1] * size.prod())
        embed = nn.Sequential(nn.Flatten(), nn.Linear(flat, embedding_size), nn.ReLU())
        super().__init__(task, stages, embed, nn.Linear(embedding_size, task.num_classes), embedding_size)
