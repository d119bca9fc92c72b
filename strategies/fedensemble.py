"""FedEnsemble: FedAvg whose prediction is the sum of all clients' models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedkd.federation.aggregation import assemble_model
from fedkd.federation.server import Server
from fedkd.models.ensemble import Ensemble
from fedkd.strategy import Strategy
from fedkd.types import Metrics, State, Update


@dataclass(kw_only=True)
class FedEnsemble(Strategy):
    """``argmax sum_k z_k(x)`` over all clients' models, which are trained by FedAvg (baseline of Zhu et al., ICML 2021).

    As in the public code the ensemble is read after local training and before the next broadcast: the clients of the round
    hold the models they have just trained, all others the model broadcast at the round's beginning, each with its own
    BatchNorm statistics. It is measured on the pooled own test shards (``local_test_accuracy``); the balanced test
    measures the averaged model, so that it can be compared with FedAvg's.

    Deviations: none known. The members' models are kept by the server for the evaluation; they cost no further bytes.
    """

    server_summary: ClassVar[str] = "mean of models; predicts with all"
    secure_aggregation: ClassVar[bool] = False
    clients_evaluate: ClassVar[bool] = False

    def init_server(self, server: Server) -> State:
        state = super().init_server(server)
        return {**state, "broadcast": state["model"]}

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        after, metrics = super().aggregate(server, {"model": state["model"]}, updates, server_round)
        members = {f"member-{u.client}": u.state["model"] for u in updates}
        return {**after, "broadcast": state["model"], **members}, metrics

    def client_ensemble(self, server: Server, state: State) -> Ensemble:
        """All clients' models as they stand between local training and the next broadcast."""
        models = []
        for client in range(server.num_clients):
            tensors = state.get(f"member-{client}", state["broadcast"])
            client_state = server.memories.get(client, {}).get("local", {})
            models.append(assemble_model(server.model, server.initial, {**tensors, **client_state}))
        return Ensemble(models, [1.0] * len(models))
