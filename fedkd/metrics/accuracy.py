"""Accuracy: the evaluation loop, and the metrics over clients.

Accuracy is the fraction of correct decisions. A decision is the class of an example, each class of an example with any number of classes
(its score is above 0 where it is right, and only there), or each next token that counts.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedkd.losses.cross_entropy import cross_entropy
from fedkd.tensor_ops import channels_last
from fedkd.types import PADDING, Examples


@dataclass(frozen=True)
class Score:
    """Counts of an evaluation.

    Args:
        total: number of decisions per class [C], int64. For one class per example it is the number of examples of each class.
        correct: number of correct decisions per class [C], int64.
        losses: sum of the losses of each batch.
        num_examples: number of examples.
        positives: for each class the number of examples that have it and are given it, that are given it, and that have it [3, C], int64.
    """

    total: Tensor
    correct: Tensor
    losses: tuple[float, ...]
    num_examples: int
    positives: Tensor

    @classmethod
    def merge(cls, parts: Sequence["Score"]) -> "Score":
        """The score on all examples, from the scores on consecutive parts of them."""
        counts = zip(*((part.total, part.correct, part.positives) for part in parts))
        total, correct, positives = (torch.stack(one).sum(0) for one in counts)
        losses = tuple(loss for part in parts for loss in part.losses)
        return cls(total, correct, losses, sum(part.num_examples for part in parts), positives)

    @property
    def loss(self) -> float:
        """The sum of the losses of all examples. It does not depend on how batches were divided into parts."""
        return math.fsum(self.losses)

    @property
    def accuracy(self) -> float:
        """Fraction of correct decisions, 0..1; NaN without examples."""
        return self.correct.sum().item() / n if (n := self.total.sum().item()) else float("nan")

    @property
    def macro_f1(self) -> float:
        """Mean of the F1 scores of all classes that occur or are predicted, 0..1; NaN where there are none. As scikit-learn's."""
        hits, given, having = self.positives.double()
        occurs = given + having > 0
        return (2 * hits / (given + having))[occurs].mean().item()


@torch.no_grad()
def evaluate(
    model: Callable[[Tensor], Any],
    examples: Examples,
    batch_size: int,
    num_classes: int,
    dtype: torch.dtype = torch.float32,
    uncounted: Sequence[int] = (PADDING,),
) -> Score:
    """Evaluate a model on all examples.

    Args:
        model: from images to an :class:`~fedkd.types.Output`, in eval mode.
        examples: labeled images.
        batch_size: examples per batch, >= 1.
        num_classes: number of classes, C.
        dtype: type of the images.
        uncounted: next tokens that are left out, see :class:`~fedkd.types.Task`.
    """
    predict = lambda x: {"": model(x).logits}
    return evaluate_predictions(predict, examples, batch_size, num_classes, dtype, uncounted)[""]


@torch.no_grad()
def evaluate_predictions(
    predict: Callable[[Tensor], Mapping[str, Tensor]],
    examples: Examples,
    batch_size: int,
    num_classes: int,
    dtype: torch.dtype = torch.float32,
    uncounted: Sequence[int] = (PADDING,),
) -> dict[str, Score]:
    """Evaluate several predictions on all examples.

    Args:
        predict: from images to class scores [B, C], or [B, L, C] with next tokens, by name, with ``""`` among the names.
        examples: labeled images.
        batch_size: examples per batch, >= 1.
        num_classes: number of classes, C.
        dtype: type of the images.
        uncounted: next tokens that are left out, see :class:`~fedkd.types.Task`.

    Returns:
        The score of each prediction. Without examples, that of ``""``.
    """
    nothing = torch.zeros(5, num_classes, dtype=torch.int64, device=examples.y.device)
    counts: dict[str, Tensor] = {"": nothing}
    losses: dict[str, list[Tensor]] = {"": []}
    for start in range(0, len(examples), batch_size):
        batch = slice(start, start + batch_size)
        y, stored = examples.y[batch], examples.x[batch] if examples.rows is None else examples.gather(examples.rows[batch])
        for name, scores in predict(channels_last(examples.normalize(stored, dtype))).items():
            counts[name] = counts.get(name, nothing) + decision_counts(scores, y, uncounted)
            losses.setdefault(name, []).append(cross_entropy(scores, y).sum())
    numbers = {name: tuple(torch.stack(values).tolist()) if values else () for name, values in losses.items()}
    return {name: Score(count[0].cpu(), count[1].cpu(), numbers[name], len(examples), count[2:].cpu()) for name, count in counts.items()}


def decision_counts(scores: Tensor, y: Tensor, uncounted: Sequence[int]) -> Tensor:  # [5, C], int64
    """By class: decisions, correct decisions, and the three numbers of ``Score.positives``.

    Args:
        scores: [B, C], or [B, L, C] with next tokens.
        y: the targets, see :func:`fedkd.losses.cross_entropy.cross_entropy`.
        uncounted: next tokens that are left out.
    """
    num_classes = scores.shape[-1]
    if y.dim() == scores.dim():
        given, having = scores > 0, y > 0
        rows = [torch.ones_like(given), given == having, given & having, given, having]
        return torch.stack([row.sum(0) for row in rows])
    if scores.dim() == 3:
        counted = torch.isin(y, torch.tensor(uncounted, device=y.device), invert=True)
        scores, y = scores[counted], y[counted]
    predicted = scores.argmax(-1)
    total, correct, given = (torch.bincount(labels, minlength=num_classes) for labels in (y, y[predicted == y], predicted))
    return torch.stack([total, correct, correct, given, total])


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
