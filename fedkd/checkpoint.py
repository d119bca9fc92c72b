"""Checkpoints: the state of a run in a safetensors file, which is written atomically and describes itself in its header.

States of clients that are large are in files beside it, see :mod:`fedkd.client_states`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from fedkd.client_states import ClientStates, remove_unused
from fedkd.errors import DivergedError, RunFolderError
from fedkd.files import NO_CHECKSUM, SCHEMA_VERSION, embedded_header, seal, verify, write_atomically
from fedkd.tensor_ops import infinite_names
from fedkd.types import State, flatten, unflatten

SERVER = "server"
"""Prefix of the server's tensors in the file."""

LAST, PREVIOUS = "checkpoint", "previous_checkpoint"
"""Names of the last checkpoint and of the one before it, which a run goes on from if the last one is damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after some of its rounds.

    Args:
        round: number of finished rounds, >= 0.
        config: hash of the run's configuration.
        state: the server's state.
        client_states: state of each client that has trained, by the client's number. Those of a checkpoint that is read are loaded when
            they are asked for.
        simulated_seconds: the simulated clock, in seconds.
        series: hash of the configuration without the number of rounds. Runs of one series have the same first rounds.
    """

    round: int
    config: str
    state: State
    client_states: Mapping[int, State]
    simulated_seconds: float = 0.0
    series: str = ""


def write_checkpoint(folder: Path, checkpoint: Checkpoint, rounds: int, name: str = LAST) -> None:
    """Write ``<name>.safetensors`` with a header and a checksum, and the header once more as ``<name>.json``.

    The last checkpoint before it stays as ``previous_checkpoint.safetensors``. Files of clients' states are written before, and those that
    no checkpoint refers to any more are removed afterwards. So every checkpoint in the folder has all of its files at any moment.

    Args:
        folder: the run folder.
        checkpoint: the state to write.
        rounds: number of rounds of the whole run; the run is finished if the checkpoint has as many.
        name: file name without suffix.

    Raises:
        DivergedError: the state is not finite, and the checkpoint that it would replace is. That checkpoint remains.
        OSError: the files cannot be written.
    """
    states = ClientStates.of(checkpoint.client_states)
    tensors = {f"{SERVER}|{key}": value.detach().cpu().contiguous() for key, value in flatten(checkpoint.state).items()}
    header = {"round": checkpoint.round, "rounds": rounds, "config": checkpoint.config, "series": checkpoint.series}
    header |= {"finished": checkpoint.round == rounds, "simulated_seconds": checkpoint.simulated_seconds}
    header |= {"schema": SCHEMA_VERSION, "sha256": NO_CHECKSUM}
    if infinite := [*infinite_names(tensors), *states.infinite_names()]:
        header["infinite"] = infinite
        refuse_to_poison(folder, name, infinite)
    states.write(folder)  # before the checkpoint that refers to the files
    tensors |= {key: torch.from_numpy(np.array(values, order="C")) for key, values in states.tensors().items()}
    content, header["sha256"] = seal(save(tensors, {"fedkd": json.dumps(header)}))
    write_atomically(folder / f"{name}.safetensors", content, folder / f"{PREVIOUS}.safetensors" if name == LAST else None)
    write_header(folder, header, name)
    remove_unused(folder, states)  # after it, as the checkpoint that is gone now may have been the last one


def refuse_to_poison(folder: Path, name: str, infinite: Sequence[str]) -> None:
    """Refuse to write a state that is not finite over one that is.

    Args:
        folder: the run folder.
        name: file name of the checkpoint without suffix.
        infinite: names of the tensors that hold NaN or infinity.

    Raises:
        DivergedError: the checkpoint in the folder holds finite values under one of these names.
    """
    before = read_header(folder, name)
    if before is not None and (new := [key for key in infinite if key not in before.get("infinite", [])]):
        raise DivergedError(
            f"{new[0]!r} of the state must be finite, got NaN or infinity: lower the learning rate; "
            f"the checkpoint of round {before['round']} is kept"
        )


def write_header(folder: Path, header: Mapping[str, Any], name: str = LAST) -> None:
    """Write ``<name>.json``: the checkpoint's header, for readers without safetensors."""
    write_atomically(folder / f"{name}.json", (json.dumps(header, indent=1) + "\n").encode())


def read_header(folder: Path, name: str = LAST) -> dict[str, Any] | None:
    """The header of the checkpoint in ``folder``; None if there is no checkpoint.

    Returns:
        ``round``, ``rounds``, ``config``, ``series``, ``finished``, ``simulated_seconds``, ``schema``, and ``sha256``.

    Raises:
        RunFolderError: the file is not a checkpoint of fedkd, is damaged, or has another schema version.
    """
    found = _read(folder, name)
    return None if found is None else found[0]


def read_checkpoint(folder: Path, name: str = LAST) -> Checkpoint:
    """The checkpoint in ``folder``, which must exist.

    Raises:
        RunFolderError: the file is not a checkpoint of fedkd, is damaged, or has another schema version.
    """
    found = _read(folder, name)
    assert found is not None, f"no checkpoint in {folder}"
    header, content = found
    tensors = load(content)
    state = unflatten({key.removeprefix(f"{SERVER}|"): tensors.pop(key) for key in sorted(tensors) if key.startswith(f"{SERVER}|")})
    infinite: dict[int, tuple[str, ...]] = {}
    for key in header.get("infinite", []):
        owner, _, rest = key.partition("|")
        if owner != SERVER:
            infinite[int(owner)] = (*infinite.get(int(owner), ()), rest)
    client_states = ClientStates.from_tensors(folder, {key: value.numpy() for key, value in tensors.items()}, infinite)
    clock = float(header["simulated_seconds"])
    return Checkpoint(int(header["round"]), str(header["config"]), state, client_states, clock, str(header["series"]))


def _read(folder: Path, name: str) -> tuple[dict[str, Any], bytes] | None:
    """The header and the content of a checkpoint whose checksum is right; None if there is none."""
    path = folder / f"{name}.safetensors"
    try:
        content = path.read_bytes()
        header = embedded_header(content)
        schema = header.get("schema")
        if schema == SCHEMA_VERSION:
            verify(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        rule = f"output must hold readable checkpoints, got {path}: {error}"
        raise RunFolderError(f"{rule}; the same command goes on from the checkpoint before it, force=true starts again") from error
    if schema != SCHEMA_VERSION:
        rule = f"output must hold run folders of schema version {SCHEMA_VERSION}, got version {schema} in {folder}"
        raise RunFolderError(f"{rule}; run it again in another output folder, or with force=true")
    return header, content
