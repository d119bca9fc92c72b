"""Kill runs at random moments, and measure what is left: ``python -m tests.kills TABLE [chains] [seed]``.

A chain is one run folder. Its run is started again after each kill, until it is finished: three times SIGKILL ends the command, once Ray's
raylet, once its GCS, in random order, and in the last start one actor. Then the files of the folder are compared with those of a run in one
process that nothing has disturbed. Ten chains are 30 kills of the command and 10 of each server and of actors. They take more than half an
hour on two cores, so they are no part of the tests. The table has a row for each kill, written when its chain has ended.

The commands are forked from a process that has imported all modules, as only Ray and the rounds are of interest.
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psutil

from tests.processes import MARK, ROOT, TINY, differing, processes, quick, rows, until

OVERRIDES = (*TINY, "rounds=60", "output=runs", "checkpoint_every=1")
RAY = (*OVERRIDES, "engine=ray", "engine.workers=2")
NAMES = {"raylet": "raylet", "GCS": "gcs_server", "actor": "ray::Worker"}
"""Beginnings of the names of processes."""

PATIENCE = 60.0
"""Seconds in which all processes must have ended after a kill."""

STARTER = """
import json, os, sys, traceback
import sklearn.datasets, torchvision
import simulations.run, simulations.federation.runner, simulations.engine.ray_engine
for line in sys.stdin:
    job = json.loads(line)
    if (child := os.fork()) == 0:
        os.setsid(), os.chdir(job["folder"])
        os.environ.update(job["environment"])
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.argv, code = ["run", *job["arguments"]], 0
        try:
            simulations.run.main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code or 0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Starter:
    """A process that forks for each command."""

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", STARTER], env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, folder: Path, **environment: str) -> int:
        """Start the run in ``folder``, and return its process."""
        self._process.stdin.write(json.dumps({"folder": str(folder), "arguments": RAY, "environment": environment}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self) -> int:
        """Wait for the end of the command, and return its exit code."""
        return int(self._process.stdout.readline())


def victim(kind: str, command: int, mark: str) -> psutil.Process | None:
    """The process to kill; None if it has not started yet. It is the command where this has ended."""
    with suppress(psutil.Error):
        if kind == "command" or psutil.Process(command).status() == psutil.STATUS_ZOMBIE:
            return psutil.Process(command)
    for number in processes(mark):
        with suppress(psutil.Error):
            process = psutil.Process(number)
            if process.name().startswith(NAMES.get(kind, "-")):
                return process
    return None


def kill_once(starter: Starter, folder: Path, kind: str, draw: random.Random) -> dict[str, object]:
    """Start the run of a chain, kill one of its processes, wait for the end, and say what is left.

    In a quarter of the cases the command is killed while Ray starts, in all others a process after one to five more rounds.
    """
    files, mark = Path(tempfile.mkdtemp(prefix="k", dir="/tmp")), uuid.uuid4().hex
    command = starter.start(folder, TMPDIR=str(files), RAY_TMPDIR=str(files), TORCHINDUCTOR_CACHE_DIR=str(folder / "torch"), **{MARK: mark})
    began, least = time.monotonic(), rows(folder) + draw.randint(1, 5)
    if kind == "command" and draw.random() < 0.25:
        time.sleep(draw.uniform(0.0, 30.0))
    else:
        until(lambda: rows(folder) >= least, 600, "rounds")
        time.sleep(draw.uniform(0.0, 0.5))
    until(lambda: victim(kind, command, f"{MARK}={mark}") is not None, 300, f"the {kind}")
    at, row, load = time.monotonic() - began, rows(folder), os.getloadavg()[0]
    with suppress(psutil.Error):
        victim(kind, command, f"{MARK}={mark}").send_signal(signal.SIGKILL)
    killed, code = time.monotonic(), starter.end()
    with suppress(AssertionError):
        until(lambda: not processes(f"{MARK}={mark}"), PATIENCE)
    ended = time.monotonic() - killed
    left = len(list(files.iterdir()))
    if not left:
        files.rmdir()
    return {
        "killed": kind, "seconds_after_start": f"{at:.1f}", "rows": row, "exit_code": code, "error": (folder / "err").read_text().strip(),
        "seconds_to_end": f"{ended:.1f}", "processes_left": len(processes(f"{MARK}={mark}")), "ray_files_left": left, "load": f"{load:.1f}",
    }  # fmt: skip


def run_chain(starter: Starter, number: int, seed: int, undisturbed: Path) -> list[dict[str, object]]:
    """One chain: a row for each kill, with the result of the comparison at its end."""
    draw = random.Random(1000 * seed + number)
    kinds = ["command", "command", "command", "raylet", "GCS"]
    draw.shuffle(kinds)
    with tempfile.TemporaryDirectory(prefix="chain") as name:
        table = [kill_once(starter, Path(name), kind, draw) for kind in [*kinds, "actor"]]
        (folder,) = (path.parent for path in Path(name).rglob("metrics.csv"))
        different = [name for name in differing(folder, undisturbed) if name != "config.yaml"]  # it names the engine
        temporary = [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]
    result = {"same_bits": not different, "temporary_files": len(temporary)}
    return [{"chain": number, **row, **result} for row in table]


def main(path: Path, chains: int = 10, seed: int = 0) -> None:
    """Measure, and append to the table."""
    starter = Starter()
    with tempfile.TemporaryDirectory(prefix="undisturbed") as name:
        undisturbed = quick(Path(name), *OVERRIDES, "engine=local").folder
        for number in range(chains):
            table, new = run_chain(starter, number, seed, undisturbed), not path.exists()
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(table[0]))
                if new:
                    writer.writeheader()
                writer.writerows(table)
            print(*(" ".join(map(str, row.values())) for row in table), sep="\n", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
