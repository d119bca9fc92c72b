"""Fixtures of the tests of distillations."""

from pathlib import Path

import pytest

from tests.simulations.distillation.small_distillations import small_federation


@pytest.fixture(scope="session")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder for all tests of a process, so that equal teachers and baselines are trained once."""
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="session")
def ensemble_run(output: Path) -> Path:
    """A finished federated run that keeps the clients' models on the server."""
    return small_federation(output, "strategy=fedensemble")
