"""FedEnsemble: FedAvg training, with the sum of all clients' logits as the prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedkd.federation.aggregation import AGGREGATION_PARTS, assemble_model
from fedkd.federation.server import Server
from fedkd.models.ensemble import Ensemble
from fedkd.strategy import Strategy
from fedkd.types import Metrics, State, Update, parts_of


@dataclass(kw_only=True)
class FedEnsemble(Strategy):
    """Client: ``CE(z, y)``.

    Server: ``w <- sum_k (n_k / n) w_k``.

    Prediction: ``argmax sum_k z_k(x)`` over all N clients.

    As in the public code the ensemble is read after local training and before the next broadcast. Clients of the round hold the models that
    they have just trained. All others hold the model broadcast at the start of the round. Each uses its own BatchNorm statistics.
    ``local_test_accuracy`` measures the ensemble on the pooled local test sets, and ``global_test_accuracy`` measures the averaged model,
    as for FedAvg.

    Source:
        Zhu, Hong, Zhou: Data-free knowledge distillation for heterogeneous federated learning, ICML 2021, a baseline of Table 1.
        Public code: zhuangdizhu/FedGen @ dd5807c.

    Deviations:
        - None known. The server keeps the members' models for evaluation. This costs no further traffic.
    """

    any_shared_layers: ClassVar[bool] = False
    server_summary: ClassVar[str] = "mean of models, prediction by all of them"
    secure_aggregation: ClassVar[bool] = False
    clients_evaluate: ClassVar[bool] = False

    def init_server(self, server: Server) -> State:
        """The model, and a copy as the last broadcast."""
        state = super().init_server(server)
        return {**state, "broadcast": state["model"]}

    def aggregate(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> tuple[State, Metrics]:
        """Average the models, and keep those of the round's clients as members."""
        after, metrics = super().aggregate(server, parts_of(state, "model", *AGGREGATION_PARTS), updates, server_round)
        members = {f"member-{u.client}": u.state["model"] for u in updates}
        return {**after, "broadcast": state["model"], **members}, metrics

    def client_ensemble(self, server: Server, state: State) -> Ensemble:
        """All clients' models between local training and the next broadcast."""
        models = []
        for client in range(server.num_clients):
            tensors = state.get(f"member-{client}", state["broadcast"])
            client_state = server.client_states.get(client, {}).get("local", {})
            models.append(assemble_model(server.model, server.initial, {**tensors, **client_state}))
        return Ensemble(models, [1.0] * len(models))
