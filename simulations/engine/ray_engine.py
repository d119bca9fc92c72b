"""RayGrid: clients run in supervised Ray actors."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from flwr.app import Error, RecordDict

from fedkd.config.build import call_part
from fedkd.errors import require
from fedkd.federation import serialization
from fedkd.metrics.accuracy import Score
from simulations.engine import record_tables
from simulations.engine.base import ClientGrid, Waiting
from simulations.engine.client_work import CLIENT_RAISED, TIMED_OUT, WORKER_LOST
from simulations.engine.ray_cluster import DIRECT, dismiss, hire, start_ray
from simulations.engine.worker import Answers, Share, everyone, judged, packed, portions
from simulations.process import cores
from simulations.setup.evaluation import test_score
from simulations.setup.simulation import build_simulation


class RayGrid(ClientGrid):
    """Clients run in Ray actors. Where an actor dies, another takes its place and is asked for its clients again, chunk by chunk,
    so that whoever takes the actor down does not take other chunks along; a client whose actor dies twice has failed.

    Past the timeout, actors that still work are ended and replaced; all clients of their share have failed.

    Args:
        num_clients: N.
        config: the resolved configuration as YAML.
        workers: how many actors; None is one a core.
        num_gpus: of each actor; fractions allowed.
        address: of an existing cluster; None starts Ray on this machine.
    """

    def __init__(self, num_clients: int, config: str, *, workers: int | None, num_gpus: float, address: str | None) -> None:
        super().__init__(num_clients, config)
        require(workers is None or workers > 0, "workers", "must be > 0, or null for one a core", workers)
        require(num_gpus >= 0, "num_gpus", "must be >= 0", num_gpus)
        self.num_workers = min(workers or cores(), num_clients)
        self._ray = start_ray(self.num_workers, address)
        if address is None:  # a cluster may grow, this machine does not
            most = self._ray.cluster_resources().get("GPU", 0)
            rule = f"must be at most {most / self.num_workers:g}, as {self.num_workers} workers share {most:g} GPUs"
            require(num_gpus * self.num_workers <= most, "num_gpus", rule, num_gpus)
        self._num_gpus = num_gpus
        self._actors = hire(self._ray, num_gpus, self.num_workers)

    def ask(self, kind: str, content: RecordDict, shares: list[Share], timeout: float | None) -> Waiting:
        ray, answers = self._ray, {}
        queues = [deque(portions(share)) for share in shares]
        small = serialization.content_bytes(content) * sum(map(len, queues)) <= DIRECT
        broadcast = content if small else ray.put(content)  # once, however many clients there are
        running: dict[Any, tuple[int, Any, Share]] = {}
        lost = {client: 0 for share in shares for client in everyone(share)}

        def send(number: int) -> None:
            if queues[number]:
                share = queues[number].popleft()
                owns = record_tables.pack(
                    {client: RecordDict({serialization.CLIENT_STATE: own}) for client, own in self.owns(content, share).items()}
                )
                actor = self._actors[number]
                running[actor.work.remote(kind, broadcast, self.cohort(share), owns)] = (number, actor, share)

        def wait() -> Answers:
            deadline = None if timeout is None else time.monotonic() + timeout
            while running:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                done, _ = ray.wait(list(running), timeout=left)
                if not done:
                    late = [(number, actor) for number, actor, _ in running.values()]
                    return answers | self._give_up(late, lost.keys() - answers.keys(), timeout)
                receive(done[0], *running.pop(done[0]))
            return answers

        def receive(reference: Any, number: int, actor: Any, share: Share) -> None:
            try:
                answers.update(judged(record_tables.unpack(ray.get(reference))))
            except ray.exceptions.RayTaskError as error:  # it raised outside any one client's work, and lives
                answers.update({client: Error(code=CLIENT_RAISED, reason=str(error)) for client in everyone(share)})
            except ray.exceptions.RayError as error:
                self._replace(number, actor)
                lost.update({client: lost[client] + 1 for client in everyone(share)})
                queues[number].extendleft([chunk] for chunk in reversed(share) if lost[chunk[0]] < 2)
                gone = [client for client in everyone(share) if lost[client] == 2]
                answers.update({client: Error(code=WORKER_LOST, reason=f"its worker was lost: {error}") for client in gone})
            send(number)

        for number in range(len(queues)):
            send(number)
        return wait

    def score(self, model: Callable) -> Callable[[], Score]:
        ray, home = self._ray, build_simulation(self.config)
        batch = home.config.evaluation.batch_size
        cuts = [len(home.test) * i // self.num_workers // batch * batch for i in range(self.num_workers)]
        parts = list(pairwise([*cuts, len(home.test)]))  # whole batches each
        given = packed(model)
        given = given if len(given) * len(parts) <= DIRECT else ray.put(given)
        asked = [actor.score.remote(self.config, given, *part) for actor, part in zip(self._actors, parts)]

        def together() -> Score:
            return Score.merge([found_or(asked, part) for asked, part in zip(asked, parts)])

        def found_or(reference: Any, part: tuple[int, int]) -> Score:
            try:
                return ray.get(reference)
            except ray.exceptions.RayActorError:  # whoever was to do it has died of something else
                return test_score(home, model, *part)

        return together

    def peak_memory(self) -> list[int]:
        """The most memory that each actor has held, in KiB."""
        return self._ray.get([actor.peak_memory.remote() for actor in self._actors])

    def _replace(self, number: int, actor: Any) -> None:
        """A fresh actor in the place of one that is dead or past its time, unless another question to it has found that out already."""
        if self._actors[number] is actor:
            self._ray.kill(actor)
            (self._actors[number],) = call_part("engine", hire, self._ray, self._num_gpus, 1)

    def _give_up(self, late: Iterable[tuple[int, Any]], clients: Iterable[int], timeout: float | None) -> Answers:
        """Past the deadline: end the work that still runs, with its actors."""
        for number, actor in late:
            self._replace(number, actor)
        return {client: Error(code=TIMED_OUT, reason=f"no answer within {timeout} seconds (timeout)") for client in clients}

    def close(self) -> None:
        """Let the actors go; they and Ray stay for the next run of this process, and end with it."""
        dismiss(self._ray, self._num_gpus, self._actors)
        self._actors = []
