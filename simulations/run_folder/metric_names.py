"""Names of all metrics: columns of the files in a run folder, and the labels and units that reports print for them."""

COLUMNS = (
    "round", "accuracy", "loss", "accuracy_own_labels", "accuracy_worst_tenth", "accuracy_spread", "bytes_up", "bytes_down",
    "seconds_local", "seconds_server", "seconds_evaluate", "num_failures", "num_participants", "num_dropped", "num_late", "simulated_time",
    "train_loss",
)  # fmt: skip
"""Columns of ``metrics.csv`` of a federated run; terms of losses and classes follow."""

CLIENT_COLUMNS = ("round", "client", "participated", "num_examples", "loss", "accuracy_own_labels", "num_test_examples", "architecture")
"""Columns of ``clients.csv``."""

GENERATOR_COLUMNS = (
    "round", "class", "num_generated", "fidelity_ensemble", "fidelity_global", "fidelity_seen", "fidelity_unseen", "num_unseen",
    "diversity_generated", "diversity_real", "coverage",
)  # fmt: skip
"""Columns of ``generator.csv``."""

LATENT_COLUMNS = ("round", "class", "generated", "pca_1", "pca_2", "tsne_1", "tsne_2")
"""Columns of ``latents.csv``."""

SHIFT_COLUMNS = ("client", "rotation", "domain", "noise", "blur", "brightness", "contrast", "hue", "label_noise")
"""Columns of ``shift.csv``."""

DISTILLATION_COLUMNS = ("epoch", "accuracy", "loss", "train_loss", "lr", "seconds_train", "seconds_evaluate", "travel")
"""Columns of ``metrics.csv`` of a distillation; terms of its loss follow."""

DISTILLED_COLUMNS = ("round", "distiller", "accuracy_before", "accuracy", "folder")
"""Columns of ``distilled.csv``."""

ACCURACIES = ("accuracy", "accuracy_own_labels", "accuracy_worst_tenth")
"""Columns that hold headline accuracies, in 0..1."""

COSTS = ("bytes_up", "bytes_down", "seconds_local", "seconds_server", "seconds_evaluate")
"""Columns that hold costs of a round, in bytes and seconds."""

HEADLINES = {
    "accuracy_last": "test, last",
    "accuracy_last_ten": "test, last ten",
    "accuracy_own_labels_last": "own, last",
    "accuracy_own_labels_last_ten": "own, last ten",
    "accuracy_worst_tenth_last": "worst tenth",
}
"""Headline metrics of a run and their labels in tables."""

COMPARED = ("accuracy_last_ten", "accuracy_own_labels_last_ten")
"""The headlines that are tested against a baseline, and set side by side by setting."""

TABLE_METRICS = {
    **HEADLINES,
    "top5_rounds": "top-5 rounds",
    "seconds_local_median": "local training, s a round",
    "bytes_up_total": "bytes up",
    "bytes_down_total": "bytes down",
}
"""All metrics that the table of an experiment may show, and their labels."""
