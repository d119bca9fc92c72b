"""``python -m fedkd``: the command ``fedkd``."""

from simulations.cli.main import main

if __name__ == "__main__":
    main()
