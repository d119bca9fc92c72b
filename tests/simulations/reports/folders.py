"""Run folders with known numbers, as the tests of reports write them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from scipy.stats import t as student

from fedkd.files import SCHEMA_VERSION
from simulations.run_folder.metric_names import GENERATOR_COLUMNS, LATENT_COLUMNS

COUNTS = np.array([[5, 0, 3], [0, 20, 1]])
"""Training examples by client and class in every run folder."""

NUM_CLIENTS, NUM_CLASSES, NUM_ROUNDS = 12, 3, 12
"""Sizes of a run of :func:`write_whole_run`."""

CHOICES = {"data": "digits", "partition": "dirichlet", "model": "mlp", "optimizer": "sgd"}
"""Options that every run chooses."""

CLOCK = {"speed_sigma": 0.5}
"""Keys of ``systems`` that configure the simulated clock."""


def write_run(
    folder: Path,
    strategy: str = "fedavg",
    seed: int = 0,
    accuracy: Sequence[float | None] = (0.5, 0.6),
    every: int = 1,
    finished: bool = True,
    alpha: float = 0.1,
    global_model: bool = True,
    parameters: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A run folder with these global test accuracies in its evaluated rounds. Local test accuracies are 0.1 higher."""
    rounds = len(accuracy)
    folder.mkdir(parents=True)
    target = {"fedavg": "strategies.fedavg.FedAvg", "fedgen": "strategies.fedgen.FedGen"}.get(strategy, f"strategies.{strategy}.X")
    defaults = {
        "name": "digits",
        "seed": seed,
        "rounds": rounds,
        "num_clients": 2,
        "output": str(folder),
        "local_steps": 20,
        "batch_size": 32,
        "strategy": {"_target_": target, **(parameters or {})},
        "data": {"_target_": "fedkd.data.digits.Digits", "root": str(folder)},
        "partition": {"_target_": "fedkd.partition.dirichlet.Dirichlet", "alpha": alpha},
        "engine": {"_target_": "x.Local"},
        "choices": {"strategy": strategy, "engine": f"engine{seed}", **CHOICES},
    }
    OmegaConf.save(OmegaConf.merge(defaults, config), folder / "config.yaml")
    values = pd.Series(accuracy, dtype=float).where([r % every == 0 for r in range(1, rounds + 1)])
    pd.DataFrame(
        {
            "round": range(1, rounds + 1),
            "global_test_accuracy": values if global_model else None,
            "global_test_loss": 1.0,
            "local_test_accuracy": (values + 0.1).round(10),
            "local_test_accuracy_bottom10": (values / 2),
            "local_test_accuracy_std": 0.1,
            "uplink_bytes": 1000,
            "downlink_bytes": 2000,
            "local_training_seconds": [9.0] + [1.0 + seed] * (rounds - 1),
            "server_seconds": 0.5,
            "evaluation_seconds": 0.25,
            "num_failures": 0,
        }
    ).to_csv(folder / "metrics.csv", index=False)
    np.savez(folder / "partition.npz", counts=COUNTS, test_counts=COUNTS)
    write_state(folder, rounds if finished else 1, rounds)
    return folder


def write_state(folder: Path, done: int, rounds: int) -> None:
    """``checkpoint.json`` of a run that has finished ``done`` of its rounds."""
    state = {"round": done, "rounds": rounds, "config": "0" * 12, "finished": done == rounds, "schema": SCHEMA_VERSION}
    (folder / "checkpoint.json").write_text(json.dumps(state))


def write_whole_run(folder: Path, strategy: str, seed: int, gain: float = 0.0, **options: Any) -> Path:
    """A run folder with a simulated clock, accuracies by class, and clients."""
    rng = np.random.default_rng([seed, int(1000 * gain)])
    accuracy = np.sort(rng.uniform(0.3, 0.8, NUM_ROUNDS)) + gain
    write_run(folder, strategy, seed, accuracy.round(4).tolist(), **{"systems": CLOCK, **options})
    table = pd.read_csv(folder / "metrics.csv").assign(simulated_seconds=np.arange(1, NUM_ROUNDS + 1) * (2.0 + seed))
    for label in range(NUM_CLASSES):
        table[f"global_test_accuracy_class_{label:02d}"] = rng.uniform(0, 1, NUM_ROUNDS)
    table[["local_training_seconds", "server_seconds", "evaluation_seconds"]] = rng.uniform(0, 1, (NUM_ROUNDS, 3))
    table.to_csv(folder / "metrics.csv", index=False)
    rows = [(r, k, "net", rng.uniform(0, 1) if k else None, 10 * k) for r in range(1, NUM_ROUNDS + 1) for k in range(NUM_CLIENTS)]
    columns = ["round", "client_id", "architecture", "local_test_accuracy", "num_test_examples"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "clients.csv", index=False)
    return folder


def write_generator_run(folder: Path, seed: int = 0, classes: int = 3, every: int = 1, **options: Any) -> pd.DataFrame:
    """A run folder with generator diagnostics of random numbers. Returns the rows of ``generator.csv``."""
    write_run(folder, strategy="fedgen", seed=seed, accuracy=(0.5, 0.6, 0.7, 0.8), **options)
    rng, rounds = np.random.default_rng(seed), range(every, 5, every)
    rows = [{"round": r, "class": c, **{name: rng.random() for name in GENERATOR_COLUMNS[2:]}} for r in rounds for c in range(classes)]
    table = pd.DataFrame(rows).assign(num_generated=100, num_clients_without_class=lambda frame: frame["class"])
    table.loc[table["num_clients_without_class"] == 0, "label_accuracy_clients_without_class"] = np.nan
    table.to_csv(folder / "generator.csv", index=False)
    labels = [(r, c, g) for r in rounds for g in (0, 1) for c in range(classes) for _ in range(4)]
    points = [dict(zip(LATENT_COLUMNS, (*label, *rng.normal(size=4)), strict=True)) for label in labels]
    pd.DataFrame(points).to_csv(folder / "latents.csv", index=False)
    return table


def half_width(values: Sequence[float]) -> float:
    """The half-width of the 95 % t interval, by SciPy's distribution object."""
    low, high = student.interval(0.95, len(values) - 1, loc=np.mean(values), scale=np.std(values, ddof=1) / len(values) ** 0.5)
    return (high - low) / 2


def results_of(folder: Path) -> pd.DataFrame:
    """``results.csv`` of the report beside the runs in ``folder``, by label."""
    return pd.read_csv(folder / "report" / "results.csv").set_index("label")
