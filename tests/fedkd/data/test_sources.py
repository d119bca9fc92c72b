"""Rules that all data sets follow, and scikit-learn's digits."""

from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from sklearn.datasets import load_digits

from fedkd.data.digits import Digits, read_digits
from tests.fedkd.data.small_files import mnist_source, write_mnist

ROOT = Path(__file__).parents[3]
YAMLS = [path for path in sorted((ROOT / "conf" / "data").glob("*.yaml")) if "defaults" not in OmegaConf.load(path)]
"""Options that hold no other data set. The others are composed by Hydra."""


# ---------------------------------------------------------------------------------------------------------------------- conf/


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_a_yaml_holds_exactly_the_parameters_of_its_source(path):
    conf = OmegaConf.to_container(OmegaConf.load(path))
    parameters = signature(get_class(conf.pop("_target_"))).parameters
    assert set(conf) == set(parameters)
    assert all(p.default is p.empty for p in parameters.values()), "defaults are in yaml only"


@pytest.mark.parametrize("path", [p for p in YAMLS if {"root", "cache"} <= OmegaConf.load(p).keys()], ids=lambda path: path.stem)
def test_a_missing_file_is_named_with_a_remedy(path, tmp_path):
    source = instantiate(OmegaConf.load(path), root=str(tmp_path / "nowhere"), cache=str(tmp_path))
    with pytest.raises(ValueError, match=r"root must hold the files of .*nowhere.* is missing; .*data\.root"):
        source()


# ------------------------------------------------------------------------------------------------------------- parameters
@pytest.mark.parametrize(
    "wrong, rule",
    [
        ({"scale": 0}, "scale must be > 0"),
        ({"scale": float("nan")}, "scale must be > 0"),
        ({"std": [0.0]}, "std must hold one number > 0"),
        ({"mean": [0.5, 0.5]}, "std must hold as many numbers as mean, 2"),
        ({"size": [28]}, "size must be null or two"),
        ({"size": [28, 0]}, "size must be null or two"),
        ({"download": "yes"}, "download must be true or false"),
    ],
)
def test_parameters_out_of_range_are_refused(tmp_path, wrong, rule):
    with pytest.raises(ValueError, match=rule):
        mnist_source(tmp_path, **wrong)


def test_mean_needs_one_number_per_channel(tmp_path):
    write_mnist(tmp_path / "data")
    with pytest.raises(ValueError, match="mean must hold one number per channel, 1 .such as .*, got"):
        mnist_source(tmp_path, mean=[0.5] * 3, std=[0.5] * 3)()


# -------------------------------------------------------------------------------------------------------------------- digits
def test_digits_are_those_of_scikit_learn_with_and_without_its_file(monkeypatch):
    digits = load_digits()
    for found in (True, False):
        read_digits.cache_clear()
        if not found:
            monkeypatch.setattr("fedkd.data.digits.find_spec", lambda name: None)
        images, labels = read_digits()
        assert np.array_equal(images, digits.images) and np.array_equal(labels, digits.target)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    read_digits.cache_clear()


def test_every_fifth_digit_of_each_class_is_a_test_example():
    task, train, test = Digits()()
    assert (task.name, task.shape, task.num_classes) == ("digits", (1, 8, 8), 10)
    assert len(train) + len(test) == 1797
    total = torch.bincount(train.y) + torch.bincount(test.y)
    assert torch.equal(torch.bincount(test.y), total // 5)
    images = test.images(torch.arange(len(test)))
    assert images.min() == 0 and images.max() == 1
    both = torch.cat([train.x, test.x]).flatten(1)
    assert len(torch.unique(both, dim=0)) == len(np.unique(both.numpy(), axis=0)) == 1797  # no image in both
    again = Digits()()
    assert torch.equal(again[1].x, train.x) and again[1].digest == train.digest != ""
