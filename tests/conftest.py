"""Settings and fixtures of all tests."""

import pytest
import torch

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


@pytest.fixture(params=["public_code", "paper"])
def protocol(request: pytest.FixtureRequest) -> str:
    """The override that chooses the switches of all strategies, for each option of ``conf/protocol``."""
    return f"protocol@strategy={request.param}"
