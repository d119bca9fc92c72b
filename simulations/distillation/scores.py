"""Scores of the networks of a distillation: test accuracy, and image retrieval by their embeddings."""

import time

import torch
from torch import Tensor, nn

from fedkd.metrics.accuracy import Score, evaluate
from fedkd.metrics.retrieval import retrieval
from fedkd.tensor_ops import channels_last
from fedkd.training.functional_model import call_with
from fedkd.types import Examples, Output, Tensors
from simulations.distillation.setup import Setup
from simulations.setup.simulation import dtype_of


def evaluate_networks(setup: Setup, tensors: Tensors) -> dict[str, float]:
    """Accuracy (0..1) and mean loss on the test images of every network that is saved, and the seconds that this took.

    Args:
        setup: the distillation.
        tensors: the current tensors of ``setup.learner``.

    Returns:
        Values by column of ``metrics.csv``. Names of networks other than the student's are appended: ``test_accuracy_member-1``.
    """
    started = time.perf_counter()
    row: dict[str, float] = {}
    for name, (network, own) in setup.distiller.networks(setup.learner, tensors).items():
        score = evaluate_network(setup, network, own)
        suffix = "" if name == "student" else f"_{name}"
        row |= {f"test_accuracy{suffix}": score.accuracy, f"test_loss{suffix}": score.loss / score.total.sum().item()}
    return {**row, "evaluation_seconds": round(time.perf_counter() - started, 4)}


def evaluate_network(setup: Setup, network: nn.Module, tensors: Tensors) -> Score:
    """The score of one network on the test images, with running or batch statistics in BatchNorm as the method requires."""
    network.train(getattr(setup.distiller, "bn_eval", "running") == "batch")
    copies = {key: value.clone() for key, value in tensors.items()}  # batch statistics would update the buffers

    def model(x: Tensor) -> Output:
        return call_with(network, copies, x)

    config = setup.config
    return evaluate(model, setup.test, config.evaluation_batch_size, setup.task.num_classes, dtype_of(config), setup.task.uncounted)


@torch.no_grad()
def evaluate_retrieval(setup: Setup, network: nn.Module, tensors: Tensors) -> dict[str, float]:
    """Image retrieval with the test images as queries and the training images as database.

    Returns:
        Mean average precision (interpolated), precision of the first 100 results and of the first one, each in 0..1: by cosine similarity
        of embeddings, and with the suffix ``_euclidean`` by their distance.
    """
    config = setup.config

    def embeddings(examples: Examples) -> Tensor:
        batches = torch.arange(len(examples), device=examples.y.device).split(config.evaluation_batch_size)
        images = (channels_last(examples.images(index, dtype_of(config))) for index in batches)
        return torch.cat([call_with(network.eval(), tensors, x).embedding for x in images])

    database, queries = embeddings(setup.train), embeddings(setup.test)
    row: dict[str, float] = {}
    for similarity, suffix in (("cosine", ""), ("euclidean", "_euclidean")):
        result = retrieval(database, setup.train.y, queries, setup.test.y, similarity=similarity, interpolation="full")
        row |= {
            f"mean_average_precision{suffix}": result.mean_average_precision,
            f"precision_at_100{suffix}": result.precision_at_k,
            f"precision_at_1{suffix}": result.precision_at_1,
        }
    return row
