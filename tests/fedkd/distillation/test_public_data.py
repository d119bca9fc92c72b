"""Public sets, and what clients hold out: who has what, and what nobody has."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedkd.config.build import call_part
from fedkd.distillation.public_data import Noise, OtherDataset
from fedkd.partition.validation_split import split_validation
from fedkd.seed import Seed
from fedkd.types import Examples, Task
from tests.conftest import STRATEGIES, options, settle

FEDDF = ("strategy=feddf", "strategy.steps=2")


def rows(examples: Examples) -> list[int]:
    return examples.rows.tolist()


def indices(shards) -> list[int]:
    return [int(i) for index in shards for i in index]


# -------------------------------------------------------------------------------------------------------------- hold out
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_of_each_client_the_same_share_is_held_out_and_one_example_stays(share):
    shards = [np.arange(0, 100), np.arange(100, 101), np.arange(200, 207)]
    stays, goes = split_validation(shards, share, Seed(0))
    for before, kept, gone in zip(shards, stays, goes):
        assert sorted([*kept, *gone]) == before.tolist() and not set(kept) & set(gone)
        assert len(gone) == min(int(share * len(before)), len(before) - 1) and (np.diff(kept) > 0).all()
    assert len(stays[1]) == 1


def test_what_a_client_holds_out_depends_on_nobody_else():
    shards = [np.arange(50), np.arange(50, 90)]
    both, alone = split_validation(shards, 0.5, Seed(0)), split_validation(shards[:1], 0.5, Seed(0))
    assert np.array_equal(both[1][0], alone[1][0])
    other = split_validation(shards, 0.5, Seed(1))
    assert not np.array_equal(both[1][0], other[1][0]) and not np.array_equal(both[1][0], np.arange(25))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_public_set_is_held_out_of_every_client(share):
    without, _ = settle(*FEDDF, "public_data=client_images")
    home, _ = settle(*FEDDF, "public_data=held_out", f"public_data.share={share}")
    before, after = without.partition.train, home.partition.train
    assert sorted([*indices(after), *rows(home.held.public_data)]) == sorted(indices(before)) and not set(indices(after)) & set(
        rows(home.held.public_data)
    )
    for old, new in zip(before, after):
        assert len(new) == len(old) - int(share * len(old)) and set(new) <= set(old)
    for client in range(6):
        assert rows(home.client(client, 1).data) == after[client].tolist() and home.client(client, 1).public_data is home.held.public_data
    assert home.federation().server.public_data is home.held.public_data and not set(rows(home.held.public_data)) & set(indices(after))


def test_validation_and_public_set_are_apart():
    home, _ = settle(*FEDDF, "public_data=held_out", "public_data.share=0.3", "validation_fraction=0.2")
    parts = indices(home.partition.train), rows(home.held.public_data), rows(home.held.validation)
    assert len(set().union(*parts)) == sum(map(len, parts)) == len(home.train)
    assert torch.equal(home.held.validation.y, home.train.y[home.held.validation.rows]), "these have labels"
    for client, whole in enumerate(settle(*FEDDF, "public_data=client_images")[0].partition.train):
        assert len(set(parts[2]) & set(whole.tolist())) == int(0.2 * len(whole))
        assert len(home.partition.train[client]) == len(whole) - int(0.2 * len(whole)) - int(0.3 * (len(whole) - int(0.2 * len(whole))))


def test_too_small_a_share_of_too_few_examples_is_refused():
    given = (*FEDDF, "public_data=held_out", "public_data.share=0.001")
    with pytest.raises(ValueError, match=r"public\.share must take an example of one client at least .* got 0\.001"):
        settle(*given)


# ---------------------------------------------------------------------------------------------------------- the others
def test_the_training_images_are_what_the_clients_train_on():
    home, _ = settle(*FEDDF, "public_data=client_images", "validation_fraction=0.2")
    assert sorted(rows(home.held.public_data)) == sorted(indices(home.partition.train))
    assert torch.equal(home.held.public_data.images(torch.arange(9)), home.train.images(home.held.public_data.rows[:9]))


@pytest.mark.parametrize("public", ["held_out", "client_images", "noise", "other_dataset"])
def test_a_public_set_has_no_labels(public):
    more = {"noise": ["public_data.size=20"], "other_dataset": ["data@public_data.data=digits"]}.get(public, [])
    home, _ = settle(*FEDDF, f"public_data={public}", *more)
    assert (
        (home.held.public_data.y == 0).all() and len(home.held.public_data.y) == len(home.held.public_data) > 0 and (home.train.y > 0).any()
    )
    assert len(home.held.public_data.images(torch.arange(3))) == 3


def test_another_data_set_is_scaled_as_the_clients_images_are():
    """White is one in both, and so it is after the clients' mean and deviation."""
    own = Examples(torch.tensor([0, 16], dtype=torch.uint8).view(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64), 16.0, (0.5,), (0.25,))
    task, other = (
        Task("own", (1, 1, 1), 3),
        replace(own, x=torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), scale=255.0, mean=(0.1,), digest="d"),
    )
    found = OtherDataset(data=lambda: (Task("other", (1, 1, 1), 9), other, other))(task, own, own, Seed(0))
    assert torch.equal(found.images(torch.arange(2)), own.images(torch.arange(2))) and found.digest == "d"
    assert other.mean == (0.1,)


def test_another_data_set_is_part_of_the_run_s_identity():
    assert (
        settle(*FEDDF, "public_data=client_images")[0].hash
        != settle(*FEDDF, "public_data=other_dataset", "data@public_data.data=digits")[0].hash
    )


def test_another_data_set_of_another_shape_or_none_is_refused_by_its_key():
    own = Examples(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), 16.0, (0.0,), (1.0,))
    source = OtherDataset(data=lambda: (Task("letters", (1, 28, 28), 26), own, own))
    with pytest.raises(
        ValueError, match=r"public\.data must have images of the clients' shape \(1, 8, 8\).* as letters has not, got \(1, 28, 28\)"
    ):
        call_part("public_data", source, Task("digits", (1, 8, 8), 10), own, own, Seed(0))


# ------------------------------------------------------------------------------------------------------------- synthetic
def synthetic(exponent: float, shape=(1, 64, 64), size: int = 40, seed: int = 0, scale: float = 255.0, brightest: float = 1.0) -> Examples:
    like = Examples(torch.empty(0), torch.empty(0), scale, (0.5,) * shape[0], (0.25,) * shape[0])
    return Noise(size=size, exponent=exponent)(Task("toy", shape, 4, max_pixel=brightest), like, like, Seed(seed))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.5])
def test_the_amplitude_of_noise_falls_with_frequency_as_it_says(exponent):
    """The slope of its logarithm over that of the frequency, in rings of the spectrum."""
    image = synthetic(exponent).x.numpy().astype(float)
    amplitude = np.abs(np.fft.fft2(image)).mean((0, 1))
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None]) * 64
    rings = np.arange(2, 30)
    means = [amplitude[(frequency >= ring - 0.5) & (frequency < ring + 0.5)].mean() for ring in rings]
    slope = np.polyfit(np.log(rings), np.log(means), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.05)


def test_noise_is_the_seed_s_and_every_image_another():
    first, again, other = synthetic(1.0), synthetic(1.0), synthetic(1.0, seed=1)
    assert torch.equal(first.x, again.x) and not torch.equal(first.x, other.x) and len(first.x.flatten(1).unique(dim=0)) == 40


def test_more_images_than_are_made_at_once_are_all_unlike_and_begin_alike():
    many, few = synthetic(1.0, shape=(1, 5, 6), size=600), synthetic(1.0, shape=(1, 5, 6), size=300)
    assert len(many.x.flatten(1).unique(dim=0)) == 600 and torch.equal(many.x[:256], few.x[:256]) and len(many) == 600


@pytest.mark.parametrize(("scale", "brightest", "top"), [(255.0, 1.0, 255), (16.0, 1.0, 16), (1.0, 255.0, 255)])
def test_noise_reaches_from_black_to_full_brightness(scale, brightest, top):
    """Of bytes, of digits, and of bytes that are kept as they are."""
    noise = synthetic(1.0, shape=(3, 8, 8), scale=scale, max_pixel=brightest)
    assert noise.x.dtype == torch.uint8 and noise.x.shape == (40, 3, 8, 8)
    assert (noise.x.amin((1, 2, 3)) == 0).all() and (noise.x.amax((1, 2, 3)) == top).all()
    assert noise.images(torch.arange(40)).max().item() == pytest.approx((brightest - 0.5) / 0.25)


# -------------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_that_needs_a_public_set_is_refused_without_one_and_no_other(name):
    given = [one for one in options(name) if not one.startswith("public=")]
    if name in ("feddf", "feddfusion", "fedmd"):
        with pytest.raises(ValueError, match=f"public must be a public set, as strategy {name} distils on one: public_data=held_out"):
            settle(f"strategy={name}", *given)
    else:
        home, _ = settle(f"strategy={name}", *given)
        assert home.held.public_data is None and home.federation().server.public_data is None and home.client(0, 1).public_data is None
