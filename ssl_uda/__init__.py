"""Semi-supervised adapter: unsupervised data augmentation (UDA)."""
