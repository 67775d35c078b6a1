"""Re-ranking of features of your own; see `reid.evaluation.reranking`."""

from reid.evaluation.reranking import rerank, rerank_distances

__all__ = ["rerank", "rerank_distances"]
