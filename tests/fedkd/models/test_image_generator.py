"""The generator of images: shape, range, and conditioning on labels."""

import pytest
import torch

from fedkd.models.generators import ImageConv, ImageDCGAN
from fedkd.seed import Seed
from fedkd.training.functional_model import snapshot
from fedkd.types import Task
from tests.strategies.server_tools import DOUBLE


@pytest.mark.parametrize("max_pixel", [1.0, 255.0])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 7, 5), (3, 1, 1)])
def test_shape_and_range_of_images(shape, max_pixel):
    task = Task("toy", shape, 4, mean=(0.5,) * shape[0], std=(0.25,) * shape[0], max_pixel=max_pixel)
    with Seed(0).globally():
        module = ImageConv(task, width=3, noise_size=5, conditional=True, initialization="pytorch")
        noise = torch.randn(6, 5)
    actual = []
    for bias in (-40.0, 0.0, 40.0):
        module.end.bias.data.fill_(bias)
        actual.append(module(noise, torch.tensor([0, 1, 2, 3, 0, 1])).detach())
        assert actual[-1].shape == (6, *shape)
    black, gray, white = (one.double().mean().item() for one in actual)
    assert black == pytest.approx(-2) and white == pytest.approx((max_pixel - 0.5) / 0.25) and black < gray < white


def test_label_is_used_where_conditional():
    task = Task("toy", (1, 8, 8), 4)
    for conditional in (True, False):
        with Seed(0).globally():
            module, noise = (
                ImageConv(task, width=3, noise_size=5, conditional=conditional, initialization="pytorch").double(),
                torch.randn(6, 5).double(),
            )
        one, other = (module.eval()(noise, torch.full((6,), label)) for label in (0, 3))
        assert torch.equal(one, other) == (not conditional) and one.dtype == DOUBLE
        assert {key for key in snapshot(module) if key in ("mean", "std")} == {"mean", "std"}


def test_normal_initialization():
    """Weights around 0, those of BatchNorm around 1, and no biases. Other values are refused."""
    make = lambda name: ImageConv(Task("toy", (1, 8, 8), 4), width=16, noise_size=50, conditional=False, initialization=name)
    with Seed(0).globally():
        tensors = snapshot(make("normal"))
    for key, value in tensors.items():
        if key.endswith("bias"):
            assert not value.any()
        elif key.endswith("weight"):
            center = 1.0 if value.dim() == 1 else 0.0
            assert value.mean().item() == pytest.approx(center, abs=0.01) and value.std().item() == pytest.approx(0.02, rel=0.5)
    with pytest.raises(ValueError, match=r"^initialization must be one of pytorch, normal, got 'other'$"):
        make("other")


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 7, 5), (1, 8, 8)])
@pytest.mark.parametrize("merge", ["mul", "add", "cat"])
def test_transposed_convolutions(shape, merge):
    """Shape and range of pixels. Labels and noise change the images."""
    task = Task("toy", shape, 4, mean=(0.5,) * shape[0], std=(0.5,) * shape[0])
    with Seed(0).globally():
        module, noise = ImageDCGAN(task, width=3, noise_size=5, merge=merge).eval(), torch.randn(6, 5)
    module.decoder.layers[-1].weight.data *= 1e7
    images = [module(noise * scale, torch.full((6,), label)).detach() for label, scale in ((0, 1), (3, 1), (0, 2))]
    assert images[0].shape == (6, *shape) and -1 <= images[0].min() < -0.5 and 0.5 < images[0].max() <= 1
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_size_of_the_generator_of_dfrd():
    with Seed(0).globally():
        module = ImageDCGAN(Task("toy", (3, 32, 32), 10), width=128, noise_size=64, merge="mul")
    assert sum(parameter.numel() for parameter in module.parameters()) == 3_153_280
    with pytest.raises(ValueError, match=r"^merge must be one of mul, add, cat, got 'none'$"):
        ImageDCGAN(Task("toy", (3, 32, 32), 10), width=1, noise_size=2, merge="none")
