"""Atomic writing: the content and the name of a file are on disk before the call returns, and the former content can be kept."""

import os
import stat
from pathlib import Path

import pytest

from fedkd.files import NO_CHECKSUM, seal, verify, write_atomically
from simulations.run_folder.csv_rows import append


@pytest.fixture
def synced(monkeypatch) -> list[str]:
    """What reaches the disk and when: ``fsync`` of a file or a folder, and ``replace``."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        events.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    return events


def test_content_is_on_disk_before_it_has_its_name_and_the_name_afterwards(tmp_path, synced):
    write_atomically(tmp_path / "file", b"content")
    assert synced == ["file", "replace", "folder"]


def test_rows_are_on_disk_and_the_name_of_a_new_file_too(tmp_path, synced):
    for _ in range(2):
        append(tmp_path / "rows.csv", ["a"], [{"a": 1}])
    assert synced == ["file", "folder", "file"]


def test_a_failed_write_keeps_the_old_content(tmp_path):
    write_atomically(tmp_path / "file", b"before")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "file", "not bytes")
    assert (tmp_path / "file").read_bytes() == b"before"


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_the_former_content_is_kept(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(OSError("no links here")))
    path, previous = tmp_path / "file", tmp_path / "previous"
    for content in (b"1", b"2", b"3"):
        write_atomically(path, content, previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"3", b"2")
    assert {one.name for one in tmp_path.iterdir()} == {"file", "previous"}


@pytest.mark.skipif(not hasattr(os, "link"), reason="no links")
def test_a_crash_between_the_two_names_leaves_both_and_no_temporary_file(tmp_path):
    path, previous = tmp_path / "file", tmp_path / "previous"
    path.write_bytes(b"1")
    os.link(path, previous)
    write_atomically(path, b"2", previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"2", b"1")
    assert {one.name for one in tmp_path.iterdir()} == {"file", "previous"}


def test_a_checksum_is_that_of_the_content():
    header = b'{"__metadata__":{"fedkd":"{\\"sha256\\": \\"' + NO_CHECKSUM.encode() + b'\\"}"}}'
    content, checksum = seal(len(header).to_bytes(8, "little") + header + b"tensors")
    assert checksum.encode() in content and NO_CHECKSUM.encode() not in content
    verify(content)
    with pytest.raises(ValueError, match="its checksum is not that of its content"):
        verify(content[:-1] + b"S")
    with pytest.raises(ValueError, match="no readable header"):
        verify(b"x" * 100)
