"""Captured steps. A capture needs a GPU; here a stand-in has the same contract.

The stand-in reads its inputs at fixed addresses and overwrites the result of the previous step, so that code that keeps a result without a
copy fails.
"""

from collections.abc import Callable

import pytest
import torch

import fedkd.training.loop
import fedkd.training.step_program
import fedkd.training.vectorized
from fedkd.training.step_program import Tree, rebuild_tree, tree_leaves
from tests.small_runs import TRAININGS, same_tensors, small_run, strategy_overrides

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))]


def overwriting_capture(work: Callable[[], Tree], device: torch.device) -> tuple[Callable[[], None], Tree]:
    """A stand-in for :func:`fedkd.training.step_program.capture` without a GPU."""
    result = rebuild_tree(form := work(), iter([tensor.clone() for tensor in tree_leaves(form)]))

    def launch() -> None:
        for target, tensor in zip(tree_leaves(result), tree_leaves(work()), strict=True):
            target.copy_(tensor)

    return launch, result


@pytest.fixture
def captured(monkeypatch):
    """All steps are captured, and numbers of clients are padded to multiples of three."""
    monkeypatch.setattr(fedkd.training.step_program, "capture", overwriting_capture)
    monkeypatch.setattr(fedkd.training.step_program, "can_capture", lambda static: bool(static))
    monkeypatch.setattr(fedkd.training.vectorized, "padded_number", lambda number, device: -(-number // 3) * 3)
    fedkd.training.loop._programs.clear()
    small_run.cache_clear()
    yield
    fedkd.training.loop._programs.clear()
    small_run.cache_clear()


SETTINGS = ("precision=float64", "rounds=2", "local_steps=3", "optimizer.momentum=0.9", "clients_per_vmap=2")


@pytest.mark.parametrize("name", TRAININGS)
def test_captured_rounds_equal_plain_rounds(name, request):
    plain = small_run(f"strategy={name}", *SETTINGS, *strategy_overrides(name))
    request.getfixturevalue("captured")
    captured = small_run(f"strategy={name}", *SETTINGS, *strategy_overrides(name))
    for part, tensors in plain.state.items():
        for key, value in tensors.items():
            torch.testing.assert_close(captured.state[part][key], value, rtol=1e-11, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")
    assert plain.client_states.keys() == captured.client_states.keys()


def test_sequential_clients_have_the_same_bits_with_capture(request):
    plain = small_run("strategy=fedgen", "rounds=2", *strategy_overrides("fedgen"))
    request.getfixturevalue("captured")
    captured = small_run("strategy=fedgen", "rounds=2", *strategy_overrides("fedgen"))
    assert same_tensors(plain.state, captured.state) and same_tensors(plain.client_states, captured.client_states)


def test_padding_does_not_change_the_clients(captured):
    ran = small_run(
        "strategy=fedavg",
        "clients_per_vmap=4",
        "clients_per_round=4",
        "num_clients=8",
        "local_steps=null",
        "local_epochs=1",
        "drop_last=true",
    )
    assert len(ran.client_states) >= 4 and all(torch.isfinite(t).all() for t in ran.state["model"].values())


@pytest.mark.parametrize("device", DEVICES[1:])
def test_rounds_on_a_gpu_equal_rounds_on_the_cpu(device):
    on_cpu = small_run("strategy=fedgen", *SETTINGS, *strategy_overrides("fedgen"))
    on_gpu = small_run("strategy=fedgen", *SETTINGS, *strategy_overrides("fedgen"), f"device={device}")
    for key, value in on_cpu.state["model"].items():
        torch.testing.assert_close(on_gpu.state["model"][key].cpu(), value, rtol=1e-8, atol=1e-10)
