"""Names of all metrics: columns of the files in a run folder, and the labels and units that reports print for them."""

import re

COLUMNS = (
    "round", "global_test_accuracy", "global_test_loss", "local_test_accuracy", "local_test_accuracy_bottom10",
    "local_test_accuracy_std", "uplink_bytes", "downlink_bytes", "local_training_seconds", "server_seconds", "evaluation_seconds",
    "num_failures", "num_clients_aggregated", "num_dropouts", "num_missed_deadline", "simulated_seconds", "train_loss",
)  # fmt: skip
"""Columns of ``metrics.csv`` of a federated run; terms of losses and classes follow."""

CLIENT_COLUMNS = (
    "round",
    "client_id",
    "trained",
    "num_train_examples",
    "train_loss",
    "local_test_accuracy",
    "num_test_examples",
    "architecture",
)
"""Columns of ``clients.csv``."""

GENERATOR_COLUMNS = (
    "round", "class", "num_generated", "label_accuracy_ensemble", "label_accuracy_global_model", "label_accuracy_clients_with_class",
    "label_accuracy_clients_without_class", "num_clients_without_class", "pairwise_distance_generated", "pairwise_distance_real",
    "coverage",
)  # fmt: skip
"""Columns of ``generator.csv``."""

LATENT_COLUMNS = ("round", "class", "is_generated", "pca_1", "pca_2", "tsne_1", "tsne_2")
"""Columns of ``latents.csv``."""

SHIFT_COLUMNS = ("client_id", "rotation", "domain", "noise", "blur", "brightness", "contrast", "hue", "label_noise")
"""Columns of ``shift.csv``."""

TASK_COLUMNS = ("round", "task", "num_test_examples", "num_correct")
"""Columns of ``tasks.csv``."""

DISTILLATION_COLUMNS = (
    "epoch",
    "test_accuracy",
    "test_loss",
    "train_loss",
    "lr",
    "training_seconds",
    "evaluation_seconds",
    "parameter_path_length",
)
"""Columns of ``metrics.csv`` of a distillation; terms of its loss follow."""

DISTILLED_COLUMNS = ("round", "distiller", "initial_accuracy", "student_accuracy", "run")
"""Columns of ``distilled.csv``."""

ACCURACIES = ("global_test_accuracy", "local_test_accuracy", "local_test_accuracy_bottom10")
"""Columns that hold headline accuracies, in 0..1."""

SERVER_STAGES = ("global_test_accuracy_before_distillation", "ensemble_test_accuracy")
"""Columns of accuracies that strategies with server-side distillation have."""

PREDICTIONS = {
    "shared": "shared model",
    "head": "own head",
    "prototypes": "nearest prototype",
    "bottom10": "bottom 10 %",
    "before_distillation": "before server-side distillation",
    "mean": "mean of models",
}
"""Labels of accuracies by what follows ``_test_accuracy_`` in the name of a column. Others are printed as they are called."""

TESTS = {"global": "global", "local": "local", "ensemble": "ensemble", "new_client": "new clients"}
"""Labels of tests by what precedes ``_test_accuracy`` in the name of a column."""

_ACCURACY = re.compile(rf"({'|'.join(TESTS)})_test_accuracy(?:_(?!std$)(\w+))?")


def is_accuracy(column: str) -> bool:
    """A column of ``metrics.csv`` holds an accuracy in 0..1."""
    return _ACCURACY.fullmatch(column) is not None


def accuracy_labels(column: str) -> tuple[str, str]:
    """The test and the prediction of an accuracy, as reports call them: ``local`` and ``shared model``, or an empty text.

    Raises:
        ValueError: the column is no accuracy.
    """
    if (found := _ACCURACY.fullmatch(column)) is None:
        raise ValueError(f"the column must be an accuracy, got {column!r}")
    return TESTS[found[1]], PREDICTIONS.get(found[2] or "", (found[2] or "").replace("_", " "))


COSTS = ("uplink_bytes", "downlink_bytes", "local_training_seconds", "server_seconds", "evaluation_seconds")
"""Columns that hold costs of a round, in bytes and seconds."""

HEADLINES = {
    "global_test_accuracy_final": "global acc., final",
    "global_test_accuracy_last10": "global acc., last 10",
    "local_test_accuracy_final": "local acc., final",
    "local_test_accuracy_last10": "local acc., last 10",
    "local_test_accuracy_bottom10_final": "bottom 10 % clients",
}
"""Headline metrics of a run and their labels in tables."""

FURTHER_HEADLINES = {
    "global_test_macro_f1_final": "global macro-F1, final",
    "global_test_macro_f1_last10": "global macro-F1, last 10",
}
"""Headline metrics that some tasks have, in 0..1 as accuracies are, and their labels in tables."""

COMPARED = ("global_test_accuracy_last10", "local_test_accuracy_last10")
"""The headlines that are tested against a baseline, and set side by side by setting."""

TABLE_METRICS = {
    **HEADLINES,
    "best5_rounds": "best 5 rounds",
    "local_training_seconds_median": "local training, s / round",
    "uplink_bytes_total": "uplink bytes",
    "downlink_bytes_total": "downlink bytes",
}
"""All metrics that the table of an experiment may show, and their labels."""

STRATEGY_NAMES = {
    "coboosting": "Co-Boosting",
    "dense": "DENSE",
    "dfrd": "DFRD",
    "ditto": "Ditto",
    "fedavg": "FedAvg",
    "fedbabu": "FedBABU",
    "fedbn": "FedBN",
    "feddf": "FedDF",
    "feddfusion": "FedDFusion",
    "feddistill": "FedDistill+",
    "feddistill_logits": "FedDistill",
    "feddyn": "FedDyn",
    "fedensemble": "FedEnsemble",
    "fedftg": "FedFTG",
    "fedftg_small": "FedFTG (small)",
    "fedgen": "FedGen",
    "fedgen_head": "FedGen (head)",
    "fedgen_paper": "FedGen (paper)",
    "fedgh": "FedGH",
    "fedgkd": "FedGKD",
    "fedkd": "FedKD",
    "fedlc": "FedLC",
    "fedmd": "FedMD",
    "fml": "FML",
    "fednova": "FedNova",
    "fedntd": "FedNTD",
    "fedper": "FedPer",
    "fedprox": "FedProx",
    "fedproto": "FedProto",
    "fedrep": "FedRep",
    "fedrod": "FedRoD",
    "fedsam": "FedSAM",
    "fedtgp": "FedTGP",
    "lg_fedavg": "LG-FedAvg",
    "moon": "MOON",
    "scaffold": "SCAFFOLD",
}
"""Names that reports print for the options of ``conf/strategy``. An option that is not listed prints as the name of its yaml file."""

DISTILLER_NAMES = {
    "at": "AT",
    "dkd": "DKD",
    "dpk": "DPK",
    "fitnet": "FitNet",
    "hsakd": "HSAKD",
    "hsakd_joint": "HSAKD*",
    "hsakd_online": "Online HSAKD",
    "hsakd_teacher": "HSAKD teacher",
    "information_flow": "Information flow",
    "kd": "KD",
    "kd_sp": "KD + SP",
    "kddg": "KDDG",
    "none": "no KD",
    "online_ensemble": "Online ensemble",
    "pkt": "PKT",
    "sp": "SP",
}
"""Names that reports print for the options of ``conf/distiller``. An option that is not listed prints as the name of its yaml file."""
