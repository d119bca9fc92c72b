"""Clients that raise, die, are killed or sleep, and a server that fails: what the policy says happens, and the bits stay the same."""

import os
import signal
import threading
from pathlib import Path

import pytest
from flwr.app import ConfigRecord
from omegaconf import OmegaConf

from fedkd.checkpoint import read_checkpoint
from fedkd.federation import serialization
from simulations.config import compose
from simulations.engine.client_work import CLIENT_RAISED, TIMED_OUT, WORKER_LOST
from simulations.engine.local_engine import LocalGrid
from simulations.engine.ray_engine import RayGrid
from simulations.setup.simulation import build_simulation
from tests.conftest import same
from tests.failing_clients import asleep, plan
from tests.processes import Command, Ended, differing, metrics, quick, run, until

GIVEN = (
    "num_clients=6", "clients_per_round=6", "rounds=4", "local_steps=2", "partition.alpha=1.0", "progress=false", "strategy=fedavg",
    "clients_per_vmap=1",
)  # fmt: skip


def given(folder, *more: str) -> list[str]:
    return [*GIVEN, "strategy._target_=tests.failing_clients.Mischief", f"+strategy.folder={folder}", *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run in which nobody fails."""
    where = tmp_path_factory.mktemp("whole")
    return quick(where, "engine=local", *given(where, "output=runs")).folder


def equal_results(folder, whole) -> bool:
    ours, theirs = read_checkpoint(folder), read_checkpoint(whole)
    tables = [metrics(f).drop(columns="num_failures") for f in (folder, whole)]
    return same(ours.state, theirs.state) and same(ours.memories, theirs.memories) and tables[0].equals(tables[1])


# ---------------------------------------------------------------------------------------------------------- the run's policy
def test_policy_raise_ends_the_run_and_it_can_go_on(whole, tmp_path):
    plan(tmp_path, 3, "raise", 1)
    options = given(tmp_path, "engine=local", "output=runs")
    ended = quick(tmp_path, *options)
    assert ended.code == 1 and ended.out == ""
    assert all(words in ended.err for words in ("1 of 6 clients", "client 3", "round 2", "KeyError", "the dog ate my homework"))
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    assert list(metrics(folder)["round"]) == ["1"] and read_checkpoint(folder).round == 1
    again = quick(tmp_path, *options)
    assert again.code == 0 and again.folder == folder and equal_results(folder, whole)


def test_policy_retry_gives_the_same_bits(whole, tmp_path):
    plan(tmp_path, 3, "raise", 2)
    ended = quick(tmp_path, *given(tmp_path, "engine=local", "output=runs", "on_client_failure=retry"))
    assert ended.code == 0 and equal_results(ended.folder, whole)
    assert list(metrics(ended.folder)["num_failures"]) == ["0", "2", "0", "0"]


def test_a_chunk_that_failed_is_asked_again_as_a_chunk(tmp_path):
    options = given(tmp_path, "engine=local", "on_client_failure=retry", "clients_per_vmap=4")
    whole = quick(tmp_path, *options, "output=whole")
    plan(tmp_path, 3, "raise", 2)
    ended = quick(tmp_path, *options, "output=runs")
    assert ended.code == 0 and equal_results(ended.folder, whole.folder)
    assert list(metrics(ended.folder)["num_failures"]) == ["0", "8", "0", "0"], "the four clients of its chunk, twice"


def test_policy_retry_ends_after_its_retries(tmp_path):
    plan(tmp_path, 3, "raise", 99)
    ended = quick(tmp_path, *given(tmp_path, "engine=local", "output=runs", "on_client_failure=retry", "retries=1"))
    assert ended.code == 1 and "after 2 attempt(s)" in ended.err and (tmp_path / "3").read_text() == "raise 97"


def test_policy_drop_goes_on_with_the_others(whole, tmp_path):
    plan(tmp_path, 3, "raise", 99)
    ended = quick(tmp_path, *given(tmp_path, "engine=local", "output=runs", "on_client_failure=drop"))
    assert ended.code == 0 and list(metrics(ended.folder)["num_failures"]) == ["0", "1", "0", "0"]
    assert not equal_results(ended.folder, whole)
    trained = [line.split(",")[:3] for line in (ended.folder / "clients.csv").read_text().splitlines()]
    assert [client for number, client, took_part in trained if number == "2" and took_part == "0"] == ["3"]


def test_policy_drop_ends_when_nobody_is_left(tmp_path):
    for client in range(6):
        plan(tmp_path, client, "raise", 99)
    ended = quick(tmp_path, *given(tmp_path, "engine=local", "output=runs", "on_client_failure=drop"))
    assert ended.code == 1 and "6 of 6 clients failed in round 2" in ended.err


def test_a_strategy_of_another_package_whose_client_takes_its_actor_down(whole, tmp_path):
    """The whole way: a package found through PYTHONPATH, by the command and by Ray's workers."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.py").write_text("from tests.failing_clients import Mischief\n\n\nclass Mine(Mischief):\n    pass\n")
    plan(tmp_path, 3, "exit", 1)
    options = given(tmp_path, "output=runs", "strategy._target_=mine.Mine", "engine.workers=2")
    ended = run(tmp_path, *options, PYTHONPATH=str(tmp_path / "elsewhere"))
    assert ended.code == 0, ended.err
    assert (tmp_path / "3").read_text() == "exit 0" and equal_results(ended.folder, whole)
    assert set(metrics(ended.folder)["num_failures"]) == {"0"}, "it was asked again by the engine, before any policy"


# ---------------------------------------------------------------------------------------------------------- actors
class Asked:
    """Round 2 of a federation, asked for again and again: its grid keeps its actors."""

    def __init__(self, folder) -> None:
        self.folder, text = folder, OmegaConf.to_yaml(compose(given(folder)), resolve=True)
        home = build_simulation(text)
        home.strategy.federation = home.federation()
        self.grid, self.local = RayGrid(6, text, workers=2, num_gpus=0.0, address=None), LocalGrid(6, text)
        self.messages = list(
            home.strategy.configure_train(
                2, serialization.to_record(home.strategy.init_server(home.federation().server)), ConfigRecord(), self.local
            )
        )
        self.at_once(1)

    def at_once(self, chunk: int) -> None:
        """From now on so many clients train as one."""
        self.grid.chunk = self.local.chunk = chunk
        self.expected = self.updates(self.local.send_and_receive(self.messages))

    def __call__(self, timeout: float | None = None) -> dict[int, object]:
        return self.updates(self.grid.send_and_receive(self.messages, timeout=timeout))

    @staticmethod
    def updates(replies) -> dict[int, object]:
        return {
            r.metadata.src_node_id: r.error if r.has_error() else serialization.from_record(r.content[serialization.UPDATE])
            for r in replies
        }

    def good(self, answers, but: tuple[int, ...] = ()) -> bool:
        """All answers are there, in order, and bit for bit as expected, but for those of some clients."""
        assert list(answers) == list(range(6))
        return all(isinstance(a, dict) and same(a, self.expected[c]) for c, a in answers.items() if c not in but)


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    asked = Asked(tmp_path_factory.mktemp("mischief"))
    assert asked.good(asked())
    yield asked
    asked.grid.close()


def test_a_client_that_raises_is_an_error_with_its_traceback(ask):
    plan(ask.folder, 3, "raise", 1)
    answers = ask()
    assert answers[3].code == CLIENT_RAISED and "the dog ate my homework" in answers[3].reason and "mischief.py" in answers[3].reason
    assert ask.good(answers, but=(3,)) and ask.good(ask())


@pytest.mark.parametrize("client", [0, 4, 5])
def test_a_client_that_takes_its_actor_down_once_is_asked_again(ask, client):
    plan(ask.folder, client, "exit", 1)
    assert ask.good(ask())


def test_a_client_that_always_takes_its_actor_down_fails_alone(ask):
    plan(ask.folder, 1, "exit", 99)
    answers = ask()
    plan(ask.folder, 1, "exit", 0)
    assert answers[1].code == WORKER_LOST and ask.good(answers, but=(1,))
    assert ask.good(ask()), "the next round has all its workers"


@pytest.mark.parametrize("chunk", [1, 2])
def test_an_actor_that_is_killed_in_the_middle_of_a_round(ask, chunk):
    ask.at_once(chunk)
    plan(ask.folder, 2, "sleep", 1)
    killer = threading.Thread(target=lambda: os.kill(asleep(ask.folder), signal.SIGKILL))
    killer.start()
    answers = ask()
    killer.join()
    assert ask.good(answers)
    ask.at_once(1)


def test_an_actor_that_is_killed_between_rounds(ask):
    ray = ask.grid._ray
    ray.kill(ask.grid._actors[0])
    assert ask.good(ask())


def test_past_the_timeout_a_client_fails_and_the_next_round_has_all_its_workers(ask):
    assert ask.good(ask())
    plan(ask.folder, 5, "sleep", 99)
    answers = ask(timeout=3.0)
    assert answers[5].code == TIMED_OUT and "3.0 seconds" in answers[5].reason
    assert ask.good(answers, but=(1, 3, 5)), "those of the other worker have answered"
    sleeper = asleep(ask.folder)
    until(lambda: not Path(f"/proc/{sleeper}").exists(), 5, "the end of who slept")
    plan(ask.folder, 5, "sleep", 0)
    assert ask.good(ask())


# ---------------------------------------------------------------------------------------------------------- the whole command
RAY = ("engine=ray", "engine.workers=2", "output=runs")


def ended(command: Command, code: int, *words: str) -> Ended:
    """The command after its end, of which nothing is left a moment later."""
    end = command.end(timeout=120)
    assert end.code == code and all(word in end.err for word in words), end.err
    until(lambda: not command.alive(), 10, "the end of Ray's processes")
    return end


def test_an_actor_that_is_killed_under_the_command(tmp_path):
    """While it trains two clients at once; the run folder is that of a run in which nothing happened."""
    whole = quick(tmp_path, "engine=local", *given(tmp_path, "output=whole", "clients_per_vmap=2"))
    plan(tmp_path, 2, "sleep", 1)
    command = Command((*RAY, *given(tmp_path, "clients_per_vmap=2")), tmp_path)
    os.kill(asleep(tmp_path), signal.SIGKILL)
    assert list(differing(ended(command, 0).folder, whole.folder)) == ["config.yaml"], "which names the engine"


def overlapping(folder: Path) -> list[str]:
    """A federation whose server trains a generator while clients evaluate."""
    of_fedgen = [option for option in GIVEN if not option.startswith(("strategy=", "rounds="))]
    told = ["strategy._target_=tests.failing_clients.Overlapping", f"+strategy.folder={folder}", "strategy.generator_steps=3"]
    return [*of_fedgen, "rounds=2", "strategy=fedgen", *told]


def test_an_actor_that_is_killed_while_it_evaluates_and_the_server_trains(tmp_path):
    """By the server's own hand, so it is then."""
    whole = quick(tmp_path, "engine=local", *overlapping(tmp_path), "output=whole")
    plan(tmp_path, "evaluating-3", "sleep", 1)
    plan(tmp_path, "server", "kill", 1)
    folder = ended(Command((*RAY, *overlapping(tmp_path)), tmp_path), 0).folder
    assert (tmp_path / "evaluating-3").read_text() == "sleep 0" and (tmp_path / "server").read_text() == "kill 0"
    assert list(differing(folder, whole.folder)) == ["config.yaml"]


def test_a_server_that_fails_while_clients_evaluate(tmp_path):
    """The one client that evaluates would do so for ten minutes."""
    plan(tmp_path, "evaluating-3", "sleep", 1)
    plan(tmp_path, "server", "wait", 1)
    end = ended(Command((*RAY, *overlapping(tmp_path)), tmp_path), 1, "Traceback", "the cat ate my homework")
    assert "run: " not in end.out
