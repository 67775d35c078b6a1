"""Detectron2's Faster R-CNN (C4, FPN) and RetinaNet from its YAML files, on torchvision's detectors.

The same weights give the same detections in both engines, and files go both ways. In training, losses,
normalisers, matching, initialisation, optimizer groups, clipping and schedule are Detectron2's: from the same
state, with everything sampled, two steps lead to the same weights. `DIFFERENCES` is what is left; keys of the
YAML that ask for anything else are refused (`honoured.unhonoured`).
"""

DIFFERENCES = (
    "random numbers: the same seed draws other weights, orders, sizes, flips and samples than Detectron2",
    "one process, float32: no data-parallel training, no mixed precision (SOLVER.AMP.ENABLED is refused)",
    "no evaluation and no pictures during training (TEST.EVAL_PERIOD, VIS_PERIOD and TEST.PRECISE_BN are "
    "refused)",
    "checkpoints: either engine evaluates or starts from the other's, but resumes only its own",
)
