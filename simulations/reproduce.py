"""``python -m simulations.reproduce experiment=NAME KEY=VALUE``: as ``fedkd reproduce``, with ``seeds=0,1`` for ``--seeds 0,1``."""

import sys
from collections.abc import Sequence

from simulations.cli.exit_codes import one_line_errors
from simulations.experiments.reproduce import parse_arguments, reproduce


def main(words: Sequence[str] | None = None) -> None:
    """Run the command with ``words``; None takes those of the process."""
    with one_line_errors():
        sys.exit(reproduce(parse_arguments(sys.argv[1:] if words is None else words)))


if __name__ == "__main__":
    main()
