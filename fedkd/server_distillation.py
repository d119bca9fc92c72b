"""What strategies have in common whose server distils the clients' whole models into their mean."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fedkd.errors import require
from fedkd.federation.aggregation import assemble_model
from fedkd.federation.server import Server
from fedkd.strategy import Strategy
from fedkd.types import State


@dataclass(kw_only=True)
class ServerDistillation(Strategy):
    """Federated averaging, after which the server trains the mean on what the clients' models say; ``aggregate`` leaves the mean as ``average``."""

    secure_aggregation: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batchnorm == "averaged", "batchnorm", "must be averaged: the teachers need their statistics", self.batchnorm)
        require(self.shared_layers == "all", "shared_layers", "must be all: the teachers are whole networks", self.shared_layers)

    def extra_models(self, server: Server, state: State) -> dict[str, Callable[[Tensor], Any]]:
        """The mean of the clients' models, before the distillation."""
        return (
            {"global_test_accuracy_before_distillation": assemble_model(server.model, server.initial, state["average"])}
            if "average" in state
            else {}
        )

    def require_image_generator(self, generator: Callable[..., Any]) -> None:
        """Refuse a generator that makes anything else."""
        kind = getattr(getattr(generator, "func", generator), "output_kind", "images")
        require(kind == "images", "generator", "must make images (image_conv)", kind)
