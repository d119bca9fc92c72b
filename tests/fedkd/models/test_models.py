"""Networks and generators: published sizes, and rules that every classifier follows."""

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.testing import assert_close

from fedkd.federation.client import batchnorm_statistic_names
from fedkd.models.cnn import FedGenCNN
from fedkd.models.generators import FeatureMLP
from fedkd.models.mlp import MLP
from fedkd.models.resnet import ResNet
from fedkd.types import Target, Task
from tests.small_runs import ROOT

MNIST, LETTERS, CELEBA = Task("mnist", (1, 28, 28), 10), Task("letters", (1, 28, 28), 26), Task("celeba", (3, 84, 84), 2)
CIFAR10, CIFAR100 = Task("cifar10", (3, 32, 32), 10), Task("cifar100", (3, 32, 32), 100)
NETWORKS = [path for path in sorted((ROOT / "conf" / "model").glob("*.yaml")) if not path.stem.startswith("heterogeneous")]


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def configured(kind: str, name: str, *args):
    return instantiate(OmegaConf.load(ROOT / "conf" / kind / f"{name}.yaml"), _convert_="all")(*args)


TEXT_NETWORKS = ("fasttext", "text_cnn", "char_lstm")


def fitting(name: str) -> Task:
    """A task with small images, or texts, that the network accepts."""
    if name in TEXT_NETWORKS:
        target: Target = "next_token" if name == "char_lstm" else "label"
        return Task("texts", (6,), 5, input="tokens", target=target, vocabulary=("<pad>", "<unknown>", "a", "b", "c"))
    return CELEBA if "celeba" in name else MNIST


@pytest.mark.parametrize(
    ("name", "task", "parameters"),
    [("fedgen_cnn", MNIST, 26_434), ("fedgen_cnn", LETTERS, 26_962), ("fedgen_cnn_celeba", CELEBA, 25_954)],
)
def test_fedgen_s_networks_have_the_published_sizes(name, task, parameters):
    assert size(configured("model", name, task)) == parameters


@pytest.mark.parametrize(
    ("depth", "task", "parameters"),
    [(8, CIFAR10, 78_042), (8, CIFAR100, 83_892), (20, CIFAR10, 272_474), (20, CIFAR100, 278_324), (110, CIFAR10, 1_730_714),
     (110, CIFAR100, 1_736_564)],
)  # fmt: skip
def test_residual_networks_have_the_published_sizes(depth, task, parameters):
    model = ResNet(task, depth=depth, widths=[16, 32, 64], stem=None)
    assert size(model) == parameters
    counted = [m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "shortcut" not in name]
    assert len(counted) == depth


def test_the_option_resnet8_has_the_published_size():
    assert size(configured("model", "resnet8", CIFAR100)) == 83_892


def test_stages_of_a_resnet_halve_the_maps_and_the_embedding_is_the_mean_of_the_last():
    model = ResNet(CIFAR100, depth=14, widths=[16, 32, 64], stem=None).eval()
    output = model(torch.rand(2, 3, 32, 32))
    assert [tuple(stage.shape) for stage in output.stages] == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    assert_close(output.embedding, output.stages[-1].mean((2, 3)))
    assert all((stage >= 0).all() for stage in output.stages) and len(batchnorm_statistic_names(model)) == 3 * 15


def test_a_block_with_zero_residual_returns_its_input():
    model = ResNet(CIFAR10, depth=14, widths=[16, 32, 64], stem=None).eval()
    block, x = model.stages[1][1], torch.rand(2, 32, 16, 16)
    nn.init.zeros_(block.residual[-1].weight)
    assert torch.equal(block(x), x) and len(block.shortcut) == 0
    assert isinstance(model.stages[1][0].shortcut[0], nn.Conv2d) and len(model.stages[0][1].shortcut) == 0


@pytest.mark.parametrize(("task", "hidden", "parameters"), [(MNIST, 256, 19_744), (LETTERS, 256, 23_840), (CELEBA, 128, 8_864)])
def test_fedgen_s_generators_have_the_published_sizes(task, hidden, parameters):
    assert size(FeatureMLP(task, 32, hidden=hidden, noise_size=32)) == parameters


def test_the_option_feature_mlp_has_the_size_for_mnist():
    assert size(configured("generator", "feature_mlp", MNIST, 32)) == 19_744


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_a_classifier_s_output_is_consistent(path):
    task = fitting(path.stem)
    model = configured("model", path.stem, task).eval()
    output = model(task.inputs(3) if task.input == "tokens" else torch.rand(3, *task.shape))
    assert output.logits.shape == (3, *task.positions, task.num_classes)
    assert output.embedding.shape == (3, *task.positions, model.embedding_size)
    assert torch.equal(model.head(output.embedding), output.logits)
    assert len(output.stages) == len(model.stages) and all(len(stage) == 3 for stage in output.stages)
    assert model.task == task


def test_fedgen_s_embedding_has_no_activation():
    torch.manual_seed(0)
    assert (FedGenCNN(MNIST, widths=[6, 16], pool=False, embedding_size=32)(torch.rand(8, 1, 28, 28)).embedding < 0).any()


def test_batchnorm_statistics_are_the_buffers_and_nothing_else():
    model = FedGenCNN(MNIST, widths=[6, 16], pool=False, embedding_size=32)
    assert batchnorm_statistic_names(model) == {name for name, _ in model.named_buffers()} and len(batchnorm_statistic_names(model)) == 6
    assert batchnorm_statistic_names(MLP(MNIST, widths=[4])) == frozenset()
    assert batchnorm_statistic_names(nn.BatchNorm1d(3)) == {"running_mean", "running_var", "num_batches_tracked"}


def test_a_generator_makes_one_embedding_per_label_and_depends_on_label_and_noise():
    module = FeatureMLP(MNIST, 32, hidden=256, noise_size=32).eval()
    noise, y = torch.rand(5, 32), torch.arange(5)
    z = module(noise, y)
    assert z.shape == (5, 32)
    assert not torch.equal(module(noise, y + 1), z) and not torch.equal(module(noise + 1, y), z)
    assert_close(module(noise[:2], y[:2]), module(noise, y)[:2])  # in eval mode, examples do not influence each other


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedGenCNN(Task("t", (3, 8, 8), 2), widths=[16, 32, 64], pool=True, embedding_size=32), "widths must leave"),
        (lambda: FedGenCNN(MNIST, widths=[], pool=False, embedding_size=32), "widths must be"),
        (lambda: FedGenCNN(MNIST, widths=[6], pool=False, embedding_size=0), "embedding_size must be > 0"),
        (lambda: MLP(MNIST, widths=[0]), "widths must be"),
        (lambda: ResNet(MNIST, depth=10, widths=[16, 32, 64], stem=None), "depth must be 6n \\+ 2 .*, got 10"),
        (lambda: ResNet(MNIST, depth=2, widths=[16, 32, 64], stem=None), "depth must be 6n"),
        (lambda: ResNet(MNIST, depth=8, widths=[16, 32], stem=None), "widths must be three"),
        (lambda: ResNet(MNIST, depth=8, widths=[16, 32, 0], stem=None), "widths must be three"),
        (lambda: FeatureMLP(MNIST, 32, hidden=0, noise_size=32), "hidden must be > 0"),
        (lambda: FeatureMLP(MNIST, 32, hidden=8, noise_size=0), "noise_size must be > 0"),
    ],
)
def test_invalid_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
