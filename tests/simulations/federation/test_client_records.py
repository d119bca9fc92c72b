"""The states of clients during a run: results do not depend on where they are kept, and memory does not grow with the clients."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flwr.app import ArrayRecord

from fedkd import client_states
from fedkd.checkpoint import LAST, PREVIOUS, read_checkpoint
from fedkd.client_states import existing_files
from fedkd.errors import RunFolderError
from fedkd.federation import serialization
from simulations.api.run import Run
from simulations.config import compose
from simulations.federation import client_records
from simulations.federation.client_records import ClientRecords, DecodedStates
from simulations.federation.runner import run_federation
from simulations.federation.trained_model import load_model
from simulations.run_folder import csv_rows
from simulations.run_folder.listing import find_runs, remove
from simulations.run_folder.reader import find_run_folders, read_run
from simulations.setup.simulation import build_simulation
from tests.processes import differing
from tests.small_runs import SMALL, InterruptedGrid, same_tensors

CONTROL = ("strategy=scaffold", "optimizer.momentum=0.0", "progress=false", "rounds=5", "evaluation.every=1")


def run(output: Path, *words: str, make_grid=None) -> Path:
    """The folder of a small run."""
    return run_federation(compose([*SMALL, *CONTROL, f"output={output}", *words]), make_grid)


@pytest.fixture(scope="module")
def inline(tmp_path_factory) -> Path:
    """A run whose states are small, so that they are inside its checkpoint."""
    return run(tmp_path_factory.mktemp("inline"))


@pytest.fixture
def files(monkeypatch):
    """All states are in files, however small."""
    monkeypatch.setattr(client_states, "INLINE_BYTES", 0)


def same_states(left: Path, right: Path) -> bool:
    """The last checkpoints have the same states, bit for bit."""
    left, right = read_checkpoint(left), read_checkpoint(right)
    return same_tensors(left.state, right.state) and same_tensors(dict(left.client_states), dict(right.client_states))


def referenced(folder: Path) -> list[set[tuple[int, str]]]:
    """The clients and digests that the last checkpoint refers to, and those of the one before it."""
    return [set(client_states.referenced(folder / f"{name}.safetensors").items()) for name in (LAST, PREVIOUS)]


def test_small_states_have_no_files(inline):
    assert not (inline / "client_states").exists() and len(read_checkpoint(inline).client_states) > 3


@pytest.mark.parametrize("unsaved", [0, 10**9], ids=["written at once", "kept until the checkpoint"])
def test_an_interrupted_run_goes_on_from_the_states_of_its_checkpoint(inline, files, tmp_path, monkeypatch, unsaved):
    """Two rounds apart, so that the states of the round after the checkpoint are neither lost nor taken."""
    monkeypatch.setattr(client_records, "UNSAVED_BYTES", unsaved)
    whole = run(tmp_path / "whole", "checkpoint_every=2")

    def grid(*arguments):
        return InterruptedGrid(*arguments, interrupted_round=5)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "resumed", "checkpoint_every=2", make_grid=grid)
    (folder,) = (tmp_path / "resumed" / "digits").iterdir()
    assert read_checkpoint(folder).round == 2, "the row of round 4 is written during round 5"
    build_simulation.cache_clear()
    resumed = run(tmp_path / "resumed", "checkpoint_every=2")
    assert resumed == folder and list(differing(whole, resumed)) == ["config.yaml"], "which names the output"
    assert {file.name for file in existing_files(whole)} == {file.name for file in existing_files(resumed)}
    assert same_states(whole, inline)


def test_a_damaged_file_of_the_last_round_leads_back_by_one_checkpoint(files, tmp_path, capsys):
    folder = run(tmp_path)
    before = {file.name: Path(file).read_bytes() for file in existing_files(folder)}
    last, previous = referenced(folder)
    client_states.file_path(folder, *(last - previous).pop()).write_bytes(b"nothing of the kind")
    run(tmp_path)
    said = capsys.readouterr().err
    assert "damaged: output must hold the clients' states that a checkpoint refers to" in said and "going on from round 4" in said
    assert {file.name: Path(file).read_bytes() for file in existing_files(folder)} == before


def test_a_damaged_file_that_both_checkpoints_need_ends_the_run_in_one_line(files, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, make_grid=lambda *arguments: InterruptedGrid(*arguments, interrupted_round=5))
    (folder,) = (tmp_path / "digits").iterdir()
    last, previous = referenced(folder)
    for client, digest in last & previous:
        client_states.file_path(folder, client, digest).write_bytes(b"nothing of the kind")
    with pytest.raises(RunFolderError, match=r"^output must hold the clients' states.*force=true starts again$"):
        run(tmp_path)
    assert run(tmp_path, "force=true") == folder


def test_more_rounds_force_removal_and_models_work_with_files(inline, files, tmp_path, capsys):
    short = run(tmp_path, "rounds=3")
    longer = run(tmp_path)
    assert "going on from round 3" in capsys.readouterr().err and same_states(longer, inline)
    assert find_runs(tmp_path) == find_run_folders([tmp_path]) == sorted([short, longer])
    assert same_tensors(load_model(longer, client=2).state_dict(), load_model(inline, client=2).state_dict())
    run(tmp_path, "force=true")
    (aside,) = (tmp_path / "digits" / ".replaced").iterdir()
    assert same_states(aside, longer)
    assert remove(short) is None and not short.exists() and same_states(longer, inline)


def test_a_run_with_a_compressed_table_of_clients_is_resumed_and_read_as_one_with_a_plain_table(tmp_path, monkeypatch):
    plain = run(tmp_path / "plain")
    monkeypatch.setattr(csv_rows, "MAX_PLAIN_CLIENTS", 5)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "gz", make_grid=InterruptedGrid)
    folder = run(tmp_path / "gz")
    assert not (folder / "clients.csv").exists() and csv_rows.complete_lines(folder / "clients.csv.gz") == csv_rows.complete_lines(
        plain / "clients.csv"
    )
    assert read_run(folder).clients.equals(read_run(plain).clients) and Run(folder).clients.equals(Run(plain).clients)
    assert len(pd.read_csv(run(tmp_path / "gz", "rounds=6") / "clients.csv.gz")) > len(Run(plain).clients)
    content = (folder / "clients.csv.gz").read_bytes()
    (folder / "clients.csv.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(RunFolderError):
        read_run(folder)


def test_decoded_states_are_those_of_the_records_and_read_small_parts_once(files, tmp_path, monkeypatch):
    large, small = np.arange(1000.0), np.array([1.5, 2.5])
    records = ClientRecords(tmp_path, {})
    for client in (7, 3):
        records[client] = serialization.to_array_record(
            {"control:w": large * client, "local:m": small + client, "client:n": np.array(client)}
        )
    records.snapshot().write(tmp_path)
    decoded = DecodedStates(records)
    assert list(decoded) == [3, 7] and 4 not in decoded and decoded.get(4, {}) == {}
    assert same_tensors(dict(decoded), {client: serialization.from_record(records[client]) for client in (3, 7)})
    monkeypatch.setattr(client_states, "read_file", lambda *arguments: pytest.fail("the file is read again"))
    assert decoded[7]["local"]["m"].tolist() == [8.5, 9.5] and "control" in decoded[7] and int(decoded[3]["client"]["n"]) == 3
    records[7] = serialization.to_array_record({"control:w": large, "local:m": small, "client:n": np.array(8)})
    assert decoded[7]["local"]["m"].tolist() == [1.5, 2.5] and same_tensors(decoded[7], serialization.from_record(records[7]))


def test_memory_holds_the_states_of_no_more_clients_than_have_changed(files, tmp_path, monkeypatch):
    record = serialization.to_array_record({"control:w": np.zeros(1000)})
    records = ClientRecords(tmp_path, {})
    monkeypatch.setattr(client_records, "UNSAVED_BYTES", 100_000)
    in_memory = []
    for client in range(300):
        records[client] = record
        in_memory.append(records.snapshot().num_bytes)
    assert max(in_memory) <= 100_000 + 8000 and len(records) == 300 and isinstance(records[0], ArrayRecord)
    assert len(list(existing_files(tmp_path))) > 280
