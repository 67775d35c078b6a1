"""Bookkeeping of a run: config, seeds, processes, checkpoints, the run folder and its result."""
