"""A vision transformer for small images (Dosovitskiy et al. 2021), built of torchvision's blocks."""

from torch import Tensor, cat, nn
from torchvision.models.vision_transformer import EncoderBlock
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from fedkd.errors import require
from fedkd.models.base import ImageClassifier
from fedkd.models.layers import check_patches
from fedkd.types import Task


class VisionTransformer(ImageClassifier):
    """torchvision's ViT: patches as tokens with a class token and learned positions, pre-norm encoder blocks, and one linear head.

    Each encoder block is a stage, whose output are tokens [B, T + 1, ``width``] with T patches; the first stage also makes the tokens. The
    embedding is the normalized class token [B, ``width``]. The hidden layer of a block has 4 ``width`` units, and there is no dropout. With
    the size of ViT-Ti (12 blocks, width 192, 3 heads) and patches of 4x4 pixels it has 5,362,762 parameters for CIFAR-10 and 5,353,738
    for MNIST. Images may have any number of channels. Initialization: torchvision's, with a head of zeros.

    Source:
        Dosovitskiy et al.: An image is worth 16x16 words: Transformers for image recognition at scale, ICLR 2021.
        Touvron et al.: Training data-efficient image transformers and distillation through attention, ICML 2021 (the size).

    Args:
        task: square images.
        patch_size: height and width of a patch in pixels, which divides those of the images.
        depth: number of encoder blocks, >= 1.
        width: size of a token, a multiple of ``num_heads``. It is the embedding size.
        num_heads: heads of the attention, >= 1.

    Raises:
        ConfigError: a value is out of range, or the patches do not divide the images.
    """

    def __init__(self, task: Task, *, patch_size: int, depth: int, width: int, num_heads: int) -> None:
        channels, height, patches = task.shape[0], task.shape[1], check_patches(task, patch_size)
        require(patches[0] == patches[1], "model", f"must be another network for images {task.shape}, which are not square", "vit_tiny")
        require(depth > 0, "depth", "must be > 0", depth)
        require(num_heads > 0, "num_heads", "must be > 0", num_heads)
        require(width > 0 and width % num_heads == 0, "width", f"must be a positive multiple of num_heads ({num_heads})", width)
        vit = TorchvisionViT(height, patch_size, depth, num_heads, width, 4 * width, num_classes=task.num_classes)
        if channels != 3:
            vit.conv_proj = nn.Conv2d(channels, width, patch_size, patch_size)
            nn.init.trunc_normal_(vit.conv_proj.weight, std=(channels * patch_size**2) ** -0.5)
            nn.init.zeros_(vit.conv_proj.bias)
        stages = list(vit.encoder.layers)
        stages[0] = nn.Sequential(PatchTokens(vit), stages[0])
        super().__init__(task, stages, nn.Sequential(vit.encoder.ln, ClassToken()), vit.heads.head, width)
        self.num_heads = num_heads

    def extra_stage(self) -> nn.Module:
        """A new encoder block, see :meth:`fedkd.models.base.Classifier.extra_stage`."""
        return EncoderBlock(self.num_heads, self.embedding_size, 4 * self.embedding_size, dropout=0.0, attention_dropout=0.0)


class PatchTokens(nn.Module):
    """The tokens of images: a class token, and a linear projection of each patch, plus their positions.

    Args:
        vit: torchvision's network, whose parameters become those of this module.
    """

    def __init__(self, vit: TorchvisionViT) -> None:
        super().__init__()
        self.projection, self.class_token, self.positions = vit.conv_proj, vit.class_token, vit.encoder.pos_embedding

    def forward(self, x: Tensor) -> Tensor:  # [B, channels, H, W] -> [B, T + 1, width]
        """The class token first, then the patches row by row."""
        patches = self.projection(x).flatten(2).mT
        return cat([self.class_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.positions


class ClassToken(nn.Module):
    """The first token."""

    def forward(self, tokens: Tensor) -> Tensor:  # [B, T + 1, width] -> [B, width]
        """Token 0 of each image."""
        return tokens[:, 0]
