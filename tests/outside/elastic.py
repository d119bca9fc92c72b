"""Elastic aggregation: parameters to which the clients' outputs are sensitive move less."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedkd.errors import require
from fedkd.federation.aggregation import average
from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.strategy import Strategy
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics, State, Tensors, Update


@dataclass(kw_only=True)
class Elastic(Strategy):
    """Server: ``w <- w + (1 + strength (tau - s / max_k s_k)) (mean_k w_k - w)``, with s the mean of the clients' sensitivities s_k.

    The sensitivity of a tensor of parameters is ``||grad mean_x ||F(x)||^2||^2``, where F are the logits of the broadcast model in eval
    mode. It needs no labels. strength = 0 is FedAvg.

    Source:
        Chen, Hu, Tan, Wei, Wu: Elastic aggregation for federated optimization, CVPR 2023.

    Args:
        tau: How much a parameter without sensitivity moves beyond the mean, >= 0.
        strength: Weight of the rule, in 0..1. 1 is the paper's rule, 0 switches it off.
        num_samples: Examples of a client of which it computes the sensitivity in each round, > 0.

    Deviations:
        - A client computes its sensitivity anew in each round, and there is no moving average over batches.
    """

    server_summary: ClassVar[str] = "mean of models, scaled by sensitivity"
    secure_aggregation: ClassVar[bool] = False

    tau: float
    strength: float
    num_samples: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tau >= 0, "tau", "must be >= 0", self.tau)
        require(0 <= self.strength <= 1, "strength", "must be in 0..1 (0 is FedAvg)", self.strength)
        require(self.num_samples > 0, "num_samples", "must be > 0", self.num_samples)

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """The model and its sensitivity."""
        sent, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        index = torch.randperm(len(client.data), generator=(client.seed / "sensitivity").torch())[: self.num_samples]
        x = client.data.images(index.to(client.device), client.dtype)
        model = FunctionalModel(client.model.eval(), self.initial_weights(client, broadcast, client_state))
        gradient = model.gradient(lambda same: same(x).logits.square().sum(-1).mean())
        return {**sent, "sensitivity": {name: g.square().sum() for name, g in gradient.items() if name in sent["model"]}}, kept

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """The mean of models, of which each tensor moves by its own factor."""
        new, metrics = super().aggregate(server, state, updates, server_round)
        found = [update.state["sensitivity"] for update in updates]
        model = dict(new["model"])
        for name, value in average(found, self.aggregation_weights(updates)).items():
            largest = torch.stack([one[name] for one in found]).amax().clamp_min(1e-30)
            model[name] = model[name] + self.strength * (self.tau - value / largest) * (model[name] - state["model"][name])
        return {**new, "model": model}, metrics
