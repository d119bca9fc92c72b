"""Data that other libraries have divided among clients: the examples of the pages, and what is refused."""

import pickle
import re

import numpy as np
import pytest

from fedkd.data.client_files import write_client_files
from fedkd.partition.from_file import FromFile
from tests.fedkd.data.test_parquet import parquet_source
from tests.small_runs import ROOT

PAGE = (ROOT / "fedkd/partition/README.md").read_text(encoding="utf-8")
SCRIPTS = {
    name: next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if name in code) for name in ("PFLlib", "FL-bench")
}
rng = np.random.default_rng(0)


def read_back(tmp_path, folder, num_clients):
    """The examples of each client's training and test set, as (image, label) pairs."""
    (tmp_path / "data").symlink_to(tmp_path / folder)
    _, train, test = parquet_source(tmp_path, channels=1, mean=[0.5], std=[0.5])()
    file = FromFile(path=str(tmp_path / "data/partition.npz"))
    partition = file(train.y.numpy(), test.y.numpy(), num_clients, rng)
    return [
        [(part.x[index, 0].numpy(), part.y[index].numpy()) for part, index in ((train, of_train), (test, of_test))]
        for of_train, of_test in zip(partition.train, partition.test)
    ]


def same(found, expected):
    return all(np.array_equal(a, b) for left, right in zip(found, expected, strict=True) for p, q in zip(left, right) for a, b in zip(p, q))


def random_clients(num_clients, sizes=(4, 2)):
    labels = [rng.permutation(np.arange(max(size, 1)) % 3)[:size] for _ in range(num_clients) for size in sizes]
    parts = [(rng.integers(0, 256, (len(y), 6, 5), dtype=np.uint8), y) for y in labels]
    return [(parts[2 * k], parts[2 * k + 1]) for k in range(num_clients)]


def test_the_script_for_pfllib_keeps_every_client_s_examples(tmp_path, monkeypatch):
    clients = random_clients(20)
    for client, parts in enumerate(clients):
        for part, (x, y) in zip(("train", "test"), parts):
            path = tmp_path / f"PFLlib/dataset/MNIST/{part}/{client}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, data={"x": (x[:, None] / 255 - 0.5).astype(np.float32) / 0.5, "y": y})
    monkeypatch.chdir(tmp_path)
    exec(SCRIPTS["PFLlib"], {})
    assert same(read_back(tmp_path, "pfllib_mnist", 20), clients)


def test_the_script_for_fl_bench_keeps_every_client_s_examples(tmp_path, monkeypatch):
    x, y = rng.integers(0, 256, (30, 6, 5), dtype=np.uint8), np.arange(30) % 3
    order = rng.permutation(30)
    indices = [{"train": order[10 * k : 10 * k + 7], "val": [], "test": order[10 * k + 7 : 10 * k + 10]} for k in range(3)]
    (tmp_path / "FL-bench/data/mnist").mkdir(parents=True)
    (tmp_path / "FL-bench/data/mnist/partition.pkl").write_bytes(pickle.dumps({"data_indices": indices}))
    np.save(tmp_path / "images.npy", x)
    np.save(tmp_path / "labels.npy", y)
    monkeypatch.chdir(tmp_path)
    exec(SCRIPTS["FL-bench"], {})
    expected = [[(x[one[part]], y[one[part]]) for part in ("train", "test")] for one in indices]
    assert same(read_back(tmp_path, "fl_bench_mnist", 3), expected)


def test_images_that_are_not_bytes_are_refused(tmp_path):
    clients = random_clients(2)
    with pytest.raises(ValueError, match=r"train images of client 0 must be bytes \(uint8\), 0..255, got 'float64'"):
        write_client_files(tmp_path, [((clients[0][0][0] / 255, clients[0][0][1]), clients[0][1])])
    with pytest.raises(ValueError, match="test images of client 0 must be as many as its labels, 1, got 2"):
        write_client_files(tmp_path, [(clients[0][0], (clients[0][1][0], np.zeros(1, int)))])
