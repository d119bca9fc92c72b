"""``python -m simulations.run strategy=fedgen partition.alpha=0.1``: one experiment, from configuration to run folder.

Add ``-m`` for sweeps: ``-m strategy=fedavg,fedgen seed=0,1,2``. A run that is finished is skipped, one that was interrupted
goes on from its last checkpoint. The last line on standard output is ``run: <folder>``; the exit code is 0 only when every
round was done under the failure policy.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import hydra
from flwr.app import ArrayRecord, MetricRecord
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fedkd import wire
from fedkd.config import build, check, make
from fedkd.rounds import Round
from fedkd.strategy import Strategy
from fedkd.types import State
from simulations.board import available
from simulations.calibrate import choose
from simulations.command import CONF, chosen, explained, make_absolute, take_tuned
from simulations.compat import quieten
from simulations.foreign import start_foreign
from simulations.grids import ClientGrid
from simulations.last_stage import distil, due, foresee
from simulations.process import settle
from simulations.progress import narrate, of_rounds, summarise
from simulations.record import Folder, client_rows, metrics_row
from simulations.scores import balanced, on_shards
from simulations.world import World, world


def execute(
    config: DictConfig,
    make_grid: Callable[[int, str], ClientGrid] | None = None,
    shown: Callable[[DictConfig, int], AbstractContextManager] = of_rounds,
) -> Path:
    """Run the experiment that ``config`` describes, or what is missing of it, and return its folder.

    Args:
        config: composed and not yet resolved.
        make_grid: ``(num_clients, config as YAML) -> grid``; the configured engine if None.
        shown: ``(config, first round) -> progress``, whose ``advance`` is given each finished round's row of ``metrics.csv``.

    Raises:
        ValueError: the configuration is wrong; nothing was begun.
        ClientFailure: a client failed and the policy does not put up with it; all rounds before it are on disk.
    """
    quieten()
    narrate()
    settle()
    check(config)
    available(config)
    choice = take_tuned(config, "strategy")
    locate(config)
    text = OmegaConf.to_yaml(config, resolve=True)
    home = world(text)
    foresee(home)
    folder = Folder(home)
    try:
        if choice is not None:
            folder.tuned(choice)
        if folder.finished:
            note = folder.commit_note()
            print(f"finished already, skipped{f' ({note})' if note else ''}")
        else:
            grid = make("engine", make_grid or build(config, "engine"), config.num_clients, text)
            try:
                if isinstance(home.strategy, Strategy):
                    grid.chunk = at_once(home, folder, grid)
                    start(home, folder, grid, shown)
                else:
                    start_foreign(home, folder, grid, shown)
            finally:
                grid.close()
        if config.distill is not None:
            distil(home, folder.path, config.rounds)
        print(summarise(folder.path))
        print(f"run: {folder.path}", flush=True)
    finally:
        folder.release()
    return folder.path


def at_once(home: World, folder: Folder, grid: ClientGrid) -> int:
    """How many clients a worker trains as one tensor program: what is configured, or where that is ``auto``, was found out by this run."""
    if home.config.cohort != "auto":
        return home.config.cohort
    choice = folder.choice()
    if choice is None:
        number, milliseconds = choose(home, grid.num_workers)
        choice = {"cohort": number, "milliseconds_per_client_step": milliseconds}
        folder.choose(choice)
        times = ", ".join(f"{each} at once {value:.2f}" for each, value in milliseconds.items())
        print(f"cohort: {number} ({f'milliseconds per client and step: {times}' if times else 'nothing to choose from'})", flush=True)
    return int(choice["cohort"])


def start(home: World, folder: Folder, grid: ClientGrid, shown: Callable[[DictConfig, int], AbstractContextManager] = of_rounds) -> None:
    """Run a strategy of fedkd from its last checkpoint, or from the beginning."""
    config, strategy = home.config, home.strategy
    last = folder.begin()
    if last is not None:
        grid.memory = {client: wire.to_record(memory) for client, memory in last.memories.items()}
    strategy.federation = home.federation()
    first = 1 if last is None else last.round + 1
    if last is not None and due(config, last.round):
        distil(home, folder.path, last.round)
    with shown(config, first) as progress:

        def on_round(done: Round) -> None:
            folder.client_rows(client_rows(home, done))
            row = metrics_row(done)
            folder.row(row)
            if config.diagnose_every and done.number % config.diagnose_every == 0:
                from simulations.diagnostics import diagnose  # scikit-learn takes seconds to import

                folder.diagnosis(*diagnose(home, done, remembered(grid, config.device)))
            if done.number % config.checkpoint_every == 0 or done.number == config.rounds:
                folder.checkpoint(done.number, wire.from_record(done.arrays), remembered(grid), done.simulated_time)
            if due(config, done.number):
                distil(home, folder.path, done.number)
            progress.advance(row)

        strategy.start(
            grid,
            None if last is None else wire.to_record(last.state),
            num_rounds=config.rounds,
            timeout=config.timeout,
            evaluate_fn=lambda number, arrays: judge(home, grid, arrays),
            start_round=first,
            simulated_time=0.0 if last is None else last.simulated_time,
            on_round=on_round,
        )


def remembered(grid: ClientGrid, device: str = "cpu") -> dict[int, State]:
    """The memories of the clients that have trained, by client."""
    return {client: wire.from_record(record, device) for client, record in sorted(grid.memory.items())}


def judge(home: World, grid: ClientGrid, arrays: ArrayRecord) -> Callable[[], MetricRecord]:
    """Begin the balanced test of what the strategy predicts with. The function that is returned waits for it, and measures, where the
    strategy asks for it, its ensemble on the clients' shards."""
    strategy, device = home.strategy, home.config.device
    server, state = replace(strategy.federation.server, memories=remembered(grid, device)), wire.from_record(arrays, device)
    model = strategy.predict(server, state)
    score = None if model is None else grid.score(model)
    others = {name: grid.score(one) for name, one in strategy.others(server, state).items()}

    def metrics() -> MetricRecord:
        record = MetricRecord()
        if score is not None:
            record.update(balanced(home, score()))
        record.update({f"accuracy_{name}": one().accuracy for name, one in others.items()})
        if (members := strategy.ensemble(server, state)) is not None:
            record.update(on_shards(home, members))
        return record

    return metrics


def locate(config: DictConfig) -> None:
    """Make the paths of data, partitions and traces absolute, however deep: workers may stand in other folders."""
    for part in ("data", "partition", "public", "systems"):
        make_absolute(config[part])


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def command(config: DictConfig) -> None:
    """The command, as Hydra runs it: once, or for every combination of a sweep."""
    with explained():
        execute(chosen(config, dict(HydraConfig.get().runtime.choices)))


def main() -> None:
    """The command."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra shall raise, and not print and exit
    with explained():
        command()


if __name__ == "__main__":
    main()
