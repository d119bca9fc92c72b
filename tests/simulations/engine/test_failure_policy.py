"""The failure policies ``raise``, ``retry`` and ``drop``."""

import pytest

from fedkd.checkpoint import read_checkpoint
from tests.failing_clients import plan_failure
from tests.processes import Command, metrics, quick, until
from tests.simulations.engine.failure_tools import equal_results, failing_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run without failures."""
    where = tmp_path_factory.mktemp("whole")
    return quick(where, "engine=local", *failing_run(where, "output=runs")).folder


def test_raise_ends_a_run_that_can_be_resumed(whole, tmp_path):
    plan_failure(tmp_path, 3, "raise", 1)
    options = failing_run(tmp_path, "engine=local", "output=runs")
    ended = quick(tmp_path, *options)
    assert ended.code == 1 and ended.out == ""
    assert all(words in ended.err for words in ("1 of 6 clients", "client 3", "round 2", "KeyError", "planned failure of a client"))
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    assert list(metrics(folder)["round"]) == ["1"] and read_checkpoint(folder).round == 1
    again = quick(tmp_path, *options)
    assert again.code == 0 and again.folder == folder and equal_results(folder, whole)


def test_retry_gives_equal_results(whole, tmp_path):
    plan_failure(tmp_path, 3, "raise", 2)
    ended = quick(tmp_path, *failing_run(tmp_path, "engine=local", "output=runs", "on_client_failure=retry"))
    assert ended.code == 0 and equal_results(ended.folder, whole)
    assert list(metrics(ended.folder)["num_failures"]) == ["0", "2", "0", "0"]


def test_retry_sends_whole_chunks(tmp_path):
    options = failing_run(tmp_path, "engine=local", "on_client_failure=retry", "clients_per_vmap=4")
    whole = quick(tmp_path, *options, "output=whole")
    plan_failure(tmp_path, 3, "raise", 2)
    ended = quick(tmp_path, *options, "output=runs")
    assert ended.code == 0 and equal_results(ended.folder, whole.folder)
    assert list(metrics(ended.folder)["num_failures"]) == ["0", "8", "0", "0"], "two failures of a chunk of four clients"


def test_retry_ends_after_its_retries(tmp_path):
    plan_failure(tmp_path, 3, "raise", 99)
    ended = quick(tmp_path, *failing_run(tmp_path, "engine=local", "output=runs", "on_client_failure=retry", "retries=1"))
    assert ended.code == 1 and "after 2 attempt(s)" in ended.err and (tmp_path / "3").read_text() == "raise 97"


def test_drop_continues_with_other_clients(whole, tmp_path):
    plan_failure(tmp_path, 3, "raise", 99)
    ended = quick(tmp_path, *failing_run(tmp_path, "engine=local", "output=runs", "on_client_failure=drop"))
    assert ended.code == 0 and list(metrics(ended.folder)["num_failures"]) == ["0", "1", "0", "0"]
    assert not equal_results(ended.folder, whole)
    trained = [line.split(",")[:3] for line in (ended.folder / "clients.csv").read_text().splitlines()]
    assert [client for number, client, took_part in trained if number == "2" and took_part == "0"] == ["3"]


def test_drop_ends_without_clients(tmp_path):
    for client in range(6):
        plan_failure(tmp_path, client, "raise", 99)
    ended = quick(tmp_path, *failing_run(tmp_path, "engine=local", "output=runs", "on_client_failure=drop"))
    assert ended.code == 1 and "6 of 6 clients failed in round 2" in ended.err


def test_strategy_of_another_package_whose_client_exits(whole, tmp_path):
    """The command and Ray's workers find the package through PYTHONPATH."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.py").write_text(
        "from tests.failing_clients import FailingClients\n\n\nclass Mine(FailingClients):\n    pass\n"
    )
    plan_failure(tmp_path, 3, "exit", 1)
    options = failing_run(tmp_path, "output=runs", "strategy._target_=mine.Mine", "allow_targets=[mine]", "engine.workers=2")
    command = Command(tuple(options), tmp_path, {"PYTHONPATH": str(tmp_path / "elsewhere")}, forked=True)
    ended = command.end()
    assert ended.code == 0, ended.err
    until(lambda: not command.alive(), 10, "the end of Ray's processes")
    assert (tmp_path / "3").read_text() == "exit 0" and equal_results(ended.folder, whole)
    assert set(metrics(ended.folder)["num_failures"]) == {"0"}, "the engine repeats the client, so no failure counts"
