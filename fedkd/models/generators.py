"""Conditional generators: from labels and noise to embeddings (FedGen), or to images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd.errors import require
from fedkd.tensor_ops import one_hot
from fedkd.types import Task


class FeatureMLP(nn.Module):
    """``G(noise [B, noise_size], y [B]) -> embeddings [B, D]``: linear layer, BatchNorm, ReLU, and linear layer on noise and one-hot label.

    FedGen's generator (Zhu et al., ICML 2021). It has 19,744 parameters for ten classes, D = 32, hidden = 256, and noise_size = 32.

    Args:
        task: the classification task.
        embedding_size: D of the classifiers whose heads receive the embeddings.
        hidden: units of the hidden layer, > 0.
        noise_size: size of the noise vector, > 0.

    Raises:
        ConfigError: a size is not positive.
    """

    output_kind = "embeddings"

    def __init__(self, task: Task, embedding_size: int, *, hidden: int, noise_size: int) -> None:
        require(hidden > 0, "hidden", "must be > 0", hidden)
        require(noise_size > 0, "noise_size", "must be > 0", noise_size)
        super().__init__()
        self.num_classes = task.num_classes
        self.noise_size = noise_size
        self.hidden = nn.Sequential(nn.Linear(noise_size + task.num_classes, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.output = nn.Linear(hidden, embedding_size)

    def forward(self, noise: Tensor, y: Tensor) -> Tensor:  # [B, noise_size], [B] -> [B, D]
        """One embedding per label."""
        label = one_hot(y, self.num_classes).to(noise.dtype)
        return self.output(self.hidden(torch.cat([noise, label], dim=-1)))


class ImageConv(nn.Module):
    """``G(noise [B, noise_size], y [B]) -> normalized images [B, channels, height, width]``.

    A linear layer gives maps of a quarter of height and width. Two blocks follow: upsampling by 2, 3x3 convolution, BatchNorm, and leaky
    ReLU. A last convolution and a sigmoid give pixels in 0..``max_pixel``, which are normalized like the task's images. Sizes are rounded
    up, so that images may have any size.

    Args:
        task: the classification task; it determines shape and normalization of the images.
        width: channels of the last hidden map, > 0; the first has twice as many.
        noise_size: size of the noise vector, > 0.
        conditional: the one-hot label is an input beside the noise; if false, ``y`` is ignored.
        initialization: ``pytorch``, or ``normal``: weights from N(0, 0.02^2), those of BatchNorm from N(1, 0.02^2), as in DENSE's public
            code.

    Raises:
        ConfigError: a size is not positive, or the initialization does not exist.
    """

    output_kind = "images"
    mean: Tensor
    std: Tensor

    def __init__(self, task: Task, *, width: int, noise_size: int, conditional: bool, initialization: str) -> None:
        require(initialization in ("pytorch", "normal"), "initialization", "must be one of pytorch, normal", initialization)
        require(width > 0, "width", "must be > 0", width)
        require(noise_size > 0, "noise_size", "must be > 0", noise_size)
        super().__init__()
        channels, image_height, image_width = task.shape
        self.num_classes, self.noise_size, self.conditional, self.max_pixel = task.num_classes, noise_size, conditional, task.max_pixel
        self.sizes = [(-(-image_height // divisor), -(-image_width // divisor)) for divisor in (4, 2, 1)]
        first = self.sizes[0]
        self.project = nn.Linear(noise_size + task.num_classes * conditional, 2 * width * first[0] * first[1])
        self.begin = nn.BatchNorm2d(2 * width)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.2))
            for in_channels, out_channels in ((2 * width, 2 * width), (2 * width, width))
        )
        self.end = nn.Conv2d(width, channels, 3, padding=1)
        self.register_buffer("mean", torch.tensor(task.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(task.std).view(-1, 1, 1))
        if initialization == "normal":
            self.apply(initialize_normal)

    def forward(self, noise: Tensor, y: Tensor) -> Tensor:  # [B, noise_size], [B] -> [B, channels, height, width]
        """One image per label."""
        x = self.begin(self.first_maps(noise, one_hot(y, self.num_classes).to(noise.dtype)))
        for stage, size in zip(self.stages, self.sizes[1:]):
            x = stage(F.interpolate(x, size))
        return self.images(self.end(x))

    def first_maps(self, noise: Tensor, label: Tensor) -> Tensor:  # [B, noise_size], [B, C] -> [B, 2 * width, H, W]
        """The smallest maps, from noise and one-hot labels."""
        maps = self.project(torch.cat([noise, label], dim=-1) if self.conditional else noise)
        return maps.unflatten(1, (-1, *self.sizes[0]))

    def images(self, x: Tensor) -> Tensor:
        """Normalized images from the outputs of the last convolution, of the same shape."""
        return (self.max_pixel * torch.sigmoid(x) - self.mean) / self.std


class ImageConvByLabel(ImageConv):
    """:class:`ImageConv` with a linear layer for the noise and one for the label, each of which gives half of the first maps.

    Instead of a sigmoid, tanh and a BatchNorm without scale and shift give images with mean 0 and variance 1 in each channel. It has
    682,499 parameters for images of 3 x 32 x 32, ten classes, width = 64, and noise_size = 100.

    Source:
        Zhang, Shen, Ding, Tao, Duan: Fine-tuning global model via data-free knowledge distillation for non-IID federated learning, CVPR
            2022.
        Public code: ZhangLin-PKU/FedFTG @ 1e6347c.

    Args:
        task: the classification task; it determines the shape of the images.
        width: channels of the last hidden map, > 0; the first has twice as many.
        noise_size: size of the noise vector, > 0.

    Raises:
        ConfigError: a size is not positive.
    """

    def __init__(self, task: Task, *, width: int, noise_size: int) -> None:
        super().__init__(task, width=width, noise_size=noise_size, conditional=True, initialization="pytorch")
        pixels = self.sizes[0][0] * self.sizes[0][1]
        self.project = nn.Linear(noise_size, width * pixels)
        self.project_label = nn.Linear(task.num_classes, width * pixels)
        self.normalize = nn.BatchNorm2d(task.shape[0], affine=False)
        del self.mean, self.std  # the statistics of its own images take their place

    def first_maps(self, noise: Tensor, label: Tensor) -> Tensor:  # [B, noise_size], [B, C] -> [B, 2 * width, H, W]
        """The smallest maps: one half from noise, the other from one-hot labels."""
        halves = self.project(noise), self.project_label(label)
        return torch.cat([maps.unflatten(1, (-1, *self.sizes[0])) for maps in halves], dim=1)

    def images(self, x: Tensor) -> Tensor:
        """Images with mean 0 and variance 1 from the outputs of the last convolution, of the same shape."""
        return self.normalize(torch.tanh(x))


class LabelMerger(nn.Module):
    """Noise and a trained embedding of the label as one vector: ``(noise [B, Z], y [B]) -> [B, Z]``, or [B, 2 Z] for ``cat``.

    Args:
        num_classes: C.
        noise_size: Z, also the size of the embedding.
        merge: ``mul``: their product. ``add``: their sum. ``cat``: one after the other.

    Raises:
        ConfigError: ``merge`` does not exist.
    """

    def __init__(self, num_classes: int, noise_size: int, merge: str) -> None:
        require(merge in ("mul", "add", "cat"), "merge", "must be one of mul, add, cat", merge)
        super().__init__()
        self.embedding, self.merge, self.size = nn.Embedding(num_classes, noise_size), merge, noise_size * (2 if merge == "cat" else 1)

    def forward(self, noise: Tensor, y: Tensor) -> Tensor:
        """The merged vectors."""
        label = self.embedding(y)
        if self.merge == "cat":
            return torch.cat([noise, label], dim=-1)
        return noise * label if self.merge == "mul" else noise + label


class TransposedDecoder(nn.Module):
    """Normalized images from vectors [B, size]: a transposed convolution to maps of an eighth of height and width, then three that double.

    ReLU follows the first, BatchNorm and ReLU follow the next two, and tanh the last. Sizes are rounded up and the images cut.

    Args:
        task: the classification task; it determines shape and normalization of the images.
        size: entries of a vector.
        width: channels of the last hidden map; the first has four times as many.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, task: Task, size: int, width: int) -> None:
        super().__init__()
        channels, self.height, self.width = task.shape
        self.max_pixel, layers = task.max_pixel, list[nn.Module]()
        for inputs, outputs in ((4 * width, 2 * width), (2 * width, width)):
            layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        first = nn.ConvTranspose2d(size, 4 * width, (-(-self.height // 8), -(-self.width // 8)), bias=False)
        self.layers = nn.Sequential(first, nn.ReLU(), *layers, nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False))
        self.register_buffer("mean", torch.tensor(task.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(task.std).view(-1, 1, 1))
        self.apply(initialize_normal)

    def forward(self, vectors: Tensor) -> Tensor:  # [B, size] -> [B, channels, height, width]
        """One image per vector."""
        x = self.layers(vectors[..., None, None])[..., : self.height, : self.width]
        return (self.max_pixel * (1 + x.tanh()) / 2 - self.mean) / self.std


class ImageDCGAN(nn.Module):
    """``G(noise [B, noise_size], y [B]) -> normalized images``: a :class:`LabelMerger` and a :class:`TransposedDecoder`, as in DFRD.

    It has 3,153,280 parameters for images of 3 x 32 x 32, ten classes, width = 128, noise_size = 64, and ``merge=mul``.

    Source:
        Luo, Wang, Fu, Li, Lan, Gao: DFRD: Data-free robustness distillation for heterogeneous federated learning, NeurIPS 2023.
        Public code: HaowenGuan/DFFKE @ 7030348.

    Args:
        task: the classification task; it determines shape and normalization of the images.
        width: channels of the last hidden map, > 0; the first has four times as many.
        noise_size: size of the noise vector and of the labels' embeddings, > 0.
        merge: how noise and embedding are merged, see :class:`LabelMerger`.

    Raises:
        ConfigError: a size is not positive, or ``merge`` does not exist.
    """

    output_kind = "images"
    embeds_labels = True

    def __init__(self, task: Task, *, width: int, noise_size: int, merge: str) -> None:
        require(width > 0, "width", "must be > 0", width)
        require(noise_size > 0, "noise_size", "must be > 0", noise_size)
        super().__init__()
        self.noise_size = noise_size
        self.merger = LabelMerger(task.num_classes, noise_size, merge)
        self.decoder = TransposedDecoder(task, self.merger.size, width)

    def forward(self, noise: Tensor, y: Tensor) -> Tensor:  # [B, noise_size], [B] -> [B, channels, height, width]
        """One image per label."""
        return self.decoder(self.merger(noise, y))


def initialize_normal(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02^2), and those of BatchNorm from N(1, 0.02^2). Biases become 0."""
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm):
        center = 1.0 if isinstance(module, nn.modules.batchnorm._BatchNorm) else 0.0
        nn.init.trunc_normal_(module.weight, center, 0.02)  # cut at -2 and 2, which is far
        if module.bias is not None:
            nn.init.zeros_(module.bias)
