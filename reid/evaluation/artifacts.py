"""What a run leaves for people: ranked lists, erased regions, features, an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepaug.data.batch_transforms import normalize
from keepaug.runs.seeds import make_generator
from keepaug.saliency import saliency_map
from reid.config import ReidConfig
from reid.data.manager import TestSet
from reid.data.sampler import IdentityLoader
from reid.evaluation.erased import measure_erasing
from reid.evaluation.export import export_onnx
from reid.evaluation.features import FeatureSet, save_features
from reid.evaluation.pictures import draw_erasing, draw_ranked_lists
from reid.evaluation.scores import Scored
from reid.models.network import ReidNetwork

_IMAGES = 8  # in the picture of erased regions
_MEASURED = 64  # images whose erased regions are counted
_HEIGHT = 128  # pixels at least, of an image in a ranked list


def write_artifacts(
    output: Path,
    config: ReidConfig,
    network: ReidNetwork,
    tested: TestSet,
    scored: Scored,
    train: IdentityLoader | None,
    device: torch.device,
    identities: Sequence[int | str] = (),
) -> dict[str, str]:
    """What the config asks for.

    Args:
        output: run folder.
        config: settings.
        network: trained.
        tested: the test set of `scored`.
        scored: its features.
        train: training images for the picture of erased regions; None draws none.
        device: of the network.
        identities: of the training images, by class.

    Returns:
        File names by role, for result.json.
    """
    found = {}
    if config.ranked:
        found["ranked"] = _ranked(output / "ranked.png", config, tested, scored)
    if config.pictures and train is not None and config.method != "none":
        found["erasing"] = _erasing(output / "erasing.png", config, network, train, device, identities)
    if config.features:
        sets = {split: _feature_set(tested, scored, split) for split in ("query", "gallery")}
        found["features"] = save_features(output / "features.npz", **sets)
    if config.onnx:
        found["onnx"] = export_onnx(
            output / "network.onnx",
            _Embedding(network, config.feature == "after"),
            size=(config.height, config.width),
            metadata={"mean": str(list(config.mean)), "std": str(list(config.std))},
        )
    return {role: path.name for role, path in found.items()}


def _ranked(path: Path, config: ReidConfig, tested: TestSet, scored: Scored) -> Path:
    scale = max(1.0, _HEIGHT / config.height)
    return draw_ranked_lists(
        path,
        scored.query,
        scored.gallery,
        **tested.labels,
        query_names=tested.names("query"),
        gallery_names=tested.names("gallery"),
        query_paths=[record.path for record in tested.data.query],
        gallery_paths=[record.path for record in tested.data.gallery],
        metric=config.metric,
        num_queries=config.ranked,
        size=(round(config.height * scale), round(config.width * scale)),
    )


def erased_importance(
    config: ReidConfig, network: ReidNetwork, train: IdentityLoader, device: torch.device
) -> dict[str, float]:
    """Percentage of erased regions above the tau-quantile, by RandomErasing and by KeepRandomErasing.

    Measured on some training images with the trained network's saliency; nothing where nothing is erased.
    """
    if not config.pictures or config.method == "none":
        return {}
    _, _, heat = _saliency(config, network, train, device, _MEASURED)
    found = measure_erasing(
        heat.cpu(),
        tau=config.tau,
        area=(config.area[0], config.area[1]),
        aspect=(config.aspect[0], config.aspect[1]),
        generator=make_generator(config.seed, "erased importance"),
    )
    return {"important_erased_random": 100 * found.random, "important_erased_keep": 100 * found.keep}


def _saliency(
    config: ReidConfig, network: ReidNetwork, train: IdentityLoader, device: torch.device, number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Evenly spaced training images, cropped as in training, normalized; classes; saliency."""
    indices = torch.arange(len(train.images))[:: max(1, len(train.images) // number)][:number]
    seeds = torch.randint(2**62, (len(indices),), generator=make_generator(config.seed, "pictures"))
    batch = train.images.load(indices, seeds)
    images = normalize(batch.images.to(device), config.mean, config.std)
    parts = zip(images.split(_IMAGES), batch.labels.to(device).split(_IMAGES), strict=True)
    maps = [
        saliency_map(network, *part, forward=network.logits, scale=config.saliency_scale) for part in parts
    ]
    return images, batch.labels, torch.cat(maps)


def _erasing(
    path: Path,
    config: ReidConfig,
    network: ReidNetwork,
    train: IdentityLoader,
    device: torch.device,
    identities: Sequence[int | str],
) -> Path:
    images, labels, heat = _saliency(config, network, train, device, _IMAGES)
    return draw_erasing(
        path,
        images,
        heat,
        mean=config.mean,
        std=config.std,
        area=(config.area[0], config.area[1]),
        aspect=(config.aspect[0], config.aspect[1]),
        fill=config.fill or "random",
        tau=config.tau,
        seed=config.seed,
        titles=[f"identity {identities[int(label)]}" for label in labels] if identities else (),
    )


def _feature_set(tested: TestSet, scored: Scored, split: str) -> FeatureSet:
    records = tested.data.split(split)
    return FeatureSet(
        scored.query if split == "query" else scored.gallery,
        tested.identities(split),
        torch.tensor([-1 if record.camera is None else record.camera for record in records]),
        [record.path.relative_to(tested.data.root).as_posix() for record in records],
        [tested.data.identity_name(record.identity) for record in records],
        [tested.data.camera_name(record.camera) for record in records],
    )


class _Embedding(nn.Module):
    """Features of length 1."""

    def __init__(self, network: ReidNetwork, after_neck: bool) -> None:
        super().__init__()
        self.network, self.after_neck = network, after_neck

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.network.features(images, after_neck=self.after_neck))
