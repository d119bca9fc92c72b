"""Small convolutional networks: those of FedGen (Zhu et al., ICML 2021) and of information flow (Passalis et al., CVPR 2020)."""

from collections.abc import Sequence

import torch
from torch import nn

from fedkd.errors import require
from fedkd.models.base import Classifier
from fedkd.types import Task


class FedGenCNN(Classifier):
    """3x3 convolutions with stride 2, each with BatchNorm and ReLU, then two linear layers without an activation between.

    The embedding is the output of the first linear layer. With widths (6, 16): 26,434 parameters for MNIST and 26,962 for
    EMNIST's 26 letters; with widths (16, 32, 64) and pooling: 25,954 for CelebA at 84x84. Layers begin as PyTorch's.

    Args:
        task: images of any size that survives the strides.
        widths: channels of each convolution.
        pool: 2x2 max pooling after each.
        embedding_size: D, the size of the latent space in which a generator works.

    Raises:
        ConfigError: the images are too small for the strides.
    """

    def __init__(self, task: Task, *, widths: Sequence[int], pool: bool, embedding_size: int) -> None:
        require(len(widths) > 0 and all(w > 0 for w in widths), "widths", "must be one or more positive integers", widths)
        require(embedding_size > 0, "embedding_size", "must be > 0", embedding_size)
        stages, size = [], torch.tensor(task.shape[1:])
        for before, width in zip((task.shape[0], *widths), widths):
            layers = [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            size = (size + 1) // 2
            if pool:
                layers, size = [*layers, nn.MaxPool2d(2)], size // 2
            require(bool((size > 0).all()), "widths", f"must leave at least one pixel of images {task.shape}", widths)
            stages.append(nn.Sequential(*layers))
        flat = int(widths[-1] * size.prod())
        embed = nn.Sequential(nn.Flatten(), nn.Linear(flat, embedding_size))
        super().__init__(task, stages, embed, nn.Linear(embedding_size, task.num_classes), embedding_size)

    def extra_stage(self) -> nn.Module:
        width = self.stages[-1][0].out_channels
        return nn.Sequential(nn.Conv2d(width, width, 3, stride=1, padding=1), nn.BatchNorm2d(width), nn.ReLU())


class PlainCNN(Classifier):
    """3x3 convolutions without padding, each with BatchNorm, ReLU and 2x2 max pooling; then two linear layers, ReLU between them.

    Stages are the pooled blocks; the embedding is the first linear layer's output after ReLU. For CIFAR-10: widths (16, 32, 64) and an
    embedding of 128, the auxiliary teacher, 57,994 parameters; (8, 16, 32) and 64, the student, 15,050. Layers begin as PyTorch's.

    Args:
        task: images of any size that survives the blocks; 32x32 leaves 2x2 after three.
        widths: channels of each convolution.
        embedding_size: units of the first linear layer.

    Raises:
        ConfigError: the images are too small, or a size is not positive.
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
