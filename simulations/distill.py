"""``python -m simulations.distill KEY=VALUE ...``: the same as ``fedkd distill``, one student or, with ``-m``, a serial sweep."""

import sys
from collections.abc import Sequence

from simulations.cli.hydra_command import run_hydra


def main(words: Sequence[str] | None = None) -> None:
    """Run the command with ``words``; None takes those of the process."""
    run_hydra("distill", sys.argv[1:] if words is None else words, "distill")


if __name__ == "__main__":
    main()
