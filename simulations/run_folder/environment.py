"""The environment of a run: commit, versions of packages, and machine."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from omegaconf import DictConfig

from fedkd.files import write_atomically


def read_commit(folder: Path) -> str | None:
    """The commit of the code that made the run in ``folder``; None if it is unknown."""
    try:
        return json.loads((folder / "environment.json").read_text(encoding="utf-8"))["commit"]
    except (OSError, ValueError, KeyError):
        return None


def current_commit() -> tuple[str | None, bool]:
    """The checkout's commit and whether it has uncommitted changes; (None, False) outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None, False
    ask = ["git", "-C", str(root)]
    head = subprocess.run([*ask, "rev-parse", "HEAD"], check=False, capture_output=True, text=True)
    dirty = subprocess.run([*ask, "status", "--porcelain"], check=False, capture_output=True, text=True)
    return head.stdout.strip() or None, bool(dirty.stdout.strip())


def environment(config: DictConfig) -> dict[str, object]:
    """The contents of ``environment.json``: commit, versions, platform, cores, threads and device."""
    head, dirty = current_commit()
    packages = ("fedkd", "flwr", "ray", "torch", "torchvision", "numpy", "hydra-core")
    return {
        "commit": head,
        "uncommitted_changes": dirty,
        "python": sys.version.split()[0],
        "versions": {**{name: installed_version(name) for name in packages}, "torch": torch.__version__},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads_per_worker": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if config.device != "cpu" else platform.processor() or platform.machine(),
    }


def installed_version(name: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return version(name)
    except ModuleNotFoundError:
        return None


def write_tuned_params(folder: Path, choice: Mapping[str, object]) -> None:
    """Write ``tuned.json`` into a run folder: the values that :func:`simulations.config.apply_tuned_params` has set."""
    write_atomically(folder / "tuned.json", (json.dumps(choice, indent=1) + "\n").encode())
