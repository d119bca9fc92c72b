"""No public set."""

from dataclasses import dataclass

from fedkd.seed import Seed
from fedkd.types import Examples, Task


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """The server has no data: what most strategies of fedkd need."""

    held_out = 0.0

    def __call__(self, task: Task, withheld: Examples, held: Examples, seed: Seed) -> Examples | None:
        """None."""
        return None
