"""Scores after k-reciprocal re-ranking."""

from __future__ import annotations

from reid.config import ReidConfig
from reid.datamanager import TestSet
from reid.evaluate import evaluate_distances
from reid.rerank import rerank
from reid.scores import Scored, in_percent

__all__ = ["rerank_scores"]


def rerank_scores(scored: Scored, tested: TestSet, config: ReidConfig) -> dict[str, float]:
    """The scores after re-ranking (k1, k2, lambda of the config), with "_reranked" behind their names, in percent."""
    distances = rerank(
        scored.query,
        scored.gallery,
        k1=config.k1,
        k2=config.k2,
        lambda_value=config.rerank_lambda,
        metric=config.metric,
    )
    found = evaluate_distances(
        distances,
        query_ids=tested.identities("query"),
        gallery_ids=tested.identities("gallery"),
        query_cameras=tested.camera_numbers("query"),
        gallery_cameras=tested.camera_numbers("gallery"),
    )
    return {f"{key}_reranked": value for key, value in in_percent(found).items()}
