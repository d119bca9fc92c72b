"""Parquet files: layouts, columns, kinds of labels, and what is refused."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedkd.data.parquet import Parquet
from tests.fedkd.data.small_files import COLOR, folders, rng

NAMES = ["T-shirt / top", "aquarium fish", "c"]
HUB = {"huggingface": json.dumps({"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}})}


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def table(labels, struct=False, metadata=None, spoil=None, columns=("img", "label")):
    """A table of one image per label, and the images."""
    x = rng.integers(0, 256, (len(labels), 6, 5, 3), dtype=np.uint8)
    encoded = [png(image) for image in x]
    if spoil is not None:
        encoded[7] = spoil(encoded[7])
    images = pa.array([{"bytes": b, "path": ""} for b in encoded] if struct else encoded)
    return pa.table(dict(zip(columns, (images, pa.array(labels))))).replace_schema_metadata(metadata), x


def write_parquet(root: Path, labels=None, num=30, test_labels=None, **changes):
    """The same table as training and test set, or another test set with ``test_labels``."""
    root.mkdir(parents=True, exist_ok=True)
    written, x = table(np.arange(num) % 3 if labels is None else labels, **changes)
    pq.write_table(written, root / "train.parquet")
    pq.write_table(written if test_labels is None else table(test_labels, **changes)[0], root / "test.parquet")
    return x


def parquet_source(tmp_path, **extra):
    fixed = {
        "image_column": None,
        "label_column": None,
        "names_key": "names",
        "size": None,
        "channels": 3,
        "skip_unreadable": False,
        "group_column": None,
    }
    return Parquet(**{**folders(tmp_path, **COLOR), **fixed, **extra})


# -------------------------------------------------------------------------------------------------------------- files and names
@pytest.mark.parametrize("writers", [["bo", "ann", "cy"], [7, 2, 40]])
def test_a_column_gives_groups(tmp_path, writers):
    """Numbered in ascending order over both parts, also where an image cannot be read."""
    folder = tmp_path / "data"
    write_parquet(folder)
    for part, number in (("train", 30), ("test", 20)):
        spoil = {"spoil": lambda encoded: encoded[:30]} if part == "train" else {}
        written = table(np.arange(number) % 3, **spoil)[0]
        names = pa.array([writers[row % (2 if part == "train" else 3)] for row in range(number)])
        pq.write_table(written.append_column("writer", names), folder / f"{part}.parquet")
    _, train, test = parquet_source(tmp_path, group_column="writer", skip_unreadable=True)()
    order = [sorted(writers).index(name) for name in writers]
    assert train.group_names == tuple(map(str, sorted(writers)))
    assert train.groups.tolist() == [order[row % 2] for row in range(30) if row != 7]
    assert test.groups.tolist() == [order[row % 3] for row in range(20)]
    assert parquet_source(tmp_path, skip_unreadable=True)()[1].groups is None
    with pytest.raises(ValueError, match="^group_column must be a column of .*writer: .*, got 'speaker'"):
        parquet_source(tmp_path, group_column="speaker")()


@pytest.mark.parametrize("struct", [False, True])
def test_rows_are_decoded(tmp_path, struct):
    x = write_parquet(tmp_path / "data", struct=struct, metadata={"names": "red green blue pink"})
    task, train, test = parquet_source(tmp_path)()
    assert task.class_names == ("red", "green", "blue", "pink") and task.num_classes == 4 and task.shape == (3, 6, 5)
    assert np.array_equal(train.x.numpy(), x.transpose(0, 3, 1, 2)) and test.y.tolist() == [i % 3 for i in range(30)]
    task, *_ = parquet_source(tmp_path, names_key=None)()
    assert task.num_classes == 3 and task.class_names == ()


@pytest.mark.parametrize("folder", ["data", "data/data"])
@pytest.mark.parametrize("names_key", [None, "fine_names", "huggingface"])
def test_the_layout_of_the_hub_is_read_as_it_lies(tmp_path, folder, names_key):
    (tmp_path / folder).mkdir(parents=True)
    images = []
    for shard in range(2):
        written, x = table([0, 1, 2] * 4, struct=True, metadata=HUB, columns=("image", "label"))
        pq.write_table(written, tmp_path / folder / f"train-0000{shard}-of-00002.parquet")
        images.append(x)
    pq.write_table(table([2, 1, 0], True, HUB, columns=("image", "label"))[0], tmp_path / folder / "validation-00000-of-00001-ab12.parquet")
    pq.write_table(written, tmp_path / folder / "unsupervised-00000-of-00001.parquet")
    task, train, test = parquet_source(tmp_path, names_key=names_key)()
    assert task.class_names == tuple(NAMES) and test.y.tolist() == [2, 1, 0] and train.y.tolist() == [0, 1, 2] * 8
    assert np.array_equal(train.x.numpy(), np.concatenate(images).transpose(0, 3, 1, 2))
    assert [(item.path.rpartition("/")[2], item.number) for item in train.left_out] == [("unsupervised-00000-of-00001.parquet", 1)]
    (tmp_path / folder / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match="train-00000-of-00002.parquet is missing; download all files of the part"):
        parquet_source(tmp_path)()


def test_a_missing_part_is_named_beside_the_files_that_are_there(tmp_path):
    write_parquet(tmp_path / "data")
    (tmp_path / "data/test.parquet").rename(tmp_path / "data/eval.parquet")
    with pytest.raises(ValueError, match=r"test.parquet is missing; .*the Hub's data/test-00000.*there are eval.parquet, train.parquet"):
        parquet_source(tmp_path)()


@pytest.mark.parametrize("image", ["image", "img", "pixel_values", "photo"])
@pytest.mark.parametrize("label", ["label", "fine_label"])
def test_columns_are_found(tmp_path, image, label):
    write_parquet(tmp_path / "data", columns=(image, label), num=3)
    assert parquet_source(tmp_path)()[1].y.tolist() == [0, 1, 2]


def test_columns_that_are_not_found_are_listed(tmp_path):
    write_parquet(tmp_path / "data", columns=("img", "what"))
    rule = "label_column must be set where no column is called label or labels or fine_label, got columns img: binary, what: int64"
    with pytest.raises(ValueError, match=rule):
        parquet_source(tmp_path)()
    assert parquet_source(tmp_path, label_column="what")()[0].num_classes == 3
    with pytest.raises(ValueError, match=r"label_column must be a column of .*train.parquet \(img: binary, what: int64\), got 'fine'"):
        parquet_source(tmp_path, label_column="fine")()


def test_images_as_numbers_are_refused(tmp_path):
    (tmp_path / "data").mkdir()
    for part in ("train", "test"):
        pq.write_table(pa.table({"image": [[0] * 64] * 3, "label": [0, 1, 2]}), tmp_path / f"data/{part}.parquet")
    with pytest.raises(ValueError, match="image_column must hold encoded images in .*, as bytes .* encode them .*, got 'list<"):
        parquet_source(tmp_path)()


# ----------------------------------------------------------------------------------------------------------------------- labels
@pytest.mark.parametrize(
    "labels, names",
    [
        (pa.array([0.0, 1.0, 2.0] * 3), ()),
        (pa.array([0, 1, 2] * 3, pa.uint8()), ()),
        (pa.array([0, 1, 2] * 3, pa.int8()).dictionary_encode(), ()),
        (pa.array([[0], [1], [2]] * 3), ()),
        (pa.array([1, 2, 3] * 3), ("1", "2", "3")),
        (pa.array([0, 5, 2**63] * 3, pa.uint64()), ("0", "5", str(2**63))),
        (pa.array(["cat", "dog", "eel"] * 3), ("cat", "dog", "eel")),
        (pa.array(["cat", "dog", "eel"] * 3).dictionary_encode(), ("cat", "dog", "eel")),
    ],
    ids=str,
)  # fmt: skip
def test_labels_become_classes_in_ascending_order(tmp_path, labels, names):
    write_parquet(tmp_path / "data", labels=labels)
    task, train, test = parquet_source(tmp_path)()
    assert train.y.tolist() == test.y.tolist() == [0, 1, 2] * 3 and task.num_classes == 3
    assert task.class_names == names and task.names == (names or ("0", "1", "2"))


def test_truth_values_are_classes(tmp_path):
    write_parquet(tmp_path / "data", labels=[True, False, True])
    task, train, _ = parquet_source(tmp_path)()
    assert task.class_names == ("False", "True") and train.y.tolist() == [1, 0, 1]


def test_words_are_looked_up_in_the_names(tmp_path):
    write_parquet(tmp_path / "data", labels=["green", "red"], metadata={"names": "red green blue"})
    task, train, _ = parquet_source(tmp_path)()
    assert task.class_names == ("red", "green", "blue") and train.y.tolist() == [1, 0]


@pytest.mark.parametrize(
    "labels, why",
    [
        ([0.5] * 30, "must hold whole numbers, words or truth values in .*train.parquet, got 'double, with 0.5 in row 0'"),
        ([0] * 29 + [None], r"must hold a label in every row of .*, got '1 without \(first: row 29\)'"),
        ([0.0] * 28 + [float("nan"), float("nan")], r"must hold a label in every row of .*, got '2 without \(first: row 28\)'"),
        ([[0]] * 29 + [[1, 2]], "must hold one label per row in .*, with 1 rows of another number .first: row 29"),
        ([b"x"] * 30, "must hold whole numbers, words or truth values"),
        ([0] * 29 + [-1], "must hold labels >= 0 in .*train.parquet, got -1 in 1 of 30 rows, which stands for unlabelled examples"),
    ],
)
def test_invalid_labels_are_refused(tmp_path, labels, why):
    write_parquet(tmp_path / "data", labels=labels)
    with pytest.raises(ValueError, match=f"^label_column {why}"):
        parquet_source(tmp_path)()


def test_unlabelled_test_examples_are_not_called_damaged(tmp_path):
    write_parquet(tmp_path / "data", test_labels=[-1] * 4)
    with pytest.raises(ValueError, match="test.parquet, got -1 in 4 of 4 rows, which stands for unlabelled examples; .* labelled part"):
        parquet_source(tmp_path)()


def test_a_class_of_the_test_set_alone_is_named(tmp_path):
    write_parquet(tmp_path / "data", test_labels=[0, 1, 2, 3] * 2)
    with pytest.raises(ValueError, match=r"classes of the training set \(0, 1, 2\), got others in 2 rows of .*test.parquet: 3; remove"):
        parquet_source(tmp_path)()
    write_parquet(tmp_path / "data", test_labels=[0, 1, 2, 3] * 2, metadata={"names": "a b c d"})
    assert parquet_source(tmp_path)()[0].num_classes == 4  # the run warns that no client holds it


def test_more_labels_than_names_are_refused(tmp_path):
    write_parquet(tmp_path / "data", metadata={"names": "red green"})
    with pytest.raises(ValueError, match="label_column must hold indices of the 2 names of classes in .*train.parquet, got '2'"):
        parquet_source(tmp_path)()


# ----------------------------------------------------------------------------------------------------------------------- damage
@pytest.mark.parametrize("spoil", [lambda b: b[:60], lambda b: b"", lambda b: None])
def test_broken_images_are_named_or_left_out(tmp_path, spoil):
    write_parquet(tmp_path / "data", spoil=spoil)
    with pytest.raises(ValueError, match="got 2 that cannot: train.parquet, row 7 .*, test.parquet, row 7 "):
        parquet_source(tmp_path)()
    _, train, test = parquet_source(tmp_path, skip_unreadable=True)()
    assert train.y.tolist() == test.y.tolist() == [i % 3 for i in range(30) if i != 7]
    assert [item.path for item in train.left_out] == ["train.parquet, row 7", "test.parquet, row 7"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b"PAR1 garbage PAR1",
        lambda b: b[:40] + b"\xff" * 900 + b[940:],
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage):
    write_parquet(tmp_path / "data")
    path = tmp_path / "data/test.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="damaged one: .*test.parquet"):
        parquet_source(tmp_path)()
