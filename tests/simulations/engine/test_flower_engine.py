"""FlowerGrid: replies are matched by the message that they answer, whoever sends them, and whatever happens to nodes."""

import json

import pytest
from flwr.app import ConfigRecord, Message

from fedkd.checkpoint import read_checkpoint
from fedkd.errors import EngineError
from fedkd.federation import serialization
from fedkd.federation.messaging import WORKER_LOST
from simulations.config import compose
from simulations.engine import worker_environment
from simulations.engine.client_work import Work
from simulations.engine.flower_engine import FlowerGrid, MessageTracker
from simulations.engine.worker import app_request
from simulations.federation.runner import run_federation
from simulations.flower_app import client_app
from tests.processes import metrics
from tests.simulations.engine.fake_nodes import FakeNodes
from tests.small_runs import SMALL, same_tensors, small_run, small_simulation

FEDAVG = ("strategy=fedavg", "clients_per_round=6", "progress=false")


def run_on(nodes: FakeNodes, tmp_path, *options: str):
    """The folder of a run on these nodes."""
    config = compose([*SMALL, *FEDAVG, f"output={tmp_path}", *options])
    return run_federation(config, lambda number, text: FlowerGrid(number, text, nodes))


def once(kind: str, node: int, fate: str):
    """The fate of the first message of a kind to a node; all others are answered."""
    todo = [fate]
    return lambda message: (
        todo.pop() if todo and message.metadata.dst_node_id == node and message.metadata.message_type == kind else "answered"
    )


def test_an_error_of_the_superlink_is_a_failure_of_the_clients_of_the_node(tmp_path, capsys):
    nodes = FakeNodes(client_app, {7: {}, 8: {}}, once("train", 8, "error"))
    folder = run_on(nodes, tmp_path, "on_client_failure=retry")
    table, whole = metrics(folder), small_run(*FEDAVG)
    assert int(table["num_failures"][0]) == 3 and set(table["num_failures"][1:]) == {"0"}
    assert same_tensors(read_checkpoint(folder).state, whole.state)


def test_a_node_that_has_gone_leaves_its_clients_to_the_others(tmp_path):
    nodes = FakeNodes(client_app, {7: {}, 8: {}})

    def fate(message):
        if 8 in nodes.contexts and message.metadata.message_type != "query" and message.content["config"]["server-round"] == 2:
            nodes.disconnect(8)
        return "answered"

    nodes.fate = fate
    folder = run_on(nodes, tmp_path, "on_client_failure=retry")
    assert set(metrics(folder)["num_clients_aggregated"]) == {"6"} and len(nodes.contexts) == 1
    assert same_tensors(read_checkpoint(folder).state, small_run(*FEDAVG).state)


def test_clients_of_nodes_that_are_all_gone_have_failed():
    simulation, text = small_simulation(*FEDAVG)
    nodes = FakeNodes(client_app, {7: {}})
    grid = FlowerGrid(6, text, nodes)
    nodes.disconnect(7)
    replies = grid.send_and_receive(simulation.strategy.configure_train(1, *initial(simulation), grid))
    assert [reply.error.code for reply in replies] == [WORKER_LOST] * 6


def initial(simulation):
    """The arrays and the configuration of a first round."""
    return serialization.to_record(simulation.strategy.init_server(simulation.federation().server)), ConfigRecord()


def test_late_and_unknown_replies_are_counted_and_not_used():
    simulation, text = small_simulation(*FEDAVG)
    nodes = FakeNodes(client_app, {7: {}}, once("train", 7, "late"))
    grid = FlowerGrid(6, text, nodes)
    messages = list(simulation.strategy.configure_train(1, *initial(simulation), grid))
    assert all(reply.has_error() for reply in grid.send_and_receive(messages, timeout=0))
    nodes.release()
    other = FakeNodes(client_app, {7: {}})
    other._ids = iter(["elsewhere"])
    other.push_messages([a_message(text)])
    nodes.extra = list(other.replies.values())
    assert not any(reply.has_error() for reply in grid.send_and_receive(messages))
    assert (grid._tracker.num_late_replies, grid._tracker.num_unknown_replies) == (1, 1)
    assert "1 that came after the timeout, 1 to messages" in grid._tracker.unused()


def a_message(text: str) -> Message:
    """A training message to one node."""
    simulation, _ = small_simulation(*FEDAVG)
    content = simulation.strategy.broadcast_content(initial(simulation)[0], 1)
    return Message(app_request(content, Work([[0]], text), {}), dst_node_id=7, message_type="train")


def test_a_message_that_is_not_accepted_is_reported():
    simulation, text = small_simulation(*FEDAVG)
    nodes = FakeNodes(client_app, {})
    tracker = MessageTracker[str](nodes)
    assert tracker.send({"x": a_message(text)}) == ["x"] and list(tracker.wait([], 10)) == []


# ------------------------------------------------------------------------------------------------------------------ environments
@pytest.fixture
def other_torch(monkeypatch) -> set[str]:
    """Nodes in this set have another torch version."""
    found, theirs = set[str](), worker_environment.describe_environment

    def describe(config, modules, node):
        environment = theirs(config, modules, node)
        return {**environment, "versions": {**environment["versions"], "torch": "0.4"}} if node in found else environment

    monkeypatch.setattr(worker_environment, "describe_environment", describe)
    return found


def test_a_node_with_another_environment_ends_a_run_at_its_beginning(tmp_path, other_torch):
    other_torch.add("node 8")
    with pytest.raises(EngineError, match=r"^the worker on node .* \(node 8\) must have the driver's torch, got 0\.4 there and "):
        run_on(FakeNodes(client_app, {7: {}, 8: {}}), tmp_path)


def test_a_node_that_joins_with_another_environment_gets_no_work(tmp_path, other_torch, capsys):
    other_torch.add("node 9")
    nodes, trained = FakeNodes(client_app, {7: {}}), []

    def fate(message):
        if message.metadata.message_type == "train":
            trained.append(message.metadata.dst_node_id)
            for node in (8, 9):
                nodes.connect(node, {})
        return "answered"

    nodes.fate = fate
    folder = run_on(nodes, tmp_path)
    assert set(trained) == {7, 8} and same_tensors(read_checkpoint(folder).state, small_run(*FEDAVG).state)
    assert capsys.readouterr().err.count("warning: node 9 gets no work: the worker on node ") == 1
    recorded = json.loads((folder / "environment.json").read_text())["workers"]
    assert [node["node"].partition(" ")[2] for node in recorded] == ["(node 7)", "(node 8)"]


def test_nodes_that_do_not_answer(tmp_path, capsys):
    with pytest.raises(EngineError, match="no node answers"):
        run_on(FakeNodes(client_app, {7: {}}, once("query", 7, "error")), tmp_path / "one")
    folder = run_on(FakeNodes(client_app, {7: {}, 8: {}}, once("query", 8, "error")), tmp_path / "two")
    assert same_tensors(read_checkpoint(folder).state, small_run(*FEDAVG).state)
    assert "warning: node 8 gets no work: the node is unavailable" in capsys.readouterr().err
