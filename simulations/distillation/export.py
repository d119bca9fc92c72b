"""Files of a trained student: tensors, description, a ``torch.export`` program, and the costs of all networks."""

import json
import time
from collections.abc import Mapping
from contextlib import redirect_stderr
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedkd.config.build import OWN_PACKAGES
from fedkd.distillation.student_training import Training
from fedkd.files import write_atomically
from fedkd.models.construction import first_line
from fedkd.training.functional_model import load, submodule_tensors
from fedkd.types import Task, Tensors
from simulations.distillation.scores import evaluate_network, evaluate_retrieval
from simulations.distillation.setup import Setup, plain

LATENCY_REPEATS = 20
"""Forward passes of which the median latency is reported."""


class Logits(nn.Module):
    """A network that returns its logits alone, as ``torch.export`` saves it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C]
        """The logits [B, classes] of images [B, channels, height, width], or those of other inputs."""
        return self.network(x).logits


def export_networks(setup: Setup, training: Training, tensors: Tensors, folder: Path) -> list[dict[str, Any]]:
    """Write the files of every network that is saved (the student, and the members of an online ensemble).

    Args:
        setup: the distillation.
        training: its training loop, which holds the tensors of the teacher.
        tensors: the trained tensors of ``setup.learner``.
        folder: the run folder.

    Returns:
        The rows of ``models.csv``, that of the teacher first.
    """
    rows = []
    if setup.teacher is not None:
        rows.append(network_row(setup, "teacher", setup.teacher.student, submodule_tensors(training.teacher_tensors, "student")))
    for name, (network, own) in setup.distiller.networks(setup.learner, tensors).items():
        write_network(setup, folder, name, network, own)
        rows.append(network_row(setup, name, network, own))
    return rows


def write_network(setup: Setup, folder: Path, name: str, network: nn.Module, tensors: Tensors) -> None:
    """Write the files of one network of a distillation, with ``export=true`` also its program. See :func:`save_network`."""
    task = setup.task
    description = {
        "network": {**plain(setup.config.student), **setup.distiller.config_changes(setup.learner, name)},
        **input_description(task, setup.train.scale),
    }
    save_network(folder, name, network, tensors, description, program=setup.config.export)


def input_description(task: Task, scale: float) -> dict[str, Any]:
    """What a network of a task reads and predicts, for its file ``<name>.json``. Images with labels are not named as such.

    Args:
        task: the classification task.
        scale: the stored pixel that stands for 1.0.
    """
    kinds = {} if (task.input, task.target) == ("image", "label") else {"input": task.input, "target": task.target}
    words = {"vocabulary": list(task.vocabulary)} if task.vocabulary else {}
    return {
        "shape": list(task.shape), "num_classes": task.num_classes, "scale": scale, "mean": list(task.mean), "std": list(task.std),
        "class_names": list(task.names), **kinds, **words,
    }  # fmt: skip


def described_task(description: Mapping[str, Any]) -> Task:
    """The task of which :func:`input_description` has made a part of ``description``."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in description.items()}
    names = ("shape", "num_classes", "class_names", "mean", "std", "input", "target", "vocabulary")
    found: dict[str, Any] = {name: values[name] for name in names if name in values}
    return Task("", **found)


def save_network(
    folder: Path, name: str, network: nn.Module, tensors: Tensors, description: dict[str, Any], *, program: bool = True
) -> list[Path]:
    """Write ``<name>.safetensors``, ``<name>.json`` and the program ``<name>.pt2``.

    Args:
        folder: where the files are written.
        name: the files' name without suffix.
        network: the module. Its parameters are overwritten.
        tensors: all parameters and buffers of the network.
        description: configuration of the network, shape of its input, and the scaling of the input: a network reads
            ``(byte / scale - mean) / std``. It is written to ``<name>.json`` and to the header of the tensors.
        program: whether to write the program, which maps images [B, channels, height, width] to logits [B, classes].

    Returns:
        The paths of the files.
    """
    paths = [folder / f"{name}.{suffix}" for suffix in ("safetensors", "json", "pt2")]
    content = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    temporary = folder / f".{name}.tmp"
    save_file(content, temporary, {"fedkd": json.dumps(description)})
    temporary.replace(paths[0])
    write_atomically(paths[1], (json.dumps(description, indent=1) + "\n").encode())
    if not program:
        return paths[:2]
    load(network, tensors)
    exported = export_program(network, described_task(description))
    temporary = folder / f".{name}.pt2"  # torch warns of other suffixes
    torch.export.save(exported, temporary)
    temporary.replace(paths[2])
    return paths


def export_program(network: nn.Module, task: Task) -> torch.export.ExportedProgram:
    """The program of a network, from images [B, channels, height, width] to logits [B, classes], for the CPU and for any B.

    Args:
        network: the network, on any device.
        task: says what it reads.
    """
    on_cpu = deepcopy(network).cpu().eval()  # the program needs no GPU, wherever the network was trained
    example = task.inputs(2, next(on_cpu.parameters()).dtype)
    return torch.export.export(Logits(on_cpu).eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def export_obstacle(network: nn.Module, task: Task) -> str | None:
    """Why ``torch.export`` cannot read a network of the user's. None if it can. Networks of fedkd and torch alone are not tried.

    Args:
        network: the network, on any device.
        task: says what it reads.
    """
    packages = {type(module).__module__.partition(".")[0] for module in network.modules()}
    if packages <= {"torch", "torchvision", *OWN_PACKAGES}:
        return None
    try:
        with redirect_stderr(StringIO()):  # torch prints the graph up to the error
            export_program(network, task)
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def network_row(setup: Setup, name: str, network: nn.Module, tensors: Tensors, repeats: int = LATENCY_REPEATS) -> dict[str, Any]:
    """A row of ``models.csv``: parameters, multiply-accumulate operations and median latency for one image, test accuracy.

    With ``retrieval=true`` the scores of image retrieval follow. ``repeats`` is the number of forward passes that are timed, >= 1.
    """
    accuracy = evaluate_network(setup, network, tensors).accuracy
    load(network, tensors)
    network.eval()
    x = setup.task.inputs(1, next(network.parameters()).dtype, setup.config.device)
    with torch.no_grad():
        counter = FlopCounterMode(display=False)
        with counter:
            network(x)
        seconds = [time_forward_pass(network, x) for _ in range(repeats)]
    return {
        "network": name,
        "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "num_macs": counter.get_total_flops() // 2,
        "latency_ms": round(1000 * sorted(seconds)[repeats // 2], 3),
        "accuracy": accuracy,
        **(evaluate_retrieval(setup, network, tensors) if setup.config.retrieval else {}),
    }


def time_forward_pass(network: nn.Module, x: Tensor) -> float:
    """Seconds of one forward pass."""
    started = time.perf_counter()
    network(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started
