"""Partitioners of flwr-datasets: all can be configured, and those that fedkd also has give the same distribution."""

import inspect
import sys
import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from fedkd.config.build import build, call_part
from fedkd.config.validation import check_run
from fedkd.metrics import label_skew
from fedkd.partition import common, flwr_datasets
from fedkd.partition.classes_per_client import ClassesPerClient
from fedkd.partition.dirichlet import Dirichlet
from fedkd.partition.fedgen import FedGen
from fedkd.partition.flwr_datasets import FlwrDatasets
from fedkd.partition.iid import IID
from fedkd.partition.shards import Shards
from simulations.config import compose

EVEN = np.repeat(np.arange(10), 140), np.repeat(np.arange(10), 30)
"""Labels sorted by class, as in a folder of images. Partitioners that take rows in their order need them shuffled."""


@pytest.fixture(scope="module")
def partitioners() -> SimpleNamespace:
    """The partitioners of flwr-datasets."""
    return pytest.importorskip("flwr_datasets.partitioner")


@pytest.fixture(autouse=True)
def silence():
    """Hide the warnings of flwr-datasets about unused classes and sizes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def split(partition, seed=0, num_clients=10):
    return partition(*EVEN, num_clients, np.random.default_rng(seed))


def same(left, right) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left.train + left.test, right.train + right.test, strict=True))


# ---------------------------------------------------------------------- all can be configured
P = "partition.partitioner"
CONFIGURED = {
    "ContinuousPartitioner": [f"+{P}.strictness=0.5"],
    "DirichletPartitioner": [f"+{P}.alpha=0.5"],
    "DistributionPartitioner": [
        f"+{P}.distribution_array={[[1.0, label + 1.0] for label in range(10)]}".replace(" ", ""),
        f"+{P}.num_unique_labels_per_partition=2", f"+{P}.preassigned_num_samples_per_label=5",
    ],
    "ExponentialPartitioner": ["num_clients=5"],
    "GroupedNaturalIdPartitioner": [f"+{P}.group_size=2", "num_clients=5"],
    "IdToSizeFncPartitioner": [
        f"+{P}.partition_id_to_size_fn._target_=hydra.utils.get_method", f"+{P}.partition_id_to_size_fn.path=numpy.sqrt",
        "allow_targets=[hydra,numpy]",
    ],
    "IidPartitioner": [],
    "InnerDirichletPartitioner": [f"+{P}.alpha=0.5", f"+{P}.partition_sizes=[200,150,100,100,100,50,50,50,50,20]"],
    "LinearPartitioner": [],
    "NaturalIdPartitioner": [],
    "PathologicalPartitioner": [f"+{P}.num_classes_per_partition=3"],
    "ShardPartitioner": [f"+{P}.num_shards_per_partition=2"],
    "SizePartitioner": [f"+{P}.partition_sizes=[200,150,100,100,100,50,50,50,50,20]"],
    "SquarePartitioner": [],
}  # fmt: skip
REFUSED = {"Partitioner": "abstract", "VerticalEvenPartitioner": "divides columns, not examples", "VerticalSizePartitioner": "columns"}


def configured(name: str, *overrides: str):
    """The number of clients and the partition of a configuration."""
    words = [
        "partition=flwr_datasets",
        f"{P}._target_=flwr_datasets.partitioner.{name}",
        "num_clients=10",
        "clients_per_round=2",
        *overrides,
    ]
    config = compose(words)
    check_run(config)
    return config.num_clients, build(config, "partition")


def test_every_partitioner_is_tested_here(partitioners):
    assert set(partitioners.__all__) == {*CONFIGURED, *REFUSED}


@pytest.mark.parametrize("name", CONFIGURED)
def test_a_partitioner_gives_ascending_disjoint_shards(partitioners, name):
    num_clients, method = configured(name, *CONFIGURED[name])
    partition = split(method, num_clients=num_clients)
    assert len(partition.train) == len(partition.test) == num_clients
    for part, labels in zip((partition.train, partition.test), EVEN):
        assert all(index.dtype == np.int64 and (np.diff(index) > 0).all() for index in part)
        everyone = np.concatenate(part)
        assert len(np.unique(everyone)) == len(everyone) and everyone.min() >= 0 and everyone.max() < len(labels)
    assert all(len(train) and set(EVEN[1][test]) == set(EVEN[0][train]) for train, test in zip(partition.train, partition.test))
    assert same(partition, split(method, num_clients=num_clients)), "the random stream determines the partition"
    natural = "NaturalId" in name
    assert natural or not same(partition, split(method, seed=1, num_clients=num_clients)), "another stream gives another partition"


def test_a_partitioner_may_leave_clients_without_examples(partitioners):
    kind = partial(partitioners.DirichletPartitioner, alpha=0.001, min_partition_size=0, self_balancing=False)
    partition = split(FlwrDatasets(partitioner=kind), num_clients=30)
    empty = [len(index) == 0 for index in partition.train]
    assert 0 < sum(empty) < 30 and sum(map(len, partition.train)) == len(EVEN[0])
    assert all(len(index) == 0 for index, none in zip(partition.test, empty) if none)


@pytest.mark.parametrize("name", REFUSED)
def test_partitioners_that_do_not_divide_examples_are_refused(partitioners, name):
    kind = (
        partial(getattr(partitioners, name), partition_sizes=[1, 1])
        if name == "VerticalSizePartitioner"
        else partial(getattr(partitioners, name))
    )
    with pytest.raises(
        ValueError, match=f"partitioner must divide the training examples among num_clients=2, got {name}: .*{REFUSED[name]}"
    ):
        split(FlwrDatasets(partitioner=kind), num_clients=2)


@pytest.mark.parametrize(
    "name, overrides, rule",
    [
        ("DirichletPartitioner", [], r"partition.partitioner must .*DirichletPartitioner: .*missing .*'alpha'"),
        ("DirichletPartitioner", [f"+{P}.alpha=-1"], r"partition.partitioner must .*greater than zero"),
        ("DirichletPartitioner", [f"+{P}.alpha=abc"], r"partition.partitioner.alpha must be"),
        ("DirichletPartitioner", [f"+{P}.alhpa=1"], r"partition.partitioner.alhpa must be a parameter of DirichletPartitioner"),
        ("LinearPartitioner", [f"+{P}.num_partitions=7"], r"num_partitions must be the number of clients, got 7"),
        ("NaturalIdPartitioner", ["num_clients=9"], r"num_clients=9, .*num_partitions must be the number of clients, got 10"),
        ("SizePartitioner", [f"+{P}.partition_sizes=[5,6]"], r"num_partitions must be the number of clients, got 2"),
        ("NoSuchPartitioner", [], r"partition.partitioner._target_ must be importable, got .*NoSuchPartitioner'(?!.*pip install)"),
    ],
)
def test_invalid_parameters_are_refused(partitioners, name, overrides, rule):
    with pytest.raises(ValueError, match=rule):
        num_clients, method = configured(name, *overrides)
        call_part("partition", method, *EVEN, num_clients, np.random.default_rng(0))


def test_the_error_without_flwr_datasets_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("flwr_datasets", "datasets")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("flwr_datasets", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"^partition.partitioner._target_ must be importable, .*; pip install 'fedkd\[flwr-datasets\]'"):
        configured("IidPartitioner")
    with pytest.raises(ValueError, match=r"^partitioner must .*it needs the package flwr-datasets: pip install 'fedkd\[flwr-datasets\]'"):
        split(FlwrDatasets(partitioner=lambda: SimpleNamespace()))


def test_a_configured_seed_gives_the_partition_of_federated_dataset(partitioners):
    """``FederatedDataset(partitioners={"train": partitioner}, seed=42)`` shuffles with the seed and calls the partitioner."""
    from datasets import Dataset

    kind = partial(partitioners.DirichletPartitioner, alpha=0.3, seed=42)
    reference = kind(num_partitions=10, partition_by="label")
    reference.dataset = Dataset.from_dict({"label": EVEN[0], "index": np.arange(len(EVEN[0]))}).shuffle(seed=42)
    for seed in (0, 1):
        ours = split(FlwrDatasets(partitioner=kind), seed)
        assert all(np.array_equal(ours.train[k], np.sort(reference.load_partition(k)["index"])) for k in range(10))


def test_partitioners_have_the_parameters_that_are_set(partitioners):
    """``num_partitions``, ``partition_by``, and ``seed`` are still the names in flwr-datasets."""
    names = [set(inspect.signature(getattr(partitioners, name)).parameters) for name in ("DirichletPartitioner", "ShardPartitioner")]
    assert all({"num_partitions", "partition_by", "seed"} <= taken for taken in names)
    assert flwr_datasets.INSTALL.endswith("pip install 'fedkd[flwr-datasets]'")


# ---------------------------------------------------------------------- agreement with fedkd's partitions


def statistics(method, num_seeds: int, clients: slice) -> np.ndarray:  # [seeds, 6]
    """For each seed: label distance, effective classes, classes with several examples, and deviation, minimum and maximum of sizes."""
    rows = []
    for seed in range(num_seeds):
        counts = common.label_counts(split(method, seed).train, EVEN[0], 10)[clients]
        sizes, several = counts.sum(axis=1), (counts > 1).sum(axis=1).mean()
        rows.append(
            [label_skew.label_distance(counts), label_skew.effective_classes(counts), several, sizes.std(), sizes.min(), sizes.max()]
        )
    return np.array(rows)


def agree(ours, theirs, clients: slice = slice(None), num_seeds: int = 40) -> None:
    """The means of all statistics over seeds differ by less than four standard errors of the difference."""
    left, right = statistics(ours, num_seeds, clients), statistics(theirs, num_seeds, clients)
    error = np.sqrt((left.var(axis=0, ddof=1) + right.var(axis=0, ddof=1)) / num_seeds)
    assert (np.abs(left.mean(axis=0) - right.mean(axis=0)) <= 4 * error + 1e-9).all(), (left.mean(axis=0), right.mean(axis=0), error)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 5.0])
def test_dirichlet_agrees(partitioners, alpha):
    """flwr-datasets rounds down and leaves an example of most classes to the last client, which is therefore excluded here."""
    agree(
        Dirichlet(alpha=alpha, min_size=1, max_draws=1000),
        FlwrDatasets(partitioner=partial(partitioners.DirichletPartitioner, alpha=alpha, min_partition_size=1)),
        slice(9),
    )


def test_the_last_client_of_flwr_datasets_gets_the_remainders(partitioners):
    kind = partial(partitioners.DirichletPartitioner, alpha=0.1, min_partition_size=1)
    held = [
        np.mean([(common.label_counts(split(method, seed).train, EVEN[0], 10) > 0).sum(axis=1)[-1] for seed in range(20)])
        for method in (Dirichlet(alpha=0.1, min_size=1, max_draws=1000), FlwrDatasets(partitioner=kind))
    ]
    assert held[0] < 6 and held[1] > 8


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_the_cap_of_fedgen_agrees_with_self_balancing(partitioners, alpha):
    """All data are used. fedkd excludes clients of at least the mean size, flwr-datasets larger ones; fedkd's class order is random."""
    agree(
        FedGen(alpha=alpha, ratio=1.0, min_size=1, max_draws=1000),
        FlwrDatasets(partitioner=partial(partitioners.DirichletPartitioner, alpha=alpha, min_partition_size=1, self_balancing=True)),
    )


def test_iid_agrees(partitioners):
    agree(IID(), FlwrDatasets(partitioner=partitioners.IidPartitioner))


@pytest.mark.parametrize("per_client", [1, 2, 5])
def test_shards_agree(partitioners, per_client):
    """For sizes that are not a multiple, flwr-datasets drops the remainder; fedkd makes some shards one example larger."""
    agree(
        Shards(per_client=per_client),
        FlwrDatasets(partitioner=partial(partitioners.ShardPartitioner, num_shards_per_partition=per_client)),
    )


@pytest.mark.parametrize("per_client", [1, 2, 5])
def test_classes_per_client_differ_from_the_pathological_partitioner_in_sizes(partitioners, per_client):
    """Both give a client the same number of classes. flwr-datasets draws them independently, so classes may be unused and sizes vary."""
    ours = split(ClassesPerClient(per_client=per_client))
    other = split(FlwrDatasets(partitioner=partial(partitioners.PathologicalPartitioner, num_classes_per_partition=per_client)))
    for partition in (ours, other):
        assert ((common.label_counts(partition.train, EVEN[0], 10) > 0).sum(axis=1) == per_client).all()
    deviation = [np.std([len(index) for index in partition.train]) for partition in (ours, other)]
    assert deviation[0] <= 1 < deviation[1]


def test_classes_per_client_agree_with_the_deterministic_partitioner_in_sizes(partitioners):
    """Both divide every class among equally many clients. Only fedkd draws the clients."""
    kind = partial(partitioners.PathologicalPartitioner, num_classes_per_partition=3, class_assignment_mode="deterministic")
    for method in (ClassesPerClient(per_client=3), FlwrDatasets(partitioner=kind)):
        held = common.label_counts(split(method).train, EVEN[0], 10)
        assert ((held > 0).sum(axis=0) == 3).all() and held.sum(axis=1).max() - held.sum(axis=1).min() <= 3
