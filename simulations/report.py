"""``python -m simulations.report FOLDER ...``: the same as ``fedkd report``, tables and figures from run folders."""

import sys
from collections.abc import Sequence

from simulations.cli.reporting import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments``; None takes those of the process. Returns the exit code."""
    return run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
