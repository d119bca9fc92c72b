"""``python -m simulations.run KEY=VALUE ...``: the same as ``fedkd run``, one federated run or, with ``-m``, a serial sweep."""

import os

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from simulations.config import CONF, one_line_errors, with_choices
from simulations.federation.runner import run_federation


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def command(config: DictConfig) -> None:
    """One run, as Hydra calls it: once, or for every combination of a sweep."""
    with one_line_errors():
        run_federation(with_choices(config, dict(HydraConfig.get().runtime.choices)))


def main() -> None:
    """The command."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra shall raise instead of printing and exiting
    with one_line_errors():
        command()


if __name__ == "__main__":
    main()
