"""Small convolutional networks: those of FedGen (ICML 2021), information flow (CVPR 2020), MOON (CVPR 2021), and FedAvg (AISTATS 2017)."""

from collections.abc import Sequence

import torch
from torch import nn

from fedkd.errors import require
from fedkd.models.base import ImageClassifier
from fedkd.types import Task


class FedGenCNN(ImageClassifier):
    """3x3 convolutions with stride 2, each with BatchNorm and ReLU, then two linear layers without an activation between them.

    Each convolution is a stage. The embedding is the output of the first linear layer. Parameters: 26,434 for MNIST and 26,962 for the 26
    letters of EMNIST with widths (6, 16); 25,954 for CelebA at 84x84 with widths (16, 32, 64) and pooling. Initialization: PyTorch's
    default.

    Args:
        task: images that are large enough for the strides.
        widths: channels of each convolution.
        pool: 2x2 max pooling after each convolution.
        embedding_size: D, the size of the space in which FedGen's generator works.

    Raises:
        ConfigError: a size is not positive, or the images are too small for the strides.
    """

    def __init__(self, task: Task, *, widths: Sequence[int], pool: bool, embedding_size: int) -> None:
        require(len(widths) > 0 and all(w > 0 for w in widths), "widths", "must be one or more positive integers", widths)
        require(embedding_size > 0, "embedding_size", "must be > 0", embedding_size)
        stages, size = [], torch.tensor(task.shape[1:])
        for in_channels, width in zip((task.shape[0], *widths), widths):
            layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            size = (size + 1) // 2
            if pool:
                layers, size = [*layers, nn.MaxPool2d(2)], size // 2
            require(bool((size > 0).all()), "widths", f"must leave at least one pixel of images {task.shape}", widths)
            stages.append(nn.Sequential(*layers))
        num_features = int(widths[-1] * size.prod())
        embed = nn.Sequential(nn.Flatten(), nn.Linear(num_features, embedding_size))
        super().__init__(task, stages, embed, nn.Linear(embedding_size, task.num_classes), embedding_size)
        self.last_width = widths[-1]

    def extra_stage(self) -> nn.Module:
        """A new stage like the last one, with stride 1 and without pooling, see :meth:`fedkd.models.base.Classifier.extra_stage`."""
        width = self.last_width
        return nn.Sequential(nn.Conv2d(width, width, 3, stride=1, padding=1), nn.BatchNorm2d(width), nn.ReLU())


class PlainCNN(ImageClassifier):
    """3x3 convolutions without padding, each with BatchNorm, ReLU and 2x2 max pooling, then two linear layers with ReLU between them.

    Each pooled block is a stage. The embedding is the output of the first linear layer after ReLU. For CIFAR-10 the auxiliary teacher has
    widths (16, 32, 64), an embedding of 128, and 57,994 parameters; the student has (8, 16, 32), 64, and 15,050. Initialization:
    PyTorch's default.

    Args:
        task: images that are large enough for the blocks; 32x32 pixels leave 2x2 after three.
        widths: channels of each convolution.
        embedding_size: units of the first linear layer.

    Raises:
        ConfigError: a size is not positive, or the images are too small.
    """

    def __init__(self, task: Task, *, widths: Sequence[int], embedding_size: int) -> None:
        require(len(widths) > 0 and all(w > 0 for w in widths), "widths", "must be one or more positive integers", widths)
        require(embedding_size > 0, "embedding_size", "must be > 0", embedding_size)
        stages, size = [], torch.tensor(task.shape[1:])
        for in_channels, width in zip((task.shape[0], *widths), widths):
            size = (size - 2) // 2
            require(bool((size > 0).all()), "widths", f"must leave at least one pixel of images {task.shape}", widths)
            stages.append(nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)))
        num_features = int(widths[-1] * size.prod())
        embed = nn.Sequential(nn.Flatten(), nn.Linear(num_features, embedding_size), nn.ReLU())
        super().__init__(task, stages, embed, nn.Linear(embedding_size, task.num_classes), embedding_size)


def pooled_convolutions(task: Task, widths: Sequence[int], name: str) -> tuple[list[nn.Sequential], int]:
    """5x5 convolutions without padding, each with ReLU and 2x2 max pooling, and the number of values of the last map.

    Args:
        task: images.
        widths: channels of each convolution; two of them need 16x16 pixels.
        name: the option of ``model``, for the message.

    Raises:
        ConfigError: the images are too small.
    """
    stages, size, channels = [], torch.tensor(task.shape[1:]), task.shape[0]
    for width in widths:
        size = (size - 4) // 2
        require(bool((size > 0).all()), "model", f"must be another network for images {task.shape}, which need 16x16 pixels", name)
        stages.append(nn.Sequential(nn.Conv2d(channels, width, 5), nn.ReLU(), nn.MaxPool2d(2)))
        channels = width
    return stages, channels * int(size.prod())


class MoonCNN(ImageClassifier):
    """Two 5x5 convolutions with ReLU and 2x2 max pooling, two linear layers with ReLU, a projection of two layers, and the head.

    The embedding is the output of the projection, which the head reads without an activation between them. MOON contrasts embeddings, so
    this is its network for CIFAR-10, with 92,626 parameters for 32x32 pixels and 10 classes. Initialization: PyTorch's default.

    Source:
        Li, He, Song: Model-contrastive federated learning, CVPR 2021.
        Public code: QinbinLi/MOON @ 8fcba3c.

    Args:
        task: images of at least 16x16 pixels.
        projection: outputs of the projection, 256 in the paper; null: no projection, and the embedding is the input of the projection.

    Raises:
        ConfigError: the size is not positive, or the images are too small.
    """

    def __init__(self, task: Task, *, projection: int | None) -> None:
        require(projection is None or projection > 0, "projection", "must be > 0, or null for none", projection)
        stages, features = pooled_convolutions(task, (6, 16), "moon_cnn")
        embed = [nn.Flatten(), nn.Linear(features, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]
        if projection is not None:
            embed += [nn.Linear(84, 84), nn.ReLU(), nn.Linear(84, projection)]
        embedding_size = projection or 84
        super().__init__(task, stages, nn.Sequential(*embed), nn.Linear(embedding_size, task.num_classes), embedding_size)


class FedAvgCNN(ImageClassifier):
    """5x5 convolutions of 32 and 64 channels without padding, each with ReLU and 2x2 max pooling, and two linear layers with ReLU between.

    The embedding, of 512 values after ReLU, is what the head reads. It is the CNN of the benchmarks PFLlib and HtFLlib, with 582,026
    parameters for MNIST. There is no BatchNorm. Initialization: PyTorch's default.

    Source:
        McMahan, Moore, Ramage, Hampson, Agueera y Arcas: Communication-efficient learning of deep networks from decentralized data,
            AISTATS 2017. Its convolutions are padded.
        Public code: TsingZ0/HtFLlib @ e959261.

    Args:
        task: images of at least 16x16 pixels.

    Raises:
        ConfigError: the images are too small.
    """

    def __init__(self, task: Task) -> None:
        stages, features = pooled_convolutions(task, (32, 64), "fedavg_cnn")
        embed = nn.Sequential(nn.Flatten(), nn.Linear(features, 512), nn.ReLU())
        super().__init__(task, stages, embed, nn.Linear(512, task.num_classes), 512)
