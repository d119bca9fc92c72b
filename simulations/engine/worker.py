"""What runs where clients run: the process that answers a grid's requests, and the two ends of a request."""

import resource
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, RecordDict
from torch import Tensor, nn

from fedkd.federation import serialization
from fedkd.metrics.accuracy import Score
from simulations.engine import record_tables
from simulations.engine.client_work import CLIENT_RAISED, Work, answers, evaluate_chunk, train_chunk
from simulations.engine.flower_compat import identify
from simulations.process import configure_process
from simulations.setup.evaluation import test_score
from simulations.setup.simulation import build_simulation

Share = list[list[int]]
"""What one worker is asked for: chunks of clients, each chunk trained at once."""


WORK: dict[str, Work] = {"train": train_chunk, "evaluate": evaluate_chunk}
"""What is done for a message of each type."""


Answers = dict[int, RecordDict | Error]
"""By client: its records, or why there are none."""


MANY = 64
"""Chunks that a worker is asked for at once."""


class Worker:
    """What a Ray actor is: a process that answers requests."""

    def __init__(self) -> None:
        identify()
        configure_process()
        if threading.current_thread() is threading.main_thread():  # Ray would take leave of a cluster that has got the same signal
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def ping(self) -> None:
        """Answer."""

    def score(self, config: str, model: bytes, begin: int, end: int) -> Score:
        """The score of a :func:`packed` model on a part of the test set."""
        from ray.cloudpickle import loads

        return test_score(build_simulation(config), loads(model), begin, end)

    def peak_memory(self) -> int:
        """The most memory that this process has held, in KiB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def work(self, kind: str, content: RecordDict, cohort: ConfigRecord, owns: list[record_tables.Table]) -> list[record_tables.Table]:
        """A cohort's answers, as tables."""
        memories = {client: records[serialization.CLIENT_STATE] for client, records in record_tables.unpack(owns).items()}
        return record_tables.pack(answers(WORK[kind], content, cohort, memories))


def by_client(answers: RecordDict) -> dict[int, RecordDict]:
    """``{"7/update": record}`` to ``{7: {"update": record}}``."""
    clients: dict[int, RecordDict] = {}
    for name, record in answers.items():
        client, _, rest = name.partition("/")
        clients.setdefault(int(client), RecordDict())[rest] = record
    return clients


def request(content: RecordDict, cohort: ConfigRecord, owns: Mapping[int, ArrayRecord]) -> RecordDict:
    """What the ClientApp is sent for a cohort: what all share, whom it is for, and their memories."""
    return RecordDict({**content, "cohort": cohort, **{f"{client}/{serialization.CLIENT_STATE}": own for client, own in owns.items()}})


def judged(clients: Mapping[int, RecordDict]) -> Answers:
    """Answers, of which those that hold an error record are errors."""
    return {client: failure(records["error"]) if "error" in records else records for client, records in clients.items()}


def failure(record: ConfigRecord) -> Error:
    """An error record as Flower's error."""
    return Error(code=int(record.get("code", CLIENT_RAISED)), reason=str(record["reason"]))


def packed(model: Callable) -> bytes:
    """A model for the way to another process: Ray would pickle each of its tensors as a file of its own."""
    from ray.cloudpickle import Pickler

    class Packer(Pickler):
        def reducer_override(self, one: Any) -> Any:
            if type(one) in (Tensor, nn.Parameter) and one.layout is torch.strided and one.is_cpu and one.dtype is not torch.bfloat16:
                return unpacked, (type(one), one.detach().numpy(), one.requires_grad)
            return super().reducer_override(one)

    buffer = BytesIO()
    Packer(buffer, protocol=5).dump(model)
    return buffer.getvalue()


def unpacked(kind: type, values: np.ndarray, requires_grad: bool) -> Tensor:
    """A tensor or parameter."""
    tensor = torch.from_numpy(values)
    return kind(tensor, requires_grad) if kind is nn.Parameter else tensor.requires_grad_(requires_grad)


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
