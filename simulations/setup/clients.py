"""The data and the network of each client."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from omegaconf import DictConfig

from fedkd.config.build import build, call_part
from fedkd.data.cache import content_digest
from fedkd.data.client_shift import Shift
from fedkd.errors import require
from fedkd.models.base import Classifier
from fedkd.models.construction import make_classifier
from fedkd.models.heterogeneous import HeterogeneousModels
from fedkd.partition.validation_split import split_validation
from fedkd.seed import Seed
from fedkd.strategy import Strategy
from fedkd.training.functional_model import snapshot
from fedkd.types import INPUTS, TARGETS, Examples, Partition, Task, Tensors
from simulations.setup.views import Pools, Views, divide_among_clients, make_views

TARGET_RULES = {
    "label": "must return one class for each {part} example, as a vector of whole numbers (or a Task with another target)",
    "multi_label": "must return 0 or 1 for each {part} example and class, as floats [N, C], as Task.target is multi_label",
    "next_token": "must return the next tokens of each {part} example as whole numbers [N, L], as Task.target is next_token",
}
"""What the targets of each kind are."""


@dataclass(frozen=True)
class ClientData:
    """The examples of all clients, and the data of the server.

    Args:
        partition: indices of each client's training examples in the training set, and of its local test set in ``local_test_pool``.
        train: training examples of each client [K], with its feature shift and label noise.
        local_test: local test set of each client [K], with its feature shift.
        local_test_pool: the examples that the local test sets are taken from.
        global_test: the global test set. With ``evaluation.split=validation`` it is the held-out training examples of all clients.
        public_data: public examples without labels. None if the run has none.
        validation: held-out training examples of all clients, for early stopping. None if nothing is held out, or if
            ``evaluation.split=validation``.
        views: the data of the clients in all rounds of the run. The fields above are those of round 1. None where there are no data.
    """

    partition: Partition
    train: list[Examples]
    local_test: list[Examples]
    local_test_pool: Examples
    global_test: Examples
    public_data: Examples | None
    validation: Examples | None
    views: Views | None = None

    def in_phase(self, number: int) -> "ClientData":
        """The data in another phase of the run."""
        assert self.views is not None, "there are no data"
        train, local_test = self.views.examples(number)
        return replace(self, partition=self.views.partition(number), train=train, local_test=local_test)


def read_data(config: DictConfig) -> tuple[Task, Examples, Examples]:
    """The task, the training set and the test set that ``config.data`` names. What a data source of a user returns is checked here.

    Raises:
        ConfigError: the data cannot be read, or are no examples of the task's shape with one class each.
    """
    data = call_part("data", build(config, "data"))
    kinds = [type(one) for one in data] if isinstance(data, tuple) else [type(data)]
    rule = "must return a Task, the training Examples and the test Examples"
    require(kinds == [Task, Examples, Examples], "data._target_", rule, ", ".join(kind.__name__ for kind in kinds))
    task, train, test = data
    return task, checked(task, train, "training"), checked(task, test, "test")


def checked(task: Task, examples: Examples, part: str) -> Examples:
    """Examples that fit the task, with a digest of their content where they have none.

    Args:
        task: the classification task.
        examples: what the data source returned.
        part: ``training`` or ``test``, for messages.

    Raises:
        ConfigError: targets are not those of the task, such as a vector of classes, examples have another shape or are other tokens than
            the task's, a column of groups or metadata has another length, or a value is not finite.
    """
    x, y, classes = examples.x, examples.y, task.num_classes
    require(task.input in INPUTS, "data._target_", f"must return a Task whose input is one of {', '.join(INPUTS)}", task.input)
    require(task.target in TARGETS, "data._target_", f"must return a Task whose target is one of {', '.join(TARGETS)}", task.target)
    rule = TARGET_RULES[task.target].format(part=part)
    form = (y.ndim, tuple(y.shape[1:]), y.is_floating_point())
    fits = form == (task.targets(1).ndim, tuple(task.targets(1).shape[1:]), task.targets(1).is_floating_point()) and y.dtype != torch.bool
    require(fits, "data._target_", rule, f"{y.dtype} {list(y.shape)}")
    outside = y[(y < 0) | (y >= classes)] if task.target != "multi_label" else y[(y != 0) & (y != 1)]
    found = f"{len(outside)} of {y.numel()} outside, such as {outside[:1].tolist()}"
    if task.target == "multi_label":
        require(len(outside) == 0, "data._target_", f"must return labels of {part} examples that are 0 or 1", found)
    rule = f"must return labels of {part} examples in 0..{classes - 1}, as Task.num_classes is {classes}"
    require(len(outside) == 0, "data._target_", rule, found)
    is_tokens, words = task.input == "tokens", len(task.vocabulary)
    rule = f"must return {part} examples with tokens={is_tokens}, as Task.input is {task.input}"
    require(examples.tokens == is_tokens, "data._target_", rule, examples.tokens)
    if is_tokens:
        require(words >= 2, "data._target_", "must return a Task with a vocabulary of two tokens or more, padding first", words)
        whole = not x.is_floating_point() and x.dtype != torch.bool
        require(whole, "data._target_", f"must return {part} examples of whole numbers, which are token ids", x.dtype)
        rule = f"must return token ids of {part} examples in 0..{words - 1}, as Task.vocabulary has {words} tokens"
        low, high = (0, 0) if len(x) == 0 else (int(x.min()), int(x.max()))
        require(0 <= low and high < words, "data._target_", rule, f"{low}..{high}")
    rule = f"must return {part} examples of Task.shape {list(task.shape)}, one for each of {len(y)} labels"
    rows = len(x) if examples.rows is None else len(examples.rows)
    require(len(y) == 0 or (rows >= len(y) and x.shape[1:] == task.shape), "data._target_", rule, list(x.shape))
    columns = {"groups": examples.groups, **{f"metadata {name}": values for name, values in examples.metadata.items()}}
    for name, values in columns.items():
        rule = f"must return {name} of {part} examples as a vector, one value for each of {len(y)} labels"
        require(values is None or tuple(values.shape) == (len(y),), "data._target_", rule, [] if values is None else list(values.shape))
    finite = not x.is_floating_point() or bool(x.isfinite().all())
    require(finite, "data._target_", f"must return {part} examples whose values are finite", "nan or inf in x")
    return examples if examples.digest else replace(examples, digest=content_digest({"x": x.numpy(), "y": y.numpy()}))


def make_client_data(
    config: DictConfig, task: Task, train: Examples, test: Examples, seed: Seed, only_client: int | None = None
) -> ClientData:
    """Divide training and test examples among the clients.

    Args:
        config: the resolved configuration of the run.
        task: the classification task.
        train: the training set.
        test: the test set.
        seed: seed of the run.
        only_client: the client whose data set this is. None: the partition of the configuration divides it among all clients.

    Raises:
        ConfigError: the data cannot be divided in this way.
    """
    public_source = build(config, "public_data")
    if only_client is None:
        rule = f"must be at most the number of training examples ({len(train)})"
        require(config.num_clients <= len(train), "num_clients", rule, config.num_clients)
        check_parts(config, task)
        partition = divide_among_clients(config, train.attributes, test.attributes, seed / "partition")
    else:
        partition = all_of_one_client(config.num_clients, only_client, len(train), len(test))
    train, test = train.to(config.device), test.to(config.device)
    train_indices, validation_indices = split_validation(partition.train, config.validation_fraction, seed / "validation")
    train_indices, public_indices = split_validation(train_indices, public_source.held_out_fraction, seed / "public")
    public_data = call_part(
        "public_data", public_source, task, train.subset(np.concatenate(public_indices)), train.subset(np.concatenate(train_indices)),
        seed / "public",
    )  # fmt: skip
    validation = train.subset(np.concatenate(validation_indices)) if config.validation_fraction else None
    if config.evaluation.split == "validation":
        assert validation is not None, "check_run requires validation_fraction > 0"
        pool, global_test, test_indices = train, validation, validation_indices
        all_test_indices, validation = np.sort(np.concatenate(validation_indices)), None
    else:
        pool, global_test, test_indices = test, test, partition.test
        all_test_indices = np.arange(len(test))
    if config.evaluation.local_test == "all_examples":
        test_indices = [all_test_indices] * config.num_clients
    partition = replace(partition, train=train_indices, test=test_indices)
    own_train = np.setdiff1d(np.arange(len(train)), np.concatenate([*validation_indices, *public_indices]))
    views = make_views(config, task.num_classes, Pools(train, pool, own_train, all_test_indices), partition, seed)
    shifted_train, shifted_test = views.examples(0)
    return ClientData(
        partition=views.partition(0),
        train=shifted_train,
        local_test=shifted_test,
        local_test_pool=pool,
        global_test=global_test,
        public_data=None if public_data is None else public_data.without_labels(),
        validation=validation,
        views=views,
    )


def check_parts(config: DictConfig, task: Task) -> None:
    """Check that shift, partition and drift can be applied to the examples of a task.

    Raises:
        ConfigError: a part changes images where there are none, or reads classes where examples have none.
    """
    shift, partition, choices = build(config, "shift"), build(config, "partition"), config.choices
    if isinstance(shift, Shift):
        rule = f"must be none or label_noise for {task.input}, as rotation, domains, noise, blur and color_jitter change images"
        require(task.input == "image" or not shift.changes_images, "shift", rule, choices.get("shift"))
        rule = f"must be 0 for the target {task.target}, as it replaces the one class of an example"
        require(task.has_labels or not shift.changes_labels, "shift.label_noise", rule, shift.label_noise)
    if task.has_labels:
        return
    rule = f"must be iid, quantity_skew, by_group or from_file for the target {task.target}, as this one divides by classes"
    by_label = getattr(getattr(partition, "base", partition), "by_label", False)
    require(not by_label, "partition", rule, choices.get("partition", type(partition).__name__))
    drift = choices.get("drift", "none")
    require(drift == "none", "drift", f"must be none for the target {task.target}, as it reads the classes of examples", drift)


def all_of_one_client(num_clients: int, client: int, num_train: int, num_test: int) -> Partition:
    """The partition of a data set that belongs to one client. The others have nothing."""
    train, test = ([np.arange(size if number == client else 0) for number in range(num_clients)] for size in (num_train, num_test))
    return Partition(train, test)


@dataclass(frozen=True)
class Network:
    """One architecture.

    Args:
        name: name of the architecture.
        model: the network. Its parameters are overwritten before every use.
        initial: all parameters and buffers before the first round.
    """

    name: str
    model: Classifier
    initial: Tensors


def make_networks(
    config: DictConfig, task: Task, dtype: torch.dtype, seed: Seed, strategy: FlowerStrategy
) -> tuple[list[Network], Network]:
    """The network of each client [K], and that of the server.

    The server has the network of all clients, unless the strategy names another. With ``model=heterogeneous`` it has the first one that is
    configured.
    """
    factory, num_clients = build(config, "model"), config.num_clients
    if isinstance(factory, HeterogeneousModels):
        factories = {name: partial(factory.make, name) for name in factory.networks}
        seeds = {name: seed / "model" / name for name in factories}
        assigned = call_part("model", factory.assign, num_clients, (seed / "assignment").numpy())
    else:
        only = config.choices.get("model", "model")
        factories, seeds, assigned = {only: partial(make_classifier, factory)}, {only: seed / "model"}, [only] * num_clients

    def make(make_model: Callable[[Task], Classifier], key: str, seed: Seed) -> Classifier:
        with seed.globally():
            return call_part(key, make_model, task).to(config.device, dtype)

    def network(name: str, model: Classifier) -> Network:
        return Network(name, model, snapshot(model))

    if not isinstance(strategy, Strategy) or type(strategy).client_network is Strategy.client_network:
        networks = {name: network(name, make(make_model, "model", seeds[name])) for name, make_model in factories.items()}
        return [networks[name] for name in assigned], next(iter(networks.values()))
    first, own = next(iter(factories)), strategy.server_network()
    if own is None:
        server = make(factories[first], "model", seeds[first])
    else:
        server = make(partial(make_classifier, own), "strategy", seed / "model")
    networks, supported = {}, len(factories) == 1 or strategy.model_heterogeneity != "none"
    for name, make_model in factories.items():
        configured = make(make_model, "model", seed / "private" / name)
        with (seed / "client_network" / name).globally():  # for layers that the strategy adds
            pair = (configured, copy.deepcopy(server))
            model = call_part("strategy", strategy.client_network, *pair) if supported else configured  # refused by check_compatibility
        networks[name] = network(name, model.to(config.device, dtype))
    return [networks[name] for name in assigned], network(first if own is None else "shared", server)
