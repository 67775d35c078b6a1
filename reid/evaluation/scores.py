"""Scores of a network on a test set, and after k-reciprocal re-ranking."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from keepaug.runs.distributed import Distributed
from reid.config import ReidConfig
from reid.data.manager import TestSet
from reid.evaluation.features import extract_features
from reid.evaluation.protocol import ReidMetrics, evaluate, evaluate_distances
from reid.evaluation.reranking import rerank
from reid.models.network import ReidNetwork

RANKS = (1, 5, 10)


@dataclass(frozen=True)
class Scored:
    """What an evaluation gave.

    Attributes:
        metrics: rank1, rank5, rank10, mAP, mINP in percent.
        query: (Q, D) features.
        gallery: (G, D) features.
    """

    metrics: dict[str, float]
    query: Tensor
    gallery: Tensor


def score(network: ReidNetwork, tested: TestSet, config: ReidConfig, world: Distributed) -> Scored | None:
    """Extract on all processes, evaluate on the main one (None on the others)."""
    query, gallery = (
        extract_features(
            network,
            images,
            mean=config.mean,
            std=config.std,
            world=world,
            batch_size=config.eval_batch_size,
            after_neck=config.feature == "after",
            flip_test=config.flip_test,
            bf16=config.precision == "bf16",
            channels_last=config.channels_last,
            description=f"{tested.name} {split}",
        )
        for split, images in (("query", tested.query), ("gallery", tested.gallery))
    )
    if not world.is_main:
        return None
    found = evaluate(query, gallery, **tested.labels, metric=config.metric)
    return Scored(in_percent(found), query, gallery)


def in_percent(found: ReidMetrics) -> dict[str, float]:
    """The scores for result.json; a rank beyond the gallery is its last one."""
    ranks = {f"rank{rank}": 100 * float(found.cmc[min(rank, len(found.cmc)) - 1]) for rank in RANKS}
    return {**ranks, "mAP": 100 * found.mAP, "mINP": 100 * found.mINP}


def rerank_scores(scored: Scored, tested: TestSet, config: ReidConfig) -> dict[str, float]:
    """Scores in percent after re-ranking (k1, k2, lambda of the config), "_reranked" behind their names."""
    distances = rerank(
        scored.query,
        scored.gallery,
        k1=config.k1,
        k2=config.k2,
        lambda_value=config.rerank_lambda,
        metric=config.metric,
    )
    found = evaluate_distances(distances, **tested.labels)
    return {f"{key}_reranked": value for key, value in in_percent(found).items()}
