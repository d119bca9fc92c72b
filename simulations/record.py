"""The run folder: what a run leaves behind, and what it needs to go on."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from flwr.app import Message
from omegaconf import DictConfig, OmegaConf

from fedkd import wire
from fedkd.checkpoint import Checkpoint, read_checkpoint, write_atomically, write_checkpoint
from fedkd.config import build
from fedkd.partition.shards import counts, save
from fedkd.rounds import Round
from fedkd.shift import Shift
from fedkd.types import State
from simulations import figures
from simulations.board import opened, show
from simulations.locked import LockedFolder
from simulations.rows import append, cut, header_of, widen
from simulations.world import World

COLUMNS = (
    "round", "accuracy", "loss", "accuracy_own_labels", "accuracy_worst_tenth", "accuracy_spread", "bytes_up", "bytes_down",
    "seconds_local", "seconds_server", "seconds_evaluate", "num_failures", "num_participants", "num_dropped", "num_late", "simulated_time",
    "train_loss",
)  # fmt: skip
CLIENT_COLUMNS = ("round", "client", "participated", "num_examples", "loss", "accuracy_own_labels", "num_test_examples", "architecture")
GENERATOR_COLUMNS = (
    "round", "class", "num_generated", "fidelity_ensemble", "fidelity_global", "fidelity_seen", "fidelity_unseen", "num_unseen",
    "diversity_generated", "diversity_real", "coverage",
)  # fmt: skip
LATENT_COLUMNS = ("round", "class", "generated", "pca_1", "pca_2", "tsne_1", "tsne_2")
SHIFT_COLUMNS = ("client", "rotation", "domain", "noise", "blur", "brightness", "contrast", "hue", "label_noise")


class Folder(LockedFolder):
    """The folder of a federated run."""

    def __init__(self, world: World) -> None:
        super().__init__(world.config, world.hash)
        self.world, self.board = world, None

    def commit_note(self) -> str | None:
        """A line to show where the finished run was made by other code; None where it was not, or nobody knows."""
        then, now = made_by(self.path), commit()[0]
        return f"finished at commit {then}, the code is now at {now}" if then and now and then != now else None

    def begin(self) -> Checkpoint | None:
        """Write what describes the run, cut what lies behind the checkpoint, and give the checkpoint if there is one."""
        done = 0 if self.header is None else int(self.header["round"])
        for name in ("metrics.csv", "clients.csv", "generator.csv", "latents.csv"):
            cut(self.path / name, done)
        world, path = self.world, self.path
        self.board = opened(world.config, path, done + 1)
        write_atomically(path / "config.yaml", OmegaConf.to_yaml(world.config, resolve=True).encode())
        write_atomically(path / "environment.json", (json.dumps(environment(world.config), indent=1) + "\n").encode())
        labels, classes = world.train.y.cpu().numpy(), world.task.num_classes
        save(world.partition, path / "partition.npz", labels, world.held.scored.y.cpu().numpy(), classes)
        figures.partition(counts(world.partition.train, labels, classes), path / "partition")
        if rows := shift_rows(world):
            (path / "shift.csv").unlink(missing_ok=True)
            append(path / "shift.csv", SHIFT_COLUMNS, rows)
        return None if self.header is None else read_checkpoint(path)

    def choice(self) -> dict[str, object] | None:
        """What an earlier part of this run has chosen where ``cohort`` is auto; None where there is none."""
        path = self.path / "cohort.json"
        return json.loads(path.read_text()) if path.exists() and self.header is not None else None

    def choose(self, choice: Mapping[str, object]) -> None:
        """Note the choice, for as long as the run lasts."""
        write_atomically(self.path / "cohort.json", (json.dumps(choice, indent=1) + "\n").encode())

    def tuned(self, choice: Mapping[str, object]) -> None:
        """Note which row of which file of ``simulations.tune`` this run has taken."""
        note_choice(self.path, choice)

    def row(self, values: Mapping[str, float]) -> None:
        """One row of ``metrics.csv``, flushed; columns that no row has had so far are added to all."""
        classes = [f"accuracy_class_{c:02d}" for c in range(self.world.task.num_classes)]
        path, known = self.path / "metrics.csv", [*COLUMNS, *classes]
        header = header_of(path) or known
        more = [name for name in values if name not in header]
        columns = [*header[: -len(classes)], *more, *classes]
        if more and header is not known:
            widen(path, columns)
        append(path, columns, [values])
        show(self.board, values)

    def client_rows(self, rows: list[Mapping[str, float]]) -> None:
        """Rows of ``clients.csv``, flushed."""
        append(self.path / "clients.csv", CLIENT_COLUMNS, rows)

    def diagnosis(self, rows: list[Mapping[str, float]], points: list[Mapping[str, float]]) -> None:
        """Rows of ``generator.csv`` and of ``latents.csv``, flushed."""
        for name, columns, values in (("generator", GENERATOR_COLUMNS, rows), ("latents", LATENT_COLUMNS, points)):
            if values:
                append(self.path / f"{name}.csv", columns, values)
        for row in rows:
            show(self.board, row, "generator")

    def release(self) -> None:
        """Let others have the folder."""
        if self.board is not None:
            self.board.close()
        super().release()

    def checkpoint(self, server_round: int, state: State, memories: Mapping[int, State], simulated_time: float) -> None:
        """The state after ``server_round``, atomically."""
        checkpoint = Checkpoint(server_round, self.world.hash, state, memories, simulated_time)
        write_checkpoint(self.path, checkpoint, self.world.config.rounds)


def metrics_row(done: Round) -> dict[str, float]:
    """One round as a row of ``metrics.csv``."""
    numbers = {name: value for name, value in done.metrics.items() if not isinstance(value, list)}
    seconds = {f"seconds_{phase}": round(value, 4) for phase, value in done.seconds.items()}
    traffic = {"bytes_up": done.bytes_up, "bytes_down": done.bytes_down, "num_failures": done.num_failures}
    there = {"num_participants": len(done.trained), "num_dropped": done.num_dropped, "num_late": done.num_late}
    return {"round": done.number, **numbers, **traffic, **there, "simulated_time": done.simulated_time, **seconds}


def client_rows(world: World, done: Round) -> list[dict[str, float]]:
    """One round as rows of ``clients.csv``: all clients in an evaluated round, otherwise those whose training counted."""
    trained = {r.metadata.src_node_id: r.content[wire.METRICS] for r in done.trained}
    scores = {r.metadata.src_node_id: counted(r) for r in done.evaluated}
    for client, (n, correct) in enumerate(zip(done.metrics.get("own_examples", []), done.metrics.get("own_correct", []))):
        scores[client] = (n, correct)
    rows = []
    for client in sorted({*trained, *scores}):
        n, correct = scores.get(client, (0, 0))
        row = {"round": done.number, "client": client, "architecture": world.networks[client].name, "participated": int(client in trained)}
        row |= {"num_examples": len(world.partition.train[client]), "num_test_examples": len(world.partition.test[client])}
        row |= {"loss": trained[client]["loss"]} if client in trained else {}
        rows.append(row | ({"accuracy_own_labels": correct / n} if n else {}))
    return rows


def shift_rows(world: World) -> list[dict[str, float]]:
    """Each client's levels, and the share of its training labels that were replaced; none where no client sees anything otherwise."""
    shift = build(world.config, "shift")
    if not (isinstance(shift, Shift) and (shift.changes_images or shift.changes_labels)):
        return []
    views = shift.views(world.config.num_clients, world.task.shape[0], world.seed / "shift")
    wrong = [(held.y != world.train.y[index]).double().mean().item() for held, index in zip(world.held.shards[0], world.partition.train)]
    return [{"client": client, **vars(view), "label_noise": share} for client, (view, share) in enumerate(zip(views, wrong))]


def counted(reply: Message) -> tuple[int, int]:
    """Examples and correct answers of one client's evaluation."""
    record = reply.content[wire.METRICS]
    return int(record["num-examples"]), int(record["num-correct"])


def made_by(folder: Path) -> str | None:
    """The commit of the code that made the run in ``folder``; None where nobody knows."""
    try:
        return json.loads((folder / "environment.json").read_text(encoding="utf-8"))["commit"]
    except (OSError, ValueError, KeyError):
        return None


def commit() -> tuple[str | None, bool]:
    """The checkout's commit and whether it has uncommitted changes; (None, False) outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None, False
    ask = ["git", "-C", str(root)]
    head = subprocess.run([*ask, "rev-parse", "HEAD"], check=False, capture_output=True, text=True)
    dirty = subprocess.run([*ask, "status", "--porcelain"], check=False, capture_output=True, text=True)
    return head.stdout.strip() or None, bool(dirty.stdout.strip())


def environment(config: DictConfig) -> dict[str, object]:
    """Where a run was made."""
    head, dirty = commit()
    packages = ("fedkd", "flwr", "ray", "torch", "torchvision", "numpy", "hydra-core")
    return {
        "commit": head,
        "uncommitted_changes": dirty,
        "python": sys.version.split()[0],
        "versions": {**{name: installed(name) for name in packages}, "torch": torch.__version__},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads_per_worker": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if config.device != "cpu" else platform.processor() or platform.machine(),
    }


def installed(name: str) -> str | None:
    """A package's version; None where it runs from a checkout without being installed."""
    try:
        return version(name)
    except ModuleNotFoundError:
        return None


def note_choice(folder: Path, choice: Mapping[str, object]) -> None:
    """Write ``tuned.json`` into a run folder: what :func:`simulations.command.take_tuned` has taken."""
    write_atomically(folder / "tuned.json", (json.dumps(choice, indent=1) + "\n").encode())
