"""Tables beside the headlines, where runs have more to tell: what the server's own training did, and how each network fared."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from simulations.groups import Group
from simulations.look import percent

FURTHER = {"accuracy_average": "mean of models", "accuracy": "after the server's training", "accuracy_ensemble": "ensemble"}
SERVER_LEGEND = """Balanced test, mean of the last ten evaluated rounds: the mean of the clients' models, what the server makes of it, and the ensemble
from which it learns."""
NETWORK_LEGEND = """Own labels, mean of the last ten evaluated rounds: all test examples of the clients with that network."""


def server_side(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Columns of accuracy before and after the server's own training; empty where no run has any."""
    told = [one for one in groups if any(name in one.runs[0].metrics for name in FURTHER if name != "accuracy")]
    columns: dict[str, list[str]] = {"strategy": [one.label for one in told], "n": [str(len(one.runs)) for one in told]}
    for name, title in FURTHER.items():
        columns[title] = [percent([last_ten(run.metrics, name) for run in one.runs]) for one in told]
    return columns if told else {}


def last_ten(metrics: pd.DataFrame, name: str) -> float:
    """The mean of the last ten evaluated rounds; NaN without any."""
    return metrics[name].dropna().tail(10).mean() if name in metrics else np.nan


def by_network(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Columns of the accuracy on own labels by the clients' networks; empty where all clients of all runs have one."""
    found = {one: [networks(run.folder) for run in one.runs] for one in groups}
    names = sorted({name for runs in found.values() for run in runs for name in run})
    mixed = [one for one, runs in found.items() if any(len(run) > 1 for run in runs)]
    columns: dict[str, list[str]] = {"strategy": [one.label for one in mixed], "n": [str(len(one.runs)) for one in mixed]}
    for name in names:
        columns[name] = [percent([run.get(name, np.nan) for run in found[one]]) for one in mixed]
    return columns if mixed else {}


def networks(folder: Path) -> dict[str, float]:
    """Accuracy on own labels by network, over the last ten evaluated rounds; nothing where the run does not say."""
    path = folder / "clients.csv"
    rows = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    if not {"architecture", "num_test_examples"} <= set(rows):
        return {}
    rows = rows[rows["accuracy_own_labels"].notna()]
    rows = rows[rows["round"].isin(sorted(rows["round"].unique())[-10:])]
    correct = rows["accuracy_own_labels"] * rows["num_test_examples"]
    sums = pd.DataFrame({"correct": correct, "n": rows["num_test_examples"]}).groupby(rows["architecture"]).sum()
    return (sums["correct"] / sums["n"]).to_dict()
