"""The run folder: what a run leaves behind, and what it needs to go on."""

import csv
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from flwr.app import Message
from omegaconf import OmegaConf

from fedkd import wire
from fedkd.checkpoint import Checkpoint, read_checkpoint, read_header, write_atomically, write_checkpoint
from fedkd.partition.shards import counts, save
from fedkd.rounds import Round
from fedkd.types import State
from simulations import figures
from simulations.world import World

COLUMNS = (
    "round", "accuracy", "loss", "accuracy_own_labels", "accuracy_worst_tenth", "accuracy_spread", "bytes_up", "bytes_down",
    "seconds_local", "seconds_server", "seconds_evaluate", "num_failures", "train_loss",
)  # fmt: skip
CLIENT_COLUMNS = ("round", "client", "participated", "num_examples", "loss", "accuracy_own_labels", "num_test_examples")


class Folder:
    """``<output>/<name>/<hash>/``, locked for as long as this object lives.

    Raises:
        ValueError: the folder cannot be written, is in use, or holds a checkpoint of another configuration.
    """

    def __init__(self, world: World) -> None:
        config = world.config
        self.world, self.path = world, Path(config.output).expanduser().absolute() / config.name / world.hash
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"output must hold run folders that no other process is writing, got {self.path}, which is in use") from None
        except OSError as error:
            raise ValueError(f"output must be a folder that can be written, got {config.output!r}: {error}") from error
        self.header = read_header(self.path)
        if self.header is not None and self.header["config"] != world.hash:
            raise ValueError(
                f"output must hold checkpoints of this very configuration ({world.hash}), got one of {self.header['config']} in {self.path}; "
                "a run cannot be resumed with another configuration"
            )

    @property
    def finished(self) -> bool:
        """All rounds are done."""
        return self.header is not None and bool(self.header["finished"])

    def commit_note(self) -> str | None:
        """A line to show where the finished run was made by other code; None where it was not, or nobody knows."""
        try:
            then = json.loads((self.path / "environment.json").read_text())["commit"]
        except (OSError, ValueError, KeyError):
            return None
        now = commit()[0]
        return f"finished at commit {then}, the code is now at {now}" if then and now and then != now else None

    def begin(self) -> Checkpoint | None:
        """Write what describes the run, cut what lies behind the checkpoint, and give the checkpoint if there is one."""
        done = 0 if self.header is None else int(self.header["round"])
        for name in ("metrics.csv", "clients.csv"):
            cut(self.path / name, done)
        world, path = self.world, self.path
        write_atomically(path / "config.yaml", OmegaConf.to_yaml(world.config, resolve=True).encode())
        write_atomically(path / "environment.json", (json.dumps(environment(world), indent=1) + "\n").encode())
        labels, classes = world.train.y.cpu().numpy(), world.task.num_classes
        save(world.partition, path / "partition.npz", labels, world.scored.y.cpu().numpy(), classes)
        figures.partition(counts(world.partition.train, labels, classes), path / "partition")
        return None if self.header is None else read_checkpoint(path)

    def choice(self) -> dict[str, object] | None:
        """What an earlier part of this run has chosen where ``cohort`` is auto; None where there is none."""
        path = self.path / "cohort.json"
        return json.loads(path.read_text()) if path.exists() and self.header is not None else None

    def choose(self, choice: Mapping[str, object]) -> None:
        """Note the choice, for as long as the run lasts."""
        write_atomically(self.path / "cohort.json", (json.dumps(choice, indent=1) + "\n").encode())

    def row(self, values: Mapping[str, float]) -> None:
        """One row of ``metrics.csv``, flushed."""
        classes = [f"accuracy_class_{c:02d}" for c in range(self.world.task.num_classes)]
        more = [name for name in values if name not in COLUMNS and name not in classes]
        columns = [*COLUMNS, *more, *classes]
        widen(self.path / "metrics.csv", columns)
        append(self.path / "metrics.csv", columns, [values])

    def client_rows(self, rows: list[Mapping[str, float]]) -> None:
        """Rows of ``clients.csv``, flushed."""
        append(self.path / "clients.csv", CLIENT_COLUMNS, rows)

    def checkpoint(self, server_round: int, state: State, memories: Mapping[int, State]) -> None:
        """The state after ``server_round``, atomically."""
        write_checkpoint(self.path, Checkpoint(server_round, self.world.hash, state, memories), self.world.config.rounds)

    def release(self) -> None:
        """Let others have the folder."""
        self._lock.release()


def metrics_row(done: Round) -> dict[str, float]:
    """One round as a row of ``metrics.csv``."""
    numbers = {name: value for name, value in done.metrics.items() if not isinstance(value, list)}
    seconds = {f"seconds_{phase}": round(value, 4) for phase, value in done.seconds.items()}
    traffic = {"bytes_up": done.bytes_up, "bytes_down": done.bytes_down, "num_failures": done.num_failures}
    return {"round": done.number, **numbers, **traffic, **seconds}


def client_rows(world: World, done: Round) -> list[dict[str, float]]:
    """One round as rows of ``clients.csv``: all clients in an evaluated round, otherwise those that trained."""
    trained = {r.metadata.src_node_id: r.content[wire.METRICS] for r in done.trained}
    scores = {r.metadata.src_node_id: counted(r) for r in done.evaluated}
    for client, (n, correct) in enumerate(zip(done.metrics.get("own_examples", []), done.metrics.get("own_correct", []))):
        scores[client] = (n, correct)
    rows = []
    for client in sorted({*trained, *scores}):
        n, correct = scores.get(client, (0, 0))
        row = {"round": done.number, "client": client, "participated": int(client in trained)}
        row |= {"num_examples": len(world.partition.train[client]), "num_test_examples": len(world.partition.test[client])}
        row |= {"loss": trained[client]["loss"]} if client in trained else {}
        rows.append(row | ({"accuracy_own_labels": correct / n} if n else {}))
    return rows


def counted(reply: Message) -> tuple[int, int]:
    """Examples and correct answers of one client's evaluation."""
    record = reply.content[wire.METRICS]
    return int(record["num-examples"]), int(record["num-correct"])


def append(path: Path, columns: list[str] | tuple[str, ...], rows: list[Mapping[str, float]]) -> None:
    """Append ``rows`` under the header that the file has, or ``columns`` if it is new, and flush."""
    header = columns
    if path.exists() and path.stat().st_size:
        with open(path, newline="") as file:
            header = next(csv.reader(file))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", extrasaction="ignore", lineterminator="\n")
    if header is columns:
        writer.writeheader()
    writer.writerows(rows)
    with open(path, "a", newline="") as file:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())


def widen(path: Path, columns: list[str]) -> None:
    """Give a file that lacks some of ``columns`` all of them, empty so far: rounds without an evaluation know less than those with one."""
    if not path.exists():
        return
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        header = list(reader.fieldnames or columns)
        if set(columns) <= set(header):
            return
        rows = list(reader)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns, *(name for name in header if name not in columns)], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def cut(path: Path, server_round: int) -> None:
    """Remove the rows behind ``server_round``, and a last line that was not written to its end."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in lines[1:] if int(line.split(",", 1)[0]) <= server_round]
    write_atomically(path, "".join([*lines[:1], *kept] if kept else []).encode())


def commit() -> tuple[str | None, bool]:
    """The checkout's commit and whether it has uncommitted changes; (None, False) outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None, False
    ask = ["git", "-C", str(root)]
    head = subprocess.run([*ask, "rev-parse", "HEAD"], check=False, capture_output=True, text=True)
    dirty = subprocess.run([*ask, "status", "--porcelain"], check=False, capture_output=True, text=True)
    return head.stdout.strip() or None, bool(dirty.stdout.strip())


def environment(world: World) -> dict[str, object]:
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
        "device": torch.cuda.get_device_name() if world.config.device != "cpu" else platform.processor() or platform.machine(),
    }


def installed(name: str) -> str | None:
    """A package's version; None where it runs from a checkout without being installed."""
    try:
        return version(name)
    except ModuleNotFoundError:
        return None
