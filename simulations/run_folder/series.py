"""More rounds of a run: a run goes on from the checkpoint of one that differs in the number of rounds alone. That one stays as it is.

The number of rounds is no part of what the first rounds are, but for the evaluation of the last one, which does not change the state.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fedkd.checkpoint import LAST, PREVIOUS, Checkpoint, read_checkpoint, write_checkpoint
from fedkd.client_states import check_files
from fedkd.errors import RunFolderError
from fedkd.files import SCHEMA_VERSION
from simulations.run_folder.completeness import check_federated_rows, check_row_counts, write_row_counts
from simulations.run_folder.listing import read_checkpoint as read_header_file
from simulations.run_folder.source_code import changed_files

COPIED = ("metrics.csv", "clients.csv", "clients.csv.gz", "generator.csv", "latents.csv", "clients_per_vmap.json", "environment.json")
"""Files that the first rounds have written, and those that a resumed run reads."""


def begin_from_series(folder: Path, key: str, series: str, config: DictConfig) -> tuple[Path, int] | None:
    """Copy the first rounds of another run of the same series into a folder without a checkpoint.

    Args:
        folder: the run folder, beside those of other runs.
        key: the hash of the run.
        series: hash of the configuration without the number of rounds.
        config: the configuration.

    Returns:
        The folder of the other run and the number of its rounds that are taken over. None if there is no such run.
    """
    for other, checkpoint in _candidates(folder, series, config):
        for name in COPIED:
            if (other / name).is_file():
                shutil.copyfile(other / name, folder / name)
        write_row_counts(folder, checkpoint.round)
        write_checkpoint(folder, replace(checkpoint, config=key), config.rounds)  # the last file: without it, the others do not count
        return other, checkpoint.round
    return None


def _candidates(folder: Path, series: str, config: DictConfig) -> Iterator[tuple[Path, Checkpoint]]:
    """Runs of the series by the same code with their sound checkpoints of earlier rounds, the latest first."""
    headers: list[tuple[Path, dict[str, Any]]] = [
        (other, header)
        for other in sorted(folder.parent.iterdir())
        if other != folder and (header := read_header_file(other)).get("series") == series and header.get("schema") == SCHEMA_VERSION
    ]
    for other, header in sorted(headers, key=lambda item: -int(item[1]["round"])):
        for name in (LAST, PREVIOUS):
            try:
                if not (other / f"{name}.safetensors").is_file():
                    continue
                found = read_checkpoint(other, name)
                sampled = config.evaluation.clients is not None
                check_federated_rows(other, found.round, may_drop=config.on_client_failure == "drop", sampled=sampled)
                check_row_counts(other, found.round)
                check_files(other, other / f"{name}.safetensors", other / f"{PREVIOUS}.safetensors" if name == LAST else None)
            except RunFolderError:
                continue
            # A longer run would not have evaluated the last round of a shorter one: it goes on from the checkpoint before it.
            evaluated_as_last = found.round == header["rounds"] and found.round % config.evaluation.every != 0
            if found.series == series and found.round < config.rounds and not evaluated_as_last and not changed_files(other, config):
                yield other, found
