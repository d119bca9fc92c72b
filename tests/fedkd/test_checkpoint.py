"""The state on disk."""

import json

import pytest
import torch

from fedkd.checkpoint import Checkpoint, read_checkpoint, read_header, write_checkpoint
from fedkd.files import write_atomically
from tests.small_runs import same_tensors

STATE = {
    "model": {"fc.weight": torch.randn(3, 4), "n": torch.tensor(7)},
    "generator_optimizer": {"exp_avg/fc.weight": torch.ones(2, dtype=torch.float64)},
}
MEMORIES = {
    11: {"client": {"last_round": torch.tensor(3)}},
    2: {"local": {"bn.running_mean": torch.zeros(0)}, "client": {"last_round": torch.tensor(1)}},
}


def test_round_trip(tmp_path):
    write_checkpoint(tmp_path, Checkpoint(3, "abc", STATE, MEMORIES, 0.1 + 0.2), rounds=9)
    back = read_checkpoint(tmp_path)
    assert (back.round, back.config, back.simulated_seconds) == (3, "abc", 0.1 + 0.2) and list(back.client_states) == [2, 11]
    assert same_tensors(back.state, STATE) and same_tensors(dict(back.client_states), MEMORIES)


def test_the_header_says_what_it_is(tmp_path):
    assert read_header(tmp_path) is None
    for number, finished in ((3, False), (9, True)):
        write_checkpoint(tmp_path, Checkpoint(number, "abc", STATE, {}), rounds=9)
        expected = {"round": number, "rounds": 9, "config": "abc", "finished": finished, "simulated_seconds": 0.0}
        assert read_header(tmp_path) == expected == json.loads((tmp_path / "checkpoint.json").read_text())


def test_equal_states_give_equal_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_checkpoint(tmp_path / name, Checkpoint(3, "abc", STATE, MEMORIES), rounds=9)
    assert (tmp_path / "a" / "checkpoint.safetensors").read_bytes() == (tmp_path / "b" / "checkpoint.safetensors").read_bytes()


def test_nothing_but_the_two_files_is_left(tmp_path):
    (tmp_path / ".checkpoint.safetensors.tmp").write_bytes(b"of a killed run")
    write_checkpoint(tmp_path, Checkpoint(3, "abc", STATE, MEMORIES), rounds=9)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.safetensors", "checkpoint.json"}


def test_writing_that_fails_leaves_what_was_there(tmp_path):
    write_atomically(tmp_path / "file", b"before")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "file", "not bytes")
    assert (tmp_path / "file").read_bytes() == b"before"


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"{}", b"\x02\0\0\0\0\0\0\0{}"])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"output must hold readable checkpoints, got .*checkpoint\.safetensors.*remove"):
        read_header(tmp_path)
