"""``run`` and ``distill``: Hydra reads the words, calls once or for every combination of ``-m``, and errors become one line."""

import os
import sys
from collections.abc import Sequence

from simulations.cli.exit_codes import one_line_errors
from simulations.overrides import CONF, nearest, with_search_path

FLAGS = (
    "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--shell-completion", "--config-path",
    "--config-name", "--config-dir", "--experimental-rerun", "--info",
)  # fmt: skip
"""Long options of Hydra's own command line. Those of one letter are Hydra's to judge."""

FLAGS_WITH_VALUE = (
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--experimental-rerun",
)  # fmt: skip
"""Options of Hydra whose value is the next word."""


def run_hydra(root: str, words: Sequence[str], program: str) -> None:
    """Run or distill what ``words`` describe.

    Args:
        root: ``config`` for federated runs, ``distill`` for distillations.
        words: overrides and Hydra's own options.
        program: name of the command in Hydra's messages.

    Raises:
        SystemExit: with an exit code of :mod:`simulations.cli.exit_codes`, unless all is done.
    """
    with one_line_errors():
        check_flags(words)
        sys.argv = [program, *overrides_first(with_search_path(words))]
        task = _federated() if root == "config" else _distillation()
        before = os.environ.get("HYDRA_FULL_ERROR")
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra shall raise instead of printing and exiting
        try:
            task()
        finally:
            os.environ.pop("HYDRA_FULL_ERROR")
            if before is not None:
                os.environ["HYDRA_FULL_ERROR"] = before


def overrides_first(words: Sequence[str]) -> list[str]:
    """``words`` with all overrides before all options, as Hydra rejects overrides on both sides of an option.

    With it ``engine=local -m seed=0,1`` is a sweep, as ``-m engine=local seed=0,1`` is.
    """
    overrides: list[str] = []
    options: list[str] = []
    for number, word in enumerate(words):
        before = words[number - 1] if number else ""
        is_value = before in FLAGS_WITH_VALUE or (before in ("--info", "-i") and "=" not in word and not word.startswith("~"))
        (options if word.startswith("-") or is_value else overrides).append(word)
    return [*overrides, *options]


def check_flags(words: Sequence[str]) -> None:
    """Refuse a long option that neither fedkd nor Hydra has.

    Raises:
        ConfigError: naming the nearest.
    """
    from fedkd.errors import ConfigError

    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in FLAGS:
            raise ConfigError(f"an option must be one of Hydra's ({', '.join(FLAGS)}), got {name!r}{nearest(name, FLAGS)}")


def _federated():
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    from simulations.config import with_choices
    from simulations.federation.runner import run_federation

    @hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
    def task(config: DictConfig) -> None:
        with one_line_errors():
            hydra_config = HydraConfig.get()
            run_federation(with_choices(config, dict(hydra_config.runtime.choices), list(hydra_config.overrides.task)))

    return task


def _distillation():
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    from simulations.distillation.runner import expand_words, run_distillation, with_distillation_choices

    sys.argv[1:] = expand_words(sys.argv[1:])

    @hydra.main(config_path=str(CONF), config_name="distill", version_base="1.3")
    def task(config: DictConfig) -> None:
        with one_line_errors():
            hydra_config = HydraConfig.get()
            run_distillation(with_distillation_choices(config, dict(hydra_config.runtime.choices), list(hydra_config.overrides.task)))

    return task
