"""Person re-identification adapter: `data`, `models`, `training` and `evaluation`; `evaluate` and `rerank` for features alone."""
