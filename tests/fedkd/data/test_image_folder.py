"""Folders of images: layouts, files that are no images, unreadable images, and kinds of pixels."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedkd.data import base
from tests.fedkd.data.small_files import folder_source, write_folder


def gray(path: Path, value: int = 7) -> None:
    """Write an image of the size that ``write_folder`` has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (value, value, value)).save(path)


def left_out(train) -> dict[str, tuple[str, int]]:
    """Reason and number of what a training set says is left out, by path."""
    return {item.path: (item.reason, item.number) for item in train.left_out}


# --------------------------------------------------------------------------------------------------------- classes and layouts
def test_sub_folders_are_groups(tmp_path):
    """Numbered over both parts; an image that cannot be read leaves no gap."""
    for place in ("train/cat/bo/1.png", "train/cat/cy/1.png", "train/dog/bo/x/1.png", "test/cat/ann/1.png", "test/dog/bo/1.png"):
        gray(tmp_path / "data" / place)
    (tmp_path / "data/train/cat/bo/0.png").write_bytes(b"no image")
    _, train, test = folder_source(tmp_path, groups="subfolder", skip_unreadable=True)()
    assert train.group_names == test.group_names == ("ann", "bo", "cy")
    assert train.groups.tolist() == [1, 2, 1] and train.y.tolist() == [0, 0, 1] and test.groups.tolist() == [0, 1]
    assert folder_source(tmp_path, skip_unreadable=True)()[1].groups is None
    gray(tmp_path / "data/test/dog/2.png")
    with pytest.raises(ValueError, match=r"^groups must be null where images lie in no folder .*1 in test/, such as \['dog/2.png'\]"):
        folder_source(tmp_path, groups="subfolder", skip_unreadable=True)()


def test_each_folder_is_a_class(tmp_path):
    write_folder(tmp_path / "data")
    task, train, test = folder_source(tmp_path)()
    assert task.shape == (3, 10, 12) and task.class_names == task.names == ("cat", "dog")
    assert train.y.tolist() == test.y.tolist() == [0, 0, 0, 1, 1, 1] and train.left_out == ()
    assert train.x[:, 0].unique(dim=0).flatten().unique().tolist() == [50, 200] and train.x[:, 1, 0, 0].tolist() == [0, 1, 2] * 2
    task, train, _ = folder_source(tmp_path, channels=1, size=[5, 7], mean=[0.0], std=[1.0])()
    assert task.shape == (1, 5, 7) and train.x.shape == (6, 1, 5, 7)


def test_numbered_classes_keep_their_names(tmp_path):
    write_folder(tmp_path / "data", classes=tuple(map(str, range(12))), num=1)
    task, train, _ = folder_source(tmp_path)()
    assert task.class_names == ("0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")
    assert [task.class_names[label] for label in train.y] == list(task.class_names)


def test_images_in_sub_folders_of_a_class_belong_to_the_class(tmp_path):
    write_folder(tmp_path / "data")
    gray(tmp_path / "data/train/cat/batch2/day1/9.png")
    gray(tmp_path / "data/train/cat/more.png/9.png")  # a folder named like an image, with an image
    (tmp_path / "data/train/cat/round").symlink_to(tmp_path / "data/train/cat")  # a circle is followed once
    _, train, _ = folder_source(tmp_path)()
    assert train.y.tolist() == [0] * 5 + [1] * 3 and train.left_out == ()


def test_a_class_that_the_test_set_lacks_keeps_the_labels_of_the_others(tmp_path):
    write_folder(tmp_path / "data", classes=("a", "b", "c"))
    shutil.rmtree(tmp_path / "data/test/b")
    for _ in range(2):
        task, _, test = folder_source(tmp_path)()
        assert task.num_classes == 3 and test.y.tolist() == [0, 0, 0, 2, 2, 2]
        (tmp_path / "data/test/b").mkdir(exist_ok=True)


@pytest.mark.parametrize("flat_test", [False, True])
def test_val_is_the_test_set_where_test_has_no_classes(tmp_path, flat_test):
    write_folder(tmp_path / "data")
    (tmp_path / "data/test").rename(tmp_path / "data/val")
    if flat_test:
        gray(tmp_path / "data/test/1.png")
    _, train, test = folder_source(tmp_path)()
    assert test.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert left_out(train) == ({"test/1.png": ("images outside the folders of classes", 1)} if flat_test else {})


def test_images_that_no_part_holds_are_counted(tmp_path):
    write_folder(tmp_path / "data")
    shutil.copytree(tmp_path / "data/test", tmp_path / "data/val")
    for name in ("stray.png", "extra/cat/1.png", "extra/cat/2.png", "train/3.png", "train/4.png"):
        gray(tmp_path / "data" / name)
    _, train, test = folder_source(tmp_path)()
    assert len(train) == len(test) == 6
    assert left_out(train) == {
        "extra/cat/1.png": ("images outside train/ and test/", 3),
        "train/3.png": ("images outside the folders of classes", 2),
        "val/cat/0.png": ("images of val/, as test/ is the test set", 6),
    }


def test_hidden_files_other_files_and_folders_named_like_images_are_passed_over_and_counted(tmp_path):
    write_folder(tmp_path / "data")
    clean = folder_source(tmp_path)()[1].digest
    gray(tmp_path / "data/train/.ipynb_checkpoints/0-checkpoint.png")
    gray(tmp_path / "data/train/cat/._1.png")
    (tmp_path / "data/train/cat/.thumbs").mkdir()
    (tmp_path / "data/train/README.txt").write_text("x")
    (tmp_path / "data/train/cat/Thumbs.db").write_text("x")
    (tmp_path / "data/train/cat/more.png").mkdir()
    (tmp_path / "data/test/none.jpg").mkdir()
    task, train, _ = folder_source(tmp_path)()
    assert task.class_names == ("cat", "dog") and train.digest == clean
    assert left_out(train) == {
        "train/.ipynb_checkpoints": ("hidden files", 1),
        "train/cat/.thumbs": ("hidden files", 2),
        "train/README.txt": ("files that are no images", 1),
        "train/cat/Thumbs.db": ("files that are no images", 1),
        "train/cat/more.png": ("folders named like images", 1),
        "test/none.jpg": ("folders named like images", 1),
    }


def test_classes_without_training_images_are_refused(tmp_path):
    write_folder(tmp_path / "data")
    (tmp_path / "data/test/cow").mkdir()
    assert folder_source(tmp_path)()[0].num_classes == 2  # an empty folder is no class
    gray(tmp_path / "data/test/cow/1.png")
    with pytest.raises(ValueError, match="root must hold the classes of train/ in test/, and no others .*, got 'cow in test/ only'"):
        folder_source(tmp_path)()
    (tmp_path / "data/train/cow").mkdir()
    with pytest.raises(ValueError, match="root must hold at least one image .* of every class in .*/train, got 'none of cow'"):
        folder_source(tmp_path)()


def test_a_test_set_without_folders_of_classes_is_refused(tmp_path):
    write_folder(tmp_path / "data")
    shutil.rmtree(tmp_path / "data/test")
    gray(tmp_path / "data/val/1.png")
    with pytest.raises(ValueError, match="root must hold one folder of images per class in .*/val, got none; 1 images outside folders"):
        folder_source(tmp_path)()
    shutil.rmtree(tmp_path / "data/val")
    with pytest.raises(ValueError, match="root must hold the files of image_folder.* is missing; .*val/<class>/ serves as a test set too"):
        folder_source(tmp_path)()


# ---------------------------------------------------------------------------------------------------------------------- pixels
def test_kinds_of_files_are_converted(tmp_path):
    write_folder(tmp_path / "data")
    image, folder = Image.new("RGB", (12, 10), (90, 90, 90)), tmp_path / "data/train/cat"
    image.convert("CMYK").save(folder / "a.jpg")
    image.convert("P").save(folder / "b.png", transparency=0)
    image.convert("LA").save(folder / "c.png")
    image.save(folder / "d.gif", save_all=True, append_images=[image])
    image.convert("1").save(folder / "e.png")
    image.save(folder / "F.JPG")
    image.save(folder / "g.webp", lossless=True)
    _, train, _ = folder_source(tmp_path)()
    assert len(train) == 13 and all(abs(int(train.x[i].float().mean()) - 90) <= 3 for i in (4, 5, 7, 9))


def test_images_of_different_sizes_need_a_size(tmp_path):
    write_folder(tmp_path / "data")
    Image.new("RGB", (9, 9)).save(tmp_path / "data/train/dog/9.png")
    rule = r"size must be set where images differ in size, got shape \(3, 10, 12\) first and \(3, 9, 9\) in train/dog/9.png"
    with pytest.raises(ValueError, match=rule):
        folder_source(tmp_path)()
    assert len(folder_source(tmp_path, size=[8, 8])()[1]) == 7


def test_test_images_of_another_size_than_training_images_need_a_size(tmp_path):
    write_folder(tmp_path / "data")
    for path in (tmp_path / "data/test").rglob("*.png"):
        Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(ValueError, match=r"size must be set .* test images differ .* shape \(3, 10, 12\), got \(3, 9, 9\)"):
        folder_source(tmp_path)()


def test_gray_images_need_mean_and_std_of_one_channel(tmp_path):
    write_folder(tmp_path / "data")
    with pytest.raises(ValueError, match=r"mean must hold one number per channel, 1 \(such as data.mean=\[0.5\] data.std=\[0.5\]\)"):
        folder_source(tmp_path, channels=1)()
    with pytest.raises(ValueError, match=r"channels must be 1 \(gray\) or 3 \(color\), got 4"):
        folder_source(tmp_path, channels=4)


# ------------------------------------------------------------------------------------------------------------ unreadable images
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\x00" * 50, lambda b: b[:20] + b"xx" + b[22:]])
def test_a_broken_png_is_named(tmp_path, damage):
    write_folder(tmp_path / "data")
    path = tmp_path / "data/test/dog/1.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="root must hold images that can be read, got 1 that cannot: test/dog/1.png "):
        folder_source(tmp_path)()


def spoil(tmp_path):
    """Three unreadable images of twelve, in both parts."""
    write_folder(tmp_path / "data")
    Image.fromarray(np.full((10, 12), 40000, np.uint16)).save(tmp_path / "data/train/cat/0.png")
    for name in ("train/dog/1.png", "test/dog/2.png"):
        (tmp_path / "data" / name).write_bytes(b"broken")


def test_an_error_lists_all_unreadable_images_in_one_line(tmp_path):
    spoil(tmp_path)
    with pytest.raises(ValueError) as error:
        folder_source(tmp_path)()
    text = str(error.value)
    assert "got 3 that cannot: train/cat/0.png (ValueError: more than 8 bits per channel, Pillow's mode I;16; scale it" in text
    assert "train/dog/1.png (" in text and "test/dog/2.png (" in text and text.endswith("data.skip_unreadable=true") and "\n" not in text


def test_a_file_lists_unreadable_images_that_an_error_has_no_room_for(tmp_path, monkeypatch):
    spoil(tmp_path)
    monkeypatch.setattr(base, "MAX_LISTED", 2)
    with pytest.raises(ValueError, match=r"and 1 more; .*image_folder-unreadable.txt lists all;"):
        folder_source(tmp_path)()
    assert len((tmp_path / "cache/image_folder-unreadable.txt").read_text().splitlines()) == 3


def test_unreadable_images_can_be_left_out(tmp_path):
    spoil(tmp_path)
    for _ in range(2):  # decoded, and from the cache
        _, train, test = folder_source(tmp_path, skip_unreadable=True)()
        assert train.y.tolist() == [0, 0, 1, 1] and train.x[:, 1, 0, 0].tolist() == [1, 2, 0, 2] and test.y.tolist() == [0, 0, 0, 1, 1]
        assert set(left_out(train)) == {"train/cat/0.png", "train/dog/1.png", "test/dog/2.png"}
        assert all(reason.startswith("unreadable (") and number == 1 for reason, number in left_out(train).values())
    with pytest.raises(ValueError, match="got 3 that cannot"):
        folder_source(tmp_path)()
    for name in left_out(train):
        (tmp_path / "data" / name).unlink()
    assert folder_source(tmp_path)()[1].digest == train.digest  # the same content is the same data set
    with pytest.raises(ValueError, match="skip_unreadable must be true or false, got 'yes'"):
        folder_source(tmp_path, skip_unreadable="yes")


def test_a_part_without_readable_images_is_refused(tmp_path):
    write_folder(tmp_path / "data", num=1)
    for path in (tmp_path / "data/test").rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="root must hold at least one test example that can be read in .*/test, got 0"):
        folder_source(tmp_path, skip_unreadable=True)()
