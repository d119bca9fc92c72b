"""Rows of a run folder's files, made from a simulation and its finished rounds."""

from pathlib import Path

from flwr.app import Message

from fedkd.config.build import build
from fedkd.data.client_shift import Shift
from fedkd.federation import serialization
from fedkd.federation.server_loop import Round
from fedkd.partition.common import write_partition
from simulations.run_folder.folder import RunFolder
from simulations.setup.simulation import Simulation


def open_folder(home: Simulation) -> RunFolder:
    """The run folder of a simulation, locked."""
    return RunFolder(home.config, home.hash, home.task.num_classes)


def save_partition(home: Simulation, path: Path) -> None:
    """Write ``partition.npz``: the indices of every client's examples, and their counts per class."""
    write_partition(home.partition, path, home.train.y.cpu().numpy(), home.held.scored.y.cpu().numpy(), home.task.num_classes)


def metrics_row(done: Round) -> dict[str, float]:
    """One round as a row of ``metrics.csv``."""
    numbers = {name: value for name, value in done.metrics.items() if not isinstance(value, list)}
    seconds = {f"{phase}_seconds": round(value, 4) for phase, value in done.seconds.items()}
    traffic = {"uplink_bytes": done.uplink_bytes, "downlink_bytes": done.downlink_bytes, "num_failures": done.num_failures}
    there = {
        "num_clients_aggregated": len(done.trained),
        "num_dropouts": done.num_dropouts,
        "num_missed_deadline": done.num_missed_deadline,
    }
    return {"round": done.number, **numbers, **traffic, **there, "simulated_seconds": done.simulated_seconds, **seconds}


def client_rows(world: Simulation, done: Round) -> list[dict[str, float]]:
    """One round as rows of ``clients.csv``: all clients in an evaluated round, otherwise those whose training counted."""
    trained = {r.metadata.src_node_id: r.content[serialization.METRICS] for r in done.trained}
    scores = {r.metadata.src_node_id: counted(r) for r in done.evaluated}
    for client, (n, correct) in enumerate(zip(done.metrics.get("own_examples", []), done.metrics.get("own_correct", []))):
        scores[client] = (n, correct)
    rows = []
    for client in sorted({*trained, *scores}):
        n, correct = scores.get(client, (0, 0))
        row = {"round": done.number, "client_id": client, "architecture": world.networks[client].name, "trained": int(client in trained)}
        row |= {"num_train_examples": len(world.partition.train[client]), "num_test_examples": len(world.partition.test[client])}
        row |= {"train_loss": trained[client]["loss"]} if client in trained else {}
        rows.append(row | ({"local_test_accuracy": correct / n} if n else {}))
    return rows


def shift_rows(world: Simulation) -> list[dict[str, float]]:
    """Each client's levels, and the share of its training labels that were replaced; none where no client sees anything otherwise."""
    shift = build(world.config, "shift")
    if not (isinstance(shift, Shift) and (shift.changes_images or shift.changes_labels)):
        return []
    views = shift.views(world.config.num_clients, world.task.shape[0], world.seed / "shift")
    wrong = [(held.y != world.train.y[index]).double().mean().item() for held, index in zip(world.held.shards[0], world.partition.train)]
    return [{"client_id": client, **vars(view), "label_noise": share} for client, (view, share) in enumerate(zip(views, wrong))]


def counted(reply: Message) -> tuple[int, int]:
    """Examples and correct answers of one client's evaluation."""
    record = reply.content[serialization.METRICS]
    return int(record["num-examples"]), int(record["num-correct"])
