"""Strategy: the hooks of an algorithm, both halves.

A subclass is one file that reads like the paper. It overrides what it changes and nothing else; the hooks know tensors and
never a Flower type. The switches that belong to every algorithm are fields here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn

from fedkd.errors import require
from fedkd.federation.aggregation import assemble_model, average, mean_batchnorm_statistics
from fedkd.federation.client import Client, batchnorm_statistic_names
from fedkd.federation.server import Server
from fedkd.federation.server_loop import ServerLoop
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.metrics.accuracy import Score, evaluate
from fedkd.seed import Seed
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, load
from fedkd.training.loop import FitResult, LossFunction, fit
from fedkd.training.vectorized import fit_clients
from fedkd.types import Generated, Metrics, State, Tensors, Update

Phase = tuple[Batches, LossFunction]
"""One training: its steps, and what it minimises."""


@dataclass(kw_only=True)
class Strategy(ServerLoop):
    """Federated averaging with hooks.

    Args:
        batchnorm: ``local``: BatchNorm statistics stay with each client and are never sent (FedGen's public code);
            ``averaged``: they travel and are averaged like parameters.
        aggregation: weights of clients in the mean: by number of training ``examples``, or ``uniform``.
        lr_schedule: ``constant``; ``round``: ``lr * lr_decay**(r - 1)`` in round r; ``last_participation``: the same with r
            the round in which the client last trained, and ``lr`` the first time (FedGen's public code).
        lr_decay: in (0, 1].
        shared_layers: ``all`` of the model travels, or its ``head`` alone; the rest then stays with each client, and no global model exists.
    """

    broadcast_parts: ClassVar[tuple[str, ...]] = ("model",)
    """Which parts of the state travel to the clients."""

    needs_public_data: ClassVar[bool] = False
    """It distils on public examples."""

    client_summary: ClassVar[str] = ""
    """What a client minimises beside cross-entropy, in a few words; empty: nothing."""

    server_summary: ClassVar[str] = "mean of models"
    """What the server does, in a few words."""

    secure_aggregation: ClassVar[bool] = True
    """The server needs nothing of a single client: ``aggregate`` and ``server_training`` depend on weighted sums of what is sent, as under secure aggregation."""

    batchnorm: Literal["local", "averaged"]
    aggregation: Literal["examples", "uniform"]
    lr_schedule: Literal["constant", "round", "last_participation"]
    lr_decay: float
    shared_layers: Literal["all", "head"]

    @property
    def model_heterogeneity(self) -> Literal["none", "same_embedding_size", "any"]:
        """Whether clients may have unlike networks: not where whole models are averaged; with ``embedding`` theirs must be of one size."""
        return "any" if "model" not in self.broadcast_parts else "same_embedding_size" if self.shared_layers == "head" else "none"

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if choices := [c for c in get_args(hint) if isinstance(c, str)]:
                require(getattr(self, name) in choices, name, f"must be one of {', '.join(choices)}", getattr(self, name))
        require(0 < self.lr_decay <= 1, "lr_decay", "must be in (0, 1] (1 keeps the learning rate)", self.lr_decay)

    # ------------------------------------------------------------------------------------------- hooks: the client's half
    def init_client(self, client: Client) -> State:
        """The algorithm's own state of a client before its first round: same keys and shapes for every client."""
        return {}

    def initial_weights(self, client: Client, broadcast: State, client_state: State) -> Tensors:
        """The weights to begin from: what was broadcast, with what stays with the client laid over it."""
        return {**broadcast["model"], **client_state.get("local", {})}

    def local_phases(self, client: Client, broadcast: State, client_state: State, server_round: int) -> list[Phase]:
        """The trainings of a client's round, one after the other, each with an optimizer of its own: as many for every client."""
        batches = client.batches()
        return [(batches.with_drawn(self.prepare_batches(client, batches, broadcast, client_state, server_round)), self.loss)]

    def prepare_batches(
        self, client: Client, batches: Batches, broadcast: State, client_state: State, server_round: int
    ) -> dict[str, Tensor]:
        """Everything random or scheduled, for all steps at once: tensors [S, ...] that appear on each ``batch``."""
        return {}

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """A scalar to minimise and metrics to sum over steps. Pure: no draws, nothing written, no branch on a tensor's value.

        Scalars among the metrics, such as terms of the loss, are logged too: ``train_<name>``, the mean over steps and, weighted as in the
        aggregation, over the round's clients.
        """
        return cross_entropy(model(batch.x).logits, batch.y).mean(), {}

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """What is sent to the server (and counted), and the memory that the client keeps; ``metric_sums`` are those of the last phase."""
        return {"model": self.shared_parameters(client.model, trained)}, client_state

    # ------------------------------------------------------------------------------------------- hooks: the server's half
    def init_server(self, server: Server) -> State:
        """The state before the first round."""
        return {"model": self.shared_parameters(server.model, server.initial)}

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """The state after a round, from updates in the order of clients."""
        return {**state, "model": average([u.state["model"] for u in updates], self.aggregation_weights(updates))}, {}

    def server_training(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """The server's own training after ``aggregate``: only of what neither ``initial_weights`` nor ``global_model`` reads, as evaluation goes on meanwhile."""
        return state, {}

    def global_model(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        """What the balanced test measures, in eval mode; None where there is no global model.

        Clients that keep their BatchNorm statistics leave the aggregated model without any: it takes the mean of those of
        the clients that have trained, weighted by examples, which only a simulator can read.
        """
        if self.shared_layers == "head":
            return None
        return assemble_model(server.model, server.initial, {**state["model"], **mean_batchnorm_statistics(list(server.client_states.values()))})

    def extra_models(self, server: Server, state: State) -> dict[str, Callable[[Tensor], Any]]:
        """Further models for the balanced test, by name (``accuracy_<name>``): such as the model before the server's own distillation."""
        return {}

    def client_ensemble(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        """What is measured on the clients' own test shards where ``clients_evaluate`` is False."""
        return None

    def generate(self, server: Server, state: State, y: Tensor, seed: Seed) -> Generated | None:
        """What the server's generator makes of labels ``y`` [N] as the state stands, or has made of labels of its own; None without one.

        For diagnostics: training does not ask. Clients' updates must then hold the ``model``, or as much of it as reads what is made.
        """
        return None

    # ------------------------------------------------------------------------------------------- helpers for the hooks
    def local_parameter_names(self, model: nn.Module) -> frozenset[str]:
        """Names of what never leaves a client: its BatchNorm statistics where they are ``local``, all but the head where only that is shared."""
        kept = batchnorm_statistic_names(model) if self.batchnorm == "local" else frozenset()
        return kept if self.shared_layers == "all" else kept | {key for key in model.state_dict() if not key.startswith("head.")}

    def shared_parameters(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """``tensors`` without what stays with the client."""
        stays = self.local_parameter_names(model)
        return {key: value for key, value in tensors.items() if key not in stays}

    def aggregation_weights(self, updates: Sequence[Update]) -> list[float]:
        """The weight of each update in a mean; they sum to one."""
        sizes = [u.num_examples if self.aggregation == "examples" else 1 for u in updates]
        return [size / sum(sizes) for size in sizes]

    # ------------------------------------------------------------------------------------------- the client's half, run
    def _new_client_state(self, client: Client) -> State:
        """A client's whole memory before its first round: the algorithm's, and what the switches of every strategy keep."""
        counts = {"last_round": torch.tensor(0), "num_examples": torch.tensor(0)}
        stays = self.local_parameter_names(client.model)
        kept = {key: value.clone() for key, value in client.initial.items() if key in stays}
        return {**self.init_client(client), **({"local": kept} if kept else {}), "client": counts}

    def lr_factor(self, client_state: State, server_round: int) -> float:
        """What the schedule multiplies the client's learning rate by."""
        rounds = {"constant": 1, "round": server_round, "last_participation": int(client_state["client"]["last_round"])}
        return self.lr_decay ** max(rounds[self.lr_schedule] - 1, 0)

    def train(self, client: Client, broadcast: State, client_state: State | None, server_round: int) -> tuple[Update, State]:
        """One client's round: what it sends, and the memory it keeps."""
        client, phases, tensors, client_state = self._prepare(client, broadcast, client_state, server_round)
        for batches, loss in phases:
            fitted = fit(
                client.model, tensors, batches, loss, client.make_optimizer, broadcast=broadcast, client_state=client_state, execution=client.execution
            )
            tensors = fitted.tensors
        return self._conclude(client, len(batches), fitted, broadcast, client_state, server_round)

    def train_clients(
        self, clients: Sequence[Client], broadcast: State, client_states: Sequence[State | None], server_round: int
    ) -> list[tuple[Update, State]]:
        """The round of several clients of one architecture and batch size at once: the same numbers, but for rounding."""
        ready = [self._prepare(client, broadcast, client_state, server_round) for client, client_state in zip(clients, client_states)]
        sites, plans, tensors, client_states = (list(column) for column in zip(*ready))
        factors = [site.lr / sites[0].lr for site in sites]
        for together in zip(*plans, strict=True):
            steps, (loss, *_) = zip(*together)
            fitted = fit_clients(
                sites[0].model, tensors, steps, loss, sites[0].make_optimizer, broadcast=broadcast, client_states=client_states, lr_factors=factors,
                execution=sites[0].execution,
            )  # fmt: skip
            tensors = [one.tensors for one in fitted]
        done = zip(sites, steps, fitted, client_states)
        return [
            self._conclude(site, len(batches), left, broadcast, client_state, server_round) for site, batches, left, client_state in done
        ]

    def _prepare(
        self, client: Client, broadcast: State, client_state: State | None, server_round: int
    ) -> tuple[Client, list[Phase], Tensors, State]:
        """Before the loop: the client at this round's learning rate, its phases with their draws, its weights, its memory."""
        client_state = self._new_client_state(client) if client_state is None else client_state
        client = replace(client, lr=client.lr * self.lr_factor(client_state, server_round))
        return (
            client,
            self.local_phases(client, broadcast, client_state, server_round),
            self.initial_weights(client, broadcast, client_state),
            client_state,
        )

    def _conclude(
        self, client: Client, num_steps: int, fitted: FitResult, broadcast: State, client_state: State, server_round: int
    ) -> tuple[Update, State]:
        """After the loop: what the client sends, and the memory it keeps."""
        sent, kept = self.client_update(client, fitted.tensors, fitted.metric_sums, broadcast, client_state)
        if "local" in client_state:
            kept = {**kept, "local": {key: fitted.tensors[key] for key in client_state["local"]}}
        kept = {**kept, "client": {"last_round": torch.tensor(server_round), "num_examples": torch.tensor(len(client.data))}}
        metrics = {name: value.item() / num_steps for name, value in fitted.metric_sums.items() if value.dim() == 0}
        return Update(client.id, len(client.data), client.architecture, sent, metrics), kept

    def evaluate(self, client: Client, broadcast: State, client_state: State | None, batch_size: int) -> Score:
        """Score the model that this client would begin from, on ``client.data``."""
        load(
            client.model, self.initial_weights(client, broadcast, self._new_client_state(client) if client_state is None else client_state)
        )
        return evaluate(client.model.eval(), client.data, batch_size, client.task.num_classes, client.dtype)
