"""States of clients on disk: a file for each client whose state has changed, two complete checkpoints at any moment, and damage."""

import os
from pathlib import Path

import pytest
import torch

from fedkd import client_states
from fedkd.checkpoint import LAST, PREVIOUS, Checkpoint, read_checkpoint, write_checkpoint
from fedkd.client_states import ClientStates, check_files, existing_files, remove_unused
from fedkd.errors import DivergedError, RunFolderError
from tests.small_runs import same_tensors


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True)
def files(monkeypatch):
    """All states are in files, however small."""
    monkeypatch.setattr(client_states, "INLINE_BYTES", 0)


def state(value: float, size: int = 3) -> dict:
    """The state of a client."""
    counts = {"last_round": torch.tensor(int(value)), "never": torch.tensor(False)}
    return {"control": {"w": torch.full((2, size), value), "b": torch.full((1,), value, dtype=torch.float64)}, "client": counts}


def infinite_state() -> dict:
    """A state that is not finite."""
    return {**state(1.0), "control": {"b": torch.tensor([float("inf")])}}


def states_after(server_round: int) -> dict[int, dict]:
    """The states after a round in which clients ``server_round - 1`` and ``server_round`` have trained, and before it the others."""
    return {client: state(min(client + 1.0, server_round)) for client in range(server_round + 1)}


def rounds(folder: Path, last: int, first: int = 1) -> ClientStates:
    """Write the checkpoints of the rounds ``first``..``last`` as a run does: each round puts the states that have changed."""
    states = ClientStates.of(read_checkpoint(folder).client_states if first > 1 else {})
    for number in range(first, last + 1):
        for client in (number - 1, number):
            states.put(client, dict(ClientStates.of({client: states_after(number)[client]}).arrays(client)))
        write_checkpoint(folder, Checkpoint(number, "abc", {"model": {"w": torch.tensor(number)}}, states.copy()), rounds=99)
    return states


def names(folder: Path) -> set[str]:
    """The names of the clients' files."""
    return {file.name for file in existing_files(folder)}


def sound(folder: Path, name: str) -> int:
    """The round of a checkpoint, all of whose states are those after its round."""
    found = read_checkpoint(folder, name)
    check_files(folder, folder / f"{name}.safetensors")
    assert same_tensors(dict(found.client_states), states_after(found.round))
    return found.round


def test_states_in_files_are_read_back_bit_for_bit_and_in_order(tmp_path):
    written = {230: state(1.0), 7: state(float("-0.0")), 99: state(3.0, size=0)}
    write_checkpoint(tmp_path, Checkpoint(3, "abc", {"model": {}}, written), rounds=9)
    back = read_checkpoint(tmp_path).client_states
    assert list(back) == [7, 99, 230] and 8 not in back and same_tensors(dict(back), written)
    assert back[7]["control"]["w"].signbit().all() and {path.name for path in (tmp_path / "client_states").iterdir()} == {"000", "002"}


def test_a_checkpoint_writes_the_states_that_have_changed_and_no_others(tmp_path):
    rounds(tmp_path, 4)
    before = {file.name: file.stat().st_mtime_ns for file in existing_files(tmp_path)}
    size = (tmp_path / "checkpoint.safetensors").stat().st_size
    rounds(tmp_path, 5, first=5)
    after = {file.name: file.stat().st_mtime_ns for file in existing_files(tmp_path)}
    new = {name for name, time in after.items() if before.get(name) != time}
    assert {name.partition("-")[0] for name in new} == {"4", "5"}
    assert (tmp_path / "checkpoint.safetensors").stat().st_size - size < 100, "the checkpoint grows by a row of the table alone"


def test_files_that_the_two_checkpoints_do_not_need_are_removed(tmp_path):
    rounds(tmp_path, 3)
    write_checkpoint(tmp_path, read_checkpoint(tmp_path), rounds=99, name="best_checkpoint")
    best = names(tmp_path)
    rounds(tmp_path, 8, first=4)
    assert [sound(tmp_path, name) for name in (LAST, PREVIOUS, "best_checkpoint")] == [8, 7, 3]
    for suffix in ("safetensors", "json"):
        (tmp_path / f"best_checkpoint.{suffix}").unlink()
    (tmp_path / "client_states" / "000" / ".7-0.safetensors.tmp").write_bytes(b"of a killed run")
    remove_unused(tmp_path)
    assert [sound(tmp_path, name) for name in (LAST, PREVIOUS)] == [8, 7] and not best <= names(tmp_path) and len(names(tmp_path)) == 10


def test_a_kill_at_any_step_leaves_two_complete_checkpoints(tmp_path, monkeypatch):
    """Each call that changes the disk is the last one, in turn. The run that goes on ends with the files of an uninterrupted one."""
    whole = tmp_path / "whole"
    whole.mkdir()
    rounds(whole, 5)
    steps, stop = 0, 10**6
    real = {name: getattr(os, name) for name in ("fsync", "replace", "link", "unlink")}

    def counted(name):
        def call(*arguments, **keywords):
            nonlocal steps
            steps += 1
            if steps > stop:
                raise Killed
            return real[name](*arguments, **keywords)

        return call

    for name in real:
        monkeypatch.setattr(os, name, counted(name))
    number, done = 0, False
    while not done:
        folder = tmp_path / str(number)
        folder.mkdir()
        stop = 10**6
        rounds(folder, 3)
        steps, stop = 0, number
        try:
            rounds(folder, 4, first=4)
            done = True
        except Killed:
            pass
        stop = 10**6
        last = sound(folder, LAST)
        assert last in (3, 4) and sound(folder, PREVIOUS) in (last - 1, last), f"after {number} steps"
        rounds(folder, 5, first=last + 1)
        assert names(folder) == names(whole)
        assert (folder / "checkpoint.safetensors").read_bytes() == (whole / "checkpoint.safetensors").read_bytes()
        number += 1
    assert number > 10


@pytest.mark.parametrize("how", ["missing", "one bit", "truncated", "empty"])
def test_a_damaged_file_is_found_at_the_start_where_going_back_helps_and_else_when_it_is_read(tmp_path, how):
    rounds(tmp_path, 5)
    both = set.intersection(*(set(client_states.referenced(tmp_path / f"{name}.safetensors").items()) for name in (LAST, PREVIOUS)))
    for client, digest in client_states.referenced(tmp_path / f"{LAST}.safetensors").items():
        path = client_states.file_path(tmp_path, client, digest)
        content = path.read_bytes()
        if how == "missing":
            path.unlink()
        else:
            flipped = content[:-1] + bytes([content[-1] ^ 1])
            path.write_bytes({"one bit": flipped, "truncated": content[:-3], "empty": b""}[how])
        states = read_checkpoint(tmp_path).client_states
        with pytest.raises(RunFolderError, match=rf"^output must hold the clients' states .*{path.name}: .*force=true starts again$"):
            states[client]
        try:
            check_files(tmp_path, tmp_path / f"{LAST}.safetensors", tmp_path / f"{PREVIOUS}.safetensors")
            found = False
        except RunFolderError:
            found = True
        assert found == (how == "missing" or (client, digest) not in both), client
        path.write_bytes(content)


def test_a_state_in_a_file_that_is_not_finite_does_not_replace_one_that_is(tmp_path):
    states = rounds(tmp_path, 3)
    poisoned = ClientStates.of({1: infinite_state()}).arrays(1)
    states.put(1, poisoned)
    with pytest.raises(DivergedError, match=r"'1\|control:b' of the state must be finite.*checkpoint of round 3 is kept"):
        write_checkpoint(tmp_path, Checkpoint(4, "abc", {}, states), rounds=9)
    assert sound(tmp_path, LAST) == 3


def test_a_state_in_a_file_may_hold_infinity_where_it_always_has(tmp_path):
    states = ClientStates.of({1: infinite_state(), 2: state(1.0)})
    for number in (1, 2):
        write_checkpoint(tmp_path, Checkpoint(number, "abc", {}, states), rounds=9)
        states = ClientStates.of(read_checkpoint(tmp_path).client_states)
        states.put(2, dict(ClientStates.of({2: state(2.0)}).arrays(2)))
    assert read_checkpoint(tmp_path).round == 2


def test_another_folder_takes_the_files_over_and_does_not_depend_on_the_first(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    rounds(one, 4)
    write_checkpoint(two, read_checkpoint(one), rounds=99)
    assert names(one) >= names(two)
    rounds(one, 7, first=5)
    assert sound(two, LAST) == 4 and sound(one, LAST) == 7
    rounds(two, 7, first=5)
    assert sound(two, LAST) == 7 and (one / "checkpoint.safetensors").read_bytes() == (two / "checkpoint.safetensors").read_bytes()


def test_small_states_are_inside_the_checkpoint_and_large_ones_move_to_files(tmp_path, monkeypatch):
    monkeypatch.setattr(client_states, "INLINE_BYTES", 150)
    rounds(tmp_path, 1)
    assert sound(tmp_path, LAST) == 1 and not (tmp_path / "client_states").exists()
    rounds(tmp_path, 5, first=2)
    assert sound(tmp_path, LAST) == 5 and names(tmp_path)
