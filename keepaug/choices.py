"""What settings may name, and constants of fields; without torch, so that wrong names are refused fast."""

from __future__ import annotations

# regions: where a box may lie
PLACEMENTS = ("inside", "clipped", "matched")
# saliency: of what the gradient is taken
OF = ("logit", "loss")
# policies: whose operations, before or after the crop, whose ranges of magnitudes
OPERATIONS = ("rand_augment", "auto_augment")
ORDERS = ("after_crop", "before_crop")
RANGES = ("torchvision", "google")
MAGNITUDE_MAXIMA = (10, 30)
# data: what a random crop pads with; normalisation
BORDERS = ("zero", "reflect")
CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# models: where an early head sits; how a ResNet begins
AFTER = ("stage", "block")
STEMS = ("imagenet", "cifar")
DEVICE_HELP = "cpu, cuda, cuda:N; auto: a GPU where there is one"
