"""The jobs of a multirun (``-m``). Each leaves a record, in whatever process a launcher runs it; the command lists them at its end."""

import json
import shutil
import sys
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fedkd.errors import ConfigError, EngineError
from fedkd.files import write_atomically
from simulations.cli.exit_codes import FAILED, OK, WRONG
from simulations.config import task_words


@dataclass(frozen=True)
class JobResult:
    """What a job of a multirun returns.

    Args:
        objective: the value for the sweeper; of a run that diverged the worst one; None where there is none.
        code: the exit code that a single run would have had.
        text: why it failed, in one line; empty if it did not.
        folder: the run folder; empty if the run failed.
    """

    objective: float | None = None
    code: int = OK
    text: str = ""
    folder: str = ""


def is_launched(hydra_config: Any) -> bool:
    """Whether a launcher runs the jobs in processes of their own, instead of one after the other in this one."""
    return not str(hydra_config.launcher._target_).endswith(".BasicLauncher")


def has_reader(hydra_config: Any) -> bool:
    """Whether the sweeper reads the objectives, as Optuna's does. Hydra's own, which takes all combinations, does not."""
    return not str(hydra_config.sweeper._target_).endswith(".BasicSweeper")


class SweepJobs(Callback):
    """Notes how each job of a multirun ends, and ends the command with a list of those that failed.

    Hydra calls it: at the beginning and the end in the process of the command, after a job in the process of the job. The records lie in
    the sweep's folder, which all processes of a launcher share.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Choose the folder of the records. It is removed when this process ends."""
        self.words = task_words(config.hydra)
        self.folder = Path(str(config.hydra.sweep.dir)).absolute() / f"jobs_{uuid4().hex}"
        with suppress(OSError):  # the launcher cannot make the folder of the sweep either, and says so
            self.folder.mkdir(parents=True)
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write the record of a job, and give its objective to the sweeper. A failure is an exception if the sweeper reads objectives."""
        result = job_return.return_value if job_return.status == JobStatus.COMPLETED else None
        if not isinstance(result, JobResult):
            return
        record = {**asdict(result), "label": self._label(task_words(config.hydra))}
        if self.folder.is_dir():  # the command still waits for the job
            write_atomically(self.folder / f"{config.hydra.job.num:08d}.json", json.dumps(record).encode())
        job_return.return_value = result.objective
        if result.text and result.objective is None and has_reader(config.hydra):
            job_return.return_value = (ConfigError if result.code == WRONG else EngineError)(result.text)
            job_return.status = JobStatus.FAILED

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the folders of runs that other processes have made, and list the runs that failed.

        Raises:
            SystemExit: some failed. The code is that of a wrong request only if every failure was one.
        """
        if not self.folder.is_dir():
            print(f"error: the records of the jobs in {self.folder} are lost; fedkd list shows the runs", file=sys.stderr, flush=True)
            sys.exit(FAILED)
        records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob("*.json"))]
        if is_launched(config.hydra):
            for record in records:
                if record["folder"]:
                    print(f"run: {record['folder']}", flush=True)
        conclude(records)

    def _label(self, overrides: list[str]) -> str:
        """The words that set a job apart from the others."""
        swept = {word.partition("=")[0] for word in self.words if "," in word or "(" in word}
        return " ".join(word for word in overrides if word.partition("=")[0] in swept) or " ".join(overrides)


def conclude(records: list[Mapping[str, Any]]) -> None:
    """List the jobs that failed, and why.

    Args:
        records: a :class:`JobResult` with ``label`` each.

    Raises:
        SystemExit: some failed.
    """
    failed = [record for record in records if record["text"]]
    if failed:
        print(f"{len(failed)} of {len(records)} runs failed:", file=sys.stderr)
        for record in failed:
            print(f"failed: {record['label']}: {record['text']}", file=sys.stderr, flush=True)
        sys.exit(WRONG if all(record["code"] == WRONG for record in failed) else FAILED)
