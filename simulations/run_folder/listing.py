"""Run folders as rows of plain values, and their removal. Reads files alone: no torch, no pandas."""

import csv
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fedkd.errors import RunFolderError
from fedkd.files import CLIENT_STATES
from simulations.run_folder.divergence import read_divergence

STATES = ("finished", "interrupted", "running", "diverged")
HASH = re.compile(r"[0-9a-f]{12}")
MARKS = ("metrics.csv", "checkpoint.json", "environment.json")
"""Files of which a run folder has one at least, beside ``config.yaml``."""

Row = dict[str, Any]


def find_runs(folder: Path) -> list[Path]:
    """The run folders at and below ``folder``, sorted by path; links are not followed.

    Raises:
        RunFolderError: ``folder`` does not exist.
    """
    if not folder.is_dir():
        raise RunFolderError(f"folder must exist, got {str(folder)!r}; 'fedkd run' makes run folders in outputs/")
    found = []
    for path, inner, files in os.walk(folder):
        if is_run(Path(path), files):
            found.append(Path(path))
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name != CLIENT_STATES)
    return found


def is_run(folder: Path, files: Sequence[str] | None = None) -> bool:
    """``folder`` holds the files of a run."""
    names = set(os.listdir(folder) if files is None else files)
    return "config.yaml" in names and not names.isdisjoint(MARKS)


def list_folder(folder: Path, *, status: str | None = None, where: Mapping[str, Sequence[Any]] | None = None) -> list[Row]:
    """The runs at and below ``folder``, the oldest first.

    Args:
        folder: a run folder or a parent of run folders.
        status: one of :data:`STATES`; None for all.
        where: values by key: ``{"strategy": ["fedgen"], "partition.alpha": [0.1]}``. A run is kept where each key has one of its values.

    Returns:
        Rows with the keys ``hash, kind, strategy, data, setting, seed, round, rounds, status, global_test_accuracy,
        local_test_accuracy, age_seconds, path``. Accuracies are those of the last evaluation, in 0..1; None where there is none. For a
        distillation ``strategy`` is the method, ``round`` the epoch, and ``global_test_accuracy`` the student's.

    Raises:
        RunFolderError: ``folder`` does not exist.
    """
    rows, now = [], time.time()
    for path in find_runs(folder):
        config = read_config(path)
        if matches(config, where or {}):
            row = describe_run(path, config, now)
            if status is None or row["status"] == status:
                rows.append(row)
    return sorted(rows, key=lambda row: -row["age_seconds"])


def describe_run(folder: Path, config: Mapping[str, Any], now: float) -> Row:
    """One row of :func:`list_folder`. ``now`` is the time in seconds from which ages are counted."""
    choices = config.get("choices") or {}
    distillation = "distiller" in config
    part = "distiller" if distillation else "strategy"
    checkpoint = read_checkpoint(folder)
    last = last_values(folder / "metrics.csv", ("test_accuracy", "global_test_accuracy", "local_test_accuracy"))
    done = checkpoint.get("round", checkpoint.get("epoch", 0)) or 0
    written = max((path.stat().st_mtime for path in folder.iterdir() if path.name in (*MARKS, "config.yaml")), default=0.0)
    finished = bool(checkpoint.get("finished"))
    return {
        "hash": folder.name,
        "kind": "distillation" if distillation else "federated",
        "strategy": choices.get(part) or _class_name(config.get(part)),
        "data": choices.get("data") or _class_name(config.get("data")),
        "setting": " to ".join(choices[key] for key in ("teacher", "student") if key in choices) if distillation else setting(config),
        "seed": config.get("seed"),
        "round": done,
        "rounds": config.get("epochs" if distillation else "rounds"),
        "status": "finished" if finished else "running" if is_locked(folder) else "diverged" if read_divergence(folder) else "interrupted",
        "global_test_accuracy": last.get("test_accuracy") if distillation else last.get("global_test_accuracy"),
        "local_test_accuracy": last.get("local_test_accuracy"),
        "age_seconds": max(0.0, now - written),
        "path": str(folder),
    }


def setting(config: Mapping[str, Any]) -> str:
    """The partition with its first parameter, and shift and drift where there are any: ``dirichlet alpha=0.1, rotation``.

    ``validation`` marks a trial of ``fedkd tune``, whose accuracies are of held-out training examples. ``500 clients tested`` marks a run
    whose local accuracies are those of a sample.
    """
    choices = config.get("choices") or {}
    words = []
    partition = config.get("partition") or {}
    name = choices.get("partition") or _class_name(partition)
    scalars = [(key, value) for key, value in partition.items() if not key.startswith("_") and not isinstance(value, (Mapping, list))]
    key, value = next(iter(scalars), (None, None))
    if key == "path":
        words.append(f"{name} {Path(str(value)).stem}")
    elif key is None or name == "iid":
        words.append(str(name))
    else:
        words.append(f"{name} {key}={value}")
    words += [choices[part] for part in ("shift", "drift") if choices.get(part) not in (None, "none")]
    evaluation = config.get("evaluation") or {}
    if evaluation.get("split") == "validation":
        words.append("validation")
    if evaluation.get("clients") is not None:
        words.append(f"{evaluation['clients']} clients tested")
    return ", ".join(words)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.yaml`` as plain values; empty where it cannot be read."""
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        content = yaml.load((folder / "config.yaml").read_text(encoding="utf-8-sig"), loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """``checkpoint.json``; empty where it cannot be read."""
    try:
        content = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def last_values(path: Path, names: Sequence[str]) -> dict[str, float]:
    """The last number of each column that the file has and that has one."""
    found: dict[str, float] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found |= {name: float(row[name]) for name in names if row.get(name)}
    except (OSError, ValueError, UnicodeDecodeError, csv.Error):
        pass
    return found


def matches(config: Mapping[str, Any], where: Mapping[str, Sequence[Any]]) -> bool:
    """Each key of ``where`` has one of its values in ``config``: as the option chosen for a group, or as a value."""
    for key, allowed in where.items():
        option, value = (config.get("choices") or {}).get(key), lookup(config, key)
        if not any(same(one, wanted) for wanted in allowed for one in (option, value)):
            return False
    return True


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key; None where there is none."""
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def same(value: Any, wanted: Any) -> bool:
    """Equal as values: 1 and 1.0 are, text and numbers are not."""
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    return value is not None and value == wanted


def is_locked(folder: Path) -> bool:
    """A process writes the run in ``folder`` now."""
    with locked(folder) as free:
        return not free


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a run folder without waiting; gives whether it was free. A folder without a lock file is free."""
    from filelock import FileLock, Timeout

    if not (folder / ".lock").exists():
        yield True
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def removal_obstacle(folder: Path) -> str | None:
    """Why a folder is not removed: it is no run's, is a link, holds other runs, or its run goes on. None if it can be removed."""
    if folder.is_symlink() or not folder.is_dir() or not is_run(folder):
        return "not a run folder"
    if len(find_runs(folder)) > 1:
        return "holds other run folders"
    return "a process writes this run now" if is_locked(folder) else None


def remove(folder: Path) -> str | None:
    """Remove a run folder. Returns why it was kept, see :func:`removal_obstacle`. None where it is gone."""
    if (obstacle := removal_obstacle(folder)) is not None:
        return obstacle
    with locked(folder) as free:
        if not free:
            return "a process writes this run now"
        shutil.rmtree(folder)
    return None


def _class_name(node: Any) -> str | None:
    """The class that a part builds, in small letters."""
    return str(node.get("_target_", "")).rpartition(".")[2].lower() or None if isinstance(node, Mapping) else None
