"""The simulator's own measurements: one model on the balanced test set, and on every client's test shard."""

from collections.abc import Callable
from math import isnan

import torch

from fedkd.metrics.accuracy import Score, evaluate, local_test_metrics, new_client_metrics
from simulations.setup.simulation import Simulation


def test_score(home: Simulation, model: Callable, begin: int = 0, end: int | None = None) -> Score:
    """The score of ``model`` on the test set, or on its examples from ``begin`` to ``end``."""
    examples = home.test if end is None else home.test.subset(torch.arange(begin, end, device=home.test.y.device))
    return evaluate(model, examples, home.config.evaluation.batch_size, home.task.num_classes, home.dtype)


def global_test_metrics(home: Simulation, score: Score) -> dict[str, float]:
    """Accuracy, mean loss and accuracy by class of a score on the whole test set."""
    classes = (score.correct / score.total).tolist()
    named = {f"global_test_accuracy_class_{c:02d}": value for c, value in enumerate(classes) if not isnan(value)}
    return {"global_test_accuracy": score.accuracy, "global_test_loss": score.loss / len(home.test), **named}


def ensemble_local_metrics(home: Simulation, model: Callable) -> dict[str, float | list[int]]:
    """One model on every client's own test shard."""
    batch, classes = home.config.evaluation.batch_size, home.task.num_classes
    scores = [evaluate(model, shard, batch, classes, home.dtype) for shard in home.held.shards[1]]
    examples, correct = [int(s.total.sum()) for s in scores], [int(s.correct.sum()) for s in scores]
    counts = list(zip(examples, correct))
    newcomers = new_client_metrics(dict(enumerate(counts)), home.devices.new_clients)
    return {**(local_test_metrics(counts) or {}), **newcomers, "own_examples": examples, "own_correct": correct}
