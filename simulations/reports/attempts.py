"""Parts of a report that cannot be made. Each is named, and the others are written."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from fedkd.errors import FedkdError, one_line

Made = TypeVar("Made")
Given = ParamSpec("Given")


class Attempts:
    """What could not be made, by name.

    Args:
        go_on: go on past a part that fails; otherwise its exception is raised.
    """

    def __init__(self, go_on: bool = False) -> None:
        self.missing: list[str] = []
        """Notes on parts for which the runs hold no numbers, and on comparisons without pairs."""
        self.failed: dict[str, Exception] = {}
        """Exceptions by the name of the part that raised them."""
        self._go_on = go_on

    @property
    def notes(self) -> list[str]:
        """A line for each part that is missing or has failed."""
        return [*self.missing, *(f"{name} failed: {line(error)}" for name, error in self.failed.items())]

    def make(self, name: str, function: Callable[Given, Made], *given: Given.args, **named: Given.kwargs) -> Made | None:
        """The part that ``function`` makes; None, and a note, where it raises.

        Args:
            name: of the part, such as ``table clients``.
            function: makes the part. It raises an exception of fedkd where the runs hold no numbers for it.
            given: arguments of the function.
            named: further arguments by name.

        Raises:
            OSError: a file cannot be written or read.
            Exception: whatever the function raises, unless the attempts go on past failures.
        """
        try:
            return function(*given, **named)
        except OSError:
            raise
        except FedkdError as error:
            self.missing.append(f"no {name}: {line(error)}")
        except Exception as error:  # a fault in one part, of whatever kind, must not cost the others
            if not self._go_on:
                raise
            self.failed[name] = error
        return None


def line(error: Exception) -> str:
    """The exception in one line: its kind, except for those of fedkd, and its message."""
    text = one_line(error)
    return text if isinstance(error, FedkdError) else f"{type(error).__name__}: {text}"
