"""Settings of a semi-supervised run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from keepaug.choices import DEVICE_HELP, PLACEMENTS, STEMS
from keepaug.models.networks import ARCHITECTURES, FAST
from keepaug.runs.config import ConfigError, option
from keepaug.runs.loggers import TRACKER_HELP, TRACKERS
from keepaug.runs.precision import PRECISION_HELP, PRECISIONS
from ssl_uda.algorithms import ALGORITHMS
from ssl_uda.choices import CONSISTENCY, POLICIES, SPLITS, TSA, USES

UNLABELLED = tuple(name for name, algorithm in ALGORITHMS.items() if algorithm.unlabelled)


@dataclass
class UdaConfig:
    """All settings; `key=value` changes one. The defaults are Google's UDA recipe for CIFAR-10."""

    SECTIONS: ClassVar = {  # of --help, by their first setting
        "dataset": "data",
        "arch": "network and algorithm",
        "padding": "augmentation",
        "steps": "training",
        "device": "computing",
        "log_every": "record",
    }
    REPLACED: ClassVar = {
        "method": "it is two settings now: supervised is algorithm=supervised, rand_augment is "
        "algorithm=uda, "
        "keep_rand_augment is algorithm=uda keep=true",
        "saliency_scale": "saliency=full or low_resolution",
        "recipe_steps": "a run with fewer steps than its recipe is told by its `steps`; leave it out",
    }

    name: str = option("", help="of the run; empty: dataset-arch-ALGORITHM-NUMlabels", bookkeeping=True)
    seed: int = option(0, low=0, help="of all that is drawn")
    # data
    dataset: str = option("cifar10", choices=("cifar10", "image_folder"), help="the data's form")
    root: str = option("", help="folder of the data", bookkeeping=True)
    image_size: int = option(0, low=0, help="resize to that side when reading; 0: as the files are")
    num_labels: int = option(4000, low=1, help="images that keep their labels")
    split: str = option("first", choices=SPLITS, help="first: Google's, unbalanced")
    split_seed: int = option(-1, low=-1, help="of split=balanced; -1: the run's seed", used_by=("balanced",))
    unlabelled: str = option(
        "all",
        choices=USES,
        help="training images used without label; all: Google's, labelled ones included; extra: only those "
        "of the "
        "unlabelled folder, which come in addition otherwise",
        used_by=UNLABELLED,
    )
    unlabelled_root: str = option(
        "",
        help="folder of further images without labels, in any folders; empty: ROOT/unlabelled where there "
        "is one",
        bookkeeping=True,
        used_by=UNLABELLED,
    )
    limit_train: int = option(0, low=0, help="only that many training images; 0: all")
    limit_val: int = option(0, low=0, help="only that many validation images; 0: all")
    # network
    arch: str = option("wrn28_2", help=f"wrnDEPTH_WIDTH, {', '.join([*ARCHITECTURES, *FAST])}")
    stem: str = option("cifar", choices=STEMS, help="of the ResNets", used_by=("resnet",))
    # algorithm
    algorithm: str = option(
        "uda",
        choices=ALGORITHMS,
        help="supervised: the labelled images alone; fixmatch: configs/ssl_uda/cifar10_fixmatch.yaml has "
        "its settings",
    )
    keep: bool = option(
        False, help="paste an important region of the clean view into the strong one", used_by=UNLABELLED
    )
    # augmentation
    padding: int = option(4, low=0, high=1024, help="reflected border of the random crop")
    flip: bool = option(True, help="mirror half of the images")
    crops: str = option(
        "shared", choices=("shared", "independent"), help="of both; independent: Google's", used_by=UNLABELLED
    )
    policy: str = option("uda", choices=POLICIES, help="operations of the strong view", used_by=UNLABELLED)
    num_ops: int = option(2, low=1, used_by=UNLABELLED, help="operations of the strong view")
    levels: list[int] = option([1, 9], low=0, high=10, help="least and largest magnitude", used_by=UNLABELLED)
    p: float = option(0.5, low=0, high=1, help="probability of each operation", used_by=UNLABELLED)
    cutout: int = option(16, low=0, help="side, after the policy and the paste; 0: none", used_by=UNLABELLED)
    tau: float = option(0.6, low=0, high=1, help="quantile of the region scores", used_by=("keep",))
    size: int = option(16, low=1, help="side of the pasted region", used_by=("keep",))
    paste_placement: str = option(
        "inside", choices=PLACEMENTS, used_by=("keep",), help="where the pasted square may lie"
    )
    saliency: str = option(
        "low_resolution",
        choices=("full", "low_resolution"),
        help="how Keep sees what is important: low_resolution on half the side",
        used_by=("keep",),
    )
    # objective
    temperature: float = option(0.4, low=1e-3, help="of the target; below 1 sharpens", used_by=("uda",))
    confidence: float = option(
        0.8, low=-1, high=1, help="least probability that counts; -1: all; FixMatch 0.95", used_by=UNLABELLED
    )
    consistency: str = option("kl", choices=CONSISTENCY, used_by=("uda",), help="loss of unlabelled images")
    weight: float = option(1.0, low=0, help="of the unlabelled images' loss", used_by=UNLABELLED)
    entropy: float = option(0.0, low=0, help="weight of the entropy term", used_by=("uda",))
    tsa: str = option("off", choices=TSA, help="training signal annealing", used_by=("supervised", "uda"))
    target_mode: str = option(
        "train",
        choices=("train", "eval"),
        help="how the clean view runs; train: Google's, one batch with the rest",
        used_by=UNLABELLED,
    )
    # optimisation
    steps: int = option(500_000, low=1, help="of the whole run")
    batch_size: int = option(64, low=1, help="labelled images, of all processes together")
    unlabelled_ratio: int = option(7, low=1, help="unlabelled images per labelled one", used_by=UNLABELLED)
    lr: float = option(0.03, low=0, help="highest learning rate, of SGD")
    warmup_steps: int = option(0, low=0, help="steps in which the learning rate rises")
    momentum: float = option(0.9, low=0, high=1, help="of SGD")
    nesterov: bool = option(True, help="Nesterov's momentum")
    weight_decay: float = option(5e-4, low=0, help="per step, of SGD")
    decay: str = option("all", choices=("all", "kernels"), help="kernels: not on norms or biases, FixMatch's")
    ema: float = option(0.9999, low=0, high=0.999999, help="decay of the averaged weights; 0: none")
    ema_ramp: bool = option(
        True,
        help="let the decay rise where the run is so short that the average would be its random beginning",
        used_by=("ema",),
    )
    clip_norm: float = option(0.0, low=0, help="gradient norm; 0: no clipping")
    # machine
    device: str = option("auto", bookkeeping=True, help=DEVICE_HELP)
    precision: str = option("auto", choices=PRECISIONS, help=PRECISION_HELP, precision=True)
    channels_last: bool = option(False, precision=True, help="memory format; the same figures up to rounding")
    compile: bool = option(False, precision=True, help="torch.compile")
    sync_batchnorm: bool = option(True, help="statistics over all processes, so that N equal one")
    # bookkeeping
    log_every: int = option(100, low=1, help="steps", bookkeeping=True)
    eval_every: int = option(5000, low=1, help="steps")
    checkpoint_every: int = option(5000, low=1, help="steps", bookkeeping=True)
    tensorboard: bool = option(True, bookkeeping=True, help="write its events, where it is installed")
    tracker: str = option("none", choices=TRACKERS, help=TRACKER_HELP, bookkeeping=True)
    pictures: bool = option(True, help="draw the views of a few images", bookkeeping=True)

    def users(self) -> set[str]:
        """Whose settings are in use: the algorithm's, and keep's, the split's and the network's."""
        users = {self.algorithm, self.split, "resnet" if self.arch in ARCHITECTURES else "other"}
        users |= {"ema"} if self.ema else set()
        return users | ({"keep"} if self.keep and ALGORITHMS[self.algorithm].unlabelled else set())

    @property
    def saliency_scale(self) -> float:
        """Of the image's side."""
        return 0.5 if self.saliency == "low_resolution" else 1.0


def check(config: UdaConfig) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ConfigError: names the keys.
    """
    if not config.root:
        raise ConfigError("root is empty: give the data's folder, for example root=data/cifar10")
    if config.dataset == "cifar10" and config.image_size:
        raise ConfigError("image_size is for image folders: leave it 0 with dataset=cifar10")
    if config.arch not in (*ARCHITECTURES, *FAST) and not re.fullmatch(r"wrn\d+_\d+", config.arch):
        raise ConfigError(
            f"arch is {config.arch!r}; allowed: wrnDEPTH_WIDTH (wrn28_2 is the recipe's), "
            f"{', '.join([*ARCHITECTURES, *FAST])}"
        )
    if len(config.levels) != 2 or config.levels[0] > config.levels[1]:
        raise ConfigError(f"levels must be [low, high] with low <= high, got {config.levels}")
    if config.nesterov and config.momentum == 0:
        raise ConfigError("nesterov needs momentum above 0: set nesterov=false or momentum=0.9")
    if config.crops == "independent" and "keep" in config.users():
        raise ConfigError(
            "crops=independent shifts the views against each other, so that no region of one can be pasted "
            "into the other: set crops=shared or keep=false"
        )
    if config.entropy and config.target_mode == "eval":
        raise ConfigError("entropy needs the clean view's gradient, which target_mode=eval lacks: entropy=0")


def is_shortened(config: UdaConfig) -> bool:
    """Whether the run has less than all images of its data."""
    return bool(config.limit_train or config.limit_val)


def label(config: UdaConfig) -> str:
    """`uda-keep-250labels`: what names a run beside its data and network."""
    return f"{config.algorithm}{'-keep' if 'keep' in config.users() else ''}-{config.num_labels}labels"


def in_todays_names(before: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version wrote, when `method` was one setting."""
    if (scale := before.get("saliency_scale")) is not None:
        before = {**before, "saliency": "full" if scale == 1 else "low_resolution"}
    if (method := before.get("method")) is None:
        return dict(before)
    algorithm = "supervised" if method == "supervised" else "uda"
    return {**before, "algorithm": algorithm, "keep": method == "keep_rand_augment"}
