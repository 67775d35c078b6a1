"""What does an augmentation destroy, on these images, for this network? Measured without training.

from keepaug.audit import audit

result = audit("runs/r18/weights.pt", "photos/", ["cutout:24", "rand_augment:2,9"], output="audit")
print(result.sentence)
"""

from keepaug.audit.run import Audit, audit

__all__ = ["Audit", "audit"]
