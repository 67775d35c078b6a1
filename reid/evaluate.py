"""Scores of features of your own; see `reid.evaluation.protocol`."""

from reid.evaluation.protocol import ReidMetrics, evaluate, evaluate_distances

__all__ = ["ReidMetrics", "evaluate", "evaluate_distances"]
