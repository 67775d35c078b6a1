"""Re-identification scores by the Market-1501 protocol: CMC, mAP and mINP, exact, in chunks of queries.

Positives are listed once by identity. Per chunk of queries: one matrix product, junk to infinity, the
*values* sorted, and the positives looked up among them by bisection: the rank of a positive is the number of
smaller distances, so that no index has to be carried through the sort and no matrix of matches is built. On a
CPU the sort is numpy's, in place: it is vectorised (45 times torch's, 7 times counting, on Market-1501).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

METRICS = ("cosine", "euclidean")
TIES = ("pessimistic", "optimistic")
_BLOCK = 2048  # gallery rows multiplied (15 % faster than all at once), converted or squared at a time
_CHUNK_NUMBERS = 2**23  # numbers in a chunk of distances, 32 MB in float32 ...
_MOST_NUMBERS = 2**27  # ... or up to 512 MB, where that takes fewer than _FEW_QUERIES
_FEW_QUERIES = 128  # with fewer the product is slower: the whole gallery is read for each chunk


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
    query_features: ArrayLike,
    gallery_features: ArrayLike,
    *,
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_cameras: ArrayLike | None = None,
    gallery_cameras: ArrayLike | None = None,
    excluded: ArrayLike | None = None,
    metric: str = "cosine",
    ties: str = "pessimistic",
    max_rank: int = 50,
    chunk: int | None = None,
) -> ReidMetrics:
    """Score the ranking of the gallery by distance for every query.

    A gallery image of the query's identity and camera is junk for that query, and so is an image of a
    negative identity (-1, distractors that the protocol ignores): neither helps nor harms. Identity 0 (false
    detections) is never a match, as no query has it. All arguments may be tensors, arrays of numpy, or lists.

    Args:
        query_features: (Q, D) floating; half precision is scored in float32, also under autocast.
        gallery_features: (G, D), the same device.
        query_ids: (Q,) integers, or texts ("-1" is then the negative identity).
        gallery_ids: (G,) of the same kind.
        query_cameras: (Q,) integers or texts; None for both evaluates without the camera rule.
        gallery_cameras: (G,) of the same kind.
        excluded: (M, 2) integer, pairs (query, gallery image) that are junk for each other: one file in both,
            which would be its own nearest match.
        metric: "cosine" or "euclidean".
        ties: a match at the same distance as a wrong image is ranked behind it ("pessimistic") or before it
            ("optimistic"): the result does not depend on the order of the gallery.
        max_rank: length of the CMC curve.
        chunk: queries at a time; None chooses 32 MB of distances, or 128 queries within 512 MB; no copies.

    Returns:
        The scores.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, or no query with a match.
        TypeError: features not floating point, or identities not integer.
    """
    query, gallery = as_features(query_features, gallery_features)
    chunks = distance_chunks(query, gallery, metric=metric, chunk=chunk)
    labels = _Labels.of(query_ids, gallery_ids, query_cameras, gallery_cameras, excluded)
    protocol = _Protocol(labels, ties, max_rank, query.device)
    protocol.expect(len(query), len(gallery))
    for distances in chunks:
        protocol.add(distances)
    return protocol.result()


def evaluate_distances(
    distances: Tensor | np.ndarray | Iterable[Tensor],
    *,
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_cameras: ArrayLike | None = None,
    gallery_cameras: ArrayLike | None = None,
    excluded: ArrayLike | None = None,
    ties: str = "pessimistic",
    max_rank: int = 50,
) -> ReidMetrics:
    """Score given distances, those of re-ranking for example.

    Args:
        distances: (Q, G) floating, smaller is nearer, left as it is; or its chunks of rows, overwritten.
        query_ids: as in `evaluate`.
        gallery_ids: as in `evaluate`.
        query_cameras: as in `evaluate`.
        gallery_cameras: as in `evaluate`.
        excluded: as in `evaluate`.
        ties: as in `evaluate`.
        max_rank: as in `evaluate`.

    Returns:
        The scores.

    Raises:
        ValueError: shapes that do not fit, NaN, or no query with a match in the gallery.
        TypeError: identities not integer, or distances not floating point.
    """
    chunks: Iterable[Tensor]
    device = torch.device("cpu")
    labels = _Labels.of(query_ids, gallery_ids, query_cameras, gallery_cameras, excluded)
    if isinstance(distances, np.ndarray):
        distances = as_tensor("distances", distances)
    if isinstance(distances, Tensor):
        expected = (len(labels.query_ids), len(labels.gallery_ids))
        if distances.shape != expected:
            raise ValueError(
                f"distances must have the shape {expected} (queries, gallery), got {tuple(distances.shape)}"
            )
        step = _chunk_size(len(labels.gallery_ids))
        device = distances.device
        chunks = (part.clone() for part in distances.split(step))
    else:
        chunks = distances
    protocol = _Protocol(labels, ties, max_rank, device)
    for part in chunks:
        protocol.add(part)
    return protocol.result()


def distance_chunks(
    query_features: Tensor, gallery_features: Tensor, *, metric: str = "cosine", chunk: int | None = None
) -> Iterator[Tensor]:
    """Chunks of rows (n, G) that order the gallery as the distance does, without copies of the features.

    "cosine": minus the cosine. "euclidean": half the squared distance less the query's own term.

    Args:
        query_features: (Q, D) floating.
        gallery_features: (G, D).
        metric: "cosine" or "euclidean".
        chunk: queries at a time; None chooses 32 MB of distances, or 128 queries within 512 MB.

    Raises:
        ValueError: shapes that do not fit, features not finite, unknown metric; before the first chunk.
        TypeError: features that are not floating point.
    """
    check_features(query_features, gallery_features)
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is a number of queries, at least 1, got {chunk}")
    query_squares, gallery_squares = _squares("query", query_features), _squares("gallery", gallery_features)
    return _distance_chunks(
        query_features,
        gallery_features,
        query_squares,
        gallery_squares,
        metric,
        chunk or _chunk_size(len(gallery_features)),
    )


@torch.no_grad()
def _distance_chunks(
    query: Tensor, gallery: Tensor, query_squares: Tensor, gallery_squares: Tensor, metric: str, chunk: int
) -> Iterator[Tensor]:
    dtype = query_squares.dtype
    # Zero features have no direction: their cosine is 0.
    per_image = gallery_squares.clamp(min=1e-24).rsqrt() if metric == "cosine" else gallery_squares / 2
    for start in range(0, len(query), chunk):
        part = query[start : start + chunk].to(dtype).neg()
        if metric == "cosine":
            part *= query_squares[start : start + chunk, None].clamp(min=1e-24).rsqrt()
        distances = part.new_empty(len(part), len(gallery))
        block = _BLOCK if part.device.type == "cpu" else 32 * _BLOCK
        with torch.autocast(query.device.type, enabled=False):
            for some, target in zip(gallery.split(block), distances.split(block, dim=1), strict=True):
                torch.mm(part, some.to(dtype).T, out=target)
        yield distances.mul_(per_image) if metric == "cosine" else distances.add_(per_image)


def _chunk_size(num_gallery: int) -> int:
    few = min(_FEW_QUERIES, _MOST_NUMBERS // num_gallery)
    return min(1024, max(16, few, _CHUNK_NUMBERS // num_gallery))


def _squares(name: str, features: Tensor) -> Tensor:
    """(N,) squared lengths, in float32 at least, by which infinite features and NaN are found too."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    squares = torch.empty(len(features), dtype=dtype, device=features.device)
    # Into a vector that is there: small results between large ones would fragment the heap by gigabytes.
    for part, target in zip(features.detach().split(_BLOCK), squares.split(_BLOCK), strict=True):
        torch.sum(part.to(dtype).square(), dim=1, out=target)
    if not bool(torch.isfinite(squares).all()):
        raise ValueError(f"{name} features hold NaN or infinite values: did training diverge?")
    return squares


@dataclass
class _Sums:
    """Per chunk, of queries with a match: rank of the first, average precision, P / rank of the last."""

    first: list[Tensor] = field(default_factory=list)
    precision: list[Tensor] = field(default_factory=list)
    penalty: list[Tensor] = field(default_factory=list)


class _Protocol:
    """Takes chunks of distances and counts; the chunks are overwritten."""

    def __init__(self, labels: _Labels, ties: str, max_rank: int, device: torch.device) -> None:
        if ties not in TIES:
            raise ValueError(f"ties must be one of {', '.join(TIES)}, got {ties!r}")
        if max_rank < 1:
            raise ValueError(f"max_rank must be at least 1, got {max_rank}")
        labels = labels.to(device)
        self.num_queries, self.num_gallery = len(labels.query_ids), len(labels.gallery_ids)
        self.labels = labels
        self.positives, self.present = _positives_by_identity(labels.query_ids, labels.gallery_ids)
        self.junk = torch.nonzero(labels.gallery_ids < 0)[:, 0]
        self.ties, self.max_rank = ties, min(max_rank, self.num_gallery)
        self.sums, self.done = _Sums(), 0

    def expect(self, num_queries: int, num_gallery: int) -> None:
        """Hold the numbers of features against those of labels."""
        for name, labels, features in (
            ("query_ids", self.num_queries, num_queries),
            ("gallery_ids", self.num_gallery, num_gallery),
        ):
            if labels != features:
                raise ValueError(f"{name} must have the shape ({features},), got ({labels},)")

    @torch.no_grad()
    def add(self, distances: Tensor) -> None:
        if not distances.is_floating_point():
            raise TypeError(f"distances must be floating point, got {distances.dtype}")
        part = slice(self.done, self.done + len(distances))
        if distances.ndim != 2 or distances.shape[1] != self.num_gallery or part.stop > self.num_queries:
            raise ValueError(
                f"distances must be rows of {self.num_gallery} gallery images for {self.num_queries} "
                f"queries; got {tuple(distances.shape)} after {self.done} rows"
            )
        self.done = part.stop
        places, mask = self.positives[part], self.present[part]
        distances[:, self.junk] = torch.inf
        labels = self.labels
        if labels.query_cameras is not None and labels.gallery_cameras is not None:
            own = labels.gallery_cameras[places] == labels.query_cameras[part][:, None]
            rows, columns = torch.nonzero(mask & own, as_tuple=True)
            distances[rows, places[rows, columns]] = torch.inf
            mask = mask & ~own
        row, column = (labels.excluded - labels.excluded.new_tensor([part.start, 0])).unbind(1)
        inside = (row >= 0) & (row < len(distances))
        row, column = row[inside], column[inside]
        if len(row):
            distances[row, column] = torch.inf
            pair, place = torch.nonzero(places[row] == column[:, None], as_tuple=True)
            mask = mask.clone()
            mask[row[pair], place] = False
        found = distances.gather(1, places).masked_fill_(~mask, torch.inf).sort(dim=1).values
        ordered = _sort_rows(distances)
        if bool(ordered[:, -1].isnan().any()):
            raise ValueError("distances hold NaN: features too large for their dtype, or a faulty metric")
        ranks = _ranks(ordered, found, self.ties)
        number = mask.sum(dim=1)
        inside = torch.arange(found.shape[1], device=found.device) < number[:, None]
        order = torch.arange(1, found.shape[1] + 1, device=found.device)
        share = (order / ranks.double()).masked_fill_(~inside, 0).sum(dim=1)
        some = number > 0
        last = ranks.gather(1, (number - 1).clamp(min=0)[:, None])[:, 0]
        self.sums.first.append(ranks[some, 0])
        self.sums.precision.append(share[some] / number[some])
        self.sums.penalty.append(number[some].double() / last[some])

    def result(self) -> ReidMetrics:
        if self.done != self.num_queries:
            raise ValueError(f"distances hold {self.done} rows for {self.num_queries} queries")
        hits = torch.cat(self.sums.first)
        if not len(hits):
            hint = " of another camera: pass no cameras to evaluate without that rule"
            raise ValueError(
                f"none of the {self.num_queries} queries has a match in the gallery"
                + (hint if self.labels.query_cameras is not None else "")
            )
        counts = torch.bincount((hits - 1).clamp(max=self.max_rank), minlength=self.max_rank + 1)
        return ReidMetrics(
            cmc=counts[: self.max_rank].cumsum(0).double().cpu() / len(hits),
            mAP=float(torch.cat(self.sums.precision).mean()),
            mINP=float(torch.cat(self.sums.penalty).mean()),
            num_valid=len(hits),
            num_queries=self.num_queries,
        )


def _sort_rows(distances: Tensor) -> Tensor:
    """The rows ascending, in place where that is faster."""
    if distances.device.type != "cpu" or distances.dtype not in (torch.float32, torch.float64):
        return distances.sort(dim=1).values
    distances = distances.contiguous()
    distances.numpy().sort(axis=1)
    return distances


def _positives_by_identity(query_ids: Tensor, gallery_ids: Tensor) -> tuple[Tensor, Tensor]:
    """(Q, P) gallery positions of each query's identity, and which of them exist."""
    order = gallery_ids.argsort(stable=True)
    ordered = gallery_ids[order]
    low, high = torch.searchsorted(ordered, query_ids), torch.searchsorted(ordered, query_ids, right=True)
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


def check_features(query: Tensor, gallery: Tensor) -> None:
    """Refuse what is no pair of (Q, D) and (G, D) floating features of one dtype and device."""
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"features must be (Q, D) and (G, D), got {tuple(query.shape)} and {tuple(gallery.shape)}; "
            "flatten or pool them"
        )
    if not len(query) or not len(gallery):
        raise ValueError(
            f"there are {len(query)} queries and {len(gallery)} gallery images; both must be at least 1"
        )
    for name, value in (("query", query), ("gallery", gallery)):
        if not value.is_floating_point():
            raise TypeError(f"{name} features must be floating point, got {value.dtype}")
    if query.dtype != gallery.dtype or query.device != gallery.device:
        raise ValueError(
            f"query features are {query.dtype} on {query.device} and gallery features {gallery.dtype} on "
            f"{gallery.device}; move them to one dtype and device"
        )


def as_tensor(name: str, value: Any) -> Tensor:
    """A tensor as it is; arrays of numpy without a copy where possible; lists of numbers or of vectors.

    Raises:
        TypeError: what holds no numbers.
    """
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        return torch.stack([one.detach() for one in value])
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise TypeError(f"{name} must be numbers in rows of equal length: {error}") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be numbers, got {array.dtype} ({type(value).__name__})")
    wanted = array.dtype if array.dtype.kind == "f" else np.dtype(np.int64)
    if wanted.itemsize > 8:  # extended precision, which torch lacks
        wanted = np.dtype(np.float64)
    # Torch takes neither foreign byte orders nor negative strides, and warns about read-only arrays.
    return torch.from_numpy(np.require(array, wanted.newbyteorder("="), ["C", "W"]))


def as_features(query: Any, gallery: Any) -> tuple[Tensor, Tensor]:
    """Both as tensors; arrays and lists take the wider of the two types, tensors must agree already."""
    first, second = as_tensor("query features", query), as_tensor("gallery features", gallery)
    both = isinstance(query, Tensor) and isinstance(gallery, Tensor)
    if first.is_floating_point() and second.is_floating_point() and not both:
        dtype = torch.promote_types(first.dtype, second.dtype)
        first, second = first.to(dtype), second.to(dtype)
    return first, second


class _Labels(NamedTuple):
    """Whole numbers on one device."""

    query_ids: Tensor
    gallery_ids: Tensor
    query_cameras: Tensor | None
    gallery_cameras: Tensor | None
    excluded: Tensor

    @classmethod
    def of(
        cls, query_ids: Any, gallery_ids: Any, query_cameras: Any, gallery_cameras: Any, excluded: Any
    ) -> _Labels:
        if (query_cameras is None) != (gallery_cameras is None):
            raise ValueError("cameras must be given for queries and gallery, or for neither")
        query, gallery = _numbers("ids", query_ids, gallery_ids)
        cameras: tuple[Tensor | None, Tensor | None] = (None, None)
        if query_cameras is not None:
            cameras = _numbers("cameras", query_cameras, gallery_cameras)
        for name, value, number in (
            ("query_ids", query, len(query)),
            ("gallery_ids", gallery, len(gallery)),
            ("query_cameras", cameras[0], len(query)),
            ("gallery_cameras", cameras[1], len(gallery)),
        ):
            if value is None:
                continue
            if value.shape != (number,) or not number:
                raise ValueError(
                    f"{name} must have the shape ({number},) and one entry at least, got {tuple(value.shape)}"
                )
            if value.is_floating_point():
                raise TypeError(f"{name} must be of an integer dtype, got {value.dtype}")
        pairs = torch.zeros(0, 2, dtype=torch.int64)
        if excluded is not None and len(excluded):
            pairs = as_tensor("excluded", excluded).to(torch.int64)
        limit = torch.tensor([len(query), len(gallery)], device=pairs.device)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or bool(((pairs < 0) | (pairs >= limit)).any()):
            raise ValueError(
                f"excluded must be (M, 2) pairs of a query (below {len(query)}) and a gallery image (below "
                f"{len(gallery)}), got {tuple(pairs.shape)}"
            )
        return cls(query, gallery, *cameras, pairs)

    def to(self, device: torch.device) -> _Labels:
        moved: Any = [None if value is None else value.to(device) for value in self]
        return _Labels(*moved)


def _numbers(name: str, query: Any, gallery: Any) -> tuple[Tensor, Tensor]:
    """Whole numbers; texts are numbered together, "-1" as the negative identity."""
    texts = [_texts(value) for value in (query, gallery)]
    if texts[0] is None and texts[1] is None:
        return as_tensor(f"query_{name}", query), as_tensor(f"gallery_{name}", gallery)
    if texts[0] is None or texts[1] is None:
        raise TypeError(f"query_{name} and gallery_{name} must both be texts or both be numbers")
    numbers = {text: number for number, text in enumerate(sorted({*texts[0], *texts[1]}))} | {"-1": -1}
    first, second = (torch.tensor([numbers[text] for text in some]) for some in (texts[0], texts[1]))
    return first, second


def _texts(values: Any) -> list[str] | None:
    """The labels where they are texts, otherwise None."""
    if isinstance(values, Tensor):
        return None
    array = np.asarray(values)
    if array.dtype.kind == "U":
        # A list that mixes texts and numbers would become texts too, "1" and 1 alike.
        mixed = isinstance(values, list | tuple) and not all(isinstance(value, str) for value in values)
        return None if mixed else [str(value) for value in array.ravel()]
    if array.dtype.kind == "O" and array.size and all(isinstance(value, str) for value in array.ravel()):
        return [str(value) for value in array.ravel()]
    return None
