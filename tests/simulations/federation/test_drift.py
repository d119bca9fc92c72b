"""Runs with drift: phases of data, resumed and on every engine to the same bits, and what is refused."""

import csv
from pathlib import Path

import numpy as np
import pytest

from fedkd.config.build import config_hash
from fedkd.data.digits import Digits
from fedkd.errors import ConfigError
from simulations.config import compose
from simulations.engine.flower_engine import FlowerGrid
from simulations.federation.runner import prepare_run, run_federation
from simulations.flower_app import client_app
from simulations.run_folder.reader import read_run
from simulations.setup.simulation import build_simulation
from tests.processes import TINY, differing, metrics
from tests.simulations.engine.fake_nodes import FakeNodes
from tests.small_runs import InterruptedGrid, small_simulation

TASKS = ("engine=local", *TINY, "rounds=9", "drift=class_incremental", "drift.num_tasks=3")
SUDDEN = ("engine=local", *TINY, "strategy=fedgen", "rounds=4", "drift=sudden", "shift=rotation", "evaluation.local_test=own_classes")


def one_class_file(folder: Path) -> Path:
    """A file with a partition among four clients, of which the last has class 0 alone."""
    path, y = folder / "clients.npz", Digits()()[1].y.numpy()
    shards = [np.flatnonzero((y > 0) & (np.arange(len(y)) % 3 == k)) for k in range(3)] + [np.flatnonzero(y == 0)]
    tests = [np.arange(90 * k, 90 * k + 90) for k in range(3)] + [np.flatnonzero(Digits()()[2].y.numpy() == 0)[:9]]
    np.savez(path, **{f"{part}_{k:02d}": own for part, by in (("train", shards), ("test", tests)) for k, own in enumerate(by)})
    return path


@pytest.fixture(scope="module")
def incremental(tmp_path_factory):
    """The folder of a run whose classes arrive as three tasks."""
    return run_federation(compose([*TASKS, f"output={tmp_path_factory.mktemp('tasks')}"]))


def test_each_task_has_its_classes_and_all_examples_arrive_once(incremental):
    with np.load(incremental / "phases.npz") as phases:
        counts, task, first = phases["counts"], phases["task"], phases["first_round"]
    assert first.tolist() == [1, 4, 7] and np.bincount(task).tolist() == [4, 3, 3]
    for number, of_task in enumerate(counts):
        assert set(np.flatnonzero(of_task.sum(0))) == set(np.flatnonzero(task == number))
    simulation = build_simulation((incremental / "config.yaml").read_text())
    assert np.array_equal(counts.sum((0, 1)), np.bincount(simulation.train.y))
    held = np.concatenate([index for number in range(3) for index in simulation.client_data.views.partition(number).train])
    assert len(np.unique(held)) == len(held) == len(simulation.train), "clients keep nothing of earlier tasks"
    for number, server_round in enumerate(first):
        of_phase = simulation.at(int(server_round))
        seen = np.flatnonzero(task <= number)
        assert of_phase.task.present.tolist() == seen.tolist() and of_phase.own_federation.server.task == of_phase.task
        tested = [of_phase.client(client, int(server_round), testing=True).data.y.tolist() for client in range(6)]
        assert set(sum(tested, [])) == set(seen), "local test sets have the classes of earlier tasks"


def test_a_client_without_examples_in_a_phase_does_not_take_part(tmp_path):
    words = ("engine=local", "rounds=4", "num_clients=4", "clients_per_round=3", "partition=from_file", "strategy=fedavg", "local_steps=2")
    words += (f"partition.path={one_class_file(tmp_path)}", "drift=class_incremental", "drift.num_tasks=2", "drift.order_seed=3")
    config = compose([*words, "clients_per_vmap=1", "progress=false", f"output={tmp_path / 'runs'}"])
    with pytest.raises(KeyboardInterrupt):
        run_federation(config, lambda *given: InterruptedGrid(*given, interrupted_round=4))
    folder = run_federation(config)
    read_run(folder)
    with open(folder / "clients.csv", newline="") as file:
        trained = [int(row["round"]) for row in csv.DictReader(file) if row["client_id"] == "3" and int(row["num_train_examples"])]
    first = next(phase.first_round for phase in build_simulation((folder / "config.yaml").read_text()).phases if 0 in phase.task)
    assert first == 3 and trained == [3, 4], "class 0 arrives with the second task"


def test_accuracy_by_task_is_that_of_the_classes(incremental):
    table = metrics(incremental).replace("", "nan").astype(float).set_index("round")
    with open(incremental / "tasks.csv", newline="") as file:
        found = [{key: int(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert [(row["round"], row["task"]) for row in found] == [(r, t) for r in range(1, 10) for t in range((r - 1) // 3 + 1)]
    last = [row for row in found if row["round"] == 9]
    total, correct = (sum(row[name] for row in last) for name in ("num_test_examples", "num_correct"))
    assert correct / total == pytest.approx(table["global_test_accuracy"][9]) == table["seen_classes_accuracy"][9]
    assert table["seen_classes_accuracy"][3] >= table["global_test_accuracy"][3], "later classes do not count"
    border, inside = [3, 6], [1, 2, 4, 5, 7, 8]
    assert (table["prequential_accuracy"][inside] == table["local_test_accuracy"][inside]).all()
    assert (table["prequential_accuracy"][border] != table["local_test_accuracy"][border]).any()
    assert np.isnan(table["prequential_accuracy"][9])


@pytest.mark.parametrize("more", [(), ("strategy=fedensemble",)], ids=["fedgen", "an ensemble"])
def test_an_interrupted_run_and_flower_s_nodes_have_the_same_bits(tmp_path, more):
    words = [word for word in (*SUDDEN, *more) if not more or not word.startswith("strategy.")]
    whole = run_federation(compose([*words, f"output={tmp_path / 'whole'}"]))
    config = compose([*words, f"output={tmp_path / 'cut'}"])
    with pytest.raises(KeyboardInterrupt):
        run_federation(config, InterruptedGrid)
    build_simulation.cache_clear()
    nodes = FakeNodes(client_app, {7: {}, 8: {}})
    resumed = run_federation(compose([*words, f"output={tmp_path / 'cut'}"]), lambda number, text: FlowerGrid(number, text, nodes))
    assert list(differing(whole, resumed)) == ["config.yaml"]


def test_after_a_sudden_drift_the_partition_and_the_levels_are_others():
    simulation, _ = small_simulation("rounds=4", "drift=sudden", "drift.shift=redraw", "shift=rotation", "validation_fraction=0.1")
    plain, _ = small_simulation("rounds=4", "shift=rotation", "validation_fraction=0.1")
    assert all(map(np.array_equal, simulation.partition.train, plain.partition.train)) and simulation.at(2) is simulation
    later = simulation.at(3)
    assert later is simulation.at(4) and later.at(1).partition.train[0].tolist() == simulation.partition.train[0].tolist()
    assert not any(map(np.array_equal, later.partition.train, simulation.partition.train))
    before, after = (np.sort(np.concatenate(one.partition.train)) for one in (simulation, later))
    assert np.array_equal(before, after), "held-out examples stay held out"
    assert sum(map(len, later.partition.train)) == later.num_total_examples == sum(later.devices.num_examples)


def test_a_configuration_without_the_key_has_the_same_hash():
    simulation, _ = small_simulation()
    older = simulation.config.copy()
    del older.drift
    assert config_hash(older, simulation.digests) == simulation.hash


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["drift=sudden", "drift.round=4"], ["drift.round must be in 2..rounds (3)", "got 4"]),
        (["drift=sudden", "drift.round=1"], ["drift.round must be in 2..rounds (3)", "got 1"]),
        (["drift=sudden", "rounds=1"], ["drift.round must be in 2..rounds (1)"]),
        (["drift=sudden", "drift.partition=constant"], ["drift.partition must be redraw", "got 'constant'"]),
        (["drift=class_incremental", "drift.num_tasks=11", "rounds=20"], ["drift.num_tasks", "classes with training examples (10)"]),
        (["drift=class_incremental"], ["drift.num_tasks must be at most the number of rounds (3)", "got 5"]),
        (
            ["drift=class_incremental", "drift.num_tasks=3", "partition=classes_per_client", "partition.per_client=6"],
            ["partition.per_client must be at most", "view 0"],
        ),
        (
            ["drift=sudden", "~strategy", "+strategy._target_=flwr.serverapp.strategy.FedAvg"],
            ["drift must be none with FedAvg", "got 'sudden'"],
        ),
        (["drift=sudden", "partition=from_file"], ["drift.partition must be constant with partition from_file, which draws nothing"]),
        (
            ["drift=class_incremental", "drift.num_tasks=3", "partition=from_file", "clients_per_round=4"],
            ["clients_per_round must be at most", "(3 of 4), got 4 (drift: from round "],
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(words, parts, tmp_path):
    path = one_class_file(tmp_path)
    small = ["rounds=3", "num_clients=4", "clients_per_round=2", "partition=iid", "strategy=fedavg", f"output={tmp_path / 'runs'}"]
    chosen = {word.partition("=")[0].strip("~") for word in words}
    base = [word for word in small if word.partition("=")[0] not in chosen]
    words = [*words, *([f"partition.path={path}"] if "partition=from_file" in words else [])]
    with pytest.raises(ConfigError) as error:
        prepare_run(compose([*base, *words]))
    assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value), error.value
    assert list(tmp_path.iterdir()) == [path]


def test_renamed_classes_and_a_shift_that_begins():
    words = ("rounds=4", "drift.partition=constant", "shift=rotation", "drift.shift=begin", "drift.swapped_client_fraction=0.5")
    simulation, _ = small_simulation("drift=sudden", *words)
    later, names = simulation.at(3), {}
    assert all(map(np.array_equal, simulation.partition.train, later.partition.train))
    for part in ("train", "local_test"):
        pairs = list(zip(getattr(simulation.client_data, part), getattr(later.client_data, part)))
        renamed = [not np.array_equal(before.y, after.y) for before, after in pairs]
        assert sum(renamed) == 3 and all(
            (before.images(before.y[:1] * 0) != after.images(after.y[:1] * 0)).any() for before, after in pairs
        )
        for before, after in (pair for pair, changed in zip(pairs, renamed) if changed):
            for old, new in zip(before.y.tolist(), after.y.tolist()):
                assert old != names.setdefault(old, new) == new, "one permutation for all, without fixed points"
    plain, _ = small_simulation("rounds=4")
    first = zip(simulation.client_data.train, plain.client_data.train)
    assert all(np.array_equal(one.images(one.y[:1] * 0), other.images(other.y[:1] * 0)) for one, other in first), "no shift before"
    assert later.global_test is simulation.global_test and later.task == simulation.task
