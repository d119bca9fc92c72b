"""Networks of users: lazy layers, plain modules, and what cannot be used."""

import pytest
import torch
from torch import nn

from fedkd.errors import ConfigError
from fedkd.models.base import Classifier
from fedkd.models.construction import make_classifier
from fedkd.types import Task
from tests import own_networks

TASK = Task("small", (1, 4, 4), 3)


def test_a_plain_module_is_wrapped():
    """The embedding is the input of the last linear layer, and logits, initial weights and mode stay."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = own_networks.Plain(TASK)
    x = torch.randn(5, *TASK.shape)
    expected, weight = plain(x), plain.net[3].weight
    model = make_classifier(lambda task: plain, TASK)
    output = model(x)
    assert isinstance(model, Classifier) and model.training
    assert torch.equal(output.logits, expected) and model.head.weight is weight
    assert output.embedding.shape == (5, 16) and model.embedding_size == 16
    assert {key for key in model.state_dict() if key.startswith("head.")} == {"head.weight", "head.bias"}


def test_a_classifier_is_kept():
    model = own_networks.tied(TASK)
    assert make_classifier(lambda task: model, TASK) is model


def test_lazy_layers_get_their_shapes():
    model = make_classifier(own_networks.lazy, TASK)
    assert model.state_dict()["stages.0.3.weight"].shape == (32, 32) and model.training


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (own_networks.Pair, "must make a network that returns one tensor of logits; subclass .*, which returns a tuple"),
        (own_networks.Softmax, "must make a network that ends with a linear layer, whose input is the embedding; subclass .*'Softmax'"),
        (lambda task: nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), r"must make a network with logits of shape \(2, 3\)"),
        (lambda task: nn.Sequential(nn.Flatten(), nn.Linear(15, 3)), r"must make a network that reads inputs .image. .*RuntimeError"),
        (lambda task: nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()), "must make a network that ends with a linear layer"),
        (lambda task: "a network", "must make a torch.nn.Module"),
    ],
)  # fmt: skip
def test_other_modules_are_refused(factory, message):
    with pytest.raises(ConfigError, match=f"^_target_ {message}") as refused:
        make_classifier(factory, TASK)
    assert "\n" not in str(refused.value)
