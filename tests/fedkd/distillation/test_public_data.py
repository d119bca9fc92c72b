"""Public data and held-out examples: who has which examples."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedkd.config.build import call_part
from fedkd.distillation.public_data import Noise, OtherDataset
from fedkd.partition.validation_split import split_validation
from fedkd.seed import Seed
from fedkd.types import Examples, Task
from tests.small_runs import STRATEGIES, small_simulation, strategy_overrides

FEDDF = ("strategy=feddf", "strategy.steps=2")


def rows(examples: Examples) -> list[int]:
    return examples.rows.tolist()


def indices(shards) -> list[int]:
    return [int(i) for index in shards for i in index]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_split_validation(share):
    shards = [np.arange(0, 100), np.arange(100, 101), np.arange(200, 207)]
    stays, goes = split_validation(shards, share, Seed(0))
    for before, kept, gone in zip(shards, stays, goes):
        assert sorted([*kept, *gone]) == before.tolist() and not set(kept) & set(gone)
        assert len(gone) == min(int(share * len(before)), len(before) - 1) and (np.diff(kept) > 0).all()
    assert len(stays[1]) == 1


def test_split_of_a_client_is_independent_of_others():
    shards = [np.arange(50), np.arange(50, 90)]
    both, alone = split_validation(shards, 0.5, Seed(0)), split_validation(shards[:1], 0.5, Seed(0))
    assert np.array_equal(both[1][0], alone[1][0])
    other = split_validation(shards, 0.5, Seed(1))
    assert not np.array_equal(both[1][0], other[1][0]) and not np.array_equal(both[1][0], np.arange(25))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_held_out_of_every_client(share):
    without, _ = small_simulation(*FEDDF, "public_data=client_images")
    simulation, _ = small_simulation(*FEDDF, "public_data=held_out", f"public_data.share={share}")
    before, after = without.partition.train, simulation.partition.train
    assert sorted([*indices(after), *rows(simulation.client_data.public_data)]) == sorted(indices(before)) and not set(
        indices(after)
    ) & set(rows(simulation.client_data.public_data))
    for old, new in zip(before, after):
        assert len(new) == len(old) - int(share * len(old)) and set(new) <= set(old)
    for client in range(6):
        assert (
            rows(simulation.client(client, 1).data) == after[client].tolist()
            and simulation.client(client, 1).public_data is simulation.client_data.public_data
        )
    assert simulation.federation().server.public_data is simulation.client_data.public_data and not set(
        rows(simulation.client_data.public_data)
    ) & set(indices(after))


def test_validation_and_public_data_are_disjoint():
    simulation, _ = small_simulation(*FEDDF, "public_data=held_out", "public_data.share=0.3", "validation_fraction=0.2")
    parts = indices(simulation.partition.train), rows(simulation.client_data.public_data), rows(simulation.client_data.validation)
    assert len(set().union(*parts)) == sum(map(len, parts)) == len(simulation.train)
    assert torch.equal(simulation.client_data.validation.y, simulation.train.y[simulation.client_data.validation.rows]), (
        "validation examples have labels"
    )
    for client, whole in enumerate(small_simulation(*FEDDF, "public_data=client_images")[0].partition.train):
        assert len(set(parts[2]) & set(whole.tolist())) == int(0.2 * len(whole))
        assert len(simulation.partition.train[client]) == len(whole) - int(0.2 * len(whole)) - int(
            0.3 * (len(whole) - int(0.2 * len(whole)))
        )


def test_share_without_examples_is_an_error():
    given = (*FEDDF, "public_data=held_out", "public_data.share=0.001")
    with pytest.raises(ValueError, match=r"^public_data\.share must hold out at least one example of one client .* got 0\.001"):
        small_simulation(*given)


def test_client_images():
    simulation, _ = small_simulation(*FEDDF, "public_data=client_images", "validation_fraction=0.2")
    assert sorted(rows(simulation.client_data.public_data)) == sorted(indices(simulation.partition.train))
    assert torch.equal(
        simulation.client_data.public_data.images(torch.arange(9)), simulation.train.images(simulation.client_data.public_data.rows[:9])
    )


@pytest.mark.parametrize("public", ["held_out", "client_images", "noise", "other_dataset"])
def test_public_data_have_no_labels(public):
    more = {"noise": ["public_data.size=20"], "other_dataset": ["data@public_data.data=digits"]}.get(public, [])
    simulation, _ = small_simulation(*FEDDF, f"public_data={public}", *more)
    assert (
        (simulation.client_data.public_data.y == 0).all()
        and len(simulation.client_data.public_data.y) == len(simulation.client_data.public_data) > 0
        and (simulation.train.y > 0).any()
    )
    assert len(simulation.client_data.public_data.images(torch.arange(3))) == 3


def test_other_dataset_is_normalized_like_the_clients():
    """White is 1 in both data sets, also after normalization with the clients' mean and deviation."""
    client_examples = Examples(
        torch.tensor([0, 16], dtype=torch.uint8).view(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64), 16.0, (0.5,), (0.25,)
    )
    task, other = (
        Task("own", (1, 1, 1), 3),
        replace(client_examples, x=torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), scale=255.0, mean=(0.1,), digest="d"),
    )
    examples = OtherDataset(data=lambda: (Task("other", (1, 1, 1), 9), other, other))(task, client_examples, client_examples, Seed(0))
    assert torch.equal(examples.images(torch.arange(2)), client_examples.images(torch.arange(2))) and examples.digest == "d"
    assert other.mean == (0.1,)


def test_other_dataset_changes_the_hash():
    assert (
        small_simulation(*FEDDF, "public_data=client_images")[0].hash
        != small_simulation(*FEDDF, "public_data=other_dataset", "data@public_data.data=digits")[0].hash
    )


def test_other_dataset_with_another_shape_is_an_error():
    client_examples = Examples(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), 16.0, (0.0,), (1.0,))
    source = OtherDataset(data=lambda: (Task("letters", (1, 28, 28), 26), client_examples, client_examples))
    with pytest.raises(
        ValueError, match=r"^public_data\.data must have images of the clients' shape \(1, 8, 8\).* unlike letters, got \(1, 28, 28\)"
    ):
        call_part("public_data", source, Task("digits", (1, 8, 8), 10), client_examples, client_examples, Seed(0))


def noise_images(
    exponent: float, shape=(1, 64, 64), size: int = 40, seed: int = 0, scale: float = 255.0, max_pixel: float = 1.0
) -> Examples:
    like = Examples(torch.empty(0), torch.empty(0), scale, (0.5,) * shape[0], (0.25,) * shape[0])
    return Noise(size=size, exponent=exponent)(Task("toy", shape, 4, max_pixel=max_pixel), like, like, Seed(seed))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.5])
def test_noise_spectrum(exponent):
    """The slope of the logarithmic amplitude over the logarithmic frequency, in rings of the spectrum."""
    image = noise_images(exponent).x.numpy().astype(float)
    amplitude = np.abs(np.fft.fft2(image)).mean((0, 1))
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None]) * 64
    rings = np.arange(2, 30)
    means = [amplitude[(frequency >= ring - 0.5) & (frequency < ring + 0.5)].mean() for ring in rings]
    slope = np.polyfit(np.log(rings), np.log(means), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.05)


def test_noise_depends_on_the_seed():
    first, again, other = noise_images(1.0), noise_images(1.0), noise_images(1.0, seed=1)
    assert torch.equal(first.x, again.x) and not torch.equal(first.x, other.x) and len(first.x.flatten(1).unique(dim=0)) == 40


def test_noise_in_several_chunks():
    many, few = noise_images(1.0, shape=(1, 5, 6), size=600), noise_images(1.0, shape=(1, 5, 6), size=300)
    assert len(many.x.flatten(1).unique(dim=0)) == 600 and torch.equal(many.x[:256], few.x[:256]) and len(many) == 600


@pytest.mark.parametrize(("scale", "max_pixel", "top"), [(255.0, 1.0, 255), (16.0, 1.0, 16), (1.0, 255.0, 255)])
def test_noise_range(scale, max_pixel, top):
    """For bytes, for digits, and for bytes that are not scaled."""
    noise = noise_images(1.0, shape=(3, 8, 8), scale=scale, max_pixel=max_pixel)
    assert noise.x.dtype == torch.uint8 and noise.x.shape == (40, 3, 8, 8)
    assert (noise.x.amin((1, 2, 3)) == 0).all() and (noise.x.amax((1, 2, 3)) == top).all()
    assert noise.images(torch.arange(40)).max().item() == pytest.approx((max_pixel - 0.5) / 0.25)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_that_need_public_data(name):
    given = [one for one in strategy_overrides(name) if not one.startswith("public_data=")]
    if name in ("feddf", "feddfusion", "fedmd"):
        with pytest.raises(ValueError, match=rf"^public_data must be a data set for strategy {name}, .*\(held_out, .*, got none$"):
            small_simulation(f"strategy={name}", *given)
    else:
        simulation, _ = small_simulation(f"strategy={name}", *given)
        assert (
            simulation.client_data.public_data is None
            and simulation.federation().server.public_data is None
            and simulation.client(0, 1).public_data is None
        )
