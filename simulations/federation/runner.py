"""``python -m simulations.run strategy=fedgen partition.alpha=0.1``: one experiment, from configuration to run folder.

Add ``-m`` for sweeps: ``-m strategy=fedavg,fedgen seed=0,1,2``. A run that is finished is skipped, one that was interrupted
goes on from its last checkpoint. The last line on standard output is ``run: <folder>``; the exit code is 0 only when every
round was done under the failure policy.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from flwr.app import ArrayRecord, MetricRecord
from omegaconf import DictConfig, OmegaConf

from fedkd.config.build import build, call_part
from fedkd.config.validation import check_run
from fedkd.federation import serialization
from fedkd.federation.server_loop import Round
from fedkd.strategy import Strategy
from fedkd.types import State
from simulations.config import apply_tuned_params, make_absolute
from simulations.engine.base import ClientGrid
from simulations.engine.flower_compat import silence_flower
from simulations.engine.vmap_tuning import choose_clients_per_vmap
from simulations.federation.final_distillation import check_final_distillation, distill_global_model, is_distillation_round
from simulations.federation.flower_strategies import start_flower_strategy
from simulations.federation.round_records import client_rows, metrics_row, open_folder, save_partition, shift_rows
from simulations.process import configure_process
from simulations.progress import configure_logging, round_progress, summary_line
from simulations.run_folder.folder import RunFolder
from simulations.run_folder.tensorboard import check_tensorboard
from simulations.setup.evaluation import ensemble_local_metrics, global_test_metrics
from simulations.setup.simulation import Simulation, build_simulation


def run_federation(
    config: DictConfig,
    make_grid: Callable[[int, str], ClientGrid] | None = None,
    shown: Callable[[DictConfig, int], AbstractContextManager] = round_progress,
) -> Path:
    """Run the experiment that ``config`` describes, or what is missing of it, and return its folder.

    Args:
        config: composed and not yet resolved.
        make_grid: ``(num_clients, config as YAML) -> grid``; the configured engine if None.
        shown: ``(config, first round) -> progress``, whose ``advance`` is given each finished round's row of ``metrics.csv``.

    Raises:
        ConfigError: the configuration is wrong; nothing was begun.
        ClientFailure: a client failed and the policy does not put up with it; all rounds before it are on disk.
    """
    silence_flower()
    configure_logging()
    configure_process()
    check_run(config)
    check_tensorboard(config)
    choice = apply_tuned_params(config, "strategy")
    make_paths_absolute(config)
    text = OmegaConf.to_yaml(config, resolve=True)
    home = build_simulation(text)
    check_final_distillation(home)
    folder = open_folder(home)
    try:
        if choice is not None:
            folder.tuned(choice)
        if folder.finished:
            note = folder.commit_note()
            print(f"already finished, skipped{f' ({note})' if note else ''}")
        else:
            grid = call_part("engine", make_grid or build(config, "engine"), config.num_clients, text)
            try:
                if isinstance(home.strategy, Strategy):
                    grid.chunk = choose_vmap_size(home, folder, grid)
                    start(home, folder, grid, shown)
                else:
                    start_flower_strategy(home, folder, grid, shown)
            finally:
                grid.close()
        if config.distill is not None:
            distill_global_model(home, folder.path, config.rounds)
        print(summary_line(folder.path))
        print(f"run: {folder.path}", flush=True)
    finally:
        folder.release()
    return folder.path


def choose_vmap_size(home: Simulation, folder: RunFolder, grid: ClientGrid) -> int:
    """How many clients a worker trains as one tensor program: what is configured, or where that is ``auto``, was found out by this run."""
    if home.config.clients_per_vmap != "auto":
        return home.config.clients_per_vmap
    choice = folder.choice()
    if choice is None:
        number, milliseconds = choose_clients_per_vmap(home, grid.num_workers)
        choice = {"clients_per_vmap": number, "ms_per_client_step": milliseconds}
        folder.choose(choice)
        times = ", ".join(f"{each}: {value:.2f}" for each, value in milliseconds.items())
        measured = f"ms per client step: {times}" if times else "nothing to choose from"
        print(f"clients per vmap: {number} ({measured})", flush=True)
    return int(choice["clients_per_vmap"])


def start(
    home: Simulation, folder: RunFolder, grid: ClientGrid, shown: Callable[[DictConfig, int], AbstractContextManager] = round_progress
) -> None:
    """Run a strategy of fedkd from its last checkpoint, or from the beginning."""
    config, strategy = home.config, home.strategy
    last = folder.begin(partial(save_partition, home), shift_rows(home))
    if last is not None:
        grid.memory = {client: serialization.to_record(memory) for client, memory in last.memories.items()}
    strategy.federation = home.federation()
    first = 1 if last is None else last.round + 1
    if last is not None and is_distillation_round(config, last.round):
        distill_global_model(home, folder.path, last.round)
    with shown(config, first) as progress:

        def on_round(done: Round) -> None:
            folder.client_rows(client_rows(home, done))
            row = metrics_row(done)
            folder.row(row)
            if config.generator_diagnostics_every and done.number % config.generator_diagnostics_every == 0:
                from simulations.federation.generator_diagnostics import diagnose  # scikit-learn takes seconds to import

                folder.diagnosis(*diagnose(home, done, client_states(grid, config.device)))
            if done.number % config.checkpoint_every == 0 or done.number == config.rounds:
                folder.checkpoint(done.number, serialization.from_record(done.arrays), client_states(grid), done.simulated_seconds)
            if is_distillation_round(config, done.number):
                distill_global_model(home, folder.path, done.number)
            progress.advance(row)

        strategy.start(
            grid,
            None if last is None else serialization.to_record(last.state),
            num_rounds=config.rounds,
            timeout=config.timeout,
            evaluate_fn=lambda number, arrays: start_global_evaluation(home, grid, arrays),
            start_round=first,
            simulated_seconds=0.0 if last is None else last.simulated_seconds,
            on_round=on_round,
        )


def client_states(grid: ClientGrid, device: str = "cpu") -> dict[int, State]:
    """The memories of the clients that have trained, by client."""
    return {client: serialization.from_record(record, device) for client, record in sorted(grid.memory.items())}


def start_global_evaluation(home: Simulation, grid: ClientGrid, arrays: ArrayRecord) -> Callable[[], MetricRecord]:
    """Begin the balanced test of what the strategy predicts with. The function that is returned waits for it, and measures, where the
    strategy asks for it, its ensemble on the clients' shards."""
    strategy, device = home.strategy, home.config.device
    server, state = replace(strategy.federation.server, memories=client_states(grid, device)), serialization.from_record(arrays, device)
    model = strategy.global_model(server, state)
    score = None if model is None else grid.score(model)
    others = {name: grid.score(one) for name, one in strategy.extra_models(server, state).items()}

    def metrics() -> MetricRecord:
        record = MetricRecord()
        if score is not None:
            record.update(global_test_metrics(home, score()))
        record.update({name: one().accuracy for name, one in others.items()})
        if (members := strategy.client_ensemble(server, state)) is not None:
            record.update(ensemble_local_metrics(home, members))
        return record

    return metrics


def make_paths_absolute(config: DictConfig) -> None:
    """Make the paths of data, partitions and traces absolute, however deep: workers may stand in other folders."""
    for part in ("data", "partition", "public_data", "systems"):
        make_absolute(config[part])
