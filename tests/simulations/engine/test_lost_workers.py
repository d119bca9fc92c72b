"""Clients that raise, exit or sleep in Ray actors, and actors that are killed. Other clients are not affected."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from flwr.app import ConfigRecord
from omegaconf import OmegaConf

from fedkd.errors import EngineError
from fedkd.federation import serialization
from fedkd.federation.messaging import CLIENT_RAISED, TIMED_OUT, WORKER_LOST
from simulations.config import compose
from simulations.engine import ray_cluster, ray_watcher
from simulations.engine.local_engine import LocalGrid
from simulations.engine.ray_engine import RayGrid
from simulations.engine.ray_session import LONGEST_SOCKET
from simulations.engine.ray_workers import Workers
from simulations.federation.runner import run_federation
from simulations.setup.simulation import build_simulation
from tests.failing_clients import plan_failure, sleeping_process
from tests.processes import Command, differing, until
from tests.simulations.engine.failure_tools import OVERRIDES, failing_run
from tests.small_runs import same_tensors


class RepeatedRound:
    """Round 2 of a federation, which can be repeated with the same actors."""

    def __init__(self, folder) -> None:
        self.folder, text = folder, OmegaConf.to_yaml(compose(failing_run(folder)), resolve=True)
        simulation = build_simulation(text)
        simulation.strategy.federation = simulation.federation()
        self.grid, self.local = RayGrid(6, text, workers=2, num_gpus=0.0, address=None, patience=0.0, ship_code=False), LocalGrid(6, text)
        arrays = serialization.to_record(simulation.strategy.init_server(simulation.federation().server))
        self.messages = list(simulation.strategy.configure_train(2, arrays, ConfigRecord(), self.local))
        self.set_clients_per_vmap(1)

    def set_clients_per_vmap(self, chunk: int) -> None:
        """Set the number of clients that train as one program."""
        self.grid.clients_per_vmap = self.local.clients_per_vmap = chunk
        self.expected = self.updates(self.local.send_and_receive(self.messages))

    def __call__(self, timeout: float | None = None) -> dict[int, object]:
        return self.updates(self.grid.send_and_receive(self.messages, timeout=timeout))

    @staticmethod
    def updates(replies) -> dict[int, object]:
        return {
            reply.metadata.src_node_id: reply.error if reply.has_error() else serialization.from_record(reply.content[serialization.UPDATE])
            for reply in replies
        }

    def all_equal(self, updates, but: tuple[int, ...] = ()) -> bool:
        """Whether the results of all clients are there in order, and equal to the expected ones except for ``but``."""
        assert list(updates) == list(range(6))
        others = {client: update for client, update in updates.items() if client not in but}
        return all(isinstance(update, dict) and same_tensors(update, self.expected[client]) for client, update in others.items())


@contextmanager
def killed_sleeper(folder: Path) -> Iterator[None]:
    """Kill the first process that sleeps on request."""
    killer = threading.Thread(target=lambda: os.kill(sleeping_process(folder), signal.SIGKILL))
    killer.start()
    yield
    killer.join()


@pytest.fixture(scope="module")
def repeat(tmp_path_factory):
    repeated = RepeatedRound(tmp_path_factory.mktemp("failing"))
    assert repeated.all_equal(repeated())
    yield repeated
    repeated.grid.close()


def test_exception_of_a_client(repeat):
    plan_failure(repeat.folder, 3, "raise", 1)
    answers = repeat()
    assert (
        answers[3].code == CLIENT_RAISED
        and "planned failure of a client" in answers[3].reason
        and "failing_clients.py" in answers[3].reason
    )
    assert repeat.all_equal(answers, but=(3,)) and repeat.all_equal(repeat())


@pytest.mark.parametrize("client", [0, 4, 5])
def test_client_that_exits_once_is_repeated(repeat, client):
    plan_failure(repeat.folder, client, "exit", 1)
    assert repeat.all_equal(repeat())


def test_client_that_always_exits_fails_alone(repeat):
    plan_failure(repeat.folder, 1, "exit", 99)
    answers = repeat()
    plan_failure(repeat.folder, 1, "exit", 0)
    assert answers[1].code == WORKER_LOST and repeat.all_equal(answers, but=(1,))
    assert repeat.all_equal(repeat()), "the next round has all workers"


@pytest.mark.parametrize("chunk", [1, 2])
def test_actor_killed_during_a_round(repeat, chunk):
    repeat.set_clients_per_vmap(chunk)
    plan_failure(repeat.folder, 2, "sleep", 1)
    with killed_sleeper(repeat.folder):
        answers = repeat()
    assert repeat.all_equal(answers)
    repeat.set_clients_per_vmap(1)


def test_actor_killed_between_rounds(repeat):
    ray = repeat.grid._ray
    ray.kill(repeat.grid._workers.ready[0])
    assert repeat.all_equal(repeat())


def test_timeout(repeat):
    assert repeat.all_equal(repeat())
    plan_failure(repeat.folder, 5, "sleep", 99)
    answers = repeat(timeout=3.0)
    assert answers[5].code == TIMED_OUT and "3.0 seconds" in answers[5].reason
    assert repeat.all_equal(answers, but=(1, 3, 5)), "the clients of the other worker have finished"
    sleeper = sleeping_process(repeat.folder)
    until(lambda: not Path(f"/proc/{sleeper}").exists(), 5, "the end of the sleeping process")
    plan_failure(repeat.folder, 5, "sleep", 0)
    assert repeat.all_equal(repeat())


@pytest.fixture
def idle_actors(repeat) -> Iterator[None]:
    """The actors of the repeated round are idle, so that a run takes them."""
    repeat.grid.close()
    yield
    grid = repeat.grid
    grid._workers = Workers(grid._ray, grid.config, 2, 0.0, 6, joined=False, patience=0.0)


def run_in_both(folder: Path, *overrides: str) -> Iterator[Path]:
    """Run a federation in this process, and then with two actors."""
    for engine in (["engine=local", f"output={folder / 'whole'}"], ["engine=ray", "engine.workers=2", f"output={folder / 'runs'}"]):
        yield run_federation(compose([*overrides, *engine]))


def test_actor_killed_during_a_run(idle_actors, tmp_path):
    """The actor trains two clients as one program. The run folder equals that of a run without failures."""
    runs = run_in_both(tmp_path, *failing_run(tmp_path, "clients_per_vmap=2"))
    whole = next(runs)
    plan_failure(tmp_path, 2, "sleep", 1)
    with killed_sleeper(tmp_path):
        assert list(differing(next(runs), whole)) == ["config.yaml"], "config.yaml names the engine"
    assert (tmp_path / "2").read_text() == "sleep 0"


def failing_evaluation(folder: Path) -> list[str]:
    """Overrides of a federation whose server trains a generator while clients evaluate."""
    of_fedgen = [option for option in OVERRIDES if not option.startswith(("strategy=", "rounds="))]
    overrides = ["strategy._target_=tests.failing_clients.FailingEvaluation", f"+strategy.folder={folder}", "strategy.generator_steps=3"]
    return [*of_fedgen, "rounds=2", "strategy=fedgen", "allow_targets=[tests]", *overrides]


def test_actor_killed_during_evaluation_and_server_training(idle_actors, tmp_path):
    """The server kills the actor during its training."""
    runs = run_in_both(tmp_path, *failing_evaluation(tmp_path))
    whole = next(runs)
    plan_failure(tmp_path, "evaluating-3", "sleep", 1)
    plan_failure(tmp_path, "server", "kill", 1)
    folder = next(runs)
    assert (tmp_path / "evaluating-3").read_text() == "sleep 0" and (tmp_path / "server").read_text() == "kill 0"
    assert list(differing(folder, whole)) == ["config.yaml"]


def test_ray_on_this_machine_is_private(repeat):
    """Every process listens on the loopback interface alone, and no other user can reach the files. The sockets have short paths."""
    (session,) = ray_cluster._sessions
    raylet = session._servers["raylet"]
    children = [raylet, *raylet.children(recursive=True)]
    processes = [os.getpid(), *ray_watcher.processes_of(session.folder)]
    listening = {
        connection.laddr.ip
        for process in processes
        for connection in psutil.Process(process).net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(processes) >= 6 and listening and listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert {child.pid for child in children if child.is_running()} <= set(processes), "agents keep their environment"
    assert Path(session.folder).stat().st_mode & 0o777 == 0o700
    paths = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if session.folder in line]
    assert paths and max(map(len, paths)) <= len(str(Path(session.folder).parent)) + len(LONGEST_SOCKET)


def test_end_of_a_server_of_ray(repeat, monkeypatch):
    """It is said to be that, within seconds, and the next run of the process has a new Ray. This test must be the last of ``repeat``."""
    plan_failure(repeat.folder, 2, "sleep", 1)
    (session,) = ray_cluster._sessions
    killer = threading.Thread(target=lambda: sleeping_process(repeat.folder) and session._servers["raylet"].kill())
    killer.start()
    with pytest.raises(EngineError, match=r"^Ray's raylet \(process \d+\) has ended"):
        repeat()
    killer.join()
    repeat.grid.close()
    until(lambda: not Path(session.folder).exists(), 20, "the end of the watcher")
    assert not ray_watcher.processes_of(session.folder)
    ray = ray_cluster.start_ray(2, None)
    (session,) = ray_cluster._sessions
    for _ in range(2):  # the class of actors is known to Ray
        (actor,) = ray_cluster.acquire_actors(ray, 0.0, 1)

    def end_of_the_gcs() -> None:
        """Ray would wait forever for the answer of a GCS that ends right after it was found alive."""
        session._servers["gcs_server"].kill()
        session._servers["gcs_server"].wait(10)

    with monkeypatch.context() as patch:
        patch.setattr(ray_cluster, "check_servers", lambda _: end_of_the_gcs())
        ray_cluster.remove_actor(ray, actor)
        (actor,) = ray_cluster.acquire_actors(ray, 0.0, 1)
    with pytest.raises(EngineError, match=r"^Ray's GCS \(process \d+\) has ended"):
        ray_cluster.wait_for_any(ray, [actor.ping.remote()], None)
    assert not ray.is_initialized()
    until(lambda: not Path(session.folder).exists(), 20, "the end of the watcher")


@pytest.mark.slow
def test_server_failure_during_evaluation(tmp_path):
    """The evaluating client would sleep for ten minutes."""
    plan_failure(tmp_path, "evaluating-3", "sleep", 1)
    plan_failure(tmp_path, "server", "wait", 1)
    command = Command(("engine=ray", "engine.workers=2", "output=runs", *failing_evaluation(tmp_path)), tmp_path, forked=True)
    end = command.end(timeout=120)
    assert end.code == 1 and "planned failure of the server" in end.err and "(traceback: " in end.err, end.err
    assert "run: " not in end.out and len(end.err.splitlines()) == 1
    log = Path(end.err.rstrip().rpartition("(traceback: ")[2].removesuffix(")"))
    assert log.read_text().startswith("Traceback") and "failing_clients.py" in log.read_text()
    log.unlink()
    until(lambda: not command.alive(), 10, "the end of Ray's processes")
