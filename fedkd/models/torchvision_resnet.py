"""torchvision's residual networks for images of ImageNet's size (He et al. 2016)."""

from torch import nn
from torchvision.models import ResNet, get_model, get_model_weights

from fedkd.errors import ConfigError, require
from fedkd.models.base import ImageClassifier
from fedkd.models.layers import GlobalAveragePool, Module, init_fan_out
from fedkd.types import Task

RESNET_NAMES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
"""Names of torchvision's residual networks."""


class TorchvisionResNet(ImageClassifier):
    """torchvision's ResNet: a 7x7 stem, 3x3 max pooling, four stages of blocks, global average pooling, and one linear head.

    The stem with its pooling, both with stride 2, is part of the first stage; every later stage begins with stride 2. The embedding is the
    mean of the last map: [B, 512], or [B, 2048] with bottleneck blocks (50 layers and more). Parameters for the 1000 classes of ImageNet:
    11,689,512 with 18 layers, 21,797,672 with 34, 25,557,032 with 50. Initialization: convolutions as He et al. 2015 (normal, fan out),
    head as PyTorch's default.

    Differences from torchvision that change no result: activations are not in place, and pooling is a plain mean. As in torchvision and
    unlike the paper, bottleneck blocks have their stride in the 3x3 convolution.

    Args:
        task: images of any size. Pretrained ``weights`` need three channels, and pixels normalized as in their training.
        name: ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101`` or ``resnet152``.
        weights: torchvision's pretrained weights (``IMAGENET1K_V1``), which are downloaded when they are first used. The head is kept if
            the task has 1000 classes, and replaced by a new one otherwise. null: random weights.

    Raises:
        ConfigError: a name is unknown, the images have not three channels, or the download failed.
    """

    def __init__(self, task: Task, *, name: str, weights: str | None) -> None:
        require(name in RESNET_NAMES, "name", f"must be one of {', '.join(RESNET_NAMES)}", name)
        known = [entry.name for entry in get_model_weights(name)]
        require(weights is None or weights in known, "weights", f"must be null or one of {', '.join(known)}", weights)
        fits = weights is None or task.shape[0] == 3
        require(fits, "weights", f"must be null for images of {task.shape[0]} channels, as pretrained weights need 3", weights)
        resnet = create_resnet(task, name, weights)
        stem = (resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        stages = [nn.Sequential(*stem, *resnet.layer1), resnet.layer2, resnet.layer3, resnet.layer4]
        super().__init__(task, stages, GlobalAveragePool(), resnet.fc, resnet.fc.in_features)
        self.block_type, self.num_blocks = type(resnet.layer4[0]), len(resnet.layer4)
        disable_inplace(self)

    def extra_stage(self) -> nn.Module:
        """New blocks like those of the last stage, see :meth:`fedkd.models.base.Classifier.extra_stage`."""
        width = self.embedding_size
        blocks = [self.block_type(width, width // self.block_type.expansion) for _ in range(self.num_blocks)]
        return disable_inplace(init_fan_out(nn.Sequential(*blocks)))


def create_resnet(task: Task, name: str, weights: str | None) -> ResNet:
    """torchvision's network, pretrained or not, for the channels and classes of a task.

    Raises:
        ConfigError: the weights cannot be downloaded.
    """
    if weights is None:
        resnet = get_model(name, num_classes=task.num_classes)
        if task.shape[0] != 3:
            resnet.conv1 = init_fan_out(nn.Conv2d(task.shape[0], 64, 7, 2, 3, bias=False))
        return resnet
    try:
        resnet = get_model(name, weights=weights)
    except OSError as error:
        raise ConfigError(f"weights must be in torch.hub's cache or within reach, got {weights!r}: {error}") from error
    if task.num_classes != resnet.fc.out_features:
        resnet.fc = nn.Linear(resnet.fc.in_features, task.num_classes)
    return resnet


def disable_inplace(module: Module) -> Module:
    """Make no activation of ``module`` in place.

    Returns:
        ``module``.
    """
    for layer in module.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return module
