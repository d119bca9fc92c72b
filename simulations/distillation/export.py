"""The student leaves the house: its tensors, its configuration, a program of its own; and a table of what it costs."""

import json
import time
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedkd.distillation.student_training import Training
from fedkd.files import write_atomically
from fedkd.training.functional_model import load, submodule_tensors
from fedkd.types import Tensors
from simulations.distillation.scores import retrieved, scored
from simulations.distillation.setup import Setup

REPEATS = 20


class Logits(nn.Module):
    """A network whose answer is its logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, classes]
        return self.network(x).logits


def export(setup: Setup, training: Training, tensors: Tensors, folder: Path) -> list[Mapping[str, object]]:
    """Write every network that leaves the house; give the rows of ``models.csv``, the teacher's first."""
    rows = []
    if setup.teacher is not None:
        taught = submodule_tensors(training.taught, "student")
        rows.append(described(setup, "teacher", setup.teacher.student, taught, scored(setup, setup.teacher.student, taught).accuracy))
    for name, (network, own) in setup.distiller.networks(setup.learner, tensors).items():
        write(setup, folder, name, network, own)
        rows.append(described(setup, name, network, own, scored(setup, network, own).accuracy))
    return rows


def write(setup: Setup, folder: Path, name: str, network: nn.Module, tensors: Tensors) -> None:
    """``<name>.safetensors``, whose header says what network it is for and that it sees ``(byte / scale - mean) / std``, and ``<name>.pt2``."""
    config, task = setup.config, setup.task
    about = {
        "network": {**OmegaConf.to_container(config.student, resolve=True), **setup.distiller.changes(setup.learner, name)}, "shape": list(task.shape), "num_classes": task.num_classes,
        "scale": setup.train.scale, "mean": list(task.mean), "std": list(task.std), "class_names": list(task.class_names),
    }  # fmt: skip
    content = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    save_file(content, folder / f".{name}.tmp", {"fedkd": json.dumps(about)})
    (folder / f".{name}.tmp").replace(folder / f"{name}.safetensors")
    write_atomically(folder / f"{name}.json", (json.dumps(about, indent=1) + "\n").encode())
    if config.export:
        load(network, tensors)
        plain = deepcopy(network).cpu().eval()  # a program that needs no GPU, wherever it was trained
        example = torch.zeros(2, *task.shape, dtype=next(plain.parameters()).dtype)
        program = torch.export.export(Logits(plain), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, folder / f"{name}.pt2")


def described(setup: Setup, name: str, network: nn.Module, tensors: Tensors, accuracy: float) -> dict[str, object]:
    """One row: parameters, multiply-adds of one image, milliseconds of one image alone (median of 20), accuracy."""
    load(network, tensors)
    network.eval()
    x = torch.zeros(1, *setup.task.shape, dtype=next(network.parameters()).dtype, device=setup.config.device)
    with torch.no_grad():
        counter = FlopCounterMode(display=False)
        with counter:
            network(x)
        times = [timed(network, x) for _ in range(REPEATS)]
    return {
        "network": name,
        "num_parameters": sum(one.numel() for one in network.parameters()),
        "num_macs": counter.get_total_flops() // 2,
        "latency_ms": round(1000 * sorted(times)[REPEATS // 2], 3),
        "accuracy": accuracy,
        **(retrieved(setup, network, tensors) if setup.config.retrieval else {}),
    }


def timed(network: nn.Module, x: Tensor) -> float:
    """Seconds for one answer."""
    began = time.perf_counter()
    network(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
