"""Kill runs at random moments, and measure what is left: ``python -m tests.kills TABLE [chains] [seed]``.

``python -m tests.kills TABLE strategies`` kills the command once within a run of each strategy instead.

A chain is one run folder. Its run is started again after each kill, until it is finished: three times SIGKILL ends the command, once Ray's
raylet, once its GCS, in random order, and in the last start one actor. Then the files of the folder are compared with those of a run in one
process that nothing has disturbed. Ten chains are 30 kills of the command and 10 of each server and of actors. They take more than half an
hour on two cores, so they are no part of the tests. The table has a row for each kill, written when its chain has ended.

The commands are forked from a process that has imported all modules, as only Ray and the rounds are of interest.
"""

import csv
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.processes import MARK, TINY, Command, differing, processes, quick, rows, until
from tests.small_runs import STRATEGIES, strategy_overrides

OVERRIDES = (*TINY, "rounds=100", "output=runs", "checkpoint_every=1")
RAY = (*OVERRIDES, "engine=ray", "engine.workers=2")
NAMES = {"raylet": "raylet", "GCS": "gcs_server", "actor": "ray::Worker"}
"""Beginnings of the names of processes."""

PATIENCE = 60.0
"""Seconds in which all processes must have ended after a kill."""


def victim(kind: str, command: Command) -> psutil.Process | None:
    """The process to kill; None if there is none."""
    with suppress(psutil.Error):
        if kind == "command":
            return psutil.Process(command.process.pid)
    for number in command.alive():
        with suppress(psutil.Error):
            process = psutil.Process(number)
            if process.name().startswith(NAMES.get(kind, "-")):
                return process
    return None


def kill_once(folder: Path, kind: str, draw: random.Random, words: Sequence[str] = RAY) -> dict[str, object]:
    """Start the run of a chain, kill one of its processes, wait for the end, and say what is left.

    In a quarter of the cases the command is killed while Ray starts, in all others a process after one to five more rounds.
    """
    files = Path(tempfile.mkdtemp(prefix="k", dir="/tmp"))
    environment = {"TMPDIR": str(files), "RAY_TMPDIR": str(files), "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch")}
    command = Command(words, folder, environment, forked=True)
    mark = f"{MARK}={command.mark}"
    began, least = time.monotonic(), rows(folder) + draw.randint(1, 5)
    if kind == "command" and draw.random() < 0.25:
        time.sleep(draw.uniform(0.0, 8.0))
    else:
        until(lambda: rows(folder) >= least or command.process.poll() is not None, 600, "rounds")
        time.sleep(draw.uniform(0.0, 0.5))
    until(lambda: victim(kind, command) is not None or command.process.poll() is not None, 300, f"the {kind}")
    at, row, load = time.monotonic() - began, rows(folder), os.getloadavg()[0]
    with suppress(psutil.Error):
        if (process := victim(kind, command)) is not None:
            process.send_signal(signal.SIGKILL)
    killed, end = time.monotonic(), command.end(timeout=600)
    with suppress(AssertionError):
        until(lambda: not processes(mark), PATIENCE)
    ended = time.monotonic() - killed
    left = len(list(files.iterdir()))
    if not left:
        files.rmdir()
    return {
        "killed": kind, "seconds_after_start": f"{at:.1f}", "rows": row, "exit_code": end.code, "error": end.err.strip(),
        "seconds_to_end": f"{ended:.1f}", "processes_left": len(processes(mark)), "ray_files_left": left, "load": f"{load:.1f}",
    }  # fmt: skip


def run_chain(number: int, seed: int, undisturbed: Path) -> list[dict[str, object]]:
    """One chain: a row for each kill, with the result of the comparison at its end."""
    draw = random.Random(1000 * seed + number)
    kinds = ["command", "command", "command", "raylet", "GCS"]
    draw.shuffle(kinds)
    with tempfile.TemporaryDirectory(prefix="chain") as name:
        table = [kill_once(Path(name), kind, draw) for kind in [*kinds, "actor"]]
        (folder,) = (path.parent for path in Path(name).rglob("metrics.csv"))
        different = [name for name in differing(folder, undisturbed) if name != "config.yaml"]  # it names the engine
        temporary = [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]
    result = {"same_bits": not different, "temporary_files": len(temporary)}
    return [{"chain": number, **row, **result} for row in table]


def run_strategy(strategy: str, seed: int) -> dict[str, object]:
    """Kill the command once within a run of a strategy with two actors, finish the run, and compare it with one in a single process."""
    words = [word for word in OVERRIDES if not word.startswith(("strategy.", "rounds="))]
    words += [*strategy_overrides(strategy), f"strategy={strategy}", "rounds=12"]
    with tempfile.TemporaryDirectory(prefix="strategy") as name:
        for part in ("undisturbed", "killed"):
            (Path(name) / part).mkdir()
        undisturbed = quick(Path(name) / "undisturbed", *words, "engine=local").folder
        ray = [*words, "engine=ray", "engine.workers=2"]
        row = kill_once(Path(name) / "killed", "command", random.Random(f"{seed} {strategy}"), ray)
        finished = quick(Path(name) / "killed", *ray)
        assert finished.code == 0, finished.err
        different = [name for name in differing(finished.folder, undisturbed) if name != "config.yaml"]
        temporary = [path.name for path in finished.folder.iterdir() if path.name.endswith(".tmp")]
    return {"strategy": strategy, **row, "same_bits": not different, "temporary_files": len(temporary)}


def append(path: Path, table: list[dict[str, object]]) -> None:
    """Append rows to the table, and print them."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        if new:
            writer.writeheader()
        writer.writerows(table)
    print(*(" ".join(map(str, row.values())) for row in table), sep="\n", flush=True)


def main(path: Path, chains: int = 10, seed: int = 0) -> None:
    """Measure chains, and append to the table."""
    with tempfile.TemporaryDirectory(prefix="undisturbed") as name:
        undisturbed = quick(Path(name), *OVERRIDES, "engine=local").folder
        for number in range(chains):
            append(path, run_chain(number, seed, undisturbed))


if __name__ == "__main__":
    if sys.argv[2:3] == ["strategies"]:
        for option in sys.argv[3:] or STRATEGIES:
            append(Path(sys.argv[1]), [run_strategy(option, seed=0)])
    else:
        main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
