"""The workers of a run in Ray: they are verified before their first work, replaced when they end, and follow the size of a cluster."""

import math
import re
import sys
import time
from typing import Any

from fedkd.errors import ConfigError, EngineError, one_line
from simulations.engine.ray_cluster import (
    acquire_actors,
    actors_that_fit,
    check_servers,
    describe_resources,
    release_actors,
    remove_actor,
    wait_for_any,
)
from simulations.engine.worker_environment import Environment, Modules, check_environment, describe_environment, driver_modules

STRAGGLING = 20.0
"""Seconds in which the other workers of a cluster may start after the first one. Later ones are used from the next round on."""

MAX_FAILURES = 10
"""Actors of this machine that may end before their first work."""

IMPORT_ERROR = re.compile(r"(?:ModuleNotFoundError|ImportError): (.+)")
"""The line of an error of Ray that says what an actor cannot import."""

REPORT_AFTER = 15.0
"""Seconds of waiting for room after which a line says so."""


class Workers:
    """The verified actors of a run.

    Their number is fixed on this machine. On a cluster that was joined it follows the cluster: actors of a lost node are gone, and a node
    that joins gets actors, up to the number that is wanted.

    Args:
        ray: the initialized module.
        config: the resolved configuration as YAML.
        number: the wanted number of actors. None: as many as the cluster has room for, at most ``limit``.
        num_gpus: GPUs of each actor.
        limit: the largest number that can have work.
        joined: Ray is a cluster that was joined.
        patience: seconds to wait for room in a cluster.

    Raises:
        ConfigError: there is no room for the actors in time.
        EngineError: Ray has ended, or a worker has another environment than this process.
    """

    def __init__(self, ray: Any, config: str, number: int | None, num_gpus: float, limit: int, *, joined: bool, patience: float) -> None:
        self._ray, self._config, self._number, self._num_gpus, self._limit = ray, config, number, num_gpus, limit
        self._joined, self._patience = joined, patience
        self._modules: Modules = {}
        self._ours: Environment | None = None
        self._starting: dict[Any, Any] = {}  # the actor of each pending environment
        self._begun = False
        self._refused = self._failures = 0
        self._failure = ""
        self._lost: list[str] = []
        self._nodes: dict[Any, str] = {}
        self.ready: list[Any] = []
        """Actors that have proven their environment, in the order in which they were started."""
        self.environments: dict[str, Environment] = {}
        """The environment of each node that has had a worker."""
        room = describe_resources(ray, num_gpus) if joined else ""
        self._start(self._wanted())
        if joined:
            self._wait_for_room(room)
            self._begun = True

    def __len__(self) -> int:
        """The number of workers among which work is divided, >= 1."""
        return len(self.ready) or len(self._starting) or 1

    def update(self) -> None:
        """Take in actors that have started. On a cluster, start more where there is room.

        On this machine all are waited for, on a cluster one if none is ready.
        """
        if self._joined:
            self._start(self._wanted() - len(self.ready) - len(self._starting))
            self._report_losses()
        self._take_in(list(self._starting), timeout=0.0)
        if not self.ready or not self._joined:
            self.wait()
        self._begun = True

    def wait(self, timeout: float | None = None) -> None:
        """Wait until a worker is ready, on a cluster at most ``patience`` seconds. On this machine, for all that were started.

        Args:
            timeout: seconds after which this returns without a worker. None: see above.

        Raises:
            EngineError: none is, and there was no timeout before.
        """
        begin = time.monotonic()
        limit, patience = math.inf if timeout is None else timeout, self._patience if self._joined else math.inf
        end = begin + min(limit, patience)
        while self._starting and not (self.ready and self._joined):
            pending = list(self._starting)
            done = wait_for_any(self._ray, pending, None if math.isinf(end) else max(0.0, end - time.monotonic()))
            if done is None:
                break
            self._take_in([done])
        if not self.ready and (limit > patience or not self._starting):
            there = describe_resources(self._ray, self._num_gpus)
            where = f"the cluster has no room for another within {self._patience:g} seconds" if self._joined else "no other one starts"
            raise EngineError(f"no worker is left, and {where}: {there}")

    def lose(self, actor: Any) -> None:
        """Give up an actor that is dead or late, and start another one, unless that has been done already."""
        if actor in self.ready:
            self.ready.remove(actor)
            self._lost.append(self._nodes.get(actor, "an unknown node"))
            remove_actor(self._ray, actor)
            self._start(1)

    def close(self) -> None:
        """Release the actors. They and Ray stay for the next run of this process, and end with the process."""
        release_actors(self._ray, self._num_gpus, [*self.ready, *self._starting.values()])
        self.ready, self._starting = [], {}

    # ---------------------------------------------------------------------------------------------------------- start
    def _wanted(self) -> int:
        """The number of actors that the run should have now."""
        room = actors_that_fit(self._ray, self._num_gpus) if self._number is None else self._number
        return max(0, min(room, self._limit) - self._refused)

    def _start(self, number: int) -> None:
        """Start actors, which say their environment as soon as they run. A cluster may have no room for them yet."""
        if number > 0:
            actors = acquire_actors(self._ray, self._num_gpus, number, spread=self._joined)
            self._modules = self._modules or driver_modules(self._config)  # while the actors start
            for actor in actors:
                self._starting[actor.environment.remote(self._config, self._modules)] = actor

    def _wait_for_room(self, room: str) -> None:
        """Wait for the actors of a run that begins on a cluster.

        Args:
            room: the resources of the cluster before the run.

        Raises:
            ConfigError: there is no room in time for the number that was given, or for a single one.
        """
        begin, told, first = time.monotonic(), False, math.inf
        while not self.ready or len(self.ready) < self._wanted():
            self._start(self._wanted() - len(self.ready) - len(self._starting))
            now = time.monotonic()
            end = begin + self._patience if self._number is not None or not self.ready else min(begin + self._patience, first + STRAGGLING)
            if now >= end:
                break
            if not self._starting:  # a cluster without any room, which may grow
                time.sleep(0.2)
            elif (done := wait_for_any(self._ray, list(self._starting), min(1.0, end - now))) is not None:
                self._take_in([done])
                first = min(first, now)
            if not told and now - begin > REPORT_AFTER:
                print(f"waiting up to {self._patience:g} seconds for workers; the cluster had {room}", file=sys.stderr, flush=True)
                told = True
        if not self.ready or (self._number is not None and len(self.ready) < self._wanted()):
            started, given = len(self.ready), "null" if self._number is None else self._number
            self.close()
            failure = f"; a worker ended while it started: {self._failure}" if self._failure else ""
            rule = f"workers must start on the cluster within engine.patience={self._patience:g} seconds"
            raise ConfigError(f"{rule}, got {given}, of which {started} started. The cluster had {room}{failure}")

    # ----------------------------------------------------------------------------------------------------- environment
    def _take_in(self, references: list[Any], timeout: float | None = None) -> None:
        """Check the environments of actors that have started, and give these actors work from now on.

        Args:
            references: pending environments.
            timeout: seconds to wait for them.

        Raises:
            EngineError: the environment of an actor is not that of this process, at the beginning of a run.
        """
        if references and timeout is not None:
            references = self._ray.wait(references, num_returns=len(references), timeout=timeout)[0]
        for reference in references:
            actor = self._starting.pop(reference)
            try:
                theirs = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:  # its process or its node has ended
                remove_actor(self._ray, actor)
                self._failed_to_start(error)
                continue
            self._ours = self._ours or describe_environment(self._config, self._modules)
            try:
                check_environment(self._ours, theirs)
            except EngineError as error:
                remove_actor(self._ray, actor)
                if not self._begun:
                    self.close()
                    raise
                self._refused += 1
                print(f"warning: {one_line(error)}; it gets no work", file=sys.stderr, flush=True)
                continue
            self.ready.append(actor)
            self._nodes[actor] = theirs["node"]
            self.environments[theirs["node"]] = theirs

    def _failed_to_start(self, error: Exception) -> None:
        """Start another actor in place of one that ended before its first work. On a cluster that happens at the next update.

        Raises:
            EngineError: Ray has ended, too many actors have ended in this way, or one lacks a module at the beginning of a run.
        """
        check_servers(self._ray)
        self._failures += 1
        self._failure = one_line(error)
        if self._joined:
            if not self._begun and (missing := IMPORT_ERROR.search(str(error))) is not None:
                self.close()
                remedy = "engine.ship_code=true sends fedkd and your modules; install the packages that they need on all nodes"
                raise EngineError(f"a worker cannot import the code of the run: {missing[1]}; {remedy}")
            return
        if self._failures > MAX_FAILURES:
            raise EngineError(f"workers end while they start: {self._failure}")
        self._start(1)

    def _report_losses(self) -> None:
        """Say how many workers were lost since the last round."""
        if self._lost:
            nodes = ", ".join(sorted(set(self._lost)))
            print(f"warning: workers were lost on {nodes}: {len(self._lost)}; {len(self)} go on", file=sys.stderr, flush=True)
            self._lost.clear()
