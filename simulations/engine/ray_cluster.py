"""Ray: starting it or connecting to a cluster, and acquiring and releasing its actors."""

import atexit
import math
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedkd.errors import ConfigError, EngineError, one_line, require
from simulations.engine.ray_session import RaySession, check_open_files
from simulations.engine.worker import Worker
from simulations.engine.worker_environment import code_digest, shipped_folder

CONNECTION_TIMEOUT = 20.0
"""Seconds in which the port of a cluster must answer."""

MAX_DIRECT_BYTES = 2 << 20
"""Up to this size in bytes an object is sent inside a message. Larger ones go through Ray's object store, which takes two milliseconds."""

RAY_OPTIONS: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
"""Options with which Ray is started."""

PATIENT: dict[str, Any] = {"gcs_rpc_server_reconnect_timeout_s": 86_400}
"""Settings of a Ray on this machine. By default Ray ends this process a minute after the end of its GCS, without an exception."""

CHECK_INTERVAL = 1.0
"""Seconds between two checks of Ray's servers while results are awaited."""

ANSWER_TIMEOUT = 30.0
"""Seconds after the end of one of Ray's servers in which Ray must return from a call."""

START_TIMEOUT = 300.0
"""Seconds in which Ray must start on this machine. It takes about five. Where memory runs out, Ray can wait forever."""

_sessions: list[RaySession] = []
"""The Ray that this process has started, if there is one."""

_idle: dict[float, list[Any]] = {}
"""Actors of earlier runs of this process, by their GPUs. They are kept because a new actor takes seconds to import its modules."""

_in_use: list[Any] = []
"""Actors of runs that have not ended."""

_message_file: list[Path] = []
"""The file of the run that takes Ray's messages about the nodes of a cluster."""

_shipped: list[str] = []
"""The digest of the code that was sent to the cluster to which this process is connected."""


def total_resources(ray: Any) -> Mapping[str, float]:
    """All resources of the cluster, such as its CPUs and GPUs.

    Those of a Ray that this process has started are known without its GCS, as Ray would wait forever for a GCS that has just ended.
    """
    return _sessions[0].resources if _sessions else ray.cluster_resources()


@contextmanager
def bounded(limit: float = math.inf) -> Iterator[None]:
    """A block that calls Ray. If Ray does not return from it, this process ends with one line and exit code 1.

    That is so if a server of Ray ends meanwhile and Ray waits for it, or after ``limit`` seconds. Ray offers no timeout for these calls,
    and no way to interrupt them.
    """
    returned = threading.Event()

    def watch() -> None:
        last = time.monotonic() + limit
        while not returned.wait(CHECK_INTERVAL):
            for session in list(_sessions):
                if (server := session.ended_server()) is not None and not returned.wait(ANSWER_TIMEOUT):
                    return give_up(session, end_of(server))
                if time.monotonic() > last:
                    return give_up(session, f"Ray does not start within {limit:g} seconds; fewer engine.workers or engine=local need less")

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        returned.set()


def give_up(session: RaySession, message: str) -> None:
    """End Ray's processes and this one, whose main thread waits for them."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    session.kill()
    os._exit(1)


def end_of(server: str) -> str:
    """The message about the end of a server of Ray."""
    return (
        f"{server} has ended, so no client can train. A system that runs out of memory ends processes in this way; fewer "
        "engine.workers need less. Run the same command to continue from the last checkpoint"
    )


@bounded()
def acquire_actors(ray: Any, num_gpus: float, number: int, spread: bool = False) -> list[Any]:
    """Actors for a run: idle ones of earlier runs of this process first, then new ones.

    Idle actors with another number of GPUs are ended, as they hold resources of the cluster. A cluster may have no room for a new actor.
    It then starts as soon as there is room.

    Args:
        ray: the initialized module.
        num_gpus: GPUs of each actor.
        number: number of actors.
        spread: let Ray spread the actors over the nodes of a cluster.

    Raises:
        ConfigError: Ray on this machine has no room for them.
        EngineError: Ray has ended.
    """
    for other in [gpus for gpus in _idle if gpus != num_gpus]:
        for actor in _idle.pop(other):
            ray.kill(actor)
    idle = _idle.setdefault(num_gpus, [])
    actors = [idle.pop() for _ in range(min(number, len(idle)))]
    if len(actors) < number:
        check_capacity(ray, number - len(actors))
        new_actor = actor_class(ray).options(num_gpus=num_gpus, **({"scheduling_strategy": "SPREAD"} if spread else {}))
        actors += [new_actor.remote() for _ in range(number - len(actors))]
    _in_use.extend(actors)
    return actors


@lru_cache(maxsize=1)
def actor_class(ray: Any) -> Any:
    """The class of actors. Its first actor sends it to Ray's GCS, so it is made once: later actors do not wait for the GCS."""
    return ray.remote(num_cpus=1)(Worker)


@bounded()
def remove_actor(ray: Any, actor: Any) -> None:
    """End an actor."""
    if actor in _in_use:  # otherwise Ray has ended
        _in_use.remove(actor)
    ray.kill(actor)


def check_capacity(ray: Any, number: int) -> None:
    """Check that Ray on this machine has room for new actors, and that a node of a cluster is alive. Ray itself would wait forever.

    Raises:
        ConfigError: there is no room.
        EngineError: Ray has ended.
    """
    check_servers(ray)
    if _sessions:
        total = total_resources(ray)["CPU"]
        free = total - len(_in_use)
        rule = f"must fit into Ray on this machine, which has {free:g} of {total:g} CPU free, at 1 CPU each"
        require(number <= free, "workers", rule, number)
    elif not any(node["Alive"] for node in ray.nodes()):
        raise EngineError("no node of the Ray cluster is alive: its raylets have ended. Start the cluster, then run the same command again")


def actors_that_fit(ray: Any, num_gpus: float) -> int:
    """The number of actors for which the cluster has resources, whether they are free or not."""
    total = total_resources(ray)
    by_gpus = [int(total.get("GPU", 0.0) / num_gpus)] if num_gpus else []
    return min([int(total.get("CPU", 0.0)), *by_gpus])


def describe_resources(ray: Any, num_gpus: float) -> str:
    """Free and all resources of the cluster, and what one actor needs: ``0 of 2 CPU free, at 1 CPU each``."""
    per_actor = {"CPU": 1.0, **({"GPU": num_gpus} if num_gpus else {})}
    free, total = ray.available_resources(), total_resources(ray)
    resources = ", ".join(f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name} free" for name in per_actor)
    return f"{resources}, at {' and '.join(f'{amount:g} {name}' for name, amount in per_actor.items())} each"


@bounded()
def release_actors(ray: Any, num_gpus: float, actors: Sequence[Any]) -> None:
    """Keep actors for the next run of this process. Actors that do not reply within a second, dead or still at work, are ended."""
    if not ray.is_initialized():  # Ray has ended
        return
    _in_use[:] = [actor for actor in _in_use if actor not in actors]
    pings = [actor.ping.remote() for actor in actors]
    answered = set(ray.wait(pings, num_returns=len(pings), timeout=1.0)[0]) if pings else set()
    for actor, ping in zip(actors, pings):
        if ping in answered and is_alive(ray, ping):
            _idle.setdefault(num_gpus, []).append(actor)
        else:
            ray.kill(actor)


def is_alive(ray: Any, ping: Any) -> bool:
    """Whether a finished ping was answered by the actor. Ray also finishes the ping of a dead actor, with an error."""
    try:
        ray.get(ping)
    except ray.exceptions.RayError:
        return False
    return True


def cluster_address(address: str | None) -> str | None:
    """The address of an existing cluster: ``address``, or ``RAY_ADDRESS`` if it is not empty. None: Ray starts on this machine."""
    return address or os.environ.get("RAY_ADDRESS") or None


def start_ray(num_workers: int, address: str | None, code: Mapping[str, Path] = MappingProxyType({})) -> Any:
    """The module ``ray``, initialized. Ray runs on this machine with at least ``num_workers`` CPUs, or on an existing cluster.

    Args:
        num_workers: number of actors that must fit on this machine.
        address: address of an existing cluster, see :func:`cluster_address`.
        code: packages and modules that are sent to the nodes of a cluster, by name.

    Raises:
        ConfigError: no cluster answers at the address.
        EngineError: Ray does not start on this machine.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default Ray's workers have a lower priority than all other processes
    os.environ.setdefault("RAY_max_direct_call_object_size", str(MAX_DIRECT_BYTES))
    import ray

    address = cluster_address(address)
    if any(session.ended_server() for session in _sessions):  # it has ended since the last run
        end_ray(ray)
    if ray.is_initialized() and address is None and total_resources(ray).get("CPU", 0) < num_workers:
        end_ray(ray)
    shipped = code_digest(code) if address is not None else ""
    if ray.is_initialized() and address is not None and _shipped and _shipped[0] != shipped:
        end_ray(ray)  # the code belongs to the connection
    if not ray.is_initialized():
        _idle.clear()
        _in_use.clear()
        with deferred_signals():
            if address is None:
                start_on_this_machine(ray, num_workers)
            else:
                connect_to_cluster(ray, address, code)
                _shipped[:] = [shipped]
    return ray


def start_on_this_machine(ray: Any, num_workers: int) -> None:
    """Start Ray with at least ``num_workers`` CPUs. It listens on the loopback interface alone, and ends with this process.

    Raises:
        EngineError: Ray does not start.
    """
    check_open_files(num_workers)
    session = RaySession()
    _sessions.append(session)
    atexit.register(end_ray, ray)
    try:
        with bounded(START_TIMEOUT), session.starting() as folder, without_network():
            num_cpus = max(num_workers, os.cpu_count() or 1)
            ray.init(address="local", num_cpus=num_cpus, _temp_dir=folder, _system_config=PATIENT, **RAY_OPTIONS)
            session.resources = ray.cluster_resources()
    except BaseException:
        end_ray(ray)
        raise


@contextmanager
def without_network() -> Iterator[None]:
    """A block in which Ray starts with the loopback address as the address of its node, and without servers that one machine does not need.

    Ray takes this address on systems with personal firewalls, and offers no other way to have it. Without a dashboard its process would
    still ask the metadata services of three cloud providers where it runs, even where usage reports are switched off. The monitor starts
    and ends machines, and the log monitor prints the output of actors, which is switched off.
    """
    from ray._private import node, ray_constants, worker

    variable = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before = os.environ.get(variable), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[variable], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    unneeded = {name: getattr(node.Node, name) for name in ("start_api_server", "start_monitor", "start_log_monitor")}
    for name in unneeded:
        setattr(node.Node, name, lambda *_, **__: None)
    worker.print_to_stdstream = lambda *_, **__: None  # it would print a page of Ray's log if a server ends, which has an error of its own
    try:
        yield
    finally:
        os.environ.pop(variable)
        if before[0] is not None:
            os.environ[variable] = before[0]
        ray_constants.ENABLE_RAY_CLUSTER = before[1]
        for name, method in unneeded.items():
            setattr(node.Node, name, method)


def end_ray(ray: Any) -> None:
    """Disconnect from Ray. A Ray that this process has started ends, and its files are removed."""
    _idle.clear()
    _in_use.clear()
    with bounded():
        for session in _sessions:
            if session.ended_server() is not None:  # Ray would wait for answers of it
                session.kill()
        ray.shutdown()
    while _sessions:
        _sessions.pop().close()


def check_servers(ray: Any) -> None:
    """Check that the servers of a Ray that this process has started are alive. If one has ended, end the others.

    Raises:
        EngineError: one has ended.
    """
    for session in _sessions:
        if (server := session.ended_server()) is not None:
            end_ray(ray)
            raise EngineError(end_of(server))


def wait_for_any(ray: Any, references: Sequence[Any], timeout: float | None) -> Any | None:
    """The first finished reference; None after ``timeout`` seconds. None waits without limit.

    Raises:
        EngineError: a server of Ray has ended. Ray itself would wait for it.
    """
    last = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        done, _ = ray.wait(list(references), timeout=max(0.0, min(CHECK_INTERVAL, last - time.monotonic())))
        if done:
            return done[0]
        check_servers(ray)
        if time.monotonic() >= last:
            return None


def connect_to_cluster(ray: Any, address: str, code: Mapping[str, Path]) -> None:
    """Connect to an existing cluster. A closed port is an error at once, while Ray itself would try for minutes.

    Args:
        ray: the module.
        address: the address of the cluster.
        code: packages and modules that Ray sends to the nodes, by name. They come before what is installed there.

    Raises:
        ConfigError: no cluster answers.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECTION_TIMEOUT).close()
        with shipped_folder(code) as folder:
            environment = {"runtime_env": {"working_dir": folder}} if code else {}
            ray._private.worker.print_to_stdstream = keep_message
            # each process has a namespace of its own, so that several people can share a cluster
            ray.init(address=address, namespace=f"fedkd-{uuid.uuid4().hex}", **environment, **RAY_OPTIONS)
    except (OSError, ValueError, RuntimeError) as error:
        rule = "address (or RAY_ADDRESS) must be that of a Ray cluster that answers"
        raise ConfigError(f"{rule}, got {address!r}: {one_line(error)}") from error


def keep_messages(folder: Path) -> None:
    """Let Ray's messages about the nodes of a cluster go to ``ray.log`` in a folder. Ray would print them."""
    _message_file[:] = [folder / "ray.log"]


def keep_message(data: Mapping[str, Any], ignore_prefix: bool = False) -> None:
    """Write a message of Ray to the file of the run. Ray gives ``ignore_prefix``, which is not needed."""
    for path in _message_file:
        with suppress(OSError), open(path, "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in data.get("lines", ()))


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Defer the first Ctrl-C or SIGTERM until the end of the block, and restore the handlers of both signals there.

    If a signal ended Ray during its start, some of its processes would be left. Ray also installs its own handler of SIGTERM, which prints
    a page of addresses.
    """
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)} if in_main_thread else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for received_number in received[:1]:
            signal.raise_signal(received_number)
