"""The evaluation against a slow reading of the protocol, image by image."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from reid.evaluation.protocol import _chunk_size, distance_chunks, evaluate, evaluate_distances


def slow(query, gallery, query_ids, gallery_ids, query_cameras, gallery_cameras, metric, ties):
    """Sort the gallery for each query, drop junk, count."""
    firsts, precisions, penalties = [], [], []
    for index in range(len(query)):
        ranking = []
        for other in range(len(gallery)):
            q, g = query[index].double(), gallery[other].double()
            same = bool(gallery_ids[other] == query_ids[index])
            if int(gallery_ids[other]) < 0:
                continue
            if same and query_cameras is not None and gallery_cameras[other] == query_cameras[index]:
                continue
            cosine = 1 - float(torch.dot(q, g) / (q.norm() * g.norm()))
            distance = cosine if metric == "cosine" else float((q - g).norm())
            ranking.append((round(distance, 9), same if ties == "pessimistic" else not same, same))
        ranking.sort()
        ranks = [place for place, (_, _, same) in enumerate(ranking, start=1) if same]
        if not ranks:
            continue
        firsts.append(ranks[0])
        precisions.append(sum(k / r for k, r in enumerate(ranks, start=1)) / len(ranks))
        penalties.append(len(ranks) / ranks[-1])
    cmc = [sum(first <= k for first in firsts) / len(firsts) for k in range(1, len(gallery) + 1)]
    return cmc, sum(precisions) / len(precisions), sum(penalties) / len(penalties), len(firsts)


def data(seed: int, *, grid: bool = False):
    """`grid`: few whole-number features, so that many distances are exactly equal."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, 7, (40,), generator=generator)
    query_ids = torch.randint(0, 7, (15,), generator=generator)
    query_ids[3] = 8  # has no match
    cameras, query_cameras = (torch.randint(0, 3, (n,), generator=generator) for n in (40, 15))
    if grid:
        draw = [torch.randint(0, 3, (n, 2), generator=generator).double() for n in (15, 40)]
    else:
        centres = torch.randn(10, 6, generator=generator)
        draw = [centres[i] + torch.randn(len(i), 6, generator=generator) for i in (query_ids, ids)]
    return draw[0], draw[1], query_ids, ids, query_cameras, cameras


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("cameras", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_is_the_protocol(seed: int, cameras: bool, metric: str, ties: str) -> None:
    query, gallery, query_ids, gallery_ids, query_cameras, gallery_cameras = data(
        seed, grid=metric == "euclidean" and seed == 2
    )
    if not cameras:
        query_cameras = gallery_cameras = None
    found = evaluate(
        query, gallery, query_ids=query_ids, gallery_ids=gallery_ids, query_cameras=query_cameras,
        gallery_cameras=gallery_cameras, metric=metric, ties=ties, chunk=4,
    )  # fmt: skip
    cmc, mean_precision, mean_penalty, valid = slow(
        query, gallery, query_ids, gallery_ids, query_cameras, gallery_cameras, metric, ties
    )
    assert found.num_valid == valid < found.num_queries
    assert found.mAP == pytest.approx(mean_precision, abs=1e-9)
    assert found.mINP == pytest.approx(mean_penalty, abs=1e-9)
    assert found.cmc.tolist() == pytest.approx(cmc)
    assert found.rank1 == pytest.approx(cmc[0])


def test_ties_do_not_depend_on_the_order_of_the_gallery() -> None:
    query, gallery, query_ids, gallery_ids, query_cameras, gallery_cameras = data(5, grid=True)
    order = torch.randperm(len(gallery), generator=torch.Generator().manual_seed(0))
    for ties in ("pessimistic", "optimistic"):
        options = {
            "query_ids": query_ids,
            "query_cameras": query_cameras,
            "metric": "euclidean",
            "ties": ties,
        }
        first = evaluate(query, gallery, gallery_ids=gallery_ids, gallery_cameras=gallery_cameras, **options)
        second = evaluate(
            query,
            gallery[order],
            gallery_ids=gallery_ids[order],
            gallery_cameras=gallery_cameras[order],
            **options,
        )
        assert first.mAP == second.mAP
        assert torch.equal(first.cmc, second.cmc)


def test_the_chunk_changes_nothing() -> None:
    query, gallery, *labels = data(3)
    found = [evaluate(query, gallery, **named(labels), chunk=chunk).mAP for chunk in (1, 7, 100)]
    assert len({round(value, 12) for value in found}) == 1


def torchreid_scores(distances: torch.Tensor, labels: list[torch.Tensor]) -> tuple[np.ndarray, float]:
    """torchreid's own Python evaluation of (query_ids, gallery_ids, query_cameras, gallery_cameras)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rank = pytest.importorskip("torchreid.reid.metrics.rank", reason="torchreid is not installed")
    query_ids, gallery_ids, query_cameras, gallery_cameras = (label.numpy() for label in labels)
    return rank.eval_market1501(
        distances.numpy(), query_ids, gallery_ids, query_cameras, gallery_cameras, max_rank=50
    )


def sizeable(seed: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """80 queries, 700 gallery images of 40 identities in 4 cameras, identity 0 among them."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, 41, (n,), generator=generator) for n in (80, 700)]
    ids[0].clamp_(min=1)
    cameras = [torch.randint(1, 5, (n,), generator=generator) for n in (80, 700)]
    centres = torch.randn(41, 16, generator=generator)
    query, gallery = (centres[i] + 1.5 * torch.randn(len(i), 16, generator=generator) for i in ids)
    return query, gallery, [*ids, *cameras]


def named(labels: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(zip(("query_ids", "gallery_ids", "query_cameras", "gallery_cameras"), labels, strict=True))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_torchreid(seed: int, metric: str) -> None:
    query, gallery, labels = sizeable(seed)
    cosine = 1 - F.normalize(query) @ F.normalize(gallery).T
    distances = cosine if metric == "cosine" else torch.cdist(query, gallery)
    cmc, mean_precision = torchreid_scores(distances, labels)
    for found in (
        evaluate(query, gallery, **named(labels), metric=metric),
        evaluate_distances(distances, **named(labels)),
    ):
        assert found.mAP == pytest.approx(mean_precision, abs=1e-6)
        assert found.cmc.numpy() == pytest.approx(cmc, abs=1e-6)
        assert 0.1 < found.mAP < 0.9


@pytest.mark.data
def test_equals_torchreid_on_market_1501(data_root: Path) -> None:
    """Pixels of the real images as features; junk (-1) is left out as torchreid's loader does."""
    root = data_root / "market1501" / "Market-1501-v15.09.15"

    def load(folder: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        files = sorted((root / folder).glob("*.jpg"))
        pixels = [np.asarray(Image.open(f).resize((16, 32)), dtype=np.float32).ravel() for f in files]
        names = [re.match(r"(-?\d+)_c(\d)", f.name) for f in files]
        return (
            torch.from_numpy(np.stack(pixels)) / 255,
            torch.tensor([int(name[1]) for name in names]),
            torch.tensor([int(name[2]) for name in names]),
        )

    (query, *query_labels), (gallery, *gallery_labels) = load("query"), load("bounding_box_test")
    kept = gallery_labels[0] >= 0
    labels = [query_labels[0], gallery_labels[0], query_labels[1], gallery_labels[1]]
    clean = [query_labels[0], gallery_labels[0][kept], query_labels[1], gallery_labels[1][kept]]
    cmc, mean_precision = torchreid_scores(1 - F.normalize(query) @ F.normalize(gallery[kept]).T, clean)
    found = evaluate(query, gallery, **named(labels))
    assert found.mAP == pytest.approx(mean_precision, abs=1e-6)
    assert found.cmc.numpy() == pytest.approx(cmc, abs=1e-6)
    assert 0.03 < found.mAP < 0.6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_in_float32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reid.evaluation.protocol._BLOCK", 100)  # several blocks of the gallery
    query, gallery, labels = sizeable(2)
    query, gallery = query.to(dtype), gallery.to(dtype)
    expected = evaluate(query.float(), gallery.float(), **named(labels))
    assert evaluate(query, gallery, **named(labels)).mAP == pytest.approx(expected.mAP, abs=1e-9)
    rounded = evaluate_distances((-F.normalize(query) @ F.normalize(gallery).T).float(), **named(labels))
    assert abs(rounded.mAP - expected.mAP) > 1e-5  # the test can tell


def test_autocast_changes_nothing() -> None:
    query, gallery, labels = sizeable(3)
    expected = evaluate(query, gallery, **named(labels))
    with torch.autocast("cpu", torch.bfloat16):
        assert evaluate(query, gallery, **named(labels)).mAP == expected.mAP


def test_given_distances_are_left_as_they_are_and_chunks_are_taken_in_order() -> None:
    query, gallery, labels = sizeable(4)
    distances = torch.cdist(query, gallery)
    before = distances.clone()
    expected = evaluate_distances(distances, **named(labels))
    assert torch.equal(distances, before)
    assert evaluate_distances(distances.numpy(), **named(labels)).mAP == expected.mAP
    chunks = (part.clone() for part in distances.split(33))
    assert evaluate_distances(chunks, **named(labels)).mAP == expected.mAP
    half = evaluate_distances(distances.half(), **named(labels))
    assert half.mAP == pytest.approx(expected.mAP, abs=1e-2)
    chunks = distance_chunks(query, gallery, metric="euclidean", chunk=9)
    assert evaluate_distances(chunks, **named(labels)).mAP == pytest.approx(expected.mAP, abs=1e-6)


def test_features_are_left_as_they_are_and_may_require_gradients() -> None:
    query, gallery, labels = sizeable(5)
    query.requires_grad_()
    versions = query._version, gallery._version
    evaluate(query, gallery, **named(labels))
    assert (query._version, gallery._version) == versions


def test_zero_features_have_a_rank() -> None:
    query, gallery, labels = sizeable(6)
    gallery[::7] = 0
    assert 0 < evaluate(query, gallery, **named(labels)).mAP < 1


def test_memory_stays_within_chunks(run_measuring_memory) -> None:
    """30,000 gallery images: the matrix of distances would take 480 MB, a copy of the features 62 MB."""
    script = """
import torch
from reid.evaluation.protocol import evaluate
torch.set_num_threads(1)
query, gallery = torch.randn(4000, 512), torch.randn(30000, 512)
ids = torch.arange(4000) % 1000, torch.arange(30000) % 1000
call = lambda q: evaluate(q, gallery, query_ids=ids[0][:len(q)], gallery_ids=ids[1])
call(query[:2])
before = peak()
call(query)
print(peak() - before)
"""
    assert run_measuring_memory(script) < 130


FEATURES, IDS = torch.randn(4, 3), torch.arange(4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gallery_features": torch.randn(4, 5)}, ValueError, r"\(4, 3\) and \(4, 5\)"),
        ({"query_ids": IDS[:2]}, ValueError, r"query_ids must have the shape \(4,\)"),
        ({"query_ids": IDS.float()}, TypeError, "integer"),
        ({"query_cameras": IDS}, ValueError, "or for neither"),
        ({"query_features": FEATURES * float("nan")}, ValueError, "query features hold NaN"),
        ({"gallery_ids": IDS + 10}, ValueError, "none of the 4 queries has a match"),
        ({"query_cameras": IDS, "gallery_cameras": IDS}, ValueError, "of another camera"),
        ({"metric": "manhattan"}, ValueError, "cosine, euclidean"),
        ({"ties": "random"}, ValueError, "pessimistic, optimistic"),
        ({"max_rank": 0}, ValueError, "max_rank must be at least 1"),
        ({"chunk": 0}, ValueError, "at least 1, got 0"),
        ({"gallery_features": FEATURES.double()}, ValueError, "one dtype and device"),
        ({"query_features": FEATURES.long()}, TypeError, "floating point"),
        ({"query_ids": ["a", "b", "c", "d"]}, TypeError, "both be texts or both be numbers"),
        ({"excluded": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, r"excluded must be \(M, 2\) pairs"),
        ({"excluded": IDS}, ValueError, r"excluded must be \(M, 2\) pairs"),
        ({"excluded": [[0, 4]]}, ValueError, r"excluded must be .* gallery image \(below 4\)"),
        ({"excluded": [[-1, 0]]}, ValueError, r"excluded must be"),
    ],
)
def test_errors_say_what_to_do(change: dict, error: type[Exception], message: str) -> None:
    call = {
        "query_features": FEATURES,
        "gallery_features": FEATURES,
        "query_ids": IDS,
        "gallery_ids": IDS,
        **change,
    }
    with pytest.raises(error, match=message):
        evaluate(**call)


@pytest.mark.parametrize(
    ("distances", "error", "message"),
    [
        (torch.zeros(4, 3), ValueError, r"shape \(4, 4\)"),
        (torch.zeros(4, 4, dtype=torch.int64), TypeError, "floating point"),
        (torch.full((4, 4), float("nan")), ValueError, "hold NaN"),
        ([torch.zeros(3, 4)], ValueError, "3 rows for 4 queries"),
        ([torch.zeros(3, 4), torch.zeros(3, 4)], ValueError, "after 3 rows"),
    ],
)
def test_faulty_distances_are_refused(distances, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        evaluate_distances(distances, query_ids=IDS, gallery_ids=IDS)


@pytest.mark.parametrize("num_gallery", [1, 15_913, 515_913, 5_000_000, 10**8])
def test_chunks_are_small_enough_and_not_too_small(num_gallery: int) -> None:
    rows = _chunk_size(num_gallery)
    numbers = rows * num_gallery
    assert 16 <= rows <= 1024
    assert numbers <= 2**27 or rows == 16
    assert rows >= 128 or 129 * num_gallery > 2**27
