"""The data and the network of every client."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from omegaconf import DictConfig

from fedkd.config.build import build, call_part
from fedkd.errors import require
from fedkd.models.base import Classifier
from fedkd.models.heterogeneous import HeterogeneousModels
from fedkd.partition.validation_split import split_validation
from fedkd.seed import Seed
from fedkd.training.functional_model import snapshot
from fedkd.types import Examples, Partition, Task, Tensors


@dataclass(frozen=True)
class ClientData:
    """What follows from data, partition, shift and public set.

    Args:
        partition: who holds what of the training set and, in ``test``, of ``scored``.
        scored: the set that the clients' own test shards are part of.
        test: what the balanced test is on: the test set, or what the clients hold out (``evaluation.split``).
        shards: what each client trains on, and what it is scored on, as it sees it.
        public_data: the public set, if there is one; its labels are gone.
        validation: what the clients hold out for early stopping, if anything.
    """

    partition: Partition
    scored: Examples
    test: Examples
    shards: tuple[list[Examples], list[Examples]]
    public_data: Examples | None
    validation: Examples | None


def make_client_data(config: DictConfig, task: Task, train: Examples, test: Examples, seed: Seed) -> ClientData:
    """Divide the data as configured.

    Raises:
        ConfigError: it cannot be; naming the key, the rule and the value.
    """
    enough = f"must be at most the number of training examples ({len(train)})"
    require(config.num_clients <= len(train), "num_clients", enough, config.num_clients)
    labels, rng, source = (train.y.numpy(), test.y.numpy()), (seed / "partition").numpy(), build(config, "public_data")
    partition = call_part("partition", build(config, "partition"), *labels, config.num_clients, rng)
    train, test = train.to(config.device), test.to(config.device)
    stays, validation = split_validation(partition.train, config.validation_fraction, seed / "validation")
    stays, withheld = split_validation(stays, source.held_out, seed / "public")
    held_out = train.subset(np.concatenate(validation)) if config.validation_fraction else None
    public = call_part("public_data", source, task, train.subset(np.concatenate(withheld)), train.subset(np.concatenate(stays)), seed / "public")
    tuning = config.evaluation.split == "validation"
    scored, shards = (train, validation) if tuning else (test, partition.test)
    if config.evaluation.local_test == "all_examples":
        shards = [np.sort(np.concatenate(validation)) if tuning else np.arange(len(test))] * config.num_clients
    partition = replace(partition, train=stays, test=shards)
    return ClientData(
        partition,
        scored,
        held_out if tuning else test,
        call_part("shift", build(config, "shift"), train, scored, partition, task.num_classes, seed / "shift"),
        None if public is None else public.without_labels(),
        None if tuning else held_out,
    )


@dataclass(frozen=True)
class Network:
    """One architecture: its name, a workspace, and every parameter and buffer as the run begins."""

    name: str
    model: Classifier
    initial: Tensors


def make_networks(config: DictConfig, task: Task, dtype: torch.dtype, seed: Seed) -> tuple[list[Network], Network]:
    """Every client's network, and the server's: the one that all have, or the first that is configured."""
    maker, number = build(config, "model"), config.num_clients
    name = config.choices.get("model", "model")
    makers = maker.networks if isinstance(maker, HeterogeneousModels) else {name: maker}
    seeds = {one: seed / "model" / one for one in makers} if isinstance(maker, HeterogeneousModels) else {name: seed / "model"}
    assigned = (
        call_part("model", maker.assign, number, (seed / "assignment").numpy()) if isinstance(maker, HeterogeneousModels) else [name] * number
    )
    networks = {}
    for one, of in makers.items():
        with seeds[one].globally():
            model = call_part("model", of, task).to(config.device, dtype)
        networks[one] = Network(one, model, snapshot(model))
    return [networks[one] for one in assigned], next(iter(networks.values()))
