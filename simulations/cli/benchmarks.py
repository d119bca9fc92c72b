"""The benchmarks that ``fedkd bench`` runs: the modules of ``simulations.benchmarks`` that are commands."""

import ast
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from fedkd.errors import ConfigError
from simulations.cli.rendering import columns
from simulations.cli.signatures import first_line
from simulations.overrides import nearest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
INTERNAL = ("flower_runtime", "reference_process")
"""Processes that benchmarks start for themselves."""


def names() -> dict[str, Path]:
    """The benchmarks and their files, by name."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in body) and path.stem not in INTERNAL:
            found[path.stem] = path
    return found


def listed() -> str:
    """A line for each."""
    return columns([{"name": name, "what": first_line(path)} for name, path in names().items()], ("name", "what"), header=False)


def run(name: str, words: Sequence[str]) -> None:
    """Run a benchmark as ``python -m simulations.benchmarks.<name>`` does.

    Raises:
        ConfigError: there is none of this name.
    """
    known = names()
    if name not in known:
        raise ConfigError(f"benchmark must be one of {', '.join(known)}, got {name!r}{nearest(name, known)}")
    sys.argv = [f"fedkd bench {name}", *words]
    runpy.run_module(f"simulations.benchmarks.{name}", run_name="__main__", alter_sys=True)
