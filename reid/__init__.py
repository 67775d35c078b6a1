"""Person re-identification: data, models, training, evaluation; `evaluate` and `rerank` for features."""
