"""What a client's test measures, by the configuration of a run, and a table of the other accuracies that runs have."""

from collections.abc import Mapping, Sequence
from typing import Any

from simulations.reports.groups import Group
from simulations.reports.metrics import LAST, accuracy_heading, is_class_accuracy
from simulations.reports.summary import blocks, by_seed
from simulations.reports.tables.federated import heading, last_rounds_legend, sample_legend
from simulations.reports.tables.table import Column, NumberFormat, Table, counts, ranked, texts
from simulations.run_folder.metric_names import ACCURACIES, SERVER_STAGES, is_accuracy

TESTED = {
    "Ditto": "its private network",
    "FML": "its private network",
    "FedKD": "its private network",
    "FedRoD": "the sum of the shared head and its own",
    "FedMD": "its own network",
    "FedEnsemble": "the ensemble of the round's clients",
}
"""What a client is tested with, by the class of a strategy that has no global model or tests another prediction than the model's."""

PROTOTYPES = {"prototypes": "the nearest prototype, by its own network", "head": "its own network and head"}
"""The same for FedProto and FedTGP, by their key ``prediction``."""

LEGEND = """Accuracy in %: {cell}. {last}
Local acc. with a name: other predictions for the same examples of the clients. {tested}."""


def client_test(config: Mapping[str, Any]) -> str | None:
    """What a client's local test measures, in a few words; None for a strategy that fedkd does not ship.

    Args:
        config: of a run.
    """
    strategy = config.get("strategy") or {}
    module, _, name = str(strategy.get("_target_", "")).rpartition(".")
    if not module.startswith("strategies."):
        return None
    if name in TESTED:
        return TESTED[name]
    if "prediction" in strategy:
        return PROTOTYPES.get(strategy["prediction"])
    if strategy.get("share_model") is False:
        return "its own network"
    layers = {"all": "the global model", "head": "its own body with the shared head", "body": "the shared body with its own head"}
    text = layers.get(strategy.get("shared_layers", "all"), "the shared layers with all others its own")
    text += ", fine-tuned before the test" if strategy.get("finetune_steps") else ""
    text += " with its own BatchNorm layers" if strategy.get("batchnorm") == "private" else ""
    unlike = str((config.get("model") or {}).get("_target_", "")).endswith("HeterogeneousModels") and text == "the global model"
    return f"{text}, or its own where its network is another one" if unlike else text


def client_tests(groups: Sequence[Group]) -> str:
    """``FedAvg, FedGen: the global model; Ditto: its private network``; empty where no strategy is known."""
    found: dict[str, list[str]] = {}
    for one in groups:
        text = client_test(one.first.config)
        if text is not None and one.line not in found.setdefault(text, []):
            found[text].append(one.line)
    return "; ".join(f"{', '.join(lines)}: {text}" for text, lines in found.items())


def predictions(groups: Sequence[Group], form: NumberFormat) -> Table | None:
    """Accuracies beside the headlines, such as ``local_test_accuracy_shared``, for the groups that have some; None where none has.

    Accuracies by class and of the stages of server-side distillation have tables of their own.
    """
    names = {
        one: {name for run in one.runs for name in map(str, run.metrics) if is_accuracy(name) and run.metrics[name].notna().any()}
        for one in groups
    }
    further = sorted(
        {name for mine in names.values() for name in mine if not (name in (*ACCURACIES, *SERVER_STAGES) or is_class_accuracy(name))}
    )
    found = [one for one in groups if names[one] & set(further)]
    if not found:
        return None
    columns = [texts("strategy", [one.row for one in found]), counts("n", [len(one.runs) for one in found])]
    for name in ("local_test_accuracy", *further):
        cells = [form.percent(by_seed(one, f"{name}{LAST}")) for one in found]
        title = heading(accuracy_heading(f"{name}{LAST}"), groups)
        columns.append(Column(title, ranked(cells, blocks(found), form.form)))
    how = client_tests(found)
    legend = LEGEND.format(cell=form.legend, last=last_rounds_legend(found), tested=f"Tested with: {how}" if how else "") + sample_legend(
        found
    )
    return Table("predictions", "Other accuracies", tuple(columns), legend.replace(" .", ""), blocks(found))
