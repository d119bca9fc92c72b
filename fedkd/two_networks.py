"""The base class of strategies whose clients have a shared and a private network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fedkd.errors import require
from fedkd.federation.aggregation import assemble_model, mean_batchnorm_statistics
from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.models.base import Classifier
from fedkd.models.network_pair import NetworkPair
from fedkd.strategy import Strategy
from fedkd.training.functional_model import FunctionalModel, submodule_tensors
from fedkd.types import State, Tensors

SHARED = "shared."
"""The beginning of the names of the shared network's parameters at a client."""


def is_shared(name: str) -> bool:
    """Whether a parameter of a client belongs to its shared network."""
    return name.startswith(SHARED)


def is_private(name: str) -> bool:
    """Whether a parameter of a client belongs to its private network, or to another part that it keeps."""
    return not is_shared(name)


@dataclass(kw_only=True)
class TwoNetworks(Strategy):
    """Federated averaging of a shared network. Each client has a private network beside it, which it keeps.

    The client's module holds both as ``shared`` and ``private``, see :class:`fedkd.models.network_pair.NetworkPair`. The server has the
    shared one, which is the global model. A client is tested with its private network. The accuracy of the shared one on the same examples
    is the column ``local_test_accuracy_shared``.

    A subclass says with :meth:`local_phases` and ``Phase(..., trained=is_private)`` what is trained when, or trains both by one ``loss``.

    Raises:
        ConfigError: ``shared_layers`` is not ``all``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "must be all, as each client has a private network beside the shared one"
        require(self.shared_layers == "all", "shared_layers", rule, self.shared_layers)

    def client_network(self, configured: Classifier, server: Classifier) -> Classifier:
        """The server's network, and the configured one as the private network."""
        return NetworkPair(server, configured)

    def initial_weights(self, client: Client, broadcast: State, client_state: State) -> Tensors:
        """The broadcast model as the shared network, and everything that the client keeps."""
        return {**{f"{SHARED}{key}": value for key, value in broadcast["model"].items()}, **client_state["local"]}

    def local_parameter_names(self, model: nn.Module) -> frozenset[str]:
        """The private network, and of the shared one what ``batchnorm`` keeps. Of the server's network the latter alone."""
        if not is_two_networks(model):
            return super().local_parameter_names(model)
        kept = super().local_parameter_names(model.get_submodule("shared"))
        return frozenset(key for key in model.state_dict() if is_private(key)) | {f"{SHARED}{key}" for key in kept}

    def shared_parameters(self, model: nn.Module, tensors: Tensors) -> Tensors:
        """The shared network without what stays with the client, by the server's names."""
        sent = super().shared_parameters(model, tensors)
        return submodule_tensors(sent, "shared") if is_two_networks(model) else sent

    def predict_client(self, model: FunctionalModel, x: Tensor, broadcast: State, client_state: State) -> dict[str, Tensor]:
        """The logits of the private network, and those of the ``shared`` one."""
        return {"": model(x).logits, "shared": model.submodule("shared")(x).logits}

    def global_model(self, server: Server, state: State) -> Callable[[Tensor], Any] | None:
        """The shared network, with the mean of the clients' BatchNorm statistics where these are local."""
        states = (
            {**one, "local": submodule_tensors(one["local"], "shared")} if "local" in one else one for one in server.client_states.values()
        )
        return assemble_model(server.model, server.initial, {**state["model"], **mean_batchnorm_statistics(states)})


def is_two_networks(model: nn.Module) -> bool:
    """Whether a module is a client's, and not the server's network."""
    return hasattr(model, "shared") and hasattr(model, "private")
