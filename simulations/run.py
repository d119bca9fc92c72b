"""``python -m simulations.run KEY=VALUE ...``: the same as ``fedkd run``, one federated run or, with ``-m``, a serial sweep."""

import sys
from collections.abc import Sequence

from simulations.cli.hydra_command import run_hydra


def main(words: Sequence[str] | None = None) -> None:
    """Run the command with ``words``; None takes those of the process."""
    run_hydra("config", sys.argv[1:] if words is None else words, "run")


if __name__ == "__main__":
    main()
