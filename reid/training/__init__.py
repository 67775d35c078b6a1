"""Losses, erasing and the training loop on torchreid's Engine."""
