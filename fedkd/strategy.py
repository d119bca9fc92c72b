"""Strategy: the hooks of an algorithm, both halves.

A subclass is one file that reads like the paper. It overrides what it changes and nothing else; the hooks know tensors and
never a Flower type. The switches that belong to every algorithm are fields here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn

from fedkd.errors import require
from fedkd.federation.aggregation import assemble_model, average, mean_batchnorm_statistics
from fedkd.federation.client import Client, batchnorm_statistics
from fedkd.federation.messaging import Federation
from fedkd.federation.server import Server
from fedkd.federation.server_loop import ServerLoop
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.metrics.accuracy import Score, evaluate
from fedkd.seed import Seed
from fedkd.training.batch import Batch, Batches
from fedkd.training.functional_model import FunctionalModel, load
from fedkd.training.loop import Fitted, LossFunction, fit
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
        sharing: ``all`` of the model travels, or its ``head`` alone; the rest then stays with each client, and no global model exists.
    """

    shares: ClassVar[tuple[str, ...]] = ("model",)
    """Which parts of the state travel to the clients."""

    needs_public: ClassVar[bool] = False
    """It distils on public examples."""

    client_term: ClassVar[str] = ""
    """What a client minimises beside cross-entropy, in a few words; empty: nothing."""

    server_step: ClassVar[str] = "mean of models"
    """What the server does, in a few words."""

    only_sums: ClassVar[bool] = True
    """The server needs nothing of a single client: ``update`` and ``refine`` depend on weighted sums of what is sent, as under secure aggregation."""

    batchnorm: Literal["local", "averaged"]
    aggregation: Literal["examples", "uniform"]
    lr_schedule: Literal["constant", "round", "last_participation"]
    lr_decay: float
    sharing: Literal["all", "head"]

    federation: Federation | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def unlike_models(self) -> Literal["no", "embedding", "any"]:
        """Whether clients may have unlike networks: not where whole models are averaged; with ``embedding`` theirs must be of one size."""
        return "any" if "model" not in self.shares else "embedding" if self.sharing == "head" else "no"

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if choices := [c for c in get_args(hint) if isinstance(c, str)]:
                require(getattr(self, name) in choices, name, f"must be one of {', '.join(choices)}", getattr(self, name))
        require(0 < self.lr_decay <= 1, "lr_decay", "must be in (0, 1] (1 keeps the learning rate)", self.lr_decay)

    # ------------------------------------------------------------------------------------------- hooks: the client's half
    def memory(self, client: Client) -> State:
        """The algorithm's own state of a client before its first round: same keys and shapes for every client."""
        return {}

    def begin(self, client: Client, shared: State, own: State) -> Tensors:
        """The weights to begin from: what was broadcast, with what stays with the client laid over it."""
        return {**shared["model"], **own.get("local", {})}

    def phases(self, client: Client, shared: State, own: State, server_round: int) -> list[Phase]:
        """The trainings of a client's round, one after the other, each with an optimizer of its own: as many for every client."""
        batches = client.batches()
        return [(batches.with_drawn(self.draw(client, batches, shared, own, server_round)), self.loss)]

    def draw(self, client: Client, batches: Batches, shared: State, own: State, server_round: int) -> dict[str, Tensor]:
        """Everything random or scheduled, for all steps at once: tensors [S, ...] that appear on each ``batch``."""
        return {}

    def loss(self, model: FunctionalModel, batch: Batch, shared: State, own: State) -> tuple[Tensor, Metrics]:
        """A scalar to minimise and metrics to sum over steps. Pure: no draws, nothing written, no branch on a tensor's value.

        Scalars among the metrics, such as terms of the loss, are logged too: ``train_<name>``, the mean over steps and, weighted as in the
        aggregation, over the round's clients.
        """
        return cross_entropy(model(batch.x).logits, batch.y).mean(), {}

    def report(self, client: Client, trained: Tensors, sums: Metrics, shared: State, own: State) -> tuple[State, State]:
        """What is sent to the server (and counted), and the memory that the client keeps; ``sums`` are those of the last phase."""
        return {"model": self.travelling(client.model, trained)}, own

    # ------------------------------------------------------------------------------------------- hooks: the server's half
    def init(self, server: Server) -> State:
        """The state before the first round."""
        return {"model": self.travelling(server.model, server.initial)}

    def update(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """The state after a round, from updates in the order of clients."""
        return {**state, "model": average([u.state["model"] for u in updates], self.weights(updates))}, {}

    def refine(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """The server's own training after ``update``: only of what neither ``begin`` nor ``predict`` reads, as evaluation goes on meanwhile."""
        return state, {}

    def predict(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        """What the balanced test measures, in eval mode; None where there is no global model.

        Clients that keep their BatchNorm statistics leave the aggregated model without any: it takes the mean of those of
        the clients that have trained, weighted by examples, which only a simulator can read.
        """
        if self.sharing == "head":
            return None
        return assemble_model(server.model, server.initial, {**state["model"], **mean_batchnorm_statistics(list(server.memories.values()))})

    def others(self, server: Server, state: State) -> dict[str, Callable[[Tensor], Any]]:
        """Further models for the balanced test, by name (``accuracy_<name>``): such as the model before the server's own distillation."""
        return {}

    def ensemble(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        """What is measured on the clients' own test shards where ``clients_evaluate`` is False."""
        return None

    def generate(self, server: Server, state: State, y: Tensor, seed: Seed) -> Generated | None:
        """What the server's generator makes of labels ``y`` [N] as the state stands, or has made of labels of its own; None without one.

        For diagnostics: training does not ask. Clients' updates must then hold the ``model``, or as much of it as reads what is made.
        """
        return None

    # ------------------------------------------------------------------------------------------- helpers for the hooks
    def stays(self, model: nn.Module) -> frozenset[str]:
        """Names of what never leaves a client: its BatchNorm statistics where they are ``local``, all but the head where only that is shared."""
        kept = batchnorm_statistics(model) if self.batchnorm == "local" else frozenset()
        return kept if self.sharing == "all" else kept | {key for key in model.state_dict() if not key.startswith("head.")}

    def travelling(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """``tensors`` without what stays with the client."""
        stays = self.stays(model)
        return {key: value for key, value in tensors.items() if key not in stays}

    def weights(self, updates: Sequence[Update]) -> list[float]:
        """The weight of each update in a mean; they sum to one."""
        sizes = [u.num_examples if self.aggregation == "examples" else 1 for u in updates]
        return [size / sum(sizes) for size in sizes]

    # ------------------------------------------------------------------------------------------- the client's half, run
    def fresh_memory(self, client: Client) -> State:
        """A client's whole memory before its first round: the algorithm's, and what the switches of every strategy keep."""
        counts = {"last_round": torch.tensor(0), "num_examples": torch.tensor(0)}
        stays = self.stays(client.model)
        kept = {key: value.clone() for key, value in client.initial.items() if key in stays}
        return {**self.memory(client), **({"local": kept} if kept else {}), "client": counts}

    def lr_factor(self, own: State, server_round: int) -> float:
        """What the schedule multiplies the client's learning rate by."""
        rounds = {"constant": 1, "round": server_round, "last_participation": int(own["client"]["last_round"])}
        return self.lr_decay ** max(rounds[self.lr_schedule] - 1, 0)

    def train(self, client: Client, shared: State, own: State | None, server_round: int) -> tuple[Update, State]:
        """One client's round: what it sends, and the memory it keeps."""
        client, phases, tensors, own = self.prepare(client, shared, own, server_round)
        for batches, loss in phases:
            fitted = fit(client.model, tensors, batches, loss, client.stepper, shared=shared, own=own, execution=client.execution)
            tensors = fitted.tensors
        return self.conclude(client, len(batches), fitted, shared, own, server_round)

    def train_cohort(
        self, clients: Sequence[Client], shared: State, owns: Sequence[State | None], server_round: int
    ) -> list[tuple[Update, State]]:
        """The round of several clients of one architecture and batch size at once: the same numbers, but for rounding."""
        ready = [self.prepare(client, shared, own, server_round) for client, own in zip(clients, owns)]
        sites, plans, tensors, memories = (list(column) for column in zip(*ready))
        factors = [site.lr / sites[0].lr for site in sites]
        for together in zip(*plans, strict=True):
            steps, (loss, *_) = zip(*together)
            fitted = fit_clients(
                sites[0].model, tensors, steps, loss, sites[0].stepper, shared=shared, owns=memories, lr_factors=factors,
                execution=sites[0].execution,
            )  # fmt: skip
            tensors = [one.tensors for one in fitted]
        done = zip(sites, steps, fitted, memories)
        return [self.conclude(site, len(batches), left, shared, own, server_round) for site, batches, left, own in done]

    def prepare(self, client: Client, shared: State, own: State | None, server_round: int) -> tuple[Client, list[Phase], Tensors, State]:
        """Before the loop: the client at this round's learning rate, its phases with their draws, its weights, its memory."""
        own = self.fresh_memory(client) if own is None else own
        client = replace(client, lr=client.lr * self.lr_factor(own, server_round))
        return client, self.phases(client, shared, own, server_round), self.begin(client, shared, own), own

    def conclude(
        self, client: Client, num_steps: int, fitted: Fitted, shared: State, own: State, server_round: int
    ) -> tuple[Update, State]:
        """After the loop: what the client sends, and the memory it keeps."""
        sent, kept = self.report(client, fitted.tensors, fitted.sums, shared, own)
        if "local" in own:
            kept = {**kept, "local": {key: fitted.tensors[key] for key in own["local"]}}
        kept = {**kept, "client": {"last_round": torch.tensor(server_round), "num_examples": torch.tensor(len(client.data))}}
        metrics = {name: value.item() / num_steps for name, value in fitted.sums.items() if value.dim() == 0}
        return Update(client.id, len(client.data), client.architecture, sent, metrics), kept

    def evaluate(self, client: Client, shared: State, own: State | None, batch_size: int) -> Score:
        """Score the model that this client would begin from, on ``client.data``."""
        load(client.model, self.begin(client, shared, self.fresh_memory(client) if own is None else own))
        return evaluate(client.model.eval(), client.data, batch_size, client.task.num_classes, client.dtype)
