"""The length of a path in parameter space."""

import itertools

import pytest

from fedkd.metrics.parameter_path import parameter_distance, parameter_path_length
from tests.fedkd.losses.distillation_cases import A, B, tensor


def test_the_path_length_sums_all_steps_relative_to_the_first_parameters():
    start = {"w": tensor(A), "b": tensor(B[0]).float()}
    assert parameter_path_length(0.0, start, start, start) == 0
    path = [{key: value * (1 + 0.25 * k) for key, value in start.items()} for k in range(6)]
    length = 0.0
    for before, after in itertools.pairwise(path):
        length = parameter_path_length(length, before, after, start)
    assert length == pytest.approx(5 * 0.25, rel=1e-6)
    double = {key: 2 * value for key, value in start.items()}
    first_step = parameter_path_length(0.0, start, double, start)
    assert parameter_path_length(first_step, double, start, start) == pytest.approx(2, rel=1e-12), "path, not distance"


def test_the_distance_is_over_all_parameters():
    before, after = {"w": tensor([[0, 3]]), "b": tensor([1])}, {"b": tensor([13]), "w": tensor([[4, 0]])}
    assert parameter_distance(before, after).item() == pytest.approx(13)


def test_parameters_of_different_networks_and_a_zero_start_are_refused():
    x = tensor(A)
    for other, names in (({"v": x}, r"\['v', 'w'\]"), ({"w": x[:1]}, r"\['w'\]")):
        with pytest.raises(ValueError, match=f"must be between parameters of the same names and shapes, got {names}"):
            parameter_distance({"w": x}, other)
    with pytest.raises(ValueError, match="parameter_path_length must begin at parameters that are not all zero"):
        parameter_path_length(0.0, {"w": x}, {"w": x}, {"w": 0 * x})
