"""The objective of a run: a mean of the last measured values of a column, never of the best."""

import math

import pytest

from fedkd.errors import ConfigError
from simulations.run_folder.metric_names import COLUMNS, DISTILLATION_COLUMNS
from simulations.run_folder.objective import check_objective, read_objective, worst_objective


def test_an_objective_is_the_mean_of_the_last_measured_values(tmp_path):
    values = [0.9, *(round / 20 for round in range(12))]
    lines = [f"{round},{value},\n{round}.5,,\n" for round, value in enumerate(values)]  # every second round is not evaluated
    (tmp_path / "metrics.csv").write_text("round,local_test_accuracy,global_test_accuracy\n" + "".join(lines))
    assert read_objective(tmp_path, "local_test_accuracy_final") == values[-1]
    assert read_objective(tmp_path, "local_test_accuracy_last10") == pytest.approx(sum(values[-10:]) / 10)
    assert math.isnan(read_objective(tmp_path, "global_test_accuracy_final")) and math.isnan(read_objective(tmp_path, "train_loss_final"))


def test_a_run_that_diverged_has_the_worst_objective():
    assert worst_objective("local_test_accuracy_last10") == 0.0 and worst_objective("train_loss_final") == math.inf


def test_only_columns_with_an_end_are_objectives():
    check_objective(None, COLUMNS)
    check_objective("test_accuracy_final", DISTILLATION_COLUMNS)
    for name in ("best5_rounds", "local_test_accuracy", "local_test_accuracy_best", "_final"):
        with pytest.raises(ConfigError, match=f"objective must be null, or a column .*, got '{name}'"):
            check_objective(name, COLUMNS)
