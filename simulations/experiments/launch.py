"""Runs that a launcher of Hydra makes, such as an array job of SLURM, instead of processes of this machine.

Each run is that of ``fedkd run``: a finished one is skipped, and an interrupted one continues. What the runs have become is read from their
folders.
"""

import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext
from omegaconf import DictConfig

from fedkd.errors import ConfigError, FedkdError, require
from simulations.distillation.runner import run_distillation
from simulations.experiments.plan import PlannedRun, refresh
from simulations.experiments.sweep import one_line
from simulations.federation.runner import run_federation
from simulations.overrides import CONF, explain, extend_sys_path, quoted
from simulations.process import EndedBySignal, handlers_end_the_run

PREFIXES = ("hydra/launcher=", "hydra.launcher.")
"""How the words begin that choose a launcher and set its keys."""


def launcher_words(words: Sequence[str]) -> list[str]:
    """Those of ``words`` that choose a launcher and set its keys. Empty: runs are processes of this machine."""
    return [word for word in words if word.lstrip("+").startswith(PREFIXES)]


@dataclass
class LaunchedRuns:
    """What the launcher calls for each run, in a process of its own.

    Args:
        configs: the configurations of all runs. The number of the job chooses one.
        divergence_is_result: a run that diverges has not failed.
        paths: folders of the user's modules.
    """

    configs: list[DictConfig]
    divergence_is_result: bool
    paths: list[str] = field(default_factory=lambda: list(sys.path))

    def __call__(self, _: DictConfig) -> str | None:
        """Make a run, and return why it failed. The launcher's log has all that it printed."""
        extend_sys_path(self.paths)
        config = self.configs[HydraConfig.get().job.num]
        config.progress = False  # lines of several processes would mix
        try:
            with redirect_stdout(sys.stderr), handlers_end_the_run():
                (run_distillation if "distiller" in config else run_federation)(config)
        except EndedBySignal as end:
            return str(end)
        except Exception as error:
            if not isinstance(error, FedkdError):
                traceback.print_exc()
            return None if self.divergence_is_result and isinstance(error, FloatingPointError) else one_line(error)
        return None


def launch(runs: Sequence[PlannedRun], words: Sequence[str], divergence_is_result: bool = False) -> dict[str, str]:
    """Make runs with a launcher, and wait for their end.

    Args:
        runs: different runs.
        words: of :func:`launcher_words`.
        divergence_is_result: a run that diverges has not failed.

    Returns:
        The reasons of runs that failed, by label. If the launcher itself fails, for example as a job was killed, its reason counts for all
        runs that are not finished.

    Raises:
        ConfigError: the launcher does not exist, or refuses a key.
    """
    if not runs:
        return {}
    output = f"output={quoted(str(runs[0].config.output))}"
    with hydra.initialize_config_dir(str(CONF), version_base="1.3", job_name="fedkd"):
        try:
            config = hydra.compose("config", [*words, output], return_hydra_config=True)
            context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
            task = LaunchedRuns([run.config for run in runs], divergence_is_result)
            launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
        except Exception as error:
            raise ConfigError(explain(error)) from error
        try:
            returned = launcher.launch([[output] for _ in runs], initial_job_idx=0)
        except Exception as error:
            return {run.label: f"the launcher failed: {one_line(error)}" for run in refresh(runs) if run.state != "finished"}
    reasons = {run.label: reason_of(one) for run, one in zip(runs, returned, strict=True)}
    return {label: why for label, why in reasons.items() if why is not None}


def reason_of(returned: JobReturn) -> str | None:
    """Why a job failed, None if it did not."""
    try:
        return returned.return_value
    except Exception as error:
        return one_line(error)


def check_jobs(jobs: int | None, words: Sequence[str]) -> None:
    """Refuse a number of processes of this machine beside a launcher, which has keys of its own.

    Raises:
        ConfigError: both are given.
    """
    require(jobs is None or not words, "jobs", f"must not be given with {' '.join(words)}, whose keys say how many runs it makes", jobs)
