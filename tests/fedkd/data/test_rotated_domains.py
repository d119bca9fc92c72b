"""A data set in several rotated domains, one of which may be held out, and batches with the same number of images of every domain."""

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode, functional

from fedkd.data.digits import Digits
from fedkd.data.rotated_domains import RotatedDomains
from fedkd.distillation.student_training import example_order
from fedkd.seed import Seed


def domains(**changes) -> RotatedDomains:
    return RotatedDomains(**{"data": Digits(), "angles": [0, 90, 30], "held_out": 1, "examples": None, **changes})


def test_every_domain_is_a_different_part_rotated_by_its_angle():
    task, train, test = domains()()
    _, plain, plain_test = Digits()()
    size = len(plain) // 3
    assert task.name == "rotated_digits" and train.groups.bincount().tolist() == [size, 0, size]
    assert len(test) == len(plain_test) and test.groups.unique().tolist() == [1]
    where = {tuple(image.flatten().tolist()): place for place, image in enumerate(plain.x)}
    first = [where[tuple(image.flatten().tolist())] for image in train.x[:size]]
    assert first == sorted(first) and torch.equal(train.y[:size], plain.y[first]), "0 degrees: unchanged images"
    rest = [place for place in range(len(plain)) if place not in set(first)]
    turned = functional.rotate(plain.x[rest].float(), 30, InterpolationMode.BILINEAR).round().clamp(0, 16).to(torch.uint8)
    found = {tuple(image.flatten().tolist()) for image in turned}
    assert all(tuple(image.flatten().tolist()) in found for image in train.x[size:]), "30 degrees: rotations of the other images"
    quarter = functional.rotate(plain_test.x.float(), 90, InterpolationMode.BILINEAR).round().to(torch.uint8)
    assert {tuple(i.flatten().tolist()) for i in test.x} == {tuple(i.flatten().tolist()) for i in quarter}


def test_domains_do_not_depend_on_the_seed_and_the_digest_is_of_their_content():
    assert domains()()[1].digest == domains()()[1].digest != domains(held_out=2)()[1].digest


def test_without_a_held_out_domain_all_are_trained_on_and_tested_on():
    _, train, test = domains(held_out=None, examples=50)()
    assert train.groups.bincount().tolist() == [50] * 3 and len(test.groups.unique()) == 3


def test_a_batch_has_the_same_number_of_images_of_every_domain():
    _, train, _ = domains()()
    index = example_order(train.subset(torch.arange(0, len(train) - 20)), Seed(0).torch())
    assert sorted(index.tolist()) == list(range(len(train) - 20))
    counts = train.groups[index].view(-1)[: 20 * 32].view(-1, 32)
    assert ((counts == 0).sum(1) == 16).all() and ((counts == 2).sum(1) == 16).all()
    assert not torch.equal(index, example_order(train.subset(torch.arange(0, len(train) - 20)), Seed(1).torch()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"angles": [0]}, r"^angles must hold two or more angles in degrees, got \[0\]$"),
        ({"held_out": 3}, r"^held_out must be the index of an angle, 0\.\.2, or null, got 3$"),
        ({"examples": 0}, r"^examples must be > 0 images per domain, or null for all, got 0$"),
        ({"examples": 10_000}, r"^examples must be at most 480, a part of the training images, got 10000$"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        domains(**changes)()
