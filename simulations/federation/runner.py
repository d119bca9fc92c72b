"""A federated run, from its configuration to its run folder.

A finished run is skipped, and an interrupted run continues from its last checkpoint. The last line on standard output is
``run: <folder>``.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from flwr.app import ArrayRecord, MetricRecord
from omegaconf import DictConfig, OmegaConf

from fedkd.config.build import build, call_part
from fedkd.config.validation import check_run
from fedkd.errors import StopRun, require
from fedkd.federation import serialization
from fedkd.federation.server_loop import Round
from fedkd.strategy import Strategy
from simulations.config import apply_tuned_params, make_absolute
from simulations.engine.base import ClientGrid
from simulations.engine.flower_compat import silence_flower
from simulations.engine.vmap_tuning import choose_clients_per_vmap, vmap_obstacle
from simulations.engine.worker_environment import recorded
from simulations.federation.client_records import ClientRecords, DecodedStates
from simulations.federation.drift_records import drift_metrics, start_next_test, task_rows
from simulations.federation.dry_step import check_training
from simulations.federation.final_distillation import (
    check_final_distillation,
    check_final_step,
    distill_global_model,
    is_distillation_round,
)
from simulations.federation.flower_strategies import start_flower_strategy
from simulations.federation.round_records import (
    check_finite_loss,
    client_rows,
    metrics_row,
    open_folder,
    shift_rows,
    warnings_of,
    write_data_files,
)
from simulations.process import configure_process
from simulations.progress import MakeProgress, configure_logging, round_progress, summary_line
from simulations.run_folder.divergence import recorded_divergence, refuse_to_repeat
from simulations.run_folder.folder import RunFolder
from simulations.run_folder.metric_names import COLUMNS
from simulations.run_folder.objective import check_objective
from simulations.run_folder.observers import Observers, RunObserver
from simulations.setup.compatibility import check_generator
from simulations.setup.evaluation import ensemble_local_metrics, global_test_metrics
from simulations.setup.simulation import Simulation, build_simulation
from simulations.trackers.observer import make_trackers

DEPLOYMENT_ENGINE = "simulations.deployment.deployment_grid.DeploymentGrid"
"""The engine that only ``flwr run`` can start, as its nodes are those of a SuperLink."""


def run_federation(
    config: DictConfig,
    make_grid: Callable[[int, str], ClientGrid] | None = None,
    make_progress: MakeProgress = round_progress,
    observers: Sequence[RunObserver] = (),
    make_simulation: Callable[[DictConfig], Simulation] | None = None,
) -> Path:
    """Run the federation that ``config`` describes, or the rounds of it that are missing.

    Args:
        config: the composed configuration. Interpolations need not be resolved yet.
        make_grid: ``(num_clients, config as YAML) -> grid``. None takes the configured engine.
        make_progress: ``(config, first round) -> progress``, which is called with the row of ``metrics.csv`` of each finished round.
        observers: called at the beginning, after each round, and at the end. ``StopRun`` of an observer ends the run after a checkpoint.
        make_simulation: ``config -> simulation`` of a server that does not hold the clients' data. None builds it from the data.

    Returns:
        The run folder.

    Raises:
        ConfigError: the configuration is wrong. Nothing has been run.
        ClientFailure: a client failed, and the policy does not allow the run to continue. All rounds before are on disk.
        DivergedError: a loss or a state is not finite. All rounds before are on disk, and ``diverged.json`` records where. A run that has
            diverged before is not repeated.
    """
    silence_flower()
    configure_logging()
    configure_process()
    simulation, choice = prepare_run(config, make_simulation)
    text = OmegaConf.to_yaml(config, resolve=True)
    folder, stopped = open_folder(simulation), False
    try:
        if choice is not None:
            folder.write_tuned_params(choice)
        if folder.finished:
            print(folder.skipped(), file=sys.stderr)
        else:
            refuse_to_repeat(folder.path)
            for line in warnings_of(simulation):
                print(line, file=sys.stderr)
            grid = call_part("engine", make_grid or build(config, "engine"), config.num_clients, text)
            grid.keep_messages(folder.path)
            try:
                watched = [*observers, *make_trackers(config)]
                with recorded_divergence(folder.path), Observers(watched) as watching:
                    check_training(simulation)
                    check_final_step(simulation)
                    if isinstance(simulation.flower_strategy, Strategy):
                        grid.clients_per_vmap = choose_vmap_size(simulation, folder, grid) if simulation.holds_client_data else 1
                        run_strategy(simulation, folder, grid, make_progress, watching)
                    else:
                        start_flower_strategy(simulation, folder, grid, make_progress, watching)
            except StopRun as reason:
                stopped = True
                print(f"stopped: {reason}", file=sys.stderr)
            finally:
                grid.close()
        if config.distill is not None and not stopped:
            distill_global_model(simulation, folder.path, config.rounds)
        metrics = folder.path / "metrics.csv"
        if metrics.is_file() and metrics.stat().st_size:  # a run can be stopped before its first round
            print(summary_line(folder.path))
        print(f"run: {folder.path}", flush=True)
    finally:
        folder.release()
    return folder.path


def prepare_run(
    config: DictConfig, make_simulation: Callable[[DictConfig], Simulation] | None = None
) -> tuple[Simulation, dict[str, object] | None]:
    """Check a configuration and build all parts of its run. Nothing is trained or written.

    Args:
        config: the composed configuration. Tuned values are set, and paths become absolute.
        make_simulation: see :func:`run_federation`. Paths of data then stay as they are, as they are paths of the nodes.

    Returns:
        The simulation, and the contents of ``tuned.json``, see :func:`simulations.config.apply_tuned_params`.

    Raises:
        ConfigError: the configuration is wrong.
    """
    check_run(config)
    check_objective(config.objective, COLUMNS[1:])
    make_trackers(config)
    choice = apply_tuned_params(config, "strategy")
    if make_simulation is None:
        rule = "must be local or ray for this command (flwr run starts a deployment)"
        require(config.engine._target_ != DEPLOYMENT_ENGINE, "engine", rule, config.choices.get("engine", DEPLOYMENT_ENGINE))
        make_paths_absolute(config)
        simulation = build_simulation(OmegaConf.to_yaml(config, resolve=True))
    else:
        simulation = make_simulation(config)
    generator = getattr(simulation.flower_strategy, "generator", None)
    check_generator("strategy.generator", generator, simulation.task, simulation.model.embedding_size)
    check_final_distillation(simulation)
    return simulation, choice


def choose_vmap_size(simulation: Simulation, folder: RunFolder, grid: ClientGrid) -> int:
    """The number of clients that a worker trains as one program.

    With ``clients_per_vmap=auto`` the first call of a run times several numbers and stores its choice in the run folder. A resumed run
    keeps this choice, as another one would change rounding.

    Raises:
        ConfigError: a number > 1 is configured, and the network or the loss cannot be batched.
    """
    size, obstacle = simulation.config.clients_per_vmap, vmap_obstacle(simulation)
    if size != "auto":
        require(size == 1 or obstacle is None, "clients_per_vmap", f"must be 1 or auto, as torch.vmap cannot batch {obstacle}", size)
        return size
    choice = folder.vmap_choice()
    if choice is None and obstacle is not None:
        folder.write_vmap_choice({"clients_per_vmap": 1, "ms_per_client_step": {}})
        print(f"clients per vmap: 1, as torch.vmap cannot batch {obstacle}", file=sys.stderr, flush=True)
        return 1
    if choice is None:
        number, milliseconds = choose_clients_per_vmap(simulation, grid.num_workers)
        folder.write_vmap_choice({"clients_per_vmap": number, "ms_per_client_step": milliseconds})
        times = ", ".join(f"{each}: {value:.2f}" for each, value in milliseconds.items())
        measured = f"ms per client step: {times}" if times else "only choice"
        remark = f"another number changes rounding; clients_per_vmap={number} repeats this run to the last digit"
        print(f"clients per vmap: {number} ({measured}); {remark}", file=sys.stderr, flush=True)
        return number
    return int(str(choice["clients_per_vmap"]))


def run_strategy(simulation: Simulation, folder: RunFolder, grid: ClientGrid, make_progress: MakeProgress, watching: Observers) -> None:
    """Run the rounds of a fedkd strategy, from the last checkpoint if there is one.

    Args:
        simulation: the simulation of the run.
        folder: the locked run folder.
        grid: the grid of clients.
        make_progress: ``(config, first round) -> progress``, see :func:`run_federation`.
        watching: the observers of the run.

    Raises:
        ClientFailure: a client failed, and the policy does not allow the run to continue.
        StopRun: an observer ends the run, whose last round has a checkpoint.
    """
    config, strategy = simulation.config, simulation.strategy
    last = folder.begin(partial(write_data_files, simulation), shift_rows(simulation), simulation.digests)
    grid.client_states = records = ClientRecords(folder.path, {} if last is None else last.client_states)
    strategy.federation = simulation.federation()
    first = 1 if last is None else last.round + 1
    if last is not None and is_distillation_round(config, last.round):
        distill_global_model(simulation, folder.path, last.round)
    watching.begin(folder.path, first)
    unsaved: list[Callable[[], None]] = []  # writes the checkpoint of the last round, where no checkpoint was due
    with make_progress(config, first) as progress, keep_last_round(unsaved):

        def on_round(done: Round) -> None:
            clients, row = client_rows(simulation, done), metrics_row(done) | drift_metrics(simulation, done) | grid.metrics()
            check_finite_loss(row)
            folder.workers(recorded(grid.environments()))
            folder.client_rows(clients)
            folder.task_rows(task_rows(simulation, done))
            folder.row(row)

            client_states = records.snapshot()

            def save(name: str = "checkpoint") -> None:
                folder.checkpoint(done.number, serialization.from_record(done.arrays), client_states, done.simulated_seconds, name)

            if config.generator_diagnostics_every and done.number % config.generator_diagnostics_every == 0:
                from simulations.federation.generator_diagnostics import diagnose  # scikit-learn takes seconds to import

                try:
                    folder.generator_rows(*diagnose(simulation, done, DecodedStates(records, config.device)))
                except Exception:
                    save()  # diagnostics that fail must not cost the trained model
                    raise

            is_last, is_due = done.number == config.rounds, done.number % config.checkpoint_every == 0
            unsaved[:] = [] if is_due or is_last else [save]
            if is_due or is_last:
                save()
            if is_distillation_round(config, done.number):
                distill_global_model(simulation, folder.path, done.number)
            progress.advance(row)
            try:
                watching.round(done.number, row, clients, save)
            except StopRun:
                if not is_last:  # otherwise the run is finished
                    if not is_due:
                        save()
                    raise

        strategy.start(
            grid,
            None if last is None else serialization.to_record(last.state),
            num_rounds=config.rounds,
            timeout=config.timeout,
            evaluate_fn=partial(start_global_evaluation, simulation, grid),
            start_round=first,
            simulated_seconds=0.0 if last is None else last.simulated_seconds,
            on_round=on_round,
            on_server_steps=progress.server_steps,
        )


@contextmanager
def keep_last_round(unsaved: Sequence[Callable[[], None]]) -> Iterator[None]:
    """Call ``unsaved`` where training diverges in the block, so that the last sound state is on disk."""
    try:
        yield
    except FloatingPointError:
        for save in unsaved:
            save()
        raise


def start_global_evaluation(simulation: Simulation, grid: ClientGrid, server_round: int, arrays: ArrayRecord) -> Callable[[], MetricRecord]:
    """Start the server's evaluation of a round without waiting for it.

    Args:
        simulation: the simulation of the run.
        grid: the grid of clients, whose workers evaluate on the global test set.
        server_round: 1, 2, ...
        arrays: the state after ``aggregate``.

    Returns:
        A function that waits for the metrics: those of the global model and of ``extra_models`` on the global test set, and those of
        ``client_ensemble`` on the local test sets, as far as the strategy has these models.
    """
    simulation, strategy, device = simulation.at(server_round), simulation.strategy, simulation.config.device
    server = replace(strategy.federation.at(server_round).server, client_states=DecodedStates(grid.client_states, device))
    state = serialization.from_record(arrays, device)
    global_model = strategy.global_model(server, state)
    can_test = simulation.can_test_globally
    pending = None if global_model is None or not can_test else grid.start_global_test(global_model)
    extra = strategy.extra_models(server, state) if can_test else {}
    pending_extra = {name: grid.start_global_test(model) for name, model in extra.items()}
    next_test = start_next_test(simulation, grid, server_round, arrays)

    def wait() -> MetricRecord:
        record = MetricRecord()
        if pending is not None:
            record.update(global_test_metrics(simulation, pending()))
        record.update({name: score().accuracy for name, score in pending_extra.items()})
        ensemble = strategy.client_ensemble(server, state) if simulation.holds_client_data else None
        if ensemble is not None:
            record.update(ensemble_local_metrics(simulation, ensemble, server_round))
        record.update(next_test(ensemble))
        return record

    return wait


def make_paths_absolute(config: DictConfig) -> None:
    """Make the paths of data, partitions and traces absolute, as workers may have another current folder."""
    for part in ("data", "partition", "public_data", "systems"):
        make_absolute(config[part])
