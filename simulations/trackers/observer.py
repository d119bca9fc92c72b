"""The trackers of a run as its observers: what they have logged is noted in the run folder, and none of them can end the run."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedkd.config.build import build, to_dict
from fedkd.config.validation import check_part
from fedkd.errors import one_line, require
from simulations.run_folder.observers import RunObserver, SaveCheckpoint
from simulations.trackers.base import TrackedRun, Tracker

RECORDS = "trackers.json"
"""The file of a run folder with ``id`` and the last ``round`` of each tracker that does not replace rounds."""


def make_trackers(config: DictConfig) -> list[RunObserver]:
    """The observers that tell the trackers of ``config.tracker``.

    Raises:
        ConfigError: a tracker is wrong, or its package is not installed.
    """
    allowed, observers = list(config.get("allow_targets") or []), list[RunObserver]()
    for name, node in (to_dict(config.get("tracker") or OmegaConf.create({}))).items():
        part = f"tracker.{name}"
        require(isinstance(node, Mapping), part, "must be a part with a _target_ (tracker=NAME chooses a shipped one)", node)
        check_part(node, part, allowed)
        tracker = build(OmegaConf.create({part: node, "allow_targets": allowed}), part)
        require(isinstance(tracker, Tracker), f"{part}._target_", "must be a subclass of fedkd.Tracker", node["_target_"])
        observers.append(TrackerObserver(name, tracker))
    return observers


class TrackerObserver(RunObserver):
    """Tells a tracker of a run.

    A tracker that does not replace rounds is told of each round once: of those that an interrupted run computes again not twice, and
    of earlier ones that it does not have, as it was not chosen then.

    Args:
        name: of the tracker in the configuration.
        tracker: told of the run.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._folder, self._record, self._works = Path(), dict[str, Any](), True

    def begin(self, folder: Path, first: int) -> None:
        """Begin the tracker, and log earlier rounds that it does not have."""
        self._folder, self._record, self._works = folder, read_records(folder).get(self._name, {}), True

        def start() -> None:
            self._record["id"] = self._tracker.begin(tracked_run(folder, first, self._record))
            if not self._tracker.replaces:
                for row in read_rows(folder / "metrics.csv"):
                    if self._logged < (number := number_of(row)) < first:
                        self._log(number, row)

        self._safely(start)

    def round(self, number: int, metrics: Mapping[str, Any], clients: Sequence[Mapping[str, Any]], save: SaveCheckpoint) -> None:
        """Log a round, unless the tracker has it."""
        if self._tracker.replaces or number > self._logged:
            self._safely(lambda: self._log(number, metrics))

    def end(self, error: Exception | None) -> None:
        """End the tracker."""
        self._safely(lambda: self._tracker.end(error))

    @property
    def _logged(self) -> int:
        """The last round that the tracker has; -1 for none, as epoch 0 of a distillation is the student before training."""
        return int(self._record.get("round", -1))

    def _log(self, number: int, row: Mapping[str, Any]) -> None:
        """Log a round, and note that the tracker has it."""
        self._tracker.log(number, {**numbers(row), **diagnostics(self._folder, number)})
        if not self._tracker.replaces:
            self._record["round"] = number
            write_record(self._folder, self._name, self._record)

    def _safely(self, action: Callable[[], None]) -> None:
        """Call the tracker, until it has failed once."""
        if self._works:
            try:
                action()
            except Exception as error:
                self._works = False
                why = f"{type(error).__name__}: {one_line(error)}"
                print(f"tracker {self._name} failed, and the run goes on without it: {why}", file=sys.stderr, flush=True)


def tracked_run(folder: Path, first: int, record: Mapping[str, Any]) -> TrackedRun:
    """What a tracker is told of the run in ``folder``, which goes on with round ``first``."""
    config = to_dict(OmegaConf.load(folder / "config.yaml"))  # type: ignore[arg-type]
    part = "distiller" if "distiller" in config else "strategy"
    name = (config.get("choices") or {}).get(part) or str(config[part].get("_target_")).rpartition(".")[2]
    return TrackedRun(folder, folder.name, str(config["name"]), str(name), config, first, record.get("id"))


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """What each tracker of a run has; empty where nothing is noted."""
    try:
        return dict(json.loads((folder / RECORDS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def write_record(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Note what a tracker has. A run that is killed between a round and its note logs the round again."""
    temporary = folder / f".{RECORDS}.tmp"
    temporary.write_text(json.dumps({**read_records(folder), name: dict(record)}, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / RECORDS)


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file, none without the file."""
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


def number_of(row: Mapping[str, Any]) -> int:
    """The round or epoch of a row of ``metrics.csv``."""
    return int(row["round"] if "round" in row else row["epoch"])


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a row that it has measured."""
    return {name: float(value) for name, value in row.items() if name not in ("round", "epoch") and value not in ("", None)}


def diagnostics(folder: Path, number: int) -> dict[str, float]:
    """The values of ``generator.csv`` in a round, by the name of the column and the class."""
    return {
        f"generator/{name}/class_{int(row['class']):02d}": float(value)
        for row in read_rows(folder / "generator.csv")
        if row["round"] == str(number)
        for name, value in row.items()
        if name not in ("round", "class") and value != ""
    }
