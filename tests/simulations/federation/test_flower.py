"""Flower's side: its runtime runs our experiments, our engines run its strategies, and a node can be one client."""

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
from simulations.engine.local_engine import LocalGrid
from simulations.flower_app import client_app
from tests.small_runs import SMALL, same_tensors, small_simulation
from tests.processes import ROOT, TINY, metrics, processes, quick, until

ALL = ("num_clients=6", "clients_per_round=6", "rounds=5", "local_steps=3", "partition.alpha=1.0", "progress=false", "output=runs")
ADAM = ("~strategy", "+strategy._target_=flwr.serverapp.strategy.FedAdam", "+strategy.fraction_evaluate=0.0")
FEDGEN = (*TINY, "rounds=3", "output=runs")


def flower(name: str, *more: str) -> list[str]:
    """The overrides that run an unmodified strategy of Flower's."""
    return [*ALL, "~strategy", f"+strategy._target_=flwr.serverapp.strategy.{name}", "+strategy.fraction_evaluate=0.0", *more]


def done(where: Path, *options: str) -> Path:
    """The folder of a run in ``where``."""
    where.mkdir(exist_ok=True)
    ended = quick(where, *options)
    assert ended.code == 0, ended.err
    return ended.folder


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> dict[str, Path]:
    """Runs in this machine's processes, without Flower's runtime."""
    where = tmp_path_factory.mktemp("local")
    return {name: done(where, "engine=local", *options) for name, options in (("fedgen", FEDGEN), ("adam", (*ALL, *ADAM)))}


# ---------------------------------------------------------------------------------------------------------- Flower's runtime
SIMULATION = """
import json, sys
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from simulations.apps import client_app
from simulations.grids import CohortGrid
from simulations.command import compose
from simulations.run import execute

server_app = ServerApp()

@server_app.main()
def main(grid, context):
    for overrides in json.loads(sys.argv[1]):
        execute(compose(overrides), lambda num_clients, text: CohortGrid(num_clients, text, grid))

run_simulation(server_app, client_app, 2, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
"""


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> dict[str, Path]:
    """The same runs on two nodes of Flower's own simulation runtime."""
    where = tmp_path_factory.mktemp("simulated")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", SIMULATION, json.dumps([FEDGEN, [*ALL, *ADAM]])]
    ended = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, timeout=240, check=False)
    folders = [Path(line.removeprefix("run: ")) for line in ended.stdout.splitlines() if line.startswith("run: ")]
    assert len(folders) == 2, ended.stderr
    return dict(zip(("fedgen", "adam"), folders, strict=True))


@pytest.mark.parametrize("name", ["fedgen", "adam"])
def test_flowers_runtime_gives_the_same_bits(local, simulated, name):
    ours, theirs = read_checkpoint(local[name]), read_checkpoint(simulated[name])
    assert ours.round == {"fedgen": 3, "adam": 5}[name]
    assert same_tensors(ours.state, theirs.state) and same_tensors(ours.client_states, theirs.client_states)
    assert metrics(local[name]).equals(metrics(simulated[name])) and local[name].name == simulated[name].name


def test_an_unmodified_strategy_gives_the_same_bits_in_ray(local, tmp_path):
    folder = done(tmp_path, "engine=ray", "engine.workers=2", *ALL, *ADAM)
    assert same_tensors(read_checkpoint(folder).state, read_checkpoint(local["adam"]).state)
    assert metrics(folder).equals(metrics(local["adam"]))


@pytest.mark.slow
def test_flwr_run_gives_the_same_accuracies(local, tmp_path):
    """``flwr run`` with a home, ports and daemons of its own, all ended at the end."""
    ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    http, control = (str(port.getsockname()[1]) for port in ports)
    for port in ports:
        port.close()
    env = {
        **os.environ, "FLWR_HOME": str(tmp_path / "home"), "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": http, "FLWR_LOCAL_CONTROL_API_PORT": control,
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    overrides = " ".join([*TINY, "rounds=3", f"output={tmp_path / 'runs'}"])
    command = ["flwr", "run", str(ROOT), "--run-config", f'overrides="{overrides}"', "--format", "json"]
    try:
        given = [*command, "--federation-config", "num-supernodes=2 client-resources-num-cpus=1"]
        ended = subprocess.run(given, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        until(
            lambda: any(json.loads(p.read_text())["finished"] for p in tmp_path.glob("runs/*/*/checkpoint.json")), 240, "the end of the run"
        )
    finally:
        for process in processes(f"FLWR_HOME={tmp_path / 'simulation'}"):
            os.kill(process, signal.SIGKILL)
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    assert metrics(folder).equals(metrics(local["fedgen"]))
    assert same_tensors(read_checkpoint(folder).state, read_checkpoint(local["fedgen"]).state)


# ---------------------------------------------------------------------------------------------------------- Flower's strategies
def close(left: Path, right: Path) -> bool:
    """Equal models but for the rounding of sums."""
    ours, theirs = (read_checkpoint(folder).state["model"] for folder in (left, right))
    return ours.keys() == theirs.keys() and all(torch.allclose(ours[key], theirs[key], rtol=1e-4, atol=1e-5) for key in ours)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> dict[str, Path]:
    """Runs of Flower's own FedAvg, and of its FedProx for two proximal terms."""
    where = tmp_path_factory.mktemp("theirs")
    given = {"FedAvg": flower("FedAvg"), **{mu: flower("FedProx", f"+strategy.proximal_mu={mu}") for mu in ("0.0", "5.0")}}
    return {name: done(where, "engine=local", *options) for name, options in given.items()}


def test_the_proximal_term_of_flowers_fedprox_reaches_the_clients(theirs, tmp_path):
    protocol = ("strategy.batchnorm=averaged", "strategy.lr_schedule=constant", "strategy.lr_decay=1.0")
    assert same_tensors(read_checkpoint(theirs["0.0"]).state, read_checkpoint(theirs["FedAvg"]).state)
    assert not close(theirs["5.0"], theirs["0.0"])
    assert close(theirs["5.0"], done(tmp_path, "engine=local", *ALL, "strategy=fedprox", "strategy.mu=5.0", *protocol))
    assert close(theirs["FedAvg"], done(tmp_path, "engine=local", *ALL, "strategy=fedavg", *protocol))


def test_the_rows_of_an_unmodified_strategy(theirs):
    table = metrics(theirs["FedAvg"])
    model = sum(value.numel() * value.element_size() for value in read_checkpoint(theirs["FedAvg"]).state["model"].values())
    assert list(table["round"]) == ["1", "2", "3", "4", "5"] and set(table["num_failures"]) == {"0"}
    assert set(table["downlink_bytes"]) == {str(6 * model)} and int(table["uplink_bytes"][0]) == 6 * model
    assert table["loss"].astype(float).nunique() == 5


def test_an_unmodified_strategy_in_a_yaml_of_ones_own(local, tmp_path):
    (tmp_path / "mine" / "strategy").mkdir(parents=True)
    (tmp_path / "mine" / "strategy" / "adam.yaml").write_text("_target_: flwr.serverapp.strategy.FedAdam\nfraction_evaluate: 0.0\n")
    folder = done(tmp_path, "--config-dir=mine", "engine=local", *ALL, "strategy=adam")
    assert same_tensors(read_checkpoint(folder).state, read_checkpoint(local["adam"]).state)


def test_an_interrupted_run_of_an_unmodified_strategy_is_not_resumed(local, tmp_path):
    shutil.copytree(local["adam"].parents[1], tmp_path / "runs")
    folder = tmp_path / "runs" / "digits" / local["adam"].name
    (folder / "checkpoint.safetensors").unlink()
    ended = quick(tmp_path, "engine=local", *ALL, *ADAM)
    assert ended.code == 2 and ended.out == "" and "Traceback" not in ended.err
    assert all(word in ended.err.strip().splitlines()[-1] for word in ("strategy._target_", "FedAdam", "resumed", str(folder)))
    assert len(metrics(folder)) == 5


def test_the_failure_policy_holds_for_an_unmodified_strategy(tmp_path):
    ended = quick(tmp_path, "engine=local", *flower("FedAvg", "optimizer.lr=1e30"))
    assert ended.code == 1 and "6 of 6 clients failed in round 1" in ended.err and "no longer finite" in ended.err


def test_a_wrong_parameter_of_an_unmodified_strategy(tmp_path):
    ended = quick(tmp_path, "engine=local", *flower("FedAdam", "+strategy.momentum=0.9"))
    assert ended.code == 2 and "error: strategy.momentum must be a parameter of FedAdam" in ended.err


# ---------------------------------------------------------------------------------------------------------- one client a node
def test_a_node_that_is_one_client_keeps_its_memory():
    overrides = ["strategy=feddistill_logits", "num_clients=4", "clients_per_round=4"]
    simulation, text = small_simulation(*overrides)
    strategy, grid = simulation.strategy, LocalGrid(4, text)
    run_config = {"overrides": " ".join([*SMALL, *overrides])}
    context = Context(run_id=1, node_id=7, node_config={"partition-id": 2, "num-partitions": 4}, state=RecordDict(), run_config=run_config)
    arrays = serialization.to_record(strategy.init_server(simulation.federation().server))
    for number in (1, 2, 3):
        (message,) = [m for m in strategy.configure_train(number, arrays, ConfigRecord(), grid) if m.metadata.dst_node_id == 2]
        alone = client_app(Message(message.content, dst_node_id=7, message_type="train"), context)
        (reply,) = grid.send_and_receive([message])
        grid.commit()
        assert serialization.CLIENT_STATE not in alone.content, "its memory stays with it"
        assert same_tensors(
            serialization.from_record(alone.content[serialization.UPDATE]), serialization.from_record(reply.content[serialization.UPDATE])
        )
        assert same_tensors(serialization.from_record(context.state[serialization.CLIENT_STATE]), serialization.from_record(grid.client_states[2]))
        assert int(serialization.from_record(context.state[serialization.CLIENT_STATE])["client"]["last_round"]) == number
    (message,) = [m for m in strategy.configure_evaluate(3, arrays, ConfigRecord(), grid) if m.metadata.dst_node_id == 2]
    alone = client_app(Message(message.content, dst_node_id=7, message_type="evaluate"), context)
    assert alone.content[serialization.METRICS]["num-examples"] == len(simulation.partition.test[2])
