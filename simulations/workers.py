"""What runs where clients run: the process that answers a grid's requests, and the two ends of a request."""

import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Error, RecordDict

from fedkd import wire
from fedkd.check import require
from fedkd.evaluate import Score
from simulations import columns
from simulations.apps import CLIENT_RAISED, Work, answers, evaluate_chunk, train_chunk
from simulations.compat import identify
from simulations.process import settle
from simulations.scores import on_test
from simulations.world import world

Share = list[list[int]]
"""What one worker is asked for: chunks of clients, each chunk trained at once."""

WORK: dict[str, Work] = {"train": train_chunk, "evaluate": evaluate_chunk}
"""What is done for a message of each type."""

Answers = dict[int, RecordDict | Error]
"""By client: its records, or why there are none."""

MANY = 64
"""Chunks that a worker is asked for at once."""

PATIENCE = 20.0
"""Seconds that a cluster has to find room for actors."""

QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
"""How Ray is started."""


class Worker:
    """What a Ray actor is: a process that answers requests."""

    def __init__(self) -> None:
        identify()
        settle()

    def ping(self) -> None:
        """Answer."""

    def score(self, config: str, model: Callable, begin: int, end: int) -> Score:
        """The score of ``model`` on a part of the test set."""
        return on_test(world(config), model, begin, end)

    def peak_memory(self) -> int:
        """The most memory that this process has held, in KiB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def work(self, kind: str, content: RecordDict, cohort: ConfigRecord, owns: list[columns.Table]) -> list[columns.Table]:
        """A cohort's answers, as tables."""
        memories = {client: records[wire.OWN] for client, records in columns.unpack(owns).items()}
        return columns.pack(answers(WORK[kind], content, cohort, memories))


def by_client(answers: RecordDict) -> dict[int, RecordDict]:
    """``{"7/update": record}`` to ``{7: {"update": record}}``."""
    clients: dict[int, RecordDict] = {}
    for name, record in answers.items():
        client, _, rest = name.partition("/")
        clients.setdefault(int(client), RecordDict())[rest] = record
    return clients


def request(content: RecordDict, cohort: ConfigRecord, owns: Mapping[int, ArrayRecord]) -> RecordDict:
    """What the ClientApp is sent for a cohort: what all share, whom it is for, and their memories."""
    return RecordDict({**content, "cohort": cohort, **{f"{client}/{wire.OWN}": own for client, own in owns.items()}})


def judged(clients: Mapping[int, RecordDict]) -> Answers:
    """Answers, of which those that hold an error record are errors."""
    return {client: failure(records["error"]) if "error" in records else records for client, records in clients.items()}


def failure(record: ConfigRecord) -> Error:
    """An error record as Flower's error."""
    return Error(code=int(record.get("code", CLIENT_RAISED)), reason=str(record["reason"]))


def split(chunks: Sequence[list[int]], parts: int, load: Sequence[float]) -> list[Share]:
    """``chunks``, each whole, in at most ``parts`` shares of nearly equal ``load``: the heaviest first, to whoever has least."""
    parts = min(parts, len(chunks))
    shares: list[list[int]] = [[] for _ in range(parts)]
    loads = [0.0] * parts
    for place in sorted(range(len(chunks)), key=lambda i: -load[i]):
        lightest = loads.index(min(loads))
        shares[lightest].append(place)
        loads[lightest] += load[place]
    return [[chunks[place] for place in sorted(share)] for share in shares]


def portions(share: Share) -> list[Share]:
    """A share in the portions in which it is asked for: many chunks in four, so that the driver reads the first while the next is worked on."""
    size = len(share) if len(share) <= MANY else -(-len(share) // 4)
    return [share[i : i + size] for i in range(0, len(share), size)]


def everyone(share: Share) -> list[int]:
    """The clients of all chunks."""
    return [client for chunk in share for client in chunk]


_idle: dict[float, list[Any]] = {}
"""Actors of earlier runs of this process, by their share of a GPU: a new one takes seconds to import what it needs."""


def hire(ray: Any, num_gpus: float, number: int) -> list[Any]:
    """Actors: those that wait since an earlier run, and new ones, in the place of those of another kind.

    Raises:
        ValueError: there is no room for them.
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
        ValueError: saying what was asked and what there is.
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
        ValueError: no cluster answers at ``address``.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray lets its workers stand back behind every other process
    os.environ.setdefault("RAY_max_direct_call_object_size", str(2 << 20))  # bytes that travel with an answer itself
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
    return ray


def join(ray: Any, address: str) -> None:
    """Connect to a cluster; where nobody listens that is said at once, while Ray itself goes on asking for minutes.

    Raises:
        ValueError: no cluster answers.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
        ray.init(address=address, **QUIET)
    except (OSError, ValueError, RuntimeError) as error:
        rule = "address (or RAY_ADDRESS) must be that of a Ray cluster that answers"
        raise ValueError(f"{rule}, got {address!r}: {' '.join(str(error).split())}") from error


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
