"""engine=deployment: the bits of engine=local where data are split alike, whatever becomes of SuperNodes, and what is not available."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from fedkd.checkpoint import read_checkpoint
from fedkd.data.client_files import write_client_files
from fedkd.errors import ClientFailure, ConfigError, EngineError
from fedkd.federation.messaging import WORKER_LOST
from simulations.config import compose
from simulations.deployment import node_work
from simulations.deployment import nodes as nodes_module
from simulations.federation.runner import run_federation
from simulations.reports.builder import report_folders
from tests.processes import metrics
from tests.simulations.deployment.federations import NODES, deploy, run_locally, same_run, strategy_options, three_nodes

FEDGEN = strategy_options("fedgen")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The folder in which SuperNodes keep the memory of their clients. Nodes that join are seen at once."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(nodes_module, "LOOK_SECONDS", 0.0)
    return tmp_path / "home"


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The folder of FedGen's run with ``engine=local``."""
    return run_locally(tmp_path_factory.mktemp("local"), *FEDGEN)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """The folder of the same run on three SuperNodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLWR_HOME", str(tmp_path_factory.mktemp("home")))
        return deploy(three_nodes(), tmp_path_factory.mktemp("deployed"), *FEDGEN)


def test_fedgen_gives_the_bits_of_the_local_engine(deployed, local):
    assert same_run(deployed, local)


@pytest.mark.parametrize(("name", "options"), [("scaffold", []), ("fedmd", ["public_data=noise"])])
def test_a_strategy_of_messages_gives_the_bits_of_the_local_engine(tmp_path, name, options):
    words = [*strategy_options(name), *options]
    assert same_run(deploy(three_nodes(), tmp_path / "runs", *words), run_locally(tmp_path / "local", *words))


def test_the_server_records_no_example_and_no_state_of_a_client(local, deployed):
    folder = deployed
    assert not (folder / "partition.npz").exists() and (folder / "task.json").read_text() == (local / "task.json").read_text()
    assert all(state.keys() == {"client"} for state in read_checkpoint(folder).client_states.values())
    assert pd.read_csv(folder / "clients.csv").equals(pd.read_csv(local / "clients.csv"))
    assert folder.name != local.name, "a run whose memory is elsewhere is not resumed here"
    columns = metrics(folder).replace("", np.nan).dropna(axis=1, how="all").columns
    assert "local_test_accuracy" in columns and not [name for name in columns if name.startswith("global_test")]


def test_a_report_of_a_deployment_has_all_that_its_server_knows(deployed, tmp_path):
    report_folders([deployed], output=tmp_path / "report", quiet=True)
    names = {path.stem for path in (tmp_path / "report").rglob("*")}
    assert any(name.startswith("convergence") for name in names) and not [name for name in names if name.startswith("label_distribution")]


def killed_in_round_2(nodes, keeps_disk=lambda: None):
    """Node 8 trains in round 2 and is killed before its reply has left it; it comes back as node 10."""

    def fate(message):
        if (
            message.metadata.message_type == "train"
            and message.metadata.dst_node_id == 8
            and message.content["config"]["server-round"] == 2
        ):
            nodes.app(message, nodes.contexts[8])
            nodes.disconnect(8)
            keeps_disk()
            nodes.connect(10, NODES[8])
            return "lost"
        return "answered"

    return fate


def test_a_node_that_is_killed_and_comes_back_changes_nothing(local, tmp_path, capsys):
    nodes = three_nodes()
    nodes.fate = killed_in_round_2(nodes)
    folder = deploy(nodes, tmp_path / "runs", *FEDGEN)
    assert same_run(folder, local) and "node 10 has taken the place of node 8" in capsys.readouterr().err


def test_memory_that_is_lost_is_said_in_one_line(tmp_path, home):
    nodes = three_nodes()
    nodes.fate = killed_in_round_2(nodes, lambda: shutil.rmtree(home))
    with pytest.raises(ClientFailure, match=r"client [14]: the memory of this client must hold its state after round 1, got rounds \[\]"):
        deploy(nodes, tmp_path / "runs", *FEDGEN, "clients_per_round=6")


def test_a_run_is_resumed_with_the_memory_of_the_nodes(local, tmp_path):
    """The server ends after round 2, and all SuperNodes start again."""
    deploy(three_nodes(), tmp_path / "runs", *FEDGEN, "rounds=2")
    asked = []
    folder = deploy(three_nodes(lambda message: asked.append(message) or "answered"), tmp_path / "runs", *FEDGEN)
    assert {message.content["config"]["server-round"] for message in asked if message.metadata.message_type == "train"} == {3}
    assert same_run(folder, local)


def first(kind, node, number, fate):
    """The fate of the first messages of a kind to a node."""
    left = [fate] * number
    return lambda message: (
        left.pop() if left and message.metadata.dst_node_id == node and message.metadata.message_type == kind else "answered"
    )


def test_a_process_that_ends_is_started_once_more(local, tmp_path):
    folder = deploy(three_nodes(first("train", 9, 1, "error")), tmp_path / "runs", *FEDGEN)
    assert same_run(folder, local) and set(metrics(folder)["num_failures"]) == {"0"}


def test_a_node_that_ends_twice_at_the_same_work_has_failed(tmp_path):
    nodes = three_nodes(first("train", 9, 2, "error"))
    folder = deploy(nodes, tmp_path / "runs", *FEDGEN, "clients_per_round=6", "on_client_failure=drop")
    rows = pd.read_csv(folder / "clients.csv").query("round == 1")
    assert list(metrics(folder)["num_failures"]) == ["3", "0", "0"] and list(rows[rows.trained == 0].client_id) == [2, 3, 5]
    assert rows.failure.dropna().str.contains("lost 2 times").all() and WORKER_LOST == 0


def test_a_client_whose_update_came_too_late_keeps_its_state_of_the_round_before(tmp_path, capsys):
    """Its node has trained. The server has not used the update, and asks for the state before it."""
    options = [*strategy_options("scaffold"), "clients_per_round=6", "on_client_failure=drop", "timeout=0.4"]
    nodes = three_nodes(first("train", 7, 1, "late"))
    asked = []

    def fate(message):
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == 7:
            nodes.release()
            asked.append(list(message.content["deployment"]["last_rounds"]))
        return late(message)

    late, nodes.fate = nodes.fate, fate
    folder = deploy(nodes, tmp_path / "runs", *options)
    assert asked == [[0], [0], [2]] and list(metrics(folder)["num_failures"]) == ["1", "0", "0"]
    assert "1 that came after the timeout" in capsys.readouterr().err


def test_a_node_that_does_not_come_back_has_failed(tmp_path):
    nodes = three_nodes()

    def fate(message):
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == 8:
            nodes.disconnect(8)
            return "lost"
        return "answered"

    nodes.fate = fate
    with pytest.raises(ClientFailure, match="node 8 has not come back in 0.2 seconds"):
        deploy(nodes, tmp_path / "runs", *FEDGEN, "clients_per_round=6", "engine.patience=0.2")


# ------------------------------------------------------------------------------------------------------------ data of the nodes
def test_nodes_with_data_of_their_own_train_as_clients_of_one_data_set(tmp_path):
    rng = np.random.default_rng(0)

    def part(size):
        y = np.arange(size) % 4
        return rng.integers(0, 256, (size, 8, 8), dtype=np.uint8), y

    clients = [(part(12 + 4 * k), part(8)) for k in range(3)]
    write_client_files(tmp_path / "all", clients)
    for number, one in enumerate(clients):
        write_client_files(tmp_path / f"client_{number}", [one])
    options = ["data=parquet", "data.channels=1", "data.mean=[0.5]", "data.std=[0.5]", f"data.cache={tmp_path / 'cache'}", "name=digits"]
    options += [*FEDGEN, "num_clients=3", "clients_per_round=2", "batch_size=8"]
    whole = run_locally(
        tmp_path / "local", *options, f"data.root={tmp_path / 'all'}", "partition=from_file", f"partition.path={tmp_path}/all/partition.npz"
    )
    root = str(tmp_path / "client_{client}")
    nodes = three_nodes(configs={
        7: {"partition-id": 0, "data-root": root, "own-data": True}, 8: {"clients": "1,2", "data-root": root, "own-data": True},
    })  # fmt: skip
    assert same_run(deploy(nodes, tmp_path / "runs", *options), whole)


def test_test_data_of_the_server_give_the_columns_of_the_global_test(tmp_path):
    options = ["strategy=fedavg", "strategy.batchnorm=averaged"]
    folder, whole = deploy(three_nodes(), tmp_path / "runs", *options, "engine.server_data=true"), run_locally(tmp_path / "local", *options)
    assert same_run(folder, whole) and metrics(folder)["global_test_loss"].equals(metrics(whole)["global_test_loss"])


# --------------------------------------------------------------------------------------------------------- what is refused or missing
@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["strategy=fedgen"], "the global test, as the server has no test data"),
        (["strategy=fedensemble"], "the local test, as the server of fedensemble"),
        (["validation_fraction=0.2"], "early stopping"),
        (["engine.server_data=true"], "the global test, as BatchNorm statistics or layers of fedavg stay with the clients"),
        (["~strategy", "+strategy._target_=flwr.serverapp.strategy.FedAvg", "+strategy.fraction_evaluate=0.0"], "the local test"),
    ],
)
def test_what_is_not_available_is_said_in_one_line(tmp_path, capsys, options, line):
    deploy(three_nodes(), tmp_path / "runs", "strategy=fedavg", "rounds=1", *options)
    assert f"not available with engine=deployment: {line}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["distill=kd"], "distill must be null with engine=deployment"),
        (["generator_diagnostics_every=1"], "generator_diagnostics_every must be null with engine=deployment"),
        (["public_data=held_out"], "public_data must be none, other_dataset or noise with engine=deployment"),
        (["public_data=client_images"], "public_data must be none, other_dataset or noise with engine=deployment"),
        (["clients_per_vmap=3"], "clients_per_vmap must be 1 or auto"),
        (["num_clients=8", "engine.patience=0"], "num_clients must be the number of clients that SuperNodes host"),
        (["num_clients=5"], "node 9: partition-id must be in 0..4"),
        (["device=cuda"], "device must be available"),
    ],
)  # fmt: skip
def test_what_needs_the_clients_data_is_refused_before_the_first_round(tmp_path, options, line):
    with pytest.raises(ConfigError, match=line) as error:
        deploy(three_nodes(), tmp_path / "runs", *options)
    assert "\n" not in str(error.value) and not list(tmp_path.glob("runs/digits/*/metrics.csv"))


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"partition-id": 0}, "partition-id of node 8 must be the number of another client than 0, which node 7 hosts"),
        ({}, "node 8: partition-id must be the number of the node's client"),
        ({"partition-id": 1, "data-root": "/nowhere"}, "node 8: data-root must not be set, as data=digits reads no folder"),
        ({"partition-id": 1, "own-data": "yes"}, "node 8: own-data must be true or false"),
    ],
)
def test_a_node_that_does_not_fit_is_named(tmp_path, config, line):
    with pytest.raises(ConfigError, match=line):
        deploy(three_nodes(configs={7: {"partition-id": 0}, 8: config}), tmp_path / "runs", "num_clients=2", "clients_per_round=2")


def test_a_node_with_another_path_is_named(tmp_path):
    mnist = ["data=mnist", "num_clients=1", "clients_per_round=1"]
    with pytest.raises(ConfigError, match="node 7: data.* /nowhere"):
        deploy(three_nodes(configs={7: {"partition-id": 0, "data-root": "/nowhere"}}), tmp_path / "runs", *mnist)


OTHER_ENVIRONMENTS = [
    ("describe_process", {"versions": {"torch": "0.4"}}, r"torch, got 0\.4 there and .* here; install the same version there"),
    ("describe_process", {"device": "cpu Z80"}, r"device, got cpu Z80 there and .*verify_device=false allows it"),
    ("describe_code", {"modules": {}}, r"code, got fedkd.* \(missing there and .*Flower sends the app's own code"),
]
"""What a node says in place of the truth, and the error."""


@pytest.mark.parametrize(("function", "change", "line"), OTHER_ENVIRONMENTS, ids=["version", "device", "code"])
def test_a_node_with_another_environment_is_refused(tmp_path, monkeypatch, function, change, line):
    theirs = getattr(node_work, function)
    one = ["num_clients=1", "clients_per_round=1", "rounds=1"]

    def changed(*given):
        found = theirs(*given)
        return {**found, **{name: {**found[name], **new} if name == "versions" else new for name, new in change.items()}}

    monkeypatch.setattr(node_work, function, changed)
    with pytest.raises(EngineError, match=rf"^the worker on node .* \(node 7\) must have the server's {line}"):
        deploy(three_nodes(configs={7: {"partition-id": 0}}), tmp_path / "runs", *one)
    if "device" in change:
        folder = deploy(three_nodes(configs={7: {"partition-id": 0}}), tmp_path / "runs", *one, "engine.verify_device=false")
        (node,) = json.loads((folder / "environment.json").read_text())["workers"]
        assert node["device"] == "cpu Z80" and node["node"].endswith("(node 7)") and list(node["data"]) == ["client_0"]


def test_an_error_of_a_node_that_cannot_run_the_app_ends_the_run(tmp_path):
    with pytest.raises(EngineError, match="node 8 must run the app, got error 5"):
        deploy(three_nodes(first("query", 8, 1, "error")), tmp_path / "runs", "engine.patience=0")


def test_another_command_refuses_the_engine(tmp_path):
    with pytest.raises(ConfigError, match="engine must be local or ray for this command"):
        run_federation(compose(["engine=deployment", f"output={tmp_path}"]))
