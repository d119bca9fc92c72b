"""Data sets of torchvision: decoding, MD5s, damaged files, and downloads."""

import gzip
import os
import pickle
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets
from PIL import Image

from fedkd.data import celeba, cifar, mnist, svhn
from tests.fedkd.data.small_files import COLOR, folders, md5, mnist_source, rng, write_idx, write_mnist

ROOT = Path(__file__).parents[3]
REAL_MNIST = Path(os.environ.get("FEDKD_MNIST") or ROOT.parent / "shared" / "data" / "mnist")


# --------------------------------------------------------------------------------------------------------------- torchvision


@pytest.mark.parametrize("cls", [mnist.MNIST, mnist.FashionMNIST])
def test_idx_files_are_decoded_byte_for_byte(tmp_path, cls):
    written = write_mnist(tmp_path / "data", cls.__name__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task, train, test = mnist_source(tmp_path, cls)()
    assert task.shape == (1, 28, 28) and task.num_classes == len(task.class_names) == 10
    for examples, (x, y) in zip((train, test), written.values()):
        assert examples.x.dtype == torch.uint8 and examples.y.dtype == torch.int64
        assert np.array_equal(examples.x[:, 0].numpy(), x) and np.array_equal(examples.y.numpy(), y)
        assert (examples.scale, examples.mean, examples.std) == (255.0, (0.5,), (0.5,))


@pytest.mark.parametrize("folder", ["FashionMNIST/raw", ""])
def test_compressed_idx_files_are_read_as_they_lie(tmp_path, folder):
    write_mnist(tmp_path / "plain", "FashionMNIST")
    (tmp_path / "data" / folder).mkdir(parents=True)
    for path in (tmp_path / "plain/FashionMNIST/raw").iterdir():
        (tmp_path / "data" / folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    found = mnist_source(tmp_path, mnist.FashionMNIST)()
    expected = mnist_source(tmp_path, mnist.FashionMNIST, root=str(tmp_path / "plain"))()
    assert found[0] == expected[0] and found[1].digest == expected[1].digest
    damaged = tmp_path / "data" / folder / "t10k-labels-idx1-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(ValueError, match="root must hold intact files, got a damaged one: .*t10k-labels-idx1-ubyte.gz"):
        mnist_source(tmp_path, mnist.FashionMNIST)()


def test_a_source_resizes_to_height_and_width(tmp_path):
    write_mnist(tmp_path / "data")
    task, train, _ = mnist_source(tmp_path, size=[14, 20])()
    assert task.shape == (1, 14, 20) and train.x.shape == (40, 1, 14, 20)


@pytest.mark.parametrize("split, first, num_classes", [("letters", 1, 26), ("balanced", 0, 47), ("byclass", 0, 62), ("digits", 0, 10)])
def test_emnist_is_upright_and_counts_from_zero(tmp_path, split, first, num_classes):
    prefixes = (f"emnist-{split}-train", f"emnist-{split}-test")
    written = write_mnist(tmp_path / "data", "EMNIST", prefixes, first, num_classes, sizes=(70, 62))
    task, train, test = mnist_source(tmp_path, mnist.EMNIST, split=split)()
    assert task.num_classes == len(task.class_names) == num_classes and "N/A" not in task.class_names
    assert task.name == f"emnist_{split}"
    assert np.array_equal(train.x[:, 0].numpy(), written["train"][0].transpose(0, 2, 1))
    assert np.array_equal(test.y.numpy(), written["test"][1] - first)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:10], lambda b: b"", lambda b: b"garbage " * 9, lambda b: b + b"0"])
def test_a_damaged_idx_file_is_named(tmp_path, name, damage):
    write_mnist(tmp_path / "data")
    path = tmp_path / "data/MNIST/raw" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"root must hold intact files, got a damaged one: .*{name} "):
        mnist_source(tmp_path)()


def test_a_label_out_of_range_is_refused(tmp_path):
    write_mnist(tmp_path / "data", num_classes=11)
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.*labels must be in 0\.\.9, got 10 in .*, image 10"):
        mnist_source(tmp_path)()


def test_images_and_labels_that_differ_in_number_are_refused(tmp_path):
    write_mnist(tmp_path / "data")
    write_idx(tmp_path / "data/MNIST/raw/train-labels-idx1-ubyte", np.zeros(39))
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte"):
        mnist_source(tmp_path)()


def test_an_unknown_emnist_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="split must be one of byclass, .*, got 'greek'"):
        mnist_source(tmp_path, mnist.EMNIST, split="greek")


@pytest.fixture
def mirror(tmp_path):
    """A local web server that offers MNIST's four files in their published form: compressed, with known MD5s."""
    write_mnist(tmp_path / "offered")
    offered, resources = tmp_path / "offered/MNIST/raw", []
    for path in sorted(offered.glob("*-ubyte")):
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        resources.append((packed.name, md5(packed)))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(offered)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    reader = type("MNIST", (torchvision.datasets.MNIST,), {"resources": resources, "mirrors": [f"http://127.0.0.1:{server.server_port}/"]})
    yield type("MNIST", (mnist.MNIST,), {"dataset": reader}), server
    server.shutdown()
    server.server_close()


def test_missing_files_are_downloaded_if_download_is_true(tmp_path, mirror):
    cls, _ = mirror
    with pytest.raises(ValueError, match="set data.download=true"):
        mnist_source(tmp_path, cls)()
    train = mnist_source(tmp_path, cls, download=True)()[1]
    assert train.digest == mnist_source(tmp_path, cls, root=str(tmp_path / "offered"))()[1].digest


def test_a_failed_download_is_reported_with_a_remedy(tmp_path, mirror):
    cls, server = mirror
    server.shutdown()
    server.server_close()
    with pytest.raises(ValueError, match="download of mnist must succeed, got RuntimeError: Error downloading [^$]*data.download=false"):
        mnist_source(tmp_path, cls, download=True)()


def write_pickle(path: Path, value) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))
    return md5(path)


def small_cifar(root: Path, source, labels_key: str, num_classes: int, parts: dict[str, bool]):
    """Batches in the original format, and torchvision's reader with the MD5s of these batches in place of the published ones."""
    dataset = source.dataset
    folder, lists, x = root / dataset.base_folder, {True: [], False: []}, rng.integers(0, 256, (len(parts), 30, 3072), dtype=np.uint8)
    for rows, (name, train) in zip(x, parts.items()):
        lists[train].append([name, write_pickle(folder / name, {"data": rows, labels_key: [i % num_classes for i in range(30)]})])
    names = {dataset.meta["key"]: [f"c{i}" for i in range(num_classes)]}
    meta = {**dataset.meta, "md5": write_pickle(folder / dataset.meta["filename"], names)}
    reader = type(dataset.__name__, (dataset,), {"train_list": lists[True], "test_list": lists[False], "meta": meta})
    return type(source.__name__, (source,), {"dataset": reader}), x.reshape(len(parts), 30, 3, 32, 32)


@pytest.mark.parametrize(
    "original, key, num_classes, parts",
    [
        (cifar.CIFAR10, "labels", 10, {"data_batch_1": True, "data_batch_2": True, "test_batch": False}),
        (cifar.CIFAR100, "fine_labels", 30, {"train": True, "test": False}),
    ],
)
def test_cifar_batches_are_decoded_and_checked(tmp_path, original, key, num_classes, parts):
    source, x = small_cifar(tmp_path / "data", original, key, num_classes, parts)
    build = lambda: source(**folders(tmp_path, **COLOR), size=None, download=False)
    task, train, test = build()()
    assert task.shape == (3, 32, 32) and task.class_names == tuple(f"c{i}" for i in range(num_classes))
    assert np.array_equal(train.x.numpy(), np.concatenate(x[:-1])) and np.array_equal(test.x.numpy(), x[-1])
    assert test.y.tolist() == [i % num_classes for i in range(30)]
    path = tmp_path / "data" / original.dataset.base_folder / next(iter(parts))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"damaged one: .*{path.name} .its MD5 is not the published one"):
        build()()


def test_svhn_files_are_decoded_and_checked(tmp_path):
    (tmp_path / "data").mkdir()
    x, y, split_list = rng.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8), np.arange(20) % 10 + 1, {}
    for part in ("train", "test"):
        path = tmp_path / "data" / f"{part}_32x32.mat"
        scipy.io.savemat(path, {"X": x, "y": y[:, None].astype(np.uint8)})
        split_list[part] = ["", path.name, md5(path)]
    reader = type("SVHN", (torchvision.datasets.SVHN,), {"split_list": split_list})
    source = type("SVHN", (svhn.SVHN,), {"dataset": reader})(**folders(tmp_path, **COLOR), size=None, download=False)
    task, train, _ = source()
    assert task.shape == (3, 32, 32) and task.num_classes == 10
    assert np.array_equal(train.x.numpy(), x.transpose(3, 2, 0, 1)) and np.array_equal(train.y.numpy(), y % 10)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged one: .*test_32x32.mat"):
        source()


def small_celeba(root: Path):
    """Six images in the original layout: three for training, one for validation, two for testing."""
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(1, 7)]
    for i, name in enumerate(names):
        Image.new("RGB", (178, 218), (40 * i, 0, 255)).save(folder / "img_align_celeba" / name)
    columns = {
        "list_eval_partition.txt": [f"{n} {p}" for n, p in zip(names, (0, 0, 0, 1, 2, 2))],
        "identity_CelebA.txt": [f"{n} 7" for n in names],
        "list_bbox_celeba.txt": ["6", "image_id x_1 y_1 width height", *(f"{n} 1 2 3 4" for n in names)],
        "list_landmarks_align_celeba.txt": ["6", "a b", *(f"{n} 1 2" for n in names)],
        "list_attr_celeba.txt": ["6", "Young Smiling ", *(f"{n}  1 {s}" for n, s in zip(names, (1, -1, 1, 1, -1, 1)))],
    }
    files = []
    for name, lines in columns.items():
        (folder / name).write_text("\n".join(lines) + "\n")
        files.append(("", md5(folder / name), name))
    reader = type("CelebA", (torchvision.datasets.CelebA,), {"file_list": files})
    return type("CelebA", (celeba.CelebA,), {"dataset": reader})


def test_an_attribute_is_the_label_of_celeba(tmp_path):
    source = small_celeba(tmp_path / "data")
    unnormalized = {"scale": 1, "mean": [0.0] * 3, "std": [1.0] * 3}
    build = lambda name: source(**folders(tmp_path, **unnormalized), size=[84, 84], download=False, attribute=name)
    task, train, test = build("Smiling")()
    assert task.shape == (3, 84, 84) and task.class_names == ("not Smiling", "Smiling")
    assert train.y.tolist() == [1, 0, 1] and test.y.tolist() == [0, 1]
    assert train.images(torch.tensor([0]))[0, 2].mean() > 250  # values stay in 0..255
    assert build("Young")()[1].y.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="attribute must be one of Young, Smiling, got 'Hat'"):
        build("Hat")()
    path = tmp_path / "data/celeba/img_align_celeba/000005.jpg"
    for end in (-100, 300):
        path.write_bytes(path.read_bytes()[:end])
        with pytest.raises(ValueError, match="root must hold images that can be read, got 1 that cannot: .*000005.jpg .OSError"):
            source(**folders(tmp_path, **unnormalized), size=[42, 42], download=False, attribute="Smiling")()


# ----------------------------------------------------------------------------------------------------------------- real files


@pytest.mark.skipif(not (REAL_MNIST / "MNIST/raw").is_dir(), reason="set FEDKD_MNIST to a folder with MNIST/raw")
def test_real_mnist_and_a_truncated_copy_of_it(tmp_path):
    task, train, test = mnist_source(tmp_path, root=str(REAL_MNIST))()
    assert (len(train), len(test), task.num_classes) == (60000, 10000, 10)
    assert torch.bincount(train.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    mean = train.x.float().mean() / 255
    assert abs(mean - 0.1307) < 1e-4
    raw = tmp_path / "data/MNIST/raw"
    raw.mkdir(parents=True)
    for path in (REAL_MNIST / "MNIST/raw").glob("*-ubyte"):
        (raw / path.name).symlink_to(path.resolve())
    (raw / "t10k-images-idx3-ubyte").unlink()
    (raw / "t10k-images-idx3-ubyte").write_bytes((REAL_MNIST / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()[:5_000_000])
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte .it holds 5000000 bytes"):
        mnist_source(tmp_path)()
