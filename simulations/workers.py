"""What runs where clients run: the process that answers a grid's requests, and the two ends of a request."""

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict

from simulations.apps import CLIENT_RAISED, client_app
from simulations.compat import identify

Share = list[list[int]]
"""What one worker is asked for: chunks of clients, each chunk trained at once."""

Answers = dict[int, RecordDict | Error]
"""By client: its records, or why there are none."""


class Worker:
    """What a Ray actor is: a process that answers requests."""

    def __init__(self) -> None:
        identify()

    def ping(self) -> None:
        """Answer."""

    def work(self, kind: str, content: RecordDict, request: RecordDict) -> RecordDict:
        """The ClientApp's answers for a cohort."""
        return work(kind, content, request)


def work(kind: str, content: RecordDict, request: RecordDict) -> RecordDict:
    """Hand a request to the ClientApp in this process."""
    message = Message(RecordDict({**content, **request}), dst_node_id=0, message_type=kind)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    return client_app(message, context).content


def unpack(answers: RecordDict) -> Answers:
    """``{"7/update": record}`` to ``{7: {"update": record}}``, and error records to errors."""
    clients: dict[int, RecordDict] = {}
    for name, record in answers.items():
        client, _, rest = name.partition("/")
        clients.setdefault(int(client), RecordDict())[rest] = record
    return {client: failure(records["error"]) if "error" in records else records for client, records in clients.items()}


def failure(record: ConfigRecord) -> Error:
    """An error record as Flower's error."""
    return Error(code=int(record.get("code", CLIENT_RAISED)), reason=str(record["reason"]))


def split(chunks: Sequence[list[int]], parts: int) -> list[Share]:
    """``chunks`` in order, cut into at most ``parts`` shares of nearly equal length."""
    parts = min(parts, len(chunks))
    cuts = [len(chunks) * i // parts for i in range(parts + 1)]
    return [list(chunks[a:b]) for a, b in pairwise(cuts)]


def everyone(share: Share) -> list[int]:
    """The clients of all chunks."""
    return [client for chunk in share for client in chunk]


_idle: dict[float, list[Any]] = {}
"""Actors of earlier runs of this process, by their share of a GPU: a new one takes seconds to import what it needs."""


def hire(ray: Any, num_gpus: float) -> Any:
    """An actor: one that waits since an earlier run, or a new one in the place of those of another kind."""
    for other in [share for share in _idle if share != num_gpus]:
        for actor in _idle.pop(other):
            ray.kill(actor)
    if _idle.get(num_gpus):
        return _idle[num_gpus].pop()
    return ray.remote(num_cpus=1, num_gpus=num_gpus)(Worker).remote()


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
    """Ray, with room for ``num_workers`` actors on this machine unless it runs on a cluster already."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized() and address is None and ray.cluster_resources().get("CPU", 0) < num_workers:
        ray.shutdown()
        _idle.clear()
    if not ray.is_initialized():
        _idle.clear()
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        ray.init(address=address, **quiet, **({} if address else {"num_cpus": max(num_workers, os.cpu_count() or 1)}))
    return ray
