"""Feature shift and label noise: images, labels, the levels of clients, and federations of such clients."""

import colorsys
import csv
from dataclasses import fields, replace
from math import ceil, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy import ndimage
from torch.testing import assert_close

from fedkd.data import client_shift
from fedkd.data.client_shift import ClientView, Shift, apply_view, chunk_size, full_scale
from fedkd.data.digits import Digits
from fedkd.seed import Seed
from fedkd.types import Examples, Partition, flatten
from tests.processes import TINY, Command, differing, quick, rows, until
from tests.small_runs import ROOT, same_tensors, small_run, small_simulation

NEUTRAL = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "shift" / "none.yaml"))
LEVELS = {
    "rotation": 30.0, "domains": [0, 90, 180], "noise": 0.2, "blur": 1.0, "color_jitter": 0.5, "label_noise": 0.4,
}  # fmt: skip
IMAGE_PARAMETERS = [name for name in LEVELS if name != "label_noise"]
OVERRIDES = [f"shift.{name}={value}" for name, value in LEVELS.items()]

_, TRAIN, TEST = Digits()()
PARTITION = Partition(
    [index.numpy() for index in torch.arange(1442).split([400, 300, 742])], [index.numpy() for index in torch.arange(355).split(120)]
)


def shift(**changes) -> Shift:
    return instantiate({**NEUTRAL, **changes})


def apply(method: Shift, partition: Partition = PARTITION, seed: int = 0, train: Examples = TRAIN):
    """Training examples and local test sets of three clients."""
    return method(train, TEST, partition, 10, Seed(seed))


def stored(examples: Examples) -> torch.Tensor:
    """The images as unsigned bytes."""
    return examples.gather(examples.storage_rows(torch.arange(len(examples))))


def smooth_images(channels: int = 1, side: int = 28, number: int = 20) -> torch.Tensor:
    """Smooth random images, unsigned bytes."""
    random = np.random.default_rng(0).random((number, channels, side, side))
    return torch.from_numpy((255 * ndimage.gaussian_filter(random, (0, 0, 1, 1)) ** 2).astype(np.uint8))


def viewed(view: ClientView, x: torch.Tensor, full: float = 255.0) -> torch.Tensor:
    return apply_view(view, x, full, Seed(0).torch())


# ------------------------------------------------------------------------------------------------------------------- neutral


def test_neutral_parameters_change_nothing():
    train, test = apply(shift())
    for shards, examples, index in ((train, TRAIN, PARTITION.train), (test, TEST, PARTITION.test)):
        for shard, rows_ in zip(shards, index):
            assert shard.x is examples.x and torch.equal(shard.rows, torch.from_numpy(rows_)) and torch.equal(shard.y, examples.y[rows_])
    assert apply(shift(label_noise=0.5, noisy_client_fraction=0.0))[0][0].x is TRAIN.x
    assert viewed(ClientView(), smooth_images()).equal(smooth_images())


@pytest.mark.parametrize("name", LEVELS)
def test_a_parameter_changes_either_images_or_training_labels(name):
    (train, test), (plain_train, plain_test) = apply(shift(**{name: LEVELS[name]})), apply(shift())
    changed = [not torch.equal(stored(now), stored(before)) for now, before in zip(train + test, plain_train + plain_test)]
    assert any(changed) == (name in IMAGE_PARAMETERS)
    assert all(torch.equal(now.y, before.y) for now, before in zip(test, plain_test))
    assert all(torch.equal(now.y, before.y) == (name in IMAGE_PARAMETERS) for now, before in zip(train, plain_train))
    assert all(now.x.dtype == torch.uint8 and now.x.max() <= 16 and now.scale == 16 for now in train + test)


# ---------------------------------------------------------------------------------------------------------------- the images


@pytest.mark.parametrize("quarters", [-1, 1, 2])
@pytest.mark.parametrize("side, full", [(28, 255.0), (8, 16.0)])
def test_a_rotation_by_90_degrees_is_exact(quarters, side, full):
    x = (smooth_images(3, side).float() * full / 255).round().byte()
    assert torch.equal(viewed(ClientView(domain=90.0 * quarters), x, full), torch.rot90(x, quarters, (-2, -1)))
    assert torch.equal(viewed(ClientView(rotation=30.0, domain=60.0), x, full), torch.rot90(x, 1, (-2, -1))), "angles add up"


@pytest.mark.parametrize("angle", [-75.0, 20.0, 45.0])
def test_a_rotation_is_scipy_s(angle):
    x = smooth_images()
    expected = ndimage.rotate(x.double().numpy(), angle, axes=(-1, -2), reshape=False, order=1, mode="grid-constant", prefilter=False)
    assert np.abs(viewed(ClientView(rotation=angle), x).numpy() - expected).max() < 0.51


@pytest.mark.parametrize("deviation", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("shape", [(1, 28), (3, 8)])
def test_a_blur_is_scipy_s(deviation, shape):
    x = smooth_images(*shape)
    reach = min(ceil(3 * deviation), shape[1] - 1)
    expected = ndimage.gaussian_filter(x.double().numpy(), deviation, mode="mirror", radius=(0, 0, reach, reach), axes=None)
    assert np.abs(viewed(ClientView(blur=deviation), x).numpy() - expected).max() < 0.51


@pytest.mark.parametrize("deviation", [1e-9, 0.7, 1e9])
def test_a_blur_does_not_change_a_constant_image(deviation):
    x = torch.full((2, 3, 9, 12), 77, dtype=torch.uint8)
    assert torch.equal(viewed(ClientView(blur=deviation), x), x)


@pytest.mark.parametrize("level", [0.02, 0.1])
@pytest.mark.parametrize("full", [255.0, 16.0])
def test_noise_has_the_configured_deviation(level, full):
    """On medium gray, where nothing is clipped. Rounding to bytes adds a variance of 1/12."""
    x = torch.full((500, 1, 28, 28), int(full / 2), dtype=torch.uint8)
    difference = viewed(ClientView(noise=level), x, full).double() - x
    if level * full > 0.5:  # smaller noise is lost in rounding
        assert difference.std().item() == pytest.approx(sqrt((level * full) ** 2 + 1 / 12), rel=0.01)
    assert abs(difference.mean().item()) < 0.01 * full * level + 0.01
    dark = viewed(ClientView(noise=level), torch.zeros_like(x), full)
    assert dark.max() > 0 and dark.double().mean() < full / 4, "clipped, not wrapped around"


def test_brightness_contrast_and_hue_equal_their_definitions():
    x = smooth_images(3)
    floats = x.double() / 255
    bright = (floats * 1.3).clamp(0, 1) * 255
    assert (viewed(ClientView(brightness=1.3), x) - bright).abs().max() < 0.51
    gray = (floats * torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)[:, None, None]).sum(1).mean((-2, -1))[:, None, None, None]
    contrast = ((floats - gray) * 0.6 + gray).clamp(0, 1) * 255
    assert (viewed(ClientView(contrast=0.6), x) - contrast).abs().max() < 0.52
    turned = viewed(ClientView(hue=0.2), x)[0].permute(1, 2, 0).reshape(-1, 3)
    for before, after in zip(floats[0].permute(1, 2, 0).reshape(-1, 3).tolist(), turned.tolist()):
        hue, *rest = colorsys.rgb_to_hsv(*before)
        assert np.abs(255 * np.array(colorsys.hsv_to_rgb((hue + 0.2) % 1, *rest)) - after).max() < 0.6


def test_levels_are_uniform_within_their_bounds():
    views = shift(**LEVELS, noisy_client_fraction=0.5).views(200, 3, Seed(0))
    bounds = {
        "rotation": (-30, 30), "noise": (0, 0.2), "blur": (0, 1), "brightness": (0.5, 1.5), "contrast": (0.5, 1.5), "hue": (-0.25, 0.25),
    }  # fmt: skip
    for name, (low, high) in bounds.items():
        values = np.array([getattr(view, name) for view in views])
        assert low <= values.min() < low + 0.05 * (high - low) and high - 0.05 * (high - low) < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=4 * (high - low) / sqrt(12 * 200))
    assert [view.domain for view in views[:4]] == [0, 90, 180, 0]
    assert sum(view.label_noise > 0 for view in views) == 100 and max(view.label_noise for view in views) <= 0.4
    assert {view.hue for view in shift(color_jitter=0.5).views(5, 1, Seed(0))} == {0.0}, "gray images have no hue"
    equal = shift(**LEVELS, per_client="same").views(5, 3, Seed(0))
    assert {(view.noise, view.blur, view.label_noise) for view in equal} == {(0.2, 1.0, 0.4)}
    assert len({view.rotation for view in equal}) == 5


def test_a_level_depends_neither_on_other_parameters_nor_on_the_number_of_clients():
    together = shift(**LEVELS).views(6, 3, Seed(0))
    for parameter, value in LEVELS.items():
        alone = shift(**{parameter: value}).views(3, 3, Seed(0))
        names = {"domains": ["domain"], "color_jitter": ["brightness", "contrast", "hue"]}.get(parameter, [parameter])
        assert all(getattr(a, name) == getattr(b, name) for a, b in zip(alone, together) for name in names), parameter
    assert together != shift(**LEVELS).views(6, 3, Seed(1))
    noise = [stored(apply(shift(noise=0.2, per_client="same", **more))[0][0]) for more in ({}, {"label_noise": 0.5})]
    assert torch.equal(*noise)
    labels = [apply(shift(label_noise=0.4, **more))[0][1].y for more in ({}, {"noise": 0.3, "blur": 1.0, "rotation": 9.0})]
    assert torch.equal(*labels)


def test_training_and_test_images_of_a_client_have_the_same_shift_and_different_noise():
    everything = Partition([np.arange(100)] * 2, [np.arange(100)] * 2)
    train, test = shift(rotation=90.0, blur=1.0, color_jitter=0.3)(TRAIN, TRAIN, everything, 10, Seed(0))
    assert all(torch.equal(stored(a), stored(b)) for a, b in zip(train, test))
    train, test = shift(noise=0.3, per_client="same")(TRAIN, TRAIN, everything, 10, Seed(0))
    assert not torch.equal(stored(train[0]), stored(test[0])) and not torch.equal(stored(train[0]), stored(train[1]))


def test_clients_share_one_storage_and_have_their_own_versions_of_a_shared_example():
    overlap = Partition([np.array([3, 5, 9]), np.array([5, 9])], [np.array([1, 2]), np.array([2]), np.array([], int)])
    train, test = apply(shift(domains=[0, 180]), Partition(overlap.train, overlap.test[:2]))
    assert len({id(shard.x) for shard in train}) == 1 and len({id(shard.x) for shard in test}) == 1
    assert torch.equal(stored(train[0]), TRAIN.x[[3, 5, 9]]) and torch.equal(stored(train[1]), TRAIN.x[[5, 9]].rot90(2, (-2, -1)))
    assert torch.equal(stored(test[0])[1:], TEST.x[[2]]) and torch.equal(stored(test[1]), TEST.x[[2]].rot90(2, (-2, -1)))
    assert torch.equal(train[0].images(torch.tensor([1])), TRAIN.images(torch.tensor([5])))
    assert torch.equal(train[0].subset([2]).images(torch.tensor([0])), TRAIN.images(torch.tensor([9])))
    none = apply(shift(noise=0.1), Partition([np.array([3])], [np.array([], int)]))[1][0]
    assert len(none) == 0 and len(none.images(torch.arange(0))) == 0


def test_the_number_of_threads_changes_no_bit():
    before = torch.get_num_threads()
    seen = []
    for number in (1, 2):
        torch.set_num_threads(number)
        train, test = apply(shift(**LEVELS))
        seen.append(torch.cat([train[0].x, test[0].x]))
        assert torch.get_num_threads() == number
    torch.set_num_threads(before)
    assert torch.equal(*seen)


def test_images_with_scale_1_are_clipped_at_255():
    """``scale`` is 1 where networks receive 0..255, as in the public code of FedGen for CelebA."""
    assert full_scale(TRAIN) == 16 and full_scale(replace(TRAIN, scale=1.0)) == 255
    bright = replace(TRAIN, x=smooth_images(1, 8, 1442), scale=1.0)
    assert apply(shift(noise=0.1), train=bright)[0][0].x.max() > 200


# ---------------------------------------------------------------------------------------------------------------- the labels


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["symmetric", "pair"])
def test_the_number_of_wrong_labels_is_the_configured_fraction(kind, share):
    train, _ = apply(shift(label_noise=share, label_noise_kind=kind, per_client="same"))
    for now, index in zip(train, PARTITION.train):
        wrong = now.y != TRAIN.y[index]
        assert abs(wrong.sum().item() - share * len(index)) < 1
        step = (now.y - TRAIN.y[index])[wrong] % 10
        if share == 1.0:
            assert set(step.tolist()) == ({1} if kind == "pair" else set(range(1, 10)))
            assert kind == "pair" or torch.bincount(step)[1:].min() > 0.5 * len(index) / 9
        assert now.y.dtype == torch.int64 and now.y.max() < 10


@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 7, 9)])
def test_the_noise_of_large_images_does_not_depend_on_the_size_of_chunks(shape, monkeypatch):
    x = torch.randint(0, 16, (83, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    examples = Examples(x, torch.zeros(83, dtype=torch.int64), 16.0, (0.0,) * shape[0], (1.0,) * shape[0])
    partition = Partition([np.arange(83)], [np.arange(0)])
    whole = stored(shift(noise=0.2)(examples, examples, partition, 10, Seed(0))[0][0])
    monkeypatch.setattr(client_shift, "CHUNK_VALUES", 40 * int(np.prod(shape)))
    assert chunk_size(int(np.prod(shape))) == 32
    assert torch.equal(stored(shift(noise=0.2)(examples, examples, partition, 10, Seed(0))[0][0]), whole)


def test_a_matrix_gives_noise_by_class():
    matrix = np.eye(10)
    matrix[3], matrix[7] = np.eye(10)[8], [0.5, 0.5, *[0.0] * 8]
    noise = {"label_noise": 1.0, "label_noise_kind": "matrix", "per_client": "same"}
    train, _ = apply(shift(**noise, label_noise_matrix=matrix.tolist()))
    now, before = torch.cat([one.y for one in train]), torch.cat([TRAIN.y[index] for index in PARTITION.train])
    others = (before != 3) & (before != 7)
    assert torch.equal(now[others], before[others]) and set(now[before == 3].tolist()) == {8}
    assert set(now[before == 7].tolist()) == {0, 1} and abs((now[before == 7] == 0).double().mean() - 0.5) < 0.2
    wrong = {"be given with": None, "hold .* whose sum is 1": [[0.5, 0.6], [0, 1]], "have .* of 10 classes": np.eye(2).tolist()}
    for message, given in wrong.items():
        with pytest.raises((ValueError, InstantiationException), match=f"label_noise_matrix must {message}"):
            apply(shift(**noise, label_noise_matrix=given))


def test_the_number_of_wrong_labels_is_rounded_at_random():
    two = Partition([np.arange(2 * k, 2 * k + 2) for k in range(700)], [np.arange(0)] * 700)
    train, _ = apply(shift(label_noise=0.1, per_client="same"), two)
    wrong = [(now.y != TRAIN.y[index]).sum().item() for now, index in zip(train, two.train)]
    assert set(wrong) == {0, 1} and np.mean(wrong) == pytest.approx(0.2, abs=4 * sqrt(0.2 * 0.8 / 700))


@pytest.mark.parametrize("share, number", [(0.0, 0), (0.4, 4), (0.25, 3), (1.0, 10)])
def test_the_number_of_clients_with_wrong_labels_is_the_configured_fraction(share, number):
    ten = Partition([index.numpy() for index in torch.arange(1440).split(144)], [np.arange(0)] * 10)
    train, _ = apply(shift(label_noise=1.0, noisy_client_fraction=share, per_client="same"), ten)
    assert sum(not torch.equal(now.y, TRAIN.y[index]) for now, index in zip(train, ten.train)) == number
    levels = [
        tuple(view.label_noise for view in shift(label_noise=1.0, noisy_client_fraction=0.4).views(10, 1, Seed(seed))) for seed in range(9)
    ]
    assert len({tuple(np.flatnonzero(level)) for level in levels}) > 5, "the clients are drawn"


def test_label_noise_needs_two_classes():
    with pytest.raises(ValueError, match="label_noise must be 0 where there is only one class, got 0.5"):
        shift(label_noise=0.5)(TRAIN, TEST, PARTITION, 1, Seed(0))


# ------------------------------------------------------------------------------------------------------------- in a federation


def test_clients_with_all_shifts_trained_together_equal_clients_trained_alone():
    options = (*OVERRIDES, "strategy=fedavg", "precision=float64", "clients_per_round=5", "batch_size=8")
    alone, together = small_run(*options), small_run(*options, "clients_per_vmap=3")
    for (key, value), other in zip(flatten(together.state).items(), flatten(alone.state).values()):
        assert_close(value, other, rtol=1e-11, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")
    assert not same_tensors(small_run(*options[6:]).state, alone.state), "the shift changes the result"


def test_held_out_examples_have_the_client_s_images_and_true_labels():
    simulation, _ = small_simulation(
        "shift.domains=[90]", "shift.label_noise=1.0", "shift.per_client=same", "validation_fraction=0.3", "evaluation.split=validation"
    )
    for shard, index in zip(simulation.client_data.local_test, simulation.partition.test):
        assert torch.equal(stored(shard), simulation.train.x[index].rot90(1, (-2, -1))) and torch.equal(shard.y, simulation.train.y[index])
    assert simulation.global_test.x is simulation.train.x, "the global test set is not shifted"


def test_every_parameter_is_in_the_hash():
    hashes = [
        small_simulation(*overrides)[0].hash
        for overrides in ([], *([option] for option in OVERRIDES), ["shift.noise=0.1", "shift.per_client=same"])
    ]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "shift").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_option_changes_the_parameter_in_its_name(path):
    parameter = {"color": "color_jitter"}.get(path.stem, path.stem)
    simulation, _ = small_simulation(f"shift={path.stem}")
    changed = {field.name for field in fields(Shift) if simulation.config.shift[field.name] != NEUTRAL[field.name]}
    assert changed - {"noisy_client_fraction", "per_client"} == {parameter} - {"none"}
    images = [
        not torch.equal(stored(shard), simulation.train.x[index])
        for shard, index in zip(simulation.client_data.train, simulation.partition.train)
    ]
    labels = [
        not torch.equal(shard.y, simulation.train.y[index])
        for shard, index in zip(simulation.client_data.train, simulation.partition.train)
    ]
    assert any(images) == (parameter in IMAGE_PARAMETERS) and any(labels) == (parameter == "label_noise")


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "shift.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_shift_csv_has_the_levels_of_every_client(tmp_path):
    given = ("engine=local", *TINY, "rounds=1", "output=runs")
    ended = quick(tmp_path, *given, *OVERRIDES, "shift.noisy_client_fraction=0.5")
    assert ended.code == 0, ended.err
    rows_ = table(ended.folder)
    assert list(rows_[0]) == ["client_id", "rotation", "domain", "noise", "blur", "brightness", "contrast", "hue", "label_noise"]
    simulation, _ = small_simulation(*TINY, *OVERRIDES, "shift.noisy_client_fraction=0.5", "strategy=fedgen")
    views = shift(**LEVELS, noisy_client_fraction=0.5).views(6, 1, simulation.seed / "shift")
    for client, (row, view) in enumerate(zip(rows_, views, strict=True)):
        assert row["client_id"] == str(client)
        assert all(float(row[name]) == getattr(view, name) for name in row if name not in ("client_id", "label_noise"))
        wrong = (simulation.client_data.train[client].y != simulation.train.y[simulation.partition.train[client]]).double().mean().item()
        assert float(row["label_noise"]) == pytest.approx(wrong)
        assert abs(wrong - view.label_noise) < 1 / len(simulation.partition.train[client])
    assert sum(float(row["label_noise"]) > 0 for row in rows_) == 3
    assert not (quick(tmp_path, *given).folder / "shift.csv").exists(), "no file without a shift"


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    given = ("engine=local", *TINY, *OVERRIDES, "rounds=25", "output=runs")
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = quick(tmp_path / "whole", *given)
    command = Command(given, tmp_path / "killed", forked=True)
    until(lambda: rows(tmp_path / "killed") >= 3, what="the third row")
    command.kill()
    command.end()
    assert 3 <= rows(tmp_path / "killed") < 25, "it was killed before its end"
    resumed = quick(tmp_path / "killed", *given)
    assert resumed.code == 0 and list(differing(resumed.folder, whole.folder)) == []
