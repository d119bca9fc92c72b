"""``clients_per_vmap=auto``: chosen by timing, stored in the run folder, and kept in resumed runs."""

import json

import pytest

from simulations.engine import vmap_tuning
from simulations.engine.vmap_tuning import choose_clients_per_vmap
from tests.processes import TINY, Command, differing, metrics, quick, rows, until
from tests.small_runs import small_simulation

AUTO = ("engine=local", *TINY, "clients_per_vmap=auto", "rounds=4", "num_clients=12", "clients_per_round=10")


@pytest.fixture
def timings(monkeypatch):
    """Replace the timings by given milliseconds per client and step."""

    def set_timings(milliseconds: dict[int, float]) -> None:
        steps = vmap_tuning.NUM_STEPS / 1e3
        monkeypatch.setattr(
            vmap_tuning, "time_steps", lambda simulation, clients, broadcast: milliseconds[len(clients)] * len(clients) * steps
        )

    return set_timings


def test_real_timings():
    simulation, _ = small_simulation("strategy=fedgen", "num_clients=12", "clients_per_round=10")
    number, milliseconds = choose_clients_per_vmap(simulation, 1)
    assert set(milliseconds) == {"1", "5", "10"} and all(value > 0 for value in milliseconds.values())
    fastest = min(milliseconds.values())
    assert milliseconds[str(number)] <= fastest * vmap_tuning.MIN_SPEEDUP**2


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        ({1: 3.0, 5: 1.0, 10: 0.5}, 10),
        ({1: 3.0, 5: 1.0, 10: 0.99}, 5),
        ({1: 1.0, 5: 2.0, 10: 2.0}, 1),
        ({1: 1.0, 5: 0.99, 10: 0.98}, 1),
        ({1: 1.0, 5: 2.0, 10: 0.5}, 10),
    ],
)
def test_larger_number_must_be_faster(timings, milliseconds, expected):
    timings(milliseconds)
    simulation, _ = small_simulation("strategy=fedavg", "num_clients=12", "clients_per_round=10")
    assert choose_clients_per_vmap(simulation, 1)[0] == expected


def test_every_worker_has_work(timings):
    timings({1: 9.0, 5: 5.0, 10: 1.0})
    simulation, _ = small_simulation("strategy=fedavg", "num_clients=12", "clients_per_round=10")
    assert choose_clients_per_vmap(simulation, 2)[0] == 5 and choose_clients_per_vmap(simulation, 4) == (1, {}), (
        "three clients per worker leave one choice"
    )


def test_networks_with_dropout_train_one_client_at_a_time(monkeypatch):
    simulation, _ = small_simulation("strategy=fedavg", "num_clients=12", "clients_per_round=10")
    monkeypatch.setattr(vmap_tuning, "trains_alone", lambda model: True)
    assert choose_clients_per_vmap(simulation, 1) == (1, {})


def test_choice_is_stored_and_printed(tmp_path):
    ended = quick(tmp_path, *AUTO, "output=runs")
    assert ended.code == 0, ended.err
    choice = json.loads((ended.folder / "clients_per_vmap.json").read_text())
    assert ended.err.splitlines()[0].startswith(f"clients per vmap: {choice['clients_per_vmap']} (ms per client step: 1: ")
    repeat = f"another number changes rounding; clients_per_vmap={choice['clients_per_vmap']} repeats this run to the last digit"
    assert ended.err.splitlines()[0].endswith(repeat)
    fixed = quick(tmp_path, *AUTO, "output=runs", f"clients_per_vmap={choice['clients_per_vmap']}")
    assert fixed.folder != ended.folder, "the hash differs, as auto may choose another number next time"
    assert metrics(fixed.folder).equals(metrics(ended.folder))
    assert set(differing(fixed.folder, ended.folder)) == {
        "clients_per_vmap.json",
        "config.yaml",
        "checkpoint.json",
        "checkpoint.safetensors",
        "previous_checkpoint.safetensors",
    }


def test_resumed_run_keeps_its_choice(tmp_path):
    """The stored choice is replaced by a number that is no candidate, and the resumed run keeps it."""
    options = (*AUTO, "rounds=300", "output=runs", "evaluation.every=1000")
    command = Command(options, tmp_path, forked=True)
    until(lambda: rows(tmp_path / "runs") >= 2)
    command.kill()
    command.end()
    (note,) = (tmp_path / "runs").rglob("clients_per_vmap.json")
    note.write_text(json.dumps({"clients_per_vmap": 3}))
    command = Command(options, tmp_path, forked=True)
    before = rows(tmp_path / "runs")
    until(lambda: rows(tmp_path / "runs") >= before + 2)
    command.kill()
    ended = command.end()
    assert "clients per vmap: " not in ended.err and json.loads(note.read_text()) == {"clients_per_vmap": 3}
