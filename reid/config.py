"""Settings of a re-identification run, and the three recipes of the paper's table 8.

A recipe is a name for six tricks. A trick left at null takes the recipe's value; a trick that is set must
agree with the recipe, so that the name in a result means what it says (`recipe=custom` allows anything).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from keepaug.choices import DEVICE_HELP, IMAGENET_MEAN, IMAGENET_STD
from keepaug.models.networks import ARCHITECTURES
from keepaug.runs.config import ConfigError, option
from keepaug.runs.loggers import TRACKER_HELP, TRACKERS
from keepaug.runs.precision import PRECISION_HELP, PRECISIONS
from reid.data.layouts import LAYOUTS

METHODS = ("none", "random_erasing", "keep_random_erasing")
TORCHREID = "torchreid:"

_BAG_OF_TRICKS: dict[str, Any] = {
    "last_stride": 1,
    "neck": "bnneck",
    "warmup": True,
    "method": "random_erasing",
    "label_smoothing": 0.1,
    "centre_weight": 5e-4,
}
RECIPES: dict[str, dict[str, Any]] = {
    "standard": {
        "last_stride": 2,
        "neck": "none",
        "warmup": False,
        "method": "none",
        "label_smoothing": 0.0,
        "centre_weight": 0.0,
    },
    "bag_of_tricks": _BAG_OF_TRICKS,
    "bag_of_tricks_keep": {**_BAG_OF_TRICKS, "method": "keep_random_erasing"},
}
"""Tricks of each recipe (reid-strong-baseline, configs/baseline.yml, softmax_triplet_with_center.yml)."""


@dataclass
class ReidConfig:
    """All settings; `key=value` on the command line changes one."""

    SECTIONS: ClassVar = {  # of --help, by their first setting
        "layout": "data",
        "height": "images",
        "arch": "network",
        "recipe": "recipe and its tricks",
        "margin": "training",
        "feature": "evaluation",
        "device": "computing",
        "log_every": "record",
    }
    REPLACED: ClassVar = {
        "erasing": "method=none, random_erasing or keep_random_erasing",
        "saliency_scale": "saliency=full or low_resolution",
        "threads": "num_workers",
    }

    name: str = option("", help="of the run; empty: data-arch-recipe", bookkeeping=True)
    seed: int = option(0, low=0, help="of all that is drawn")
    # data
    layout: str = option("market1501", choices=LAYOUTS, help="the data's form")
    root: str = option("", help="folder, or a CSV file of path, identity, camera, split", bookkeeping=True)
    data_name: str = option("", help="of the results; empty: told from the sizes", bookkeeping=True)
    also_evaluate: list[str] = option([], help="other test sets, each LAYOUT:ROOT", bookkeeping=True)
    cameras: str = option(
        "use", choices=("use", "none"), help="none: same-camera images count, cameras may be missing"
    )
    allow_duplicates: bool = option(
        False,
        help="do not refuse files with the same contents; a query's own file never counts as its match",
        bookkeeping=True,
    )
    allow_unmatched: bool = option(False, help="leave out queries without a match, as official code does")
    limit_identities: int = option(0, low=0, help="only that many training identities; 0: all")
    limit_queries: int = option(0, low=0, help="only that many queries; 0: all")
    # images
    height: int = option(256, low=16, help="of the images, in pixels")
    width: int = option(128, low=16, help="of the images, in pixels")
    flip: bool = option(True, help="mirror half of the images")
    padding: int = option(10, low=0, high=1024, help="zero padding of the random crop")
    mean: list[float] = option(list(IMAGENET_MEAN), help="RGB in [0, 1]")
    std: list[float] = option(list(IMAGENET_STD), help="RGB in [0, 1]")
    loading: str = option(
        "auto", choices=("auto", "memory", "files"), help="auto: memory below memory_gb", bookkeeping=True
    )
    memory_gb: float = option(4.0, low=0, help="limit for resized images held in memory", bookkeeping=True)
    num_workers: int = option(4, low=1, help="decoding threads", bookkeeping=True)
    # network
    arch: str = option(
        "resnet50", help=f"{', '.join(ARCHITECTURES)}, or {TORCHREID}NAME, for example torchreid:osnet_x1_0"
    )
    weights: str = option(
        "",
        help="file whose backbone is started from: ImageNet's, a run's, torchreid's; empty: random weights",
        bookkeeping=True,
    )
    first_relu: bool = option(True, help="the released Bag of Tricks lacks the ReLU after the first norm")
    # the recipe and its tricks
    recipe: str = option(
        "bag_of_tricks_keep", choices=(*RECIPES, "custom"), help="a name for six tricks; custom: as given"
    )
    last_stride: int | None = option(None, choices=(None, 1, 2), help="of the last stage; null: the recipe's")
    neck: str | None = option(
        None, choices=(None, "bnneck", "none"), help="BatchNorm before the classifier; null: the recipe's"
    )
    warmup: bool | None = option(None, choices=(None, True, False), help="of the learning rate")
    method: str | None = option(None, choices=(None, *METHODS), help="augmentation beyond crop and flip")
    label_smoothing: float | None = option(
        None, low=0, high=0.999, help="share of a label that goes to all identities; null: the recipe's"
    )
    centre_weight: float | None = option(None, low=0, help="of the center loss; 0: none")
    # erasing
    p: float = option(0.5, low=0, high=1, help="probability per image", used_by=METHODS[1:])
    area: list[float] = option([0.02, 0.4], low=0, high=1, help="share of the image", used_by=METHODS[1:])
    aspect: list[float] = option([0.3, 3.3333333], low=0, help="height / width", used_by=METHODS[1:])
    fill: str | None = option(
        None,
        choices=(None, "random", "bot", "mean", "zero"),
        help="what erased regions hold; null: bot with Bag of Tricks, else random (section 4.4)",
        used_by=METHODS[1:],
    )
    tau: float = option(0.6, low=0, high=1, help="quantile of the region scores", used_by=METHODS[2:])
    saliency: str = option(
        "low_resolution",
        choices=("full", "low_resolution"),
        help="how KeepRandomErasing sees what is important: low_resolution on half the side",
        used_by=METHODS[2:],
    )
    # losses and optimisation
    margin: float = option(0.3, low=0, help="of the batch-hard triplet loss")
    triplet_weight: float = option(1.0, low=0, help="of the batch-hard triplet loss")
    centre_lr: float = option(0.5, low=0, help="of the centres' own SGD", used_by=("centre_weight",))
    identities: int = option(16, low=2, help="P: identities per batch, of all processes together")
    images: int = option(4, low=2, help="K: images per identity")
    epochs: int = option(120, low=1, help="passes over the training identities")
    max_steps: int = option(0, low=0, help="stop after that many steps; 0: no")
    lr: float = option(3.5e-4, low=0, help="of Adam")
    weight_decay: float = option(5e-4, low=0, help="of Adam")
    beta2: float = option(0.999, low=0, high=0.99999, help="of Adam")
    milestones: list[int] = option([40, 70], low=1, help="epochs (from 1) at which the rate falls")
    gamma: float = option(0.1, low=0, help="factor of the rate at each milestone")
    warmup_epochs: int = option(10, low=1, help="with warmup: its length")
    warmup_factor: float = option(0.01, low=0, high=1, help="share of lr that the warm-up begins with")
    # evaluation
    feature: str = option("after", choices=("after", "before"), help="the neck")
    metric: str = option("cosine", choices=("cosine", "euclidean"), help="distance of features")
    flip_test: bool = option(False, help="mean of the features of an image and its mirror image")
    rerank: bool = option(False, help="k-reciprocal re-ranking, at the end", bookkeeping=True)
    k1: int = option(20, low=1, bookkeeping=True, used_by=("rerank=true",), help="neighbours, of re-ranking")
    k2: int = option(
        6, low=1, bookkeeping=True, used_by=("rerank=true",), help="neighbours averaged, of re-ranking"
    )
    rerank_lambda: float = option(
        0.3, low=0, high=1, bookkeeping=True, used_by=("rerank=true",), help="weight of the distance before"
    )
    eval_batch_size: int = option(128, low=1, bookkeeping=True, help="images")
    eval_every: int = option(10, low=1, help="epochs")
    eval_untrained: bool = option(False, help="also score the features before training")
    # machine
    device: str = option("auto", bookkeeping=True, help=DEVICE_HELP)
    precision: str = option("auto", choices=PRECISIONS, help=PRECISION_HELP, precision=True)
    channels_last: bool = option(False, precision=True, help="memory format; the same figures up to rounding")
    sync_batchnorm: bool = option(True, help="several processes normalize over the whole batch, as one does")
    # bookkeeping
    log_every: int = option(20, low=1, help="steps", bookkeeping=True)
    checkpoint_every: int = option(0, low=0, help="steps; 0: after each epoch only", bookkeeping=True)
    tensorboard: bool = option(True, bookkeeping=True, help="write its events, where it is installed")
    tracker: str = option("none", choices=TRACKERS, help=TRACKER_HELP, bookkeeping=True)
    ranked: int = option(8, low=0, help="queries in the ranked-list picture; 0: none", bookkeeping=True)
    pictures: bool = option(True, help="draw saliency and erased regions of a few images", bookkeeping=True)
    features: bool = option(False, help="write the test features to features.npz", bookkeeping=True)
    onnx: bool = option(False, help="write the network to network.onnx", bookkeeping=True)

    def users(self) -> set[str]:
        """What these settings choose, as `used_by` of the fields names it."""
        tricks = RECIPES.get(self.recipe, _BAG_OF_TRICKS)
        chosen = {key: tricks[key] if getattr(self, key) is None else getattr(self, key) for key in tricks}
        users = {str(chosen["method"])}
        users |= {"centre_weight"} if chosen["centre_weight"] else set()
        return users | ({"rerank=true"} if self.rerank else set())

    @property
    def saliency_scale(self) -> float:
        """Of the image's side."""
        return 0.5 if self.saliency == "low_resolution" else 1.0


def in_todays_names(before: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version wrote."""
    found = dict(before)
    if "erasing" in found:
        erasing = found.pop("erasing")
        found["method"] = {"random": METHODS[1], "keep": METHODS[2]}.get(erasing, erasing)
    if "saliency_scale" in found:
        found["saliency"] = "full" if found.pop("saliency_scale") == 1 else "low_resolution"
    if "threads" in found:
        found["num_workers"] = found.pop("threads")
    return found


def resolve(config: ReidConfig) -> ReidConfig:
    """Fill in the tricks that are null from the recipe (custom: from bag_of_tricks); same object.

    Raises:
        ConfigError: a trick that contradicts the recipe.
    """
    tricks = RECIPES.get(config.recipe, _BAG_OF_TRICKS)
    for key, value in tricks.items():
        if (given := getattr(config, key)) is None:
            setattr(config, key, value)
        elif config.recipe != "custom" and given != value:
            raise ConfigError(
                f"recipe={config.recipe} means {key}={value}, got {key}={given}: set recipe=custom for "
                "other mixtures"
            )
    if config.neck == "none" and config.feature == "after":
        config.feature = "before"  # the same place; one name for it
    if config.fill is None:
        config.fill = "bot" if config.recipe.startswith("bag_of_tricks") else "random"
    return config


def check(config: ReidConfig) -> None:
    """Refuse settings that contradict each other; call after `resolve`.

    Raises:
        ConfigError: names the keys.
    """
    if not config.root:
        raise ConfigError("root is empty: give the data's folder, such as root=data/Market-1501-v15.09.15")
    if config.arch not in ARCHITECTURES and not config.arch.startswith(TORCHREID):
        raise ConfigError(
            f"arch is {config.arch!r}; allowed: {', '.join(ARCHITECTURES)}, {TORCHREID}NAME "
            "(torchreid:osnet_x1_0)"
        )
    if config.arch.startswith(TORCHREID) and (not config.first_relu):
        raise ConfigError(f"first_relu=false is for torchvision's ResNets, not for {config.arch}")
    for key in ("area", "aspect"):
        bounds = getattr(config, key)
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise ConfigError(f"{key} must be [low, high] with 0 < low <= high, got {bounds}")
    for key in ("mean", "std"):
        if len(getattr(config, key)) != 3:
            raise ConfigError(f"{key} must have three numbers, got {getattr(config, key)}")
    if min(config.std) <= 0:
        raise ConfigError(f"std must be above 0, got {config.std}")
    if config.milestones != sorted(set(config.milestones)):
        raise ConfigError(f"milestones must be rising epochs, got {config.milestones}")
    for target in config.also_evaluate:
        layout, _, root = target.partition(":")
        if layout not in LAYOUTS or not root:
            raise ConfigError(f"also_evaluate: expected LAYOUT:ROOT of {', '.join(LAYOUTS)}, got {target!r}")


def is_shortened(config: ReidConfig) -> bool:
    """Whether the run is less than its recipe, and must not stand beside a number of the paper."""
    return bool(config.limit_identities or config.limit_queries or config.max_steps)
