"""``python -m simulations.reproduce experiment=NAME ...``: the same as ``fedkd reproduce``, a published table beside ours."""

from simulations.experiments.reproduce import main

if __name__ == "__main__":
    main()
