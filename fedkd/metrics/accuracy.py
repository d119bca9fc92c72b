"""Accuracy: the evaluation loop, and the metrics over clients."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedkd.losses.cross_entropy import cross_entropy
from fedkd.types import Examples


@dataclass(frozen=True)
class Score:
    """Counts of an evaluation: per class the number of examples and of correct answers [C], and the sum of losses of each batch."""

    total: Tensor
    correct: Tensor
    losses: tuple[float, ...]

    @classmethod
    def merge(cls, parts: Sequence["Score"]) -> "Score":
        """The score on all examples, from those of their parts in order."""
        total, correct = (torch.stack(counts).sum(0) for counts in zip(*((part.total, part.correct) for part in parts)))
        return cls(total, correct, tuple(loss for part in parts for loss in part.losses))

    @property
    def loss(self) -> float:
        """The sum of losses, exact but for the last bit, however the examples were parted between batches' boundaries."""
        return math.fsum(self.losses)

    @property
    def accuracy(self) -> float:
        """Share of correct answers, 0..1; nan where there was no example."""
        return self.correct.sum().item() / n if (n := self.total.sum().item()) else float("nan")


@torch.no_grad()
def evaluate(
    model: Callable[[Tensor], Any], examples: Examples, batch_size: int, num_classes: int, dtype: torch.dtype = torch.float32
) -> Score:
    """Score ``model`` (images to :class:`~fedkd.types.Output`, in eval mode already) on all of ``examples``."""
    device = examples.y.device
    total = torch.zeros(num_classes, dtype=torch.int64, device=device)
    correct, losses = total.clone(), []
    for begin in range(0, len(examples), batch_size):
        part = slice(begin, begin + batch_size)
        y, stored = examples.y[part], examples.x[part] if examples.rows is None else examples.gather(examples.rows[part])
        logits = model(examples.normalize(stored, dtype).contiguous(memory_format=torch.channels_last)).logits
        total += torch.bincount(y, minlength=num_classes)
        correct += torch.bincount(y[logits.argmax(-1) == y], minlength=num_classes)
        losses.append(cross_entropy(logits, y).sum())
    return Score(total.cpu(), correct.cpu(), tuple(torch.stack(losses).tolist()) if losses else ())


def local_test_metrics(counts: Sequence[tuple[int, int]]) -> dict[str, float] | None:
    """Metrics of clients on their own test shards, from ``(examples, correct)`` of each; clients without examples do not count.

    The worst tenth is the mean accuracy of the lowest tenth of clients (at least one), the spread the population standard
    deviation over clients; both give every client the same weight.
    """
    counts = [(n, c) for n, c in counts if n > 0]
    if not counts:
        return None
    each = torch.tensor([c / n for n, c in counts], dtype=torch.float64).sort().values
    return {
        "local_test_accuracy": sum(c for _, c in counts) / sum(n for n, _ in counts),
        "local_test_accuracy_bottom10": each[: max(1, len(each) // 10)].mean().item(),
        "local_test_accuracy_std": each.std(correction=0).item(),
    }


def new_client_metrics(counts: Mapping[int, tuple[int, int]], newcomers: Iterable[int]) -> dict[str, float]:
    """``new_client_test_accuracy``, from ``(examples, correct)`` by client: over all of newcomers' test examples; nothing where they have none."""
    tested = [counts[client] for client in newcomers if client in counts]
    total = sum(n for n, _ in tested)
    return {"new_client_test_accuracy": sum(c for _, c in tested) / total} if total else {}
