"""Diagnostics of the server's generator during a run: label accuracy, diversity, coverage, and embeddings in two dimensions.

They are computed from the state and the updates of a finished round, with random streams of their own. They do not affect training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from fedkd.distillation.image_synthesis import as_examples
from fedkd.distillation.logit_distillation import load_images
from fedkd.federation import serialization
from fedkd.federation.server_loop import Round
from fedkd.metrics.generator_quality import diversity_and_coverage, label_accuracy
from fedkd.seed import Seed
from fedkd.training.functional_model import FunctionalModel, call_with, submodule_tensors
from fedkd.types import Examples, Generated, State, Update
from simulations.setup.simulation import Simulation

SAMPLES_PER_CLASS = 100
"""Number of generated and of real examples of each class."""

MAX_POINTS = 600
"""Maximum number of embedded latents in a round, generated and real together."""

Rows = list[dict[str, float]]
"""Rows of a CSV file."""

Model = Callable[[Tensor], Any]
"""A function from images [B, channels, height, width] to an Output."""


@torch.no_grad()
def diagnose(simulation: Simulation, done: Round, client_states: Mapping[int, State]) -> tuple[Rows, Rows]:
    """The diagnostics of a round.

    The ensemble is the mean of the logits of the round's clients. Real latents are embeddings of the global test set. They come from the
    global model. If there is none, the clients' own networks embed the images in turn.

    Args:
        simulation: the simulation of the run.
        done: the finished round.
        client_states: the states of the clients after the round.

    Returns:
        The rows of ``generator.csv``, one per class, and of ``latents.csv``, one per embedded latent. Both are empty if the strategy has no
        generator.
    """
    simulation = simulation.at(done.number)
    device, num_classes = simulation.config.device, simulation.task.num_classes
    strategy, state = simulation.strategy, serialization.from_record(done.arrays, device)
    server = replace(strategy.federation.at(done.number).server, client_states=client_states)
    updates = sorted((serialization.to_update(reply) for reply in done.train_replies), key=lambda update: update.client)
    labels = simulation.task.present.to(device).repeat_interleave(SAMPLES_PER_CLASS)
    seed = simulation.seed / "diagnostics"
    samples = strategy.generate(server, state, labels, seed / "noise") if updates else None
    if samples is None:
        return [], []
    networks = [client_network(simulation, update, client_states) for update in updates]
    model = strategy.global_model(server, state)
    encoders: Sequence[Model] = networks if model is None else [model]
    real = simulation.global_test.subset(examples_per_class(simulation.global_test.y, SAMPLES_PER_CLASS, seed / "real"))
    embeddings = samples.values if samples.are_embeddings else embed_examples(encoders, simulation, as_examples(samples.values))
    real_latents = to_numpy(embed_examples(encoders, simulation, real)), real.y.cpu().numpy()
    generated_latents = to_numpy(embeddings), samples.y.cpu().numpy()
    client_logits = to_numpy(torch.stack([generated_logits(network, samples, server.batch_size) for network in networks]))  # [K, N, C]
    model_logits = global_logits(simulation, model, state, samples)
    data = [simulation.client_data.train[update.client] for update in updates]
    has_class = np.stack([examples.y.bincount(minlength=num_classes).cpu().numpy() > 0 for examples in data])  # [K, C]
    measures = {
        **label_accuracy(client_logits, None if model_logits is None else to_numpy(model_logits), generated_latents[1], has_class),
        **diversity_and_coverage(generated_latents, real_latents, num_classes),
    }
    rows = [
        {"round": done.number, "class": label, **known_values({name: values[label] for name, values in measures.items()})}
        for label in simulation.task.present.tolist()
    ]
    return rows, latent_rows(generated_latents, real_latents, num_classes, done.number, (seed / "tsne").integer() % 2**32)


def client_network(simulation: Simulation, update: Update, client_states: Mapping[int, State]) -> FunctionalModel:
    """A client's network after its training: the parameters of its update, and those that it keeps."""
    network = simulation.networks[update.client]
    sent = {key: value.to(network.initial[key].device) for key, value in update.state["model"].items()}
    return FunctionalModel(network.model).at({**network.initial, **client_states.get(update.client, {}).get("local", {}), **sent})


def generated_logits(network: FunctionalModel, samples: Generated, batch_size: int) -> Tensor:  # [N, C]
    """The logits of a client's network for generated images, or of its head for generated embeddings."""
    batches = samples.values.split(batch_size)
    return torch.cat([network.head(batch) if samples.are_embeddings else network(batch).logits for batch in batches])


def global_logits(simulation: Simulation, model: Model | None, state: State, samples: Generated) -> Tensor | None:  # [N, C]
    """The logits of the global model, or of its head, for generated samples. None if there is no such model or head."""
    if samples.are_embeddings:
        head = submodule_tensors(state.get("model", {}), "head")
        return call_with(simulation.model.head, head, samples.values) if head else None
    batches = samples.values.split(simulation.config.evaluation.batch_size)
    return None if model is None else torch.cat([model(batch).logits for batch in batches])


def examples_per_class(y: Tensor, number: int, seed: Seed) -> Tensor:
    """The indices of ``number`` random examples of each class, sorted by class. A smaller class contributes all of its examples.

    Args:
        y: labels [N].
        number: examples per class, > 0.
        seed: seed of the draw.
    """
    order = torch.randperm(len(y), generator=seed.torch()).to(y.device)
    return torch.cat([order[y[order] == label][:number] for label in y.unique()])


def embed_examples(encoders: Sequence[Model], simulation: Simulation, examples: Examples) -> Tensor:  # [N, D]
    """The embeddings of examples. Example n is embedded by encoder n mod K."""
    indices, embeddings = torch.arange(len(examples), device=examples.y.device), []
    for number, encoder in enumerate(encoders):
        batches = indices[number :: len(encoders)].split(simulation.config.evaluation.batch_size)
        embeddings += [encoder(load_images(examples, batch, simulation.dtype)).embedding for batch in batches if len(batch)]
    order = torch.cat([indices[number :: len(encoders)] for number in range(len(encoders))])
    return torch.cat(embeddings)[order.argsort()]


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor as a NumPy array in double precision."""
    return tensor.detach().cpu().double().numpy()


def known_values(values: Mapping[str, float]) -> dict[str, float]:
    """The values that are not NaN: counts as integers, others with six significant digits, which exceeds the accuracy of the samples."""
    known = {name: float(value) for name, value in values.items() if not np.isnan(value)}
    return {name: int(value) if name.startswith("num_") else float(f"{value:.6g}") for name, value in known.items()}


def latent_rows(
    generated: tuple[np.ndarray, np.ndarray],
    real: tuple[np.ndarray, np.ndarray],
    num_classes: int,
    server_round: int,
    random_state: int,
) -> Rows:
    """Generated and real latents in two dimensions, by PCA and by t-SNE of scikit-learn.

    Args:
        generated: generated latents [N, D], and their labels [N].
        real: real latents [M, D], and their labels [M].
        num_classes: number of classes C.
        server_round: the round, for the rows.
        random_state: seed of t-SNE.

    Returns:
        One row for each of the first latents of each class, up to :data:`MAX_POINTS`. There are no rows if latents are not finite, or if
        fewer than four of them differ.
    """
    number = max(2, MAX_POINTS // (2 * num_classes))
    rows: Rows = []
    latents: list[np.ndarray] = []
    for is_generated, (z, y) in enumerate((real, generated)):
        for label in range(num_classes):
            of_class = z[y == label][:number]
            rows += [{"round": server_round, "class": label, "is_generated": is_generated}] * len(of_class)
            latents.append(of_class)
    points = np.concatenate(latents)
    points = np.pad(points, ((0, 0), (0, max(0, 2 - points.shape[1]))))
    if len(points) < 4 or not np.isfinite(points).all() or len(np.unique(points, axis=0)) < 4:
        return []
    with threadpool_limits(1):  # the number of threads changes rounding
        pca = PCA(2, svd_solver="full").fit_transform(points)
        tsne = TSNE(perplexity=min(30.0, (len(points) - 1) / 3), random_state=random_state, n_jobs=1).fit_transform(points)
    columns = {"pca_1": pca[:, 0], "pca_2": pca[:, 1], "tsne_1": tsne[:, 0], "tsne_2": tsne[:, 1]}
    return [row | {name: float(f"{values[i]:.6g}") for name, values in columns.items()} for i, row in enumerate(rows)]
