"""Ray: started or joined, asked for room, and its actors hired and dismissed."""

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

PATIENCE = 20.0
"""Seconds that a cluster has to find room for actors."""


DIRECT = 2 << 20
"""Bytes that travel with a question or an answer itself, and not through Ray's store, which takes two milliseconds."""


QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
"""How Ray is started."""


_idle: dict[float, list[Any]] = {}
"""Actors of earlier runs of this process, by their share of a GPU: a new one takes seconds to import what it needs."""


def hire(ray: Any, num_gpus: float, number: int) -> list[Any]:
    """Actors: those that wait since an earlier run, and new ones, in the place of those of another kind.

    Raises:
        ConfigError: there is no room for them.
    """
    for other in [share for share in _idle if share != num_gpus]:
        for actor in _idle.pop(other):
            ray.kill(actor)
    waiting = _idle.setdefault(num_gpus, [])
    hired = [waiting.pop() for _ in range(min(number, len(waiting)))]
    if len(hired) < number:
        find_room(ray, num_gpus, number - len(hired))
        kind = ray.remote(num_cpus=1, num_gpus=num_gpus)(Worker)
        hired += [kind.remote() for _ in range(number - len(hired))]
    return hired


def find_room(ray: Any, num_gpus: float, number: int) -> None:
    """Wait until Ray could place so many actors, but no longer than ``PATIENCE``: without room it would let them wait for ever.

    Raises:
        ConfigError: saying what was asked and what there is.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    each = {"CPU": 1.0, **({"GPU": num_gpus} if num_gpus else {})}
    total, asked = ray.cluster_resources(), {name: number * share for name, share in each.items()}
    possible = all(total.get(name, 0.0) >= amount for name, amount in asked.items())
    room = placement_group([each] * number) if possible else None
    placed = room is not None and room.wait(PATIENCE)
    free = ray.available_resources()
    if room is not None:
        remove_placement_group(room)
    there = ", ".join(f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name} free" for name in each)
    wanted = " and ".join(f"{share:g} {name}" for name, share in each.items())
    require(placed, "workers", f"must fit into the cluster, which has {there}, at {wanted} each", number)


def dismiss(ray: Any, num_gpus: float, actors: Sequence[Any]) -> None:
    """Let ``actors`` wait for the next run; those that do not answer at once, dead or still at work, end."""
    pings = [actor.ping.remote() for actor in actors]
    answered = set(ray.wait(pings, num_returns=len(pings), timeout=1.0)[0]) if pings else set()
    for actor, ping in zip(actors, pings):
        if ping in answered and alive(ray, ping):
            _idle.setdefault(num_gpus, []).append(actor)
        else:
            ray.kill(actor)


def alive(ray: Any, ping: Any) -> bool:
    """The actor that was pinged answered, and not somebody for it that it is dead."""
    try:
        ray.get(ping)
    except ray.exceptions.RayError:
        return False
    return True


def start_ray(num_workers: int, address: str | None) -> Any:
    """Ray, with room for ``num_workers`` actors on this machine unless it runs on a cluster already.

    Raises:
        ConfigError: no cluster answers at ``address``.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray lets its workers stand back behind every other process
    os.environ.setdefault("RAY_max_direct_call_object_size", str(DIRECT))
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized() and address is None and ray.cluster_resources().get("CPU", 0) < num_workers:
        ray.shutdown()
        _idle.clear()
    if not ray.is_initialized():
        _idle.clear()
        with undisturbed():
            if address is None:
                ray.init(address="local", num_cpus=max(num_workers, os.cpu_count() or 1), **QUIET)
            else:
                join(ray, address)
        if address is None:
            take_along()
    return ray


def take_along() -> None:
    """From now on SIGTERM ends this process as ever, and before it those of Ray that it has started: where a scheduler sends the signal to
    all of them at once, Ray's agents can outlive the others for ever."""
    started = psutil.Process().children(recursive=True)

    def end(number: int, _: Any) -> None:
        silence()
        for process in {*started, *psutil.Process().children(recursive=True)}:
            with suppress(psutil.Error):
                process.kill()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)


def silence() -> None:
    """Nothing more is printed by this process: what Ray's agents have to say of their own end arrives here, and is nobody's concern."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def join(ray: Any, address: str) -> None:
    """Connect to a cluster; where nobody listens that is said at once, while Ray itself goes on asking for minutes.

    Raises:
        ConfigError: no cluster answers.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
        ray.init(address=address, **QUIET)
    except (OSError, ValueError, RuntimeError) as error:
        rule = "address (or RAY_ADDRESS) must be that of a Ray cluster that answers"
        raise ConfigError(f"{rule}, got {address!r}: {' '.join(str(error).split())}") from error


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block has ended, the first time, and mean then what they meant before.

    In the middle of its start Ray would leave processes behind, and from then on its own way with SIGTERM is to abort with a page of
    addresses.
    """
    arrived: list[int] = []

    def note(number: int, _: Any) -> None:
        arrived.append(number)
        if len(arrived) > 1:
            raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)} if ours else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for number in arrived[:1]:
            signal.raise_signal(number)
