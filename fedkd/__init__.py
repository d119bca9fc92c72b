"""fedkd: a simulator for federated learning with knowledge distillation.

``import fedkd`` gives the Python API. Its names are imported when they are first used, so that the import itself takes no time:

- :func:`run`, :func:`distill`, :func:`tune`, :func:`reproduce` compute; :func:`compose`, :func:`load`, :func:`list_runs`,
  :func:`describe` and :func:`report` look up, read and write reports.
- :class:`Run` and :class:`Runs` are the results, :class:`Callback` follows a run.
- :class:`Strategy` and :class:`Seed` are what a strategy of your own needs, :class:`Tracker` is the base of a tracker of your own.
- :class:`FedkdError` is the base of all errors.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedkd.errors import ClientFailure, ConfigError, DivergedError, EngineError, FedkdError, ReportError, RunFolderError, StopRun
    from fedkd.seed import Seed
    from fedkd.strategy import Strategy
    from simulations.api.callbacks import BestCheckpoint, Callback, EarlyStopping
    from simulations.api.functions import compose, describe, distill, list_runs, load, report, reproduce, run, tune
    from simulations.api.run import Run
    from simulations.api.runs import Runs
    from simulations.trackers.base import Tracker

__version__ = "0.2.0"

__all__ = [
    "BestCheckpoint", "Callback", "ClientFailure", "ConfigError", "DivergedError", "EarlyStopping", "EngineError", "FedkdError",
    "ReportError", "Run", "RunFolderError", "Runs", "Seed", "StopRun", "Strategy", "Tracker", "compose", "describe", "distill",
    "list_runs", "load", "report", "reproduce", "run", "tune",
]  # fmt: skip

_MODULES = {
    **dict.fromkeys(
        ("ClientFailure", "ConfigError", "DivergedError", "EngineError", "FedkdError", "ReportError", "RunFolderError", "StopRun"),
        "fedkd.errors",
    ),
    **dict.fromkeys(("BestCheckpoint", "Callback", "EarlyStopping"), "simulations.api.callbacks"),
    "Run": "simulations.api.run",
    "Runs": "simulations.api.runs",
    "Seed": "fedkd.seed",
    "Strategy": "fedkd.strategy",
    "Tracker": "simulations.trackers.base",
}
"""The modules of names. All others are functions of ``simulations.api.functions``."""


def __getattr__(name: str) -> Any:
    """A public name, imported now.

    Raises:
        AttributeError: there is no such name.
    """
    if name not in __all__:
        raise AttributeError(f"module 'fedkd' has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, "simulations.api.functions")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All names, those that are not imported yet among them."""
    return sorted({*globals(), *__all__})
