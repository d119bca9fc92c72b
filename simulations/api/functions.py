"""The functions of the Python API, which ``import fedkd`` offers under its own name: the command ``fedkd``, callable.

They make the same run folders as the command, take the same keys, and raise the exceptions of :mod:`fedkd.errors`. While a function
computes, torch uses one thread, as rounding depends on their number. When it returns, the number of threads, the handlers of signals and
the loggers are as they were. The tuning of malloc and of the garbage collector stays in the process.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from fedkd.errors import ConfigError, RunFolderError, nearest, require
from simulations.api.callbacks import Callback, CallbackObserver
from simulations.api.run import Run
from simulations.api.runs import Runs, load_runs
from simulations.overrides import options

if TYPE_CHECKING:
    from omegaconf import DictConfig

LISTED = (
    "hash", "kind", "strategy", "data", "setting", "seed", "round", "rounds", "status", "global_test_accuracy", "local_test_accuracy",
    "age_seconds", "path",
)  # fmt: skip
"""Columns of :func:`list_runs`."""


def run(*overrides: str, callbacks: Sequence[Callback] = (), jobs: int = 1, **keys: Any) -> Runs:
    """Run one federated run, or all combinations of several values.

    A run that is finished is skipped, one that was interrupted continues from its last checkpoint. The folders are those that ``fedkd run``
    would make.

    Args:
        overrides: words of the command, such as ``"strategy=fedgen"``; ``"seed=0,1"`` is swept.
        callbacks: follow every run, in this order; only with ``jobs=1``.
        jobs: >= 1, runs at a time. More than one run in processes of their own, to which a class of ``__main__`` cannot be given.
        keys: overrides by name, with two underscores for a dot: ``partition__alpha=0.1``. A list is swept, a tuple is one value.
            ``strategy`` also takes a class; one of ``__main__`` (a notebook, a script) needs ``engine="local"``.

    Returns:
        The runs, in the order of the combinations; the last key varies fastest.

    Raises:
        ConfigError: a configuration is wrong; nothing was begun.
        ClientFailure: a client failed and the failure policy does not allow the run to continue. Of several runs: some failed, for any
            reason, and the others are done; the message says which failed and why. Finished rounds are on disk.
        DivergedError: the only run diverged.
    """
    from simulations.api.calls import check_configs, run_in_processes, run_serially
    from simulations.api.keywords import combinations
    from simulations.api.process_state import preserved_process_state

    observers = _observers(callbacks, jobs)
    with preserved_process_state():
        words = combinations(overrides, keys)
        configs = check_configs(words, "config", jobs)
        folders = run_serially(configs, words, observers) if jobs == 1 else run_in_processes(configs, words, jobs)
    return _runs(folders)


def distill(
    teacher: Run | str | Path | None = None, *overrides: str, callbacks: Sequence[Callback] = (), jobs: int = 1, **keys: Any
) -> Runs:
    """Train a student from the model of a run, or from a teacher that is trained first.

    Args:
        teacher: a finished run or its folder, whose data and global model (or student) are taken; the name of a model
            (``"resnet14"``), which is trained first; None for the default teacher.
        overrides: words of ``fedkd distill``, such as ``"student=resnet8"``; ``"seed=0,1"`` is swept.
        callbacks: follow every student's training, in this order; only with ``jobs=1``. A round is an epoch. Trainings of teachers are not
            followed.
        jobs: >= 1, distillations at a time, each in a process of its own.
        keys: overrides by name, as of :func:`run`.

    Returns:
        The distillations, in the order of the combinations.

    Raises:
        ConfigError: a configuration is wrong; nothing was begun.
        DivergedError: the loss of the only distillation is no longer finite.
        ClientFailure: of several distillations some failed, for any reason, and the others are done; the message says which and why.
    """
    from simulations.api.calls import check_configs, run_in_processes, run_serially
    from simulations.api.keywords import combinations
    from simulations.api.process_state import preserved_process_state

    observers = _observers(callbacks, jobs)
    with preserved_process_state():
        words = combinations([*_teacher_words(teacher), *overrides], keys)
        configs = check_configs(words, "distill", jobs)
        folders = run_serially(configs, words, observers) if jobs == 1 else run_in_processes(configs, words, jobs)
    return _runs(folders)


def tune(
    *overrides: str,
    key: str = "optimizer.lr",
    grid: Sequence[float] | None = None,
    distiller: bool = False,
    validation_fraction: float = 0.2,
    table: str | Path | None = None,
    **keys: Any,
) -> pd.DataFrame:
    """Choose a hyperparameter on held-out training data, from the same values for every strategy. No test example is used.

    Args:
        overrides: words of the command; ``"strategy=fedavg,fedgen"`` tunes several.
        key: that is chosen; with ``distiller`` it is the weight that the method declares.
        grid: its values, default 0.01, 0.03, 0.1. With ``distiller`` multiples of the shipped weight, default 0.3, 1, 3.
        distiller: tune distillation methods instead of strategies.
        validation_fraction: in (0, 1), share of the training examples that is held out.
        table: the CSV file to which the rows are appended; None for ``<output>/<name>/tuned.csv``. A run reads it with ``tuned_params=``.
        keys: overrides by name, as of :func:`run`. Lists are for ``strategy`` and ``distiller`` alone.

    Returns:
        The rows of this search, one per value: ``option, key, value, validation_accuracy`` (in 0..1), ``selected`` (1 for the choice), and
        cost. ``attrs["table"]`` is the path of the file.

    Raises:
        ConfigError: the configuration is wrong, or training diverges with every value.
    """
    from simulations.api.calls import check_main
    from simulations.api.keywords import single
    from simulations.api.process_state import preserved_process_state
    from simulations.experiments import tuning

    part = "distiller" if distiller else "strategy"
    names = [word for word in overrides if word.startswith(f"{part}=")]
    if isinstance(keys.get(part), list):
        several = keys.pop(part)
        require(bool(several) and all(isinstance(one, str) for one in several), part, "must be a list of names, or one class", several)
        names = [f"{part}={','.join(several)}"]
    values = list((tuning.FACTORS if distiller else tuning.GRID) if grid is None else grid)
    with preserved_process_state():
        words = [*single([word for word in overrides if word not in names], keys), *names]
        check_main(words)
        place = None if table is None else Path(table).expanduser()
        path = tuning.tune(words, key=key, grid=values, validation_fraction=validation_fraction, table=place, distiller=distiller)
    number = len(names[-1].split(",")) if names else 1
    found = pd.read_csv(path).tail(number * len(values)).reset_index(drop=True)
    found.attrs["table"] = str(path)
    return found


def reproduce(
    experiment: str,
    *overrides: str,
    seeds: Sequence[int] | None = None,
    jobs: int | None = None,
    run_missing: bool = True,
    settings: Sequence[str] | None = None,
    strategies: Sequence[str] | None = None,
    **keys: Any,
) -> pd.DataFrame:
    """Run what is missing of an experiment, and return its table beside the published one.

    Args:
        experiment: a name of ``describe("experiment")`` that describes a sweep.
        overrides: words for every run.
        seeds: None for the experiment's own.
        jobs: >= 1, runs at a time, each in a process of its own; None for one per core.
        run_missing: False runs nothing and gives the table of the runs that are finished.
        settings: names of its settings; None for all.
        strategies: names of its strategies; None for all.
        keys: overrides by name, as of :func:`run`, without lists.

    Returns:
        A row per setting and strategy: ``setting, strategy, num_seeds, seeds``, of each metric ``_mean`` and ``_ci95`` (half-width of the
        95 % interval; accuracies in %), and the published numbers. Rows without a finished run are NaN. ``attrs["table"]`` is the path of
        the table as CSV, beside which it is as Markdown and LaTeX.

    Raises:
        ConfigError: naming the argument, the rule and the value.
    """
    from simulations.api.keywords import single
    from simulations.api.process_state import preserved_process_state, without_main_module
    from simulations.experiments import reproduce as reproduction

    with preserved_process_state(), without_main_module():
        planned = reproduction.plan_reproduction(
            experiment,
            single(overrides, keys),
            seeds=seeds,
            settings=settings,
            strategies=strategies,
            jobs=jobs,
            quiet=True,
            only=None if run_missing else "table",
        )
        reproduction.reproduce(planned)
        runs, _ = planned.plan()
    if left := sum(one.state != "finished" for one in runs):
        warnings.warn(f"{left} of {len(runs)} runs of {experiment} are not finished; the table is of the others", stacklevel=2)
    path = planned.results / "table.csv"
    found = pd.read_csv(path)
    found.attrs["table"] = str(path)
    return found


def compose(*overrides: str, config: Literal["config", "distill"] = "config", **keys: Any) -> "DictConfig":
    """The configuration of one run, checked and resolved. Nothing is built or run.

    Args:
        overrides: words of the command.
        config: ``config`` of a federated run, ``distill`` of a distillation.
        keys: overrides by name, as of :func:`run`, without lists.

    Returns:
        The configuration as the run folder would have it. It is a copy.

    Raises:
        ConfigError: a key, an option or a value is wrong; the message names the nearest.
    """
    from omegaconf import OmegaConf

    from simulations.api.calls import check_configs
    from simulations.api.keywords import single
    from simulations.api.process_state import preserved_process_state

    require(config in ("config", "distill"), "config", "must be config or distill", config)
    with preserved_process_state():
        (composed,) = check_configs([single(overrides, keys)], config, 1)
    OmegaConf.resolve(composed)
    return composed


def load(*paths: str | Path, strict: bool = False) -> Runs:
    """The runs in folders, of both kinds, finished or not.

    Args:
        paths: run folders, or parents of run folders; none for ``outputs``.
        strict: raise for a folder that cannot be read. Otherwise it is left out with a warning.

    Returns:
        The runs by kind (federated ones first), strategy, setting and seed. Runs that differ in the seed alone follow each other.

    Raises:
        RunFolderError: a path does not exist or holds no run; with ``strict``, a run cannot be read.
    """
    return load_runs([Path(path).expanduser() for path in paths or ("outputs",)], strict)


def list_runs(folder: str | Path = "outputs", status: str | None = None) -> pd.DataFrame:
    """The runs in a folder, the oldest first, without reading more of them than their last lines.

    Args:
        folder: a run folder, or a parent of run folders.
        status: ``finished``, ``interrupted``, ``running`` or ``diverged``; None for all.

    Returns:
        Columns ``hash, kind, strategy, data, setting, seed, round, rounds, status, global_test_accuracy, local_test_accuracy, age_seconds,
        path``. Accuracies are those of the last evaluation, in 0..1.

    Raises:
        ConfigError: there is no such status.
        RunFolderError: the folder does not exist.
    """
    from simulations.run_folder.listing import STATES, list_folder

    require(status is None or status in STATES, "status", f"must be one of {', '.join(STATES)}, or None", status)
    return pd.DataFrame(list_folder(Path(folder).expanduser(), status=status), columns=list(LISTED))


def describe(group: str | None = None, option: str | None = None) -> pd.DataFrame:
    """What can be chosen as ``group=option``.

    Args:
        group: such as ``strategy``, ``model``, ``partition``, ``data``, ``distiller``, ``experiment``; ``run`` or ``distill`` for the
            keys of these functions; None for all groups.
        option: of the group; None for all.

    Returns:
        Columns ``group, options, default, meaning``; of a group ``option, default, meaning, target``; of an option ``key, value, type,
        meaning``.

    Raises:
        ConfigError: there is no such group or option; the message names the nearest.
    """
    from simulations.cli import catalog

    return pd.DataFrame(catalog.describe(group, option))


def report(
    runs: Runs | Run,
    output: str | Path,
    *,
    baseline: str = "fedavg",
    target: float | None = None,
    interval: str = "t",
    figures: bool = True,
    **options: Any,
) -> Path:
    """Write the tables and figures of runs, as ``fedkd report`` does.

    Args:
        runs: federated runs, distillations, or both. Unfinished ones are excluded; the page lists them.
        output: the folder of the report, made if needed. Files of an earlier report in it are replaced.
        baseline: the strategy, or row of the table, with which the others are compared. FedAvg need not be there.
        target: an accuracy in (0, 1]: also the rounds and bytes to it. None for no target.
        interval: of means over seeds, 95 %: ``t`` (Student's t) or ``bootstrap`` (BCa).
        figures: draw figures too.
        options: further options of :class:`simulations.reports.options.ReportOptions`, such as
            ``labels={"fedgen": "FedGen (ours)"}``, ``order``, ``metric``, ``decimals``, ``panels="settings"``, ``formats=("pdf", "svg")``;
            ``report="name"`` takes a yaml file of ``conf/report``.

    Returns:
        The folder of the report, with ``report.html``, and each table as Markdown, CSV and LaTeX.

    Raises:
        ConfigError: an argument is wrong.
        RunFolderError: no finished run is left to report.
    """
    from simulations.reports.builder import report_folders
    from simulations.reports.options import options_from

    folders = [runs.path] if isinstance(runs, Run) else [one.path for one in runs]
    if not folders:
        raise RunFolderError("runs must hold a run to report, got none")
    given = {"target": target, "interval": interval, "figures": figures, **options}
    given |= {} if baseline == "fedavg" else {"baseline": baseline}
    return report_folders(folders, options_from(given), Path(output).expanduser(), quiet=True)


def _observers(callbacks: Sequence[Callback], jobs: int) -> list[CallbackObserver]:
    """The callbacks of a call as observers of its runs.

    Raises:
        ConfigError: ``jobs`` is no number >= 1, or callbacks are given to runs in other processes.
    """
    require(isinstance(jobs, int) and jobs >= 1, "jobs", "must be >= 1", jobs)
    if isinstance(callbacks, Callback):
        raise ConfigError("callbacks must be a sequence, got one callback; write callbacks=[...]")
    require(
        jobs == 1 or not callbacks,
        "callbacks",
        "must be empty with jobs > 1, as those runs are in other processes; give jobs=1",
        list(callbacks),
    )
    return [CallbackObserver(one) for one in callbacks]


def _teacher_words(teacher: Run | str | Path | None) -> list[str]:
    """The words that name the teacher of a distillation.

    Raises:
        ConfigError: it is neither a run folder nor a model.
    """
    from simulations.api.keywords import text

    if teacher is None:
        return []
    if isinstance(teacher, Run):
        return [f"teacher_run={text(teacher.path)}"]
    require(isinstance(teacher, (str, Path)), "teacher", "must be a run, its folder, or the name of a model", teacher)
    if "=" in str(teacher) and not Path(teacher).exists():  # the first of the overrides
        return [str(teacher)]
    if (Path(teacher).expanduser() / "config.yaml").is_file():
        return [f"teacher_run={text(Path(teacher).expanduser().absolute())}"]
    models = options("model")
    if str(teacher) not in models:
        raise ConfigError(f"teacher must be a run folder or the name of a model, got {str(teacher)!r}{nearest(str(teacher), models)}")
    return [f"teacher={teacher}"]


def _runs(folders: Sequence[Path]) -> Runs:
    """The runs in folders, each once."""
    return Runs(Run(folder) for folder in dict.fromkeys(folders))
