"""A public set held out of the training set."""

from dataclasses import dataclass

from fedkd.check import require
from fedkd.seed import Seed
from fedkd.types import Examples, Task


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """``share`` of every client's training examples, without their labels; the clients train on the rest.

    Args:
        share: 0..1, both excluded.
    """

    share: float

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "share", "must be a share in 0..1, both excluded", self.share)

    @property
    def held_out(self) -> float:
        """What is taken from every client."""
        return self.share

    def __call__(self, task: Task, withheld: Examples, held: Examples, seed: Seed) -> Examples:
        """The withheld examples.

        Raises:
            ValueError: there are none.
        """
        require(len(withheld) > 0, "share", "must take an example of one client at least (a larger share, fewer clients)", self.share)
        return withheld
