"""How good the networks of a distillation are: accuracy, and what their embeddings find again."""

import time

import torch
from torch import Tensor, nn

from fedkd.metrics.accuracy import Score, evaluate
from fedkd.metrics.retrieval import retrieval
from fedkd.types import Examples, Tensors
from simulations.distillation.setup import Setup
from simulations.setup.simulation import dtype_of


def scores(setup: Setup, tensors: Tensors) -> dict[str, float]:
    """Accuracy and loss of every network that leaves the house; the student's without its name."""
    began, row = time.perf_counter(), {}
    for name, (network, own) in setup.distiller.networks(setup.learner, tensors).items():
        score = scored(setup, network, own)
        ending = "" if name == "student" else f"_{name}"
        row |= {f"test_accuracy{ending}": score.accuracy, f"test_loss{ending}": score.loss / score.total.sum().item()}
    return {**row, "evaluation_seconds": round(time.perf_counter() - began, 4)}


def scored(setup: Setup, network: nn.Module, tensors: Tensors) -> Score:
    """One network on the test set, with the BatchNorm statistics that the method wants."""
    batch_statistics = getattr(setup.distiller, "bn_eval", "running") == "batch"
    kept = {key: value.clone() for key, value in tensors.items()}
    network.train(batch_statistics)

    def model(x: Tensor) -> object:
        return torch.func.functional_call(network, kept, (x,))

    config = setup.config
    return evaluate(model, setup.test, config.evaluation_batch_size, setup.task.num_classes, dtype_of(config))


@torch.no_grad()
def retrieved(setup: Setup, network: nn.Module, tensors: Tensors) -> dict[str, float]:
    """Mean average precision, precision in the first 100 and of the first: the test images ask, the training images answer.

    By cosine of embeddings, and by their distance (``_euclidean``), with full interpolation.
    """
    config = setup.config

    def embedded(examples: Examples) -> Tensor:
        index = torch.arange(len(examples), device=examples.y.device).split(config.evaluation_batch_size)
        images = (examples.images(part, dtype_of(config)).contiguous(memory_format=torch.channels_last) for part in index)
        return torch.cat([torch.func.functional_call(network.eval(), tensors, (x,)).embedding for x in images])

    database, queries, found = embedded(setup.train), embedded(setup.test), {}
    for similarity, ending in (("cosine", ""), ("euclidean", "_euclidean")):
        one = retrieval(database, setup.train.y, queries, setup.test.y, similarity=similarity, interp="full")
        values = {"mean_average_precision": one.mean_average_precision, "precision_at_100": one.precision_at_k, "precision_at_1": one.precision_at_1}
        found |= {f"{name}{ending}": value for name, value in values.items()}
    return found
