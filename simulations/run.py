"""``python -m simulations.run strategy=fedgen partition.alpha=0.1``: one experiment, from configuration to run folder.

Add ``-m`` for sweeps: ``-m strategy=fedavg,fedgen seed=0,1,2``. A run that is finished is skipped, one that was interrupted
goes on from its last checkpoint. The last line on standard output is ``run: <folder>``; the exit code is 0 only when every
round was done under the failure policy.
"""

import csv
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import hydra
from flwr.app import ArrayRecord, MetricRecord
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fedkd import wire
from fedkd.check import require
from fedkd.config import build, check, make
from fedkd.exchange import ClientFailure
from fedkd.rounds import Round
from fedkd.strategy import Strategy
from simulations.calibrate import choose
from simulations.compat import quieten
from simulations.foreign import start_foreign
from simulations.grids import ClientGrid
from simulations.process import settle
from simulations.progress import narrate, of_rounds, summarise
from simulations.record import Folder, client_rows, metrics_row
from simulations.scores import balanced, on_shards
from simulations.world import World, world

FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"
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
    narrate()
    settle()
    check(config)
    take_tuned(config)
    locate(config)
    text = OmegaConf.to_yaml(config, resolve=True)
    home = world(text)
    folder = Folder(home)
    try:
        if folder.finished:
            note = folder.commit_note()
            print(f"finished already, skipped{f' ({note})' if note else ''}")
        else:
            grid = make("engine", make_grid or build(config, "engine"), config.num_clients, text)
            try:
                if isinstance(home.strategy, Strategy):
                    grid.chunk = at_once(home, folder, grid)
                    start(home, folder, grid)
                else:
                    start_foreign(home, folder, grid)
            finally:
                grid.close()
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


def start(home: World, folder: Folder, grid: ClientGrid) -> None:
    """Run a strategy of fedkd from its last checkpoint, or from the beginning."""
    config, strategy = home.config, home.strategy
    last = folder.begin()
    if last is not None:
        grid.memory = {client: wire.to_record(memory) for client, memory in last.memories.items()}
    strategy.federation = home.federation()
    first = 1 if last is None else last.round + 1
    with of_rounds(config, first) as progress:

        def on_round(done: Round) -> None:
            folder.client_rows(client_rows(home, done))
            row = metrics_row(done)
            folder.row(row)
            if done.number % config.checkpoint_every == 0 or done.number == config.rounds:
                memories = {client: wire.from_record(record) for client, record in sorted(grid.memory.items())}
                folder.checkpoint(done.number, wire.from_record(done.arrays), memories, done.simulated_time)
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


def judge(home: World, grid: ClientGrid, arrays: ArrayRecord) -> Callable[[], MetricRecord]:
    """Begin the balanced test of what the strategy predicts with. The function that is returned waits for it, and measures, where the
    strategy asks for it, its ensemble on the clients' shards."""
    strategy, device = home.strategy, home.config.device
    memories = {client: wire.from_record(record, device) for client, record in sorted(grid.memory.items())}
    server, state = replace(strategy.federation.server, memories=memories), wire.from_record(arrays, device)
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


def compose(overrides: list[str], name: str = "config") -> DictConfig:
    """The configuration that the command line ``overrides`` describe, of a run or of what else ``name`` is the root of."""
    ready = GlobalHydra.instance().is_initialized()  # within the command
    with nullcontext() if ready else hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(name, overrides, return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return chosen(config, choices)


def chosen(config: DictConfig, choices: dict[str, str]) -> DictConfig:
    """``config`` with the names of the files it was composed from."""
    config.choices = {key: name for key, name in sorted(choices.items()) if "hydra" not in key and name is not None}
    return config


def take_tuned(config: DictConfig) -> None:
    """Set what was chosen for this strategy in the file ``tuned``.

    Raises:
        ValueError: the file cannot be read, or holds no choice for the strategy.
    """
    if config.tuned is None:
        return
    config.tuned, strategy = str(Path(config.tuned).expanduser().absolute()), config.choices.get("strategy")
    try:
        with open(config.tuned, newline="") as file:
            chosen = {
                row["key"]: float(row["value"]) for row in csv.DictReader(file) if row["chosen"] == "1" and row["strategy"] == strategy
            }
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"tuned must be a file that simulations.tune has written, got {config.tuned!r}: {error}") from error
    require(
        bool(chosen), "tuned", f"must hold a choice for strategy {strategy} (python -m simulations.tune strategy={strategy})", config.tuned
    )
    for key, value in chosen.items():
        OmegaConf.update(config, key, value)


def locate(config: DictConfig) -> None:
    """Make the paths of data, partitions and traces absolute, however deep: workers may stand in other folders."""
    for part in ("data", "partition", "public", "systems"):
        make_absolute(config[part])


def make_absolute(node: DictConfig) -> None:
    """Make every path in ``node`` absolute."""
    for key, value in node.items():
        if isinstance(value, DictConfig):
            make_absolute(value)
        elif key in ("root", "cache", "path", "trace") and isinstance(value, str):
            node[key] = str(Path(value).expanduser().absolute())


def explain(error: Exception) -> str:
    """Hydra's errors in one line: what was given and what is wrong with it, without advice that does not apply here."""
    lines = [line.strip() for part in (error, error.__cause__) if part is not None for line in str(part).splitlines()]
    noise = ("full_key", "object_type", "reference_type", "To append", "Config search path", "provider=", "See https")
    return "; ".join(line for line in lines if line and not line.startswith(noise))


@contextmanager
def explained() -> Iterator[None]:
    """One line and exit code 1 for what the user can mend; a traceback for what is ours, and for all if HYDRA_FULL_ERROR asked for it."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: run the same command to go on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except ClientFailure as error:
        sys.exit(f"error: {error}\nEverything up to the last round is on disk; run the same command to go on from there.")
    except (ValueError, HydraException, OmegaConfBaseException, FileExistsError, NotADirectoryError, PermissionError) as error:
        if FULL_ERROR:
            raise
        if isinstance(error, (HydraException, OmegaConfBaseException)):
            sys.exit(f"error: {explain(error)}")
        if isinstance(error, OSError):
            sys.exit(f"error: output must be a folder that can be written, got {error.filename!r}: {error}")
        sys.exit(f"error: {error}")


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
