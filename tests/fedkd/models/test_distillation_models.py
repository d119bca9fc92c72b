"""The networks of centralized distillation: published sizes, stages, extra stages, and several networks at once."""

import math
from itertools import pairwise
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from fedkd.models.base import Classifier
from fedkd.models.cnn import PlainCNN
from fedkd.models.mobilenet_v2 import MobileNetV2
from fedkd.models.resnet import PreActBlock, PreActResNet, ResNet, WideResNet
from fedkd.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from fedkd.models.torchvision_resnet import TorchvisionResNet
from fedkd.models.vgg import VGG
from fedkd.tensor_ops import channels_last
from fedkd.training.vectorized_layers import trains_alone, vectorized_copy
from fedkd.types import Task
from tests.fedkd.models.test_models import CIFAR10, CIFAR100, MNIST, NETWORKS, TEXT_NETWORKS, configured, fitting, size
from tests.fedkd.training.test_vectorized import assert_equal_alone, six_clients

IMAGENET = Task("imagenet", (3, 224, 224), 1000)
DIGITS = Task("digits", (1, 8, 8), 10)


# ------------------------------------------------------------------------------------------------------------------ sizes
def convolution(in_channels: int, width: int, kernel: int, groups: int = 1) -> int:
    """Parameters of a convolution without bias and of the BatchNorm after it."""
    return in_channels * width * kernel**2 // groups + 2 * width


def residual(depth: int, classes: int, stem: int = 16, widths: tuple[int, ...] = (16, 32, 64)) -> int:
    total, before = convolution(3, stem, 3), stem
    for width in widths:
        for _ in range((depth - 2) // 6):
            total += convolution(before, width, 3) + convolution(width, width, 3) + (before != width) * convolution(before, width, 1)
            before = width
    return total + (before + 1) * classes


def wide(depth: int, factor: int) -> int:
    total, before = 3 * 16 * 9 + 2 * 64 * factor, 16
    for width in (16 * factor, 32 * factor, 64 * factor):
        for _ in range((depth - 4) // 6):
            total += 2 * before + convolution(before, width, 3) + width * width * 9 + (before != width) * before * width
            before = width
    return total + (before + 1) * 100


def vgg(each: int) -> int:
    channels = [3, *[width for width in (64, 128, 256, 512, 512) for _ in range(each)]]
    return sum(convolution(i, o, 3) + o for i, o in pairwise(channels)) + 513 * 100


def mobilenet() -> int:
    total, before = convolution(3, 16, 3), 16
    for expansion, width, blocks in ((1, 8, 1), (6, 12, 2), (6, 16, 3), (6, 32, 4), (6, 48, 3), (6, 80, 3), (6, 160, 1)):
        for _ in range(blocks):
            inner = expansion * before
            total += convolution(before, inner, 1) + convolution(inner, inner, 3, inner) + convolution(inner, width, 1)
            before = width
    return total + convolution(160, 1280, 1) + 1281 * 100


def shuffle_1() -> int:
    total, before = convolution(3, 24, 1), 24
    for width, blocks in ((240, 4), (480, 8), (960, 4)):
        for place in range(blocks):
            made = width - before if place == 0 else width
            inner = made // 4
            total += convolution(before, inner, 1, 1 if before == 24 else 3) + convolution(inner, inner, 3, inner)
            total += convolution(inner, made, 1, 3)
            before = width
    return total + 961 * 100


def shuffle_2() -> int:
    total, before = convolution(3, 24, 1), 24
    for width, blocks in ((116, 4), (232, 8), (464, 4)):
        half = width // 2
        through = convolution(half, half, 3, half) + convolution(half, half, 1)
        total += convolution(before, before, 3, before) + 2 * convolution(before, half, 1) + through
        total += (blocks - 1) * (convolution(half, half, 1) + through)
        before = width
    return total + convolution(464, 1024, 1) + 1025 * 100


@pytest.mark.parametrize(
    ("name", "parameters", "published"),
    [("resnet8x4", residual(8, 100, 32, (64, 128, 256)), 1.23), ("resnet32x4", residual(32, 100, 32, (64, 128, 256)), 7.43),
     ("resnet14", residual(14, 100), None), ("resnet32", residual(32, 100), None), ("resnet44", residual(44, 100), None),
     ("resnet56", residual(56, 100), 0.86), ("resnet110", residual(110, 100), None), ("wrn_16_1", wide(16, 1), None),
     ("wrn_16_2", wide(16, 2), 0.70), ("wrn_40_1", wide(40, 1), 0.57), ("wrn_40_2", wide(40, 2), 2.25), ("vgg8", vgg(1), 3.96),
     ("vgg13", vgg(2), 9.46), ("mobilenet_v2", mobilenet(), 0.81), ("shufflenet_v1", shuffle_1(), 0.95),
     ("shufflenet_v2", shuffle_2(), 1.36)],
)  # fmt: skip
def test_networks_for_cifar_100_have_the_published_sizes(name, parameters, published):
    """Published sizes are in millions, rounded; those of WRN-40-2 and VGG-8 (2,255,156 and 3,965,028) are truncated."""
    assert size(configured("model", name, CIFAR100)) == parameters
    if published:
        millions = parameters / 1e6
        assert published == (math.floor(millions * 100) / 100 if name in ("wrn_40_2", "vgg8") else round(millions, 2))


@pytest.mark.parametrize(("name", "parameters"), [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)])
def test_networks_for_imagenet_have_the_published_sizes(name, parameters):
    with torch.device("meta"):
        assert size(configured("model", f"{name}_imagenet", IMAGENET)) == parameters


def test_small_networks_have_the_published_sizes():
    assert size(configured("model", "cifar_tiny", CIFAR10)) == 57_994
    assert size(configured("model", "fedavg_cnn", MNIST)) == 582_026
    assert size(configured("model", "cifar_very_tiny", CIFAR10)) == 15_050
    total, before = convolution(3, 64, 3), 64
    for width in (64, 128, 256, 512):
        for _ in range(2):
            total += 2 * before + convolution(before, width, 3) + width * width * 9 + (before != width) * before * width
            before = width
    assert size(configured("model", "preact_resnet18", CIFAR10)) == total + 513 * 10 == 11_171_274


@pytest.mark.parametrize(("member", "parameters"), list(enumerate([1_730_714, 1_086_716, 610_198, 262_161, 63_063])))
def test_members_of_an_online_ensemble_with_a_shared_stem_have_the_published_sizes(member, parameters):
    widths = [width * (5 - member) // 5 for width in (16, 32, 64)]
    assert size(ResNet(CIFAR10, depth=110, widths=widths, stem=16)) == residual(110, 10, 16, tuple(widths)) == parameters


def test_the_student_has_at_most_a_quarter_of_its_teacher_s_parameters():
    student, teacher = (size(configured("model", name, MNIST)) for name in ("fedgen_cnn_student", "fedgen_cnn"))
    assert (student, teacher) == (5_920, 26_434) and 4 * student <= teacher


# ----------------------------------------------------------------------------------------------------------------- stages
@pytest.mark.parametrize(
    ("name", "shapes", "embedding_size"),
    [("wrn_16_2", [(32, 32), (64, 16), (128, 8)], 128), ("resnet8x4", [(64, 32), (128, 16), (256, 8)], 256),
     ("vgg8", [(64, 32), (128, 16), (256, 8), (512, 4)], 512), ("mobilenet_v2", [(12, 16), (16, 8), (48, 4), (160, 2)], 1280),
     ("shufflenet_v1", [(240, 16), (480, 8), (960, 4)], 960), ("shufflenet_v2", [(116, 16), (232, 8), (464, 4)], 1024),
     ("cifar_tiny", [(16, 15), (32, 6), (64, 2)], 128), ("preact_resnet18", [(64, 32), (128, 16), (256, 8), (512, 4)], 512),
     ("resnet18_imagenet", [(64, 8), (128, 4), (256, 2), (512, 1)], 512),
     ("resnet50_imagenet", [(256, 8), (512, 4), (1024, 2), (2048, 1)], 2048)],
)  # fmt: skip
def test_stages_of_a_network_for_32x32(name, shapes, embedding_size):
    model = configured("model", name, CIFAR10).eval()
    output = model(torch.rand(1, 3, 32, 32))
    assert [tuple(stage.shape) for stage in output.stages] == [(1, width, side, side) for width, side in shapes]
    assert output.embedding.shape == (1, model.embedding_size) == (1, embedding_size)


def test_mobilenet_with_stem_stride_1_has_maps_of_twice_the_side():
    model = MobileNetV2(CIFAR10, width_multiplier=0.5, expansion=1, stem_stride=1).eval()
    assert [stage.shape[-1] for stage in model(torch.rand(1, 3, 32, 32)).stages] == [32, 16, 8, 4]


def test_embeddings_are_computed_from_the_last_stage():
    x = torch.rand(2, 1, 8, 8)
    plain = PlainCNN(DIGITS, widths=[4], embedding_size=6)(x)
    assert (plain.embedding >= 0).all() and plain.stages[0].shape == (2, 4, 3, 3)
    model = WideResNet(DIGITS, depth=10, widen_factor=1).eval()
    output = model(x)
    assert (output.stages[-1] < 0).any(), "a stage ends with the sum, without ReLU"
    norm = model.embed[0]
    assert_close(output.embedding, norm(output.stages[-1]).relu().mean((2, 3)))


@pytest.mark.parametrize("activated", [True, False])
def test_a_pre_activation_block_with_zero_residual_returns_its_input(activated):
    """The input itself as in the paper, or the input after BatchNorm and ReLU as in the code of information flow."""
    block, x = PreActBlock(3, 3, 1, activated=activated).eval(), torch.randn(2, 3, 4, 4)
    nn.init.zeros_(block.residual[-1].weight)
    assert torch.equal(block(x), block.activation(x) if activated else x)


def test_a_channel_shuffle_mixes_all_groups():
    """Two groups of two channels: 0 1 | 2 3 become 0 2 1 3. With stride 2 the pooled input is concatenated to the residual."""
    model = ShuffleNetV1(Task("t", (3, 8, 8), 2), stem=8, widths=[24], blocks=[1], groups=2)
    assert [layer.groups for layer in model.modules() if isinstance(layer, nn.ChannelShuffle)] == [1]
    extra = model.extra_stage()[0]
    assert [layer.groups for layer in extra.residual if isinstance(layer, nn.ChannelShuffle)] == [2]
    assert extra.residual[3](torch.arange(4.0).view(1, 4, 1, 1)).flatten().tolist() == [0, 2, 1, 3]
    stem, unit, x = model.stages[0][:3], model.stages[0][3], torch.rand(1, 3, 8, 8)
    assert_close(unit(stem(x))[:, 16:], nn.functional.avg_pool2d(stem(x), 3, 2, 1))


@pytest.mark.parametrize(("name", "head"), [("wrn_40_2", None), ("vgg8", 0.01), ("mobilenet_v2", 0.01), ("resnet8x4", None)])
def test_convolutions_are_initialized_by_fan_out_and_heads_as_published(name, head):
    """Extra stages too. Output channels are counted over all groups."""
    torch.manual_seed(0)
    model = configured("model", name, CIFAR100)
    for layer in [*model.modules(), *model.extra_stage().modules()]:
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 2000:
            expected = math.sqrt(2 / (layer.out_channels * layer.kernel_size[0] ** 2))
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.1)
            assert layer.bias is None or not layer.bias.any()
    assert head is None or model.head.weight.std().item() == pytest.approx(head, rel=0.05)
    assert model.head.bias.any() == (name == "resnet8x4")


# ------------------------------------------------------------------------------------------------------------ all networks
@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_networks_support_functional_calls_and_channels_last(path):
    model = configured("model", path.stem, fitting(path.stem))
    for layer in model.modules():
        assert (
            trains_alone(layer) <= (path.stem == "char_lstm")
            and not isinstance(layer, nn.AdaptiveAvgPool2d)
            and not getattr(layer, "inplace", False)
        )
    x = model.task.inputs(2) if path.stem in TEXT_NETWORKS else torch.rand(2, *model.task.shape)
    expected = model.eval()(x)
    output = model.to(memory_format=torch.channels_last)(channels_last(x))
    assert_close(output.logits, expected.logits, rtol=1e-3, atol=1e-3)
    assert all(stage.is_contiguous(memory_format=torch.channels_last) for stage in output.stages if stage.dim() == 4)


WITHOUT_EXTRA_STAGE = ("mlp", "moon_cnn", "fedavg_cnn", "cifar_tiny", "cifar_very_tiny", *TEXT_NETWORKS)


@pytest.mark.parametrize("path", [path for path in NETWORKS if path.stem not in WITHOUT_EXTRA_STAGE], ids=lambda path: path.stem)
def test_an_extra_stage_keeps_the_shape_and_is_built_like_the_last_stage(path):
    model = configured("model", path.stem, fitting(path.stem)).eval()
    extra = model.extra_stage().eval()
    z = model(torch.rand(2, *model.task.shape)).stages[-1]
    assert extra(z).shape == z.shape and model.embed(extra(z)).shape == (2, model.embedding_size)
    assert not {id(p) for p in extra.parameters()} & {id(p) for p in model.parameters()}
    kinds = {type(layer) for layer in model.stages[-1].modules()} - {nn.MaxPool2d, nn.AvgPool2d}
    assert {type(layer) for layer in extra.modules()} <= kinds
    depths = [sum(isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1) for m in one.modules()) for one in (model.stages[-1], extra)]
    assert depths[0] == depths[1]


def test_networks_without_an_extra_stage_name_those_that_have_one():
    able = {type(configured("model", path.stem, fitting(path.stem))) for path in NETWORKS if path.stem not in WITHOUT_EXTRA_STAGE}
    assert all(kind.extra_stage is not Classifier.extra_stage for kind in able)
    for name in WITHOUT_EXTRA_STAGE:
        model = configured("model", name, fitting(name))
        with pytest.raises(ValueError, match=f"model must be a network with an extra stage .*got '{type(model).__name__}'") as raised:
            model.extra_stage()
        assert all(kind.__name__ in str(raised.value) for kind in able)


SMALL = {
    "resnet": ["model=resnet8", "model.widths=[3,4,5]", "model.stem=2"],
    "wide": ["model=wrn_16_1", "model.depth=10"],
    "vgg": ["model=vgg8", "model.widths=[2,3,4,5,6]"],
    "shuffle_1": ["model=shufflenet_v1", "model.stem=8", "model.widths=[16,24]", "model.groups=2", "model.blocks=[2,2]"],
    "shuffle_2": ["model=shufflenet_v2", "model.stem=4", "model.widths=[8,12]", "model.blocks=[2,2]", "model.embedding_size=16"],
    "preact": ["model=preact_resnet18", "model.widths=[4,6]", "model.blocks=[1,2]"],
    "plain": ["model=cifar_tiny", "model.widths=[4]", "model.embedding_size=8"],
    "vit": ["model=vit_tiny", "model.depth=2", "model.width=8", "model.num_heads=2"],
    "mixer": ["model=mlp_mixer", "model.depth=2", "model.width=8"],
}


@pytest.mark.parametrize("name", SMALL)
def test_networks_trained_together_equal_networks_trained_alone(name):
    assert_equal_alone(*six_clients("fedavg", *SMALL[name]))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (MobileNetV2, {"width_multiplier": 0.125, "expansion": 2, "stem_stride": 1}),
        (TorchvisionResNet, {"name": "resnet18", "weights": None}),
    ],
)
def test_deep_networks_in_one_program_equal_single_networks(kind, options):
    """Only one step is compared, as rounding errors grow with every BatchNorm over maps of one pixel."""
    models = [kind(DIGITS, **options).double() for _ in range(2)]
    state = {key: torch.stack([model.state_dict()[key] for model in models]) for key in models[0].state_dict()}
    x, together = torch.rand(2, 8, 1, 8, 8, dtype=torch.float64), vectorized_copy(models[0])
    output = torch.vmap(lambda tensors, x: functional_call(together, tensors, (x,)))(state, x)
    for k, model in enumerate(models):
        alone = model.train()(x[k])
        assert_close(output.logits[k], alone.logits, rtol=1e-9, atol=1e-9)
        assert_close(state["stages.0.1.running_mean"][k], model.stages[0][1].running_mean, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------------------- torchvision
@pytest.mark.parametrize(("classes", "kept"), [(1000, True), (10, False)])
def test_pretrained_weights_are_those_of_torchvision_and_the_head_is_kept_where_it_fits(monkeypatch, classes, kept):
    pretrained = TorchvisionResNet(Task("t", (3, 32, 32), 1000), name="resnet18", weights=None)
    names = ["conv1", "bn1", None, None, "layer1.0", "layer1.1"]
    parts = (
        {f"stages.0.{place}": name for place, name in enumerate(names)}
        | {f"stages.{k}": f"layer{k + 1}" for k in (1, 2, 3)}
        | {"head": "fc"}
    )
    state = {}
    for key, value in pretrained.state_dict().items():
        (part,) = (part for part in parts if key.startswith(f"{part}."))
        state[f"{parts[part]}{key.removeprefix(part)}"] = value
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: state)
    model = TorchvisionResNet(Task("t", (3, 32, 32), classes), name="resnet18", weights="IMAGENET1K_V1")
    assert all(torch.equal(value, pretrained.stages.state_dict()[key]) for key, value in model.stages.state_dict().items())
    assert torch.equal(model.head.weight, pretrained.head.weight) if kept else model.head.weight.shape == (10, 512)


def test_a_failed_download_of_weights_is_an_error_that_names_the_key(monkeypatch):
    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(ValueError, match="weights must be in torch.hub's cache .*'IMAGENET1K_V1'.*no network"):
        TorchvisionResNet(CIFAR10, name="resnet18", weights="IMAGENET1K_V1")


# ----------------------------------------------------------------------------------------------------------------- refused
TINY, FOUR = Task("t", (3, 7, 9), 2), {"stem": 8, "widths": [16, 24], "blocks": [1, 1]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet(CIFAR10, depth=8, widths=[4, 4, 4], stem=0), "stem must be a positive integer, or null .*, got 0"),
        (lambda: WideResNet(CIFAR10, depth=12, widen_factor=1), "depth must be 6n \\+ 4 .*, got 12"),
        (lambda: WideResNet(CIFAR10, depth=4, widen_factor=1), "depth must be 6n"),
        (lambda: WideResNet(CIFAR10, depth=10, widen_factor=0), "widen_factor must be > 0, got 0"),
        (lambda: VGG(CIFAR10, convolutions=[1, 1], widths=[1] * 5), "convolutions must be five positive integers, got \\[1, 1\\]"),
        (lambda: VGG(CIFAR10, convolutions=[1] * 5, widths=[1, 1, 1, 1, 0]), "widths must be five positive"),
        (lambda: VGG(TINY, convolutions=[1] * 5, widths=[1] * 5), "widths must leave at least one pixel of images \\(3, 7, 9\\)"),
        (lambda: MobileNetV2(CIFAR10, width_multiplier=0.05, expansion=6, stem_stride=2), "width_multiplier must be >= 1/16 .*0.05"),
        (lambda: MobileNetV2(CIFAR10, width_multiplier=0.5, expansion=0, stem_stride=2), "expansion must be > 0, got 0"),
        (lambda: MobileNetV2(CIFAR10, width_multiplier=0.5, expansion=6, stem_stride=3), "stem_stride must be 1 or 2, got 3"),
        (lambda: ShuffleNetV1(CIFAR10, **FOUR, groups=0), "groups must be > 0, got 0"),
        (lambda: ShuffleNetV1(CIFAR10, **FOUR, groups=3), "stem must be a multiple of 4 groups \\(12\\), got 8"),
        (lambda: ShuffleNetV1(CIFAR10, **FOUR | {"widths": [24, 16]}, groups=2), "widths must rise, from the stem's 8"),
        (lambda: ShuffleNetV1(CIFAR10, **FOUR | {"blocks": [1]}, groups=2), "blocks must be a number from 1 to 1000 for each of the 2"),
        (lambda: ShuffleNetV2(CIFAR10, **FOUR | {"stem": 0}, embedding_size=8), "stem must be > 0, got 0"),
        (lambda: ShuffleNetV2(CIFAR10, **FOUR | {"widths": [3, 4]}, embedding_size=8), "widths must be one or more even"),
        (lambda: ShuffleNetV2(CIFAR10, **FOUR | {"blocks": [1, 0]}, embedding_size=8), "blocks must be a number from 1 to 1000"),
        (lambda: ShuffleNetV2(CIFAR10, **FOUR, embedding_size=0), "embedding_size must be > 0, got 0"),
        (lambda: PlainCNN(DIGITS, widths=[4, 4], embedding_size=8), "widths must leave at least one pixel of images \\(1, 8, 8\\)"),
        (lambda: PlainCNN(DIGITS, widths=[], embedding_size=8), "widths must be one or more"),
        (lambda: PlainCNN(DIGITS, widths=[4], embedding_size=0), "embedding_size must be > 0"),
        (lambda: PreActResNet(CIFAR10, blocks=[1], widths=[], activated_shortcuts=True), "widths must be one or more"),
        (lambda: PreActResNet(CIFAR10, blocks=[1], widths=[4, 4], activated_shortcuts=True), "blocks must be .* each of the 2 widths"),
        (lambda: TorchvisionResNet(CIFAR10, name="resnet19", weights=None), "name must be one of resnet18, .*'resnet19'"),
        (lambda: TorchvisionResNet(CIFAR10, name="resnet18", weights="V3"), "weights must be null or one of IMAGENET1K_V1, got 'V3'"),
        (lambda: TorchvisionResNet(MNIST, name="resnet18", weights="IMAGENET1K_V1"), "weights must be null for images of 1 channels"),
    ],
)
def test_invalid_networks_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
