"""Steps at fixed places, as a CUDA graph has them. The capture itself needs a GPU: a stand-in keeps its contract here, which is that
a step reads from places of its own and overwrites the results of the one before, so that whoever keeps one without a copy is found out.
"""

from collections.abc import Callable

import pytest
import torch

import fedkd.training.loop
import fedkd.training.step_program
import fedkd.training.vectorized
from fedkd.training.step_program import Tree, rebuild_tree, tree_leaves
from tests.small_runs import STRATEGIES, same_tensors, small_run, strategy_overrides

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))]


def overwriting(work: Callable[[], Tree], device: torch.device) -> tuple[Callable[[], None], Tree]:
    """What :func:`fedkd.training.step_program.capture` gives, without a GPU."""
    result = rebuild_tree(form := work(), iter([tensor.clone() for tensor in tree_leaves(form)]))

    def again() -> None:
        for place, tensor in zip(tree_leaves(result), tree_leaves(work()), strict=True):
            place.copy_(tensor)

    return again, result


@pytest.fixture
def captured(monkeypatch):
    """All steps are captured, and cohorts padded to multiples of three."""
    monkeypatch.setattr(fedkd.training.step_program, "capture", overwriting)
    monkeypatch.setattr(fedkd.training.step_program, "can_capture", lambda static: bool(static))
    monkeypatch.setattr(fedkd.training.vectorized, "padded_number", lambda number, device: -(-number // 3) * 3)
    fedkd.training.loop._programs.clear()
    small_run.cache_clear()
    yield
    fedkd.training.loop._programs.clear()
    small_run.cache_clear()


SETTINGS = ("precision=float64", "rounds=2", "optimizer.momentum=0.9", "clients_per_vmap=2")


@pytest.mark.parametrize("name", STRATEGIES)
def test_captured_rounds_agree(name, request):
    plain = small_run(f"strategy={name}", *SETTINGS, *strategy_overrides(name))
    request.getfixturevalue("captured")
    captured = small_run(f"strategy={name}", *SETTINGS, *strategy_overrides(name))
    for part, tensors in plain.state.items():
        for key, value in tensors.items():
            torch.testing.assert_close(captured.state[part][key], value, rtol=1e-11, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")
    assert plain.client_states.keys() == captured.client_states.keys()


def test_one_by_one_the_bits_are_the_same(request):
    plain = small_run("strategy=fedgen", "rounds=2", *strategy_overrides("fedgen"))
    request.getfixturevalue("captured")
    captured = small_run("strategy=fedgen", "rounds=2", *strategy_overrides("fedgen"))
    assert same_tensors(plain.state, captured.state) and same_tensors(plain.client_states, captured.client_states)


def test_a_padded_cohort_gives_back_its_own_clients_alone(captured):
    ran = small_run("strategy=fedavg", "clients_per_vmap=4", "clients_per_round=4", "num_clients=8", "local_steps=null", "local_epochs=1")
    assert len(ran.client_states) >= 4 and all(torch.isfinite(t).all() for t in ran.state["model"].values())


@pytest.mark.parametrize("device", DEVICES[1:])
def test_on_a_gpu_rounds_agree_with_those_on_the_cpu(device):
    on_cpu = small_run("strategy=fedgen", *SETTINGS, *strategy_overrides("fedgen"))
    on_gpu = small_run("strategy=fedgen", *SETTINGS, *strategy_overrides("fedgen"), f"device={device}")
    for key, value in on_cpu.state["model"].items():
        torch.testing.assert_close(on_gpu.state["model"][key].cpu(), value, rtol=1e-8, atol=1e-10)
