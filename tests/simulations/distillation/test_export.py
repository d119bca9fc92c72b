"""Files of a finished distillation: program, networks, synthetic images, layer information."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from simulations.distillation.runner import run_distillation
from simulations.distillation.setup import make_setup
from tests.simulations.distillation.small_distillations import SYNTHETIC, network_rows, read_csv, small_distillation


def test_the_exported_program_returns_the_logits_of_the_student(output):
    folder = run_distillation(small_distillation("kd", output, "export=true", "seed=9"))
    program = torch.export.load(folder / "student.pt2").module()
    setup = make_setup(small_distillation("kd", output, "seed=9"))
    setup.learner.student.load_state_dict(load_file(folder / "student.safetensors"))
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(program(x), setup.learner.student.eval()(x).logits, atol=1e-5, rtol=1e-5)


def test_a_missing_export_is_added_to_a_finished_training(tmp_path, capsys):
    folder = run_distillation(small_distillation("none", tmp_path, "retrieval=true"))
    assert not (folder / "student.pt2").exists()
    scores = network_rows(folder)["student"]
    assert run_distillation(small_distillation("none", tmp_path, "export=true")) == folder
    assert "already finished, skipped" in capsys.readouterr().err
    assert (folder / "student.pt2").exists()
    again = network_rows(folder)["student"]
    assert {key: value for key, value in again.items() if key != "latency_ms"} == {k: v for k, v in scores.items() if k != "latency_ms"}
    assert 0 < float(again["precision_at_100"]) <= 1


def test_synthetic_images_are_saved_as_pixels_with_the_labels_of_the_teacher(output):
    folder = run_distillation(small_distillation("kd", output, *SYNTHETIC))
    with np.load(folder / "synthetic_images.npz") as file:
        images, labels, names = file["images"], file["labels"], file["class_names"]
    assert images.dtype == np.uint8 and images.shape == (len(labels), 1, 8, 8) and len(names) == 10
    assert 0 < len(labels) <= 32 and images.std() > 0, "two epochs of 16 images"
    assert (np.bincount(labels, minlength=10) <= 10).all() and (np.diff(labels) >= 0).all(), "at most ten of each class, in order"


@pytest.mark.parametrize("method", ["none", "kd"])
def test_layer_information_has_a_row_for_every_layer_of_every_network(method, output):
    folder = run_distillation(small_distillation(method, output, "layer_information_images=60", "seed=3"))
    rows = read_csv(folder / "flow.csv")
    networks = {"student"} if method == "none" else {"student", "teacher"}
    assert {row["network"] for row in rows} == networks and {row["epoch"] for row in rows} == {"1", "2"}
    assert [row["layer"] for row in rows if row["network"] == "student" and row["epoch"] == "2"] == ["1", "2", "3", "4"]
    assert all(np.isfinite(float(row["information"])) and np.isfinite(float(row["binned"])) for row in rows)
