"""``clients_per_vmap=auto``: chosen by timing, noted in the run folder, kept for as long as the run lasts."""

import json

import pytest

from simulations.engine import vmap_tuning
from simulations.engine.vmap_tuning import choose_clients_per_vmap
from tests.conftest import settle
from tests.processes import TINY, Command, differing, metrics, quick, rows, until

AUTO = ("engine=local", *TINY, "clients_per_vmap=auto", "rounds=4", "num_clients=12", "clients_per_round=10")


@pytest.fixture
def fast(monkeypatch):
    """Which numbers are fast, decided beforehand: timings are what they are elsewhere."""

    def say(milliseconds: dict[int, float]) -> None:
        steps = vmap_tuning.STEPS / 1e3
        monkeypatch.setattr(vmap_tuning, "seconds", lambda home, clients, shared: milliseconds[len(clients)] * len(clients) * steps)

    return say


def test_real_timings_are_of_this_run_s_own_steps():
    home, _ = settle("strategy=fedgen", "num_clients=12", "clients_per_round=10")
    number, milliseconds = choose_clients_per_vmap(home, 1)
    assert set(milliseconds) == {"1", "5", "10"} and all(value > 0 for value in milliseconds.values())
    fastest = min(milliseconds.values())
    assert milliseconds[str(number)] <= fastest * vmap_tuning.GAIN**2


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
def test_a_larger_number_must_be_faster_to_be_kept(fast, milliseconds, expected):
    fast(milliseconds)
    home, _ = settle("strategy=fedavg", "num_clients=12", "clients_per_round=10")
    assert choose_clients_per_vmap(home, 1)[0] == expected


def test_every_worker_is_left_with_work(fast):
    fast({1: 9.0, 5: 5.0, 10: 1.0})
    home, _ = settle("strategy=fedavg", "num_clients=12", "clients_per_round=10")
    assert choose_clients_per_vmap(home, 2)[0] == 5 and choose_clients_per_vmap(home, 4) == (1, {}), (
        "three clients for each of four workers: nothing to choose from"
    )


def test_networks_that_draw_in_their_forward_pass_train_one_by_one(monkeypatch):
    home, _ = settle("strategy=fedavg", "num_clients=12", "clients_per_round=10")
    monkeypatch.setattr(vmap_tuning, "has_randomness", lambda model: True)
    assert choose_clients_per_vmap(home, 1) == (1, {})


def test_the_choice_is_noted_and_printed_and_is_the_result_of_that_number(tmp_path):
    ended = quick(tmp_path, *AUTO, "output=runs")
    assert ended.code == 0, ended.err
    choice = json.loads((ended.folder / "cohort.json").read_text())
    assert ended.out.splitlines()[0].startswith(f"cohort: {choice['cohort']} (milliseconds per client and step: 1 at once ")
    fixed = quick(tmp_path, *AUTO, "output=runs", f"clients_per_vmap={choice['cohort']}")
    assert fixed.folder != ended.folder, "another configuration, as the next auto may choose otherwise"
    assert metrics(fixed.folder).equals(metrics(ended.folder))
    assert set(differing(fixed.folder, ended.folder)) == {"cohort.json", "config.yaml", "checkpoint.json", "checkpoint.safetensors"}


def test_a_resumed_run_keeps_its_choice(tmp_path):
    """Whatever the timings would say the second time: here the note is changed to a number that is not among the candidates."""
    options = (*AUTO, "rounds=300", "output=runs", "evaluation.every=1000")
    command = Command(options, tmp_path)
    until(lambda: rows(tmp_path / "runs") >= 2)
    command.kill()
    command.end()
    (note,) = (tmp_path / "runs").rglob("cohort.json")
    note.write_text(json.dumps({"cohort": 3}))
    command = Command(options, tmp_path)
    before = rows(tmp_path / "runs")
    until(lambda: rows(tmp_path / "runs") >= before + 2)
    command.kill()
    ended = command.end()
    assert "cohort: " not in ended.out and json.loads(note.read_text()) == {"cohort": 3}
