"""Small data sets in files, as tests write them, and the sources that read them."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from fedkd.data import mnist
from fedkd.data.image_folder import ImageFolder

GRAY = {"scale": 255, "mean": [0.5], "std": [0.5]}
COLOR = {"scale": 255, "mean": [0.5] * 3, "std": [0.5] * 3}
rng = np.random.default_rng(0)


def folders(tmp_path, **extra):
    """The folders of data and cache, and further arguments of a source."""
    return {"root": str(tmp_path / "data"), "cache": str(tmp_path / "cache"), **extra}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


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
    return cls(**{**folders(tmp_path, **GRAY), "size": None, "download": False, **extra})


def write_folder(root: Path, classes=("cat", "dog"), num=3, size=(12, 10)):
    """Training and test images. The first channel is 200 for dogs and 50 for cats."""
    for part in ("train", "test"):
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(num):
                Image.new("RGB", size, (50 + 150 * label, i, 0)).save(root / part / name / f"{i}.png")


def folder_source(tmp_path, **extra):
    return ImageFolder(**{**folders(tmp_path, **COLOR), "size": None, "channels": 3, "groups": None, "skip_unreadable": False, **extra})
