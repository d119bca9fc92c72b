"""The environment of a run: commit, versions of packages, and machine."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from fedkd.files import write_atomically
from simulations.run_folder.source_code import Packages, commit_of, installed_version, packages_of


def read_commit(folder: Path) -> str | None:
    """The commit of the code that made the run in ``folder``; None if it is unknown."""
    try:
        return json.loads((folder / "environment.json").read_text(encoding="utf-8"))["commit"]
    except (OSError, ValueError, KeyError):
        return None


def current_commit() -> tuple[str | None, bool]:
    """The checkout's commit and whether it has uncommitted changes; (None, False) outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    return commit_of(root) if (root / ".git").exists() else (None, False)


def environment(config: DictConfig, earlier: Sequence[Packages] = ()) -> dict[str, object]:
    """The contents of ``environment.json``: commit, versions, platform, cores, threads and device, and the code of the run.

    Args:
        config: the resolved configuration.
        earlier: the packages of earlier starts of the run, as far as their code is another one.
    """
    head, dirty = current_commit()
    packages = ("fedkd", "flwr", "ray", "torch", "torchvision", "numpy", "hydra-core")
    content = {
        "commit": head,
        "uncommitted_changes": dirty,
        "python": sys.version.split()[0],
        "versions": {**{name: installed_version(name) for name in packages}, "torch": torch.__version__},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads_per_worker": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if config.device != "cpu" else platform.processor() or platform.machine(),
        "packages": packages_of(config),
    }
    return content | ({"earlier_packages": list(earlier)} if earlier else {})


def record_workers(folder: Path, workers: Sequence[Mapping[str, object]]) -> None:
    """Write the environments of the run's workers, one of each node, into ``environment.json``."""
    path = folder / "environment.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"workers": list(workers)}
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def write_tuned_params(folder: Path, choice: Mapping[str, object]) -> None:
    """Write ``tuned.json`` into a run folder: the values that :func:`simulations.config.apply_tuned_params` has set."""
    write_atomically(folder / "tuned.json", (json.dumps(choice, indent=1) + "\n").encode())
