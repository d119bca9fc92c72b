"""Reading run folders: finding them, checking their files, and loading configuration and metrics."""

import csv
import json
import os
import re
import zlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedkd.errors import RunFolderError, is_plain_name
from fedkd.files import CLIENT_STATES, SCHEMA_VERSION, verify
from simulations.run_folder.csv_rows import clients_file, unescaped
from simulations.run_folder.divergence import read_divergence
from simulations.run_folder.metric_names import ACCURACIES, COSTS, STRATEGY_NAMES
from simulations.run_folder.stored_config import configuration

Values = dict[str, Hashable]
"""A flat configuration: ``{"partition.alpha": 0.1}``."""


MEASURED = re.compile(
    r"(global_test|local_test|new_client_test|ensemble_test|generator|synthesis|distillation|train)_|simulated_seconds$|loss$"
)
"""Columns of ``metrics.csv`` that must hold numbers, beside the costs."""

DIVERGED = "diverged"
"""The first word of the reason for which a run that diverged is excluded."""

RUN_FILES = ("config.yaml", "metrics.csv", "checkpoint.json")
"""A folder that holds one of these files is a run folder, even if the others are missing."""

NO_EFFECT = re.compile(
    r"(seed|name|output|choices|engine|progress\w*|checkpoint\w*|on_client_failure|retries|timeout|tuned_params|searchpath|distill\w*"
    r"|allow_targets|generator_diagnostics_every|objective|tracker|force|accept_code|paths)(\.|$)"
    r"|data\.([\w.]+\.)?(root|cache|download|skip_unreadable)$"
)
"""Keys that do not change a result, and the seed, which does not separate groups of runs."""

SETTING = re.compile(r"(data|partition|shift|drift|systems)\.|(num_|evaluation\.)clients$")
"""Keys of the setting. Strategies on one setting share a figure."""

EVALUATION = re.compile(r"evaluation(\.|$)")
"""Keys of the evaluation. Runs that are compared must agree in them."""

NEUTRAL_OPTIONS = {"aggregator": "mean", "server_optimizer": "none", "drift": "none"}
"""Parts with the option that leaves a run as it is. Such a part counts as absent, as in runs of earlier versions."""

LABEL = "strategy._label_"
"""The key of the strategy's printed name among the values of a run: runs under two names are two rows."""

STRATEGY = re.compile(r"(strategy|server_optimizer|aggregator|generator|loss|distiller|public_data)(\.|$)")
"""Keys in which a strategy may differ from its baseline."""


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run of either kind.

    Args:
        folder: the run folder.
        config: the resolved configuration.
        metrics: the rows of ``metrics.csv``, one per round or epoch.
    """

    folder: Path
    config: dict[str, Any]
    metrics: pd.DataFrame

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.config["seed"]

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # [C]
        """The names of the classes, from ``classes.csv``. Empty if the file is missing or cannot be read."""
        try:
            with open(self.folder / "classes.csv", newline="", encoding="utf-8") as file:
                return tuple(unescaped(row["name"]) for row in csv.DictReader(file))
        except (OSError, UnicodeDecodeError, KeyError, csv.Error):
            return ()


@dataclass(frozen=True, eq=False)
class FederatedRun(FinishedRun):
    """A finished federated run.

    Args:
        clients: one row per client and round, for the last ten rounds in which clients were evaluated. Columns: ``round``, ``client_id``,
            ``local_test_accuracy``, ``architecture`` and ``num_test_examples``. Clients without test examples are left out.
    """

    clients: pd.DataFrame

    @property
    def trial(self) -> bool:
        """The run is a tuning trial: its accuracies are on held-out training examples, and not on the test set."""
        return (self.config.get("evaluation") or {}).get("split") == "validation"

    @property
    def knows_labels(self) -> bool:
        """The run has recorded the labels of its clients. The server of a deployment does not know them."""
        return option(self.config, "engine") != "deployment"

    @property
    def strategy(self) -> str:
        """The name of the option that was chosen for ``strategy``."""
        return option(self.config, "strategy") or "strategy"

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """``tuned``, ``untuned``, or both.

        A run is tuned if it took a value that was selected on held-out training data. It is both if the selected value is the one that the
        configuration has anyway, or if an untuned run was selected afterwards.
        """
        untuned = self.config.get("tuned_params") is None
        try:
            shipped = bool(json.loads((self.folder / "tuned.json").read_text(encoding="utf-8"))["shipped"])
        except FileNotFoundError:
            return ("untuned",) if untuned else ("tuned",)
        except (OSError, ValueError, KeyError, TypeError):
            shipped = False
        return ("tuned", "untuned") if shipped or untuned else ("tuned",)

    @cached_property
    def evaluated(self) -> pd.DataFrame:
        """The rows of the rounds that were evaluated."""
        return self.metrics[self.metrics[list(ACCURACIES)].notna().any(axis=1)]

    def counts(self) -> np.ndarray:  # [K, C]
        """Training examples by client and class.

        Raises:
            RunFolderError: ``partition.npz`` is missing or corrupt.
        """
        try:
            with np.load(self.folder / "partition.npz") as arrays:
                return arrays["counts"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise RunFolderError(f"partition.npz must hold the array 'counts': {error}") from error

    @cached_property
    def values(self) -> Values:
        """All keys that can change a result, without the seed, and the printed name of the strategy.

        A key that is null counts as absent, and so does a neutral part.
        """
        neutral = {part for part in NEUTRAL_OPTIONS if variant(self.config, part) is None}
        values = {key: value for key, value in flatten_config(self.config) if value is not None and not NO_EFFECT.match(key)}
        named = {LABEL: printed_name(self.config, "strategy", STRATEGY_NAMES)}
        return {key: value for key, value in values.items() if key.partition(".")[0] not in neutral} | named

    @cached_property
    def identity(self) -> frozenset[tuple[str, Hashable]]:
        """All values as one set, equal for runs that differ only in the seed."""
        return frozenset(self.values.items())

    def part(self, pattern: re.Pattern[str]) -> frozenset[tuple[str, Hashable]]:
        """The values whose keys match ``pattern``."""
        if pattern not in self._parts:
            self._parts[pattern] = frozenset(item for item in self.values.items() if pattern.match(item[0]))
        return self._parts[pattern]

    @cached_property
    def _parts(self) -> dict[re.Pattern[str], frozenset[tuple[str, Hashable]]]:
        return {}

    @cached_property
    def shape(self) -> tuple[int, tuple[int, ...], frozenset[tuple[str, Hashable]]]:
        """The number of rounds, the evaluated rounds, and the keys of the evaluation."""
        return len(self.metrics), tuple(self.evaluated["round"]), self.part(EVALUATION)


def option(config: Mapping[str, Any], part: str) -> str | None:
    """The name of the option chosen for a part: ``fedgen`` for ``strategy``. None where there is no such part."""
    if not isinstance(config.get(part), Mapping):
        return None
    return (config.get("choices") or {}).get(part) or str(config[part].get("_target_", "")).rpartition(".")[2].lower() or None


def variant(config: Mapping[str, Any], part: str) -> str | None:
    """The same; None also where the option is neutral, see :data:`NEUTRAL_OPTIONS`."""
    found = option(config, part)
    return None if found == NEUTRAL_OPTIONS.get(part) else found


def printed_name(config: Mapping[str, Any], part: str, names: Mapping[str, str]) -> str:
    """The name of a strategy or a distiller in a report: the ``_label_`` of its yaml file, the shipped name, or that of the option.

    Args:
        config: of a run.
        part: ``strategy`` or ``distiller``.
        names: shipped names by option.
    """
    label = (config.get("choices") or {}).get(f"{part}_label")
    name = option(config, part) or part
    return str(label) if is_plain_name(label) else names.get(name, name)


def find_run_folders(folders: Iterable[Path]) -> list[Path]:
    """The run folders among and below ``folders``, each once, in natural order. Folders with missing files are included.

    Hidden folders below ``folders`` are passed over, such as that of earlier results of runs with ``force``.

    Raises:
        RunFolderError: a folder does not exist, or holds no run folder.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        inside = []
        for path, inner, files in os.walk(folder):
            inner[:] = sorted(name for name in inner if not name.startswith(".") and name != CLIENT_STATES)
            inside += [Path(path)] if not set(files).isdisjoint(RUN_FILES) else []
        if not inside:
            raise RunFolderError(
                f"each folder must be a run folder (with config.yaml and metrics.csv) or hold run folders, got {str(folder)!r}; "
                "give a run folder, or a parent such as outputs/"
            )
        found |= {run.resolve(): run for run in inside if run.resolve() not in found}
    return sorted(found.values(), key=lambda folder: natural_order(str(folder)))


def is_distillation(folder: Path) -> bool:
    """The folder is that of a distillation, according to its ``config.yaml``."""
    try:
        return any(line.startswith("distiller:") for line in (folder / "config.yaml").read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError):
        return False


def check_not_diverged(folder: Path) -> None:
    """Refuse a run that has diverged: it has no result to compare, and the same command would not give one.

    Raises:
        RunFolderError: with the recorded message, which begins with ``diverged``.
    """
    if (found := read_divergence(folder)) is not None:
        raise RunFolderError(f"{DIVERGED}: {found['message']}")


def configuration_of_diverged(folder: Path) -> dict[str, Any] | None:
    """The configuration of a run that diverged; None if it did not, or if its configuration cannot be read."""
    if read_divergence(folder) is None:
        return None
    try:
        config = configuration(folder / "config.yaml")
    except (OSError, ValueError, TypeError, YAMLError, OmegaConfBaseException):
        return None
    return config if isinstance(config.get("seed"), int) else None


def read_diverged(folder: Path, until: int | None = None) -> FederatedRun | None:
    """The run in ``folder`` without its numbers, if it diverged; None otherwise, or if its configuration cannot be read.

    Args:
        folder: of a federated run that :func:`read_run` refuses.
        until: the run counts as one of so many rounds.
    """
    config = configuration_of_diverged(folder)
    if config is None:
        return None
    return FederatedRun(folder, config | ({} if until is None else {"rounds": until}), pd.DataFrame(), pd.DataFrame())


def read_run(folder: Path, until: int | None = None) -> FederatedRun:
    """The run in ``folder``, or its rounds 1..``until``.

    An unfinished run that has reached round ``until`` counts as a run that ended there.

    Raises:
        RunFolderError: the run is unfinished, or one of its files is missing or corrupt.
    """
    if until is None:
        check_not_diverged(folder)
    for name in ("checkpoint.json", "metrics.csv"):
        if not (folder / name).is_file():
            raise RunFolderError(f"unfinished: no {name}")
    try:
        config = configuration(folder / "config.yaml")
        checkpoint = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8-sig"))
        metrics = pd.read_csv(folder / "metrics.csv")
        clients = tested(clients_file(folder), until)
        seed, rounds, finished, done = config["seed"], config["rounds"], checkpoint["finished"], checkpoint["round"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zlib.error, YAMLError, OmegaConfBaseException) as error:
        raise RunFolderError("unreadable: " + " ".join(f"{type(error).__name__}: {error}".split())) from error
    if checkpoint.get("schema") != SCHEMA_VERSION:
        found = checkpoint.get("schema")
        raise RunFolderError(f"schema version must be {SCHEMA_VERSION} for this version of fedkd, got {found}; run it again")
    if not all(isinstance(number, int) for number in (seed, rounds, done)):
        raise RunFolderError(f"corrupt: seed and rounds must be whole numbers, got {seed!r}, {rounds!r} and {done!r}")
    check_checksum(folder)
    if not finished and (until is None or until > done):
        raise RunFolderError(f"unfinished: {done} of {rounds} rounds; start the run again to continue it")
    if until is not None and not 1 <= until <= rounds:
        raise RunFolderError(f"--until must be a round of the run, 1..{rounds}, got {until}")
    if until is not None:
        config, metrics, rounds = config | {"rounds": until}, metrics[:until], until
    _check(metrics, rounds)
    sampled = (config.get("evaluation") or {}).get("clients") is not None
    _check_clients(clients, metrics, sampled, drifts=variant(config, "drift") is not None)
    return FederatedRun(folder, config, metrics, clients)


def check_checksum(folder: Path) -> None:
    """Check the checksum of the checkpoint. A run whose checkpoint was removed to save space is read all the same.

    Raises:
        RunFolderError: the checkpoint is damaged.
    """
    try:
        verify((folder / "checkpoint.safetensors").read_bytes())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        remedy = "the command of the run goes on from the checkpoint before it"
        raise RunFolderError(f"corrupt: checkpoint.safetensors must be sound: {error}; {remedy}") from error


def tested(path: Path, until: int | None = None) -> pd.DataFrame:
    """The rows of the table of clients for :class:`FederatedRun`, up to round ``until``. Empty without the file."""
    wanted = ("round", "client_id", "architecture", "local_test_accuracy", "num_test_examples")
    if not path.is_file():
        return pd.DataFrame(columns=wanted)
    rows = pd.read_csv(path, usecols=lambda name: name in wanted)
    if "architecture" in rows:
        rows["architecture"] = rows["architecture"].map(unescaped)
    rounds, scored = rows["round"].to_numpy(), rows["local_test_accuracy"].notna().to_numpy()
    scored = scored & (rounds <= (np.inf if until is None else until))
    return rows[scored & np.isin(rounds, np.unique(rounds[scored])[-10:])]


def _check_clients(clients: pd.DataFrame, metrics: pd.DataFrame, sampled: bool, drifts: bool) -> None:
    """Raise ``RunFolderError`` unless the clients have accuracies for the rounds that ``metrics.csv`` marks as evaluated.

    With ``sampled`` each round has other clients, but as many of them. With ``drifts`` a client may have no test examples for a time.
    """
    if clients.empty:
        return
    evaluated = metrics["round"][metrics["local_test_accuracy"].notna()]
    got, last = clients["local_test_accuracy"], evaluated.iloc[-1] if len(evaluated) else 0
    if not pd.api.types.is_numeric_dtype(got) or not got.between(0, 1).all() or clients["round"].max() != last:
        raise RunFolderError(f"corrupt: clients.csv must hold accuracies in 0..1 up to the last evaluated round, {last}")
    each = [set(rows) for _, rows in clients.groupby("round")["client_id"]]
    may_differ = drifts or ("num_failures" in metrics and metrics["num_failures"].any())  # a client whose evaluation failed has no accuracy
    unlike = any(len(one) != len(each[0]) if sampled else one != each[0] for one in each)
    if clients.duplicated(["round", "client_id"]).any() or (not may_differ and unlike):
        same = "as many" if sampled else "the same"
        raise RunFolderError(f"corrupt: clients.csv must hold {same} clients, each once, in every evaluated round")


def _check(metrics: pd.DataFrame, rounds: int) -> None:
    """Raise ``RunFolderError`` unless the metrics of a finished run are complete."""
    needed = ["round", *ACCURACIES, *COSTS]
    if len(metrics.columns) == 1 and ";" in str(metrics.columns[0]):
        raise RunFolderError("corrupt: metrics.csv must separate its columns by commas, got semicolons; save it again with commas")
    if lacking := [column for column in needed if column not in metrics]:
        raise RunFolderError(f"corrupt: metrics.csv lacks the columns {', '.join(lacking)}")
    if metrics["round"].tolist() != list(range(1, rounds + 1)):
        raise RunFolderError(f"corrupt: metrics.csv must hold the rounds 1..{rounds}, one row each, got {len(metrics)} rows")
    columns = [str(name) for name in metrics]
    counted = [*needed, *(name for name in columns if name not in needed and MEASURED.match(name))]
    if odd := [column for column in counted if not pd.api.types.is_numeric_dtype(metrics[column])]:
        raise RunFolderError(f"corrupt: metrics.csv must hold numbers, got something else in {', '.join(odd)}")
    accuracies = metrics[list(ACCURACIES)].to_numpy(float)
    others = metrics[[name for name in columns if "_test_accuracy" in name and name != "local_test_accuracy_std"]].to_numpy(float)
    if np.isnan(accuracies[:, :2]).all():  # the bottom 10 % alone are no headline
        raise RunFolderError("nothing to report: no round was evaluated")
    if (
        any(((values < 0) | (values > 1)).any() for values in (accuracies, others))
        or np.isnan(metrics[["uplink_bytes", "downlink_bytes"]].to_numpy(float)).any()
    ):
        raise RunFolderError("corrupt: metrics.csv must hold accuracies in 0..1, and bytes in every row")


def natural_order(text: str) -> list[tuple[float, str]]:
    """A key by which numbers sort by value: ``alpha 0.1`` before ``alpha 1.0`` before ``alpha 10``."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [(float(part), "") if i % 2 else (-1.0, part) for i, part in enumerate(parts)]


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Hashable]]:
    """The leaves of a configuration with their dotted keys. Lists become text."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten_config(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value) if isinstance(value, list) else value
