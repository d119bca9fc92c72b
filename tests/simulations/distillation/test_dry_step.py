"""Every training of a distillation is tried for one step before the first one, and what cannot work is refused in one line."""

import numpy as np
import pytest
import torch

from fedkd.distillation.methods.base import StudentModule
from fedkd.distillation.methods.online_ensemble import Members
from fedkd.errors import ConfigError
from fedkd.models.generators import ImageConv
from simulations.config import compose
from simulations.distillation import runner
from simulations.distillation.dry_step import check_distillation_step
from simulations.distillation.folder import read_rows, read_trained_tensors
from simulations.distillation.runner import run_distillation
from simulations.distillation.setup import make_setup
from simulations.federation.runner import run_federation
from tests.simulations.distillation.small_distillations import METHODS, SMALL_FEDERATION, SYNTHETIC, small_distillation
from tests.small_runs import same_tensors


def network(part: str, name: str) -> tuple[str, ...]:
    """Overrides that choose a network of :mod:`tests.own_networks`."""
    return (f"~{part}", f"+{part}._target_=tests.own_networks.{name}", f"+{part}._partial_=true")


class RaisingGenerator(ImageConv):
    """A generator that fails where it is trained."""

    def forward(self, *inputs):
        """Images, in eval mode."""
        if torch.is_grad_enabled():
            raise KeyError("an own error\nof two lines")
        return super().forward(*inputs)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_every_method_changes_no_random_stream_and_no_tensor(method, tmp_path):
    setup = make_setup(small_distillation(method, tmp_path, "precision=float64", "retrieval=true", "layer_information_images=9"))
    states, initial = (torch.get_rng_state(), np.random.get_state()[1].copy()), {k: v.clone() for k, v in setup.initial_tensors.items()}
    check_distillation_step(setup)
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()
    assert same_tensors(setup.initial_tensors, initial) and not list(tmp_path.iterdir())


def test_a_training_with_a_dry_step_equals_one_without_bit_for_bit(tmp_path):
    first, second = (
        run_distillation(small_distillation("dkd", tmp_path / str(i), *SYNTHETIC), check=check) for i, check in enumerate((None, list))
    )
    assert first.name == second.name and same_tensors(read_trained_tensors(first), read_trained_tensors(second))


RAISES = r"raises KeyError: .an own error"
REFUSED = {
    "student": (network("student", "raising"), rf"^student must be a network that distiller kd can train, got .*, which {RAISES}"),
    "teacher": (network("teacher", "raising"), rf"^teacher must be a network that distiller none can train, got .*, which {RAISES}"),
    "evaluated": (
        network("student", "raising_in_evaluation"),
        r"^student must be a network that can be evaluated after a step of .* KeyErr",
    ),
    "exported": (
        (*network("student", "untraceable"), "export=true"),
        r"^export must be false for a network that torch.export .* got True$",
    ),
    "teacher exported": ((*network("teacher", "untraceable"), "export=true"), r"^export must be false for a network that torch.export"),
    "generator": (
        (*SYNTHETIC, f"image_source.generator._target_={__name__}.RaisingGenerator"),
        rf"^student must be a network that distiller kd can train, .* {RAISES}",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_before_a_teacher_is_trained(name, tmp_path):
    overrides, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message) as refused:
        run_distillation(small_distillation("kd", tmp_path, *overrides))
    assert "\n" not in str(refused.value) and not list(tmp_path.rglob("*.safetensors"))


def test_a_network_without_program_trains_where_no_program_is_written(tmp_path):
    check_distillation_step(make_setup(small_distillation("kd", tmp_path, *network("student", "untraceable"))))


def test_modules_outside_the_module_tree_are_tried_with_the_type_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Members, "_apply", StudentModule._apply)  # the stems of the narrower members stay in float32
    with pytest.raises(ConfigError, match=r"^student must be a network that can be evaluated after a step of distiller online_ensemble"):
        run_distillation(small_distillation("online_ensemble", tmp_path, "precision=float64"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_distillation_after_a_run_is_tried_before_the_first_round(tmp_path, monkeypatch):
    monkeypatch.setattr("fedkd.distillation.methods.kd.KD.terms", lambda *_: {}["an own error"])
    config = compose([*SMALL_FEDERATION, "rounds=1", "strategy=fedavg", "distill=kd", f"output={tmp_path}"])
    with pytest.raises(ConfigError, match=rf"^distill_overrides\.student must be a network that distiller kd can train, got .* {RAISES}"):
        run_federation(config)
    assert not list(tmp_path.rglob("metrics.csv"))


@pytest.mark.parametrize("function", ["evaluate_networks", "layer_information"])
def test_an_evaluation_that_fails_keeps_the_epoch(function, tmp_path, monkeypatch):
    words = ("epochs=3", "checkpoint_every=3", "layer_information_images=9")
    whole = run_distillation(small_distillation("none", tmp_path / "whole", *words))
    original, calls = getattr(runner, function), []

    def fail_once(*arguments):
        calls.append(arguments)
        if len(calls) == (3 if function == "evaluate_networks" else 2):  # in epoch 2; epoch 0 is evaluated too
            raise RuntimeError("no memory")
        return original(*arguments)

    monkeypatch.setattr(runner, function, fail_once)
    with pytest.raises(RuntimeError, match="no memory"):
        run_distillation(small_distillation("none", tmp_path / "failing", *words))
    folder = tmp_path / "failing" / "distilled" / whole.name
    assert int(read_rows(folder)[-1]["epoch"]) == 2
    assert same_tensors(
        read_trained_tensors(run_distillation(small_distillation("none", tmp_path / "failing", *words))), read_trained_tensors(whole)
    )
