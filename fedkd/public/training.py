"""The training images themselves as a public set."""

from dataclasses import dataclass

from fedkd.seed import Seed
from fedkd.types import Examples, Task


@dataclass(frozen=True, kw_only=True)
class Training:
    """All images that the clients train on, without their labels: FedDFusion's proxy in FedGen's experiments (Zhu et al., ICML 2021).

    No federation has such a set; it bounds what a public set can give.
    """

    held_out = 0.0

    def __call__(self, task: Task, withheld: Examples, held: Examples, seed: Seed) -> Examples:
        """The clients' examples."""
        return held
