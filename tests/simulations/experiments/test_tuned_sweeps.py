"""Experiments with tuned strategies: the search comes first, and survives a kill."""

import contextlib
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from simulations.experiments import reproduce, tuning
from simulations.experiments.plan import plan, read_experiment, unfinished
from simulations.run_folder.reader import read_run
from tests.processes import differing
from tests.simulations.experiments.sweeps import TINY, csv_rows
from tests.simulations.experiments.test_reproduce import killed_and_started_again, nameless

ASKED = ("experiment=fedgen_ablation", "strategies=FedAvg,FedAvg tuned", "seeds=0", "jobs=2", "quiet=true", *TINY)


# --------------------------------------------------------------------------------------------------------- the search
@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a sweep with a tuned strategy that nothing has interrupted, and its standard output."""
    folder = tmp_path_factory.mktemp("whole")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert reproduce.reproduce(reproduce.parse_arguments([*ASKED, f"output={folder}"])) == 0
    return folder, out.getvalue()


def test_tuned_columns_are_tuned_first_and_their_runs_say_with_what(whole):
    tmp_path, out = whole
    asked = [*ASKED, f"output={tmp_path}"]
    file = tmp_path / "fedgen_ablation_tune" / "tuned.csv"
    rows = csv_rows(file)
    assert [(row["option"], row["value"], row["rounds"]) for row in rows] == [
        ("fedavg", value, "6") for value in ("0.003", "0.01", "0.03", "0.1", "0.3")
    ]
    best = max(rows, key=lambda row: float(row["validation_accuracy"]))
    assert [row for row in rows if row["selected"] == "1"] == [best]
    for row in rows:
        rounds = csv_rows(tmp_path / row["run"] / "metrics.csv")
        seconds = sum(float(each[f"{phase}_seconds"] or 0) for each in rounds for phase in ("local_training", "server", "evaluation"))
        assert (
            int(row["rounds_done"]) == 6 and int(row["client_updates"]) == 18 and float(row["seconds"]) == pytest.approx(seconds, abs=0.01)
        )
    assert "cost: 5 runs, 30 rounds, 90 client updates, " in out
    taken = list(tmp_path.glob("fedgen_ablation/*/tuned.json"))
    (folder,) = [path.parent for path in taken]
    noted = json.loads(taken[0].read_text())
    tried = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    assert noted["selected"] == [row for row in tried if row["selected"] == "1"] and noted["tried"] == 5
    assert noted["sha256"] == hashlib.sha256(json.dumps(tried, sort_keys=True).encode()).hexdigest()
    config = OmegaConf.load(folder / "config.yaml")
    assert config.optimizer.lr == float(best["value"]) and config.tuned_params == str(file) == noted["file"]
    runs, notes = plan(
        "fedgen_ablation",
        replace(
            read_experiment("fedgen_ablation"),
            strategies={"FedAvg tuned": ["strategy=fedavg", "tuned_params=${output}/${name}_tune/tuned.csv"]},
        ),
        [*TINY, f"output={tmp_path}"],
        [0],
    )
    assert not notes and not unfinished(runs)
    assert reproduce.reproduce(reproduce.parse_arguments(asked)) == 0, "nothing is searched twice"
    assert csv_rows(file) == rows
    with pytest.raises(ValueError, match=r"^tuned_params must hold for fedavg the search of the experiment .*, 7 rounds, .*tuned\.csv"):
        reproduce.reproduce(reproduce.parse_arguments([*asked, "rounds=7"]))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [("group",), ("group", "command") * 3], ids=len)
def test_a_tuned_sweep_killed_at_random_moments_makes_the_same_choice_and_the_same_runs(whole, tmp_path, kills):
    """Its trials are resumed too; what was tried, chosen and noted is that of a sweep never killed, its seconds aside."""
    whole, again = whole[0], tmp_path
    moments = killed_and_started_again([*ASKED, f"output={again}"], again, 40, kills)
    choices = [pd.read_csv(where / "fedgen_ablation_tune" / "tuned.csv").drop(columns="seconds") for where in (whole, again)]
    pd.testing.assert_frame_equal(*choices)
    for name in ("fedgen_ablation", "fedgen_ablation_tune"):
        found = [sorted(path.parent.relative_to(where) for path in where.glob(f"{name}/*/config.yaml")) for where in (whole, again)]
        assert found[0] == found[1] and len(found[0]) == {"fedgen_ablation": 2, "fedgen_ablation_tune": 5}[name]
        for folder in found[0]:
            odd = list(differing(again / folder, whole / folder))
            assert set(odd) <= {"config.yaml", "tuned.json"}, (folder, moments)
            assert all(nameless(again / folder / one, again) == nameless(whole / folder / one, whole) for one in odd), (folder, moments)


@pytest.mark.parametrize("reason", ["3 of 3 clients failed", "diverged: the loss is no longer finite"])
def test_a_trial_is_a_result_where_its_folder_records_divergence_and_a_failure_otherwise(tmp_path, reason):
    """Whatever the words of the reason are."""
    experiment = read_experiment("fedgen_ablation")
    tuned = {"FedAvg tuned": experiment.strategies["FedAvg tuned"]}
    experiment = replace(experiment, tuning=replace(experiment.tuning, grid=[0.01, 1e30]), strategies=tuned)
    recorded = True

    def run(planned):
        sound, bad = planned
        for trial, rows in ((sound, "1,0.5\n"), (bad, "")):
            (folder := tmp_path / "fedgen_ablation_tune" / trial.key).mkdir(parents=True, exist_ok=True)
            OmegaConf.save(trial.config, folder / "config.yaml", resolve=True)
            columns = "num_clients_aggregated,local_test_accuracy,local_training_seconds,server_seconds,evaluation_seconds\n"
            (folder / "metrics.csv").write_text(columns + (f"{rows.strip()},0,0,0\n" if rows else ""))
        (folder / "diverged.json").unlink(missing_ok=True)
        if recorded:
            (folder / "diverged.json").write_text('{"message": "client 0 diverged"}')
        return {bad.label: reason}

    def search():
        return tuning.tune_experiment("fedgen_ablation", experiment, [*TINY, f"output={tmp_path}"], run)

    table = tmp_path / "fedgen_ablation_tune" / "tuned.csv"
    recorded = False
    assert list(search().values()) == [reason] and not table.exists()
    recorded = True
    assert search() == {} and [row["validation_accuracy"] for row in csv_rows(table)] == ["0.5", "0.0"]


def test_a_choice_that_is_the_configuration_s_own_value_is_noted_in_the_run_that_is_there(tmp_path):
    """FedAvg's column and its tuned one are then one run, which says so; the grid's only value is the shipped one."""
    experiment = read_experiment("fedgen_ablation")
    columns = {name: experiment.strategies[name] for name in ("FedAvg", "FedAvg tuned")}
    experiment = replace(experiment, tuning=replace(experiment.tuning, grid=[0.01]), strategies=columns)
    words = ["experiment=fedgen_ablation", "seeds=0", "quiet=true", *TINY, f"output={tmp_path}"]
    asked = replace(reproduce.parse_arguments(words), experiment=experiment)
    assert reproduce.reproduce(asked) == 0
    (folder,) = [path.parent for path in tmp_path.glob("fedgen_ablation/*/config.yaml")]
    assert OmegaConf.load(folder / "config.yaml").tuned_params is None and json.loads((folder / "tuned.json").read_text())["tried"] == 1
    assert read_run(folder).kinds == ("tuned", "untuned")
    plain, tuned = csv_rows(tmp_path / "fedgen_ablation/reproduce/fedgen_ablation/table.csv")
    assert plain["local_test_accuracy_last10_mean"] == tuned["local_test_accuracy_last10_mean"] != ""
