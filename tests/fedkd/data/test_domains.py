"""Several data sets as one task: shapes, scales, classes, groups, caps, a domain that is held out, and clients with one domain each."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fedkd.data.digits import Digits
from fedkd.data.domains import Domains
from fedkd.distillation.student_training import example_order
from fedkd.partition.by_group import ByGroup
from fedkd.seed import Seed
from fedkd.types import Examples, Task
from simulations.config import compose
from simulations.reports.tables.clients import read_test_groups
from simulations.run_folder.data_record import write_groups
from simulations.setup.clients import read_data
from simulations.setup.simulation import build_simulation

PARAMETERS = {"size": [8, 8], "channels": 1, "num_train": None, "num_test": None, "match_classes": "name", "held_out": None}


def flat(names=("left", "right"), shape=(3, 4, 6), value=100, number=5):
    """A data set of uniform images: image i of class i modulo C has the value ``value + i``."""

    def read():
        y = torch.arange(number) % len(names or "ab")
        x = (value + torch.arange(number)).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, *shape).contiguous()
        examples = Examples(x, y, 255.0, (0.0,) * shape[0], (1.0,) * shape[0])
        return Task("flat", shape, 2, names), examples, examples.subset([0, 1, 2])

    return read


def domains(tmp_path, sources, **changes):
    return Domains(domains=sources, cache=str(tmp_path), **{**PARAMETERS, "mean": [0.5], "std": [0.5], **changes})


def test_domains_share_shape_scale_and_classes_and_are_the_groups(tmp_path):
    sources = {"b": flat(), "a": flat(("right", "left"), (1, 8, 8), value=10), "c": flat((), (1, 8, 8), value=50)}
    task, train, test = domains(tmp_path, sources, mean=[0.5] * 3, std=[0.5] * 3, channels=3)()
    assert (task.shape, task.class_names) == ((3, 8, 8), ("right", "left")), "the names of the first data set, by name"
    assert train.group_names == ("a", "b", "c") and train.groups.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert train.x[:, 0, 0, 0].tolist() == [*range(10, 15), *range(100, 105), *range(50, 55)]
    assert bool((train.x == train.x[:, :1, :1, :1]).all()), "resizing and copies of the gray channel change no uniform image"
    assert train.y.tolist() == [0, 1, 0, 1, 0] + [1, 0, 1, 0, 1] + [0, 1, 0, 1, 0], "b calls class 0 left, and c has no names"
    assert test.groups.bincount().tolist() == [3] * 3


def test_other_scales_are_converted_and_caps_do_not_depend_on_the_other_domains(tmp_path):
    _, digits, _ = Digits()()
    _, train, test = domains(tmp_path, {"digits": Digits(), "more": Digits()}, num_train=20, num_test=7)()
    assert train.groups.bincount().tolist() == [20, 20] and test.groups.bincount().tolist() == [7, 7]
    found = {tuple(image.flatten().tolist()) for image in train.x}
    assert found <= {tuple(image.flatten().tolist()) for image in (digits.x * (255 / 16)).round().to(torch.uint8)}
    assert not torch.equal(train.x[:20], train.x[20:]), "each name has an order of its own"
    _, alone, _ = domains(tmp_path, {"digits": Digits(), "z": Digits()}, num_train=20, num_test=7)()
    assert torch.equal(alone.x[:20], train.x[:20]) and alone.digest != train.digest


def test_a_held_out_domain_is_tested_alone(tmp_path):
    _, train, test = domains(tmp_path, {"a": flat(shape=(1, 8, 8)), "b": flat(shape=(1, 8, 8), value=9)}, held_out="b")()
    assert train.groups.unique().tolist() == [0] and test.groups.unique().tolist() == [1]


def test_leftover_images_of_larger_domains_follow_in_random_order(tmp_path):
    sources = {"a": flat(shape=(1, 8, 8), number=40), "b": flat(shape=(1, 8, 8), number=4), "c": flat(shape=(1, 8, 8), number=40)}
    groups = (train := domains(tmp_path, sources)()[1]).groups[example_order(train, Seed(0).torch())].tolist()
    assert groups[:12] == [0, 1, 2] * 4 and 20 < sum(a != b for a, b in zip(groups[12:], groups[13:])) < 60


@pytest.mark.parametrize(
    ("sources", "changes", "message"),
    [
        ({"a": flat()}, {}, r"^domains must hold two or more data sets, each under its name, got \['a'\]$"),
        (
            {"a": flat(), "b": flat(("left", "up"))},
            {},
            "^domains.b must have the class names of a; .*, got 'right, up in one of them only'$",
        ),
        ({"a": flat(), "b": Digits()}, {}, "^domains.b must have the 2 classes of a, got '10 classes'$"),
        ({"a": flat(), "b": flat()}, {"num_train": 6}, "^num_train must be at most 5, the training images of a, got 6$"),
        ({"a": flat(), "b": flat()}, {"held_out": "c"}, "^held_out must be one of a, b, or null, got 'c'$"),
        ({"a": flat(), "b": flat()}, {"mean": [0.5] * 3}, "^mean must hold one number per channel, 1, got"),
        ({"a": flat(shape=(1, 8, 8)), "b": flat()}, {"size": None}, "^size must be set where images differ in size"),
    ],
)
def test_wrong_values_are_one_line(tmp_path, sources, changes, message):
    with pytest.raises(ValueError, match=message):
        domains(tmp_path, sources, **changes)()
    if "names" in message:
        assert domains(tmp_path, sources, match_classes="number")()[0].class_names == ("left", "right")


def test_a_configuration_adds_domains_and_a_client_has_one(tmp_path):
    own = ["+data@data.domains.x=digits", "+data@data.domains.y=digits", "data.num_train=30", f"data.cache={tmp_path}"]
    _, train, test = read_data(compose(["data=domains", "data.channels=1", "data.mean=[0.5]", "data.std=[0.5]", *own]))
    parts = ByGroup(column=None, groups_per_client=None).divide_examples(train.attributes, test.attributes, 4, np.random.default_rng(0))
    assert [train.groups[index].unique().tolist() for index in parts.train] == [[0], [1], [0], [1]]
    assert sorted(np.concatenate(parts.test).tolist()) == list(range(len(test))), "each test image is at one client"
    write_groups(tmp_path, parts, train, test)
    assert read_test_groups(tmp_path) == {0: "x", 1: "y", 2: "x", 3: "y"}
    assert (tmp_path / "groups.csv").read_text().splitlines()[2] == "1,1,y,15,178"
    assert replace(train, group_names=()).subset([0]).groups.tolist() == [0]


def mapped_file(tensor: torch.Tensor) -> str:
    """The name of the file that the memory of a tensor is mapped to; empty for memory of the process's own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *rest = line.split(maxsplit=5)
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= tensor.data_ptr() < last:
            return Path(rest[4]).name if len(rest) > 4 else ""
    return ""


@pytest.mark.parametrize("more", [[], ["partition=missing_labels", "public_data=held_out"], ["evaluation.split=validation"]], ids=str)
def test_images_of_clients_stay_in_the_files_of_the_cache(tmp_path, more):
    """So that data may be larger than memory."""
    own = ["+data@data.domains.x=digits", "+data@data.domains.y=digits", f"data.cache={tmp_path}"]
    setting = ["partition=by_group", "num_clients=2", "clients_per_round=2", "validation_fraction=0.1", *more]
    config = compose(["data=domains", *own, "shift.label_noise=0.5", *setting])
    simulation = build_simulation(OmegaConf.to_yaml(config, resolve=True))
    data = simulation.client_data
    tested = "train_x.npy" if "evaluation.split=validation" in more else "test_x.npy"
    assert {mapped_file(one.x) for one in [simulation.train, *data.train]} == {"train_x.npy"}
    assert {mapped_file(one.x) for one in [data.global_test, *data.local_test]} == {tested}
    assert data.public_data is None or mapped_file(data.public_data.x) == "train_x.npy"
    assert mapped_file(simulation.train.x.clone()) != "train_x.npy"
