"""MLP-Mixer for small images (Tolstikhin et al. 2021)."""

from torch import Tensor, nn

from fedkd.errors import require
from fedkd.models.base import ImageClassifier
from fedkd.models.layers import check_patches
from fedkd.types import Task

LAYER_NORM_EPS = 1e-6
"""The epsilon of every LayerNorm, as in the public code."""


class MLPMixer(ImageClassifier):
    """Patches as tokens, blocks of two MLPs with a residual connection each, and one linear head on the mean token.

    The first MLP of a block mixes the patches of each channel, the second one the channels of each patch; LayerNorm stands before both, and
    GELU between the two layers of each. Each block is a stage, whose output are tokens [B, T, ``width``] with T patches; the first stage
    also makes the tokens. The embedding is the mean of the normalized tokens [B, ``width``]. As in Mixer-S, the hidden layers have half
    (patches) and four times (channels) the units of ``width``. With four blocks, width 128 and patches of 4x4 pixels it has 569,994
    parameters for CIFAR-10 and 558,158 for MNIST. Initialization: PyTorch's default; the public code's heads begin with zeros.

    Source:
        Tolstikhin et al.: MLP-Mixer: An all-MLP architecture for vision, NeurIPS 2021.
        Public code: google-research/vision_transformer, models_mixer.py.

    Args:
        task: images of any size.
        patch_size: height and width of a patch in pixels, which divides those of the images.
        depth: number of blocks, >= 1.
        width: size of a token, even. It is the embedding size.

    Raises:
        ConfigError: a value is out of range, or the patches do not divide the images.
    """

    def __init__(self, task: Task, *, patch_size: int, depth: int, width: int) -> None:
        rows, columns = check_patches(task, patch_size)
        require(depth > 0, "depth", "must be > 0", depth)
        require(width > 0 and width % 2 == 0, "width", "must be a positive even number", width)
        stages: list[nn.Module] = [MixerBlock(rows * columns, width) for _ in range(depth)]
        stages[0] = nn.Sequential(nn.Conv2d(task.shape[0], width, patch_size, patch_size), Tokens(), stages[0])
        embed = nn.Sequential(nn.LayerNorm(width, LAYER_NORM_EPS), MeanToken())
        super().__init__(task, stages, embed, nn.Linear(width, task.num_classes), width)
        self.num_patches = rows * columns

    def extra_stage(self) -> nn.Module:
        """A new block, see :meth:`fedkd.models.base.Classifier.extra_stage`."""
        return MixerBlock(self.num_patches, self.embedding_size)


class MixerBlock(nn.Module):
    """An MLP over patches and an MLP over channels.

    Args:
        num_patches: number of tokens, T.
        width: size of a token.
    """

    def __init__(self, num_patches: int, width: int) -> None:
        super().__init__()
        self.patch_norm, self.channel_norm = nn.LayerNorm(width, LAYER_NORM_EPS), nn.LayerNorm(width, LAYER_NORM_EPS)
        self.patch_mlp, self.channel_mlp = two_layers(num_patches, width // 2), two_layers(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, width] -> the same shape
        """Mix the patches, then the channels."""
        x = x + self.patch_mlp(self.patch_norm(x).mT).mT
        return x + self.channel_mlp(self.channel_norm(x))


class Tokens(nn.Module):
    """A map as tokens."""

    def forward(self, x: Tensor) -> Tensor:  # [B, width, H, W] -> [B, H W, width]
        """The pixels of each map, row by row."""
        return x.flatten(2).mT


class MeanToken(nn.Module):
    """The mean over tokens."""

    def forward(self, tokens: Tensor) -> Tensor:  # [B, T, width] -> [B, width]
        """The mean token of each image."""
        return tokens.mean(1)


def two_layers(size: int, hidden: int) -> nn.Sequential:
    """Two linear layers with GELU between them, from and to ``size`` units."""
    return nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))
