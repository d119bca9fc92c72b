"""Data that other libraries have divided among clients, as files that fedkd reads: Parquet files and a partition file."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fedkd.errors import require

Part = tuple[np.ndarray, np.ndarray]
"""Images [n, height, width] or [n, height, width, 3], bytes, and their labels [n], whole numbers."""


def write_client_files(folder: str | Path, clients: Sequence[tuple[Part, Part]]) -> None:
    """Write ``train.parquet``, ``test.parquet`` and ``partition.npz``, for ``data=parquet`` and ``partition=from_file``.

    The training set is that of all clients one after the other, the global test set likewise.

    Args:
        folder: where the files are written; it is made if it does not exist.
        clients: for each client its training examples and its test examples.

    Raises:
        ConfigError: images are not bytes, or a part has unequally many images and labels.
        OSError: the files cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    indices: dict[str, Any] = {}
    for number, part in enumerate(("train", "test")):
        images: list[bytes] = []
        labels: list[int] = []
        for client, (x, y) in enumerate(parts[number] for parts in clients):
            name = f"{part} images of client {client}"
            require(x.dtype == np.uint8, name, "must be bytes (uint8), 0..255", str(x.dtype))
            require(len(x) == len(y), name, f"must be as many as its labels, {len(y)}", len(x))
            indices[f"{part}_{client}"] = np.arange(len(labels), len(labels) + len(y))
            images += [_png(image) for image in x]
            labels += [int(label) for label in y]
        pq.write_table(pa.table({"image": images, "label": labels}), folder / f"{part}.parquet")
    np.savez(folder / "partition.npz", **indices)


def _png(image: np.ndarray) -> bytes:
    """An image as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
