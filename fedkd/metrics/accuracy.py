"""Accuracy: the evaluation loop, and the metrics over clients."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedkd.losses.cross_entropy import cross_entropy
from fedkd.tensor_ops import channels_last
from fedkd.types import Examples


@dataclass(frozen=True)
class Score:
    """Counts of an evaluation.

    Args:
        total: number of examples per class [C], int64.
        correct: number of correctly classified examples per class [C], int64.
        losses: sum of the losses of each batch.
    """

    total: Tensor
    correct: Tensor
    losses: tuple[float, ...]

    @classmethod
    def merge(cls, parts: Sequence["Score"]) -> "Score":
        """The score on all examples, from the scores on consecutive parts of them."""
        total, correct = (torch.stack(counts).sum(0) for counts in zip(*((part.total, part.correct) for part in parts)))
        return cls(total, correct, tuple(loss for part in parts for loss in part.losses))

    @property
    def loss(self) -> float:
        """The sum of the losses of all examples. It does not depend on how batches were divided into parts."""
        return math.fsum(self.losses)

    @property
    def accuracy(self) -> float:
        """Fraction of correctly classified examples, 0..1; NaN without examples."""
        return self.correct.sum().item() / n if (n := self.total.sum().item()) else float("nan")


@torch.no_grad()
def evaluate(
    model: Callable[[Tensor], Any], examples: Examples, batch_size: int, num_classes: int, dtype: torch.dtype = torch.float32
) -> Score:
    """Evaluate a model on all examples.

    Args:
        model: from images to an :class:`~fedkd.types.Output`, in eval mode.
        examples: labeled images.
        batch_size: examples per batch, >= 1.
        num_classes: number of classes, C.
        dtype: type of the images.
    """
    predict = lambda x: {"": model(x).logits}
    return evaluate_predictions(predict, examples, batch_size, num_classes, dtype)[""]


@torch.no_grad()
def evaluate_predictions(
    predict: Callable[[Tensor], Mapping[str, Tensor]],
    examples: Examples,
    batch_size: int,
    num_classes: int,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Score]:
    """Evaluate several predictions on all examples.

    Args:
        predict: from images to class scores [B, C] by name, with ``""`` among the names.
        examples: labeled images.
        batch_size: examples per batch, >= 1.
        num_classes: number of classes, C.
        dtype: type of the images.

    Returns:
        The score of each prediction. Without examples, that of ``""``.
    """
    device = examples.y.device
    total = torch.zeros(num_classes, dtype=torch.int64, device=device)
    correct: dict[str, Tensor] = {"": total.clone()}
    losses: dict[str, list[Tensor]] = {"": []}
    for start in range(0, len(examples), batch_size):
        batch = slice(start, start + batch_size)
        y, stored = examples.y[batch], examples.x[batch] if examples.rows is None else examples.gather(examples.rows[batch])
        total += torch.bincount(y, minlength=num_classes)
        for name, scores in predict(channels_last(examples.normalize(stored, dtype))).items():
            hits = torch.bincount(y[scores.argmax(-1) == y], minlength=num_classes)
            correct[name] = correct[name] + hits if name in correct else hits
            losses.setdefault(name, []).append(cross_entropy(scores, y).sum())
    numbers = {name: tuple(torch.stack(values).tolist()) if values else () for name, values in losses.items()}
    return {name: Score(total.cpu(), hits.cpu(), numbers[name]) for name, hits in correct.items()}


def local_test_metrics(counts: Sequence[tuple[int, int]]) -> dict[str, float] | None:
    """Metrics of the clients on their local test sets.

    Args:
        counts: numbers of test examples and of correctly classified ones of each client. Clients without test examples are ignored.

    Returns:
        ``local_test_accuracy``: correct examples of all clients over their examples. ``local_test_accuracy_bottom10``: mean accuracy of
        the worst 10 % of the clients, at least one. ``local_test_accuracy_std``: population standard deviation of the accuracy over
        clients. None if no client has test examples.
    """
    counts = [(n, c) for n, c in counts if n > 0]
    if not counts:
        return None
    accuracies = torch.tensor([c / n for n, c in counts], dtype=torch.float64).sort().values
    return {
        "local_test_accuracy": sum(c for _, c in counts) / sum(n for n, _ in counts),
        "local_test_accuracy_bottom10": accuracies[: max(1, len(accuracies) // 10)].mean().item(),
        "local_test_accuracy_std": accuracies.std(correction=0).item(),
    }


NUM_CORRECT = "num-correct-"
"""What the name of a client's number of correct predictions begins with, for predictions with a name."""


def other_predictions(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The accuracy of predictions with a name.

    Args:
        metrics: the metrics of each client's evaluation.

    Returns:
        ``local_test_accuracy_<name>``: correct examples of all clients that make the prediction over their examples.
    """
    names = dict.fromkeys(name.removeprefix(NUM_CORRECT) for one in metrics for name in one if name.startswith(NUM_CORRECT))
    found = {}
    for name in names:
        having = [one for one in metrics if f"{NUM_CORRECT}{name}" in one]
        total = sum(int(one["num-examples"]) for one in having)
        if total:
            found[f"local_test_accuracy_{name}"] = sum(int(one[f"{NUM_CORRECT}{name}"]) for one in having) / total
    return found


def new_client_metrics(counts: Mapping[int, tuple[int, int]], new_clients: Iterable[int]) -> dict[str, float]:
    """Accuracy of new clients.

    Args:
        counts: numbers of test examples and of correctly classified ones, by client.
        new_clients: the clients to include.

    Returns:
        ``new_client_test_accuracy``, over all their test examples; nothing if they have none.
    """
    tested = [counts[client] for client in new_clients if client in counts]
    total = sum(n for n, _ in tested)
    return {"new_client_test_accuracy": sum(c for _, c in tested) / total} if total else {}
