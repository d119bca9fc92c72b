"""DPK: dynamic prior knowledge. The teacher's features are the target and, in part, an input."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedkd.distillation.methods.base import (
    Distiller,
    EpochSteps,
    StepInput,
    TeacherStudent,
    check_equal_stages,
    check_feature_maps,
    check_temperature,
    check_weight,
)
from fedkd.errors import require
from fedkd.losses.cka import unbiased_cka
from fedkd.losses.hint import hint
from fedkd.losses.kl import kl_divergence
from fedkd.tensor_ops import at_least_float32
from fedkd.types import Metrics, Tensors


class Tokens(nn.Module):
    """A feature map as ``grid x grid`` tokens of size ``width``: one patch each, mapped linearly, plus a position embedding."""

    def __init__(self, shape: Sequence[int], grid: int, width: int) -> None:
        super().__init__()
        patch = shape[1] // grid
        self.embed = nn.Conv2d(shape[0], width, patch, patch)
        self.position = nn.Parameter(torch.empty(1, grid * grid, width))
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, P, width]
        """The tokens of a feature map."""
        return self.embed(x).flatten(2).mT + self.position


class Patches(nn.Module):
    """Tokens mapped back to a feature map."""

    def __init__(self, shape: Sequence[int], grid: int, width: int) -> None:
        super().__init__()
        self.shape, self.grid = tuple(shape), grid
        self.project = nn.Linear(width, shape[0] * (shape[1] // grid) ** 2)

    def forward(self, tokens: Tensor) -> Tensor:  # [B, P, width] -> [B, C, H, W]
        """The feature map of the tokens."""
        patch = self.shape[1] // self.grid
        x = self.project(tokens).unflatten(1, (self.grid, self.grid)).unflatten(-1, (self.shape[0], patch, patch))
        return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # [B, C, g, p, g, p] -> [B, C, H, W]


def transformer(width: int, heads: int, depth: int) -> nn.Module:
    """``depth`` transformer blocks with pre-normalization, a hidden layer four times as wide, and no dropout. Identity at depth 0."""
    if depth == 0:
        return nn.Identity()
    block = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    return Encoder(block, depth, enable_nested_tensor=False)


class Encoder(nn.TransformerEncoder):
    """PyTorch's encoder with plain attention on CPUs. There the fused kernel takes several times as long for so few tokens."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # [B, P, width] -> [B, P, width], without masks
        """The encoded tokens."""
        with nullcontext() if x.is_cuda else sdpa_kernel(SDPBackend.MATH):
            return super().forward(x)


class Prior(nn.Module):
    """The modules of one stage: both networks' maps to tokens, stitched, integrated, and mapped back to the teacher's map."""

    def __init__(self, student: Sequence[int], teacher: Sequence[int], grid: int, distiller: "DPK") -> None:
        super().__init__()
        width, heads, depth = distiller.width, distiller.heads, distiller.depth
        self.stitch_at, self.grid = distiller.stitch_at, grid
        self.student, self.teacher = Tokens(student, grid, width), Tokens(teacher, grid, width)
        self.encoder = transformer(width, heads, depth)
        self.teacher_encoder = transformer(width, heads, depth) if self.stitch_at == "encoded" else nn.Identity()
        self.decoder, self.patches = transformer(width, heads, depth), Patches(teacher, grid, width)

    def forward(self, student: Tensor, teacher: Tensor, chosen: Tensor) -> Tensor:
        """The reconstructed teacher's map from the student's tokens, and from the teacher's where ``chosen`` [B, P] is true."""
        student, teacher = self.tokens(student, teacher)
        hybrid = torch.where(chosen[..., None], teacher, student)
        if self.stitch_at == "embed":
            hybrid = self.encoder(hybrid)
        return self.patches(self.decoder(hybrid))

    def tokens(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of both networks as they are stitched, [B, P, width]."""
        student, teacher = self.student(student), self.teacher(teacher)
        if self.stitch_at == "encoded":
            student, teacher = self.encoder(student), self.teacher_encoder(teacher)
        return student, teacher


class Priors(nn.Module):
    """The modules of all stages, and for each stage the share of teacher patches. The share follows the gap between the networks."""

    share: Tensor

    def __init__(self, pair: TeacherStudent, distiller: "DPK") -> None:
        super().__init__()
        sizes = [(student, teacher, distiller.patches(student, teacher)) for student, teacher in distiller.compared(pair)]
        self.stages = nn.ModuleList(Prior(student, teacher, grid, distiller) for student, teacher, grid in sizes)
        self.register_buffer("share", torch.full((len(sizes),), float(distiller.initial)))

    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor], noise: Sequence[Tensor], distiller: "DPK") -> list[tuple]:
        """For every stage the reconstructed map, and the mask of the teacher's patches."""
        stages = cast(Iterable[Prior], self.stages)
        if distiller.ratio == "dynamic":
            with torch.no_grad():
                features = list(zip(students, teachers))
                if distiller.gap == "tokens":
                    features = [stage.tokens(*maps) for stage, maps in zip(stages, features)]
                similarity = torch.stack([unbiased_cka(teacher.flatten(1), student.flatten(1)) for student, teacher in features])
                self.share.lerp_((1 - similarity.clamp(0, 1)).to(self.share), 1 - distiller.momentum)
        chosen = [choose_teacher_patches(share, draws, distiller.drawn, distiller.least) for share, draws in zip(self.share, noise)]
        return [(stage(s, t, mask), mask) for stage, s, t, mask in zip(stages, students, teachers, chosen)]


def choose_teacher_patches(share: Tensor, noise: Tensor, drawn: str = "exact", least: int = 0) -> Tensor:  # [], [B, P] -> [B, P]
    """Mask of the teacher's patches: the ``round(share P)`` patches with the lowest noise in each image, at least ``least``.

    With ``bernoulli`` each patch has probability ``share``.
    """
    if drawn == "bernoulli":
        return noise < share
    return noise.argsort(-1).argsort(-1) < (share * noise.shape[-1]).round().clamp(min=least)


@dataclass(kw_only=True)
class DPK(Distiller):
    """Loss: ``ce CE(z_s, y) + alpha T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + beta sum_l mean (U_l - F_t^l)^2``.

    Features: ``U = D(stitch(E_s(F_s), E_t(F_t); pi))``, ``pi = 1 - CKA(F_t, F_s)``.

    A share pi of the student's patches is replaced by the teacher's. Small transformers, the encoders E and a decoder D, map the stitched
    tokens to the teacher's feature map F_t. pi is a running mean of 1 minus the unbiased linear CKA of a batch's maps, clamped to [0, 1]
    and without gradient.

    Source:
        Qiu et al.: Better teacher better student: Dynamic prior knowledge for knowledge distillation, ICLR 2023.
        No public code. This implementation follows the abstract, the reviews and second-hand accounts.

    Args:
        alpha: Weight of the divergence of logits, >= 0.
        beta: Weight of the feature maps, >= 0.
        temperature: Temperature T, > 0.
        ratio: ``dynamic``, or a constant pi in [0, 1]. 0 means no prior.
        momentum: Momentum of the running mean of pi, in [0, 1).
        initial: pi at the start where it is dynamic, in [0, 1].
        stages: Compare ``all`` stages or the ``last``.
        grid: Patches per row, > 0. Fewer where this number does not divide a stage's maps.
        width: Size of a token, > 0, a multiple of ``heads``.
        heads: Attention heads, > 0.
        depth: Blocks of each encoder and decoder, >= 0 and <= 100. 0 leaves them out.
        stitch_at: Stitch ``encoded`` tokens, with one encoder per network, or stitch at ``embed``, before one encoder for both.
        positions: Error over ``all`` patches, or over the ``student``'s patches alone.
        mask: Draw the patches per ``image``, or once per ``batch``.
        drawn: ``exact`` takes ``round(pi P)`` patches of each image, ``bernoulli`` takes each patch with probability pi.
        least: Minimum number of the teacher's patches per image with ``exact``, >= 0.
        gap: CKA compares ``raw`` maps, or the ``tokens`` that are stitched.
        module_lr: Factor of the learning rate of encoders, decoders and embeddings, > 0. Wide transformers diverge at the student's rate
            without a warm-up.

    Deviations:
        - Unknown, because the paper's sizes, weights and order of stitching were not available. Everything beyond the equations is our
          choice and a parameter.
    """

    needs_teacher: ClassVar[bool] = True
    tuned_weight: ClassVar[str | None] = "beta"

    alpha: float
    beta: float
    temperature: float
    ratio: float | str
    momentum: float
    initial: float
    stages: Literal["all", "last"]
    grid: int
    width: int
    heads: int
    depth: int
    stitch_at: Literal["encoded", "embed"]
    positions: Literal["all", "student"]
    mask: Literal["image", "batch"]
    drawn: Literal["exact", "bernoulli"]
    least: int
    gap: Literal["raw", "tokens"]
    module_lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight(self.alpha, "alpha")
        check_weight(self.beta, "beta")
        check_temperature(self.temperature)
        fixed = isinstance(self.ratio, int | float) and 0 <= self.ratio <= 1
        require(self.ratio == "dynamic" or fixed, "ratio", "must be dynamic, or a share in 0..1 (0: no prior)", self.ratio)
        require(0 <= self.momentum < 1, "momentum", "must be in 0..1, 1 excluded", self.momentum)
        require(0 <= self.initial <= 1, "initial", "must be a share in 0..1", self.initial)
        for name in ("grid", "width", "heads"):
            require(getattr(self, name) > 0, name, "must be > 0", getattr(self, name))
        require(self.width % self.heads == 0, "width", f"must be a multiple of heads ({self.heads})", self.width)
        require(self.least >= 0, "least", "must be >= 0 patches", self.least)
        require(self.module_lr > 0, "module_lr", "must be > 0 (1: the student's)", self.module_lr)
        require(0 <= self.depth <= 100, "depth", "must be >= 0 and <= 100 blocks", self.depth)
        if fixed:
            self.initial = float(self.ratio)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        """Both networks need square feature maps, and equally many stages unless ``stages=last``.

        Dynamic pi needs batches of four images or more.
        """
        if self.stages == "all":
            check_equal_stages(pair, "distiller.stages=last compares the last alone")
        check_feature_maps(pair)
        dynamic = self.ratio == "dynamic"
        require(batch_size > 3 or not dynamic, "batch_size", "must be > 3 where ratio=dynamic: unbiased CKA needs four images", batch_size)
        for name, place in (("student", 0), ("teacher", 1)):
            odd = [tuple(shapes[place]) for shapes in self.compared(pair) if shapes[place][1] != shapes[place][2]]
            require(not odd, name, "must be a network of square maps, which are divided into patches", odd)

    def compared(self, pair: TeacherStudent) -> list[tuple[torch.Size, torch.Size]]:
        """The shapes of the compared maps of student and teacher."""
        which = slice(None) if self.stages == "all" else slice(-1, None)
        return list(zip(*(sizes.stages[which] for sizes in pair.sizes), strict=True))

    def patches(self, student: Sequence[int], teacher: Sequence[int]) -> int:
        """Patches per row: ``grid``, or the next smaller number that divides both maps."""
        return next(number for number in range(self.grid, 0, -1) if student[1] % number == 0 == teacher[1] % number)

    def modules(self, pair: TeacherStudent) -> nn.Module:
        """The modules of all compared stages."""
        self.places = [self.patches(*shapes) ** 2 for shapes in self.compared(pair)]
        return Priors(pair, self)

    def lr_factor_of(self, name: str, epoch: int) -> float:
        """``module_lr`` for the method's modules, 1 for the student."""
        return self.module_lr if name.startswith("method.") else 1.0

    def draw(self, steps: EpochSteps) -> Tensors:
        """Noise [S, B, P] for the choice of patches, one tensor per stage."""
        images = steps.batch_size if self.mask == "image" else 1
        draws = {
            f"noise_{number}": torch.rand(steps.number, images, places, generator=(steps.seed / number).torch())
            for number, places in enumerate(self.places)
        }
        return {name: noise.expand(-1, steps.batch_size, -1) for name, noise in draws.items()}

    def terms(self, step: StepInput) -> Metrics:
        """``kd``: the weighted divergence of logits. ``maps``: the weighted error of the feature maps."""
        which = slice(None) if self.stages == "all" else slice(-1, None)
        students, teachers = step.student.stages[which], step.teacher.stages[which]
        noise = [getattr(step.batch, f"noise_{number}") for number in range(len(students))]
        integrated = step.method(students, teachers, noise, self)
        errors = torch.stack([self.error(teacher, *maps) for teacher, maps in zip(teachers, integrated)])
        divergence = kl_divergence(step.teacher.logits, step.student.logits, self.temperature).mean()
        return {"kd": self.alpha * divergence, "maps": self.beta * errors.sum()}

    def error(self, teacher: Tensor, reconstructed: Tensor, chosen: Tensor) -> Tensor:
        """The mean squared error of one feature map, over the positions that count."""
        if self.positions == "all":
            return hint(teacher, reconstructed).mean()
        side = round(chosen.shape[-1] ** 0.5)
        student = (
            (~chosen).view(-1, 1, side, side).repeat_interleave(teacher.shape[2] // side, 2).repeat_interleave(teacher.shape[3] // side, 3)
        )
        error = (at_least_float32(reconstructed) - at_least_float32(teacher)).square() * student
        return error.sum() / (student.sum() * teacher.shape[1]).clamp(min=1)
