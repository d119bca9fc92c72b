"""The cache of decoded images, which all processes of a machine share."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from fedkd.data import cache
from fedkd.errors import ConfigError
from tests.fedkd.data.small_files import folder_source, write_folder

ROOT = Path(__file__).parents[3]


def entry_of(tmp_path) -> Path:
    (entry,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    return entry


def test_the_digest_depends_on_content_and_not_on_the_path(tmp_path):
    write_folder(tmp_path / "data")
    here = folder_source(tmp_path)()[1]
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    there = folder_source(tmp_path, root=str(tmp_path / "elsewhere"))()[1]
    assert here.digest == there.digest and len(list((tmp_path / "cache").glob("image_folder-*/"))) == 2
    Image.new("RGB", (12, 10), (1, 2, 3)).save(tmp_path / "elsewhere/train/cat/0.png")
    assert folder_source(tmp_path, root=str(tmp_path / "elsewhere"))()[1].digest != here.digest, "a changed file must be noticed"


def test_another_normalization_does_not_decode_again(tmp_path, caplog):
    write_folder(tmp_path / "data")
    with caplog.at_level(logging.INFO, "fedkd"):
        first, second = folder_source(tmp_path)()[1], folder_source(tmp_path, scale=1, mean=[0.0] * 3)()[1]
    assert caplog.text.count("decoding images into") == 1
    assert first.digest == second.digest and first.scale != second.scale


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_arrays_are_memory_mapped_and_writing_to_them_does_not_change_the_file(tmp_path):
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
def test_a_damaged_entry_is_detected_and_decoded_again(tmp_path, caplog, damage):
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


def test_a_failed_decoding_leaves_no_files(tmp_path):
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
def decode(allocate):
    Path(log).open("a").write("decoded\\n")
    x = allocate("x", (1000,), "int64")
    x[:500] = 1
    if mode == "die":
        os._exit(9)
    time.sleep(0.4)
    x[500:] = 2
    return cache.Decoded(("a", "b"))
content = cache.load_content(root, "toy", {"k": 1}, decode)
print(content.digest, int(content.arrays["x"].sum()), *content.class_names)
"""


def builder(tmp_path, mode="live"):
    command = [sys.executable, "-c", BUILDER, str(tmp_path / "cache"), str(tmp_path / "log"), mode]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_only_one_of_several_processes_decodes(tmp_path):
    together = [builder(tmp_path) for _ in range(3)]
    outputs = {process.communicate(timeout=60)[0] for process in together}
    assert len(outputs) == 1 and outputs.pop().endswith(" 1500 a b\n")
    assert (tmp_path / "log").read_text() == "decoded\n"


def test_a_killed_process_leaves_no_entry_and_its_files_are_removed(tmp_path):
    assert builder(tmp_path, "die").wait(60) == 9
    assert [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".toy-")]
    assert builder(tmp_path).communicate(timeout=60)[0].endswith(" 1500 a b\n")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".toy-")]


def test_a_cache_that_cannot_be_written_is_refused(tmp_path):
    write_folder(tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cache must be a directory that can be written .*, got .*file/below.*set data\.cache"):
        folder_source(tmp_path, cache=str(tmp_path / "file" / "below"))()


def test_the_default_cache_is_in_the_user_s_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_directory(None) == tmp_path / "xdg" / "fedkd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_directory(None) == tmp_path / ".cache" / "fedkd"
    assert cache.cache_directory("~/mine") == tmp_path / "mine"


@pytest.mark.parametrize("given", [None, "~/mine"])
def test_without_a_home_the_cache_must_be_named(monkeypatch, given):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)  # a container's user without an entry
    with pytest.raises(ConfigError, match=r"^cache must be a folder that can be found, got '~/.* without a home; set it$"):
        cache.cache_directory(given)


def test_meta_json_lists_the_shapes(tmp_path):
    write_folder(tmp_path / "data")
    folder_source(tmp_path)()
    files = json.loads((entry_of(tmp_path) / "meta.json").read_text())["content"]["files"]
    assert files["train_x"]["shape"] == [6, 3, 10, 12] and set(files) == {"train_x", "train_y", "test_x", "test_y"}


@pytest.mark.parametrize("first", ["sound", "damaged", "none"])
def test_machines_that_share_the_folder_do_not_remove_what_another_one_builds(tmp_path, monkeypatch, first):
    """Another machine decodes at the same time, with a lock that does not hold here, and may end first."""
    write_folder(tmp_path / "data")
    expected = folder_source(tmp_path)()[1]
    x = expected.x.clone()  # the file of a damaged entry is emptied below
    entry = entry_of(tmp_path)
    finished, theirs = tmp_path / "finished", entry.parent / f".{entry.name}.other-machine.{4711}"
    entry.rename(finished)
    theirs.mkdir()
    (theirs / "train_x.npy").write_bytes(b"half of it")
    ours = entry.parent / f".{entry.name}.{cache.platform.node()}.{4711}"
    ours.mkdir()
    publish = cache._publish

    def publish_late(built: Path, target: Path) -> None:
        if first != "none":
            finished.rename(target)
        if first == "damaged":
            (target / "train_x.npy").write_bytes(b"")
        publish(built, target)

    monkeypatch.setattr(cache, "_publish", publish_late)
    found = folder_source(tmp_path)()[1]
    assert found.digest == expected.digest and torch.equal(found.x, x)
    assert (theirs / "train_x.npy").read_bytes() == b"half of it"
    left = {path.name for path in entry.parent.iterdir() if path.is_dir()}
    assert left == {entry.name, theirs.name}, "what a killed process of this machine has left is removed"
    assert {path.name for path in entry.iterdir()} == {"meta.json", "train_x.npy", "train_y.npy", "test_x.npy", "test_y.npy"}
