"""Ray: starting it or connecting to a cluster, and acquiring and releasing its actors."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from fedkd.errors import ConfigError, require
from simulations.engine.worker import Worker

PLACEMENT_TIMEOUT = 20.0
"""Seconds that a cluster has to find free resources for actors."""

MAX_DIRECT_BYTES = 2 << 20
"""Up to this size in bytes an object is sent inside a message. Larger ones go through Ray's object store, which takes two milliseconds."""

RAY_OPTIONS: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
"""Options with which Ray is started."""

_idle: dict[float, list[Any]] = {}
"""Actors of earlier runs of this process, by their GPUs. They are kept because a new actor takes seconds to import its modules."""


def acquire_actors(ray: Any, num_gpus: float, number: int) -> list[Any]:
    """Actors for a run: idle ones of earlier runs of this process first, then new ones.

    Idle actors with another number of GPUs are ended, as they hold resources of the cluster.

    Args:
        ray: the initialized module.
        num_gpus: GPUs of each actor.
        number: number of actors.

    Raises:
        ConfigError: the cluster has no free resources for them.
    """
    for other in [gpus for gpus in _idle if gpus != num_gpus]:
        for actor in _idle.pop(other):
            ray.kill(actor)
    idle = _idle.setdefault(num_gpus, [])
    actors = [idle.pop() for _ in range(min(number, len(idle)))]
    if len(actors) < number:
        check_capacity(ray, num_gpus, number - len(actors))
        actor_class = ray.remote(num_cpus=1, num_gpus=num_gpus)(Worker)
        actors += [actor_class.remote() for _ in range(number - len(actors))]
    return actors


def check_capacity(ray: Any, num_gpus: float, number: int) -> None:
    """Wait until the cluster has free resources for new actors, up to :data:`PLACEMENT_TIMEOUT` seconds.

    Without this check Ray would let actors wait forever.

    Args:
        ray: the initialized module.
        num_gpus: GPUs of each actor.
        number: number of actors.

    Raises:
        ConfigError: the resources are not free in time, or the cluster does not have them at all.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    per_actor = {"CPU": 1.0, **({"GPU": num_gpus} if num_gpus else {})}
    total = ray.cluster_resources()
    possible = all(total.get(name, 0.0) >= number * amount for name, amount in per_actor.items())
    reservation = placement_group([per_actor] * number) if possible else None
    placed = reservation is not None and reservation.wait(PLACEMENT_TIMEOUT)
    free = ray.available_resources()
    if reservation is not None:
        remove_placement_group(reservation)
    resources = ", ".join(f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name} free" for name in per_actor)
    needed = " and ".join(f"{amount:g} {name}" for name, amount in per_actor.items())
    require(placed, "workers", f"must fit into the cluster, which has {resources}, at {needed} each", number)


def release_actors(ray: Any, num_gpus: float, actors: Sequence[Any]) -> None:
    """Keep actors for the next run of this process. Actors that do not reply within a second, dead or still at work, are ended."""
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


def start_ray(num_workers: int, address: str | None) -> Any:
    """The module ``ray``, initialized. Ray runs on this machine with at least ``num_workers`` CPUs, or on an existing cluster.

    Args:
        num_workers: number of actors that must fit on this machine.
        address: address of an existing cluster. None takes ``RAY_ADDRESS``, or starts Ray on this machine.

    Raises:
        ConfigError: no cluster answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default Ray's workers have a lower priority than all other processes
    os.environ.setdefault("RAY_max_direct_call_object_size", str(MAX_DIRECT_BYTES))
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized() and address is None and ray.cluster_resources().get("CPU", 0) < num_workers:
        ray.shutdown()
        _idle.clear()
    if not ray.is_initialized():
        _idle.clear()
        with deferred_signals():
            if address is None:
                ray.init(address="local", num_cpus=max(num_workers, os.cpu_count() or 1), **RAY_OPTIONS)
            else:
                connect_to_cluster(ray, address)
        if address is None:
            end_ray_on_sigterm()
    return ray


def end_ray_on_sigterm() -> None:
    """Let SIGTERM end Ray's processes before this one.

    A scheduler sends SIGTERM to all processes at once. Without this handler, Ray's agents can outlive the others forever.
    """
    started = psutil.Process().children(recursive=True)

    def end(number: int, _: Any) -> None:
        discard_output()
        for process in {*started, *psutil.Process().children(recursive=True)}:
            with suppress(psutil.Error):
                process.kill()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)


def discard_output() -> None:
    """Discard all further output of this process, which would be messages of Ray about the end of its own agents."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def connect_to_cluster(ray: Any, address: str) -> None:
    """Connect to an existing cluster. A closed port is an error at once, while Ray itself would try for minutes.

    Raises:
        ConfigError: no cluster answers.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), timeout=PLACEMENT_TIMEOUT).close()
        ray.init(address=address, **RAY_OPTIONS)
    except (OSError, ValueError, RuntimeError) as error:
        rule = "address (or RAY_ADDRESS) must be that of a Ray cluster that answers"
        raise ConfigError(f"{rule}, got {address!r}: {' '.join(str(error).split())}") from error


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
