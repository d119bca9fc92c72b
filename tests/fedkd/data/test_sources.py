"""Data sources: what they decode, what they refuse, and the cache that all processes of a machine share."""

import gzip
import hashlib
import io
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from inspect import signature
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch
import torchvision.datasets
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from PIL import Image

from fedkd.data import cache, celeba, cifar, mnist, svhn
from fedkd.data.digits import Digits
from fedkd.data.image_folder import ImageFolder
from fedkd.data.parquet import Parquet

ROOT = Path(__file__).parents[3]
YAMLS = [
    path for path in sorted((ROOT / "conf" / "data").glob("*.yaml")) if path.stem != "rotated_mnist"
]  # a source of sources: see test_domains
REAL_MNIST = Path(os.environ.get("FEDKD_MNIST") or ROOT.parent / "shared" / "data" / "mnist")
GREY = {"scale": 255, "mean": [0.5], "std": [0.5]}
COLOUR = {"scale": 255, "mean": [0.5] * 3, "std": [0.5] * 3}
rng = np.random.default_rng(0)


def common(tmp_path, **extra):
    return {"root": str(tmp_path / "data"), "cache": str(tmp_path / "cache"), **extra}


# ---------------------------------------------------------------------------------------------------------------------- conf/


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_a_yaml_holds_exactly_the_parameters_of_its_source(path):
    conf = OmegaConf.to_container(OmegaConf.load(path))
    parameters = signature(get_class(conf.pop("_target_"))).parameters
    assert set(conf) == set(parameters)
    assert all(p.default is p.empty for p in parameters.values()), "defaults live in yaml only"


@pytest.mark.parametrize("path", [p for p in YAMLS if p.stem != "digits"], ids=lambda path: path.stem)
def test_every_source_names_what_is_missing_and_what_to_do(path, tmp_path):
    source = instantiate(OmegaConf.load(path), root=str(tmp_path / "nowhere"), cache=str(tmp_path))
    with pytest.raises(ValueError, match=r"root must hold the files of .*nowhere.* is missing; .*data\.root"):
        source()


# -------------------------------------------------------------------------------------------------------------------- digits


def test_digits_hold_out_every_fifth_example_of_each_class():
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


# --------------------------------------------------------------------------------------------------------------- torchvision


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def write_mnist(root: Path, folder="MNIST", prefixes=("train", "t10k"), first=0, num_classes=10, sizes=(40, 20)):
    written = {}
    for part, prefix, size in zip(("train", "test"), prefixes, sizes):
        x = rng.integers(0, 256, (size, 28, 28))
        y = np.arange(size) % num_classes + first
        write_idx(root / folder / "raw" / f"{prefix}-images-idx3-ubyte", x)
        write_idx(root / folder / "raw" / f"{prefix}-labels-idx1-ubyte", y)
        written[part] = (x, y)
    return written


def mnist_source(tmp_path, cls=mnist.MNIST, **extra):
    return cls(**{**common(tmp_path, **GREY), "size": None, "download": False, **extra})


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
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.*labels must be in 0\.\.9, got 10 at position 10"):
        mnist_source(tmp_path)()


def test_images_and_labels_that_differ_in_number_are_refused(tmp_path):
    write_mnist(tmp_path / "data")
    write_idx(tmp_path / "data/MNIST/raw/train-labels-idx1-ubyte", np.zeros(39))
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte"):
        mnist_source(tmp_path)()


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


def test_mean_needs_one_number_a_channel(tmp_path):
    write_mnist(tmp_path / "data")
    with pytest.raises(ValueError, match="mean must hold one number per channel, 1, got"):
        mnist_source(tmp_path, mean=[0.5] * 3, std=[0.5] * 3)()


def test_an_unknown_emnist_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="split must be one of byclass, .*, got 'greek'"):
        mnist_source(tmp_path, mnist.EMNIST, split="greek")


@pytest.fixture
def mirror(tmp_path):
    """A web server of this test's own, which offers MNIST's four files as they are published: compressed, with known MD5s."""
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


def test_missing_files_are_downloaded_by_torchvision_if_asked_for(tmp_path, mirror):
    cls, _ = mirror
    with pytest.raises(ValueError, match="set data.download=true"):
        mnist_source(tmp_path, cls)()
    train = mnist_source(tmp_path, cls, download=True)()[1]
    assert train.digest == mnist_source(tmp_path, cls, root=str(tmp_path / "offered"))()[1].digest


def test_a_download_that_fails_says_what_to_do(tmp_path, mirror):
    cls, server = mirror
    server.shutdown()
    server.server_close()
    with pytest.raises(ValueError, match="download of mnist must succeed, got RuntimeError: Error downloading [^$]*data.download=false"):
        mnist_source(tmp_path, cls, download=True)()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_pickle(path: Path, value) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))
    return md5(path)


def small_cifar(root: Path, ours, labels_key: str, num_classes: int, parts: dict[str, bool]):
    """Batches in the original format, and torchvision's own reader with the MD5s of these batches instead of the published ones."""
    theirs = ours.dataset
    folder, lists, x = root / theirs.base_folder, {True: [], False: []}, rng.integers(0, 256, (len(parts), 30, 3072), dtype=np.uint8)
    for rows, (name, train) in zip(x, parts.items()):
        lists[train].append([name, write_pickle(folder / name, {"data": rows, labels_key: [i % num_classes for i in range(30)]})])
    names = {theirs.meta["key"]: [f"c{i}" for i in range(num_classes)]}
    meta = {**theirs.meta, "md5": write_pickle(folder / theirs.meta["filename"], names)}
    reader = type(theirs.__name__, (theirs,), {"train_list": lists[True], "test_list": lists[False], "meta": meta})
    return type(ours.__name__, (ours,), {"dataset": reader}), x.reshape(len(parts), 30, 3, 32, 32)


@pytest.mark.parametrize(
    "ours, key, num_classes, parts",
    [
        (cifar.CIFAR10, "labels", 10, {"data_batch_1": True, "data_batch_2": True, "test_batch": False}),
        (cifar.CIFAR100, "fine_labels", 30, {"train": True, "test": False}),
    ],
)
def test_cifar_batches_are_decoded_and_checked(tmp_path, ours, key, num_classes, parts):
    source, x = small_cifar(tmp_path / "data", ours, key, num_classes, parts)
    build = lambda: source(**common(tmp_path, **COLOUR), size=None, download=False)
    task, train, test = build()()
    assert task.shape == (3, 32, 32) and task.class_names == tuple(f"c{i}" for i in range(num_classes))
    assert np.array_equal(train.x.numpy(), np.concatenate(x[:-1])) and np.array_equal(test.x.numpy(), x[-1])
    assert test.y.tolist() == [i % num_classes for i in range(30)]
    path = tmp_path / "data" / ours.dataset.base_folder / next(iter(parts))
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
    source = type("SVHN", (svhn.SVHN,), {"dataset": reader})(**common(tmp_path, **COLOUR), size=None, download=False)
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


def test_celeba_labels_are_one_attribute(tmp_path):
    source = small_celeba(tmp_path / "data")
    unnormalised = {"scale": 1, "mean": [0.0] * 3, "std": [1.0] * 3}
    build = lambda name: source(**common(tmp_path, **unnormalised), size=[84, 84], download=False, attribute=name)
    task, train, test = build("Smiling")()
    assert task.shape == (3, 84, 84) and task.class_names == ("not Smiling", "Smiling")
    assert train.y.tolist() == [1, 0, 1] and test.y.tolist() == [0, 1]
    assert train.images(torch.tensor([0]))[0, 2].mean() > 250  # 0..255 as they are
    assert build("Young")()[1].y.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="attribute must be one of Young, Smiling, got 'Hat'"):
        build("Hat")()
    path = tmp_path / "data/celeba/img_align_celeba/000005.jpg"
    for end in (-100, 300):
        path.write_bytes(path.read_bytes()[:end])
        with pytest.raises(ValueError, match="damaged one: .*000005.jpg .OSError"):
            source(**common(tmp_path, **unnormalised), size=[42, 42], download=False, attribute="Smiling")()


# -------------------------------------------------------------------------------------------------------------- image folder


def write_folder(root: Path, classes=("cat", "dog"), num=3, size=(12, 10)):
    """Train and test images; the first channel of a dog's is 200, that of a cat's 50."""
    for part in ("train", "test"):
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(num):
                Image.new("RGB", size, (50 + 150 * label, i, 0)).save(root / part / name / f"{i}.png")


def folder_source(tmp_path, **extra):
    return ImageFolder(**{**common(tmp_path, **COLOUR), "size": None, "channels": 3, **extra})


def test_folders_are_classes(tmp_path):
    write_folder(tmp_path / "data")
    (tmp_path / "data/train/cat/notes.txt").write_text("not an image")
    (tmp_path / "data/train/.hidden").mkdir()
    task, train, test = folder_source(tmp_path)()
    assert task.shape == (3, 10, 12) and task.class_names == ("cat", "dog")
    assert train.y.tolist() == test.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.x[:, 0].unique(dim=0).flatten().unique().tolist() == [50, 200] and train.x[:, 1, 0, 0].tolist() == [0, 1, 2] * 2
    task, train, _ = folder_source(tmp_path, channels=1, size=[5, 7], mean=[0.0], std=[1.0])()
    assert task.shape == (1, 5, 7) and train.x.shape == (6, 1, 5, 7)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\x00" * 50, lambda b: b[:20] + b"xx" + b[22:]])
def test_a_broken_png_is_named(tmp_path, damage):
    write_folder(tmp_path / "data")
    path = tmp_path / "data/test/dog/1.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="damaged one: .*test/dog/1.png"):
        folder_source(tmp_path)()


def test_images_of_several_sizes_need_a_size(tmp_path):
    write_folder(tmp_path / "data")
    Image.new("RGB", (9, 9)).save(tmp_path / "data/train/dog/9.png")
    with pytest.raises(ValueError, match=r"images must have one shape, \(3, 10, 12\) as the first, got \(3, 9, 9\) at 6; set data.size"):
        folder_source(tmp_path)()
    assert len(folder_source(tmp_path, size=[8, 8])()[1]) == 7


def test_test_images_of_another_size_need_a_size(tmp_path):
    write_folder(tmp_path / "data")
    for path in (tmp_path / "data/test").rglob("*.png"):
        Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(ValueError, match=r"test images must have the shape \(3, 10, 12\) of the training images"):
        folder_source(tmp_path)()


def test_deep_images_are_refused(tmp_path):
    write_folder(tmp_path / "data")
    Image.fromarray(np.full((10, 12), 40000, np.uint16)).save(tmp_path / "data/train/dog/1.png")
    with pytest.raises(ValueError, match="train/dog/1.png must hold 8 bits a channel, got 'I;16'"):
        folder_source(tmp_path)()


def test_empty_and_unknown_classes_are_refused(tmp_path):
    write_folder(tmp_path / "data")
    (tmp_path / "data/test/cow").mkdir()
    with pytest.raises(ValueError, match=r"must hold classes of the training folder only, got \['cow'\]"):
        folder_source(tmp_path)()
    (tmp_path / "data/train/cow").mkdir()
    with pytest.raises(ValueError, match=r"at least one image .*empty ones, got \['cow'\]"):
        folder_source(tmp_path)()


def test_channels_are_one_or_three(tmp_path):
    with pytest.raises(ValueError, match=r"channels must be 1 \(grey\) or 3 \(colour\), got 4"):
        folder_source(tmp_path, channels=4)


# ------------------------------------------------------------------------------------------------------------------- parquet


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(root: Path, labels=None, struct=False, metadata=None, num=30, spoil=None, columns=("img", "label")):
    root.mkdir(parents=True, exist_ok=True)
    x = rng.integers(0, 256, (num, 6, 5, 3), dtype=np.uint8)
    encoded = [png(image) for image in x]
    if spoil is not None:
        encoded[7] = spoil(encoded[7])
    images = pa.array([{"bytes": b, "path": ""} for b in encoded] if struct else encoded)
    y = pa.array(np.arange(num) % 3 if labels is None else labels)
    table = pa.table(dict(zip(columns, (images, y)))).replace_schema_metadata(metadata)
    for part in ("train", "test"):
        pq.write_table(table, root / f"{part}.parquet")
    return x


def parquet_source(tmp_path, **extra):
    fixed = {"image_column": "img", "label_column": "label", "names_key": "names", "size": None, "channels": 3}
    return Parquet(**{**common(tmp_path, **COLOUR), **fixed, **extra})


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_rows_are_decoded(tmp_path, struct):
    x = write_parquet(tmp_path / "data", struct=struct, metadata={"names": "red green blue pink"})
    task, train, test = parquet_source(tmp_path)()
    assert task.class_names == ("red", "green", "blue", "pink") and task.num_classes == 4 and task.shape == (3, 6, 5)
    assert np.array_equal(train.x.numpy(), x.transpose(0, 3, 1, 2)) and test.y.tolist() == [i % 3 for i in range(30)]
    task, *_ = parquet_source(tmp_path, names_key=None)()
    assert task.num_classes == 3 and task.class_names == ()


@pytest.mark.parametrize(
    "spoil, why",
    [
        (lambda b: b[:60], "train.parquet, row 7"),
        (lambda b: b"", "train.parquet, row 7"),
        (lambda b: None, "row 7 .the image or the label is null"),
    ],
)
def test_a_broken_image_in_a_row_is_named(tmp_path, spoil, why):
    write_parquet(tmp_path / "data", spoil=spoil)
    with pytest.raises(ValueError, match=f"damaged one: .*{why}"):
        parquet_source(tmp_path)()


@pytest.mark.parametrize(
    "labels, why",
    [
        ([0.5] * 30, "label_column must hold integers in .*train.parquet, got 'double'"),
        (["a"] * 30, "must hold integers.*got 'string'"),
        ([0] * 29 + [-1], r"labels must be in 0\.\.29, got -1 at position 29"),
        ([0] * 29 + [None], "row 29 .the image or the label is null"),
        ([2**64 - 1] * 30, r"train.parquet .labels must be in 0\.\.29"),
    ],
)
def test_labels_that_are_no_labels_are_refused(tmp_path, labels, why):
    write_parquet(tmp_path / "data", labels=pa.array(labels, pa.uint64()) if labels[0] == 2**64 - 1 else labels)
    with pytest.raises(ValueError, match=why):
        parquet_source(tmp_path)()


def test_more_labels_than_names_are_refused(tmp_path):
    write_parquet(tmp_path / "data", metadata={"names": "red green"})
    with pytest.raises(ValueError, match=r"train.parquet .labels must be in 0\.\.1, got 2 at position 2"):
        parquet_source(tmp_path)()


def test_test_labels_beyond_the_training_labels_are_refused(tmp_path):
    write_parquet(tmp_path / "other", labels=[3] * 30)
    write_parquet(tmp_path / "data")
    (tmp_path / "other/test.parquet").replace(tmp_path / "data/test.parquet")
    with pytest.raises(ValueError, match=r"test.parquet .labels must be in 0\.\.2, got 3 at position 0"):
        parquet_source(tmp_path)()


def test_missing_and_unfit_columns_are_refused(tmp_path):
    write_parquet(tmp_path / "data")
    with pytest.raises(ValueError, match=r"label_column must be a column of .*train.parquet \(img, label\), got 'fine'"):
        parquet_source(tmp_path, label_column="fine")()
    with pytest.raises(ValueError, match="image_column must hold bytes in .*train.parquet, got 'int64'"):
        parquet_source(tmp_path, image_column="label")()


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b"PAR1 garbage PAR1",
        lambda b: b[:40] + b"\xff" * 900 + b[940:],
    ],
)
def test_a_damaged_parquet_file_is_named(tmp_path, damage):
    write_parquet(tmp_path / "data")
    path = tmp_path / "data/test.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="damaged one: .*test.parquet"):
        parquet_source(tmp_path)()


# --------------------------------------------------------------------------------------------------------------------- cache


def entry_of(tmp_path) -> Path:
    (entry,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    return entry


def test_content_and_not_place_makes_the_digest(tmp_path):
    write_folder(tmp_path / "data")
    here = folder_source(tmp_path)()[1]
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    there = folder_source(tmp_path, root=str(tmp_path / "elsewhere"))()[1]
    assert here.digest == there.digest and len(list((tmp_path / "cache").glob("image_folder-*/"))) == 2
    Image.new("RGB", (12, 10), (1, 2, 3)).save(tmp_path / "elsewhere/train/cat/0.png")
    assert folder_source(tmp_path, root=str(tmp_path / "elsewhere"))()[1].digest != here.digest, "a changed file must be noticed"


def test_normalisation_does_not_decode_again(tmp_path, caplog):
    write_folder(tmp_path / "data")
    with caplog.at_level(logging.INFO, "fedkd"):
        first, second = folder_source(tmp_path)()[1], folder_source(tmp_path, scale=1, mean=[0.0] * 3)()[1]
    assert caplog.text.count("decoding images into") == 1
    assert first.digest == second.digest and first.scale != second.scale


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_arrays_are_memory_mapped_and_writing_to_them_spares_the_file(tmp_path):
    write_folder(tmp_path / "data")
    train = folder_source(tmp_path)()[1]
    before = train.x.clone()
    train.x.zero_()
    assert torch.equal(folder_source(tmp_path)()[1].x, before)
    assert str(entry_of(tmp_path)) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "train_x.npy").write_bytes((entry / "train_x.npy").read_bytes()[:-1]),
        lambda entry: (entry / "test_y.npy").write_bytes((entry / "test_y.npy").read_bytes()[:-1] + b"\x01"),
        lambda entry: (entry / "train_x.npy").write_bytes(b""),
        lambda entry: (entry / "test_x.npy").unlink(),
        lambda entry: (entry / "meta.json").unlink(),
        lambda entry: (entry / "meta.json").write_text("{"),
        lambda entry: (entry / "meta.json").write_text("[]"),
        lambda entry: (entry / "meta.json").write_text((entry / "meta.json").read_text().replace('"cat"', '"cow"')),
        lambda entry: [path.unlink() for path in entry.iterdir()],
    ],
    ids=["truncated", "tampered", "emptied", "array missing", "meta missing", "meta half", "meta odd", "names tampered", "nothing left"],
)
def test_a_damaged_entry_is_noticed_and_built_anew(tmp_path, caplog, damage):
    write_folder(tmp_path / "data")
    task, train, _ = folder_source(tmp_path)()
    x, digest = train.x.clone(), train.digest
    damage(entry_of(tmp_path))
    with caplog.at_level(logging.INFO, "fedkd"):
        task_again, again, _ = folder_source(tmp_path)()
    assert "is damaged" in caplog.text and "decoding anew" in caplog.text
    assert task_again == task and again.digest == digest and torch.equal(again.x, x)
    caplog.clear()
    folder_source(tmp_path)()
    assert not caplog.records


def test_checksums_are_computed_once_per_process(tmp_path, monkeypatch):
    write_folder(tmp_path / "data")
    folder_source(tmp_path)()
    monkeypatch.setattr(cache, "file_digest", lambda path: pytest.fail(f"{path} was read again"))
    folder_source(tmp_path)()


def test_an_entry_that_fails_leaves_nothing(tmp_path):
    write_folder(tmp_path / "data")
    (tmp_path / "data/test/dog/2.png").write_bytes(b"broken")
    with pytest.raises(ValueError):
        folder_source(tmp_path)()
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


BUILDER = """
import os, sys, time
from pathlib import Path
from fedkd.data import cache
root, log, mode = sys.argv[1:]
def decode(new):
    Path(log).open("a").write("decoded\\n")
    x = new("x", (1000,), "int64")
    x[:500] = 1
    if mode == "die":
        os._exit(9)
    time.sleep(0.4)
    x[500:] = 2
    return ("a", "b")
content = cache.load(root, "toy", {"k": 1}, decode)
print(content.digest, int(content.arrays["x"].sum()), *content.class_names)
"""


def builder(tmp_path, mode="live"):
    command = [sys.executable, "-c", BUILDER, str(tmp_path / "cache"), str(tmp_path / "log"), mode]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_of_processes_that_start_together_one_decodes(tmp_path):
    together = [builder(tmp_path) for _ in range(3)]
    said = {process.communicate(timeout=60)[0] for process in together}
    assert len(said) == 1 and said.pop().endswith(" 1500 a b\n")
    assert (tmp_path / "log").read_text() == "decoded\n"


def test_a_killed_builder_leaves_no_entry_and_its_remains_are_swept(tmp_path):
    assert builder(tmp_path, "die").wait(60) == 9
    assert [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".toy-")]
    assert builder(tmp_path).communicate(timeout=60)[0].endswith(" 1500 a b\n")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".toy-")]


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    write_folder(tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cache must be a directory that can be written and has room, got .*file/below.*set data\.cache"):
        folder_source(tmp_path, cache=str(tmp_path / "file" / "below"))()


def test_the_default_cache_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_directory(None) == tmp_path / "xdg" / "fedkd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_directory(None) == tmp_path / ".cache" / "fedkd"
    assert cache.cache_directory("~/mine") == tmp_path / "mine"


def test_meta_tells_shapes(tmp_path):
    write_folder(tmp_path / "data")
    folder_source(tmp_path)()
    files = json.loads((entry_of(tmp_path) / "meta.json").read_text())["content"]["files"]
    assert files["train_x"]["shape"] == [6, 3, 10, 12] and set(files) == {"train_x", "train_y", "test_x", "test_y"}


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
