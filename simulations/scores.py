"""The simulator's own measurements: one model on the balanced test set, and on every client's test shard."""

from collections.abc import Callable
from math import isnan

from fedkd.aggregate import own_labels
from fedkd.evaluate import evaluate
from simulations.world import World


def balanced(home: World, model: Callable) -> dict[str, float]:
    """Accuracy, mean loss and accuracy by class on the whole test set."""
    score = evaluate(model, home.test, home.config.evaluation.batch_size, home.task.num_classes, home.dtype)
    classes = (score.correct / score.total).tolist()
    named = {f"accuracy_class_{c:02d}": value for c, value in enumerate(classes) if not isnan(value)}
    return {"accuracy": score.accuracy, "loss": score.loss / len(home.test), **named}


def on_shards(home: World, model: Callable) -> dict[str, float | list[int]]:
    """One model on every client's own test shard."""
    batch, classes = home.config.evaluation.batch_size, home.task.num_classes
    scores = [evaluate(model, home.test.subset(index).to(home.config.device), batch, classes, home.dtype) for index in home.partition.test]
    examples, correct = [int(s.total.sum()) for s in scores], [int(s.correct.sum()) for s in scores]
    return {**(own_labels(list(zip(examples, correct))) or {}), "own_examples": examples, "own_correct": correct}
