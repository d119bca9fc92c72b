"""``run`` and ``distill``: Hydra reads the words, calls once or for every combination of ``-m``, and errors become one line."""

import math
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.cli.exit_codes import FAILED, FULL_ERROR, exit_code, is_plain, one_line_errors, with_log
from simulations.overrides import CONF, extend_sys_path, nearest, with_search_path

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from simulations.cli.sweep_jobs import JobResult

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
    import hydra

    import simulations.config  # noqa: F401 (it registers the schemas)

    with one_line_errors():
        check_flags(words)
        sys.argv = [program, *overrides_first(with_search_path(words))]
        if root == "distill":
            from simulations.distillation.runner import expand_words

            sys.argv[1:] = expand_words(sys.argv[1:])
        command = hydra.main(config_path=str(CONF), config_name=root, version_base="1.3")(HydraTask(root))
        before = os.environ.get("HYDRA_FULL_ERROR")
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra shall raise instead of printing and exiting
        try:
            command()
        finally:
            os.environ.pop("HYDRA_FULL_ERROR")
            if before is not None:
                os.environ["HYDRA_FULL_ERROR"] = before


@dataclass
class HydraTask:
    """What Hydra calls for each run. A launcher sends it to other processes, on other machines perhaps.

    Args:
        root: ``config`` for federated runs, ``distill`` for distillations.
        full_error: the user asked for tracebacks. (Launched processes inherit the variable of the environment that the command sets.)
        paths: folders of the user's modules.
    """

    root: str
    full_error: bool = FULL_ERROR
    paths: list[str] = field(default_factory=lambda: list(sys.path))

    def __call__(self, config: "DictConfig") -> "JobResult | None":
        """Make a run.

        Returns:
            In a multirun how it ended; :class:`simulations.cli.sweep_jobs.SweepJobs` gives its objective to the sweeper.

        Raises:
            SystemExit: the run failed, and is not one of a multirun. The code is one of :mod:`simulations.cli.exit_codes`.
        """
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from fedkd.errors import require
        from simulations.cli.sweep_jobs import has_reader, is_launched

        hydra_config = HydraConfig.get()
        launched = is_launched(hydra_config)
        if hydra_config.mode != RunMode.MULTIRUN:
            with one_line_errors():
                alone = not launched and not has_reader(hydra_config)
                require(alone, "hydra/launcher and hydra/sweeper", "must be given with -m, also for one run", "no -m")
                self._run(config)
            return None
        if launched:  # lines of several processes would mix, and the command prints the folders in order at its end
            extend_sys_path(self.paths)
            config.progress = False
        with redirect_stdout(sys.stderr) if launched else nullcontext():
            return self._job(config, launched)

    def _run(self, config: "DictConfig") -> Path:
        """The folder of a run."""
        from hydra.core.hydra_config import HydraConfig

        from simulations.config import task_words, with_choices
        from simulations.distillation.runner import run_distillation, with_distillation_choices
        from simulations.federation.runner import run_federation

        hydra_config = HydraConfig.get()
        choices, words = dict(hydra_config.runtime.choices), task_words(hydra_config)
        if self.root == "config":
            return run_federation(with_choices(config, choices, words))
        return run_distillation(with_distillation_choices(config, choices, words))

    def _job(self, config: "DictConfig", launched: bool) -> "JobResult":
        """How a run of a multirun ends. A failure is printed, and does not end the others."""
        from hydra.core.hydra_config import HydraConfig

        from fedkd.errors import require
        from simulations.cli.sweep_jobs import JobResult, has_reader
        from simulations.process import EndedBySignal, handlers_end_the_run
        from simulations.run_folder.objective import read_objective, worst_objective

        name, needed = config.objective, has_reader(HydraConfig.get())
        try:
            require(not needed or name is not None, "objective", "must be a metric where the sweeper reads it", name)
            with handlers_end_the_run():
                folder = self._run(config)
            value = None if name is None else read_objective(folder, name)
            measured = not needed or (value is not None and not math.isnan(value))
            require(measured, "objective", "must be a metric that the run measures", name)
            return JobResult(value, folder=str(folder))
        except EndedBySignal as end:
            print(f"error: {end}", file=sys.stderr, flush=True)
            return JobResult(code=FAILED, text=str(end))
        except Exception as error:
            code, text = exit_code(error) or (FAILED, f"error: {type(error).__name__}: {error}")
            if exit_code(error) is None or self.full_error or (launched and not is_plain(error)):
                traceback.print_exc()  # the launcher has a log for each job
            else:
                text = with_log(error, text)
            print(text, file=sys.stderr, flush=True)
            diverged = isinstance(error, FloatingPointError) and name is not None
            return JobResult(worst_objective(name) if diverged else None, code, text.splitlines()[0].removeprefix("error: "))


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
