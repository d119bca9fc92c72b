"""RayGrid: clients run in Ray actors, each of them a :class:`simulations.engine.worker.Worker`.

``start_work`` queues the requests to each actor and sends the first request of each queue. Whenever a result arrives, the next request of
the same queue is sent. Requests of an actor that has ended go to the others. The broadcast is stored once in Ray's object store if it is
large. Client states and results travel as tables (:mod:`simulations.engine.record_tables`).
"""

import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from flwr.app import Error, Message, RecordDict
from torch import Tensor

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
    check_servers,
    cluster_address,
    keep_messages,
    start_ray,
    total_resources,
    wait_for_any,
)
from simulations.engine.ray_workers import Workers
from simulations.engine.worker import ClientResults, clients_of, parse_errors, pickle_model, split_into_requests
from simulations.engine.worker_environment import Environment, code_of
from simulations.process import cores
from simulations.setup.evaluation import score_global_test
from simulations.setup.simulation import build_simulation


class RayGrid(ClientGrid):
    """Clients run in Ray actors.

    An actor that dies is replaced. Its chunks are then sent again, one at a time, so that the chunk that ended the actor does not take
    other chunks with it. A client whose actor dies twice has failed. On a cluster the lost node may have taken the room of the actor with
    it: the others go on, and actors of nodes that join get work from the next round on.

    After the timeout, actors that are still at work are ended and replaced. All clients without a result have then failed.

    Args:
        num_clients: number of clients N.
        config: the resolved configuration as YAML.
        workers: number of actors, > 0. None: on this machine one per core, or with a GPU one per ``num_gpus``; on a cluster as many as its
            resources allow.
        num_gpus: GPUs of each actor, >= 0. Fractions are allowed. None: one where the device is a GPU, otherwise none.
        address: address of an existing cluster. None starts Ray on this machine.
        patience: seconds to wait for room on a cluster, >= 0.
        ship_code: send the code of the run to the nodes of a cluster. Otherwise they use what is installed there.

    Raises:
        ConfigError: a value is out of its range, or the actors do not fit into the cluster.
        EngineError: Ray does not start, or a worker has another environment than this process.
    """

    def __init__(
        self,
        num_clients: int,
        config: str,
        *,
        workers: int | None,
        num_gpus: float | None,
        address: str | None,
        patience: float,
        ship_code: bool,
    ) -> None:
        super().__init__(num_clients, config)
        require(workers is None or workers > 0, "workers", "must be > 0, or null for as many as there is room for", workers)
        require(num_gpus is None or num_gpus >= 0, "num_gpus", "must be >= 0, or null for one per actor where device=cuda", num_gpus)
        require(patience >= 0, "patience", "must be a number of seconds >= 0", patience)
        self._joined = cluster_address(address) is not None
        if num_gpus is None:
            num_gpus = 0.0 if build_simulation(config).config.device == "cpu" else 1.0
        if self._joined:
            self._ray = start_ray(0, address, code_of(config) if ship_code else {})
        else:
            workers, self._ray = self._start_on_this_machine(workers, num_gpus)
        self._workers = Workers(self._ray, config, workers, num_gpus, num_clients, joined=self._joined, patience=patience)

    def _start_on_this_machine(self, workers: int | None, num_gpus: float) -> tuple[int, Any]:
        """The number of actors and Ray, which starts on this machine.

        Raises:
            ConfigError: the machine has too few GPUs.
        """
        number = min(workers or cores(), self.num_clients)
        ray = start_ray(number, None)
        available = total_resources(ray).get("GPU", 0)
        if workers is None and num_gpus:
            number = max(1, min(number, int(available / num_gpus)))
        rule = f"must be at most {available / number:g}, as {number} workers share {available:g} GPUs"
        require(num_gpus * number <= available, "num_gpus", rule, num_gpus)
        return number, ray

    @property
    def num_workers(self) -> int:  # type: ignore[override]  # that of a cluster changes
        """The number of actors among which the next work is divided."""
        return len(self._workers)

    def metrics(self) -> dict[str, int]:
        """The number of actors, where it can change."""
        return {"num_workers": self.num_workers} if self._joined else {}

    def keep_messages(self, folder: Path) -> None:
        """See :meth:`simulations.engine.base.ClientGrid.keep_messages`."""
        keep_messages(folder)

    def environments(self) -> dict[str, Environment]:
        """See :meth:`simulations.engine.base.ClientGrid.environments`."""
        return self._workers.environments

    def assign_clients(self, kind: str, messages: list[Message]) -> list[Assignment]:
        """See :meth:`simulations.engine.base.ClientGrid.assign_clients`."""
        check_servers(self._ray)
        self._workers.update()
        return super().assign_clients(kind, messages)

    def start_work(self, kind: str, content: RecordDict, assignments: list[Assignment], timeout: float | None) -> PendingResults:
        """See :meth:`simulations.engine.base.ClientGrid.start_work`. The actors start at once."""
        ray, workers = self._ray, self._workers
        results: ClientResults = {}
        queues = dict(zip(workers.ready, map(deque, map(split_into_requests, assignments))))
        unassigned = deque[Assignment]()  # requests of actors that have ended
        for assignment in assignments[len(queues) :]:
            unassigned.extend(split_into_requests(assignment))
        small = serialization.content_bytes(content) * sum(map(len, queues.values())) <= MAX_DIRECT_BYTES
        shared_content = content if small else ray.put(content)
        running: dict[Any, tuple[Any, Assignment]] = {}
        num_losses = {client: 0 for assignment in assignments for client in clients_of(assignment)}

        def send_next(actor: Any) -> None:
            queue = queues.get(actor) or unassigned
            if queue:
                assignment = queue.popleft()
                states = {
                    client: RecordDict({serialization.CLIENT_STATE: state})
                    for client, state in self.states_for(content, assignment).items()
                }
                reference = actor.work.remote(kind, shared_content, self.work(assignment), record_tables.pack(states))
                running[reference] = (actor, assignment)

        def wait() -> ClientResults:
            deadline = None if timeout is None else time.monotonic() + timeout
            while running or unassigned:
                remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not running:  # all actors have ended
                    workers.wait(remaining)
                    for actor in workers.ready:
                        send_next(actor)
                    remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
                done = wait_for_any(ray, list(running), remaining) if running else None
                if done is None:
                    for actor, _ in running.values():
                        workers.lose(actor)
                    reason = f"no reply within {timeout} seconds (timeout)"
                    return results | {client: Error(code=TIMED_OUT, reason=reason) for client in num_losses.keys() - results.keys()}
                receive(done, *running.pop(done))
            return results

        def receive(reference: Any, actor: Any, assignment: Assignment) -> None:
            try:
                results.update(parse_errors(record_tables.unpack(ray.get(reference))))
            except ray.exceptions.RayTaskError as error:  # an exception outside the code of clients; the actor is alive
                results.update({client: Error(code=CLIENT_RAISED, reason=str(error)) for client in clients_of(assignment)})
            except ray.exceptions.RayError as error:
                workers.lose(actor)
                num_losses.update({client: num_losses[client] + 1 for client in clients_of(assignment)})
                unassigned.extend([chunk] for chunk in assignment if num_losses[chunk[0]] < 2)
                unassigned.extend(queues.pop(actor, ()))
                failed = [client for client in clients_of(assignment) if num_losses[client] == 2]
                results.update({client: Error(code=WORKER_LOST, reason=f"the worker process ended: {error}") for client in failed})
                busy = [one for one, _ in running.values()]
                for idle in [one for one in workers.ready if one not in busy]:
                    send_next(idle)
                return
            send_next(actor)

        for actor in workers.ready:
            send_next(actor)
        return wait

    def start_global_test(self, model: Callable[[Tensor], Output]) -> Callable[[], Score]:
        """Evaluate a model on the global test set, which the actors divide. The result is a function that waits for the score."""
        if not self._workers.ready:
            return super().start_global_test(model)
        ray, simulation = self._ray, build_simulation(self.config)
        num_examples, batch_size = len(simulation.global_test), simulation.config.evaluation.batch_size
        actors = list(self._workers.ready)
        begins = [num_examples * place // len(actors) // batch_size * batch_size for place in range(len(actors))]
        parts = list(pairwise([*begins, num_examples]))  # whole batches, so that all batches are those of a single process
        pickled = pickle_model(model)
        shared_model = pickled if len(pickled) * len(parts) <= MAX_DIRECT_BYTES else ray.put(pickled)
        references = [actor.score.remote(self.config, shared_model, *part) for actor, part in zip(actors, parts)]

        def score_of_part(reference: Any, part: tuple[int, int]) -> Score:
            try:
                wait_for_any(ray, [reference], None)
                return ray.get(reference)
            except ray.exceptions.RayError:  # a client may have ended the actor, or its node is lost
                return score_global_test(simulation, model, *part)

        return lambda: Score.merge([score_of_part(reference, part) for reference, part in zip(references, parts)])

    def peak_memory(self) -> list[int]:
        """The peak memory of each actor in KiB."""
        references = [actor.peak_memory.remote() for actor in self._workers.ready]
        for reference in references:
            wait_for_any(self._ray, [reference], None)
        return self._ray.get(references)

    def close(self) -> None:
        """Release the actors. They and Ray stay for the next run of this process, and end with the process."""
        self._workers.close()
