"""Settings of a classification run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from keepaug.choices import (
    AFTER,
    BORDERS,
    CIFAR_MEAN,
    DEVICE_HELP,
    IMAGENET_MEAN,
    MAGNITUDE_MAXIMA,
    OF,
    OPERATIONS,
    ORDERS,
    PLACEMENTS,
    RANGES,
    STEMS,
)
from keepaug.classify.methods import METHODS
from keepaug.models.networks import FAST, check_arch
from keepaug.runs.config import ConfigError, option
from keepaug.runs.loggers import TRACKER_HELP, TRACKERS
from keepaug.runs.precision import PRECISION_HELP, PRECISIONS

if TYPE_CHECKING:
    from keepaug.models.weights import NetworkSpec

# The last two are controls, which see nothing of the image: maps of chance, and those of another image of the
# batch.
SALIENCY = ("full", "low_resolution", "early_head", "low_resolution_early", "noise", "other")


@dataclass
class ClassifyConfig:
    """All settings; `key=value` on the command line changes one."""

    SECTIONS: ClassVar = {  # of --help, by their first setting
        "dataset": "data",
        "arch": "network",
        "method": "augmentation",
        "epochs": "training",
        "device": "computing",
        "log_every": "record",
    }
    name: str = option("", help="of the run; empty: dataset-arch-method", bookkeeping=True)
    seed: int = option(0, low=0, help="of all that is drawn")
    # data
    dataset: str = option("image_folder", choices=("cifar10", "image_folder", "imagenet"), help="data's form")
    root: str = option("", help="folder of the data", bookkeeping=True)
    loading: str = option(
        "auto",
        choices=("auto", "memory", "files"),
        help="auto: memory, but files for imagenet",
        bookkeeping=True,  # what it changes is told by the settings below
    )
    image_size: int = option(224, low=16, help="side after cropping", used_by=("loading=files",))
    padding: int = option(4, low=0, high=1024, help="of the random crop, pixels", used_by=("loading=memory",))
    border: str = option(
        "zero",
        choices=(*BORDERS, "mean"),
        help="what is padded with; AutoAugment's code: mean",
        used_by=("loading=memory",),
    )
    flip: bool = option(True, help="mirror half of the images")
    alternate_flips: bool = option(
        False, help="each image is mirrored in every second epoch, not at random", used_by=("loading=memory",)
    )
    jitter: float = option(0.0, low=0, high=1, help="colour jitter, one draw for all views of an image")
    lighting: float = option(0.0, low=0, help="strength of the PCA colour noise, one draw for all views")
    limit_train: int = option(0, low=0, help="only that many training images; 0: all")
    limit_val: int = option(0, low=0, help="only that many validation images; 0: all")
    num_workers: int = option(
        -1,
        low=-1,
        help="decoding processes; -1: none on a CPU, up to 4 (in memory) or 16 (files) for a GPU",
        bookkeeping=True,
    )
    # network
    arch: str = option("resnet18", help="resnet18, resnet50, wrn28_10 ...: see keepaug.models.build_network")
    stem: str = option("imagenet", choices=STEMS, help="a ResNet's first layer: 7 x 7 with pooling, or 3 x 3")
    dropout: float = option(0.0, low=0, high=0.99, help="probability; 0.3 in WRN-28-10")
    drop_path: float = option(0.0, low=0, high=0.99, help="probability of leaving a branch out")
    drop_block: float = option(0.0, low=0, high=0.99, help="share of the features that blocks cover")
    # augmentation
    method: str = option("none", choices=METHODS, help="the augmentation; keep_: with Keep")
    saliency: str = option(
        "full", choices=SALIENCY, help="how keeping sees what is important", used_by=("keep", "attention")
    )
    reuse_every: int = option(
        1,
        low=1,
        help="compute each saliency map once in that many epochs and carry it through crop and flip",
        used_by=("keep",),
    )
    tau: float = option(0.6, low=0, high=1, help="quantile of the region scores", used_by=("keep",))
    size: int = option(
        16,
        low=1,
        help="cut or paste side; paper: 16 on CIFAR-10, 40 on ImageNet",
        used_by=("cutout", "paste"),
    )
    placement: str = option(
        "clipped", choices=PLACEMENTS, help="of cutout and cutmix, Keep or not", used_by=("cutout", "cutmix")
    )
    paste_placement: str = option(
        "inside", choices=PLACEMENTS, used_by=("paste",), help="where the pasted square may lie"
    )
    alpha: float = option(
        1.0,
        low=1e-6,
        help="cutmix, mixup, manifold_mixup: lambda ~ Beta(alpha, alpha)",
        used_by=("cutmix", "mixup", "manifold_mixup"),
    )
    per: str = option(
        "image",
        choices=("image", "batch"),
        help="cutmix: one box, mixup: one lambda, per image or per batch",
        used_by=("cutmix", "mixup", "manifold_mixup"),
    )
    p: float = option(
        1.0,
        low=0,
        high=1,
        help="probability of the cut; random erasing: 0.5 in its paper",
        used_by=(
            "cutout",
            "cutmix",
            "random_erasing",
            "grid_mask",
            "mixup",
            "manifold_mixup",
            "attentive_cutmix",
        ),
    )
    area: list[float] = option([0.02, 0.4], low=0, high=1, help="of the image", used_by=("random_erasing",))
    aspect: list[float] = option([0.3, 3.3333], low=0, help="height / width", used_by=("random_erasing",))
    fill: str = option(
        "random", choices=("random", "zero", "bot"), help="of erased regions", used_by=("random_erasing",)
    )
    num_ops: int = option(2, low=1, help="operations per image", used_by=("rand_augment",))
    magnitude: int = option(9, low=0, help="of the operations, of magnitude_max", used_by=("rand_augment",))
    magnitude_max: int = option(
        30,
        choices=MAGNITUDE_MAXIMA,
        help="the magnitude of the whole range; 10 in Google's code",
        used_by=("rand_augment",),
    )
    operations: str = option(
        "rand_augment", choices=OPERATIONS, help="whose operations", used_by=("rand_augment",)
    )
    policy: str = option(
        "cifar10",
        choices=("cifar10", "imagenet"),
        help="the data it was found for",
        used_by=("auto_augment",),
    )
    ranges: str = option(
        "torchvision",
        choices=RANGES,
        help="whose ranges of magnitudes the operations of a policy have",
        used_by=("rand_augment", "auto_augment"),
    )
    policy_fill: str = option(
        "black",
        choices=("black", "grey", "mean"),
        help="colour outside of an image that a policy moves; Google's: mean on CIFAR-10, grey (128) on "
        "ImageNet",
        used_by=("rand_augment", "auto_augment"),
    )
    policy_order: str = option(
        "after_crop",
        choices=ORDERS,
        help="before_crop: as in AutoAugment's CIFAR code (loading=memory)",
        used_by=("policy",),
    )
    cutout_after: int = option(
        0, low=0, help="cutout of that side after an image-level policy; 0: none", used_by=("policy",)
    )
    grid_unit: list[int] = option([24, 32], low=2, help="least, largest in pixels", used_by=("grid_mask",))
    grid_ratio: float = option(0.4, low=0.01, high=0.99, help="kept share of a side", used_by=("grid_mask",))
    grid_rotate: int = option(360, low=1, high=360, help="angles below that; 1: none", used_by=("grid_mask",))
    grid_ramp: float = option(
        0.8, low=0, high=1, help="share of the run over which p rises from 0", used_by=("grid_mask",)
    )
    severity: int = option(3, low=1, high=10, help="largest strength of the operations", used_by=("aug_mix",))
    all_ops: bool = option(False, help="colour operations too", used_by=("aug_mix",))
    consistency: float = option(
        12.0, low=0, help="weight of the Jensen-Shannon loss; 0: none, one view", used_by=("aug_mix",)
    )
    attention: str = option(
        "saliency",
        choices=("saliency", "features"),
        help="gradient, or last feature map",
        used_by=("attentive_cutmix",),
    )
    attention_grid: int = option(7, low=1, help="cells per side", used_by=("attentive_cutmix",))
    num_patches: int = option(6, low=1, help="cells pasted", used_by=("attentive_cutmix",))
    teacher: str = option(
        "",
        help="attentive_cutmix: weights.pt whose attention it is; empty: the network's",
        used_by=("attentive_cutmix",),
        bookkeeping=True,
    )
    hidden_layers: int = option(
        3, low=1, help="layers to draw from, the images one of them", used_by=("manifold_mixup",)
    )
    early_after: str = option("stage", choices=AFTER, help="where the early head sits", used_by=("early",))
    early_weight: float = option(0.3, low=0, help="its loss weight", used_by=("early",))
    early_map: str = option("logit", choices=OF, help="whose gradient its map is", used_by=("early",))
    # optimisation
    epochs: int = option(300, low=1, help="passes over the training images")
    max_steps: int = option(0, low=0, help="stop after that many steps; 0: no")
    batch_size: int = option(128, low=1, help="of all processes together")
    drop_last: bool = option(
        False,
        help="leave out each epoch's incomplete last batch; always where it has no two images per process",
    )
    lr: float = option(0.1, low=0, help="highest learning rate, of SGD")
    momentum: float = option(0.9, low=0, high=1, help="of SGD")
    nesterov: bool = option(True, help="Nesterov's momentum")
    weight_decay: float = option(5e-4, low=0, help="per step, of SGD")
    decoupled_decay: bool = option(
        False,
        help="weight_decay is what a step at the highest rate takes of a weight, and lr no factor of it",
    )
    norm_bias_factor: float = option(
        1.0, low=1e-6, help="biases of normalisation layers learn at that times lr"
    )
    schedule: str = option(
        "cosine", choices=("cosine", "multistep", "triangle"), help="of the learning rate over the run"
    )
    triangle: list[float] = option(
        [0.2, 0.23, 0.07],
        low=0,
        high=1,
        help="share of lr at the start, share of the run at which all of lr is reached, share of lr at the "
        "end",
        used_by=("triangle",),
    )
    milestones: list[int] = option([], low=1, help="epochs", used_by=("multistep",))
    gamma: float = option(0.1, low=0, help="factor", used_by=("multistep",))
    warmup_epochs: float = option(0.0, low=0, help="epochs in which the learning rate rises")
    label_smoothing: float = option(0.0, low=0, high=1, help="share of a label that goes to all classes")
    clip_norm: float = option(0.0, low=0, help="gradient norm; 0: no clipping")
    ema: float = option(0.0, low=0, high=0.999999, help="decay of the averaged weights; 0: none")
    ema_ramp: bool = option(
        True,
        help="let the decay rise where the run is so short that the average would be its random beginning",
        used_by=("ema",),
    )
    look_ahead: int = option(
        0, low=0, help="every that many steps the weights go back to a slow average of themselves; 0: never"
    )
    whitening_epochs: float = option(
        3.0, low=0, help="epochs in which the first layer's bias is trained", used_by=("lab",)
    )
    mirrored_test: bool = option(False, help="test on the mean output for an image and its mirror image")
    # machine
    device: str = option("auto", bookkeeping=True, help=DEVICE_HELP)
    precision: str = option("auto", choices=PRECISIONS, help=PRECISION_HELP, precision=True)
    channels_last: bool = option(False, precision=True, help="memory format; the same figures up to rounding")
    compile: bool = option(False, precision=True, help="torch.compile")
    sync_batchnorm: bool = option(False, help="BatchNorm over all processes: N equal one", precision=True)
    # bookkeeping
    log_every: int = option(50, low=1, help="steps", bookkeeping=True)
    eval_every: int = option(1, low=1, help="epochs")
    checkpoint_every: int = option(0, low=0, help="steps; 0: after each epoch only", bookkeeping=True)
    tensorboard: bool = option(True, bookkeeping=True, help="write its events, where it is installed")
    tracker: str = option("none", choices=TRACKERS, help=TRACKER_HELP, bookkeeping=True)
    pictures: bool = option(True, help="draw what the augmentation did to a few images", bookkeeping=True)

    def users(self) -> set[str]:
        """What these settings choose, as the fields' `used_by` names it: method, traits, their needs."""
        method = METHODS[self.method]
        chosen = {self.method, method.base, *method.traits, self.schedule}
        chosen.add(f"loading={'files' if self.from_files else 'memory'}")
        if self.arch in FAST:
            chosen.add("lab")
        if self.ema:
            chosen.add("ema")
        if method.base == "attentive_cutmix" and self.attention == "saliency":
            chosen.add("attention")
        if chosen & {"keep", "attention"} and self.saliency in ("early_head", "low_resolution_early"):
            chosen.add("early")
        return chosen

    @property
    def mean_colour(self) -> tuple[float, ...]:
        """The normalisation's mean in whole grey levels, for images that are not normalised yet."""
        mean = CIFAR_MEAN if self.dataset == "cifar10" else IMAGENET_MEAN
        return tuple(float(round(255 * part)) for part in mean)

    @property
    def from_files(self) -> bool:
        """Whether images are decoded as they are needed, and not held in memory."""
        return self.loading == "files" or (self.loading == "auto" and self.dataset == "imagenet")


def network_spec(config: ClassifyConfig, num_classes: int) -> NetworkSpec:
    """The network of the settings."""
    from keepaug.models.weights import NetworkSpec

    drops = {key: own for key in ("dropout", "drop_path", "drop_block") if (own := getattr(config, key))}
    return NetworkSpec(config.arch, num_classes, {"stem": config.stem, **drops})


def check(config: ClassifyConfig) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ConfigError: names the keys.
    """
    if not config.root:
        raise ConfigError("root is empty: give the data's folder, for example root=data/cifar10")
    check_arch(config.arch)
    for key in ("area", "aspect", "grid_unit"):
        bounds = getattr(config, key)
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise ConfigError(f"{key} must be [low, high] with 0 < low <= high, got {bounds}")
    _check_method(config)
    if config.schedule == "multistep" and config.milestones != sorted(set(config.milestones)):
        raise ConfigError(f"milestones must be rising epochs, got {config.milestones}")
    if len(config.triangle) != 3 or not 0 < config.triangle[1] < 1:
        raise ConfigError(
            f"triangle must be [start, peak, end] with the peak between 0 and 1, got {config.triangle}"
        )
    if config.schedule == "triangle" and config.warmup_epochs:
        raise ConfigError(
            f"schedule=triangle warms up by itself: set warmup_epochs=0, not {config.warmup_epochs}"
        )
    if config.decoupled_decay and config.lr == 0:
        raise ConfigError("decoupled_decay needs lr above 0: it is measured at the highest rate")
    if config.look_ahead and config.ema:
        raise ConfigError(
            f"look_ahead={config.look_ahead} averages the weights, and so does ema={config.ema}: set one of "
            f"them to 0"
        )
    if config.from_files and (config.border != "zero" or config.alternate_flips):
        raise ConfigError(
            "border and alternate_flips are for images held in memory: set loading=memory, or border=zero "
            "and alternate_flips=false"
        )
    if config.nesterov and config.momentum == 0:
        raise ConfigError("nesterov needs momentum above 0: set nesterov=false or momentum=0.9")
    if config.dataset == "imagenet" and config.loading == "memory":
        raise ConfigError("loading=memory cannot hold imagenet: set loading=files")
    if config.arch in ("resnet50", "resnet101") and config.stem == "cifar" and config.dataset == "imagenet":
        raise ConfigError("stem=cifar on imagenet keeps the full resolution all through: set stem=imagenet")


def _check_method(config: ClassifyConfig) -> None:
    method = METHODS[config.method]
    if "network" in method.traits and getattr(config, config.method) == 0:
        raise ConfigError(
            f"method={config.method} does nothing at {config.method}=0: give the probability, for example "
            f"{config.method}=0.1"
        )
    if method.base == "rand_augment" and config.magnitude > config.magnitude_max:
        raise ConfigError(
            f"magnitude={config.magnitude} is beyond magnitude_max={config.magnitude_max}: set "
            "magnitude_max=30, or a smaller magnitude"
        )
    if config.method == "manifold_mixup" and config.compile:
        raise ConfigError(
            "manifold_mixup mixes inside the network, where a compiled one does not let it: set compile=false"
        )
    if "policy" in method.traits and config.policy_order == "before_crop" and config.from_files:
        raise ConfigError(
            "policy_order=before_crop needs images of one size in memory: set policy_order=after_crop "
            "(ImageNet's order)"
        )
    if config.reuse_every > 1 and (config.from_files or "keep" not in method.traits):
        raise ConfigError(
            f"reuse_every={config.reuse_every} keeps the maps of a keep_ method's images held in memory "
            f"(loading=memory); got method={config.method}, loading={config.loading}: set reuse_every=1"
        )
    if method.needs_saliency and config.saliency == "noise" and config.reuse_every > 1:
        raise ConfigError("saliency=noise has no maps to keep: set reuse_every=1")
    if method.needs_saliency and config.saliency == "other" and config.batch_size < 2:
        raise ConfigError("saliency=other needs another image in the batch: set batch_size=2 or more")
    if config.method == "attentive_cutmix" and config.attention_grid**2 < config.num_patches:
        raise ConfigError(
            f"num_patches={config.num_patches} of {config.attention_grid} x {config.attention_grid} cells: "
            "take fewer, or a larger attention_grid"
        )
    if config.teacher and config.method != "attentive_cutmix":
        raise ConfigError(f"teacher is for attentive_cutmix; method={config.method} does not use it")
    if config.teacher and "early" in config.users():
        raise ConfigError(
            f"a teacher has no early head: set saliency=full or low_resolution, not {config.saliency}"
        )
