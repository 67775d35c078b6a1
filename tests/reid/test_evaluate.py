"""The evaluation against a slow reading of the protocol, image by image."""

from __future__ import annotations

import pytest
import torch

from reid.evaluate import evaluate


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
            if metric == "cosine":
                distance = 1 - float(torch.dot(q, g) / (q.norm() * g.norm()))
            else:
                distance = float((q - g).norm())
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
    query_ids = torch.randint(0, 9, (15,), generator=generator)  # some without any match
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
    query, gallery, query_ids, gallery_ids, query_cameras, gallery_cameras = data(3)
    found = [
        evaluate(query, gallery, query_ids=query_ids, gallery_ids=gallery_ids, query_cameras=query_cameras, gallery_cameras=gallery_cameras, chunk=c)
        for c in (1, 7, 100)
    ]  # fmt: skip
    assert len({round(f.mAP, 12) for f in found}) == 1


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
