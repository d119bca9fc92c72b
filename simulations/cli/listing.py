"""What ``fedkd list`` shows and removes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from fedkd.errors import ConfigError
from simulations.cli.exit_codes import OK, WRONG
from simulations.cli.rendering import columns
from simulations.overrides import nearest
from simulations.run_folder import listing

COLUMNS = ("hash", "strategy", "data", "setting", "seed", "round", "status", "global acc.", "local acc.", "age")
RIGHT = ("seed", "round", "global acc.", "local acc.", "age")
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))

Row = dict[str, Any]


def rows(folders: Sequence[Path], status: str | None, filters: Sequence[str]) -> list[Row]:
    """The runs below ``folders``, each once, the oldest first.

    Args:
        folders: run folders or their parents.
        status: None for all.
        filters: words ``KEY=VALUE`` or ``KEY=A,B``.

    Raises:
        RunFolderError: a folder does not exist.
        ConfigError: a filter names a key that no run has.
    """
    where = {key: values(text) for key, _, text in (word.partition("=") for word in filters)}
    if where:
        check_keys(folders, list(where))
    found = {row["path"]: row for folder in folders for row in listing.list_folder(folder, status=status, where=where)}
    return sorted(found.values(), key=lambda row: -row["age_seconds"])


def values(text: str) -> list[Any]:
    """``0,1`` as the values 0 and 1; ``[8, 16]`` as one list."""
    parts = [text] if text.startswith("[") else text.split(",")
    return [yaml.safe_load(part) for part in parts]


def check_keys(folders: Sequence[Path], keys: Sequence[str]) -> None:
    """Refuse a key that no run has.

    Raises:
        ConfigError: naming the nearest key.
    """
    known: set[str] = set()
    for path in (path for folder in folders for path in listing.find_runs(folder)):
        config = listing.read_config(path)
        known |= {*_keys(config), *(config.get("choices") or {})}
    for key in keys:
        if known and key not in known:
            raise ConfigError(f"a filter must be a key of a run's configuration, got {key!r}{nearest(key, sorted(known))}")


def table(found: Sequence[Row]) -> str:
    """Rows in columns; accuracies in %."""
    shown = [
        {
            **row,
            "seed": "" if row["seed"] is None else row["seed"],
            "round": f"{row['round']}/{row['rounds']}",
            "global acc.": percent(row["global_test_accuracy"]),
            "local acc.": percent(row["local_test_accuracy"]),
            "age": age(row["age_seconds"]),
        }
        for row in found
    ]
    return columns(shown, COLUMNS, right=RIGHT)


def percent(value: float | None) -> str:
    """An accuracy in %, with two decimals."""
    return "-" if value is None else f"{100 * value:.2f}"


def age(seconds: float) -> str:
    """In the largest unit that fits: ``3 h``."""
    name, size = next((one for one in UNITS if seconds >= one[1]), UNITS[-1])
    return f"{int(seconds / size)} {name}"


def remove(found: Sequence[Row], yes: bool) -> int:
    """Remove run folders, or print them where ``yes`` is missing. Returns the exit code: 2 where one was kept."""
    code = OK
    for row in found:
        folder = Path(row["path"])
        if row["status"] == "running":
            click.echo(f"kept: {folder}: a process writes this run now", err=True)
            code = WRONG
        elif not yes:
            click.echo(f"would remove {folder}")
        elif (why := listing.remove(folder)) is not None:
            click.echo(f"kept: {folder}: {why}", err=True)
            code = WRONG
        else:
            click.echo(f"removed {folder}")
    if not yes:
        click.echo(f"{len(found)} run folders; nothing was removed, add --yes to remove them", err=True)
    return code


def _keys(node: Any, prefix: str = "") -> list[str]:
    """All dotted keys."""
    found = []
    for key, value in node.items() if isinstance(node, dict) else ():
        found.append(f"{prefix}{key}")
        found += _keys(value, f"{prefix}{key}.")
    return found
