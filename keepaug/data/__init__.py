"""Datasets: CIFAR-10, image folders, ImageNet transforms, loaders, and the synthetic sets."""
