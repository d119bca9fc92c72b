"""State on disk: safetensors, written atomically, known by a header of its own."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save

from fedkd.errors import RunFolderError
from fedkd.files import SCHEMA_VERSION, write_atomically
from fedkd.types import State, flatten, unflatten


@dataclass(frozen=True)
class Checkpoint:
    """A run after ``round`` rounds: the server's state, every client's memory, and the simulated clock in seconds."""

    round: int
    config: str
    state: State
    client_states: Mapping[int, State]
    simulated_seconds: float = 0.0


def write_checkpoint(folder: Path, checkpoint: Checkpoint, rounds: int, name: str = "checkpoint") -> None:
    """Write ``<name>.safetensors``, which says in its header what it is, and ``<name>.json``, the same for people."""
    tensors = {f"server|{name}": value for name, value in flatten(checkpoint.state).items()}
    for client, memory in checkpoint.client_states.items():
        tensors |= {f"{client}|{name}": value for name, value in flatten(memory).items()}
    header = {"round": checkpoint.round, "rounds": rounds, "config": checkpoint.config, "finished": checkpoint.round == rounds}
    header["simulated_seconds"], header["schema"] = checkpoint.simulated_seconds, SCHEMA_VERSION
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {"fedkd": json.dumps(header)})
    write_atomically(folder / f"{name}.safetensors", content)
    write_header(folder, header, name)


def write_header(folder: Path, header: Mapping[str, object], name: str = "checkpoint") -> None:
    """``<name>.json``: what the checkpoint says of itself, for people, and for whoever reads files only."""
    write_atomically(folder / f"{name}.json", (json.dumps(header, indent=1) + "\n").encode())


def read_header(folder: Path, name: str = "checkpoint") -> dict[str, object] | None:
    """What the checkpoint in ``folder`` says of itself; None where there is none.

    Raises:
        RunFolderError: the file is there and is not a checkpoint of fedkd.
    """
    path = folder / f"{name}.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["fedkd"])
    except Exception as error:
        raise RunFolderError(
            f"output must hold readable checkpoints, got {path}: {error}; remove that run folder to start it again"
        ) from error
    if header.get("schema") != SCHEMA_VERSION:
        rule = f"output must hold run folders of schema version {SCHEMA_VERSION}, got version {header.get('schema')} in {folder}"
        raise RunFolderError(f"{rule}; run it again in another output folder")
    return header


def read_checkpoint(folder: Path, name: str = "checkpoint") -> Checkpoint:
    """The checkpoint in ``folder``, which must have one."""
    header = read_header(folder, name)
    assert header is not None, f"no checkpoint in {folder}"
    parts: dict[str, dict] = {}
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        for key in sorted(file.keys()):
            owner, _, rest = key.partition("|")
            parts.setdefault(owner, {})[rest] = file.get_tensor(key)
    state = unflatten(parts.pop("server", {}))
    return Checkpoint(
        int(header["round"]),
        str(header["config"]),
        state,
        {int(k): unflatten(v) for k, v in sorted(parts.items(), key=lambda kv: int(kv[0]))},
        float(header.get("simulated_seconds", 0.0)),
    )
