"""The run folder: what a run leaves behind, and what it needs to go on."""

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
    """The commit of the code that made the run in ``folder``; None where nobody knows."""
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
    """Where a run was made."""
    head, dirty = current_commit()
    packages = ("fedkd", "flwr", "ray", "torch", "torchvision", "numpy", "hydra-core")
    return {
        "commit": head,
        "uncommitted_changes": dirty,
        "python": sys.version.split()[0],
        "versions": {**{name: installed(name) for name in packages}, "torch": torch.__version__},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads_per_worker": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if config.device != "cpu" else platform.processor() or platform.machine(),
    }


def installed(name: str) -> str | None:
    """A package's version; None where it runs from a checkout without being installed."""
    try:
        return version(name)
    except ModuleNotFoundError:
        return None


def note_choice(folder: Path, choice: Mapping[str, object]) -> None:
    """Write ``tuned.json`` into a run folder: what :func:`simulations.config.apply_tuned_params` has taken."""
    write_atomically(folder / "tuned.json", (json.dumps(choice, indent=1) + "\n").encode())
