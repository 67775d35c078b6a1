"""k-reciprocal re-ranking (Zhong et al., CVPR 2017), sparse and in blocks.

Only the k1 + 1 nearest neighbours of an image decide its k-reciprocal set, so no more is kept of the (N, N)
distances, N queries and gallery together: each symmetric block is computed once, offers its candidates to the
rows and to the columns, and is forgotten. The sets, the weights and the Jaccard distances are sparse matrices
of some hundred entries a row.

Which distance: the formula's d is the *squared* Euclidean distance, of normalized features for "cosine" (2 -
2 cos), divided by the row's largest one, as in the authors' code. torchreid's function squares what it is
given, and its engine gives it squared distances already (for "cosine": 1 - cos); given true distances it
computes what is computed here.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from reid.evaluation.protocol import METRICS, as_features, check_features

_BLOCK = 2048
_ROWS = 2048  # features squared at a time
_QUERIES = 64  # queries whose Jaccard distances are summed at a time


def rerank(
    query_features: ArrayLike,
    gallery_features: ArrayLike,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    metric: str = "cosine",
    block: int = _BLOCK,
) -> Tensor:
    """Distances after re-ranking, for `reid.evaluation.protocol.evaluate_distances`.

    Args:
        query_features: (Q, D) floating; half precision is computed in float32; tensor, array or lists.
        gallery_features: (G, D).
        k1: neighbours that make a k-reciprocal set (section 3.2).
        k2: neighbours averaged by the local query expansion (section 3.4), at most k1 + 1; 1 leaves it out.
        lambda_value: weight of the original distance (Eq. 12).
        metric: "cosine" or "euclidean".
        block: images a side of the blocks; two blocks of float32 are alive at a time.

    Returns:
        (Q, G) float32 on the CPU.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, parameters out of range.
        TypeError: features that are not floating point.
        ModuleNotFoundError: without scipy.
    """
    query_features, gallery_features = as_features(query_features, gallery_features)
    check_features(query_features, gallery_features)
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    source = _FeatureDistances(query_features, gallery_features, metric)
    return _rerank(source, len(query_features), k1, k2, lambda_value, block)


def rerank_distances(
    query_gallery: Tensor,
    query_query: Tensor,
    gallery_gallery: Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    block: int = _BLOCK,
) -> Tensor:
    """Re-ranking of given true (not squared) distances: the call of torchreid's `re_ranking`.

    Args:
        query_gallery: (Q, G) floating, >= 0.
        query_query: (Q, Q), symmetric.
        gallery_gallery: (G, G), symmetric.
        k1: as in `rerank`.
        k2: as in `rerank`.
        lambda_value: as in `rerank`.
        block: as in `rerank`.

    Returns:
        (Q, G) float32 on the CPU.

    Raises:
        ValueError: shapes that do not fit, negative or infinite distances, parameters out of range.
        ModuleNotFoundError: without scipy.
    """
    queries, gallery = query_gallery.shape
    for name, value, expected in (
        ("query_query", query_query, (queries, queries)),
        ("gallery_gallery", gallery_gallery, (gallery, gallery)),
    ):
        if value.shape != expected:
            raise ValueError(f"{name} must have the shape {expected}, got {tuple(value.shape)}")
    for name, value in (
        ("query_gallery", query_gallery),
        ("query_query", query_query),
        ("gallery_gallery", gallery_gallery),
    ):
        if not bool((torch.isfinite(value) & (value >= 0)).all()):
            raise ValueError(f"{name} holds negative or infinite distances; similarities are not distances")
    source = _GivenDistances(query_gallery, query_query, gallery_gallery)
    return _rerank(source, queries, k1, k2, lambda_value, block)


class _Distances(Protocol):
    """Squared distances between all images, queries first: in blocks, and at the places of a CSR matrix."""

    num: int

    def block(self, rows: slice, columns: slice) -> Tensor: ...

    def pairs(self, starts: Tensor, first: Tensor, second: Tensor) -> Tensor: ...


class _FeatureDistances:
    def __init__(self, query: Tensor, gallery: Tensor, metric: str) -> None:
        dtype = torch.promote_types(query.dtype, torch.float32)
        self.features = torch.cat([query.detach().to(dtype), gallery.detach().to(dtype)])
        if metric == "cosine":
            self.features /= torch.linalg.vector_norm(self.features, dim=1, keepdim=True).clamp_(min=1e-12)
        self.half_squares = torch.empty(len(self.features), dtype=dtype, device=self.features.device)
        for part, target in zip(self.features.split(_ROWS), self.half_squares.split(_ROWS), strict=True):
            torch.sum(part.square(), dim=1, out=target)
        self.half_squares /= 2
        if not bool(torch.isfinite(self.half_squares).all()):
            raise ValueError("features hold NaN or infinite values: did training diverge?")
        self.num = len(self.features)

    def block(self, rows: slice, columns: slice) -> Tensor:
        with torch.autocast(self.features.device.type, enabled=False):
            found = self.features[rows] @ self.features[columns].T
        found.neg_().add_(self.half_squares[columns]).add_(self.half_squares[rows, None])
        return found.mul_(2).clamp_(min=0)

    def pairs(self, starts: Tensor, first: Tensor, second: Tensor) -> Tensor:
        features, halves = self.features, self.half_squares
        starts, first, second = (index.to(features.device) for index in (starts, first, second))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            shape = (self.num, self.num)
            pattern = torch.sparse_csr_tensor(
                starts, second, features.new_zeros(len(second)), shape, check_invariants=False
            )
            # Inner products at the pattern's places alone, read in place: 20 times a product of gathered
            # rows.
            inner = torch.sparse.sampled_addmm(pattern, features, features.T, beta=0).values()
        return (halves[first] + halves[second] - inner).mul_(2).clamp_(min=0).cpu()


class _GivenDistances:
    def __init__(self, query_gallery: Tensor, query_query: Tensor, gallery_gallery: Tensor) -> None:
        upper = torch.cat([query_query, query_gallery], dim=1)
        self.matrix = torch.cat([upper, torch.cat([query_gallery.T, gallery_gallery], dim=1)]).square()
        self.num = len(self.matrix)

    def block(self, rows: slice, columns: slice) -> Tensor:
        return self.matrix[rows, columns]

    def pairs(self, starts: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return self.matrix[first.to(self.matrix.device), second.to(self.matrix.device)].cpu()


def _rerank(
    source: _Distances, num_queries: int, k1: int, k2: int, lambda_value: float, block: int
) -> Tensor:
    if k1 < 1 or not 1 <= k2 <= k1 + 1:
        raise ValueError(f"k1 must be at least 1 and k2 from 1 to k1 + 1, got k1 {k1} and k2 {k2}")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value is a weight and must be in [0, 1], got {lambda_value}")
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    sparse = _scipy_sparse()
    neighbours, largest, result = _nearest(source, num_queries, min(k1 + 1, source.num), max(block, k1 + 1))
    members = _expanded_sets(neighbours, k1, sparse)
    first = np.repeat(np.arange(source.num), np.diff(members.indptr))
    starts, second = (torch.from_numpy(index.astype(np.int64)) for index in (members.indptr, members.indices))
    squared = source.pairs(starts, torch.from_numpy(first), second)
    members.data = np.exp(-squared.numpy().astype(np.float64) / largest[first])
    totals = np.asarray(members.sum(axis=1)).ravel()
    members.data /= totals[first]
    if k2 > 1:
        members = _incidence(neighbours[:, :k2], sparse) @ members
        members.data /= k2
    result.div_(torch.from_numpy(largest[:num_queries, None]).to(result.dtype)).mul_(lambda_value)
    _add_jaccard(result, members, num_queries, 1 - lambda_value)
    return result


@torch.no_grad()
def _nearest(
    source: _Distances, num_queries: int, count: int, block: int
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """(N, count) nearest images, nearest first (then the lower index); (N,) largest, (Q, G) distances."""
    num = source.num
    values = torch.full((num, count), torch.inf)
    indices = torch.zeros(num, count, dtype=torch.int64)
    largest = torch.zeros(num)
    query_gallery = torch.empty(num_queries, num - num_queries)
    for start in range(0, num, block):
        rows = slice(start, min(start + block, num))
        for other in range(start, num, block):
            columns = slice(other, min(other + block, num))
            part = source.block(rows, columns)
            _offer(part, other, rows, values, indices)
            torch.maximum(largest[rows], part.amax(dim=1).cpu(), out=largest[rows])
            if other != start:
                _offer(part.T, start, columns, values, indices)
                torch.maximum(largest[columns], part.amax(dim=0).cpu(), out=largest[columns])
            if start < num_queries < columns.stop:
                skip = max(0, num_queries - other)
                target = query_gallery[rows, other + skip - num_queries : columns.stop - num_queries]
                target.copy_(part[: len(target), skip:])
    return indices.numpy(), largest.clamp_(min=1e-30).double().numpy(), query_gallery


def _offer(part: Tensor, offset: int, rows: slice, values: Tensor, indices: Tensor) -> None:
    """Take from a block (columns from `offset` on) what is nearer than the rows' furthest neighbours so far.

    Blocks come in the order of their columns, so that a stable sort prefers the lower index.
    """
    best, nearest = values[rows], indices[rows]
    count = best.shape[1]
    first = offset == 0 and part.shape[1] >= count
    mask = part <= _smallest(part, count) if first else part < best[:, -1:].to(part.device)
    row, column = _places(mask)
    if not len(row):
        return
    found = part[row.to(part.device), column.to(part.device)].cpu()
    counts = torch.bincount(row, minlength=len(best))
    active = torch.nonzero(counts)[:, 0]
    place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    line = (torch.cumsum(counts > 0, 0) - 1)[row]
    width = int(counts.max())
    merged = torch.cat([best[active], torch.full((len(active), width), torch.inf)], dim=1)
    owners = torch.cat([nearest[active], torch.zeros(len(active), width, dtype=torch.int64)], dim=1)
    merged[line, count + place] = found.to(merged.dtype)
    owners[line, count + place] = column + offset
    ordered, order = merged.sort(dim=1, stable=True)
    best[active], nearest[active] = ordered[:, :count], owners.gather(1, order[:, :count])


def _smallest(part: Tensor, count: int) -> Tensor:
    """(n, 1) the `count`-th smallest number of each row; on a CPU by numpy, which is vectorised."""
    if part.device.type != "cpu":
        return part.topk(count, dim=1, largest=False).values.amax(dim=1, keepdim=True)
    return torch.from_numpy(np.partition(part.numpy(), count - 1, axis=1)[:, count - 1 : count])


def _places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the True entries, row by row; on a CPU by numpy, which is ten times as fast."""
    if mask.device.type != "cpu":
        row, column = torch.nonzero(mask, as_tuple=True)
        return row.cpu(), column.cpu()
    if mask.is_contiguous():
        flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
        return flat // mask.shape[1], flat % mask.shape[1]
    column, row = _places(mask.T.contiguous())
    row, order = row.sort(stable=True)
    return row, column[order]


def _incidence(lists: np.ndarray, sparse: Any) -> Any:
    """(N, N) CSR with a 1 for each image in a row's list."""
    num, count = lists.shape
    data = np.ones(num * count, dtype=np.float64)
    return sparse.csr_array((data, lists.ravel(), np.arange(0, num * count + 1, count)), shape=(num, num))


def _expanded_sets(neighbours: np.ndarray, k1: int, sparse: Any) -> Any:
    """R*(p, k1) of every image (Eq. 5), (N, N) CSR with ones."""

    def reciprocal(count: int) -> Any:
        forward = _incidence(neighbours[:, :count], sparse)
        return forward.multiply(forward.T).tocsr()

    sets, half = reciprocal(k1 + 1), reciprocal(int(np.around(k1 / 2)) + 1)
    # |R(p, k1) with R(q, k1 / 2)| for the q in R(p, k1); at least one image is needed, so no entry is lost.
    overlap = (sets @ half.T).multiply(sets).tocsr()
    needed = 2 / 3 * np.asarray(half.sum(axis=1)).ravel()
    overlap.data = (overlap.data > needed[overlap.indices]).astype(np.float64)
    expanded = (sets + overlap @ half).tocsr()
    expanded.eliminate_zeros()
    expanded.sort_indices()
    return expanded


def _add_jaccard(result: Tensor, members: Any, num_queries: int, weight: float) -> None:
    """Add `weight` x the Jaccard distance (Eq. 10): sum of minima over sum of maxima, rows summing to 1."""
    queries, gallery = members[:num_queries].tocsr(), members[num_queries:].tocsc()
    num_gallery = gallery.shape[0]
    lengths = np.diff(gallery.indptr)
    for start in range(0, num_queries, _QUERIES):
        stop = min(start + _QUERIES, num_queries)
        entries = slice(queries.indptr[start], queries.indptr[stop])
        columns, own = queries.indices[entries], queries.data[entries]
        line = np.repeat(np.arange(stop - start), np.diff(queries.indptr[start : stop + 1]))
        count = lengths[columns]
        # Positions of all entries of these columns, one column after the other.
        inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        position = np.repeat(gallery.indptr[columns], count) + inside
        smaller = np.minimum(np.repeat(own, count), gallery.data[position])
        cell = np.repeat(line, count) * num_gallery + gallery.indices[position]
        sums = np.bincount(cell, weights=smaller, minlength=(stop - start) * num_gallery)
        shared = torch.from_numpy(sums).view(stop - start, num_gallery)
        result[start:stop] += (weight * (1 - shared / (2 - shared))).to(result.dtype)


def _scipy_sparse() -> Any:
    try:
        return importlib.import_module("scipy.sparse")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("re-ranking needs scipy: pip install scipy") from error
