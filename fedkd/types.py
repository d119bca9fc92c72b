"""The data types that all packages share. Read this file first.

Letters in shape comments: B batch size, C classes, D embedding size, K clients, S local steps, N examples, H height, W width, L length
of a sequence.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

Tensors = dict[str, Tensor]
"""Named tensors: the parameters and buffers of one network, or any other part of a state."""

State = dict[str, Tensors]
"""``{part: {key: tensor}}``. Memory, messages, and checkpoints use this one form."""

Metrics = dict[str, Tensor]
"""Named tensors of any fixed shape that a loss returns beside its value. The training loop sums them over steps."""

Input = Literal["image", "tokens", "table", "series"]
"""What a network reads: images (channels, height, width), token ids (L,), columns of a table (features,), or series (channels, time)."""

Target = Literal["label", "multi_label", "next_token"]
"""What a network predicts: one class y [N], int64; any number of classes y [N, C], 0 or 1; or the next tokens y [N, L], int64."""

INPUTS: tuple[Input, ...] = get_args(Input)
"""All kinds of inputs."""

TARGETS: tuple[Target, ...] = get_args(Target)
"""All kinds of targets."""

PADDING = 0
"""The token id that fills short sequences. As a target it counts neither in losses nor in accuracies."""


# ------------------------------------------------------------------------------------------------------- tasks and networks
@dataclass(frozen=True)
class Task:
    """A classification task.

    A network receives ``(pixel - mean) / std``, where pixels are in 0..``max_pixel``, and likewise the columns of a table and series. It
    receives tokens as they are, int64.

    Args:
        name: name of the data set.
        shape: shape of one example, see :data:`Input`.
        num_classes: number of classes, C. With next tokens it is the number of tokens.
        class_names: names of classes 0..C-1, or empty where the data set's own labels are 0..C-1.
        mean: subtracted from pixels: one number per channel, or one number for all channels.
        std: pixels are divided by it: one number per channel, or one number for all channels.
        max_pixel: value of a pixel of full brightness: 1, or 255 where bytes are not scaled (``scale`` 1).
        absent: classes without training examples, ascending. Generators do not draw them.
        input: what a network reads.
        target: what it predicts.
        vocabulary: the text of each token id, :data:`PADDING` first. Empty where the inputs are no tokens.
        uncounted: next tokens that accuracy leaves out: padding, and often the end of a text.
    """

    name: str
    shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    max_pixel: float = 1.0
    absent: tuple[int, ...] = ()
    input: Input = "image"
    target: Target = "label"
    vocabulary: tuple[str, ...] = ()
    uncounted: tuple[int, ...] = (PADDING,)

    @property
    def has_labels(self) -> bool:
        """Whether each example has one class."""
        return self.target == "label"

    @property
    def decisions(self) -> int:
        """The number of predictions for one example that accuracy counts, at most: 1, C or L."""
        return {"label": 1, "multi_label": self.num_classes, "next_token": self.shape[0]}[self.target]

    @property
    def positions(self) -> tuple[int, ...]:
        """The dimensions of logits and embeddings between the batch and their own: (L,) with next tokens, otherwise ()."""
        return self.shape[:1] if self.target == "next_token" else ()

    def inputs(self, number: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Inputs of a network [number, ...] that stand for real ones: zeros, or the first token after the padding."""
        if self.input == "tokens":
            return torch.full((number, *self.shape), PADDING + 1, dtype=torch.int64, device=device)
        return torch.zeros(number, *self.shape, dtype=dtype, device=device)

    def targets(self, number: int) -> Tensor:
        """Targets [number, ...] of 0 that stand for real ones."""
        shape = {"label": (), "multi_label": (self.num_classes,), "next_token": self.shape}[self.target]
        return torch.zeros(number, *shape, dtype=torch.float32 if self.target == "multi_label" else torch.int64)

    @property
    def counted_names(self) -> tuple[str, ...]:
        """The names of the classes by which examples are counted: ``names``, or one name for all where there are no labels."""
        return self.names if self.has_labels else ("all examples",)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class [C]: ``class_names``, or the numbers."""
        return self.class_names or tuple(str(label) for label in range(self.num_classes))

    @property
    def names_digest(self) -> dict[str, str]:
        """A hash of the names of the classes, under the key ``classes``. Empty where the data set names none."""
        return {"classes": hashlib.sha256(json.dumps(self.class_names).encode()).hexdigest()} if self.class_names else {}

    @property
    def present(self) -> Tensor:  # int64
        """The classes that have training examples, ascending."""
        return torch.tensor([label for label in range(self.num_classes) if label not in set(self.absent)])

    def with_absent_classes(self, labels: Tensor) -> "Task":  # [N]
        """The task with the classes that the labels of the training examples lack as ``absent``. Without labels no class is absent."""
        if not self.has_labels:
            return self
        counts = torch.bincount(labels.cpu(), minlength=self.num_classes)
        return replace(self, absent=tuple(torch.nonzero(counts == 0).flatten().tolist()))


class Output(NamedTuple):
    """The output of a classifier.

    Args:
        logits: [B, C], or [B, L, C] with next tokens.
        embedding: input of the classifier's head [B, D], or [B, L, D].
        stages: output of each stage of the network, [B, channels, H, W] each.
    """

    logits: Tensor
    embedding: Tensor
    stages: tuple[Tensor, ...] = ()


class Generated(NamedTuple):
    """Examples made by a server's generator.

    Args:
        values: embeddings [N, D], which are the input of heads, or images [N, channels, H, W], which are the input of networks.
        y: labels [N].
        are_embeddings: whether ``values`` are embeddings.
    """

    values: Tensor
    y: Tensor
    are_embeddings: bool


Loss = Callable[[Output, Output, Tensor], Tensor]
"""``(student, teacher, y [B]) -> [B]``. A loss never reduces over the batch; strategies and distillers take the mean."""


# --------------------------------------------------------------------------------------------------------------------- data
class LeftOut(NamedTuple):
    """Files of a data set that are not used.

    Args:
        path: the file, or one of several files, relative to the folder of the data set.
        reason: why, as a noun: ``hidden files``.
        number: number of files, >= 1.
    """

    path: str
    reason: str
    number: int = 1


@dataclass(frozen=True, eq=False)
class Examples:
    """Labeled images, or other inputs, in their stored form. Each batch is converted to floats when it is used, and tokens to int64.

    Args:
        x: images [>= N, channels, height, width]: unsigned bytes, or floats where a generator made them. Of other inputs see
            :data:`Input`.
        y: labels [N], int64, in 0..C-1. Of other targets see :data:`Target`.
        scale: the byte that stands for 1.0: 255 for ordinary images, 16 for scikit-learn's digits.
        mean: per channel, subtracted after scaling.
        std: per channel, images are divided by it.
        digest: hash of the decoded content. It identifies the data independently of their path.
        rows: index into ``x`` of each example [N], int64, so that a subset shares its images; None: all images, in order.
        groups: group of each example [N], int64: its domain, writer or speaker; None: no groups.
        left_out: files of the whole data set that are not used; with the training set alone.
        metadata: further properties of the examples by name, such as a writer or a year: one value per example [N] each.
        group_names: name of each group 0, 1, ...; empty: groups have no names.
        tokens: whether ``x`` are token ids, which are not normalized.
    """

    x: Tensor
    y: Tensor
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str = ""
    rows: Tensor | None = None
    groups: Tensor | None = None
    left_out: tuple[LeftOut, ...] = ()
    metadata: Mapping[str, np.ndarray] = field(default_factory=dict)
    group_names: tuple[str, ...] = ()
    tokens: bool = False

    def __len__(self) -> int:
        return len(self.y)

    @property
    def labels(self) -> Tensor:  # [N], int64
        """The class of each example. 0 for all where the targets are no single classes."""
        single = self.y.ndim == 1 and not self.y.is_floating_point()
        return self.y if single else torch.zeros(len(self.y), dtype=torch.int64, device=self.y.device)

    def images(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:  # [...] -> [..., channels, H, W]
        """The images of the examples ``index``, normalized, as floats; or their tokens."""
        return self.normalize(self.gather(self.storage_rows(index)), dtype)

    def gather(self, rows: Tensor) -> Tensor:  # [...] -> [..., channels, H, W]
        """The stored images at ``rows`` of ``x``. Copying whole images is several times faster than ``x[rows]``."""
        return self.x.index_select(0, rows.flatten()).unflatten(0, rows.shape)

    def storage_rows(self, index: Tensor) -> Tensor:  # [...] -> [...]
        """The rows of ``x`` that hold the examples ``index``."""
        return index if self.rows is None else self.rows[index]

    def normalize(self, stored: Tensor, dtype: torch.dtype) -> Tensor:  # [..., channels, H, W] -> the same shape
        """Stored images as floats: ``(x / scale - mean) / std``, and likewise tables and series. Tokens are int64."""
        if self.tokens:
            return stored.long()
        x = stored.to(dtype, copy=True)
        factor = torch.tensor([1 / (self.scale * s) for s in self.std], dtype=dtype, device=x.device)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std)], dtype=dtype, device=x.device)
        num_dims = self.x.ndim - 1 or 3  # of an example, whose first dimension are its channels; 3 where ``x`` has no examples and no shape
        shape = (-1, *[1] * (num_dims - 1))
        return x.mul_(factor.view(shape)).add_(shift.view(shape))

    def without_labels(self) -> "Examples":
        """The same images with target 0 for all of them."""
        return replace(self, y=torch.zeros_like(self.y))

    def without_images(self) -> "Examples":
        """The normalization alone: no images and no labels."""
        return Examples(self.x.new_empty((0, *self.x.shape[1:])), torch.empty(0), self.scale, self.mean, self.std, tokens=self.tokens)

    def subset(self, index: np.ndarray | Tensor) -> "Examples":
        """The examples ``index`` [n]. The images are shared, not copied."""
        index = torch.as_tensor(index, dtype=torch.int64, device=self.y.device)
        groups = None if self.groups is None else self.groups[index]
        metadata = {name: values[index.cpu().numpy()] for name, values in self.metadata.items()}
        return replace(self, y=self.y[index], rows=self.storage_rows(index), groups=groups, digest="", left_out=(), metadata=metadata)

    def to(self, device: torch.device | str) -> "Examples":
        """The same examples on ``device``; the object itself if they are there already."""
        if self.x.device == torch.device(device):
            return self
        rows, groups = (None if tensor is None else tensor.to(device) for tensor in (self.rows, self.groups))
        return replace(self, x=self.x.to(device), y=self.y.to(device), rows=rows, groups=groups)

    @property
    def attributes(self) -> "ExampleAttributes":
        """What partitions see of the examples."""
        groups = None if self.groups is None else self.groups.cpu().numpy()
        return ExampleAttributes(self.labels.cpu().numpy(), groups, self.metadata)


@dataclass(frozen=True, eq=False)
class ExampleAttributes:
    """What partitions see of examples: all but the images.

    Args:
        y: labels [N], int64. 0 for all where the targets are no single classes.
        groups: domain, writer or other group of each example [N], int64; None: no groups.
        metadata: further properties by name, [N] each.
    """

    y: np.ndarray
    groups: np.ndarray | None = None
    metadata: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Partition:
    """The assignment of examples to clients.

    Args:
        train: for each client the indices of its training examples, ascending, int64.
        test: for each client the indices of its local test examples, ascending, int64.
        num_draws: number of random splits that were drawn until one obeyed the rules of the partition, >= 1.
    """

    train: list[np.ndarray]
    test: list[np.ndarray]
    num_draws: int = 1


# ---------------------------------------------------------------------------------------------------------- state and updates
@dataclass(frozen=True)
class Update:
    """The message of one client to the server after its local training. The server receives nothing else from a client.

    Args:
        client: number of the client.
        num_examples: number of its training examples.
        architecture: name of its network.
        state: the tensors that it sends.
        metrics: means over its local steps, by name.
        num_steps: number of its optimizer steps in the last local training of the round.
    """

    client: int
    num_examples: int
    architecture: str
    state: State
    metrics: dict[str, float] = field(default_factory=dict)
    num_steps: int = 0


def flatten(state: State) -> Tensors:
    """Convert ``{part: {key: tensor}}`` to ``{"part:key": tensor}``."""
    return {f"{part}:{key}": value for part, tensors in state.items() for key, value in tensors.items()}


def unflatten(tensors: Mapping[str, Tensor]) -> State:
    """The inverse of :func:`flatten`. Parts without tensors are lost."""
    state: State = {}
    for name, value in tensors.items():
        part, _, key = name.partition(":")
        state.setdefault(part, {})[key] = value
    return state


def parts_of(state: State, *names: str) -> State:
    """Those parts of a state that have these names. A part that is missing is left out."""
    return {name: state[name] for name in names if name in state}
