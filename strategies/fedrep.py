"""FedRep: clients train their own head first, then the shared layers before it."""

from dataclasses import dataclass, replace
from typing import ClassVar

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.phase import Phase, is_body, is_head
from fedkd.strategy import Strategy
from fedkd.types import State


@dataclass(kw_only=True)
class FedRep(Strategy):
    """Client: ``CE(h_k(f(x)), y)``, ``head_steps`` steps on h_k with f fixed, then the configured local steps on f with h_k fixed.

    Server: ``f <- sum_k (n_k / n) f_k``.

    f are the layers before the head, h_k is the head of client k. Heads are neither sent nor averaged, so there is no global model.

    Source:
        Collins, Hassani, Mokhtari, Shakkottai: Exploiting shared representations for personalized federated learning, ICML 2021.
        Public code: lgcollins/FedRep @ d82e629.

    Args:
        head_steps: Number of steps on the head in a round, > 0.
        finetune_steps: Number of steps on the head before a client is tested, >= 0. Their result is dropped after the test. 0 tests the
            model as it is.

    Deviations:
        - From the public code: each phase has its own optimizer, and a fixed layer keeps its bits. The public code has one optimizer, whose
          momentum and weight decay also move the layers that are meant to be fixed.
        - From the public code: all clients fine-tune before each test. The public code does so after the last round alone.
        - Where BatchNorm statistics are local, both phases update them.
    """

    client_summary: ClassVar[str] = "own head, trained before the shared layers"

    head_steps: int
    finetune_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "must be body, as each client keeps its head (strategy=fedavg takes other values)"
        require(self.shared_layers == "body", "shared_layers", rule, self.shared_layers)
        require(self.head_steps > 0, "head_steps", "must be > 0 (strategy=fedper trains both together)", self.head_steps)
        require(self.finetune_steps >= 0, "finetune_steps", "must be >= 0 (0 tests the model as it is)", self.finetune_steps)

    def local_phases(self, client: Client, broadcast: State, client_state: State, server_round: int) -> list[Phase]:
        """The head with the other layers fixed, then these with the head fixed."""
        (body,) = super().local_phases(client, broadcast, client_state, server_round)
        return [self.head_phase(client, self.head_steps), replace(body, trained=is_body)]

    def personalization(self, client: Client, broadcast: State, client_state: State) -> list[Phase]:
        """Some steps on the head."""
        return [self.head_phase(client, self.finetune_steps)] if self.finetune_steps else []

    def head_phase(self, client: Client, num_steps: int) -> Phase:
        """A training of the head, whose batches are other than those of the local steps."""
        return Phase(replace(client, seed=client.seed / "head", num_steps=num_steps).batches(), self.loss, trained=is_head)
