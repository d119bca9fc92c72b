"""What all commands have in common: configurations composed from conf/, paths made absolute, errors in a line."""

import csv
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fedkd.config.schema import Composed, Distillation
from fedkd.errors import ClientFailure, ConfigError, require

ConfigStore.instance().store(name="schema", node=Composed)
ConfigStore.instance().store(name="distillation", node=Distillation)

FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"

CONF = Path(__file__).resolve().parents[1] / "conf"


def compose(overrides: list[str], name: str = "config") -> DictConfig:
    """The configuration that the command line ``overrides`` describe, of a run or of what else ``name`` is the root of."""
    config = compose_with_hydra(overrides, name)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return with_choices(config, choices)


def compose_with_hydra(overrides: list[str], name: str = "config") -> DictConfig:
    """The same with Hydra's own node, and the sweep that an experiment describes."""
    ready = GlobalHydra.instance().is_initialized()  # within the command
    with nullcontext() if ready else hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, overrides, return_hydra_config=True)


def with_choices(config: DictConfig, choices: dict[str, str]) -> DictConfig:
    """``config`` with the names of the files it was composed from, and without the sweep that it belongs to."""
    config.choices = {key: name for key, name in sorted(choices.items()) if "hydra" not in key and name is not None}
    with open_dict(config):
        config.pop("reproduce", None)
    return config


def apply_tuned_params(config: DictConfig, part: str) -> dict[str, object] | None:
    """Set what was chosen for this ``part`` (``strategy``, ``distiller``) in the file ``tuned``.

    Returns:
        What is to be noted of it: the file, the SHA-256 of what was tried for this part and the rows that were taken, times aside, which are
        another in every search, and whether the configuration had these values anyway (``shipped``); None where nothing is tuned.

    Raises:
        ConfigError: the file cannot be read, or holds no choice for it.
    """
    if config.tuned_params is None:
        return None
    config.tuned_params, name = str(Path(config.tuned_params).expanduser().absolute()), config.choices.get(part)
    try:
        rows = [{key: row[key] for key in row if key != "seconds"} for row in tuned_rows(Path(config.tuned_params), name)]
        taken = {row["key"]: row for row in rows if row["selected"] == "1"}
        chosen = {key: float(row["value"]) for key, row in taken.items()}
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(
            f"tuned_params must be a file that simulations.experiments.tuning has written, got {config.tuned_params!r}: {error}"
        ) from error
    command = {"strategy": "tune", "distiller": "tune_distill"}[part]
    rule = f"must hold a choice for {part} {name} (python -m simulations.{command} {part}={name})"
    require(bool(chosen), "tuned_params", rule, config.tuned_params)
    shipped = all(OmegaConf.select(config, key) == value for key, value in chosen.items())
    for key, value in chosen.items():
        OmegaConf.update(config, key, value)
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return {"file": config.tuned_params, "sha256": digest, "selected": list(taken.values()), "tried": len(rows), "shipped": shipped}


def tuned_rows(table: Path, name: str) -> list[dict[str, str]]:
    """The rows of what a table of tuning holds for a strategy or a distiller."""
    with open(table, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["option"] == name]


def make_absolute(node: DictConfig) -> None:
    """Make every path in ``node`` absolute."""
    for key, value in node.items():
        if isinstance(value, DictConfig):
            make_absolute(value)
        elif key in ("root", "cache", "path", "trace") and isinstance(value, str):
            node[key] = str(Path(value).expanduser().absolute())


def error_line(error: Exception) -> str:
    """Hydra's errors in one line: what was given and what is wrong with it, without advice that does not apply here."""
    lines = [line.strip() for part in (error, error.__cause__) if part is not None for line in str(part).splitlines()]
    noise = ("full_key", "object_type", "reference_type", "To append", "Config search path", "provider=", "See https")
    return "; ".join(line for line in lines if line and not line.startswith(noise))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """One line and exit code 1 for what the user can mend; a traceback for what is ours, and for all if HYDRA_FULL_ERROR asked for it."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: run the same command to go on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except ClientFailure as error:
        sys.exit(f"error: {error}\nEverything up to the last round is on disk; run the same command to go on from there.")
    except FloatingPointError as error:
        sys.exit(f"error: {error}\nThe last checkpoint, if there was one by then, is on disk.")
    except (ValueError, HydraException, OmegaConfBaseException, FileExistsError, NotADirectoryError, PermissionError) as error:
        if FULL_ERROR:
            raise
        if isinstance(error, (HydraException, OmegaConfBaseException)):
            sys.exit(f"error: {error_line(error)}")
        if isinstance(error, OSError):
            sys.exit(f"error: output must be a folder that can be written, got {error.filename!r}: {error}")
        sys.exit(f"error: {error}")
