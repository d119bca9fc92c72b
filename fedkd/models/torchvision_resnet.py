"""torchvision's residual networks for images of ImageNet's size (He et al. 2016)."""

from torch import nn
from torchvision.models import ResNet, get_model, get_model_weights

from fedkd.errors import ConfigError, require
from fedkd.models.base import Classifier
from fedkd.models.layers import GlobalAveragePool, init_fan_out
from fedkd.types import Task

RESNET_NAMES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def create_resnet(task: Task, name: str, weights: str | None) -> ResNet:
    """torchvision's network, trained or not, for the task's channels and classes."""
    if weights is None:
        made = get_model(name, num_classes=task.num_classes)
        if task.shape[0] != 3:
            made.conv1 = init_fan_out(nn.Conv2d(task.shape[0], 64, 7, 2, 3, bias=False))
        return made
    try:
        made = get_model(name, weights=weights)
    except OSError as error:
        raise ConfigError(f"weights must be in torch.hub's cache or within reach, got {weights!r}: {error}") from error
    if task.num_classes != made.fc.out_features:
        made.fc = nn.Linear(made.fc.in_features, task.num_classes)
    return made


class TorchvisionResNet(Classifier):
    """torchvision's ResNet: a 7x7 stem, 3x3 max pooling, four stages of blocks, global average pooling and one linear head.

    The stem with its pooling, both of stride 2, belongs to the first stage; every later one begins with stride 2. The embedding is the mean
    of the last map, [B, 512], or [B, 2048] with bottleneck blocks (50 layers and more). For ImageNet's 1000 classes: 11,689,512
    parameters with 18 layers, 21,797,672 with 34, 25,557,032 with 50. Convolutions begin as in He et al. 2015 (normal, fan out), the
    head as PyTorch's.

    Deviations from torchvision's: no activation is in place, and pooling is a plain mean; what they compute is the same. As there, and
    not as in the paper, bottleneck blocks have their stride in the 3x3 convolution.

    Args:
        task: images of any size, of three channels where ``weights`` are given; those want pixels normalised as their training had them.
        name: ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101`` or ``resnet152``.
        weights: torchvision's (``IMAGENET1K_V1``), downloaded when first used; their head is kept where the task has as many classes
            (1000), and a fresh one put in its place elsewhere. null: none.

    Raises:
        ConfigError: naming the key, the rule and the value.
    """

    def __init__(self, task: Task, *, name: str, weights: str | None) -> None:
        require(name in RESNET_NAMES, "name", f"must be one of {', '.join(RESNET_NAMES)}", name)
        known = [one.name for one in get_model_weights(name)]
        require(weights is None or weights in known, "weights", f"must be null or one of {', '.join(known)}", weights)
        fits = weights is None or task.shape[0] == 3
        require(fits, "weights", f"must be null for images of {task.shape[0]} channels, as trained ones want 3", weights)
        made = create_resnet(task, name, weights)
        stem = (made.conv1, made.bn1, made.relu, made.maxpool)
        stages = [nn.Sequential(*stem, *made.layer1), made.layer2, made.layer3, made.layer4]
        super().__init__(task, stages, GlobalAveragePool(), made.fc, made.fc.in_features)
        disable_inplace(self)

    def extra_stage(self) -> nn.Module:
        kind, width = type(self.stages[-1][0]), self.embedding_size
        blocks = [kind(width, width // kind.expansion) for _ in self.stages[-1]]
        return disable_inplace(init_fan_out(nn.Sequential(*blocks)))


def disable_inplace(module: nn.Module) -> nn.Module:
    """``module`` itself, none of its activations in place."""
    for layer in module.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return module
