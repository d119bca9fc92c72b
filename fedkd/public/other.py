"""Another data set as a public set."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fedkd.check import require
from fedkd.seed import Seed
from fedkd.types import Examples, Task


@dataclass(frozen=True, kw_only=True)
class Other:
    """The training images of another data set, without their labels, scaled to networks as the clients' images are.

    Args:
        data: a source of data; its images must have the shape of the clients'.
    """

    data: Callable[[], tuple[Task, Examples, Examples]]

    held_out = 0.0

    def __call__(self, task: Task, withheld: Examples, held: Examples, seed: Seed) -> Examples:
        """Its training images.

        Raises:
            ValueError: they cannot be read, or have another shape than the clients'.
        """
        return replace(images_of(self.data, task).to(held.y.device), mean=held.mean, std=held.std)


def images_of(data: Callable[[], tuple[Task, Examples, Examples]], task: Task) -> Examples:
    """Another data set's training images.

    Raises:
        ValueError: they cannot be read, or have another shape than the task's.
    """
    try:
        other, train, _ = data()
    except ValueError as error:
        raise ValueError(f"data.{error}") from error
    rule = f"must have images of the clients' shape {task.shape} (data.size, data.channels), as {other.name} has not"
    require(other.shape == task.shape, "data", rule, other.shape)
    return train
