"""Re-ranking against the paper's sets written out, and torchreid's function given true distances."""

from __future__ import annotations

import math
import sys
import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from reid.evaluation.protocol import evaluate, evaluate_distances
from reid.evaluation.reranking import rerank, rerank_distances


def slow(features: torch.Tensor, num_queries: int, k1: int, k2: int, weight: float) -> torch.Tensor:
    """Sections 3.2 to 3.4 with sets and dense vectors; d is the squared distance over the row's largest."""
    squared = torch.cdist(features.double(), features.double()).square()
    squared = squared / squared.amax(dim=1, keepdim=True)
    num = len(features)
    ranking = [sorted(range(num), key=lambda other: (float(squared[p, other]), other)) for p in range(num)]

    def reciprocal(p: int, k: int) -> set[int]:
        return {g for g in ranking[p][: k + 1] if p in ranking[g][: k + 1]}

    vectors = torch.zeros(num, num, dtype=torch.float64)
    for p in range(num):
        base = reciprocal(p, k1)
        expanded = set(base)
        for q in base:
            candidate = reciprocal(q, int(np.around(k1 / 2)))
            if len(base & candidate) > 2 / 3 * len(candidate):
                expanded |= candidate
        for g in expanded:
            vectors[p, g] = math.exp(-squared[p, g])
        vectors[p] /= vectors[p].sum()
    if k2 > 1:
        vectors = torch.stack([vectors[ranking[p][:k2]].mean(dim=0) for p in range(num)])
    result = torch.zeros(num_queries, num - num_queries, dtype=torch.float64)
    for p in range(num_queries):
        for g in range(num_queries, num):
            least, most = (
                torch.minimum(vectors[p], vectors[g]).sum(),
                torch.maximum(vectors[p], vectors[g]).sum(),
            )
            result[p, g - num_queries] = (1 - least / most) * (1 - weight) + squared[p, g] * weight
    return result


def crowd(
    seed: int, *, queries: int = 25, gallery: int = 90
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features in clusters, and the ids of all."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 12, (queries + gallery,), generator=generator)
    centres = torch.randn(12, 8, generator=generator)
    features = centres[ids] + 0.8 * torch.randn(len(ids), 8, generator=generator)
    return features[:queries], features[queries:], ids


@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (7, 1, 0.0), (5, 3, 1.0)])
@pytest.mark.parametrize("block", [2048, 37])
def test_is_the_paper(k1: int, k2: int, weight: float, block: int) -> None:
    query, gallery, _ = crowd(0)
    expected = slow(torch.cat([query, gallery]), len(query), k1, k2, weight)
    found = rerank(query, gallery, metric="euclidean", k1=k1, k2=k2, lambda_value=weight, block=block)
    assert found.dtype == torch.float32
    assert found.double().sub(expected).abs().max() < 1e-5


def true_distances(query: torch.Tensor, gallery: torch.Tensor) -> list[torch.Tensor]:
    pairs = ((query, gallery), (query, query), (gallery, gallery))
    return [torch.cdist(a.double(), b.double()).float() for a, b in pairs]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_equals_torchreid_given_true_distances(metric: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip(
            "torchreid.reid.utils.rerank", reason="torchreid is not installed"
        ).re_ranking
    query, gallery, _ = crowd(1, queries=60, gallery=300)
    used = (F.normalize(query), F.normalize(gallery)) if metric == "cosine" else (query, gallery)
    distances = true_distances(*used)
    expected = torch.from_numpy(theirs(*(d.numpy() for d in distances), k1=20, k2=6, lambda_value=0.3))
    assert rerank(query, gallery, metric=metric, block=100).sub(expected).abs().max() < 1e-5
    assert rerank_distances(*distances).sub(expected).abs().max() < 1e-5
    # What torchreid's engine does: squared distances go in, and are squared again.
    engine = torch.from_numpy(theirs(*(d.square().numpy() for d in distances), k1=20, k2=6, lambda_value=0.3))
    assert engine.sub(expected).abs().max() > 1e-2


def test_duplicates_and_constant_features_are_no_trouble() -> None:
    """Ties go to the lower index, in one block as in many."""
    query, gallery, _ = crowd(2)
    gallery[10:60] = gallery[:1]
    whole = rerank(query, gallery)
    assert torch.equal(whole, rerank(query, gallery, block=30))
    assert torch.isfinite(whole).all()
    same = rerank(torch.ones(3, 4), torch.ones(30, 4), metric="euclidean", block=7)
    assert torch.isfinite(same).all()
    assert torch.isfinite(rerank(query[:2], gallery[:4])).all()  # fewer images than k1


def test_half_precision_is_computed_in_float32() -> None:
    query, gallery, _ = crowd(3)
    query, gallery = query.half(), gallery.half()
    with torch.autocast("cpu", torch.bfloat16):
        found = rerank(query, gallery)
    assert torch.equal(found, rerank(query.float(), gallery.float()))


def test_it_ranks_better() -> None:
    query, gallery, ids = crowd(4, queries=60, gallery=400)
    labels = {"query_ids": ids[:60], "gallery_ids": ids[60:]}
    before, after = evaluate(query, gallery, **labels), evaluate_distances(rerank(query, gallery), **labels)
    assert after.mAP > before.mAP + 0.02


def test_features_are_left_as_they_are() -> None:
    query, gallery, _ = crowd(5)
    copies = query.clone(), gallery.clone()
    rerank(query, gallery)
    assert torch.equal(query, copies[0])
    assert torch.equal(gallery, copies[1])


def test_memory_is_that_of_the_result_and_the_blocks(run_measuring_memory) -> None:
    """12,000 images: the (N, N) distances would take 576 MB, the features and the result 30."""
    script = """
import torch
from reid.evaluation.reranking import rerank
torch.set_num_threads(1)
query, gallery = torch.randn(300, 64), torch.randn(11700, 64)
rerank(query[:20], gallery[:300], block=200)
before = peak()
rerank(query, gallery, block=1000)
print(peak() - before)
"""
    assert run_measuring_memory(script) < 250


FEATURES = torch.randn(4, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gallery_features": torch.randn(4, 5)}, r"\(4, 3\) and \(4, 5\)"),
        ({"query_features": FEATURES * float("nan")}, "NaN"),
        ({"k1": 0}, "k1 must be at least 1"),
        ({"k2": 30}, "from 1 to k1"),
        ({"lambda_value": 2}, r"in \[0, 1\]"),
        ({"metric": "manhattan"}, "cosine, euclidean"),
        ({"block": 0}, "block must be at least 1"),
    ],
)
def test_errors_say_what_to_do(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rerank(**{"query_features": FEATURES, "gallery_features": FEATURES, **change})


def test_faulty_distances_are_refused() -> None:
    with pytest.raises(ValueError, match=r"query_query must have the shape \(2, 2\)"):
        rerank_distances(torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="similarities are not distances"):
        rerank_distances(torch.zeros(2, 3), torch.zeros(2, 2), -torch.ones(3, 3))


def test_without_scipy_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scipy"):
        rerank(FEATURES, FEATURES)
