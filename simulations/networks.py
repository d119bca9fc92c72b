"""Every client's network, and the server's."""

from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from fedkd.bound import snapshot
from fedkd.config import build, make
from fedkd.models.classifier import Classifier
from fedkd.models.mixed import Mixed
from fedkd.seed import Seed
from fedkd.types import Task, Tensors


@dataclass(frozen=True)
class Network:
    """One architecture: its name, a workspace, and every parameter and buffer as the run begins."""

    name: str
    model: Classifier
    initial: Tensors


def settled(config: DictConfig, task: Task, dtype: torch.dtype, seed: Seed) -> tuple[list[Network], Network]:
    """Every client's network, and the server's: the one that all have, or the first that is configured."""
    maker, number = build(config, "model"), config.num_clients
    name = config.choices.get("model", "model")
    makers = maker.networks if isinstance(maker, Mixed) else {name: maker}
    seeds = {one: seed / "model" / one for one in makers} if isinstance(maker, Mixed) else {name: seed / "model"}
    assigned = make("model", maker.assign, number, (seed / "assignment").numpy()) if isinstance(maker, Mixed) else [name] * number
    networks = {}
    for one, of in makers.items():
        with seeds[one].globally():
            model = make("model", of, task).to(config.device, dtype)
        networks[one] = Network(one, model, snapshot(model))
    return [networks[one] for one in assigned], next(iter(networks.values()))
