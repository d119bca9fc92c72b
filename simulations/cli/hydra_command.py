"""``run`` and ``distill``: Hydra reads the words, calls once or for every combination of ``-m``, and errors become one line."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from simulations.cli.exit_codes import FAILED, FULL_ERROR, WRONG, exit_code, one_line_errors
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
        attempts = Attempts(words)
        task = _federated(attempts) if root == "config" else _distillation(attempts)
        before = os.environ.get("HYDRA_FULL_ERROR")
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra shall raise instead of printing and exiting
        try:
            task()
        finally:
            os.environ.pop("HYDRA_FULL_ERROR")
            if before is not None:
                os.environ["HYDRA_FULL_ERROR"] = before
    attempts.conclude()


class Attempts:
    """The runs of one command. A sweep (``-m``) goes on past a run that fails.

    Args:
        words: the words of the command. A run is named by those with several values.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._swept = {word.partition("=")[0] for word in words if "," in word or "(" in word}
        self._number, self._failed = 0, dict[str, tuple[int, str]]()

    def make(self, run: Callable[[], object], overrides: Sequence[str], is_sweep: bool) -> None:
        """Make one run. Outside a sweep an error ends the command; in a sweep it is printed and noted.

        Args:
            run: makes the run.
            overrides: the words of the run.
            is_sweep: the run is one of several.

        Raises:
            SystemExit: outside a sweep, with an exit code of :mod:`simulations.cli.exit_codes`.
        """
        self._number += 1
        if not is_sweep:
            with one_line_errors():
                run()
            return
        try:
            run()
        except Exception as error:
            code, text = exit_code(error) or (FAILED, f"error: {type(error).__name__}: {error}")
            if exit_code(error) is None or FULL_ERROR:
                traceback.print_exc()
            print(text, file=sys.stderr, flush=True)
            label = " ".join(word for word in overrides if word.partition("=")[0] in self._swept) or " ".join(overrides)
            self._failed[label] = code, text.splitlines()[0].removeprefix("error: ")

    def conclude(self) -> None:
        """List the runs of a sweep that failed, and why.

        Raises:
            SystemExit: some failed. The code is that of a wrong request only if every failure was one.
        """
        if self._failed:
            print(f"{len(self._failed)} of {self._number} runs failed:", file=sys.stderr)
            for label, (_, text) in self._failed.items():
                print(f"failed: {label}: {text}", file=sys.stderr, flush=True)
            sys.exit(WRONG if all(code == WRONG for code, _ in self._failed.values()) else FAILED)


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


def _federated(attempts: Attempts):
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from simulations.config import task_words, with_choices
    from simulations.federation.runner import run_federation

    @hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
    def task(config: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        choices, overrides = dict(hydra_config.runtime.choices), task_words(hydra_config)
        is_sweep = hydra_config.mode == RunMode.MULTIRUN
        attempts.make(lambda: run_federation(with_choices(config, choices, overrides)), overrides, is_sweep)

    return task


def _distillation(attempts: Attempts):
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from simulations.config import task_words
    from simulations.distillation.runner import expand_words, run_distillation, with_distillation_choices

    sys.argv[1:] = expand_words(sys.argv[1:])

    @hydra.main(config_path=str(CONF), config_name="distill", version_base="1.3")
    def task(config: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        choices, overrides = dict(hydra_config.runtime.choices), task_words(hydra_config)
        is_sweep = hydra_config.mode == RunMode.MULTIRUN
        attempts.make(lambda: run_distillation(with_distillation_choices(config, choices, overrides)), overrides, is_sweep)

    return task
