"""A worker process, and how work is divided among workers.

``assign_chunks`` divides the chunks of a round among the workers. Each worker receives its chunks in one or more requests, and returns the
records of each client. ``parse_errors`` then turns the error records of failed clients into Flower errors.
"""

import resource
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, RecordDict
from torch import Tensor, nn

from fedkd.federation import serialization
from fedkd.federation.messaging import CLIENT_RAISED
from fedkd.metrics.accuracy import Score
from simulations.engine import record_tables
from simulations.engine.client_work import WORK, Assignment, Work, WorkFunction, evaluate_chunk, run_chunks, train_chunk
from simulations.engine.flower_compat import set_task_identity
from simulations.engine.worker_environment import Environment, Modules, describe_environment
from simulations.process import configure_process
from simulations.setup.evaluation import score_global_test
from simulations.setup.simulation import build_simulation

WORK_FUNCTIONS: dict[str, WorkFunction] = {"train": train_chunk, "evaluate": evaluate_chunk}
"""The work function of each message type."""

ClientResults = dict[int, RecordDict | Error]
"""The records of each client, or the error of a client that failed."""

MAX_CHUNKS_PER_REQUEST = 64
"""A worker receives up to this number of chunks in one request, and more in four requests or, beyond four times as many each, in more."""


class Worker:
    """A Ray actor that trains and evaluates clients."""

    def __init__(self) -> None:
        set_task_identity()
        configure_process()
        if threading.current_thread() is threading.main_thread():  # Ray's handler would first disconnect from a cluster that ends too
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def environment(self, config: str, modules: Modules) -> Environment:
        """The environment of this process for a configuration, see :func:`simulations.engine.worker_environment.describe_environment`."""
        import ray

        return describe_environment(config, modules, f"Ray node {ray.get_runtime_context().get_node_id()[:8]}")

    def ping(self) -> None:
        """Return, which shows that the actor is alive and idle."""

    def score(self, config: str, model: bytes, begin: int, end: int) -> Score:
        """The score of a model on examples ``begin``..``end`` of the global test set.

        Args:
            config: the resolved configuration as YAML.
            model: a model from :func:`pickle_model`.
            begin: the first example.
            end: one after the last example.
        """
        from ray.cloudpickle import loads

        return score_global_test(build_simulation(config), loads(model), begin, end)

    def peak_memory(self) -> int:
        """The peak memory of this process in KiB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def work(self, kind: str, content: RecordDict, work: Work, client_states: list[record_tables.Table]) -> list[record_tables.Table]:
        """Train or evaluate clients.

        Args:
            kind: ``train`` or ``evaluate``.
            content: the content that all clients share.
            work: the chunks of clients, and the configuration.
            client_states: the states of clients that have trained before, as tables.

        Returns:
            The records of each client, as tables.
        """
        states = {
            client: serialization.array_record(records, serialization.CLIENT_STATE)
            for client, records in record_tables.unpack(client_states).items()
        }
        return record_tables.pack(run_chunks(WORK_FUNCTIONS[kind], content, work, states))


# ------------------------------------------------------------------------------------------- requests and replies
def app_request(content: RecordDict, work: Work, client_states: Mapping[int, ArrayRecord]) -> RecordDict:
    """The content of a message to a ClientApp that hosts several clients.

    Args:
        content: the content that all clients share.
        work: the chunks of clients, and the configuration.
        client_states: the states of clients that have trained before.
    """
    states = {f"{client}/{serialization.CLIENT_STATE}": state for client, state in client_states.items()}
    return RecordDict({**content, WORK: work.to_record(), **states})


def group_by_client(reply: RecordDict) -> dict[int, RecordDict]:
    """The reply of such a ClientApp by client: ``{"7/update": record}`` becomes ``{7: {"update": record}}``."""
    clients: dict[int, RecordDict] = {}
    for name, record in reply.items():
        client, _, rest = name.partition("/")
        clients.setdefault(int(client), RecordDict())[rest] = record
    return clients


def parse_errors(replies: Mapping[int, RecordDict]) -> ClientResults:
    """The records of each client, with a Flower error in place of an error record."""
    return {
        client: to_flower_error(records.config_records["error"]) if "error" in records else records for client, records in replies.items()
    }


def to_flower_error(record: ConfigRecord) -> Error:
    """An error record as a Flower error."""
    return Error(code=int(cast(int, record.get("code", CLIENT_RAISED))), reason=str(record["reason"]))


# ------------------------------------------------------------------------------------------- models
def pickle_model(model: Callable) -> bytes:
    """A model as bytes for another process. The bytes hold tensors as NumPy arrays, as Ray's own pickler is slow for many small tensors."""
    from ray.cloudpickle import Pickler

    class TensorPickler(Pickler):
        """A pickler that stores tensors as NumPy arrays."""

        def reducer_override(self, obj: Any) -> Any:
            """The function and the arguments that restore a tensor. Other objects are pickled as usual."""
            if type(obj) in (Tensor, nn.Parameter) and obj.layout is torch.strided and obj.is_cpu and obj.dtype is not torch.bfloat16:
                return unpickle_tensor, (type(obj), obj.detach().numpy(), obj.requires_grad)
            return super().reducer_override(obj)

    buffer = BytesIO()
    TensorPickler(buffer, protocol=5).dump(model)
    return buffer.getvalue()


def unpickle_tensor(kind: type, values: np.ndarray, requires_grad: bool) -> Tensor:
    """The tensor or parameter of the given values. ``kind`` is ``torch.Tensor`` or ``nn.Parameter``."""
    tensor = torch.from_numpy(values)
    return kind(tensor, requires_grad) if kind is nn.Parameter else tensor.requires_grad_(requires_grad)


# ------------------------------------------------------------------------------------------- division of work
def assign_chunks(chunks: Sequence[list[int]], num_workers: int, costs: Sequence[float]) -> list[Assignment]:
    """Divide chunks among workers so that their costs are nearly equal.

    The chunk with the highest cost is assigned first, always to the worker with the lowest cost so far.

    Args:
        chunks: chunks of clients. They are not divided.
        num_workers: number of workers, >= 1.
        costs: the cost of each chunk.

    Returns:
        One assignment per worker, at most ``num_workers`` and none of them empty.
    """
    num_workers = min(num_workers, len(chunks))
    assigned: list[list[int]] = [[] for _ in range(num_workers)]
    totals = [0.0] * num_workers
    for place in sorted(range(len(chunks)), key=lambda i: -costs[i]):
        worker = totals.index(min(totals))
        assigned[worker].append(place)
        totals[worker] += costs[place]
    return [[chunks[place] for place in sorted(places)] for places in assigned]


def split_into_requests(assignment: Assignment) -> list[Assignment]:
    """The requests to one worker. Many chunks are sent in four requests, so that the driver reads a reply while the worker continues.

    Very many are sent in more requests, so that neither process holds the states of all clients at once.
    """
    size = len(assignment) if len(assignment) <= MAX_CHUNKS_PER_REQUEST else min(-(-len(assignment) // 4), 4 * MAX_CHUNKS_PER_REQUEST)
    return [assignment[i : i + size] for i in range(0, len(assignment), size)]


def clients_of(assignment: Assignment) -> list[int]:
    """The clients of all chunks."""
    return [client for chunk in assignment for client in chunk]
