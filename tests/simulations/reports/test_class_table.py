"""The accuracies by class: names of classes, many classes, and classes that the test set lacks."""

import numpy as np
import pandas as pd

from simulations.reports.builder import collect
from simulations.reports.tables.clients import class_accuracies, classes
from simulations.reports.tables.table import NumberFormat
from simulations.run_folder.reader import find_run_folders
from tests.simulations.reports.folders import write_run


def groups_with(tmp_path, accuracies, names=None):
    """The groups of one run whose global model has these accuracies by class."""
    folder = write_run(tmp_path / "run")
    metrics = pd.read_csv(folder / "metrics.csv")
    columns = {f"global_test_accuracy_class_{label:02d}": [value] * len(metrics) for label, value in enumerate(accuracies)}
    pd.concat([metrics, pd.DataFrame(columns)], axis=1).to_csv(folder / "metrics.csv", index=False)
    if names:
        rows = "".join(f"{label},{name}\n" for label, name in enumerate(names))
        (folder / "classes.csv").write_text(f"class,name\n{rows}")
    return collect(find_run_folders([tmp_path]))[0]


def titles(table):
    return [column.title for column in table.columns]


def test_columns_have_the_names_of_the_classes(tmp_path):
    assert titles(classes(groups_with(tmp_path / "a", [0.5, 0.6], ["cat", "eel"]), NumberFormat()))[2:] == ["cat", "eel"]
    assert titles(classes(groups_with(tmp_path / "b", [0.5, 0.6], ["cat", "cat"]), NumberFormat()))[2:] == ["0", "1"]
    assert titles(classes(groups_with(tmp_path / "c", [0.5, 0.6]), NumberFormat()))[2:] == ["0", "1"]


def test_more_than_a_hundred_classes_are_in_order(tmp_path):
    accuracies = np.linspace(0.1, 0.9, 120)
    run = groups_with(tmp_path, accuracies)[0].runs[0]
    np.testing.assert_allclose(class_accuracies(run), accuracies)


def test_a_class_that_the_test_set_lacks_does_not_hide_the_others(tmp_path):
    table = classes(groups_with(tmp_path, [np.nan, *[0.5] * 19]), NumberFormat())
    cells = {column.title: column.cells[0].text for column in table.columns[2:]}
    assert cells == dict.fromkeys(("lowest", "lowest tenth", "median", "highest"), "50.0")
