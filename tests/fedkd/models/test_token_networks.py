"""Networks of tokens: torchvision's vision transformer, and MLP-Mixer by loops."""

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch.testing import assert_close
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from fedkd.models.mlp_mixer import MLPMixer
from fedkd.models.pooled_embedding import PooledEmbedding
from fedkd.models.vision_transformer import VisionTransformer
from fedkd.types import Task
from simulations.distillation.export import export_program
from tests.fedkd.models.test_models import CIFAR10, MNIST, configured, size

SMALL = {"patch_size": 4, "depth": 2, "width": 6}


@pytest.mark.parametrize(
    ("name", "task", "parameters"),
    [("vit_tiny", CIFAR10, 5_362_762), ("vit_tiny", MNIST, 5_353_738), ("mlp_mixer", CIFAR10, 569_994), ("mlp_mixer", MNIST, 558_158)],
)
def test_the_options_have_the_sizes_of_their_pages(name, task, parameters):
    model = configured("model", name, task)
    assert size(model) == parameters and model(torch.rand(1, *task.shape)).logits.shape == (1, 10)
    assert f"{parameters:,}" in type(model).__doc__


def test_the_vision_transformer_is_torchvision_s():
    torch.manual_seed(0)
    theirs = TorchvisionViT(32, 4, 2, 2, 6, 24, num_classes=10).eval()
    ours = VisionTransformer(CIFAR10, **SMALL, num_heads=2).eval()
    torch.nn.init.normal_(theirs.heads.head.weight)  # zeros at first, which would hide the rest
    blocks = {f"stages.{stage}": f"encoder.layers.encoder_layer_{number}" for number, stage in enumerate(("0.1", "1"))}
    names = {"stages.0.0.projection": "conv_proj", **blocks, "embed.0": "encoder.ln", "head": "heads.head"}
    state = theirs.state_dict()
    copied = {"stages.0.0.class_token": state["class_token"], "stages.0.0.positions": state["encoder.pos_embedding"]}
    copied |= {key.replace(there, here, 1): value for here, there in names.items() for key, value in state.items() if key.startswith(there)}
    ours.load_state_dict(copied)
    x = torch.rand(3, 3, 32, 32)
    assert torch.equal(ours(x).logits, theirs(x))
    assert [tuple(stage.shape) for stage in ours(x).stages] == [(3, 65, 6)] * 2


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * weight + bias


def two_layers(x: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    hidden = state[f"{name}.0.weight"] @ x + state[f"{name}.0.bias"]
    return state[f"{name}.2.weight"] @ (hidden * (1 + erf(hidden / np.sqrt(2))) / 2) + state[f"{name}.2.bias"]


def test_the_mixer_equals_a_computation_by_loops():
    """Patch by patch and channel by channel, in NumPy, of an image that is not square."""
    torch.manual_seed(0)
    task = Task("t", (2, 8, 12), 3)
    model = MLPMixer(task, **SMALL).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    image = np.random.default_rng(0).normal(size=(2, 8, 12))
    kernel, bias = state["stages.0.0.weight"], state["stages.0.0.bias"]
    patches = [image[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4] for i in range(2) for j in range(3)]
    x = np.array([[(kernel[c] * patch).sum() + bias[c] for c in range(6)] for patch in patches])  # [T, width]
    for block in ("stages.0.2", "stages.1"):
        normed = np.array([layer_norm(row, state[f"{block}.patch_norm.weight"], state[f"{block}.patch_norm.bias"]) for row in x])
        x = x + np.array([two_layers(normed[:, c], state, f"{block}.patch_mlp") for c in range(6)]).T
        normed = [layer_norm(row, state[f"{block}.channel_norm.weight"], state[f"{block}.channel_norm.bias"]) for row in x]
        x = x + np.array([two_layers(row, state, f"{block}.channel_mlp") for row in normed])
    embedding = np.mean([layer_norm(row, state["embed.0.weight"], state["embed.0.bias"]) for row in x], axis=0)
    output = model(torch.from_numpy(image)[None])
    assert_close(output.embedding[0].detach().numpy(), embedding, rtol=1e-9, atol=1e-9)
    assert_close(output.logits[0].detach().numpy(), state["head.weight"] @ embedding + state["head.bias"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [VisionTransformer, MLPMixer])
def test_an_exported_program_takes_batches_of_any_size(kind):
    network = PooledEmbedding(kind(MNIST, **SMALL, **({"num_heads": 2} if kind is VisionTransformer else {})), 4).eval()
    program = export_program(network, MNIST).module()
    for number in (1, 5):
        x = torch.rand(number, *MNIST.shape)
        assert_close(program(x), network(x).logits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisionTransformer(MNIST, **SMALL | {"patch_size": 5}, num_heads=2), r"patch_size must divide .*\(1, 28, 28\), got 5"),
        (lambda: MLPMixer(MNIST, **SMALL | {"patch_size": 0}), "patch_size must divide"),
        (lambda: MLPMixer(Task("t", (3, 32), 2), **SMALL), r"model must be another network .*\(3, 32\), which are no images"),
        (
            lambda: VisionTransformer(Task("t", (3, 8, 12), 2), **SMALL, num_heads=2),
            r"model must be another .*\(3, 8, 12\), which are not square",
        ),
        (lambda: VisionTransformer(MNIST, **SMALL, num_heads=4), r"width must be a positive multiple of num_heads \(4\), got 6"),
        (lambda: VisionTransformer(MNIST, **SMALL, num_heads=0), "num_heads must be > 0"),
        (lambda: VisionTransformer(MNIST, **SMALL | {"depth": 0}, num_heads=2), "depth must be > 0"),
        (lambda: MLPMixer(MNIST, **SMALL | {"depth": 0}), "depth must be > 0"),
        (lambda: MLPMixer(MNIST, **SMALL | {"width": 5}), "width must be a positive even number, got 5"),
    ],
)
def test_invalid_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
