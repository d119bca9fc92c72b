"""The memory of a node's client: found by round, also on disk alone, and bounded."""

import numpy as np
import pytest
from flwr.app import RecordDict

from fedkd.errors import RunFolderError
from fedkd.federation import serialization
from simulations.deployment.client_memory import ClientMemory


def record(value: int):
    return serialization.to_array_record({"local:x": np.full(3, value, np.float32), "client:last_round": np.array(value)})


def values(found) -> dict:
    return {name: array.tolist() for name, array in serialization.to_arrays(found).items()}


def test_a_state_is_found_by_its_round_also_without_the_context(tmp_path):
    memory = ClientMemory(RecordDict(), tmp_path, "run", 3, 3)
    assert memory.load(0) is None
    for number in (1, 4):
        memory.store(number, record(number))
    again = ClientMemory(RecordDict(), tmp_path, "run", 3, 3)
    for number in (1, 4):
        assert values(memory.load(number)) == values(again.load(number)) == values(record(number))
    with pytest.raises(RunFolderError, match=r"after round 2, got rounds \[1, 4\]"):
        again.load(2)
    with pytest.raises(RunFolderError, match=r"after round 1, got rounds \[\]"):
        ClientMemory(RecordDict(), tmp_path, "other", 3, 3).load(1)


def test_old_states_and_those_of_a_run_that_was_given_up_are_deleted(tmp_path):
    state = RecordDict()
    memory = ClientMemory(state, tmp_path, "run", 3, 2)
    for number in (2, 5, 7, 9, 6):
        memory.store(number, record(number))
    assert list(state) == ["run/3/6"] and [path.stem for path in tmp_path.rglob("*.safetensors")] == ["round_000006"]
    for number in (7, 8):
        memory.store(number, record(number))
    assert list(state) == ["run/3/7", "run/3/8"] and len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_a_damaged_file_is_named(tmp_path):
    memory = ClientMemory(RecordDict(), tmp_path, "run", 3, 2)
    memory.store(2, record(2))
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(RunFolderError, match="round_000002.safetensors: SafetensorError"):
        ClientMemory(RecordDict(), tmp_path, "run", 3, 2).load(2)
