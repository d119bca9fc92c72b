"""What a server's generator has learnt, looked at while the run goes on: label fidelity, diversity, coverage, and where its latents lie.

Everything is computed from the state and the updates of a finished round, with draws of its own, so that no training knows of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.func import functional_call

from fedkd.distillation.image_synthesis import as_seen
from fedkd.distillation.logit_distillation import images
from fedkd.federation import serialization
from fedkd.federation.server_loop import Round
from fedkd.metrics.generator_quality import label_accuracy, diversity_and_coverage
from fedkd.seed import Seed
from fedkd.training.functional_model import FunctionalModel, submodule_tensors
from fedkd.types import Examples, Generated, State, Update
from simulations.setup.simulation import Simulation

SAMPLES = 100
"""Generated and real examples of each class."""


POINTS = 600
"""Embedded latents of a round at most, generated and real together."""


Rows = list[dict[str, float]]


@torch.no_grad()
def diagnose(home: Simulation, done: Round, memories: Mapping[int, State]) -> tuple[Rows, Rows]:
    """Of a finished round the rows of ``generator.csv``, one a class, and of ``latents.csv``, one an embedded latent; none without a generator.

    The ensemble is the mean of the logits of the round's clients, the global head that of the aggregated model; "unseen" are the
    round's clients that hold no training example of the class, "seen" the others: the mean over these clients of the share that each reads
    back as the label. Real latents are those of :attr:`Simulation.test` under the global model, or, where there is none, under the clients'
    own networks, to which the images are dealt out in turn.

    Args:
        home: the run's world.
        done: the round.
        memories: what clients remember after it.
    """
    device, classes = home.config.device, home.task.num_classes
    strategy, state = home.strategy, serialization.from_record(done.arrays, device)
    server = replace(strategy.federation.server, memories=memories)
    updates = sorted((serialization.to_update(reply) for reply in done.trained), key=lambda update: update.client)
    asked = torch.arange(classes, device=device).repeat_interleave(SAMPLES)
    seed = home.seed / "diagnostics"
    made = strategy.generate(server, state, asked, seed / "noise") if updates else None
    if made is None:
        return [], []
    networks = [whole(home, update, memories) for update in updates]
    model = strategy.global_model(server, state)
    encoders = networks if model is None else [model]
    real = home.test.subset(chosen(home.test.y, SAMPLES, seed / "real"))
    latents = numbers(encoded(encoders, home, real)), real.y.cpu().numpy()
    generated = numbers(made.values if made.are_embeddings else encoded(encoders, home, as_seen(made.values))), made.y.cpu().numpy()
    said = numbers(torch.stack([read(network, made, server.batch_size) for network in networks]))  # [K, N, C]
    overall = global_logits(home, model, state, made)
    held = np.stack([home.held.shards[0][u.client].y.bincount(minlength=classes).cpu().numpy() > 0 for u in updates])  # [K, C]
    measured = label_accuracy(said, None if overall is None else numbers(overall), generated[1], held) | diversity_and_coverage(generated, latents, classes)
    rows = [{"round": done.number, "class": c, **told({name: values[c] for name, values in measured.items()})} for c in range(classes)]
    return rows, embedded(generated, latents, classes, done.number, (seed / "tsne").integer() % 2**32)


def whole(home: Simulation, update: Update, memories: Mapping[int, State]) -> FunctionalModel:
    """A client's network as it stands after its training: what it has sent, and what stays with it."""
    network = home.networks[update.client]
    sent = {key: value.to(network.initial[key].device) for key, value in update.state["model"].items()}
    return FunctionalModel(network.model).at({**network.initial, **memories.get(update.client, {}).get("local", {}), **sent})


def read(network: FunctionalModel, made: Generated, batch_size: int) -> Tensor:  # [N, C]
    """What a client's network, or its head, says of what was generated."""
    pieces = made.values.split(batch_size)
    return torch.cat([network.head(piece) if made.are_embeddings else network(piece).logits for piece in pieces])


def global_logits(home: Simulation, model: nn.Module | None, state: State, made: Generated) -> Tensor | None:  # [N, C]
    """What the aggregated model, or its head, says of what was generated; None where there is neither."""
    if made.are_embeddings:
        head = submodule_tensors(state.get("model", {}), "head")
        return functional_call(home.model.head, head, (made.values,)) if head else None
    return None if model is None else torch.cat([model(piece).logits for piece in made.values.split(home.config.evaluation.batch_size)])


def chosen(y: Tensor, number: int, seed: Seed) -> Tensor:
    """``number`` examples of each class, or all where there are fewer, by class."""
    order = torch.randperm(len(y), generator=seed.torch()).to(y.device)
    return torch.cat([order[y[order] == label][:number] for label in y.unique()])


def encoded(encoders: Sequence[FunctionalModel | nn.Module], home: Simulation, examples: Examples) -> Tensor:  # [N, D]
    """Embeddings: example n is read by encoder n mod K."""
    places, found = torch.arange(len(examples), device=examples.y.device), []
    for number, encoder in enumerate(encoders):
        pieces = places[number :: len(encoders)].split(home.config.evaluation.batch_size)
        found += [encoder(images(examples, piece, home.dtype)).embedding for piece in pieces if len(piece)]
    order = torch.cat([places[number :: len(encoders)] for number in range(len(encoders))])
    return torch.cat(found)[order.argsort()]


def numbers(tensor: Tensor) -> np.ndarray:
    """In double precision, for what follows."""
    return tensor.detach().cpu().double().numpy()


def told(values: Mapping[str, float]) -> dict[str, float]:
    """Without what is unknown, and counts as whole numbers; six digits are more than the samples give."""
    known = {name: float(value) for name, value in values.items() if not np.isnan(value)}
    return {name: int(value) if name.startswith("num_") else float(f"{value:.6g}") for name, value in known.items()}


# ------------------------------------------------------------------------------------------------------------ embedding
def embedded(
    generated: tuple[np.ndarray, np.ndarray], real: tuple[np.ndarray, np.ndarray], classes: int, server_round: int, random_state: int
) -> Rows:
    """Generated and real latents together in two dimensions, by PCA and by t-SNE of scikit-learn: the first of each class, as many of each."""
    number = max(2, POINTS // (2 * classes))
    rows, latents = [], []
    for is_generated, (z, y) in enumerate((real, generated)):
        for label in range(classes):
            found = z[y == label][:number]
            rows += [{"round": server_round, "class": label, "is_generated": is_generated}] * len(found)
            latents.append(found)
    points = np.concatenate(latents)
    points = np.pad(points, ((0, 0), (0, max(0, 2 - points.shape[1]))))
    if len(points) < 4 or not np.isfinite(points).all() or len(np.unique(points, axis=0)) < 4:
        return []
    with threadpool_limits(1):  # another number is another rounding
        flat = PCA(2, svd_solver="full").fit_transform(points)
        near = TSNE(perplexity=min(30.0, (len(points) - 1) / 3), random_state=random_state, n_jobs=1).fit_transform(points)
    columns = {"pca_1": flat[:, 0], "pca_2": flat[:, 1], "tsne_1": near[:, 0], "tsne_2": near[:, 1]}
    return [row | {name: float(f"{values[i]:.6g}") for name, values in columns.items()} for i, row in enumerate(rows)]
