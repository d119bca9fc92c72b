"""Partitions in files: what is written is read back, and invalid files are refused."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from fedkd.partition import common
from fedkd.partition.from_file import FromFile
from fedkd.partition.iid import IID
from tests.fedkd.partition.small_partitions import DIGITS, SPLITS, split

ROOT = Path(__file__).parents[3]
REAL_MNIST = Path(os.environ.get("FEDKD_MNIST") or ROOT.parent / "shared" / "data" / "mnist")


@pytest.mark.parametrize("method", SPLITS, ids=repr)
def test_a_written_partition_is_read_back(tmp_path, method):
    partition = split(method, num_clients=12)
    common.write_partition(partition, tmp_path / "p.npz", *DIGITS, 10)
    again = split(FromFile(path=str(tmp_path / "p.npz")), num_clients=12)
    assert all(np.array_equal(a, b) for a, b in zip(partition.train + partition.test, again.train + again.test))
    with np.load(tmp_path / "p.npz") as file:
        assert {"train_00", "train_11", "test_00", "counts", "test_counts"} < set(file.files) and len(file.files) == 26
        assert file["counts"].dtype == np.int64 and file["counts"].shape == (12, 10)
        for k in range(12):
            for label in range(10):
                assert file["counts"][k, label] == (DIGITS[0][partition.train[k]] == label).sum()
                assert file["test_counts"][k, label] == (DIGITS[1][partition.test[k]] == label).sum()
    before = (tmp_path / "p.npz").read_bytes()
    common.write_partition(partition, tmp_path / "p.npz", *DIGITS, 10)
    assert (tmp_path / "p.npz").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["p.npz"]


def test_client_numbers_are_padded_with_zeros(tmp_path):
    common.write_partition(split(IID(), num_clients=101), tmp_path / "p.npz", *DIGITS, 10)
    with np.load(tmp_path / "p.npz") as file:
        assert "train_007" in file.files and "test_100" in file.files
    assert len(split(FromFile(path=str(tmp_path / "p.npz")), num_clients=101).train) == 101


def arrays(**changes):
    good = {"train_00": np.array([3, 1]), "train_01": np.array([0]), "test_00": np.array([0, 1]), "test_01": np.array([1])}
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


def test_unsorted_indices_overlapping_test_sets_and_other_keys_are_allowed(tmp_path):
    np.savez(tmp_path / "p.npz", **arrays(alpha=np.array(0.1), train_note=np.array("x"), test_01=np.array([], float)))
    partition = split(FromFile(path=str(tmp_path / "p.npz")), num_clients=2)
    assert partition.train[0].tolist() == [1, 3] and partition.test[1].dtype == np.int64 and len(partition.test[1]) == 0


@pytest.mark.parametrize(
    "changes, rule",
    [
        ({"train_01": None}, "train_ arrays for num_clients=2 clients; missing are 1"),
        ({"test_00": None}, "test_ arrays .* missing are 0"),
        ({"train_02": np.array([9])}, r"train_ arrays for num_clients=2 clients; there are more: 2 \(set num_clients=3\)"),
        ({"train_1": np.array([9])}, "some train_ keys stand for the same number"),
        ({"train_01": None, "train_x1": np.array([0])}, "missing are 1"),
        ({"train_00": np.array([1442])}, r"indices in 0\.\.1441; the train_ array of client 0 has others"),
        ({"test_01": np.array([-1])}, r"indices in 0\.\.354; the test_ array of client 1 has others"),
        ({"train_00": np.array([3, 3])}, "every index once; the train_ array of client 0 repeats"),
        ({"test_00": np.array([3, 3])}, "every index once; the test_ array of client 0 repeats"),
        ({"train_01": np.array([3])}, "give a training example to one client; index 3 is given to several"),
        ({"train_00": np.array([3.0, 1.0])}, "vectors of integers; the train_ array of client 0 is float64"),
        ({"train_00": np.array([[3, 1]])}, r"vectors of integers; .* is int64\[1, 2\]"),
        ({"train_00": np.array([], int), "train_01": np.array([], int)}, "give at least one client training examples"),
        ({"train_00": np.array(["a", None], object)}, r"file of index arrays, got .*pickled objects\)\. Write one with np\.savez"),
    ],
)
def test_a_file_without_a_valid_partition_is_refused(tmp_path, changes, rule):
    np.savez(tmp_path / "p.npz", **arrays(**changes))
    with pytest.raises(ValueError, match=rf"^path must .*{rule}"):
        split(FromFile(path=str(tmp_path / "p.npz")), num_clients=2)


@pytest.mark.parametrize("damage", [lambda b: b[:200], lambda b: b"", lambda b: b"garbage", lambda b: b[:150] + b"\xff\xff" + b[152:]])
def test_a_damaged_file_is_named(tmp_path, damage):
    np.savez(tmp_path / "p.npz", **arrays())
    (tmp_path / "p.npz").write_bytes(damage((tmp_path / "p.npz").read_bytes()))
    with pytest.raises(ValueError, match="path must be an npz file of index arrays, got '.*p.npz'"):
        split(FromFile(path=str(tmp_path / "p.npz")), num_clients=2)


def test_a_file_of_one_array_is_refused(tmp_path):
    with (tmp_path / "p.npz").open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(ValueError, match="path must be an npz file of index arrays"):
        split(FromFile(path=str(tmp_path / "p.npz")), num_clients=2)


def other_files(path: Path) -> None:
    """Files of other libraries, as users bring them."""
    ragged = np.empty(2, object)
    ragged[:] = [np.arange(3), np.arange(4)]
    (path / "partition.pkl").write_bytes(pickle.dumps({"data_indices": [{"train": [0, 1], "val": [], "test": [2]}]}))
    (path / "p.json").write_text('{"0": [0, 1], "1": [2]}')
    np.savez(path / "pfllib.npz", data={"x": np.zeros(3), "y": np.zeros(3)})
    np.savez(path / "ragged.npz", train=ragged, test=ragged)
    np.save(path / "one.npy", ragged)
    np.savez(path / "objects.npz", train_0=ragged, test_0=ragged)


@pytest.mark.parametrize("name", ["partition.pkl", "p.json", "pfllib.npz", "ragged.npz", "one.npy", "objects.npz"])
def test_files_of_other_libraries_are_refused_with_what_to_do(tmp_path, name):
    other_files(tmp_path)
    with pytest.raises(ValueError, match=rf"^path must .*{name}.* Write one with np\.savez\('mine.npz', train_0=indices") as error:
        split(FromFile(path=str(tmp_path / name)), num_clients=2)
    assert "allow_pickle" not in str(error.value) and ("pickled" in str(error.value)) == (name == "objects.npz")


def test_clients_are_numbered_from_zero(tmp_path):
    np.savez(tmp_path / "p.npz", **{f"{part}_{k + 1}": np.arange(k, k + 1) for k in range(2) for part in ("train", "test")})
    with pytest.raises(ValueError, match=r"missing are 0 \(clients are numbered from 0\)"):
        split(FromFile(path=str(tmp_path / "p.npz")), num_clients=2)


def test_a_client_may_have_no_training_examples(tmp_path):
    np.savez(tmp_path / "p.npz", **arrays(train_01=np.array([])))
    partition = split(FromFile(path=str(tmp_path / "p.npz")), num_clients=2)
    assert len(partition.train[1]) == 0 and partition.train[1].dtype == np.int64 and partition.test[1].tolist() == [1]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="path must be an npz file .*there is no such file, got '.*none.npz'"):
        split(FromFile(path=str(tmp_path / "none.npz")))


# ------------------------------------------------------------------------------------------------------------------ real files


@pytest.mark.skipif(not (REAL_MNIST / "partition_fedgen_alpha0.1.npz").is_file(), reason="set FEDKD_MNIST to a folder with MNIST/raw")
@pytest.mark.parametrize("alpha, num_test", [(0.1, 5307), (1.0, 9764)])
def test_the_public_code_s_partition_of_mnist_follows_our_rules(alpha, num_test):
    labels = tuple(torchvision.datasets.MNIST(REAL_MNIST, train=train).targets.numpy() for train in (True, False))
    published = split(FromFile(path=str(REAL_MNIST / f"partition_fedgen_alpha{alpha}.npz")), labels, 20)
    assert common.label_counts(published.train, labels[0], 10).sum(axis=0).tolist() == [1500] * 10
    ours = common.local_test_shards(published.train, labels[0], labels[1], at_least=0)
    assert all(np.array_equal(a, b) for a, b in zip(ours, published.test)) and sum(map(len, ours)) == num_test
