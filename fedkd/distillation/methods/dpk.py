"""Dynamic prior knowledge: the teacher's features are target and, in part, input."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedkd.distillation.methods.base import Distiller, StepInput, Steps, TeacherStudent, maps, same_number, temperature, weight
from fedkd.errors import require
from fedkd.losses.cka import unbiased_cka
from fedkd.losses.hint import hint
from fedkd.losses.kl import kl_divergence
from fedkd.tensor_ops import wide
from fedkd.types import Metrics, Tensors


class Tokens(nn.Module):
    """A map as ``grid x grid`` tokens of ``width``: one patch each, a linear map of it, and its place."""

    def __init__(self, shape: Sequence[int], grid: int, width: int) -> None:
        super().__init__()
        patch = shape[1] // grid
        self.embed = nn.Conv2d(shape[0], width, patch, patch)
        self.position = nn.Parameter(torch.empty(1, grid * grid, width))
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, P, width]
        return self.embed(x).flatten(2).mT + self.position


class Patches(nn.Module):
    """Tokens as a map again."""

    def __init__(self, shape: Sequence[int], grid: int, width: int) -> None:
        super().__init__()
        self.shape, self.grid = tuple(shape), grid
        self.project = nn.Linear(width, shape[0] * (shape[1] // grid) ** 2)

    def forward(self, tokens: Tensor) -> Tensor:  # [B, P, width] -> [B, C, H, W]
        patch = self.shape[1] // self.grid
        x = self.project(tokens).unflatten(1, (self.grid, self.grid)).unflatten(-1, (self.shape[0], patch, patch))
        return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # [B, C, g, p, g, p] -> [B, C, H, W]


def transformer(width: int, heads: int, depth: int) -> nn.Module:
    """Blocks of attention and a hidden layer four times as wide, normalised first, without dropout."""
    if depth == 0:
        return nn.Identity()
    block = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    return Encoder(block, depth, enable_nested_tensor=False)


class Encoder(nn.TransformerEncoder):
    """PyTorch's, whose attention over so few tokens is plain products on a CPU: there the fused kernel takes several times as long."""

    def forward(self, x: Tensor) -> Tensor:  # [B, P, width] -> [B, P, width]
        with nullcontext() if x.is_cuda else sdpa_kernel(SDPBackend.MATH):
            return super().forward(x)


class Prior(nn.Module):
    """One stage: student's and teacher's map to tokens, stitched, integrated, and back to the teacher's map."""

    def __init__(self, student: Sequence[int], teacher: Sequence[int], grid: int, distiller: "DPK") -> None:
        super().__init__()
        width, heads, depth = distiller.width, distiller.heads, distiller.depth
        self.stitch_at, self.grid = distiller.stitch_at, grid
        self.student, self.teacher = Tokens(student, grid, width), Tokens(teacher, grid, width)
        self.encoder = transformer(width, heads, depth)
        self.teacher_encoder = transformer(width, heads, depth) if self.stitch_at == "encoded" else nn.Identity()
        self.decoder, self.patches = transformer(width, heads, depth), Patches(teacher, grid, width)

    def forward(self, student: Tensor, teacher: Tensor, chosen: Tensor) -> Tensor:
        """The teacher's map as it is made of the student's, and of the teacher's where ``chosen`` [B, P] is set."""
        student, teacher = self.tokens(student, teacher)
        hybrid = torch.where(chosen[..., None], teacher, student)
        if self.stitch_at == "embed":
            hybrid = self.encoder(hybrid)
        return self.patches(self.decoder(hybrid))

    def tokens(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps as they are stitched, [B, P, width]."""
        student, teacher = self.student(student), self.teacher(teacher)
        if self.stitch_at == "encoded":
            student, teacher = self.encoder(student), self.teacher_encoder(teacher)
        return student, teacher


class Priors(nn.Module):
    """All stages, and the share of the teacher's patches in each, which follows the gap between the networks."""

    def __init__(self, pair: TeacherStudent, distiller: "DPK") -> None:
        super().__init__()
        sizes = [(student, teacher, distiller.patches(student, teacher)) for student, teacher in distiller.compared(pair)]
        self.stages = nn.ModuleList(Prior(student, teacher, grid, distiller) for student, teacher, grid in sizes)
        self.register_buffer("share", torch.full((len(sizes),), float(distiller.initial)))

    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor], noise: Sequence[Tensor], distiller: "DPK") -> list[tuple]:
        """For every stage the integrated map and which patches were the teacher's."""
        if distiller.ratio == "dynamic":
            with torch.no_grad():
                seen = list(zip(students, teachers))
                if distiller.gap == "tokens":
                    seen = [stage.tokens(*one) for stage, one in zip(self.stages, seen)]
                alike = torch.stack([unbiased_cka(t.flatten(1), s.flatten(1)) for s, t in seen])
                self.share.lerp_((1 - alike.clamp(0, 1)).to(self.share), 1 - distiller.momentum)
        chosen = [choose(share, draws, distiller.drawn, distiller.least) for share, draws in zip(self.share, noise)]
        return [(stage(s, t, mask), mask) for stage, s, t, mask in zip(self.stages, students, teachers, chosen)]


def choose(share: Tensor, noise: Tensor, drawn: str = "exact", least: int = 0) -> Tensor:  # [], [B, P] -> [B, P]
    """``round(share P)`` patches of each image, at least so many, those whose noise is lowest; ``bernoulli``: each with probability share."""
    if drawn == "bernoulli":
        return noise < share
    return noise.argsort(-1).argsort(-1) < (share * noise.shape[-1]).round().clamp(min=least)


@dataclass(kw_only=True)
class DPK(Distiller):
    """``ce CE + alpha T^2 KL(p_t || p_s) + beta sum_l mean (U_l - F_t^l)^2``, ``U = D(stitch(E_s(F_s), E_t(F_t); pi))``, ``pi = 1 - CKA(F_t, F_s)``.

    A share pi of the student's patches is replaced by the teacher's; encoders E and a decoder D, small transformers, complete the hybrid to
    the teacher's map F_t. pi is the running mean (``momentum``, beginning at ``initial``) of one minus the unbiased linear CKA of a
    minibatch's maps, without gradient, clamped to 0..1. Qiu et al.: Better teacher better student, ICLR 2023, from its abstract, its
    reviews and second-hand accounts: there is no public code, and sizes, weights and the order of stitching are not known.

    Deviations: everything that is not in the first line is our choice, and a parameter. As shipped maps are compared raw by CKA; patches
    are drawn by image, ``round(pi P)`` of them, none if that is 0; the error is the mean over all positions.

    Args:
        alpha: >= 0, weight of the divergence of logits.
        beta: >= 0, weight of the maps.
        temperature: > 0, T.
        ratio: ``dynamic``, or pi as a number in 0..1 that stays; 0 is no prior.
        momentum: 0..1 (1 excluded), of the running mean of pi.
        initial: 0..1, pi at the beginning where it is dynamic.
        stages: ``all`` or ``last``.
        grid: > 0, patches in a row; fewer where that does not divide a stage's maps.
        width: > 0, of tokens; a multiple of ``heads``.
        heads: > 0, of attention.
        depth: >= 0, blocks of each encoder and decoder; 0 leaves them out.
        stitch_at: ``encoded`` tokens, of which each network has an encoder, or ``embed``: before one encoder for both.
        positions: the error is over ``all`` patches, or over the ``student``'s alone.
        mask: patches are drawn per ``image``, or once for the ``batch``.
        drawn: ``exact``: ``round(pi P)`` patches of each image; ``bernoulli``: each patch with probability pi.
        least: >= 0, patches of the teacher's in each image where their number is exact.
        gap: CKA compares ``raw`` maps, or the ``tokens`` that are stitched.
        module_lr: > 0, what the learning rate is multiplied by for encoders, decoders and embeddings: at a student's rate, without a warm-up,
            wide transformers diverge.
    """

    taught: ClassVar[bool] = True
    scale: ClassVar[str | None] = "beta"

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
        weight(self.alpha, "alpha")
        weight(self.beta, "beta")
        temperature(self.temperature)
        fixed = isinstance(self.ratio, int | float) and 0 <= self.ratio <= 1
        require(self.ratio == "dynamic" or fixed, "ratio", "must be dynamic, or a share in 0..1 (0: no prior)", self.ratio)
        require(0 <= self.momentum < 1, "momentum", "must be in 0..1, 1 excluded", self.momentum)
        require(0 <= self.initial <= 1, "initial", "must be a share in 0..1", self.initial)
        for name in ("grid", "width", "heads"):
            require(getattr(self, name) > 0, name, "must be > 0", getattr(self, name))
        require(self.width % self.heads == 0, "width", f"must be a multiple of heads ({self.heads})", self.width)
        require(self.least >= 0, "least", "must be >= 0 patches", self.least)
        require(self.module_lr > 0, "module_lr", "must be > 0 (1: the student's)", self.module_lr)
        require(self.depth >= 0, "depth", "must be >= 0 blocks", self.depth)
        if fixed:
            self.initial = float(self.ratio)

    def check(self, pair: TeacherStudent, batch_size: int) -> None:
        if self.stages == "all":
            same_number(pair, "distiller.stages=last compares the last alone")
        maps(pair)
        dynamic = self.ratio == "dynamic"
        require(batch_size > 3 or not dynamic, "batch_size", "must be > 3 where ratio=dynamic: unbiased CKA needs four images", batch_size)
        for name, place in (("student", 0), ("teacher", 1)):
            odd = [tuple(shapes[place]) for shapes in self.compared(pair) if shapes[place][1] != shapes[place][2]]
            require(not odd, name, "must be a network of square maps, which are divided into patches", odd)

    def compared(self, pair: TeacherStudent) -> list[tuple[torch.Size, torch.Size]]:
        """The shapes of the maps that are compared, student's and teacher's."""
        which = slice(None) if self.stages == "all" else slice(-1, None)
        return list(zip(*(sizes.stages[which] for sizes in pair.sizes), strict=True))

    def patches(self, student: Sequence[int], teacher: Sequence[int]) -> int:
        """Patches in a row: as many as ``grid``, or the next smaller number that divides both maps."""
        return next(number for number in range(self.grid, 0, -1) if student[1] % number == 0 == teacher[1] % number)

    def modules(self, pair: TeacherStudent) -> nn.Module:
        self.places = [self.patches(*shapes) ** 2 for shapes in self.compared(pair)]
        return Priors(pair, self)

    def lr_of(self, name: str, epoch: int) -> float:
        return self.module_lr if name.startswith("method.") else 1.0

    def draw(self, steps: Steps) -> Tensors:
        images = steps.batch_size if self.mask == "image" else 1
        draws = {
            f"noise_{number}": torch.rand(steps.number, images, places, generator=(steps.seed / number).torch())
            for number, places in enumerate(self.places)
        }
        return {name: noise.expand(-1, steps.batch_size, -1) for name, noise in draws.items()}

    def terms(self, seen: StepInput) -> Metrics:
        which = slice(None) if self.stages == "all" else slice(-1, None)
        students, teachers = seen.student.stages[which], seen.teacher.stages[which]
        noise = [getattr(seen.batch, f"noise_{number}") for number in range(len(students))]
        integrated = seen.method(students, teachers, noise, self)
        apart = torch.stack([self.apart(teacher, *one) for teacher, one in zip(teachers, integrated)])
        divergence = kl_divergence(seen.teacher.logits, seen.student.logits, self.temperature).mean()
        return {"kd": self.alpha * divergence, "maps": self.beta * apart.sum()}

    def apart(self, teacher: Tensor, made: Tensor, chosen: Tensor) -> Tensor:
        """The mean squared error of a map, over the positions that count."""
        if self.positions == "all":
            return hint(teacher, made).mean()
        side = round(chosen.shape[-1] ** 0.5)
        student = (
            (~chosen).view(-1, 1, side, side).repeat_interleave(teacher.shape[2] // side, 2).repeat_interleave(teacher.shape[3] // side, 3)
        )
        error = (wide(made) - wide(teacher)).square() * student
        return error.sum() / (student.sum() * teacher.shape[1]).clamp(min=1)
