"""Several runs together: filtered, as data frames, summarized over seeds, compared with a baseline, and drawn."""

import html
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import pandas as pd

from fedkd.errors import ConfigError, RunFolderError, nearest, require
from simulations.api.run import Run
from simulations.reports import distillation_groups
from simulations.reports.arrangement import names_of
from simulations.reports.groups import Group, comparable, group, line_order
from simulations.reports.run_description import code_notes
from simulations.reports.statistics import INTERVALS, holm, is_range, paired
from simulations.reports.statistics import interval as interval_of
from simulations.reports.summary import by_seed, results, summary
from simulations.reports.tables.federated import headlines, pairs
from simulations.reports.tables.table import NumberFormat
from simulations.run_folder.listing import lookup, same
from simulations.run_folder.reader import (
    NO_EFFECT,
    SETTING,
    FederatedRun,
    find_run_folders,
    flatten_config,
    natural_order,
    option,
    read_diverged,
    read_run,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = ("run", "round", "client")


class Runs(Sequence[Run]):
    """Runs in an order. Slices and filters give Runs again; in a notebook they show as their summary table.

    Args:
        runs: federated runs, distillations, or both.
    """

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self._runs = tuple(runs)
        self._read = _Finished()

    @overload
    def __getitem__(self, place: int) -> Run: ...
    @overload
    def __getitem__(self, place: slice) -> "Runs": ...
    def __getitem__(self, place: int | slice) -> "Run | Runs":
        return Runs(self._runs[place]) if isinstance(place, slice) else self._runs[place]

    def __len__(self) -> int:
        return len(self._runs)

    def __add__(self, other: "Runs") -> "Runs":
        return Runs([*self, *other])

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(run.name for run in self))
        seeds = ", ".join(map(str, sorted({run.seed for run in self})))
        return f"Runs({len(self)}{f': {names}; seeds {seeds}' if self._runs else ''})"

    def _repr_html_(self) -> str:
        """The headline metrics of each group of seeds; a row per run where these cannot be grouped."""
        federated = [run for run in self if run.kind == "federated"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            groups = Runs(federated)._groups()
        if not any(one.runs for one in groups):
            rows = [{"run": run.path.name, "method": run.name, "seed": run.seed, "finished": run.finished} for run in self]
            return pd.DataFrame(rows).to_html(index=False)
        table = headlines(groups, NumberFormat())
        shown = pd.DataFrame({column.title: [cell.text for cell in column.cells] for column in table.columns})
        note = "Accuracy in %: mean over n seeds ± half-width of the 95 % interval (Student's t)."
        if left := len(self) - sum(run.finished for run in federated) - sum(len(one.diverged) for one in groups):
            note += f" {left} unfinished run{'s are' if left > 1 else ' is'} not shown."
        return f"{shown.to_html(index=False)}<p>{html.escape(note)}</p>"

    # ------------------------------------------------------------------------------------------- choosing
    def filter(self, **keys: Any) -> "Runs":
        """The runs whose configuration has these values.

        Args:
            keys: the name of the option that was chosen for a group (``strategy="fedgen"``), or a value, with two underscores for a dot
                (``partition__alpha=0.1``). A list allows each of its values. ``kind`` and ``finished`` are keys too.

        Returns:
            The runs that match, in the same order; empty if none does.

        Raises:
            ConfigError: no run has such a key.
        """
        wanted = {name.replace("__", "."): value if isinstance(value, list) else [value] for name, value in keys.items()}
        known = {name: None for run in self for name in _known_keys(run._values)}
        for key in wanted if self._runs else ():
            if key not in known:
                raise ConfigError(f"a filter must be a key of these runs, got {key!r}{nearest(key, known)}")
        return Runs(run for run in self if all(any(_matches(run, key, one) for one in values) for key, values in wanted.items()))

    # ------------------------------------------------------------------------------------------- tables
    def to_dataframe(self, level: Literal["run", "round", "client"] = "run") -> pd.DataFrame:
        """All numbers of all runs.

        Args:
            level: ``run`` gives a row per run with :meth:`Run.summary`, ``round`` the rows of ``metrics.csv``, ``client`` those of
                ``clients.csv``.

        Returns:
            Columns that say which run it is (``run``, the name of its folder; ``path``, the folder; ``kind``, ``strategy``, ``seed``, and
            all keys in which the runs differ), then the numbers. For a distillation ``strategy`` is the method.

        Raises:
            ConfigError: there is no such level.
            RunFolderError: a file of a run cannot be read.
        """
        require(level in LEVELS, "level", f"must be one of {', '.join(LEVELS)}", level)
        labels = self._labels()
        if level == "run":
            rows = [{**label, "finished": run.finished, "rounds": run.round, **_summary(run)} for run, label in zip(self, labels)]
            return pd.DataFrame(rows)
        frames = []
        for run, label in zip(self, labels):
            table = run.metrics if level == "round" else run.clients
            if len(table):
                repeated = {key: [value] * len(table) for key, value in label.items() if key not in table}
                frames.append(pd.concat([pd.DataFrame(repeated, index=table.index), table], axis=1))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _labels(self) -> list[dict[str, Any]]:
        """What tells each run from the others."""
        flat = [dict(flatten_config(run._values)) for run in self]
        keys = dict.fromkeys(key for values in flat for key in values if not NO_EFFECT.match(key) and not key.endswith("_target_"))
        heads = dict.fromkeys(key.partition(".")[0] for key in keys if "." in key)
        named = [{head: option(run._values, head) for head in heads} for run in self]
        shown = [head for head in heads if head not in ("strategy", "distiller") and len({one[head] for one in named}) > 1]
        for key in keys:
            kin: dict[Any, set[Any]] = {}
            for values, names in zip(flat, named):
                if key in values:
                    kin.setdefault(names.get(key.partition(".")[0]), set()).add(values[key])
            if any(len(found) > 1 for found in kin.values()):
                shown.append(key)
        return [
            {"run": run.path.name, "path": str(run.path), "kind": run.kind, "strategy": run.name, "seed": run.seed}
            | {key: names[key] if key in names else values.get(key) for key in shown}
            for run, values, names in zip(self, flat, named)
        ]

    def summary(self, interval: str = "t") -> pd.DataFrame:
        """A row for each group of finished runs that differ in the seed alone.

        Args:
            interval: of the means over seeds, 95 %: ``t`` (Student's t) or ``bootstrap`` (BCa).

        Returns:
            ``label``, ``num_seeds``, ``num_diverged`` (runs that are in no mean because they diverged), ``seeds``, and of each metric
            ``_mean``, ``_min``, ``_max`` over seeds and ``_ci95``, the half-width of the interval (with ``bootstrap`` the ends ``_low`` and
            ``_high``); accuracies in 0..1. At n = 2 the half-width is NaN, and the ends are those of the range.

        Raises:
            ConfigError: there is no such interval, or federated runs and distillations are mixed.
            RunFolderError: no run is finished.
        """
        require(interval in INTERVALS, "interval", f"must be one of {', '.join(INTERVALS)}", interval)
        if self._kind() == "distillation":
            return self._summary_of_distillations(interval)
        return results(self._finished_groups(), None, interval)

    def _summary_of_distillations(self, interval: str) -> pd.DataFrame:
        """A row for each group of distillations that differ in seeds alone."""
        found = [distillation_groups.read_distillation(run.path) for run in self if run.finished]
        if not found:
            raise RunFolderError("runs must hold a finished distillation, got none; run them again to continue")
        for note in code_notes(found):
            warnings.warn(note, stacklevel=3)
        rows, diverged = [], distillation_groups.read_diverged_distillations([run.path for run in self if not run.finished])
        for label, same_but_seed in distillation_groups.groups(distillation_groups.distinct(found)[0]).items():
            row = {"label": label, "num_seeds": len(same_but_seed)}
            row |= {"num_diverged": distillation_groups.num_diverged(same_but_seed, diverged)}
            row |= {"seeds": " ".join(str(one.seed) for one in same_but_seed)}
            numbers = [_summary(Run(one.folder)) for one in same_but_seed]
            for name in numbers[0]:
                values = np.array([one[name] for one in numbers])
                mean, low, high = map(float, interval_of(values, interval))
                row |= {f"{name}_mean": mean, f"{name}_min": values.min(), f"{name}_max": values.max()}
                half = np.nan if is_range(len(values), interval) else high - mean
                row |= {f"{name}_ci95": half} if interval == "t" else {f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
        return pd.DataFrame(rows)

    def compare(
        self, baseline: str, metric: str = "local_test_accuracy_last10", interval: str = "t", correction: Literal["holm", "none"] = "holm"
    ) -> pd.DataFrame:
        """Each group of seeds minus the baseline of the same setting, paired by seed.

        Args:
            baseline: a strategy, by the name of its option (``fedavg``) or its printed name (``FedAvg``), or a whole row of the report.
            metric: of :meth:`Run.summary`.
            interval: ``t`` or ``bootstrap``, 95 %, of the mean difference. The correction does not change it.
            correction: of the p-values for all rows of the table: ``holm``, or ``none``.

        Returns:
            Columns ``label, baseline, n, difference, low, high, d, p_t, p_wilcoxon``: number of pairs, mean difference and the ends of its
            interval, or at n = 2 of the range (accuracies in percentage points), mean over standard deviation of the differences (Cohen's
            d_z), two-sided p-values of the paired t test and of the exact Wilcoxon signed-rank test. With ``holm`` the p-values are
            corrected.

        Raises:
            ConfigError: there is no such baseline, metric, interval or correction.
            RunFolderError: no run is finished.
        """
        require(interval in INTERVALS, "interval", f"must be one of {', '.join(INTERVALS)}", interval)
        require(correction in ("holm", "none"), "correction", "must be holm or none", correction)
        groups = [one for one in self._finished_groups() if one.runs]
        names = names_of(groups)
        if not any(one.is_called(baseline) for one in groups):
            raise ConfigError(f"baseline must be one of {', '.join(names)}, got {baseline!r}{nearest(baseline, names)}")
        known = list(dict.fromkeys(name for one in groups for name in summary(one.runs[0])))
        if metric not in known:
            raise ConfigError(f"metric must be one of {', '.join(known)}, got {metric!r}{nearest(metric, known)}")
        scale = 100 if "accuracy" in metric or metric.startswith("best5") else 1
        rows = []
        for one, base in pairs(groups, baseline):
            test = paired(scale * np.subtract(by_seed(one, metric), by_seed(base, metric)), interval)
            row = {"label": one.label, "baseline": base.label, "n": test.n, "difference": test.mean, "low": test.low, "high": test.high}
            rows.append(row | {"d": test.effect, "p_t": test.t_test, "p_wilcoxon": test.wilcoxon})
        columns = ["label", "baseline", "n", "difference", "low", "high", "d", "p_t", "p_wilcoxon"]
        found = pd.DataFrame(rows, columns=columns)
        if correction == "holm" and rows:
            found["p_t"], found["p_wilcoxon"] = holm(found["p_t"]), holm(found["p_wilcoxon"])
        return found

    # ------------------------------------------------------------------------------------------- figures
    def plot(
        self, kind: str = "convergence", metric: str | None = None, x: str = "round", path: str | Path | None = None, **options: Any
    ) -> "Figure":
        """A figure of finished federated runs, as the report draws it.

        Args:
            kind: ``convergence`` (accuracy by round; a panel per setting where there are several), ``final`` (each seed's result),
                ``clients`` (accuracy of the clients), ``classes`` (accuracy by class), ``label_distribution`` (who holds what, of the
                lowest seed), ``settings`` (accuracy by setting), ``networks`` (accuracy by the clients' networks), or ``generator``
                (diagnostics of the server's generator).
            metric: ``global_test_accuracy``, ``local_test_accuracy`` or another one of the report; None for both. For ``convergence``,
                ``final`` and ``settings``.
            x: for ``convergence``: ``round``, ``bytes`` or ``time`` (simulated seconds).
            path: where the figure is written too; the suffix chooses the format (``.pdf``, ``.png``, ``.svg``).
            options: further options of a report, such as ``labels={"fedgen": "FedGen (ours)"}``, ``order``, ``width`` (inches),
                ``font_size`` (points), ``smoothing`` (rounds), ``interval``, ``band``.

        Returns:
            The figure. The last expression of a notebook's cell shows it.

        Raises:
            ConfigError: there is no such kind, metric, x or option, or the runs have nothing of this kind to draw.
            RunFolderError: no run is finished.
        """
        from simulations.api.plots import draw

        return draw(self._finished_groups(), kind, metric, x, None if path is None else Path(path).expanduser(), options)

    # ------------------------------------------------------------------------------------------- groups
    def _kind(self) -> str:
        """Of all runs."""
        kinds = sorted({run.kind for run in self})
        require(len(kinds) < 2, "runs", "must all be federated, or all distillations (filter(kind='federated'))", kinds)
        return kinds[0] if kinds else "federated"

    def _groups(self) -> list[Group]:
        """The federated runs by what they have in common, those that diverged counted; a warning for each that cannot be compared."""
        lost = {run.path: one for run in self if not run.finished and (one := read_diverged(run.path)) is not None}
        if lost:
            warnings.warn(f"{len(lost)} of {len(self)} runs diverged and are in no mean: {', '.join(map(str, lost))}", stacklevel=4)
        left = [run for run in self if not run.finished and run.path not in lost]
        if left:
            said = f"{len(left)} of {len(self)} runs are unfinished and not shown: {left[0]}{' ...' * (len(left) > 1)}"
            warnings.warn(said, stacklevel=4)
        kept, notes = comparable([self._read[run.path] for run in self if run.finished])
        for note in notes:
            warnings.warn(f"not shown: {note}", stacklevel=4)
        for note in code_notes(kept):
            warnings.warn(note, stacklevel=4)
        return group(kept, list(lost.values()))

    def _finished_groups(self) -> list[Group]:
        """The groups.

        Raises:
            RunFolderError: there is none.
        """
        require(self._kind() == "federated", "runs", "must be federated; summary() and to_dataframe() take distillations", self._kind())
        groups = self._groups()
        if not any(one.runs for one in groups):
            raise RunFolderError(f"runs must hold a finished run, got {len(self)} without one; run them again to continue")
        return groups


class _Finished(dict[Path, FederatedRun]):
    """The files of finished runs, which do not change any more, each read once."""

    def __missing__(self, folder: Path) -> FederatedRun:
        self[folder] = read_run(folder)
        return self[folder]


def load_runs(folders: Iterable[Path], strict: bool) -> Runs:
    """The runs in and below folders.

    Args:
        folders: run folders, or parents of run folders.
        strict: a broken folder is an error. Otherwise it is left out with a warning.

    Raises:
        RunFolderError: a folder does not exist or holds no run; with ``strict``, a run cannot be read.
    """
    found = []
    for folder in find_run_folders(folders):
        try:
            run = Run(folder)
            run.check()
            found.append(run)
        except RunFolderError as error:
            if strict:
                raise RunFolderError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error
            warnings.warn(f"left out: {error}" if str(folder) in str(error) else f"left out: {folder}: {error}", stacklevel=3)
    return Runs(sorted(found, key=_place))


def _place(run: Run) -> tuple[Any, ...]:
    """The key by which loaded runs are sorted: the kind, the strategy (FedAvg first), the setting, other keys, the seed, the folder."""
    values = {key: value for key, value in flatten_config(run._values) if key != "seed" and not NO_EFFECT.match(key)}
    setting, rest = (
        natural_order(" ".join(f"{key} {values[key]}" for key in sorted(values) if bool(SETTING.match(key)) == chosen))
        for chosen in (True, False)
    )
    return run.kind != "federated", line_order(run.name), setting, rest, run.seed, natural_order(str(run.path))


def _summary(run: Run) -> dict[str, float]:
    """The run in numbers; empty before the first evaluation."""
    try:
        return run.summary()
    except RunFolderError:
        return {}


def _known_keys(values: Mapping[str, Any]) -> list[str]:
    """What :meth:`Runs.filter` may ask for."""
    leaves = [key for key, _ in flatten_config(values)]
    return [*values, *(values.get("choices") or {}), *leaves, "kind", "finished"]


def _matches(run: Run, key: str, wanted: Any) -> bool:
    """A run has a value, as the option chosen for a group or under the key."""
    if key in ("kind", "finished"):
        return getattr(run, key) == wanted
    value = lookup(run._values, key)
    if wanted is None:
        return value is None
    chosen = run.name if key == "strategy" and run.kind == "federated" else (run._values.get("choices") or {}).get(key)
    wanted = list(wanted) if isinstance(wanted, tuple) else wanted
    return same(value, wanted) or same(chosen, wanted)
