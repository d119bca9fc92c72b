"""``python -m simulations.distill KEY=VALUE ...``: the same as ``fedkd distill``, one student or, with ``-m``, a serial sweep."""

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from simulations.config import CONF, one_line_errors
from simulations.distillation.runner import longhand, run_distillation, with_distillation_choices


@hydra.main(config_path=str(CONF), config_name="distill", version_base="1.3")
def command(config: DictConfig) -> None:
    """One distillation, as Hydra calls it: once, or for every combination of a sweep."""
    with one_line_errors():
        run = HydraConfig.get()
        run_distillation(with_distillation_choices(config, dict(run.runtime.choices), list(run.overrides.task)))


def main() -> None:
    """The command."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = [longhand(one) for one in sys.argv[1:]]
    with one_line_errors():
        command()


if __name__ == "__main__":
    main()
