"""Image retrieval: the quality of a representation by the labels of nearest neighbors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.errors import require
from fedkd.tensor_ops import flatten_examples, unit_rows

SIMILARITIES = ("cosine", "euclidean")
"""Similarities that rank the database."""

INTERPOLATIONS = ("full", "official")
"""Interpolations of precision, see :func:`retrieval`."""


@dataclass(frozen=True)
class Retrieval:
    """Means over all queries, 0..1.

    Args:
        mean_average_precision: mean of the interpolated precision at the recalls 0, 0.1, ..., 1.
        precision_at_k: precision among the first k answers.
        precision_at_1: precision of the first answer.
    """

    mean_average_precision: float
    precision_at_k: float
    precision_at_1: float


@torch.no_grad()
def retrieval(
    database: Tensor, labels: Tensor, queries: Tensor, query_labels: Tensor, *, similarity: str, interpolation: str, first: int = 100,
    batch_size: int = 128,
) -> Retrieval:  # [N, ...], [N], [M, ...], [M] # fmt: skip
    """Rank the database for each query. An answer is relevant if it has the query's label.

    The average precision is the mean over 11 recalls. At each recall the precision is that of the rank with the nearest recall, the first
    of equal ones.

    - ``full``: the precision at a rank is the maximum over this rank and all later ranks. The other two measures are not interpolated.
    - ``official``: the public code of Passalis et al. (CVPR 2020). Its maximum looks ahead only as far as a batch has queries, at most to
      rank ``batch_size``; later ranks keep their own precision. Its precision among the first 100 answers and of the first answer are
      taken from the same interpolated curve. They are therefore higher, and depend on ``batch_size`` (128 there) and on the last batch.

    Args:
        database: representations of the database.
        labels: labels of the database. A query whose label is not among them has score 0.
        queries: representations of the queries.
        query_labels: labels of the queries.
        similarity: ``cosine``, which is 0 for a zero row; or ``euclidean``: the negative distance.
        interpolation: ``full`` or ``official``.
        first: k of the precision among the first k answers, >= 1; at most the size of the database is used.
        batch_size: queries that are computed at once, >= 1.

    Raises:
        ConfigError: an argument is out of range, or there are no queries or no database.
    """
    require(similarity in SIMILARITIES, "similarity", f"must be one of {', '.join(SIMILARITIES)}", similarity)
    require(interpolation in INTERPOLATIONS, "interpolation", f"must be one of {', '.join(INTERPOLATIONS)}", interpolation)
    require(first >= 1, "first", "must be >= 1", first)
    require(batch_size >= 1, "batch_size", "must be >= 1", batch_size)
    require(len(labels) > 0 and len(query_labels) > 0, "retrieval", "must have a database and queries", (len(labels), len(query_labels)))
    prepared_database, prepared_queries, scores = prepare(database, similarity), prepare(queries, similarity), []
    for rows in torch.arange(len(prepared_queries), device=prepared_queries.device).split(batch_size):
        ranks = rank_database(prepared_database, prepared_queries[rows], similarity)
        scores.append(query_scores(labels[ranks] == query_labels[rows, None], interpolation, first))
    return Retrieval(*torch.cat(scores).mean(0).tolist())


def prepare(x: Tensor, similarity: str) -> Tensor:  # [N, ...] -> [N, D]
    """Representations in float64, so that close ones keep their order; with norm 1 for ``cosine``."""
    x = flatten_examples(x).double()
    return unit_rows(x) if similarity == "cosine" else x


def rank_database(database: Tensor, queries: Tensor, similarity: str) -> Tensor:  # [N, D], [b, D] -> [b, N]
    """For each query the indices of the database, the most similar first, equal ones in the order of the database."""
    values = queries @ database.T
    if similarity == "euclidean":
        values = 2 * values - database.square().sum(-1)  # the negative squared distance, without the constant of each query
    return values.sort(dim=-1, descending=True, stable=True).indices


def query_scores(relevant: Tensor, interpolation: str, first: int) -> Tensor:  # [b, N] bool -> [b, 3]
    """Average precision, precision among the ``first`` answers, and precision of the first answer, for each query of a batch.

    Args:
        relevant: whether the answer at each rank is relevant.
        interpolation: ``full`` or ``official``.
        first: k of the precision among the first k answers.
    """
    num_relevant = relevant.double().cumsum(-1)
    precision = num_relevant / torch.arange(1, relevant.shape[-1] + 1, device=num_relevant.device)
    recall = num_relevant / num_relevant[:, -1:].clamp_min(1)
    ahead = relevant.shape[-1] if interpolation == "full" else len(relevant)
    interpolated = torch.cat([precision[:, :ahead].flip(-1).cummax(-1).values.flip(-1), precision[:, ahead:]], -1)
    levels = [interpolated.gather(-1, (recall - tenth / 10).abs().argmin(-1, keepdim=True)) for tenth in range(11)]
    reported = precision if interpolation == "full" else interpolated
    last = min(first, relevant.shape[-1]) - 1
    return torch.stack([torch.cat(levels, -1).mean(-1), reported[:, last], reported[:, 0]], -1)
