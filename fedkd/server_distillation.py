"""The base class of strategies whose server distills the clients' whole models into their mean."""

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
    """Federated averaging, after which the server trains the mean model with the clients' models as teachers.

    A subclass's ``aggregate`` stores the mean model as the part ``average`` of the state.

    Raises:
        ConfigError: ``batchnorm`` is not ``averaged``, or ``shared_layers`` is not ``all``.
    """

    secure_aggregation: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batchnorm == "averaged", "batchnorm", "must be averaged: the teachers need their statistics", self.batchnorm)
        require(self.shared_layers == "all", "shared_layers", "must be all: the teachers are whole networks", self.shared_layers)

    def extra_models(self, server: Server, state: State) -> dict[str, Callable[[Tensor], Any]]:
        """The mean of the clients' models before the distillation; nothing before the first round."""
        if "average" not in state:
            return {}
        return {"global_test_accuracy_before_distillation": assemble_model(server.model, server.initial, state["average"])}

    def require_image_generator(self, generator: Callable[..., Any]) -> None:
        """Check that a generator makes images.

        Args:
            generator: a generator's class, or a ``functools.partial`` of it.

        Raises:
            ConfigError: it makes embeddings.
        """
        kind = getattr(getattr(generator, "func", generator), "output_kind", "images")
        require(kind == "images", "generator", "must make images (image_conv)", kind)
