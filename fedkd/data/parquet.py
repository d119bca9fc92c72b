"""Images in Parquet files, one row per image: ``train.parquet`` and ``test.parquet``, or the layout of the Hugging Face Hub."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fedkd.data.base import Load, ResizedSource, decoder_errors, fill_arrays, to_array
from fedkd.data.cache import Allocate, Decoded
from fedkd.data.labels import find_classes, read_labels
from fedkd.errors import ConfigError, require
from fedkd.types import LeftOut

BATCH_ROWS = 1024
"""Rows that are read at a time, so that memory stays small for files of any size."""

TEST_PARTS = ("test", "validation", "valid", "val")
"""Names of the test set. The first one that has files is used."""

IMAGE_COLUMNS = ("image", "img", "images", "pixel_values", "picture", "jpg", "png")
"""Names of the image column that are found by themselves, in order of preference."""

LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class", "y", "cls")
"""Names of the label column that are found by themselves, in order of preference."""


@dataclass(frozen=True, kw_only=True)
class Parquet(ResizedSource):
    """Images in Parquet files, with one column of encoded images (PNG, JPEG, ...) and one column of labels.

    A part is ``<part>.parquet`` or ``<part>-00000-of-0000N.parquet``, in ``root`` or ``root/data``. The parts are ``train`` and ``test``,
    or ``validation`` where there is no test set. Labels are whole numbers, words or truth values. Without class names, the classes are the
    labels of the training set in ascending order.

    Args:
        image_column: name of the column of images: bytes, or a struct with a field ``bytes``. null: the first of
            :data:`IMAGE_COLUMNS` that is there.
        label_column: name of the column of labels. null: the first of :data:`LABEL_COLUMNS` that is there.
        names_key: key of the schema's metadata that holds the C class names, separated by spaces. If it is null or missing, the names in
            the metadata of the Hugging Face Hub are used, if there are any.
        group_column: name of a column of both parts that holds the group of each example, such as a writer: whole numbers or words. Groups
            are numbered in ascending order. null: no groups.
    """

    image_column: str | None
    label_column: str | None
    names_key: str | None
    group_column: str | None

    @property
    def name(self) -> str:
        """``parquet``."""
        return "parquet"

    def recipe(self) -> dict[str, object]:
        """``size``, ``channels``, and the columns."""
        groups = {} if self.group_column is None else {"groups": self.group_column, "group_names": True}
        return {**super().recipe(), "columns": [self.image_column, self.label_column, self.names_key], "labels": "as found", **groups}

    def files(self) -> list[Path]:
        """The files of both parts, see :meth:`fedkd.data.base.DataSource.files`."""
        train, test, _ = self._parts()
        return [*train, *test]

    def passed_over(self) -> list[LeftOut]:
        """The Parquet files in ``root`` and ``root/data`` that are not used."""
        train, test, others = self._parts()
        reason = f"Parquet files that are neither {train[0].name} nor {test[0].name}"
        return [LeftOut(str(others[0].relative_to(self.folder)), reason, len(others))] if others else []

    def decode(self, allocate: Allocate) -> Decoded:
        """Decode both parts, see :meth:`fedkd.data.base.DataSource.decode`."""
        train, test, _ = self._parts()
        columns = self._columns(train[0])
        for path in (*train, *test):
            self._check_columns(path, *columns)
        names = self._class_names(train[0], columns[1])
        labels = {paths[0]: self._labels(paths, columns[1]) for paths in (train, test)}
        classes = find_classes(labels[train[0]], names, str(train[0]))
        indices = [classes.indices(labels[paths[0]], str(paths[0])) for paths in (train, test)]  # all checks come before the long decoding
        groups, group_names = self._groups(train, test)
        unreadable: list[tuple[str, str]] = []
        for part, paths, y, group in zip(("train", "test"), (train, test), indices, groups):
            examples = partial(self._examples_of, paths, columns[0], y)
            number, location = len(classes.values), str(paths[0])
            unreadable += fill_arrays(allocate, part, len(y), examples, number, location, self.skip_unreadable, group)
        return Decoded(classes.names, tuple(unreadable), group_names)

    # ------------------------------------------------------------------------------------------------------------------ files
    def _parts(self) -> tuple[list[Path], list[Path], list[Path]]:
        """The files of the training set, those of the test set, and other Parquet files.

        Raises:
            ConfigError: a part is missing.
        """
        folders = [folder for folder in (self.folder, self.folder / "data") if folder.is_dir()]
        found = [path for folder in folders for path in sorted(folder.glob("*.parquet")) if not path.name.startswith(".")]
        train = self._files_of("train", found)
        test = next((paths for part in TEST_PARTS if (paths := self._files_of(part, found))), [])
        there = f"; there are {', '.join(path.name for path in found[:10])}" if found else ""
        for part, paths in (("train", train), ("test", test)):
            if not paths:
                names = f"train.parquet and test.parquet, or the Hub's data/{part}-00000-of-00001.parquet"
                raise self.missing_file(self.folder / f"{part}.parquet", f"point data.root to the folder that holds {names}{there}")
        return train, test, [path for path in found if path not in (*train, *test)]

    def _files_of(self, part: str, found: Sequence[Path]) -> list[Path]:
        """The files of one part, in order: one file, or all files of the Hub's layout.

        Raises:
            ConfigError: one of several files is missing.
        """
        whole = [path for path in found if path.name == f"{part}.parquet"]
        if whole:
            return whole[:1]
        several = [path for path in found if path.name.startswith(f"{part}-") and "-of-" in path.name]
        several = [path for path in several if path.parent == several[0].parent]
        if several:
            number = several[0].stem.rpartition("-of-")[2]
            expected = [f"{part}-{i:05d}-of-{number}" for i in range(int(number) if number.isdecimal() else 0)]
            for name in expected:
                if not any(path.stem.startswith(name) for path in several):
                    raise self.missing_file(
                        several[0].with_name(f"{name}.parquet"), "download all files of the part, and set data.root to them"
                    )
        return several

    def _check_columns(self, path: Path, image_column: str, label_column: str) -> None:
        """Require both columns, and bytes in the column of images."""
        schema = self._schema(path)
        for parameter, column in (("image_column", image_column), ("label_column", label_column), ("group_column", self.group_column)):
            require(column is None or column in schema.names, parameter, f"must be a column of {path} ({_columns_of(schema)})", column)
        kind = _bytes_type(schema.field(image_column).type)
        rule = f"must hold encoded images in {path}, as bytes (PNG, JPEG, ...) and not as numbers; encode them with Pillow's Image.save"
        require(pa.types.is_binary(kind) or pa.types.is_large_binary(kind), "image_column", rule, str(kind))

    def _columns(self, path: Path) -> tuple[str, str]:
        """The names of the columns of images and of labels."""
        schema = self._schema(path)
        encoded = [field.name for field in schema if _is_bytes(field.type)]
        image = self.image_column or next((name for name in IMAGE_COLUMNS if name in encoded), None)
        image = image or next((name for name in IMAGE_COLUMNS if name in schema.names), None)
        if image is None and len(encoded) == 1:
            image = encoded[0]
        label = self.label_column or next((name for name in LABEL_COLUMNS if name in schema.names and name != image), None)
        for parameter, column, known in (("image_column", image, IMAGE_COLUMNS), ("label_column", label, LABEL_COLUMNS)):
            if column is None:
                raise ConfigError(
                    f"{parameter} must be set where no column is called {' or '.join(known[:3])}, got columns {_columns_of(schema)} "
                    f"in {path}; set data.{parameter}=NAME"
                )
        assert image is not None and label is not None
        return image, label

    def _schema(self, path: Path) -> pa.Schema:
        """The schema of a file."""
        with decoder_errors(str(path)), pq.ParquetFile(path) as file:
            return file.schema_arrow

    def _class_names(self, path: Path, label_column: str) -> tuple[str, ...]:
        """The class names in the schema's metadata, or none."""
        metadata = self._schema(path).metadata or {}
        stored = metadata.get((self.names_key or "").encode(), b"") if self.names_key != "huggingface" else b""
        if stored:
            return tuple(stored.decode(errors="replace").split())
        try:
            features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
            return tuple(map(str, features[label_column]["names"]))
        except (ValueError, KeyError, TypeError):
            return ()

    # ------------------------------------------------------------------------------------------------------------------- rows
    def _labels(self, paths: Sequence[Path], column: str, parameter: str = "label_column") -> list[int | str]:
        """The labels of all rows, as the files hold them."""
        labels: list[int | str] = []
        for path in paths:
            with decoder_errors(str(path)):
                table = pq.read_table(path, columns=[column])
            labels += read_labels(table.column(column), str(path), parameter)
        return labels

    def _groups(self, train: Sequence[Path], test: Sequence[Path]) -> tuple[Sequence[np.ndarray | None], tuple[str, ...]]:
        """The group of each row of both parts, numbered in ascending order, and the names; None where there are no groups."""
        if self.group_column is None:
            return [None, None], ()
        read = [np.array(self._labels(paths, self.group_column, "group_column")) for paths in (train, test)]
        names, numbers = np.unique(np.concatenate(read), return_inverse=True)
        return np.split(numbers.astype(np.int64), [len(read[0])]), tuple(map(str, names))

    def _examples_of(self, paths: Sequence[Path], column: str, labels: np.ndarray) -> Iterator[tuple[str, Load]]:
        """The location of every example, and a function that reads it."""
        row = 0
        for path in paths:
            first = row
            for image in _column(path, column):
                yield f"{path.relative_to(self.folder)}, row {row - first}", partial(self._load, image, int(labels[row]))
                row += 1

    def _load(self, image: pa.Scalar, label: int) -> tuple[np.ndarray, int]:
        """One image [channels, height, width] with its label."""
        encoded = image.as_py()
        if encoded is None:
            raise ValueError("the image is null")
        with Image.open(io.BytesIO(encoded)) as opened:
            return to_array(opened, self.channels, self.size), label


def _column(path: Path, column: str) -> Iterator[pa.Scalar]:
    """Every value of a column of images."""
    with decoder_errors(str(path)):
        file = pq.ParquetFile(path)
        batches = file.iter_batches(BATCH_ROWS, columns=[column])
    with file:
        while True:
            with decoder_errors(str(path)):
                batch = next(batches, None)
            if batch is None:
                return
            images = batch.column(0)
            yield from images.field("bytes") if pa.types.is_struct(images.type) else images


def _bytes_type(kind: pa.DataType) -> pa.DataType:
    """The type of a column of bytes, or of the field ``bytes`` of a column of structs."""
    return kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind


def _is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds encoded images, by its type."""
    return pa.types.is_binary(_bytes_type(kind)) or pa.types.is_large_binary(_bytes_type(kind))


def _columns_of(schema: pa.Schema) -> str:
    """Names and types of all columns, for a message."""
    return ", ".join(f"{field.name}: {str(field.type).replace(chr(10), ' ')}" for field in schema)
