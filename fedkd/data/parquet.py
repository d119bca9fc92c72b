"""Images in Parquet files: ``root/train.parquet`` and ``root/test.parquet``, one row per image."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fedkd.data.base import ResizedSource, damaged_file, decoder_errors, fill_arrays, to_array
from fedkd.data.cache import Allocate
from fedkd.errors import require

BATCH_ROWS = 1024
"""Rows that are read at a time, so that memory stays small for files of any size."""


@dataclass(frozen=True, kw_only=True)
class Parquet(ResizedSource):
    """Images in two Parquet files, with one column of encoded images (PNG, JPEG, ...) and one column of integer labels.

    Args:
        image_column: name of the column of images: bytes, or a struct with a field ``bytes``.
        label_column: name of the column of labels, integers 0..C-1.
        names_key: key of the schema's metadata that holds the C class names, separated by spaces. If it is null or missing, classes have
            no names, and their number is the largest training label plus one.
    """

    image_column: str
    label_column: str
    names_key: str | None

    @property
    def name(self) -> str:
        """``parquet``."""
        return "parquet"

    def recipe(self) -> dict[str, object]:
        """``size``, ``channels``, and the columns."""
        return {**super().recipe(), "columns": [self.image_column, self.label_column, self.names_key]}

    def files(self) -> list[Path]:
        """The two files, see :meth:`fedkd.data.base.DataSource.files`."""
        paths = [self.folder / "train.parquet", self.folder / "test.parquet"]
        for path in paths:
            if not path.is_file():
                raise self.missing_file(path, "point data.root to the folder that holds train.parquet and test.parquet")
        return paths

    def decode(self, allocate: Allocate) -> tuple[str, ...]:
        """Decode both files, see :meth:`fedkd.data.base.DataSource.decode`."""
        train, test = self.files()
        with self._open(train) as file:
            names = self._class_names(file.schema_arrow)
            labels = fill_arrays(allocate, "train", file.metadata.num_rows, self._rows(file, train), len(names) or None, str(train))
        with self._open(test) as file:
            num_classes = len(names) or int(labels.max()) + 1
            fill_arrays(allocate, "test", file.metadata.num_rows, self._rows(file, test), num_classes, str(test))
        return names

    def _open(self, path: Path) -> pq.ParquetFile:
        """An open file whose schema has the two columns."""
        with decoder_errors(str(path)):
            file = pq.ParquetFile(path)
        schema = file.schema_arrow
        for parameter, column in (("image_column", self.image_column), ("label_column", self.label_column)):
            require(column in schema.names, parameter, f"must be a column of {path} ({', '.join(schema.names)})", column)
        kind = schema.field(self.label_column).type
        require(pa.types.is_integer(kind), "label_column", f"must hold integers in {path}", str(kind))
        kind = _bytes_type(schema.field(self.image_column).type)
        require(pa.types.is_binary(kind) or pa.types.is_large_binary(kind), "image_column", f"must hold bytes in {path}", str(kind))
        return file

    def _class_names(self, schema: pa.Schema) -> tuple[str, ...]:
        """The class names in the schema's metadata, or none."""
        stored = (schema.metadata or {}).get((self.names_key or "").encode(), b"")
        return tuple(stored.decode().split())

    def _rows(self, file: pq.ParquetFile, path: Path) -> Iterator[tuple[np.ndarray, int]]:
        """Every image [channels, height, width] with its label."""
        row = 0
        with decoder_errors(str(path)):
            batches = file.iter_batches(BATCH_ROWS, columns=[self.image_column, self.label_column])
        while True:
            with decoder_errors(str(path)):
                batch = next(batches, None)
            if batch is None:
                return
            images, labels = batch.column(self.image_column), batch.column(self.label_column)
            images = images.field("bytes") if pa.types.is_struct(images.type) else images
            for encoded, label in zip(images, labels):
                location = f"{path}, row {row}"
                if not encoded.is_valid or not label.is_valid:
                    raise damaged_file(location, "the image or the label is null")
                yield self._decode_image(encoded.as_py(), location), label.as_py()
                row += 1

    def _decode_image(self, encoded: bytes, location: str) -> np.ndarray:  # [channels, height, width]
        """One image."""
        with decoder_errors(location):
            image = Image.open(io.BytesIO(encoded))
        return to_array(image, self.channels, self.size, location)


def _bytes_type(kind: pa.DataType) -> pa.DataType:
    """The type of a column of bytes, or of the field ``bytes`` of a column of structs."""
    return kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
