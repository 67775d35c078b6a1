"""KeepAugment: augmentation that keeps the important regions of an image untouched."""
