"""Benchmarks: the references do the work that they stand for, and every benchmark runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fedkd.checkpoint import read_checkpoint
from fedkd.errors import ConfigError
from simulations.benchmarks import cifar100, client_memory, distillation, engine, gpu, measurement, report, round_phases, workloads
from simulations.benchmarks.reference_loop import RANDOM_TASK, random_examples
from simulations.benchmarks.reference_process import WORKLOADS, ReferenceProcess, ReferenceWorkloads
from simulations.distillation.runner import compose_distillation
from simulations.engine.local_engine import LocalGrid
from simulations.run_folder.folder import RunFolder
from tests.small_runs import ROOT, SMALL, small_simulation

FEDGEN = (*SMALL, "strategy=fedgen", "strategy.generator_steps=10")

SMALL_NETWORKS = ("student.widths=[4,5,6]", "teacher.widths=[4,5,6]", "batch_size=16")


def figures(text: str) -> dict[str, float]:
    """The printed figures by name."""
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {line[0]: float(line[1]) for line in lines if len(line) == 2 and line[1][0].isdigit()}


# ------------------------------------------------------------------------------------------- the reference loop
def test_the_reference_loop_learns():
    reference = ReferenceWorkloads([*FEDGEN, "local_steps=20", "optimizer.lr=0.05"])
    before, _ = reference.fedgen.evaluate()
    accuracies = [reference.fedgen.run_round(number) for number in range(1, 11)]
    assert before < 0.4 and all(accuracy > 0.6 for accuracy in accuracies[-1])


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_takes_time(name):
    line = {"local_pixels": "local_pixels 1 1"}.get(name, name)
    assert ReferenceWorkloads([*FEDGEN, "local_steps=1"]).seconds(line) > 0


def test_random_images_depend_on_the_seed_alone():
    simulation, _ = small_simulation("strategy=fedgen")
    one, same, other = random_examples(simulation.seed, 4), random_examples(simulation.seed, 4), random_examples(simulation.seed / 1, 4)
    assert one.x.shape == (4, *RANDOM_TASK.shape) and one.x.equal(same.x) and not one.x.equal(other.x)


def test_the_reference_process_times_workloads_and_ends_with_an_error_on_an_unknown_one():
    process = ReferenceProcess(list(FEDGEN))
    assert process.seconds("local 1") > 0 and process.seconds("generator 2 1") > 0
    with pytest.raises(RuntimeError, match="when 'unknown' was requested"):
        process.seconds("unknown")
    process.close()


# ------------------------------------------------------------------------------------------- Flower's runtime
FLOWER_RUN = """
import json, os, sys
from flwr.serverapp import ServerApp
from simulations.benchmarks.flower_clients import CONFIG, single_app
from simulations.benchmarks.flower_runtime import OneToOneGrid
from simulations.engine.flower_compat import run_flower_simulation
from simulations.setup.simulation import build_simulation

server_app, config = ServerApp(), sys.argv[1]
os.environ[CONFIG] = config

@server_app.main()
def main(grid, context):
    simulation = build_simulation(config)
    simulation.strategy.federation = simulation.federation()
    arrays = simulation.strategy.start(OneToOneGrid(grid, 6), num_rounds=3).arrays
    print(json.dumps({name: array.data.hex() for name, array in arrays.items()}), flush=True)

run_flower_simulation(server_app, single_app, 6, 2)
os._exit(0)
"""


@pytest.mark.slow
def test_one_client_per_node_of_flowers_runtime_gives_the_same_model_bit_for_bit(tmp_path):
    simulation, config = small_simulation(*FEDGEN)
    ours = simulation.strategy.start(LocalGrid(6, config), num_rounds=3).arrays
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", FLOWER_RUN, OmegaConf.to_yaml(simulation.config, resolve=True)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert theirs == {name: array.data.hex() for name, array in ours.items()}, done.stderr


# ------------------------------------------------------------------------------------------- the benchmarks
def test_an_unknown_figure_or_method_is_rejected():
    with pytest.raises(ConfigError, match=r"^figures must be among local_step, .*, got local_stp$"):
        engine.main(["local_stp"])
    with pytest.raises(ConfigError, match=r"^methods must be among at, .*pipeline, got knowledge$"):
        distillation.main(["knowledge"])


def test_a_ratio_is_the_median_over_pairs(capsys):
    times = iter([9.0, 2.0, 3.0, 4.0])  # the first is a warm-up
    assert measurement.ratio("figure", lambda: next(times), lambda: 1.0, pairs=3) == 3.0
    assert capsys.readouterr().out == "# figure: 3000 against 1000 ms; 3 pairs, ratios 2.00 to 4.00\n"


def test_clients_with_batches_of_different_sizes_are_rejected_as_one_program():
    words = ["num_clients=40", "clients_per_round=10", "partition=dirichlet", "partition.alpha=0.1", "batch_size=64"]
    with pytest.raises(ConfigError, match=r"^partition must give the first 10 clients batches of one size"):
        workloads.local_training(words, 10, compiled=False)


def test_the_gpu_benchmark_runs_on_a_cpu(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "NUM_CLIENTS", (2, 3))
    monkeypatch.setattr(gpu, "REPETITIONS", 1)
    monkeypatch.setattr(gpu, "CLIENTS_PER_VMAP", 2)
    gpu.local_training(["strategy=fedgen", "clients_per_round=2", "local_steps=2"], "cpu")
    assert set(figures(capsys.readouterr().out)) == {"gpu_2", "gpu_3"}


def test_phases_of_rounds_are_printed_for_both_engines(capsys):
    round_phases.main(["num_clients=4", "clients_per_round=2", "local_steps=1", "batch_size=16", "rounds=3", "repetitions=1"])
    printed = figures(capsys.readouterr().out)
    for strategy in ("fedavg", "fedgen"):
        for run in ("local", "ray"):
            phases = [printed[f"{strategy}_{run}_{phase}_seconds"] for phase in round_phases.PHASES]
            assert printed[f"{strategy}_{run}_round_seconds"] == pytest.approx(sum(phases), abs=2e-4) and all(value > 0 for value in phases)


@pytest.mark.slow
def test_the_report_benchmark_runs(capsys):
    report.main(["folders=2", "rounds=2"])
    printed = figures(capsys.readouterr().out)
    assert set(printed) == {"seconds", "seconds_tables", "times_reading"} and printed["seconds"] > 0


def test_copied_run_folders_differ_in_strategy_and_accuracy(tmp_path):
    report.make_folders(tmp_path / "runs", 2, 1)
    folders = sorted((tmp_path / "runs").iterdir())
    configs = [OmegaConf.load(folder / "config.yaml") for folder in folders]
    assert [config.choices.strategy for config in configs] == ["fedavg", "fedgen"] and {config.partition.alpha for config in configs} == {
        0.1
    }
    assert len({(folder / "metrics.csv").read_text() for folder in folders}) == 2


@pytest.mark.slow
# ------------------------------------------------------------------------------------------- distillation
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not state the peak memory of a program")
def test_peak_memory_is_that_of_the_process_and_not_of_its_parent():
    child = "from simulations.benchmarks.distillation import own_peak_memory; print(own_peak_memory())"
    parent = (
        "import subprocess, sys; held = bytearray(3 << 30); held[::4096] = b'1' * len(held[::4096]);"
        f"print(subprocess.run([sys.executable, '-c', {child!r}], check=True, capture_output=True, text=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", parent], check=True, capture_output=True, text=True, cwd=ROOT)
    assert 50 < float(done.stdout) < 2000, "MiB of the imports, less than the 3 GiB of the parent"


def test_the_steps_on_one_batch_and_on_all_images_run():
    for work in (distillation.repeated_batch([*SMALL_NETWORKS]), distillation.repeated_epoch("none", [*SMALL_NETWORKS])):
        work()


def test_words_of_one_method_change_that_method_alone():
    words = [*SMALL_NETWORKS, "dpk.width=16"]
    assert distillation.method_config("dpk", words).distiller.width == 16
    assert "width" not in distillation.method_config("kd", words).distiller


def test_cifar100_times_the_epochs_of_a_training_and_of_its_teacher():
    assert all("teacher" in values for values in cifar100.PUBLISHED.values())
    words = ["device=cpu", "precision=float32", *SMALL_NETWORKS, "optimizer.lr=1e-6", *workloads.random_pixels_overrides(64)]
    plan = [word for word in cifar100.training_overrides(("resnet8", "resnet8"), "hsakd", words) if not word.startswith("recipe=")]
    config = compose_distillation(plan)
    assert config.choices.distiller == "hsakd" and config.device == "cpu"
    assert cifar100.seconds_per_epoch(config) > 0


# ------------------------------------------------------------------------------------------- states of many clients
def test_the_memory_of_clients_is_measured_over_the_rounds_after_all_have_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(RunFolder, "row", RunFolder.row)  # the stopwatch replaces it
    small = ("data=digits", "num_clients=30", "clients_per_round=3", "rounds=3", "strategy=scaffold", "optimizer.momentum=0.0")
    words = [*client_memory.SETTING, *small, f"output={tmp_path}"]
    client_memory.prepare(words)
    (folder,) = (tmp_path / "digits").iterdir()
    assert len(read_checkpoint(folder).client_states) == 30
    capsys.readouterr()
    client_memory.measure("scaffold", words)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    name, *numbers = (cell.strip() for cell in row.strip("|").split("|"))
    assert name == "scaffold" and len(numbers) == len(client_memory.TITLES) - 1
    assert float(numbers[3]) == pytest.approx((folder / "checkpoint.safetensors").stat().st_size / 1e6, rel=0.2), "one checkpoint a round"
