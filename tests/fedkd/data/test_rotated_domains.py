"""One data set in several domains, one of them left out, and batches that have equally many of each; images moved and mirrored."""

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode, functional

from fedkd.data.augmentation import Augmentation, black_pixel
from fedkd.data.digits import Digits
from fedkd.data.rotated_domains import RotatedDomains
from fedkd.distillation.student_training import example_order
from fedkd.seed import Seed


def domains(**changes) -> RotatedDomains:
    return RotatedDomains(**{"data": Digits(), "angles": [0, 90, 30], "held_out": 1, "examples": None, **changes})


def test_every_domain_is_a_part_of_its_own_turned_by_its_angle():
    task, train, test = domains()()
    _, plain, plain_test = Digits()()
    size = len(plain) // 3
    assert task.name == "rotated_digits" and train.groups.bincount().tolist() == [size, size]
    assert len(test) == len(plain_test) and test.groups.unique().tolist() == [0]
    where = {tuple(image.flatten().tolist()): place for place, image in enumerate(plain.x)}
    first = [where[tuple(image.flatten().tolist())] for image in train.x[:size]]
    assert first == sorted(first) and torch.equal(train.y[:size], plain.y[first]), "0 degrees: the images themselves"
    rest = [place for place in range(len(plain)) if place not in set(first)]
    turned = functional.rotate(plain.x[rest].float(), 30, InterpolationMode.BILINEAR).round().clamp(0, 16).to(torch.uint8)
    found = {tuple(image.flatten().tolist()) for image in turned}
    assert all(tuple(image.flatten().tolist()) in found for image in train.x[size:]), "30 degrees: of other images"
    quarter = functional.rotate(plain_test.x.float(), 90, InterpolationMode.BILINEAR).round().to(torch.uint8)
    assert {tuple(i.flatten().tolist()) for i in test.x} == {tuple(i.flatten().tolist()) for i in quarter}


def test_the_domains_are_the_same_for_every_seed_and_known_by_their_content():
    assert domains()()[1].digest == domains()()[1].digest != domains(held_out=2)()[1].digest


def test_all_domains_are_trained_on_and_tested_where_none_is_left_out():
    _, train, test = domains(held_out=None, examples=50)()
    assert train.groups.bincount().tolist() == [50] * 3 and len(test.groups.unique()) == 3


def test_a_batch_has_equally_many_of_each_domain():
    _, train, _ = domains()()
    index = example_order(train.subset(torch.arange(0, len(train) - 20)), Seed(0).torch())
    assert sorted(index.tolist()) == list(range(len(train) - 20))
    counts = train.groups[index].view(-1)[: 20 * 32].view(-1, 32)
    assert (counts.sum(1) == 16).all()
    assert not torch.equal(index, example_order(train.subset(torch.arange(0, len(train) - 20)), Seed(1).torch()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"angles": [0]}, r"^angles must hold two or more angles in degrees, got \[0\]$"),
        ({"held_out": 3}, r"^held_out must be the place of an angle, 0\.\.2, or null, got 3$"),
        ({"examples": 0}, r"^examples must be > 0 images a domain, or null for all, got 0$"),
        ({"examples": 10_000}, r"^examples must be at most 480, a part of the training images, got 10000$"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        domains(**changes)()


# ------------------------------------------------------------------------------------------------------------ augmentation
def test_images_are_moved_and_mirrored_as_torchvision_would():
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    augmentation = Augmentation(crop=2, flip=True)
    draws = {name: value[0] for name, value in augmentation.draw(1, 6, Seed(4)).items()}
    value = torch.tensor([0.1, 0.2, 0.3])
    moved = augmentation(x, draws, value)
    assert draws["mirrored"].unique().tolist() == [0, 1] and draws["moves"].abs().max() == 2
    for image, new, (down, right), mirrored in zip(x, moved, draws["moves"].tolist(), draws["mirrored"].tolist(), strict=True):
        padded = torch.stack([functional.pad(channel[None], [2] * 4, fill=float(v))[0] for channel, v in zip(image, value)])
        crop = padded[:, 2 + down : 10 + down, 2 + right : 10 + right]
        assert torch.equal(new, crop.flip(-1) if mirrored else crop)


def test_all_moves_are_as_likely_and_half_are_mirrored():
    draws = Augmentation(crop=4, flip=True).draw(100, 64, Seed(0))
    counts = torch.bincount((draws["moves"] + 4).flatten(), minlength=9)
    assert len(counts) == 9 and ((counts / counts.sum() - 1 / 9).abs() < 0.01).all()
    assert abs(draws["mirrored"].double().mean() - 0.5) < 0.02


def test_without_knobs_nothing_is_drawn_or_changed():
    augmentation = Augmentation(crop=0, flip=False)
    x = torch.rand(2, 1, 4, 4)
    assert augmentation.draw(3, 2, Seed(0)) == {} and augmentation(x, {}, torch.zeros(1)) is x


def test_black_is_what_networks_see_of_a_black_pixel():
    _, train, _ = Digits()()
    assert torch.equal(black_pixel(train, torch.float64), torch.zeros(1, dtype=torch.float64))
