"""Flower: its runtimes give the bits of our engines, our engines run its strategies, and a node can be one client."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedkd.checkpoint import read_checkpoint
from fedkd.federation import serialization
from simulations.config import compose
from simulations.engine.local_engine import LocalGrid
from simulations.federation.runner import run_federation
from simulations.flower_app import client_app
from tests.processes import ROOT, TINY, metrics, processes, quick, until
from tests.small_runs import SMALL, same_tensors, small_simulation

ALL_CLIENTS = ("num_clients=6", "clients_per_round=6", "rounds=5", "local_steps=3", "partition.alpha=1.0", "progress=false", "output=runs")
FEDADAM = ("~strategy", "+strategy._target_=flwr.serverapp.strategy.FedAdam", "+strategy.fraction_evaluate=0.0")
FEDGEN = (*TINY, "rounds=3", "output=runs")


def flower_strategy(name: str, *more: str) -> list[str]:
    """Overrides that run a strategy of Flower."""
    return [*ALL_CLIENTS, "~strategy", f"+strategy._target_=flwr.serverapp.strategy.{name}", "+strategy.fraction_evaluate=0.0", *more]


def finish(where: Path, *options: str) -> Path:
    """Run a command in the folder ``where``, and return the run folder."""
    where.mkdir(exist_ok=True)
    ended = quick(where, *options)
    assert ended.code == 0, ended.err
    return ended.folder


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> dict[str, Path]:
    """Folders of runs in one process, without Flower's runtime."""
    where = tmp_path_factory.mktemp("local")
    return {name: finish(where, "engine=local", *options) for name, options in (("fedgen", FEDGEN), ("adam", (*ALL_CLIENTS, *FEDADAM)))}


SIMULATION = """
import json, sys
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from simulations.config import compose
from simulations.engine.flower_engine import FlowerGrid
from simulations.federation.runner import run_federation
from simulations.flower_app import client_app

server_app = ServerApp()

@server_app.main()
def main(grid, context):
    for overrides in json.loads(sys.argv[1]):
        run_federation(compose(overrides), lambda num_clients, text: FlowerGrid(num_clients, text, grid))

run_simulation(server_app, client_app, 2, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
"""
"""A program that runs several configurations on two nodes of Flower's simulation runtime."""


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> dict[str, Path]:
    """Folders of the same runs on two nodes of Flower's simulation runtime."""
    where = tmp_path_factory.mktemp("simulated")
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path, "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", SIMULATION, json.dumps([FEDGEN, [*ALL_CLIENTS, *FEDADAM]])]
    ended = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, timeout=240, check=False)
    folders = [Path(line.removeprefix("run: ")) for line in ended.stdout.splitlines() if line.startswith("run: ")]
    assert len(folders) == 2, ended.stderr
    return dict(zip(("fedgen", "adam"), folders, strict=True))


@pytest.mark.parametrize("name", ["fedgen", "adam"])
def test_flowers_simulation_runtime_gives_the_same_bits(local, simulated, name):
    ours, theirs = read_checkpoint(local[name]), read_checkpoint(simulated[name])
    assert ours.round == {"fedgen": 3, "adam": 5}[name]
    assert same_tensors(ours.state, theirs.state) and same_tensors(ours.client_states, theirs.client_states)
    assert metrics(local[name]).equals(metrics(simulated[name])) and local[name].name == simulated[name].name


def test_a_flower_strategy_gives_the_same_bits_in_ray(local, tmp_path):
    options = [*ALL_CLIENTS, *FEDADAM, f"output={tmp_path}", "engine=ray", "engine.workers=2"]
    folder = run_federation(compose(options))
    assert same_tensors(read_checkpoint(folder).state, read_checkpoint(local["adam"]).state)
    assert metrics(folder).equals(metrics(local["adam"]))


@pytest.mark.slow
def test_flwr_run_gives_the_same_accuracies(local, tmp_path):
    """``flwr run`` with its own FLWR_HOME, ports and daemons, which end with the test."""
    ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    http, control = (str(port.getsockname()[1]) for port in ports)
    for port in ports:
        port.close()
    env = {
        **os.environ, "FLWR_HOME": str(tmp_path / "flower_home"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": http, "FLWR_LOCAL_CONTROL_API_PORT": control,
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    overrides = " ".join([*TINY, "rounds=3", f"output={tmp_path / 'runs'}"])
    command = ["flwr", "run", str(ROOT), "--run-config", f'overrides="{overrides}"', "--format", "json"]
    try:
        given = [*command, "--federation-config", "num-supernodes=2 client-resources-num-cpus=1"]
        ended = subprocess.run(given, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        checkpoints = lambda: tmp_path.glob("runs/*/*/checkpoint.json")
        until(lambda: any(json.loads(path.read_text())["finished"] for path in checkpoints()), 240, "the end of the run")
    finally:
        for process in processes(f"FLWR_HOME={tmp_path / 'flower_home'}"):
            os.kill(process, signal.SIGKILL)
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    assert metrics(folder).equals(metrics(local["fedgen"]))
    assert same_tensors(read_checkpoint(folder).state, read_checkpoint(local["fedgen"]).state)


def close_models(left: Path, right: Path) -> bool:
    """Whether the models of two runs are equal up to rounding of sums."""
    models = [read_checkpoint(folder).state["model"] for folder in (left, right)]
    return models[0].keys() == models[1].keys() and all(
        torch.allclose(value, models[1][key], rtol=1e-4, atol=1e-5) for key, value in models[0].items()
    )


@pytest.fixture(scope="module")
def flower_runs(tmp_path_factory) -> dict[str, Path]:
    """Folders of runs of Flower's FedAvg, and of its FedProx with two values of its proximal term."""
    where = tmp_path_factory.mktemp("flower_runs")
    proximal = {mu: flower_strategy("FedProx", f"+strategy.proximal_mu={mu}") for mu in ("0.0", "5.0")}
    return {name: finish(where, "engine=local", *words) for name, words in {"FedAvg": flower_strategy("FedAvg"), **proximal}.items()}


def test_clients_use_the_proximal_term_of_flowers_fedprox(flower_runs, tmp_path):
    protocol = ("strategy.batchnorm=averaged", "strategy.lr_schedule=constant", "strategy.lr_decay=1.0")
    assert same_tensors(read_checkpoint(flower_runs["0.0"]).state, read_checkpoint(flower_runs["FedAvg"]).state)
    assert not close_models(flower_runs["5.0"], flower_runs["0.0"])
    fedprox = finish(tmp_path, "engine=local", *ALL_CLIENTS, "strategy=fedprox", "strategy.mu=5.0", *protocol)
    assert close_models(flower_runs["5.0"], fedprox)
    assert close_models(flower_runs["FedAvg"], finish(tmp_path, "engine=local", *ALL_CLIENTS, "strategy=fedavg", *protocol))


def test_metrics_of_a_flower_strategy(flower_runs):
    table = metrics(flower_runs["FedAvg"])
    model = sum(value.numel() * value.element_size() for value in read_checkpoint(flower_runs["FedAvg"]).state["model"].values())
    assert list(table["round"]) == ["1", "2", "3", "4", "5"] and set(table["num_failures"]) == {"0"}
    assert set(table["downlink_bytes"]) == {str(6 * model)} and int(table["uplink_bytes"][0]) == 6 * model
    assert table["global_test_loss"].astype(float).nunique() == 5


def test_a_flower_strategy_in_a_yaml_file_of_the_user(local, tmp_path):
    (tmp_path / "mine" / "strategy").mkdir(parents=True)
    (tmp_path / "mine" / "strategy" / "adam.yaml").write_text("_target_: flwr.serverapp.strategy.FedAdam\nfraction_evaluate: 0.0\n")
    folder = finish(tmp_path, "--config-dir=mine", "engine=local", *ALL_CLIENTS, "strategy=adam")
    assert same_tensors(read_checkpoint(folder).state, read_checkpoint(local["adam"]).state)


def test_an_interrupted_run_of_a_flower_strategy_is_not_resumed(local, tmp_path):
    shutil.copytree(local["adam"].parents[1], tmp_path / "runs")
    folder = tmp_path / "runs" / "digits" / local["adam"].name
    (folder / "checkpoint.safetensors").unlink()
    ended = quick(tmp_path, "engine=local", *ALL_CLIENTS, *FEDADAM)
    assert ended.code == 2 and ended.out == "" and "Traceback" not in ended.err
    assert all(word in ended.err.strip().splitlines()[-1] for word in ("strategy._target_", "FedAdam", "resumed", str(folder)))
    assert len(metrics(folder)) == 5


def test_the_failure_policy_holds_for_a_flower_strategy(tmp_path):
    ended = quick(tmp_path, "engine=local", *flower_strategy("FedAvg", "optimizer.lr=1e30"))
    assert ended.code == 1 and "6 of 6 clients failed in round 1" in ended.err and "no longer finite" in ended.err


def test_a_wrong_parameter_of_a_flower_strategy_is_refused(tmp_path):
    ended = quick(tmp_path, "engine=local", *flower_strategy("FedAdam", "+strategy.momentum=0.9"))
    assert ended.code == 2 and "error: strategy.momentum must be a parameter of FedAdam" in ended.err


def test_a_node_that_is_one_client_keeps_its_state():
    """Its updates and its state equal those of the local engine."""
    overrides = ["strategy=feddistill_logits", "num_clients=4", "clients_per_round=4"]
    simulation, text = small_simulation(*overrides)
    strategy, grid = simulation.strategy, LocalGrid(4, text)
    run_config = {"overrides": " ".join([*SMALL, *overrides])}
    context = Context(run_id=1, node_id=7, node_config={"partition-id": 2, "num-partitions": 4}, state=RecordDict(), run_config=run_config)
    arrays = serialization.to_record(strategy.init_server(simulation.federation().server))
    for number in (1, 2, 3):
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        (message,) = [message for message in messages if message.metadata.dst_node_id == 2]
        of_node = client_app(Message(message.content, dst_node_id=7, message_type="train"), context).content
        (reply,) = grid.send_and_receive([message])
        grid.commit()
        assert serialization.CLIENT_STATE not in of_node, "the state stays on the node"
        updates = [serialization.from_record(content[serialization.UPDATE]) for content in (of_node, reply.content)]
        assert same_tensors(*updates)
        node_state = serialization.from_record(context.state[serialization.CLIENT_STATE])
        assert same_tensors(node_state, serialization.from_record(grid.client_states[2]))
        assert int(node_state["client"]["last_round"]) == number
    messages = strategy.configure_evaluate(3, arrays, ConfigRecord(), grid)
    (message,) = [message for message in messages if message.metadata.dst_node_id == 2]
    of_node = client_app(Message(message.content, dst_node_id=7, message_type="evaluate"), context).content
    assert of_node[serialization.METRICS]["num-examples"] == len(simulation.partition.test[2])
