"""Scores after k-reciprocal re-ranking."""

from __future__ import annotations

from reid.config import ReidConfig
from reid.datamanager import TestSet
from reid.scores import Scored

__all__ = ["rerank_scores"]


def rerank_scores(scored: Scored, tested: TestSet, config: ReidConfig) -> dict[str, float]:
    """The scores, with "_reranked" behind their names."""
    raise NotImplementedError
