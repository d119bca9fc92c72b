"""How many workers a run has: GPUs, the size of a cluster, and nodes that join and are lost. Ray itself is replaced by a fake."""

from types import SimpleNamespace
from typing import Any

import pytest

from fedkd.errors import ConfigError, EngineError
from simulations.engine import ray_engine, ray_workers
from simulations.engine.ray_workers import Workers

SOUND = {"node": "a", "versions": {"torch": "2"}, "device": "cpu", "modules": {"fedkd.x": "1"}, "data": {"train": "1"}}


class FakeCluster:
    """A cluster with room for a number of actors. Each actor that has room says its environment at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room, self.actors, self.environment = room, list[Any](), SOUND
        self.exceptions = SimpleNamespace(RayError=ConnectionError)
        for name in ("acquire_actors", "remove_actor", "actors_that_fit", "wait_for_any"):
            monkeypatch.setattr(ray_workers, name, getattr(self, name))
        monkeypatch.setattr(ray_workers, "release_actors", lambda ray, gpus, actors: [self.remove_actor(ray, one) for one in actors])
        monkeypatch.setattr(ray_workers, "describe_resources", lambda *_: f"{self.room} CPU")
        monkeypatch.setattr(ray_workers, "driver_modules", lambda config: {"fedkd.x": ("", "1")})
        monkeypatch.setattr(ray_workers, "describe_environment", lambda *_: SOUND)
        monkeypatch.setattr(ray_workers, "check_servers", lambda ray: None)

    def actors_that_fit(self, *_: object) -> int:
        return self.room

    def acquire_actors(self, ray: object, num_gpus: float, number: int, spread: bool = False) -> list[Any]:
        new = [SimpleNamespace() for _ in range(number)]
        for actor in new:
            actor.environment = SimpleNamespace(remote=lambda config, modules, actor=actor: ("environment", id(actor)))
        new = [type("Actor", (), vars(one))() for one in new]
        self.actors += new
        return new

    def remove_actor(self, ray: object, actor: Any) -> None:
        if actor in self.actors:
            self.actors.remove(actor)

    def wait_for_any(self, ray: object, references: list[Any], timeout: float | None) -> Any | None:
        done = self.wait(references, len(references), timeout)[0]
        return done[0] if done else None

    def wait(self, references: list[Any], num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
        free = self.room - (len(self.actors) - len(references))
        return references[: max(0, free)], references[max(0, free) :]

    def get(self, reference: Any) -> dict[str, Any]:
        return self.environment


def workers(fake: FakeCluster, number: int | None, *, joined: bool = True, limit: int = 10) -> Workers:
    """The workers of a run that waits for nothing."""
    return Workers(fake, "", number, 0.0, limit, joined=joined, patience=0.05)


def test_null_takes_the_size_of_the_cluster_up_to_the_number_of_clients(monkeypatch):
    assert len(workers(FakeCluster(monkeypatch, 4), None)) == 4
    assert len(workers(FakeCluster(monkeypatch, 4), None, limit=3)) == 3


@pytest.mark.parametrize(("room", "number", "given"), [(2, 3, "3"), (0, 1, "1"), (0, None, "null")])
def test_a_cluster_without_room_is_an_error_after_the_patience(monkeypatch, room, number, given):
    fake = FakeCluster(monkeypatch, room)
    rule = rf"^workers must start on the cluster within engine\.patience=0\.05 seconds, got {given}, of which {room} started"
    with pytest.raises(ConfigError, match=rf"{rule}\. The cluster had {room} CPU$"):
        workers(fake, number)
    assert not fake.actors, "what has started is released"


def test_lost_nodes_are_survived_and_nodes_that_join_are_used(monkeypatch, capsys):
    fake = FakeCluster(monkeypatch, 3)
    found = workers(fake, None)
    fake.room = 1
    for actor in found.ready[1:]:
        found.lose(actor)
        found.lose(actor)  # another phase has the same news
    found.update()
    assert len(found) == 1 and "warning: workers were lost on a: 2; 1 go on" in capsys.readouterr().err
    fake.room = 4
    found.update()
    assert len(found) == 4


def test_no_worker_left_is_an_error(monkeypatch):
    fake = FakeCluster(monkeypatch, 1)
    found = workers(fake, None)
    fake.room = 0
    found.lose(found.ready[0])
    found.wait(timeout=0.0)  # the timeout of a phase ends before the patience, and its clients have failed
    with pytest.raises(EngineError, match=r"^no worker is left, and the cluster has no room for another within 0\.05 seconds: 0 CPU"):
        found.update()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"versions": {"torch": "1"}}, "must have the driver's torch, got 1 there and 2 here"),
        ({"device": "cpu AVX2"}, "must have the driver's device, got cpu AVX2 there and cpu here"),
        ({"modules": {"fedkd.x": "2"}}, r"must have the driver's code, got fedkd\.x \(2 there and 1 here\)"),
        ({"modules": {}}, r"must have the driver's code, got fedkd\.x \(missing there and 1 here\)"),
        ({"data": {"train": "2"}}, r"must have the driver's data, got train \(2 there and 1 here\)"),
        ({"error": "data.root must exist, got '/x'"}, "cannot build the run: data.root must exist, got '/x'"),
    ],
    ids=["torch", "device", "code", "module", "data", "path"],
)
def test_a_worker_with_another_environment_ends_a_run_at_its_beginning_and_gets_no_work_later(monkeypatch, capsys, change, text):
    fake = FakeCluster(monkeypatch, 1)
    fake.environment = {**SOUND, "node": "b", **change}
    with pytest.raises(EngineError, match=f"^the worker on node b {text}"):
        workers(fake, None)
    fake.environment = SOUND
    found = workers(fake, None)
    fake.room, fake.environment = 2, {**SOUND, "node": "b", **change}
    found.update()
    found.update()
    assert len(found) == 1 and capsys.readouterr().err.count("it gets no work") == 1 and list(found.environments) == ["a"]


@pytest.mark.parametrize(
    ("device", "workers", "num_gpus", "expected"),
    [("cpu", None, None, (2, 0.0)), ("cuda", None, None, (3, 1.0)), ("cuda", None, 0.5, (4, 0.5)), ("cuda", 4, 0.75, (4, 0.75))],
)
def test_gpus_of_this_machine(monkeypatch, device, workers, num_gpus, expected):
    """With a GPU as the device, there is one actor per GPU, or as many as fractions allow, at most one per core."""
    made = []
    monkeypatch.setattr(ray_engine, "cores", lambda: 2 if device == "cpu" else 4)
    monkeypatch.setattr(ray_engine, "start_ray", lambda *_: None)
    monkeypatch.setattr(ray_engine, "total_resources", lambda _: {"GPU": 3.0})
    monkeypatch.setattr(ray_engine, "build_simulation", lambda _: SimpleNamespace(config=SimpleNamespace(device=device)))
    monkeypatch.setattr(ray_engine, "Workers", lambda ray, config, number, gpus, limit, **_: made.append((number, gpus)))
    ray_engine.RayGrid(10, "", workers=workers, num_gpus=num_gpus, address=None, patience=0.0, ship_code=False)
    assert made == [expected]


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(ray_engine, "start_ray", lambda *_: None)
    monkeypatch.setattr(ray_engine, "total_resources", lambda _: {"GPU": 3.0})
    with pytest.raises(ConfigError, match=r"^num_gpus must be at most 0\.75, as 4 workers share 3 GPUs, got 1"):
        ray_engine.RayGrid(10, "", workers=4, num_gpus=1.0, address=None, patience=0.0, ship_code=False)
