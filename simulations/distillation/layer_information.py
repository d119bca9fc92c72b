"""How much each layer of a network knows of the labels: the information flow that a method is to hand on."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call

from fedkd.distillation.methods.information_flow import representations
from fedkd.distillation.student_training import Progress
from fedkd.metrics.mutual_information import binned_mutual_information, quadratic_mutual_information
from fedkd.training.functional_model import submodule_tensors
from fedkd.types import Tensors
from simulations.distillation.setup import Setup
from simulations.setup.simulation import dtype_of


@torch.no_grad()
def layer_information(setup: Setup, progress: Progress, taught: Tensors) -> list[Mapping[str, object]]:
    """Rows of the information between each layer and the labels, quadratic and binned, on the first training images; the last is the embedding."""
    config = setup.config
    index = torch.arange(min(config.layer_information_images, len(setup.train)), device=setup.train.y.device)
    x, y = setup.train.images(index, dtype_of(config)), setup.train.y[index]
    networks: dict[str, tuple[nn.Module, Tensors]] = setup.distiller.networks(setup.learner, progress.tensors)
    if setup.teacher is not None:
        networks |= {"teacher": (setup.teacher.student, submodule_tensors(taught, "student"))}
    found = []
    for name, (network, tensors) in networks.items():
        layers = representations(functional_call(network.eval(), tensors, (x,)), "all")
        for number, layer in enumerate(reversed(layers), 1):
            value = quadratic_mutual_information(layer.flatten(1), y, setup.task.num_classes, kernel="adaptive_rbf").item()
            binned = binned_mutual_information(layer.flatten(1), y, setup.task.num_classes, num_components=2, num_bins=4).item()
            found.append({"epoch": progress.epoch, "network": name, "layer": number, "information": value, "binned": binned})
    return found
