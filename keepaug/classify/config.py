"""Settings of a classification run."""

from __future__ import annotations

from dataclasses import dataclass

from keepaug.models.early import AFTER
from keepaug.models.networks import ARCHITECTURES, STEMS
from keepaug.regions import PLACEMENTS
from keepaug.runs.config import ConfigError, option

__all__ = ["METHODS", "SALIENCY", "ClassifyConfig", "check"]

METHODS = (
    "none",
    "cutout",
    "keep_cutout",
    "cutmix",
    "keep_cutmix",
    "random_erasing",
    "keep_random_erasing",
    "rand_augment",
    "keep_rand_augment",
    "auto_augment",
    "keep_auto_augment",
)
SALIENCY = ("full", "low_resolution", "early_head", "low_resolution_early")


@dataclass
class ClassifyConfig:
    """All settings; `key=value` on the command line changes one."""

    name: str = option("", help="of the run; empty: dataset-arch-method")
    seed: int = option(0, low=0)
    # data
    dataset: str = option("image_folder", choices=("cifar10", "image_folder", "imagenet"))
    root: str = option("", help="folder of the data")
    loading: str = option(
        "auto", choices=("auto", "memory", "files"), help="auto: memory, but files for imagenet"
    )
    image_size: int = option(224, low=16, help="side after cropping, with loading=files")
    padding: int = option(4, low=0, help="zero padding of the random crop, with loading=memory")
    flip: bool = True
    jitter: float = option(0.0, low=0, help="colour jitter, with loading=files")
    lighting: float = option(0.0, low=0, help="strength of the PCA colour noise")
    limit_train: int = option(0, low=0, help="only that many training images; 0: all")
    limit_val: int = option(0, low=0)
    num_workers: int = option(0, low=0)
    # network
    arch: str = option("resnet18", choices=tuple(ARCHITECTURES))
    stem: str = option("imagenet", choices=STEMS)
    # augmentation
    method: str = option("none", choices=METHODS)
    saliency: str = option("full", choices=SALIENCY, help="how the keep methods see what is important")
    tau: float = option(0.6, low=0, high=1, help="quantile of the region scores")
    size: int = option(16, low=1, help="cut or paste side in pixels; paper: 16 on CIFAR-10, 40 on ImageNet")
    placement: str = option("clipped", choices=PLACEMENTS, help="of cutout and cutmix, Keep or not")
    paste_placement: str = option("inside", choices=PLACEMENTS)
    alpha: float = option(1.0, low=1e-6, help="cutmix: lambda ~ Beta(alpha, alpha)")
    per: str = option("image", choices=("image", "batch"), help="cutmix: one box per image or per batch")
    p: float = option(1.0, low=0, high=1, help="probability of the cut; random erasing: 0.5 in its paper")
    area: list[float] = option([0.02, 0.4], low=0, high=1, help="random erasing: share of the image")
    aspect: list[float] = option([0.3, 3.3333], low=0, help="random erasing: height / width")
    fill: str = option("zero", choices=("zero", "random", "bot"), help="random erasing")
    num_ops: int = option(2, low=1, help="rand_augment")
    magnitude: int = option(9, low=0, high=30, help="rand_augment")
    policy: str = option("cifar10", choices=("cifar10", "imagenet"), help="auto_augment")
    cutout_after: int = option(0, low=0, help="cutout of that side after an image-level policy; 0: none")
    early_after: str = option("stage", choices=AFTER, help="where the early head sits")
    early_weight: float = option(0.3, low=0, help="its loss weight")
    # optimisation
    epochs: int = option(300, low=1)
    recipe_epochs: int = option(300, low=0, help="a run with fewer epochs is marked as shortened")
    max_steps: int = option(0, low=0, help="stop after that many steps; 0: no")
    batch_size: int = option(128, low=1, help="of all processes together")
    lr: float = option(0.1, low=0)
    momentum: float = option(0.9, low=0, high=1)
    nesterov: bool = True
    weight_decay: float = option(5e-4, low=0)
    schedule: str = option("cosine", choices=("cosine", "multistep"))
    milestones: list[int] = option([], low=1, help="multistep: epochs")
    gamma: float = option(0.1, low=0, help="multistep: factor")
    warmup_epochs: float = option(0.0, low=0)
    label_smoothing: float = option(0.0, low=0, high=1)
    clip_norm: float = option(0.0, low=0, help="gradient norm; 0: no clipping")
    ema: float = option(0.0, low=0, high=0.999999, help="decay of the averaged weights; 0: none")
    # machine
    device: str = "auto"
    precision: str = option("float32", choices=("float32", "bf16"))
    channels_last: bool = False
    compile: bool = False
    # bookkeeping
    log_every: int = option(50, low=1, help="steps")
    eval_every: int = option(1, low=1, help="epochs")
    checkpoint_every: int = option(0, low=0, help="steps; 0: after each epoch only")
    tensorboard: bool = True
    pictures: bool = option(True, help="draw what the augmentation did to a few images")


def check(config: ClassifyConfig) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ConfigError: names the keys.
    """
    if not config.root:
        raise ConfigError("root is empty: give the data's folder, for example root=data/cifar10")
    for key in ("area", "aspect"):
        bounds = getattr(config, key)
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise ConfigError(f"{key} must be [low, high] with 0 < low <= high, got {bounds}")
    if config.schedule == "multistep" and config.milestones != sorted(set(config.milestones)):
        raise ConfigError(f"milestones must be rising epochs, got {config.milestones}")
    if config.nesterov and config.momentum == 0:
        raise ConfigError("nesterov needs momentum above 0: set nesterov=false or momentum=0.9")
    if config.dataset == "imagenet" and config.loading == "memory":
        raise ConfigError("loading=memory cannot hold imagenet: set loading=files")
    if config.arch in ("resnet50", "resnet101") and config.stem == "cifar" and config.dataset == "imagenet":
        raise ConfigError(
            "stem=cifar on imagenet keeps the full resolution through the network: set stem=imagenet"
        )
