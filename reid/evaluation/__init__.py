"""Features, scores, re-ranking, and what a run leaves for people."""
