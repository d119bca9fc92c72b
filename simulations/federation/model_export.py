"""``fedkd export``: the model of a run as safetensors, as a description in JSON, and as a ``torch.export`` program."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedkd.errors import RunFolderError
from simulations.distillation.export import described_task, export_obstacle, input_description, save_network
from simulations.distillation.teachers import is_federated
from simulations.federation.trained_model import load_model, networks_of_run, read_config


def export_model(folder: Path, client: int | None = None, output: Path | None = None) -> list[Path]:
    """Write the model of a run folder.

    Args:
        folder: of a federated run, or of a finished distillation.
        client: None for the global model (or the student); k for the model that client k would use.
        output: the folder of the files; None for ``<folder>/export``.

    Returns:
        The files: ``<name>.safetensors`` with the tensors, ``<name>.json`` with the configuration of the network and the scaling of its
        input, which is ``(byte / scale - mean) / std``, and ``<name>.pt2``, a program from images [B, channels, height, width] to logits
        [B, classes], or from other inputs. ``<name>`` is ``global_model``, ``client_<k>`` or ``student``.

    Raises:
        RunFolderError: the folder is no run's, or the run has no such model, or ``torch.export`` cannot read it. The last error leaves the
            other two files.
    """
    folder = folder.expanduser().absolute()
    model = load_model(folder, client)
    name, about = _description(folder, client)
    output = folder / "export" if output is None else output.expanduser()
    output.mkdir(parents=True, exist_ok=True)
    if (obstacle := export_obstacle(model, described_task(about))) is None:
        return save_network(output, name, model, dict(model.state_dict()), about)
    files = save_network(output, name, model, dict(model.state_dict()), about, program=False)
    written = " and ".join(str(path) for path in files)
    raise RunFolderError(f"{name} must be a network that torch.export can read, got {obstacle}; {written} are written without a program")


def _description(folder: Path, client: int | None) -> tuple[str, dict[str, Any]]:
    """The name of the model, its network's configuration, and the scaling of its input."""
    config = read_config(folder)
    if not is_federated(config):
        described = folder / "student.json"
        if not described.is_file():
            raise RunFolderError(f"{folder} must be finished before its student is exported; run the same command again to continue")
        return "student", json.loads(described.read_text(encoding="utf-8"))
    simulation = networks_of_run(config, folder)
    task, network = simulation.task, OmegaConf.to_container(config.model, resolve=True)
    chosen = simulation.server_network if client is None else simulation.networks[client]
    if isinstance(network, dict) and chosen.name in network.get("networks", {}):
        network = network["networks"][chosen.name]
    about = {"network": network, **input_description(task, simulation.train.scale)}
    return "global_model" if client is None else f"client_{client}", about
