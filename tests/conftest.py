"""Settings and fixtures of all tests."""

import gc
import getpass
import multiprocessing.util
import os
import tempfile
from collections.abc import Iterator

import pytest
import torch

from tests.composition import remember_compositions
from tests.shortcuts import take_shortcuts

remember_compositions()
take_shortcuts()
torch.set_num_threads(1)  # the number of threads changes rounding


SLOW_FOLDERS = ("experiments", "engine", "federation", "distillation", "benchmarks", "cli", "api")
"""Folders of ``tests/simulations`` whose files take longest, so that several workers end at about the same time if these begin first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files of slow folders first. The order inside a file stays."""

    def rank(item: pytest.Item) -> int:
        folder = item.path.parent
        slow = folder.parent.name == "simulations" and folder.name in SLOW_FOLDERS
        return SLOW_FOLDERS.index(folder.name) if slow else len(SLOW_FOLDERS)

    items.sort(key=rank)


@pytest.fixture(scope="module", autouse=True)
def unvisited_objects() -> None:
    """Take all objects that exist before a file's tests out of garbage collections, which would visit millions of them each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Return these objects to garbage collections. Otherwise extension modules report them as leaks at the end of the process."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands leave in the system's temporary folder, such as logs of errors, is removed after the tests.

    The path of the folder is short enough for Unix sockets, which that of pytest's own folder is not. The cache of compiled programs stays.
    """
    tmp_path_factory.getbasetemp()  # pytest's folder is made before, beside this one
    multiprocessing.util.get_temp_dir()  # so is the one that multiprocessing removes at the end of the process
    compiled = os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as folder:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR", compiled))
        patch.setenv("TMPDIR", folder)
        patch.setattr("tempfile.tempdir", folder)
        yield


@pytest.fixture(params=["public_code", "paper"])
def protocol(request: pytest.FixtureRequest) -> str:
    """The override that chooses the switches of all strategies, for each option of ``conf/protocol``."""
    return f"protocol@strategy={request.param}"
