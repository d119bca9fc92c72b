"""FedNova: updates are normalized by the number of local steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.strategy import Strategy
from fedkd.training.functional_model import trained_names
from fedkd.training.optimizers import effective_steps, require_sgd
from fedkd.types import Metrics, State, Tensors, Update


@dataclass(kw_only=True)
class FedNova(Strategy):
    """Client: ``CE(z, y)``.

    Server: ``w <- w + a sum_k p_k (w_k - w) / a_k``, with ``a = sum_k p_k a_k`` and ``p_k = n_k / n``.

    a_k is the number of plain gradient steps that the steps of client k amount to: their number S_k, or with momentum rho
    ``(S_k - rho (1 - rho^S_k) / (1 - rho)) / (1 - rho)``. Clients with equal a_k give FedAvg, bit for bit. Clients do unequal numbers of
    steps with ``local_epochs``, or as stragglers (``systems.straggler_rate``).

    Source:
        Wang, Liu, Liang, Joshi, Poor: Tackling the objective inconsistency problem in heterogeneous federated optimization, NeurIPS 2020.
        Public code: JYWa/FedNova @ 47b4e09.

    Deviations:
        - BatchNorm statistics take the plain mean.
        - The variants with a proximal term and with momentum of the server are not implemented; ``server_optimizer=momentum`` is the latter
          over the normalized mean.
        - The equations hold for SGD alone. Other optimizers, Nesterov momentum and dampening are refused.
    """

    client_summary: ClassVar[str] = ""
    server_summary: ClassVar[str] = "mean of updates per local step"
    secure_aggregation: ClassVar[bool] = False

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse optimizers whose steps do not add up to a_k gradient steps."""
        require_sgd(optimizer, "FedNova divides updates by the number of gradient steps that they amount to")

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """Send the model and a_k."""
        sent, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        steps = torch.tensor(effective_steps(client.num_steps, client.momentum), dtype=torch.float64)
        return {**sent, "steps": {"effective": steps}}, kept

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Scale the change of each model to the mean number of steps, then average."""
        numbers = [float(u.state["steps"]["effective"]) for u in updates]
        mean = sum(weight * number for weight, number in zip(self.aggregation_weights(updates), numbers))
        if len(set(numbers)) > 1:
            names = frozenset(trained_names(server.model))
            updates = [replace(u, state=scaled(u.state, state, names, mean / number)) for u, number in zip(updates, numbers)]
        after, metrics = super().aggregate(server, state, updates, server_round)
        return after, {**metrics, "effective_steps": torch.tensor(mean)}


def scaled(update: State, state: State, names: frozenset[str], factor: float) -> State:
    """An update whose model has changed by ``factor`` times as much, in the parameters ``names``."""
    before, model = state["model"], update["model"]
    return {**update, "model": {key: before[key] + factor * (w - before[key]) if key in names else w for key, w in model.items()}}
