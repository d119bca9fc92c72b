"""``python -m tests.mutants``: faults that the tests must find, each put into a copy of the tree by itself. No part of CI.

The command copies the files of the checkout, proves that the tests pass on the copy, then replaces one text after another and runs the
tests that should fail. It prints a table in Markdown, and ends with code 1 where fewer than 95 % of the mutants are caught. ``--only WORD``
runs the mutants whose file or text holds the word, ``--output FILE`` writes the table, ``--seconds N`` bounds each mutant (600 by default).
The checkout is never changed.
"""

import argparse
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]

SHARE = 0.95
"""The share of mutants that the tests must catch."""

PRELOADED = ("torch", "torchvision", "flwr", "ray", "hydra", "pandas", "scipy.stats", "statsmodels.api", "sklearn", "pytest", "hypothesis")
"""Modules of others that are imported once, before a process is forked for each mutant."""


@dataclass(frozen=True)
class Outcome:
    """What the tests say of a mutant.

    Args:
        mutant: the fault.
        result: ``caught``, ``SURVIVED``, ``timeout`` (which counts as caught), or ``STALE`` where the text is not in the file once.
        seconds: time of the tests.
    """

    mutant: Mutant
    result: str
    seconds: float

    @property
    def caught(self) -> bool:
        """The tests fail, or do not end."""
        return self.result in ("caught", "timeout")


def copy_of_tree(target: Path) -> None:
    """Copy all files of the checkout that Git knows or does not ignore."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_tests(tree: Path, tests: Iterable[str], seconds: float) -> str:
    """Run tests in a forked process whose project is ``tree``. Returns ``passed``, ``failed``, ``none`` (no test ran) or ``timeout``."""
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(tree)
        sys.path[:] = [str(tree), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
        os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True  # a file that changes twice in a second would keep its old bytecode
        for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "fedkd", "simulations", "strategies")]:
            del sys.modules[name]
        os.dup2(os.open(tree / "tests.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        import pytest

        options = ["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--no-header", f"--basetemp={tree.parent / 'scratch'}"]
        code = pytest.main([*options, *tests])
        sys.stdout.flush()
        os._exit(int(code))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return {0: "passed", 4: "none", 5: "none"}.get(code, "failed")
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def outcome(tree: Path, mutant: Mutant, seconds: float) -> Outcome:
    """Put the fault into the tree, run the tests that should fail, and take the fault out again."""
    path, began = tree / mutant.file, time.monotonic()
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(mutant.old) != 1 or mutant.old == mutant.new:
        return Outcome(mutant, "STALE", 0.0)
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        found = run_tests(tree, mutant.tests, seconds)
    finally:
        path.write_text(text, encoding="utf-8")
    return Outcome(mutant, {"failed": "caught", "passed": "SURVIVED", "none": "STALE"}.get(found, found), time.monotonic() - began)


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes in Markdown, survivors first."""
    caught = sum(one.caught for one in outcomes)
    share = f"{caught} of {len(outcomes)} mutants are caught ({100 * caught / max(len(outcomes), 1):.0f} %)"
    lines = ["# Mutants", "", f"Command: `python -m tests.mutants`. Result: {share}.", ""]
    lines += ["| file | before | after | tests | result |", "|---|---|---|---|---|"]
    for one in sorted(outcomes, key=lambda one: one.caught):
        tests = ", ".join(name.removeprefix("tests/") for name in one.mutant.tests)
        lines.append(f"| {one.mutant.file} | {code(one.mutant.old)} | {code(one.mutant.new)} | {tests} | {one.result} |")
    return "\n".join(lines) + "\n"


def code(text: str) -> str:
    """A text of code in a cell."""
    words = " ".join(text.split()).replace("|", "\\|")
    return f"`{words}`" if words else "(removed)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all mutants. Returns 0 if at least 95 % are caught, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Faults that the tests must find.")
    parser.add_argument("--only", default="", metavar="WORD", help="the mutants whose file or text holds this word")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table there too")
    parser.add_argument("--seconds", type=float, default=600.0, metavar="N", help="bound on the tests of one mutant")
    given = parser.parse_args(arguments)
    chosen = [one for one in MUTANTS if given.only in one.file or given.only in one.old]
    for name in PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as base:
        tree = Path(base) / "tree"
        copy_of_tree(tree)
        needed = sorted({test for one in chosen for test in one.tests})
        sound: dict[str, str] = {}
        for test in needed:
            sound[test] = run_tests(tree, [test], given.seconds)
            print(f"{sound[test]:9}without a mutant  {test}", file=sys.stderr, flush=True)
        if broken := [f"{test}: {result}" for test, result in sound.items() if result != "passed"]:
            print("these tests must pass without a mutant:", *broken, sep="\n", file=sys.stderr)
            return 1
        outcomes = []
        for one in chosen:
            outcomes.append(outcome(tree, one, given.seconds))
            print(
                f"{outcomes[-1].result:9}{outcomes[-1].seconds:6.1f} s  {one.file}: {' '.join(one.old.split())}",
                file=sys.stderr,
                flush=True,
            )
    text = table(outcomes)
    print(text)
    if given.output is not None:
        given.output.write_text(text, encoding="utf-8")
    return 0 if outcomes and sum(one.caught for one in outcomes) >= SHARE * len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
