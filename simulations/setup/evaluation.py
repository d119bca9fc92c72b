"""The server's evaluation: one model on the global test set, and on the local test sets of clients."""

from collections.abc import Callable
from math import isnan

import torch
from torch import Tensor

from fedkd.metrics.accuracy import Score, evaluate, local_test_metrics, new_client_metrics
from fedkd.types import Output
from simulations.setup.simulation import Simulation


def score_global_test(simulation: Simulation, model: Callable[[Tensor], Output], begin: int = 0, end: int | None = None) -> Score:
    """The score of a model on the global test set, or on its examples ``begin``..``end``.

    Args:
        simulation: the simulation with the test set.
        model: from images [B, channels, height, width] to an Output, in eval mode.
        begin: the first example.
        end: one after the last example. None takes the whole test set.
    """
    examples = simulation.global_test
    if end is not None:
        examples = examples.subset(torch.arange(begin, end, device=examples.y.device))
    task = simulation.task
    return evaluate(model, examples, simulation.config.evaluation.batch_size, task.num_classes, simulation.dtype, task.uncounted)


def global_test_metrics(simulation: Simulation, score: Score) -> dict[str, float]:
    """Accuracy in 0..1, mean loss, and accuracy of each class that occurs, of a score on the whole global test set.

    Tasks of other inputs than images have the macro-F1 too. With next tokens there are neither macro-F1 nor accuracies of classes.
    """
    metrics, task = {"global_test_accuracy": score.accuracy, "global_test_loss": score.loss / len(simulation.global_test)}, simulation.task
    if task.target == "next_token":
        return metrics
    if task.input != "image":
        metrics["global_test_macro_f1"] = score.macro_f1
    accuracies = (score.correct / score.total).tolist()
    by_class = {f"global_test_accuracy_class_{label:02d}": value for label, value in enumerate(accuracies) if not isnan(value)}
    return {**metrics, **by_class}


def ensemble_local_metrics(simulation: Simulation, model: Callable[[Tensor], Output], server_round: int) -> dict[str, float | list[int]]:
    """The local test metrics of one model that is evaluated on the local test sets of all clients, or of the round's sample of them.

    ``local_test_clients`` lists the clients [K], ``num_local_test_examples`` and ``num_local_test_correct`` [K] the counts of each.
    """
    simulation = simulation.at(server_round)
    clients = simulation.evaluated_clients(server_round)
    local_test = [simulation.client_data.local_test[client] for client in clients]
    batch_size, task = simulation.config.evaluation.batch_size, simulation.task
    scores = [evaluate(model, one, batch_size, task.num_classes, simulation.dtype, task.uncounted) for one in local_test]
    num_examples, num_correct = [int(score.total.sum()) for score in scores], [int(score.correct.sum()) for score in scores]
    counts = dict(zip(clients, zip(num_examples, num_correct)))
    metrics = {**(local_test_metrics(list(counts.values())) or {}), **new_client_metrics(counts, simulation.devices.new_clients)}
    return {**metrics, "local_test_clients": clients, "num_local_test_examples": num_examples, "num_local_test_correct": num_correct}
