"""Checkpoints: the state of a run in a safetensors file, which is written atomically and describes itself in its header."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save

from fedkd.errors import RunFolderError
from fedkd.files import SCHEMA_VERSION, write_atomically
from fedkd.types import State, Tensors, flatten, unflatten

SERVER = "server"
"""Prefix of the server's tensors in the file. The prefix of a client's tensors is the client's number."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after some of its rounds.

    Args:
        round: number of finished rounds, >= 0.
        config: hash of the run's configuration.
        state: the server's state.
        client_states: state of each client that has trained, by the client's number.
        simulated_seconds: the simulated clock, in seconds.
    """

    round: int
    config: str
    state: State
    client_states: Mapping[int, State]
    simulated_seconds: float = 0.0


def write_checkpoint(folder: Path, checkpoint: Checkpoint, rounds: int, name: str = "checkpoint") -> None:
    """Write ``<name>.safetensors`` with a header, and the header once more as ``<name>.json``.

    Args:
        folder: the run folder.
        checkpoint: the state to write.
        rounds: number of rounds of the whole run; the run is finished if the checkpoint has as many.
        name: file name without suffix.

    Raises:
        OSError: the files cannot be written.
    """
    tensors = {f"{SERVER}|{key}": value for key, value in flatten(checkpoint.state).items()}
    for client, client_state in checkpoint.client_states.items():
        tensors |= {f"{client}|{key}": value for key, value in flatten(client_state).items()}
    header = {"round": checkpoint.round, "rounds": rounds, "config": checkpoint.config, "finished": checkpoint.round == rounds}
    header["simulated_seconds"], header["schema"] = checkpoint.simulated_seconds, SCHEMA_VERSION
    content = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, {"fedkd": json.dumps(header)})
    write_atomically(folder / f"{name}.safetensors", content)
    write_header(folder, header, name)


def write_header(folder: Path, header: Mapping[str, Any], name: str = "checkpoint") -> None:
    """Write ``<name>.json``: the checkpoint's header, for readers without safetensors."""
    write_atomically(folder / f"{name}.json", (json.dumps(header, indent=1) + "\n").encode())


def read_header(folder: Path, name: str = "checkpoint") -> dict[str, Any] | None:
    """The header of the checkpoint in ``folder``; None if there is no checkpoint.

    Returns:
        ``round``, ``rounds``, ``config``, ``finished``, ``simulated_seconds``, and ``schema``.

    Raises:
        RunFolderError: the file is not a checkpoint of fedkd, or has another schema version.
    """
    path = folder / f"{name}.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["fedkd"])
    except Exception as error:  # safetensors raises exceptions of many types for corrupt files
        rule = f"output must hold readable checkpoints, got {path}: {error}"
        raise RunFolderError(f"{rule}; remove that run folder to start it again") from error
    if header.get("schema") != SCHEMA_VERSION:
        rule = f"output must hold run folders of schema version {SCHEMA_VERSION}, got version {header.get('schema')} in {folder}"
        raise RunFolderError(f"{rule}; run it again in another output folder")
    return header


def read_checkpoint(folder: Path, name: str = "checkpoint") -> Checkpoint:
    """The checkpoint in ``folder``, which must exist.

    Raises:
        RunFolderError: the file is not a checkpoint of fedkd, or has another schema version.
    """
    header = read_header(folder, name)
    assert header is not None, f"no checkpoint in {folder}"
    tensors_by_owner: dict[str, Tensors] = {}
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        for key in sorted(file.keys()):
            owner, _, rest = key.partition("|")
            tensors_by_owner.setdefault(owner, {})[rest] = file.get_tensor(key)
    state = unflatten(tensors_by_owner.pop(SERVER, {}))
    client_states = {int(client): unflatten(tensors) for client, tensors in sorted(tensors_by_owner.items(), key=lambda item: int(item[0]))}
    return Checkpoint(int(header["round"]), str(header["config"]), state, client_states, float(header.get("simulated_seconds", 0.0)))
