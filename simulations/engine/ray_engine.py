"""RayGrid: clients run in Ray actors, each of them a :class:`simulations.engine.worker.Worker`.

``start_work`` queues the requests to each actor and sends the first request of each queue. Whenever a result arrives, the next request of
the same queue is sent. The broadcast is stored once in Ray's object store if it is large. Client states and results travel as tables
(:mod:`simulations.engine.record_tables`).
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from flwr.app import Error, RecordDict
from torch import Tensor

from fedkd.config.build import call_part
from fedkd.errors import require
from fedkd.federation import serialization
from fedkd.federation.messaging import CLIENT_RAISED, TIMED_OUT, WORKER_LOST
from fedkd.metrics.accuracy import Score
from fedkd.types import Output
from simulations.engine import record_tables
from simulations.engine.base import ClientGrid, PendingResults
from simulations.engine.client_work import Assignment
from simulations.engine.ray_cluster import (
    MAX_DIRECT_BYTES,
    acquire_actors,
    check_servers,
    release_actors,
    replace_actor,
    start_ray,
    total_resources,
    wait_for_any,
)
from simulations.engine.worker import ClientResults, clients_of, parse_errors, pickle_model, split_into_requests
from simulations.process import cores
from simulations.setup.evaluation import score_global_test
from simulations.setup.simulation import build_simulation


class RayGrid(ClientGrid):
    """Clients run in Ray actors.

    An actor that dies is replaced. Its chunks are then sent again, one at a time, so that the chunk that ended the actor does not take
    other chunks with it. A client whose actor dies twice has failed.

    After the timeout, actors that are still at work are ended and replaced. All clients without a result have then failed.

    Args:
        num_clients: number of clients N.
        config: the resolved configuration as YAML.
        workers: number of actors, > 0. None takes one per core.
        num_gpus: GPUs of each actor, >= 0. Fractions are allowed.
        address: address of an existing cluster. None starts Ray on this machine.

    Raises:
        ConfigError: a value is out of its range, or the actors do not fit into the cluster.
        EngineError: Ray does not start.
    """

    def __init__(self, num_clients: int, config: str, *, workers: int | None, num_gpus: float, address: str | None) -> None:
        super().__init__(num_clients, config)
        require(workers is None or workers > 0, "workers", "must be > 0, or null for one per core", workers)
        require(num_gpus >= 0, "num_gpus", "must be >= 0", num_gpus)
        self.num_workers = min(workers or cores(), num_clients)
        self._ray = start_ray(self.num_workers, address)
        if address is None:  # a cluster may grow, this machine does not
            available = total_resources(self._ray).get("GPU", 0)
            rule = f"must be at most {available / self.num_workers:g}, as {self.num_workers} workers share {available:g} GPUs"
            require(num_gpus * self.num_workers <= available, "num_gpus", rule, num_gpus)
        self._num_gpus = num_gpus
        self._actors = acquire_actors(self._ray, num_gpus, self.num_workers)

    def start_work(self, kind: str, content: RecordDict, assignments: list[Assignment], timeout: float | None) -> PendingResults:
        """See :meth:`simulations.engine.base.ClientGrid.start_work`. The actors start at once."""
        ray = self._ray
        check_servers(ray)
        results: ClientResults = {}
        queues = [deque(split_into_requests(assignment)) for assignment in assignments]
        small = serialization.content_bytes(content) * sum(map(len, queues)) <= MAX_DIRECT_BYTES
        shared_content = content if small else ray.put(content)
        running: dict[Any, tuple[int, Any, Assignment]] = {}
        num_losses = {client: 0 for assignment in assignments for client in clients_of(assignment)}

        def send_next(worker: int) -> None:
            if queues[worker]:
                assignment = queues[worker].popleft()
                states = {
                    client: RecordDict({serialization.CLIENT_STATE: state})
                    for client, state in self.states_for(content, assignment).items()
                }
                actor = self._actors[worker]
                reference = actor.work.remote(kind, shared_content, self.work(assignment), record_tables.pack(states))
                running[reference] = (worker, actor, assignment)

        def wait() -> ClientResults:
            deadline = None if timeout is None else time.monotonic() + timeout
            while running:
                remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
                done = wait_for_any(ray, list(running), remaining)
                if done is None:
                    late = [(worker, actor) for worker, actor, _ in running.values()]
                    return results | self._time_out(late, num_losses.keys() - results.keys(), timeout)
                receive(done, *running.pop(done))
            return results

        def receive(reference: Any, worker: int, actor: Any, assignment: Assignment) -> None:
            try:
                results.update(parse_errors(record_tables.unpack(ray.get(reference))))
            except ray.exceptions.RayTaskError as error:  # an exception outside the code of clients; the actor is alive
                results.update({client: Error(code=CLIENT_RAISED, reason=str(error)) for client in clients_of(assignment)})
            except ray.exceptions.RayError as error:
                self._replace(worker, actor)
                num_losses.update({client: num_losses[client] + 1 for client in clients_of(assignment)})
                queues[worker].extendleft([chunk] for chunk in reversed(assignment) if num_losses[chunk[0]] < 2)
                failed = [client for client in clients_of(assignment) if num_losses[client] == 2]
                results.update({client: Error(code=WORKER_LOST, reason=f"the worker process ended: {error}") for client in failed})
            send_next(worker)

        for worker in range(len(queues)):
            send_next(worker)
        return wait

    def start_global_test(self, model: Callable[[Tensor], Output]) -> Callable[[], Score]:
        """Evaluate a model on the global test set, which the actors divide. The result is a function that waits for the score."""
        ray, simulation = self._ray, build_simulation(self.config)
        num_examples, batch_size = len(simulation.global_test), simulation.config.evaluation.batch_size
        begins = [num_examples * worker // self.num_workers // batch_size * batch_size for worker in range(self.num_workers)]
        parts = list(pairwise([*begins, num_examples]))  # whole batches, so that all batches are those of a single process
        pickled = pickle_model(model)
        shared_model = pickled if len(pickled) * len(parts) <= MAX_DIRECT_BYTES else ray.put(pickled)
        references = [actor.score.remote(self.config, shared_model, *part) for actor, part in zip(self._actors, parts)]

        def score_of_part(reference: Any, part: tuple[int, int]) -> Score:
            try:
                wait_for_any(ray, [reference], None)
                return ray.get(reference)
            except ray.exceptions.RayActorError:  # a client may have ended the actor
                return score_global_test(simulation, model, *part)

        return lambda: Score.merge([score_of_part(reference, part) for reference, part in zip(references, parts)])

    def peak_memory(self) -> list[int]:
        """The peak memory of each actor in KiB."""
        references = [actor.peak_memory.remote() for actor in self._actors]
        for reference in references:
            wait_for_any(self._ray, [reference], None)
        return self._ray.get(references)

    def close(self) -> None:
        """Release the actors. They and Ray stay for the next run of this process, and end with the process."""
        release_actors(self._ray, self._num_gpus, self._actors)
        self._actors = []

    def _replace(self, worker: int, actor: Any) -> None:
        """Replace an actor that is dead or late, unless another pending phase has replaced it already."""
        if self._actors[worker] is actor:
            self._actors[worker] = call_part("engine", replace_actor, self._ray, self._num_gpus, actor)

    def _time_out(self, late: Iterable[tuple[int, Any]], clients: Iterable[int], timeout: float | None) -> ClientResults:
        """End the actors that are still at work after the timeout, and return an error for each client without a result."""
        for worker, actor in late:
            self._replace(worker, actor)
        return {client: Error(code=TIMED_OUT, reason=f"no reply within {timeout} seconds (timeout)") for client in clients}
