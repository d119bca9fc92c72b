"""The learning rate of every strategy from one grid, on examples that nobody trains on."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from fedkd.partition.validation_split import split_validation
from fedkd.seed import Seed
from simulations.config import compose
from simulations.distillation.runner import compose_distillation
from simulations.distillation.runner import run_distillation as distil
from simulations.experiments import tuning
from simulations.federation.runner import run_federation
from tests.processes import metrics
from tests.small_runs import SMALL, small_run, small_simulation

GIVEN = [option for option in SMALL if not option.startswith("evaluation")] + ["rounds=3", "progress=false", "local_steps=10"]


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_best_value_on_held_out_examples_is_chosen_and_runs_take_it(tmp_path, capsys):
    output = f"output={tmp_path}"
    path = tuning.tune([*GIVEN, "strategy=fedavg,fedprox", output], grid=[0.001, 0.1, 1e30], table=tmp_path / "tuned.csv")
    assert path == tmp_path / "tuned.csv"
    rows = table(tmp_path / "tuned.csv")
    assert [(row["option"], float(row["value"])) for row in rows] == [(s, v) for s in ("fedavg", "fedprox") for v in (0.001, 0.1, 1e30)]
    for row in rows:
        if row["run"]:
            own = [float(value) for value in metrics(tmp_path / row["run"])["local_test_accuracy"]]
            assert float(row["validation_accuracy"]) == pytest.approx(sum(own) / 3)
        else:
            assert float(row["value"]) == 1e30 and float(row["validation_accuracy"]) == 0, "that diverges"
        finished = float(row["value"]) < 1e30
        assert (int(row["rounds_done"]), int(row["client_updates"])) == ((3, 9) if finished else (0, 0)) and row[
            "validation_fraction"
        ] == "0.2"
        assert (float(row["seconds"]) > 0) == finished
    said = capsys.readouterr().out
    assert said.count("cost: 3 runs, 6 rounds, 18 client updates, ") == 2 and "edge of the grid" not in said
    assert [row["value"] for row in rows if row["selected"] == "1"] == ["0.1", "0.1"]
    folder = run_federation(compose([*GIVEN, "strategy=fedprox", output, f"tuned_params={tmp_path / 'tuned.csv'}"]))
    noted = json.loads((folder / "tuned.json").read_text())
    tried = [{key: value for key, value in row.items() if key != "seconds"} for row in rows if row["option"] == "fedprox"]
    assert noted["selected"] == [row for row in tried if row["selected"] == "1"] and noted["tried"] == 3
    assert noted["sha256"] == hashlib.sha256(json.dumps(tried, sort_keys=True).encode()).hexdigest()
    plain = run_federation(compose([*GIVEN, "strategy=fedprox", output, "optimizer.lr=0.1"]))
    assert folder == plain, "a value that was chosen and one that was given are the same run"
    with pytest.raises(ValueError, match=r"^tuned_params must hold a choice for strategy moon .*tuned\.csv"):
        run_federation(compose([*GIVEN, "strategy=moon", output, f"tuned_params={tmp_path / 'tuned.csv'}"]))
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="^tuned_params must be a file that fedkd tune has written"):
        run_federation(compose([*GIVEN, output, f"tuned_params={tmp_path / 'odd.csv'}"]))


def test_a_number_of_steps_is_tuned_too(tmp_path):
    path = tuning.tune([*GIVEN, "strategy=fedrep", "rounds=1", f"output={tmp_path}"], key="strategy.head_steps", grid=[1.0, 2.0])
    folder = run_federation(compose([*GIVEN, "strategy=fedrep", "rounds=1", f"output={tmp_path}", f"tuned_params={path}"]))
    chosen = json.loads((folder / "tuned.json").read_text())["selected"][0]
    assert f"head_steps: {chosen['value'].partition('.')[0]}\n" in (folder / "config.yaml").read_text()


def test_nothing_finite_is_nothing_to_choose(tmp_path):
    with pytest.raises(ValueError, match=r"^optimizer\.lr must have a value with which training stays finite"):
        tuning.tune_strategy("optimizer.lr", [1e30], 0.2, [*GIVEN, "strategy=fedavg", f"output={tmp_path}"], tmp_path / "tuned.csv")


def test_tuning_sees_no_test_example():
    """The examples that are scored are training examples, of each client its own, and it does not train on them."""
    simulation, _ = small_simulation("validation_fraction=0.25", "evaluation.split=validation")
    plain, _ = small_simulation()
    assert simulation.client_data.local_test_pool is simulation.train
    for client in range(6):
        held_out, stays, before = simulation.partition.test[client], simulation.partition.train[client], plain.partition.train[client]
        assert len(held_out) == int(0.25 * len(before)) and not set(held_out) & set(stays)
        assert sorted([*held_out, *stays]) == before.tolist()
        assert simulation.client_data.local_test[client].y.equal(simulation.train.y[held_out])
    assert len(simulation.global_test) == sum(map(len, simulation.partition.test)) and simulation.client_data.validation is None
    assert simulation.hash != plain.hash


def test_what_is_held_out_for_early_stopping_is_the_server_s_and_the_test_set_stays():
    simulation, _ = small_simulation("validation_fraction=0.25")
    plain, _ = small_simulation()
    assert simulation.global_test.y.equal(plain.global_test.y)
    assert simulation.federation().server.validation is simulation.client_data.validation
    total = sum(len(index) for index in plain.partition.train)
    assert 0.2 * total < len(simulation.client_data.validation) <= 0.25 * total


def test_one_example_stays_with_every_client():
    stays, goes = split_validation([np.arange(1), np.arange(5, 7), np.arange(10, 20)], 0.99, Seed(0))
    assert [len(index) for index in stays] == [1, 1, 1] and [len(index) for index in goes] == [0, 1, 9]
    again, _ = split_validation([np.arange(1), np.arange(5, 7), np.arange(10, 20)], 0.99, Seed(0))
    other, _ = split_validation([np.arange(3), np.arange(5, 7), np.arange(10, 20)], 0.99, Seed(0))
    assert [a.tolist() for a in again] == [a.tolist() for a in stays] and other[2].tolist() == stays[2].tolist()


def test_a_public_set_and_a_validation_set_are_apart():
    simulation = small_run(
        "strategy=feddf", "public_data=held_out", "validation_fraction=0.2", "strategy.steps=2", "strategy.batch_size=8", "rounds=1"
    ).simulation
    train = {i for index in simulation.partition.train for i in index.tolist()}
    public, validation = set(simulation.client_data.public_data.rows.tolist()), set(simulation.client_data.validation.rows.tolist())
    assert not train & public and not train & validation and not public & validation


def test_a_method_s_weight_is_chosen_on_held_out_images_and_taken(tmp_path, capsys):
    small = ["teacher=resnet8", "teacher.widths=[4,5,6]", "student=resnet8", "student.widths=[4,5,6]", "epochs=2",
             "steps_per_epoch=5", "batch_size=16", "progress=false", "export=false", f"output={tmp_path}"]  # fmt: skip
    tuning.tune([*small, "distiller=kd,sp"], grid=[1, 0.1], table=tmp_path / "tuned.csv", distiller=True)
    assert capsys.readouterr().out.count("; this is the edge of the grid: a better value may lie beyond\n") == 2, (
        "of two values each is the last"
    )
    rows = table(tmp_path / "tuned.csv")
    assert [(row["option"], float(row["value"])) for row in rows] == [("kd", 0.9), ("kd", 0.09), ("sp", 3000), ("sp", 300)]
    for row in rows:
        assert float(row["validation_accuracy"]) == float(metrics(tmp_path / row["run"])["test_accuracy"].iloc[-1])
    chosen = {row["option"]: row for row in rows if row["selected"] == "1"}
    assert all(float(chosen[row["option"]]["validation_accuracy"]) >= float(row["validation_accuracy"]) for row in rows)
    taken = distil(compose_distillation([*small, "distiller=sp", f"tuned_params={tmp_path / 'tuned.csv'}"]))
    given = distil(compose_distillation([*small, "distiller=sp", f"distiller.weight={chosen['sp']['value']}"]))
    assert taken == given
    with pytest.raises(ValueError, match=r"^tuned_params must hold a choice for distiller at \(fedkd tune --distiller distiller=at\)"):
        distil(compose_distillation([*small, "distiller=at", f"tuned_params={tmp_path / 'tuned.csv'}"]))
    with pytest.raises(ValueError, match=r"^distiller must be a method with a weight that can be tuned, got 'none'$"):
        tuning.tune_distiller([1], 0.2, [*small, "distiller=none"], tmp_path / "tuned.csv")
    alone = [distil(compose_distillation([*small, "distiller=none", *given])) for given in ([], [f"tuned_params={tmp_path / 'tuned.csv'}"])]
    assert alone[0] == alone[1], "in a sweep, what has no weight is run as it is"
