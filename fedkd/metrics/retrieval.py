"""Retrieval: a representation judged by whom it puts next to whom."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.tensor_ops import flatten_examples, unit_rows

SIMILARITIES = ("cosine", "euclidean")

INTERPOLATIONS = ("full", "official")


@dataclass(frozen=True)
class Retrieval:
    """Means over queries, 0..1."""

    mean_average_precision: float
    """Of the interpolated precision at recalls 0, 0.1, ..., 1."""
    precision_at_k: float
    """Among the first few answers."""
    precision_at_1: float
    """Of the first answer alone."""


@torch.no_grad()
def retrieval(
    database: Tensor, labels: Tensor, queries: Tensor, query_labels: Tensor, *, similarity: str, interp: str, first: int = 100,
    batch_size: int = 128,
) -> Retrieval:  # [N, ...], [N], [M, ...], [M] # fmt: skip
    """Rank the database for each query; an answer is relevant if it has the query's label.

    Average precision is that at 11 recalls: at each the interpolated precision of the rank whose recall is nearest, the first of equals.

    - ``full``: interpolated precision at a rank is the largest at this rank or any later one. Precision among the first answers and of
      the nearest is plain.
    - ``official``: the public code of Passalis et al. (CVPR 2020) looks ahead as far as a batch has queries, not as far as the database
      goes: at most to rank ``batch_size``; later ranks keep their own precision. Its precision among the first 100 and of the first is
      read off the same interpolated curve, hence above the plain one, and depends on ``batch_size`` (there 128) and on the last batch.

    Args:
        database: representations to be found.
        labels: of the database; a query whose label is not among them scores 0.
        queries: representations to be answered.
        query_labels: of the queries.
        similarity: ``cosine``, of which a row of zeros has 0; or ``euclidean``, minus the distance.
        interp: ``full`` or ``official``.
        first: among how many answers precision is counted, >= 1; all where the database has fewer.
        batch_size: queries at once, >= 1.
    """
    require(similarity in SIMILARITIES, "similarity", f"must be one of {', '.join(SIMILARITIES)}", similarity)
    require(interp in INTERPOLATIONS, "interp", f"must be one of {', '.join(INTERPOLATIONS)}", interp)
    require(first >= 1, "first", "must be >= 1", first)
    require(batch_size >= 1, "batch_size", "must be >= 1", batch_size)
    require(len(labels) > 0 and len(query_labels) > 0, "retrieval", "must have a database and queries", (len(labels), len(query_labels)))
    known, asked, every = prepare(database, similarity), prepare(queries, similarity), []
    for rows in torch.arange(len(asked), device=asked.device).split(batch_size):
        relevant = labels[rank_database(known, asked[rows], similarity)] == query_labels[rows, None]
        every.append(query_scores(relevant, interp, first))
    return Retrieval(*torch.cat(every).mean(0).tolist())


def prepare(x: Tensor, similarity: str) -> Tensor:  # [N, ...] -> [N, D]
    """In float64, so that near ones keep their order; of length one for ``cosine``."""
    x = flatten_examples(x).double()
    return unit_rows(x) if similarity == "cosine" else x


def rank_database(known: Tensor, asked: Tensor, similarity: str) -> Tensor:  # [N, D], [b, D] -> [b, N]
    """Places in the database, the most similar first, equals in the order of the database."""
    near = asked @ known.T
    if similarity == "euclidean":
        near = 2 * near - known.square().sum(-1)  # minus the squared distance, but for what is the same for all of a query
    return near.sort(dim=-1, descending=True, stable=True).indices


def query_scores(relevant: Tensor, interp: str, first: int) -> Tensor:  # [b, N] bool -> [b, 3]
    """Average precision, precision among the ``first``, and that of the nearest, of each query of a batch."""
    found = relevant.double().cumsum(-1)
    plain = found / torch.arange(1, relevant.shape[-1] + 1, device=found.device)
    recall = found / found[:, -1:].clamp_min(1)
    ahead = relevant.shape[-1] if interp == "full" else len(relevant)
    curve = torch.cat([plain[:, :ahead].flip(-1).cummax(-1).values.flip(-1), plain[:, ahead:]], -1)
    levels = [curve.gather(-1, (recall - tenth / 10).abs().argmin(-1, keepdim=True)) for tenth in range(11)]
    read = plain if interp == "full" else curve
    last = min(first, relevant.shape[-1]) - 1
    return torch.stack([torch.cat(levels, -1).mean(-1), read[:, last], read[:, 0]], -1)
