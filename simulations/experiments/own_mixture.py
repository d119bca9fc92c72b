"""Accuracy on each client's own mixture of labels: ``python -m simulations.experiments.own_mixture FOLDER`` prints it for finished runs.

The local test sets of most partitions hold every class of a client equally often. Here the accuracy on a class counts as often as the class
occurs in the client's training examples. It is that of the last round, of the same predictions as ``local_test_accuracy``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from fedkd.checkpoint import read_checkpoint
from fedkd.errors import FedkdError, require
from fedkd.strategy import Strategy
from simulations.federation.trained_model import read_config
from simulations.run_folder.listing import find_runs
from simulations.setup.simulation import build_simulation


def own_mixture_accuracy(folder: Path) -> float:
    """``sum_kc n_kc accuracy_kc / sum_kc n_kc`` over clients k and those classes c that the local test set of k holds.

    n_kc is the number of training examples of class c at client k, and accuracy_kc the share of correct answers on that class.

    Args:
        folder: of a finished federated run whose data are on this machine.

    Raises:
        RunFolderError: the folder holds no checkpoint of a run.
        ConfigError: the run cannot be built here, or its strategy is one of Flower, whose clients cannot be tested alone.
    """
    config, last = read_config(folder), read_checkpoint(folder)
    simulation = build_simulation(OmegaConf.to_yaml(config, resolve=True))
    strategy = simulation.flower_strategy
    require(isinstance(strategy, Strategy), "strategy", "must be a strategy of fedkd", type(strategy).__name__)
    broadcast = {part: last.state[part] for part in simulation.strategy.broadcast_parts if part in last.state}
    weighted, weights, batch_size = 0.0, 0.0, config.evaluation.batch_size
    for number, train in enumerate(simulation.client_data.train):
        client = simulation.client(number, last.round, testing=True)
        score = simulation.strategy.evaluate(client, broadcast, last.client_states.get(number), last.round, batch_size)[""]
        total, correct = score.total.double(), score.correct.double()
        held = torch.bincount(train.y, minlength=len(total)).double() * (total > 0)
        weighted += float((held * correct / total.clamp(min=1)).sum())
        weights += float(held.sum())
    return weighted / weights if weights else float(np.nan)


def main(arguments: Sequence[str]) -> int:
    """Print a line for each finished run below the folder, as CSV."""
    if len(arguments) != 1:
        print("usage: python -m simulations.experiments.own_mixture FOLDER", file=sys.stderr)
        return 2
    print("strategy,seed,run,own_mixture_accuracy")
    try:
        for folder in find_runs(Path(arguments[0])):
            if not (folder / "checkpoint.safetensors").is_file() or read_checkpoint(folder).round < (config := read_config(folder)).rounds:
                continue
            name = config.choices.get("strategy", config.strategy["_target_"])
            print(f"{name},{config.seed},{folder.name},{own_mixture_accuracy(folder):.6f}", flush=True)
    except FedkdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
