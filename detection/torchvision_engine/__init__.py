"""Detectron2's Faster R-CNN (C4, FPN) and RetinaNet from its YAML files, on torchvision's detectors.

Weights are exchanged with Detectron2 in both directions and give the same detections. Training follows Detectron2's losses
(L1, its normalisers), samplers, initialisation and schedule; `DIFFERENCES` lists what is left.
"""

DIFFERENCES = (
    "random numbers: the same seed draws other crops, flips and samples than Detectron2",
    "one process, float32: no data-parallel training and no mixed precision",
    "images are grouped by aspect ratio from one stream, as in Detectron2, but drawn by another generator",
    "boxes thinner than 0.01 pixels are dropped from a Faster R-CNN's detections (torchvision's rule)",
)
