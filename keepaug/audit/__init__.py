"""What does an augmentation destroy, on these images, for this network? Measured without training.

from keepaug.audit import audit

result = audit("runs/r18/weights.pt", "photos/", ["cutout:24", "rand_augment:2,9"], output="audit")
print(result.sentence)
"""

from typing import TYPE_CHECKING

from keepaug.lazy import lazily

if TYPE_CHECKING:
    from keepaug.audit.run import Audit, audit
else:
    __getattr__ = lazily(__name__, "keepaug.audit.run", "Audit", "audit")

__all__ = ["Audit", "audit"]
