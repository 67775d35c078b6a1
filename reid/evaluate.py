"""Re-identification scores by the Market-1501 protocol: CMC, mAP and mINP, exact, in chunks of queries.

Positives are listed once by identity. Per chunk of queries: one matrix product, junk to infinity, the *values* sorted, and the
positives looked up among them by bisection: the rank of a positive is the number of smaller distances, so that no index has
to be carried through the sort and no matrix of matches is built.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["METRICS", "TIES", "ReidMetrics", "evaluate"]

METRICS = ("cosine", "euclidean")
TIES = ("pessimistic", "optimistic")


@dataclass(frozen=True)
class ReidMetrics:
    """Scores over all queries that have a match, in [0, 1].

    Attributes:
        cmc: (max_rank,) float64; entry k is the share of queries with a match among the first k + 1.
        mAP: mean over queries of the mean over matches of k / rank of the k-th match.
        mINP: mean over queries of the number of matches / rank of the last match.
        num_valid: queries that have a match.
        num_queries: all queries; those without a match do not count (as in the official code).
    """

    cmc: Tensor
    mAP: float
    mINP: float
    num_valid: int
    num_queries: int

    @property
    def rank1(self) -> float:
        """Share of queries whose nearest image is a match."""
        return float(self.cmc[0])


def evaluate(
    query_features: Tensor,
    gallery_features: Tensor,
    *,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_cameras: Tensor | None = None,
    gallery_cameras: Tensor | None = None,
    metric: str = "cosine",
    ties: str = "pessimistic",
    max_rank: int = 50,
    chunk: int = 256,
) -> ReidMetrics:
    """Score a ranking of the gallery for every query.

    A gallery image of the query's identity and camera is junk for that query, and so is an image of a negative identity
    (-1, distractors that the protocol ignores): neither helps nor harms. Identity 0 (false detections) is never a match, as
    no query has it.

    Args:
        query_features: (Q, D) floating.
        gallery_features: (G, D), the same dtype.
        query_ids: (Q,) integer.
        gallery_ids: (G,) integer.
        query_cameras: (Q,) integer; None for both evaluates without the camera rule.
        gallery_cameras: (G,) integer.
        metric: "cosine" (features are normalised here) or "euclidean".
        ties: a match at the same distance as a wrong image is ranked behind it ("pessimistic") or before it
            ("optimistic"): the result does not depend on the order of the gallery.
        max_rank: length of the CMC curve.
        chunk: queries at a time; memory is about 3 x chunk x G numbers.

    Returns:
        The scores.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, or no query with a match in the gallery.
        TypeError: features not floating point, or identities not integer.
    """
    _check(
        query_features, gallery_features, query_ids, gallery_ids, query_cameras, gallery_cameras, metric, ties
    )
    if metric == "cosine":
        query_features, gallery_features = F.normalize(query_features), F.normalize(gallery_features)
    squared = (gallery_features**2).sum(dim=1)
    positives, present = _positives_by_identity(query_ids, gallery_ids)
    junk = torch.nonzero(gallery_ids < 0)[:, 0]
    max_rank = min(max_rank, len(gallery_features))
    first, precision, penalty, valid = [], [], [], []
    for start in range(0, len(query_features), chunk):
        part = slice(start, start + chunk)
        # Half the squared distance, without the query's own term: the same order, one pass less.
        distances = torch.addmm(squared[None] / 2, query_features[part], gallery_features.T, alpha=-1)
        distances[:, junk] = torch.inf
        places, mask = positives[part], present[part]
        if query_cameras is not None and gallery_cameras is not None:
            own = gallery_cameras[places] == query_cameras[part][:, None]
            rows, columns = torch.nonzero(mask & own, as_tuple=True)
            distances[rows, places[rows, columns]] = torch.inf
            mask = mask & ~own
        found = distances.gather(1, places).masked_fill_(~mask, torch.inf).sort(dim=1).values
        ranks = _ranks(distances.sort(dim=1).values, found, ties)
        number = mask.sum(dim=1)
        inside = torch.arange(found.shape[1], device=found.device) < number[:, None]
        order = torch.arange(1, found.shape[1] + 1, device=found.device)
        share = (order / ranks.double()).masked_fill_(~inside, 0).sum(dim=1)
        some = number > 0
        last = ranks.gather(1, (number - 1).clamp(min=0)[:, None])[:, 0]
        first.append(ranks[some, 0])
        precision.append(share[some] / number[some])
        penalty.append(number[some].double() / last[some])
        valid.append(some)
    hits = torch.cat(first)
    if not len(hits):
        raise ValueError(
            f"none of the {len(query_ids)} queries has a match in the gallery"
            + (
                " of another camera: pass no cameras to evaluate without that rule"
                if query_cameras is not None
                else ""
            )
        )
    counts = torch.bincount((hits - 1).clamp(max=max_rank), minlength=max_rank + 1)[:max_rank]
    return ReidMetrics(
        cmc=counts.cumsum(0).double().cpu() / len(hits),
        mAP=float(torch.cat(precision).mean()),
        mINP=float(torch.cat(penalty).mean()),
        num_valid=len(hits),
        num_queries=len(query_ids),
    )


def _positives_by_identity(query_ids: Tensor, gallery_ids: Tensor) -> tuple[Tensor, Tensor]:
    """(Q, P) gallery positions of each query's identity, and which of them exist."""
    order = gallery_ids.argsort(stable=True)
    known = gallery_ids[order]
    low, high = torch.searchsorted(known, query_ids), torch.searchsorted(known, query_ids, right=True)
    most = max(1, int((high - low).max()))
    offsets = torch.arange(most, device=query_ids.device)
    present = offsets < (high - low)[:, None]
    return order[(low[:, None] + offsets).clamp(max=len(order) - 1)], present


def _ranks(ordered: Tensor, found: Tensor, ties: str) -> Tensor:
    """(n, P) ranks from 1 of the matches' distances (ascending rows) among all distances (ascending rows)."""
    number = torch.arange(found.shape[1], device=found.device).expand_as(found)
    group = torch.searchsorted(found, found)  # first match of the same distance
    if ties == "optimistic":
        return torch.searchsorted(ordered, found) + 1 + number - group
    group_end = torch.searchsorted(found, found, right=True)
    return torch.searchsorted(ordered, found, right=True) - (group_end - number) + 1


def _check(
    query: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_cameras: Tensor | None,
    gallery_cameras: Tensor | None,
    metric: str,
    ties: str,
) -> None:
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"features must be (Q, D) and (G, D), got {tuple(query.shape)} and {tuple(gallery.shape)}; flatten or pool them"
        )
    if not len(query) or not len(gallery):
        raise ValueError(
            f"there are {len(query)} queries and {len(gallery)} gallery images; both must be at least 1"
        )
    if (query_cameras is None) != (gallery_cameras is None):
        raise ValueError("cameras must be given for queries and gallery, or for neither")
    for name, value, number in (
        ("query_ids", query_ids, len(query)),
        ("gallery_ids", gallery_ids, len(gallery)),
        ("query_cameras", query_cameras, len(query)),
        ("gallery_cameras", gallery_cameras, len(gallery)),
    ):
        if value is None:
            continue
        if value.shape != (number,):
            raise ValueError(f"{name} must have the shape ({number},), got {tuple(value.shape)}")
        if value.is_floating_point():
            raise TypeError(f"{name} must be of an integer dtype, got {value.dtype}")
    for name, value in (("query", query), ("gallery", gallery)):
        if not value.is_floating_point():
            raise TypeError(f"{name} features must be floating point, got {value.dtype}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} features hold NaN or infinite values: did training diverge?")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if ties not in TIES:
        raise ValueError(f"ties must be one of {', '.join(TIES)}, got {ties!r}")
