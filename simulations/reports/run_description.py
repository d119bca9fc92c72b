"""What was run, in a few lines: data, model, clients, training and the commit of the code."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd.errors import RunFolderError
from simulations.reports.distillation_groups import DistillationRun
from simulations.run_folder.listing import setting
from simulations.run_folder.reader import FederatedRun, FinishedRun, natural_order, option
from simulations.run_folder.source_code import UNKNOWN, unlike_code

Config = Mapping[str, Any]

MAX_VALUES = 6
"""Values of a fact that are listed where runs differ."""

MAX_CLASSES = 20
"""Classes that are listed by name."""

HASH_LENGTH = 12
"""Characters of a commit that are printed."""


def describe_federated(runs: Sequence[FederatedRun]) -> dict[str, str]:
    """Facts on federated runs, by name. Where runs differ, a fact says ``varies:`` and the values."""
    facts: dict[str, Callable[[Config], str]] = {
        "Data": lambda config: _choice(config, "data"),
        "Model": lambda config: _choice(config, "model"),
        "Clients": _clients,
        "Partition": setting,
        "Rounds": lambda config: str(config.get("rounds", "unknown")),
        "Local training": _local_training,
        "Batch size": lambda config: str(config.get("batch_size", "unknown")),
        "Optimizer": _optimizer,
    }
    if any(_sampled(run.config) for run in runs):
        facts["Local test accuracy"] = _local_test
    found = {name: varying([fact(run.config) for run in runs]) for name, fact in facts.items()}
    data = {"Data": found.pop("Data"), **class_facts(runs)}
    return data | found | clients_without_examples(runs) | commits(runs)


def class_facts(runs: Sequence[FinishedRun]) -> dict[str, str]:
    """The classes with their names by ``classes.csv``; nothing where no run has the file."""
    named = [", ".join(f"{label} {name}" for label, name in enumerate(run.class_names)) for run in runs if run.class_names]
    if not named:
        return {}
    if len(set(named)) > 1:
        return {"Classes": "vary, see classes.csv in the run folders"}
    names = runs[0].class_names or next(run.class_names for run in runs if run.class_names)
    if names == tuple(str(label) for label in range(len(names))):
        return {"Classes": str(len(names))}
    shown = ", ".join(f"{label} {name}" for label, name in enumerate(names[:MAX_CLASSES]))
    more = f" and {len(names) - MAX_CLASSES} more" if len(names) > MAX_CLASSES else ""
    return {"Classes": f"{len(names)}: {shown}{more}"}


def clients_without_examples(runs: Sequence[FederatedRun]) -> dict[str, str]:
    """How many clients have no training examples; nothing where every client has some, or no partition can be read."""
    numbers = []
    for run in runs:
        try:
            numbers.append(int((run.counts().sum(axis=1) == 0).sum()))
        except (RunFolderError, ValueError):
            continue
    return {"Clients without training examples": varying([str(number) for number in numbers])} if any(numbers) else {}


def describe_distillations(runs: Sequence[DistillationRun]) -> dict[str, str]:
    """Facts on distillations, by name."""
    facts: dict[str, Callable[[Config], str]] = {
        "Data": lambda config: _choice(config, "data"),
        "Teacher": lambda config: _choice(config, "teacher"),
        "Student": lambda config: _choice(config, "student"),
        "Images": lambda config: _choice(config, "image_source"),
        "Epochs": lambda config: str(config.get("epochs", "unknown")),
        "Steps per epoch": lambda config: str(config.get("steps_per_epoch") or "one pass over the images"),
        "Batch size": lambda config: str(config.get("batch_size", "unknown")),
        "Optimizer": _optimizer,
    }
    found = {name: varying([fact(run.config) for run in runs]) for name, fact in facts.items()}
    return {"Data": found.pop("Data"), **class_facts(runs)} | found | commits(runs)


def varying(values: Sequence[str]) -> str:
    """The value that all runs have, or ``varies: 0.1, 1, 10``."""
    found = sorted(set(values), key=natural_order)
    if len(found) == 1:
        return found[0]
    more = f" and {len(found) - MAX_VALUES} more" if len(found) > MAX_VALUES else ""
    return f"varies: {'; '.join(found[:MAX_VALUES])}{more}"


def commits(runs: Sequence[FinishedRun]) -> dict[str, str]:
    """The commit of the code that made the runs, by ``environment.json``, and whether all runs are of the same code."""
    return {"Commit": varying([commit(run.folder) for run in runs]), "Code": "; ".join(unlike(runs)) or "the same for all runs"}


def unlike(runs: Sequence[FinishedRun]) -> list[str]:
    """The modules of which runs have different versions, and how many runs record no code. Empty where all runs are of the same code."""
    versions = unlike_code([run.folder for run in runs])
    unknown = versions.pop(UNKNOWN, 0)
    said = [f"{name} differs ({number} versions)" for name, number in list(versions.items())[:MAX_VALUES]]
    said += [f"{len(versions) - MAX_VALUES} more modules differ"] if len(versions) > MAX_VALUES else []
    return said + ([f"unknown for {unknown} of {len(runs)} runs"] if unknown else [])


def code_notes(runs: Sequence[FinishedRun]) -> list[str]:
    """A note where runs are compared that are not all known to be of the same code."""
    said = unlike(runs)
    comparable = said != [f"unknown for {len(runs)} of {len(runs)} runs"]
    return [f"runs of unlike code are compared: {'; '.join(said)}"] if said and comparable else []


def commit(folder: Path) -> str:
    """The short commit of a run, with a remark on uncommitted changes; ``unknown`` outside a checkout."""
    try:
        found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        name, changed = found["commit"], found.get("uncommitted_changes")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "unknown"
    if not isinstance(name, str):
        return "unknown"
    return name[:HASH_LENGTH] + (" with uncommitted changes" if changed else "")


def _choice(config: Config, part: str) -> str:
    """The option that was chosen for a part."""
    return str((config.get("choices") or {}).get(part) or option(config, part) or "unknown")


def _clients(config: Config) -> str:
    """``20, of which 10 per round``."""
    number, sampled = config.get("num_clients", "unknown"), config.get("clients_per_round")
    return str(number) if sampled in (None, number) else f"{number}, of which {sampled} per round"


def _sampled(config: Config) -> int | None:
    """The number of clients that are evaluated; None for all."""
    return (config.get("evaluation") or {}).get("clients")


def _local_test(config: Config) -> str:
    """``over a sample of 500 clients, drawn anew for each evaluation``."""
    number = _sampled(config)
    return "over all clients" if number is None else f"over a sample of {number} clients, drawn anew for each evaluation"


def _local_training(config: Config) -> str:
    """``20 steps per round`` or ``2 epochs per round``."""
    for key, unit in (("local_steps", "step"), ("local_epochs", "epoch")):
        if config.get(key) is not None:
            return f"{config[key]} {unit}{'' if config[key] == 1 else 's'} per round"
    return "unknown"


def _optimizer(config: Config) -> str:
    """``sgd, learning rate 0.01``."""
    found = config.get("optimizer") or {}
    name = _choice(config, "optimizer")
    return name if found.get("lr") is None else f"{name}, learning rate {found['lr']}"
