"""Datasets on disk: layouts, checks, images, batches of identities."""
