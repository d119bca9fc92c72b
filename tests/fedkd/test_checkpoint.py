"""Checkpoints: what is written is read back, headers, atomic writing, and files that are refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fedkd.checkpoint import PREVIOUS, Checkpoint, read_checkpoint, read_header, write_checkpoint
from fedkd.errors import DivergedError, RunFolderError
from fedkd.files import SCHEMA_VERSION
from tests.small_runs import same_tensors

STATE = {
    "model": {"fc.weight": torch.randn(3, 4), "n": torch.tensor(7)},
    "generator_optimizer": {"exp_avg/fc.weight": torch.ones(2, dtype=torch.float64)},
}
CLIENT_STATES = {
    11: {"client": {"last_round": torch.tensor(3)}},
    2: {"local": {"bn.running_mean": torch.zeros(0)}, "client": {"last_round": torch.tensor(1)}},
}


def test_a_checkpoint_is_read_back_as_it_was_written(tmp_path):
    write_checkpoint(tmp_path, Checkpoint(3, "abc", STATE, CLIENT_STATES, 0.1 + 0.2), rounds=9)
    back = read_checkpoint(tmp_path)
    assert (back.round, back.config, back.simulated_seconds) == (3, "abc", 0.1 + 0.2) and list(back.client_states) == [2, 11]
    assert same_tensors(back.state, STATE) and same_tensors(dict(back.client_states), CLIENT_STATES)


def test_a_state_that_is_not_finite_does_not_replace_one_that_is(tmp_path):
    for part in ("server", "client"):
        write_checkpoint(tmp_path, Checkpoint(3, "abc", STATE, CLIENT_STATES), rounds=9)
        before = (tmp_path / "checkpoint.safetensors").read_bytes(), (tmp_path / "checkpoint.json").read_bytes()
        bad = {"model": {**STATE["model"], "fc.weight": torch.full((3, 4), float("inf"))}}
        poisoned = Checkpoint(4, "abc", bad, CLIENT_STATES) if part == "server" else Checkpoint(4, "abc", STATE, {11: bad})
        with pytest.raises(DivergedError, match=r"fc.weight' of the state must be finite.*the checkpoint of round 3 is kept"):
            write_checkpoint(tmp_path, poisoned, rounds=9)
        assert before == ((tmp_path / "checkpoint.safetensors").read_bytes(), (tmp_path / "checkpoint.json").read_bytes())


def test_a_state_may_hold_infinity_where_it_always_has(tmp_path):
    """Such as the mask of an attention layer."""
    state = {"model": {"mask": torch.tensor([0.0, float("-inf")])}}
    for number in (1, 2):
        write_checkpoint(tmp_path, Checkpoint(number, "abc", state, {}), rounds=9)
    assert read_checkpoint(tmp_path).round == 2 and same_tensors(read_checkpoint(tmp_path).state, state)


def test_the_header_describes_the_checkpoint(tmp_path):
    assert read_header(tmp_path) is None
    for number, finished in ((3, False), (9, True)):
        write_checkpoint(tmp_path, Checkpoint(number, "abc", STATE, {}), rounds=9)
        expected = {"round": number, "rounds": 9, "config": "abc", "series": "", "finished": finished, "simulated_seconds": 0.0}
        header = read_header(tmp_path)
        assert header == expected | {"schema": SCHEMA_VERSION, "sha256": header["sha256"]} and len(header["sha256"]) == 64
        assert header == json.loads((tmp_path / "checkpoint.json").read_text())


def test_a_run_is_finished_only_when_its_last_round_is(tmp_path):
    for number in range(1, 10):
        write_checkpoint(tmp_path, Checkpoint(number, "abc", STATE, {}), rounds=9)
        assert read_header(tmp_path)["finished"] is (number == 9)


def test_one_changed_bit_anywhere_in_a_checkpoint_is_found(tmp_path):
    write_checkpoint(tmp_path, Checkpoint(3, "abc", STATE, CLIENT_STATES), rounds=9)
    path = tmp_path / "checkpoint.safetensors"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(RunFolderError, match=r"output must hold (readable checkpoints|run folders of schema version)"):
            read_header(tmp_path)
    path.write_bytes(content)
    assert read_checkpoint(tmp_path).round == 3


def test_the_checkpoint_before_the_last_one_is_kept(tmp_path):
    for number in (1, 2, 3):
        write_checkpoint(tmp_path, Checkpoint(number, "abc", STATE, {}), rounds=9)
    assert read_checkpoint(tmp_path).round == 3 and read_checkpoint(tmp_path, PREVIOUS).round == 2
    write_checkpoint(tmp_path, Checkpoint(9, "abc", STATE, {}), rounds=9, name="best_checkpoint")
    assert read_checkpoint(tmp_path, PREVIOUS).round == 2, "a checkpoint of another name displaces none"
    names = {f"{name}.{suffix}" for name in ("checkpoint", "best_checkpoint") for suffix in ("safetensors", "json")}
    assert {path.name for path in tmp_path.iterdir()} == {*names, "previous_checkpoint.safetensors"}


def test_equal_states_give_equal_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_checkpoint(tmp_path / name, Checkpoint(3, "abc", STATE, CLIENT_STATES), rounds=9)
    assert (tmp_path / "a" / "checkpoint.safetensors").read_bytes() == (tmp_path / "b" / "checkpoint.safetensors").read_bytes()


def test_only_the_two_files_remain(tmp_path):
    (tmp_path / ".checkpoint.safetensors.tmp").write_bytes(b"of a killed run")
    write_checkpoint(tmp_path, Checkpoint(3, "abc", STATE, CLIENT_STATES), rounds=9)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.safetensors", "checkpoint.json"}


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"{}", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_corrupt_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"output must hold readable checkpoints, got .*checkpoint\.safetensors.*force=true"):
        read_header(tmp_path)


def test_a_checkpoint_of_another_schema_version_is_refused(tmp_path):
    header = json.dumps({"round": 3, "rounds": 9, "config": "abc", "finished": False, "schema": SCHEMA_VERSION - 1})
    save_file({"server|model:w": torch.ones(2)}, tmp_path / "checkpoint.safetensors", {"fedkd": header})
    versions = f"schema version {SCHEMA_VERSION}, got version {SCHEMA_VERSION - 1}"
    rule = f"^output must hold run folders of {versions} in .*another output folder, or with force=true$"
    for read in (read_header, read_checkpoint):
        with pytest.raises(RunFolderError, match=rule):
            read(tmp_path)


def test_a_folder_holds_checkpoints_of_several_names(tmp_path):
    for number, name in ((3, "checkpoint"), (2, "best")):
        write_checkpoint(tmp_path, Checkpoint(number, "abc", STATE, CLIENT_STATES), rounds=9, name=name)
    assert read_checkpoint(tmp_path).round == 3 and read_checkpoint(tmp_path, "best").round == read_header(tmp_path, "best")["round"] == 2
