"""Data sets of the user: folders of images, and Parquet files."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedkd.data.parquet import Parquet
from tests.fedkd.data.small_files import COLOR, folder_source, folders, rng, write_folder

# -------------------------------------------------------------------------------------------------------------- image folder


def test_each_folder_is_a_class(tmp_path):
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


def test_images_of_different_sizes_need_a_size(tmp_path):
    write_folder(tmp_path / "data")
    Image.new("RGB", (9, 9)).save(tmp_path / "data/train/dog/9.png")
    with pytest.raises(ValueError, match=r"images must have one shape, \(3, 10, 12\) as the first, got \(3, 9, 9\) at 6; set data.size"):
        folder_source(tmp_path)()
    assert len(folder_source(tmp_path, size=[8, 8])()[1]) == 7


def test_test_images_of_another_size_than_training_images_need_a_size(tmp_path):
    write_folder(tmp_path / "data")
    for path in (tmp_path / "data/test").rglob("*.png"):
        Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(ValueError, match=r"test images must have the shape \(3, 10, 12\) of the training images"):
        folder_source(tmp_path)()


def test_images_of_16_bits_are_refused(tmp_path):
    write_folder(tmp_path / "data")
    Image.fromarray(np.full((10, 12), 40000, np.uint16)).save(tmp_path / "data/train/dog/1.png")
    with pytest.raises(ValueError, match="train/dog/1.png must hold 8 bits per channel, got 'I;16'"):
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
    with pytest.raises(ValueError, match=r"channels must be 1 \(gray\) or 3 \(color\), got 4"):
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
    return Parquet(**{**folders(tmp_path, **COLOR), **fixed, **extra})


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
def test_invalid_labels_are_refused(tmp_path, labels, why):
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


def test_missing_columns_and_columns_of_wrong_types_are_refused(tmp_path):
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
