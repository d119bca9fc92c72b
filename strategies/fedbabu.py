"""FedBABU: the head keeps its initial weights in the federation, and is fine-tuned when a client is tested."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from fedkd.errors import require
from fedkd.federation.client import Client
from fedkd.federation.phase import Phase, is_body, is_head
from fedkd.strategy import Strategy
from fedkd.types import State


@dataclass(kw_only=True)
class FedBABU(Strategy):
    """Client: ``CE(h_0(f(x)), y)`` with h_0 fixed. Before a test, ``CE(h(f(x)), y)`` on the client's training examples.

    Server: ``f <- sum_k (1 / K) f_k``.

    f are the layers before the head, h_0 is the initial head, the same for all clients. The result of the fine-tuning is tested
    and dropped.

    Source:
        Oh, Kim, Yun: FedBABU: Toward enhanced representation for federated image classification, ICLR 2022.
        Public code: jhoon-oh/FedBABU @ e34c15b.

    Args:
        finetune_steps: Number of steps before a client is tested, >= 0. 0 tests the model with the initial head.
        finetuned: The part that these steps train: the ``whole`` network, its ``head``, or its ``body``.
        finetune_lr_factor: Learning rate of these steps over that of the client, > 0.

    Deviations:
        - From the public code: clients fine-tune before each test. The public code does so in a notebook after the federation.
        - The number and the learning rate of the published fine-tuning are not known for certain.
    """

    client_summary: ClassVar[str] = "head fixed, fine-tuned for the test"
    trains_head: ClassVar[bool] = False

    finetune_steps: int
    finetuned: Literal["whole", "head", "body"]
    finetune_lr_factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "must be body, as the head keeps its initial weights (strategy=fedavg takes other values)"
        require(self.shared_layers == "body", "shared_layers", rule, self.shared_layers)
        require(self.finetune_steps >= 0, "finetune_steps", "must be >= 0 (0 tests the initial head)", self.finetune_steps)
        require(self.finetune_lr_factor > 0, "finetune_lr_factor", "must be > 0", self.finetune_lr_factor)

    def local_phases(self, client: Client, broadcast: State, client_state: State, server_round: int) -> list[Phase]:
        """The layers before the head."""
        (phase,) = super().local_phases(client, broadcast, client_state, server_round)
        return [replace(phase, trained=is_body)]

    def personalization(self, client: Client, broadcast: State, client_state: State) -> list[Phase]:
        """The fine-tuning."""
        if self.finetune_steps == 0:
            return []
        batches = replace(client, seed=client.seed / "finetune", num_steps=self.finetune_steps).batches()
        trained = {"whole": None, "head": is_head, "body": is_body}[self.finetuned]
        return [Phase(batches, self.loss, trained=trained, lr_factor=self.finetune_lr_factor)]
