"""The base class of strategies whose server distills the clients' whole models into their mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedkd.distillation.generator_state import generated_images, new_generator
from fedkd.errors import require
from fedkd.federation.aggregation import AGGREGATION_PARTS, assemble_model
from fedkd.federation.client import Client, batchnorm_statistic_names
from fedkd.federation.server import Server
from fedkd.models.ensemble import Ensemble, Member
from fedkd.seed import Seed
from fedkd.strategy import Strategy
from fedkd.types import Generated, Input, Metrics, State, Target, Tensors, Update, parts_of


@dataclass(kw_only=True)
class ServerDistillation(Strategy):
    """Federated averaging, after which the server trains the mean model with the clients' models as teachers.

    A subclass's ``aggregate`` stores the mean model as the part ``average`` of the state.

    Clients may have different networks. Each sends its whole model, and all of them are teachers. The mean and the student have the
    server's network: the mean is that of the round's clients with this network, or the last student where a round has none of them. A
    client with another network cannot start from the student, so it keeps its own model, trains it, and is tested with it.

    Raises:
        ConfigError: ``batchnorm`` is not ``averaged``, or ``shared_layers`` is not ``all``.
    """

    targets: ClassVar[tuple[Target, ...]] = ("label",)
    secure_aggregation: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batchnorm == "averaged", "batchnorm", "must be averaged: the teachers need their statistics", self.batchnorm)
        require(self.shared_layers == "all", "shared_layers", "must be all: the teachers are whole networks", self.shared_layers)

    @property
    def model_heterogeneity(self) -> Literal["none", "same_embedding_size", "any"]:
        """``any``: the teachers are independent of each other."""
        return "any"

    # ------------------------------------------------------------------------------------------- client side
    def keeps_model(self, client: Client) -> bool:
        """Whether a client trains its own model on instead of the broadcast: where it has another network."""
        return not client.has_server_network

    def init_client(self, client: Client) -> State:
        """The client's own model, where it keeps one."""
        return {"model": {key: value.clone() for key, value in client.initial.items()}} if self.keeps_model(client) else {}

    def initial_weights(self, client: Client, broadcast: State, client_state: State) -> Tensors:
        """The broadcast, or the client's own model."""
        return client_state["model"] if self.keeps_model(client) else super().initial_weights(client, broadcast, client_state)

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """Send the model. Keep it where the client has another network than the server."""
        sent, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        return sent, {**kept, "model": trained} if self.keeps_model(client) else kept

    # ------------------------------------------------------------------------------------------- server side
    def aggregate_models(self, server: Server, state: State, updates: Sequence[Update], server_round: int) -> State:
        """The mean of the clients that have the server's network. The last model where there are none."""
        same = [update for update in updates if server.network_of(update.client) is server.model]
        return super().aggregate_models(server, state, same, server_round) if same else parts_of(state, "model", *AGGREGATION_PARTS)

    def teachers(self, server: Server, updates: Sequence[Update]) -> list[Member]:
        """The models of the round's clients."""
        return [Member(server.network_of(update.client), update.state["model"]) for update in updates]

    def with_statistics(self, server: Server, trained: Tensors, source: Tensors) -> Tensors:
        """``trained`` with the BatchNorm statistics of ``source``: those of generated images are not those of data."""
        return {**trained, **{name: source[name] for name in batchnorm_statistic_names(server.model)}}

    def _kept_ensemble(self, server: Server, state: State) -> dict[str, Callable[[Tensor], Any]]:
        """The ensemble of the clients' models in the parts ``member-<client>`` of the state, where a strategy keeps them.

        Its weights are in the part ``ensemble``, by the names of these parts. Without it they are equal.
        """
        names = sorted(name for name in state if name.startswith("member-"))
        networks = [server.network_of(int(name.removeprefix("member-"))) for name in names]
        members = [assemble_model(network, state[name], state[name]) for name, network in zip(names, networks)]
        weights = [state["ensemble"][name].item() for name in names] if "ensemble" in state else None
        return {"ensemble_test_accuracy": Ensemble(members, weights)} if members else {}

    def extra_models(self, server: Server, state: State) -> dict[str, Callable[[Tensor], Any]]:
        """The mean of the clients' models before the distillation, and the kept ensemble of these; nothing before the first round."""
        if "average" not in state:
            return {}
        average = assemble_model(server.model, server.initial, state["average"])
        return {"global_test_accuracy_before_distillation": average, **self._kept_ensemble(server, state)}

    def generate(self, server: Server, state: State, y: Tensor, seed: Seed) -> Generated | None:
        """The last batch of a round, with labels of its own, where the strategy keeps it as the part ``made``; None otherwise."""
        return Generated(state["made"]["images"], state["made"]["y"], are_embeddings=False) if "made" in state else None

    def require_statistics_of_data(self, student_statistics: str, student: str) -> None:
        """Check that a student which keeps the ``average`` of the clients' BatchNorm statistics starts from their average.

        Args:
            student_statistics: ``images`` or ``average``.
            student: the model with which the student starts, ``average`` or another one.

        Raises:
            ConfigError: it starts from another model.
        """
        require(
            student_statistics == "images" or student == "average",
            "student_statistics", "must be images, because only a student that starts from the average has statistics of data",
            student_statistics,
        )  # fmt: skip

    def require_image_generator(self, generator: Callable[..., Any]) -> None:
        """Check that a generator makes images.

        Args:
            generator: a generator's class, or a ``functools.partial`` of it.

        Raises:
            ConfigError: it makes embeddings.
        """
        kind = getattr(getattr(generator, "func", generator), "output_kind", "images")
        require(kind == "images", "generator", "must make images (image_conv, image_conv_by_label or image_dcgan)", kind)


@dataclass(kw_only=True)
class GeneratorDistillation(ServerDistillation):
    """Distillation on images of a generator that is part of the server's state. Clients send their label counts too."""

    inputs: ClassVar[tuple[Input, ...]] = ("image",)

    generator: Callable[..., nn.Module]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_image_generator(self.generator)

    def client_update(
        self, client: Client, trained: Tensors, metric_sums: Metrics, broadcast: State, client_state: State
    ) -> tuple[State, State]:
        """Send the model and the label counts of the client's data."""
        sent, kept = super().client_update(client, trained, metric_sums, broadcast, client_state)
        return {**sent, "labels": {"counts": client.data.y.bincount(minlength=client.task.num_classes)}}, kept

    def init_server(self, server: Server) -> State:
        """The model and a new generator."""
        state, example = super().init_server(server), torch.empty(0, dtype=server.dtype, device=server.device)
        return {**state, "generator": new_generator(self.generator, server.task, server.seed / "generator", example)}

    def generate(self, server: Server, state: State, y: Tensor, seed: Seed) -> Generated:
        """Images of the current generator for labels ``y``."""
        return generated_images(self.generator, state["generator"], server.task, y, seed, server.batch_size)
