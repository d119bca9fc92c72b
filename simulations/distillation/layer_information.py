"""Mutual information between each layer of a network and the labels, the quantity that information flow transfers."""

import torch
from torch import nn

from fedkd.distillation.methods.information_flow import representations
from fedkd.distillation.student_training import Progress
from fedkd.metrics.mutual_information import binned_mutual_information, quadratic_mutual_information
from fedkd.training.functional_model import call_with, submodule_tensors
from fedkd.types import Tensors
from simulations.distillation.setup import Setup
from simulations.setup.simulation import dtype_of


@torch.no_grad()
def layer_information(setup: Setup, progress: Progress, teacher_tensors: Tensors) -> list[dict[str, object]]:
    """Measure the information on the first ``layer_information_images`` training images.

    Args:
        setup: the distillation.
        progress: the epoch and the current tensors of ``setup.learner``.
        teacher_tensors: tensors of the teacher, empty if there is none.

    Returns:
        Rows of ``flow.csv``, one for each layer of each network: quadratic mutual information, and that of binned principal components.
        The last layer is the embedding.
    """
    config = setup.config
    index = torch.arange(min(config.layer_information_images, len(setup.train)), device=setup.train.y.device)
    x, y = setup.train.images(index, dtype_of(config)), setup.train.y[index]
    networks: dict[str, tuple[nn.Module, Tensors]] = setup.distiller.networks(setup.learner, progress.tensors)
    if setup.teacher is not None:
        networks |= {"teacher": (setup.teacher.student, submodule_tensors(teacher_tensors, "student"))}
    rows: list[dict[str, object]] = []
    for name, (network, tensors) in networks.items():
        layers = representations(call_with(network.eval(), tensors, x), "all")
        for number, layer in enumerate(reversed(layers), 1):
            quadratic = quadratic_mutual_information(layer.flatten(1), y, setup.task.num_classes, kernel="adaptive_rbf").item()
            binned = binned_mutual_information(layer.flatten(1), y, setup.task.num_classes, num_components=2, num_bins=4).item()
            rows.append({"epoch": progress.epoch, "network": name, "layer": number, "information": quadratic, "binned": binned})
    return rows
