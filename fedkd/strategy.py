"""The base class of all strategies: the hooks of an algorithm, for the client and for the server.

A subclass is one file that reads like the paper. It overrides only the hooks that it changes. Hooks see tensors and never a Flower type.
Parameters that every algorithm has are fields of the base class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn

from fedkd.errors import require
from fedkd.federation.aggregation import aggregate_models, assemble_model, mean_batchnorm_statistics
from fedkd.federation.client import Client, batchnorm_names, batchnorm_statistic_names
from fedkd.federation.phase import Phase
from fedkd.federation.server import Server
from fedkd.federation.server_loop import ServerLoop
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.metrics.accuracy import Score, evaluate_predictions
from fedkd.models.base import Classifier
from fedkd.seed import Seed
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, keep_frozen, load
from fedkd.training.loop import FitResult, fit
from fedkd.training.vectorized import fit_clients
from fedkd.types import INPUTS, TARGETS, Generated, Input, Metrics, State, Target, Task, Tensors, Update


@dataclass(kw_only=True)
class Strategy(ServerLoop):
    """Federated averaging with hooks.

    Args:
        batchnorm: ``local``: BatchNorm statistics stay with each client and are never sent, as in FedGen's public code.
            ``averaged``: they are sent and averaged like parameters. ``private``: the layers' scales and shifts stay too, as in FedBN.
        aggregation: the weights of clients in the mean: their number of training ``examples``, or ``uniform``.
        lr_schedule: ``constant``. ``round``: ``lr * lr_decay**(r - 1)`` in round r. ``last_participation``: the same with r the round in
            which the client trained last, and ``lr`` the first time, as in FedGen's public code.
        lr_decay: in (0, 1].
        shared_layers: ``all`` layers of the model are shared, its ``head`` only, or its ``body``, which is all but the head. Otherwise
            patterns of names with ``|`` between them, such as ``stages.0.*|head.*``. Layers that are not shared stay with each client, and
            there is no global model.

    Raises:
        ConfigError: a value is out of its range.
    """

    broadcast_parts: ClassVar[tuple[str, ...]] = ("model",)
    """Parts of the state that the server sends to the clients."""

    inputs: ClassVar[tuple[Input, ...]] = INPUTS
    targets: ClassVar[tuple[Target, ...]] = TARGETS
    """The kinds of inputs and targets on which the algorithm trains, see :class:`fedkd.types.Task`."""

    needs_public_data: ClassVar[bool] = False
    """The strategy distills on public images."""

    client_summary: ClassVar[str] = ""
    """The client's loss terms beside cross-entropy, in a few words; empty if there are none."""

    server_summary: ClassVar[str] = "mean of models"
    """The server's step, in a few words."""

    secure_aggregation: ClassVar[bool] = True
    """Weighted sums of the updates are enough for ``aggregate`` and ``server_training``, as under secure aggregation."""

    trains_head: ClassVar[bool] = True
    """Clients train the head with which they are tested. If not, a check before the first round does not warn of it."""

    averages_models: ClassVar[bool] = True
    """Where a part ``model`` is broadcast, ``aggregate`` makes it by ``aggregate_models``."""

    any_shared_layers: ClassVar[bool] = True
    """Any layers can be shared, not only all of them or the head."""

    per_example_draws: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors of ``prepare_batches`` with one entry per example [S, B, ...]. They are cut where a batch is smaller than B."""

    batchnorm: Literal["local", "averaged", "private"]
    aggregation: Literal["examples", "uniform"]
    lr_schedule: Literal["constant", "round", "last_participation"]
    lr_decay: float
    shared_layers: str

    @property
    def model_heterogeneity(self) -> Literal["none", "same_embedding_size", "any"]:
        """Which models the clients may have: one for all (``none``), any with the same embedding size, or ``any``."""
        return "any" if "model" not in self.broadcast_parts else "same_embedding_size" if self.shared_layers == "head" else "none"

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if choices := [c for c in get_args(hint) if isinstance(c, str)]:
                require(getattr(self, name) in choices, name, f"must be one of {', '.join(choices)}", getattr(self, name))
        if self.any_shared_layers:
            rule = "must be all, head, body, or patterns of names such as 'stages.0.*|head.*'"
            sound = self.shared_layers in ("all", "head", "body") or "." in self.shared_layers or "*" in self.shared_layers
        else:
            rule, sound = "must be all or head with this strategy", self.shared_layers in ("all", "head")
        require(sound, "shared_layers", rule, self.shared_layers)
        require(0 < self.lr_decay <= 1, "lr_decay", "must be in (0, 1] (1 keeps the learning rate)", self.lr_decay)

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Check before training that the clients' optimizer fits the algorithm, which by default it does.

        Raises:
            ConfigError: it does not fit.
        """

    def check_network(self, model: nn.Module) -> None:
        """Check before training that a network of a client fits the algorithm: that it has the layers that are to be shared.

        Raises:
            ConfigError: it does not fit.
        """
        layers = sorted({key.rpartition(".")[0] for key in model.state_dict()})
        for pattern in self._layer_patterns():
            found = any(fnmatchcase(key, pattern) for key in model.state_dict())
            require(found, "shared_layers", f"must name layers of the network, which has {', '.join(layers)}", pattern)

    # ------------------------------------------------------------------------------------------- networks
    def server_network(self) -> Callable[[Task], Classifier] | None:
        """Makes the server's network, where :meth:`client_network` is overridden. None: the clients', or the first where these differ."""
        return None

    def client_network(self, configured: Classifier, server: Classifier) -> Classifier:
        """The network of a client, by default the one that is configured for it.

        A strategy with several networks for each client overrides it, see :class:`fedkd.two_networks.TwoNetworks`.

        Args:
            configured: the configured network with initial weights of its own.
            server: a copy of the server's network with its initial weights.
        """
        return configured

    # ------------------------------------------------------------------------------------------- client hooks
    def init_client(self, client: Client) -> State:
        """The client state before the first round, with the same keys and shapes for every client."""
        return {}

    def initial_weights(self, client: Client, broadcast: State, client_state: State) -> Tensors:
        """The weights at the start of local training: the broadcast model, overwritten by parameters that stay with the client."""
        return {**broadcast["model"], **client_state.get("local", {})}

    def local_phases(self, client: Client, broadcast: State, client_state: State, server_round: int) -> list[Phase]:
        """The local trainings of a round, in order. Each has its own optimizer. All clients have the same number of them."""
        batches = client.batches()
        return [Phase(batches.with_drawn(self.prepare_batches(client, batches, broadcast, client_state, server_round)), self.loss)]

    def prepare_batches(
        self, client: Client, batches: Batches, broadcast: State, client_state: State, server_round: int
    ) -> dict[str, Tensor]:
        """Tensors [S, ...] that are random or scheduled, for all S steps at once. Each ``batch`` has their rows as attributes."""
        return {}

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """The loss of one step, and metrics that are summed over steps.

        The function is pure: it draws no random numbers, writes no attribute, and has no branch on a tensor's value. Scalar metrics are
        logged as ``train_<name>``: the mean over steps, then the mean over the round's clients with the weights of the aggregation.

        Returns:
            A scalar, and tensors of any fixed shape by name.
        """
        return cross_entropy(model(batch.x).logits, batch.y).mean(), {}

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """The state that the client sends, and its new client state.

        Args:
            client: the client.
            trained: its parameters and buffers after local training.
            metric_sums: the metrics of the last local training, summed over steps.
            broadcast: the parts that the server sent.
            client_state: the client state of the round before.
        """
        return {"model": self.shared_parameters(client.model, trained)}, client_state

    # ------------------------------------------------------------------------------------------- client hooks of the local test
    def test_weights(self, client: Client, broadcast: State, client_state: State) -> Tensors:
        """The weights with which a client is tested: those from which it would start to train, unless a strategy tests others."""
        return self.initial_weights(client, broadcast, client_state)

    def personalization(self, client: Client, broadcast: State, client_state: State) -> list[Phase]:
        """Local trainings before a client is tested. Their result is tested and then dropped. By default there are none.

        ``client.data`` are the client's training examples.
        """
        return []

    def predict_client(self, model: FunctionalModel, x: Tensor, broadcast: State, client_state: State) -> dict[str, Tensor]:
        """Class scores [B, C] of images x by name. The largest score of a row is the prediction.

        The prediction ``""`` is the client's: its accuracy is ``local_test_accuracy``, its cross-entropy the loss. The accuracy of another
        prediction is the column ``local_test_accuracy_<name>``. The function is pure, as :meth:`loss` is.

        Args:
            model: the client's network with the weights that are tested, in eval mode and without gradients.
            x: normalized images [B, channels, height, width].
            broadcast: the parts that the server sent.
            client_state: the client's state.
        """
        return {"": model(x).logits}

    # ------------------------------------------------------------------------------------------- server hooks
    def init_server(self, server: Server) -> State:
        """The state before the first round."""
        return {"model": self.shared_parameters(server.model, server.initial)}

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """The state after a round, and metrics to log. Updates are in the order of clients."""
        return {**state, **self.aggregate_models(server, state, updates, server_round)}, {}

    def server_training(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """The server's own training after ``aggregate``, and metrics to log.

        The round's evaluation runs at the same time. So this hook must not change a part that ``initial_weights`` or
        ``global_model`` reads.
        """
        return state, {}

    def server_steps(self, server: Server, updates: Sequence[Update], server_round: int) -> int:
        """How many optimizer steps ``aggregate`` and ``server_training`` take, at most. Displays of progress show it. 0: not known."""
        return 0

    def global_model(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        """The model of the global test, in eval mode; None if there is no global model.

        What stays with the clients of BatchNorm layers, the global model does not have. It then takes the mean of the clients that have
        trained, weighted by examples. Only a simulator can read these tensors.
        """
        if self.shared_layers != "all":
            return None
        statistics = mean_batchnorm_statistics(server.client_states.values())
        return assemble_model(server.model, server.initial, {**state["model"], **statistics})

    def extra_models(self, server: Server, state: State) -> dict[str, Callable[[Tensor], Any]]:
        """Further models for the global test by the column of their accuracy in ``metrics.csv``, such as the model before distillation."""
        return {}

    def client_ensemble(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        """The ensemble that is evaluated on the local test sets if ``clients_evaluate`` is False."""
        return None

    def generate(self, server: Server, state: State, y: Tensor, seed: Seed) -> Generated | None:
        """Samples of the server's generator, for diagnostics; None if there is no generator.

        The clients' updates must hold the ``model``, or the part of it that reads the samples.

        Args:
            server: the server.
            state: the state after a round.
            y: labels [N]. A generator without labels may return others.
            seed: of the noise.
        """
        return None

    # ------------------------------------------------------------------------------------------- helpers for the hooks
    def decompress(self, model: Tensors) -> Tensors:
        """The model that a sent part ``model`` stands for, where a strategy compresses it. Its names and shapes are always the same."""
        return model

    def local_parameter_names(self, model: nn.Module) -> frozenset[str]:
        """Names of parameters and buffers that stay with the client: those of BatchNorm layers, and of layers that are not shared.

        A strategy can override this. What stays is a part of the client state, and neither sent nor averaged.
        """
        kept = {"local": batchnorm_statistic_names, "private": batchnorm_names}.get(self.batchnorm, lambda _: frozenset[str]())(model)
        if self.shared_layers == "all":
            return kept
        matches = {key for key in model.state_dict() if any(fnmatchcase(key, pattern) for pattern in self._layer_patterns())}
        return kept | (matches if self.shared_layers == "body" else model.state_dict().keys() - matches)

    def _layer_patterns(self) -> list[str]:
        """The patterns of ``shared_layers``: of the head where all but it is shared, none where all layers are."""
        return {"all": [], "head": ["head.*"], "body": ["head.*"]}.get(self.shared_layers, self.shared_layers.split("|"))

    def shared_parameters(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """``tensors`` without those that stay with the client."""
        local = self.local_parameter_names(model)
        return {key: value for key, value in tensors.items() if key not in local}

    def aggregate_models(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> State:
        """The model after a round by the run's aggregator and server optimizer, with what these keep for the next round.

        By default it is the mean with the weights of :meth:`aggregation_weights`.

        Args:
            server: the server.
            state: the state before the round, with the model that was broadcast.
            updates: the clients' updates, each with a model.
            server_round: 1, 2, ...

        Returns:
            The part ``model``, and where they are used the parts of :data:`fedkd.federation.aggregation.AGGREGATION_PARTS`.
        """
        models, weights = [u.state["model"] for u in updates], self.aggregation_weights(updates)
        after = aggregate_models(state, models, weights, server.model, self.aggregator, self.server_optimizer, server_round)
        return {**after, "model": keep_frozen(server.model, server.initial, after["model"])}

    def aggregation_weights(self, updates: Sequence[Update]) -> list[float]:
        """The weight of each update in the mean. The weights sum to one."""
        sizes = [u.num_examples if self.aggregation == "examples" else 1 for u in updates]
        total = sum(sizes)
        return [size / total for size in sizes]

    # ------------------------------------------------------------------------------------------- the client's round
    def _new_client_state(self, client: Client) -> State:
        """The whole client state before the first round: the algorithm's, and what the base class keeps."""
        counts = {"last_round": torch.tensor(0), "num_examples": torch.tensor(0)}
        local = self.local_parameter_names(client.model)
        kept = {key: value.clone() for key, value in client.initial.items() if key in local}
        return {**self.init_client(client), **({"local": kept} if kept else {}), "client": counts}

    def lr_factor(self, client_state: State, server_round: int) -> float:
        """The factor of the client's learning rate, according to the schedule."""
        rounds = {"constant": 1, "round": server_round, "last_participation": int(client_state["client"]["last_round"])}
        return self.lr_decay ** max(rounds[self.lr_schedule] - 1, 0)

    def train(self, client: Client, broadcast: State, client_state: State | None, server_round: int) -> tuple[Update, State]:
        """Train one client for a round. Returns its update and its new client state."""
        client, phases, tensors, client_state = self._prepare(client, broadcast, client_state, server_round)
        fitted = self._fit(client, phases, tensors, broadcast, client_state)
        return self._conclude(client, len(phases[-1].batches), fitted, broadcast, client_state, server_round)

    def _fit(self, client: Client, phases: Sequence[Phase], tensors: Tensors, broadcast: State, client_state: State) -> FitResult:
        """The result of the last of a client's local trainings, each of which begins with the result of the one before."""
        for phase in phases:
            fitted = fit(
                client.model, tensors, phase.batches, phase.loss, phase.make_optimizer(client), broadcast=broadcast,
                client_state=client_state, execution=client.execution, trained=phase.names(client.model),
            )  # fmt: skip
            tensors = fitted.tensors
        return fitted

    def train_clients(
        self, clients: Sequence[Client], broadcast: State, client_states: Sequence[State | None], server_round: int
    ) -> list[tuple[Update, State]]:
        """Train several clients for a round as one tensor program. The results are those of :meth:`train`, up to rounding.

        The clients must have the same architecture and batch size.
        """
        prepared = [self._prepare(client, broadcast, client_state, server_round) for client, client_state in zip(clients, client_states)]
        members, plans, tensors, states = (list(column) for column in zip(*prepared))
        first = members[0]
        for phases in zip(*plans, strict=True):
            phase, batches = phases[0], [one.batches for one in phases]
            fitted = fit_clients(
                first.model, tensors, batches, phase.loss, phase.make_optimizer(first), broadcast=broadcast, client_states=states,
                lr_factors=[member.lr / first.lr for member in members], execution=first.execution, trained=phase.names(first.model),
            )  # fmt: skip
            tensors = [one.tensors for one in fitted]
        results = zip(members, batches, fitted, states)
        return [self._conclude(member, len(steps), result, broadcast, state, server_round) for member, steps, result, state in results]

    def _prepare(
        self, client: Client, broadcast: State, client_state: State | None, server_round: int
    ) -> tuple[Client, list[Phase], Tensors, State]:
        """Before local training: the client with this round's learning rate, its trainings, its initial weights, and its client state."""
        client_state = self._new_client_state(client) if client_state is None else client_state
        client = replace(client, lr=client.lr * self.lr_factor(client_state, server_round))
        phases = self.local_phases(client, broadcast, client_state, server_round)
        return (
            client,
            [replace(phase, batches=replace(phase.batches, per_example=self.per_example_draws)) for phase in phases],
            self.initial_weights(client, broadcast, client_state),
            client_state,
        )

    def _conclude(
        self, client: Client, num_steps: int, fitted: FitResult, broadcast: State, client_state: State, server_round: int
    ) -> tuple[Update, State]:
        """After local training: the update and the new client state."""
        sent, kept = self.client_update(client, fitted.tensors, fitted.metric_sums, broadcast, client_state)
        if "local" in client_state:
            kept = {**kept, "local": {key: fitted.tensors[key] for key in client_state["local"]}}
        kept = {**kept, "client": {"last_round": torch.tensor(server_round), "num_examples": torch.tensor(len(client.data))}}
        metrics = {name: value.item() / num_steps for name, value in fitted.metric_sums.items() if value.dim() == 0}
        return Update(client.id, len(client.data), client.architecture, sent, metrics, num_steps), kept

    def evaluate(
        self, client: Client, broadcast: State, client_state: State | None, server_round: int, batch_size: int
    ) -> dict[str, Score]:
        """The scores of a client's predictions on ``client.data``, by the names of :meth:`predict_client`."""
        state = self._new_client_state(client) if client_state is None else client_state
        tensors = self.test_weights(client, broadcast, state)
        if client.train_data is not None and len(client.train_data) > 0:
            learner = replace(client, data=client.train_data, lr=client.lr * self.lr_factor(state, server_round))
            if phases := self.personalization(learner, broadcast, state):
                tensors = self._fit(learner, phases, tensors, broadcast, state).tensors
        load(client.model, tensors)
        model = FunctionalModel(client.model.eval())
        predict, task = lambda x: self.predict_client(model, x, broadcast, state), client.task
        return evaluate_predictions(predict, client.data, batch_size, task.num_classes, client.dtype, task.uncounted)
