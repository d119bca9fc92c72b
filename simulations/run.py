"""``python -m simulations.run strategy=fedgen partition.alpha=0.1``: one experiment, from configuration to run folder.

Add ``-m`` for sweeps: ``-m strategy=fedavg,fedgen seed=0,1,2``. A run that is finished is skipped, one that was interrupted
goes on from its last checkpoint. The last line on standard output is ``run: <folder>``; the exit code is 0 only when every
round was done under the failure policy.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hydra
from flwr.app import ArrayRecord, MetricRecord
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from fedkd import wire
from fedkd.aggregate import assemble, own_labels
from fedkd.config import build, check
from fedkd.rounds import ClientFailure, Round
from fedkd.strategy import Strategy
from fedkd.train import evaluate
from simulations.compat import quieten
from simulations.grids import ClientGrid
from simulations.progress import Progress, summarise
from simulations.record import Folder, client_rows, metrics_row
from simulations.world import World, world

CONF = Path(__file__).resolve().parents[1] / "conf"


def execute(config: DictConfig, make_grid: Callable[[int, str], ClientGrid] | None = None) -> Path:
    """Run the experiment that ``config`` describes, or what is missing of it, and return its folder.

    Args:
        config: composed and not yet resolved.
        make_grid: ``(num_clients, config as YAML) -> grid``; the configured engine if None.

    Raises:
        ValueError: the configuration is wrong; nothing was begun.
        ClientFailure: a client failed and the policy does not put up with it; all rounds before it are on disk.
    """
    quieten()
    check(config)
    text = OmegaConf.to_yaml(config, resolve=True)
    home = world(text)
    folder = Folder(home)
    try:
        if folder.finished:
            note = folder.commit_note()
            print(f"finished already, skipped{f' ({note})' if note else ''}")
        else:
            grid = (make_grid or build(config, "engine"))(config.num_clients, text)
            try:
                (start if isinstance(home.strategy, Strategy) else start_foreign)(home, folder, grid)
            finally:
                grid.close()
        print(summarise(folder.path))
        print(f"run: {folder.path}", flush=True)
    finally:
        folder.release()
    return folder.path


def start(home: World, folder: Folder, grid: ClientGrid) -> None:
    """Run a strategy of fedkd from its last checkpoint, or from the beginning."""
    config, strategy = home.config, home.strategy
    last = folder.begin()
    if last is not None:
        grid.memory = {client: wire.to_record(memory) for client, memory in last.memories.items()}
    strategy.federation = home.federation()
    first = 1 if last is None else last.round + 1
    with Progress(config, first) as progress:

        def on_round(done: Round) -> None:
            folder.client_rows(client_rows(home, done))
            row = metrics_row(done)
            folder.row(row)
            if done.number % config.checkpoint_every == 0 or done.number == config.rounds:
                memories = {client: wire.from_record(record) for client, record in sorted(grid.memory.items())}
                folder.checkpoint(done.number, wire.from_record(done.arrays), memories)
            progress.advance(row)

        strategy.start(
            grid,
            None if last is None else wire.to_record(last.state),
            num_rounds=config.rounds,
            timeout=config.timeout,
            evaluate_fn=lambda number, arrays: judge(home, grid, arrays),
            start_round=first,
            on_round=on_round,
        )


def judge(home: World, grid: ClientGrid, arrays: ArrayRecord) -> MetricRecord:
    """The balanced test of what the strategy predicts with, and where it asks for it, of its ensemble on the clients' shards."""
    strategy, device = home.strategy, home.config.device
    memories = {client: wire.from_record(record, device) for client, record in sorted(grid.memory.items())}
    server, state = replace(strategy.federation.server, memories=memories), wire.from_record(arrays, device)
    metrics = MetricRecord()
    if (model := strategy.predict(server, state)) is not None:
        metrics.update(balanced(home, model))
    if (members := strategy.ensemble(server, state)) is not None:
        metrics.update(on_shards(home, members))
    return metrics


def balanced(home: World, model: Callable) -> dict[str, float]:
    """Accuracy, mean loss and accuracy by class on the whole test set."""
    score = evaluate(model, home.test, home.config.evaluation.batch_size, home.task.num_classes, home.dtype)
    classes = (score.correct / score.total).tolist()
    named = {f"accuracy_class_{c:02d}": value for c, value in enumerate(classes) if value == value}
    return {"accuracy": score.accuracy, "loss": score.loss / len(home.test), **named}


def on_shards(home: World, model: Callable) -> dict[str, float | list[int]]:
    """One model on every client's own test shard."""
    batch, classes = home.config.evaluation.batch_size, home.task.num_classes
    scores = [evaluate(model, home.test.subset(index).to(home.config.device), batch, classes, home.dtype) for index in home.partition.test]
    examples, correct = [int(s.total.sum()) for s in scores], [int(s.correct.sum()) for s in scores]
    return {**(own_labels(list(zip(examples, correct))) or {}), "own_examples": examples, "own_correct": correct}


def start_foreign(home: World, folder: Folder, grid: ClientGrid) -> None:
    """Run a strategy of Flower's own, whose state nobody can save: it is run whole or not at all.

    Raises:
        ValueError: an earlier run of it was interrupted; it cannot be resumed.
    """
    config, kind = home.config, type(home.strategy)
    if (folder.path / "metrics.csv").exists():
        raise ValueError(
            f"strategy._target_ must be a strategy of fedkd for a run to be resumed, got {kind.__module__}.{kind.__name__}, whose state is "
            f"its own and is not saved; remove {folder.path} to run it again from the beginning"
        )
    folder.begin()
    began = time.perf_counter()
    with Progress(config, 1) as progress, (home.seed / "foreign").globally():

        def evaluate_fn(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            nonlocal began
            if number > 0:
                down, up = grid.traffic.get("train", (0, 0))
                model = assemble(home.model, home.initial, cast(home, arrays))
                scores = {**balanced(home, model), **{k: v for k, v in on_shards(home, model).items() if not isinstance(v, list)}}
                row = {"round": number, **scores, "bytes_up": up, "bytes_down": down, "num_failures": 0}
                folder.row({**row, "seconds_local": round(time.perf_counter() - began, 4), "seconds_server": 0, "seconds_evaluate": 0})
                progress.advance(row)
            began = time.perf_counter()
            return None

        result = home.strategy.start(
            grid, ArrayRecord(home.initial), num_rounds=config.rounds, timeout=config.timeout, evaluate_fn=evaluate_fn
        )  # fmt: skip
    folder.checkpoint(config.rounds, {"model": cast(home, result.arrays)}, {})


def cast(home: World, arrays: ArrayRecord) -> dict:
    """Arrays of a foreign strategy as tensors of the model's types."""
    tensors = arrays.to_torch_state_dict()
    return {key: tensors[key].to(value.device, value.dtype) for key, value in home.initial.items()}


def compose(overrides: list[str]) -> DictConfig:
    """The configuration that the command line ``overrides`` describe."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", overrides, return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return chosen(config, choices)


def chosen(config: DictConfig, choices: dict[str, str]) -> DictConfig:
    """``config`` with the names of the files it was composed from."""
    config.choices = {key: name for key, name in sorted(choices.items()) if "hydra" not in key and name is not None}
    return config


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def main(config: DictConfig) -> None:
    """The command."""
    try:
        execute(chosen(config, dict(HydraConfig.get().runtime.choices)))
    except ValueError as error:
        sys.exit(f"error: {error}")
    except ClientFailure as error:
        sys.exit(f"error: {error}\nEverything up to the last round is on disk; run the same command to go on from there.")
    except KeyboardInterrupt:
        print("interrupted: run the same command to go on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
