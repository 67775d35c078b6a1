"""Features of many images, decoding ahead of the network; and their file (npz)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keepaug.data.batch_transforms import normalize
from keepaug.data.folder import EXTENSIONS
from keepaug.modes import evaluating
from keepaug.runs.distributed import Distributed, gather_rows, setup
from keepaug.runs.files import write_atomic
from keepaug.runs.progress import progress
from keepaug.runs.rehearsal import facts, rehearse
from reid.data.images import ResizedImages
from reid.models.network import ReidNetwork
from reid.models.weights import load_network


@torch.no_grad()
def extract_features(
    network: ReidNetwork,
    images: ResizedImages,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    world: Distributed,
    batch_size: int = 128,
    after_neck: bool = True,
    flip_test: bool = False,
    bf16: bool = False,
    channels_last: bool = False,
    description: str = "features",
) -> Tensor:
    """Features (N, D), float32, on the CPU, the same on every process; the network's modes are left as found.

    Args:
        network: the network.
        images: neither mirrored nor cropped.
        mean: of the normalization.
        std: of the normalization.
        world: each process takes its part.
        batch_size: images at a time.
        after_neck: features after the neck, otherwise before it.
        flip_test: mean of the features of an image and its mirror image.
        bf16: autocast to bfloat16.
        channels_last: memory format.
        description: of the progress bar.
    """
    device, total = world.device, len(images)
    own = torch.arange(total)[world.rank :: world.world_size]
    parts = list(own.split(batch_size)) if len(own) else []
    found: list[Tensor] = []
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    with evaluating(network), ThreadPoolExecutor(1) as reader, autocast:
        ahead = reader.submit(images.resized, parts[0]) if parts else None
        for number in progress(range(len(parts)), description, total=len(parts), disable=not world.is_main):
            pixels = ahead.result() if ahead is not None else None
            ahead = reader.submit(images.resized, parts[number + 1]) if number + 1 < len(parts) else None
            inputs = normalize(pixels.to(device), mean, std)  # type: ignore[union-attr]
            if channels_last:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            features = network.features(inputs, after_neck=after_neck).float()
            if flip_test:
                mirrored = network.features(inputs.flip(3), after_neck=after_neck).float()
                features = (features + mirrored) / 2
            found.append(features)
    rows = torch.cat(found) if found else torch.empty(0, network.feature_dim, device=device)
    return gather_rows(rows, total).cpu()


_NAMES = ("identity_names", "camera_names")


@dataclass(frozen=True)
class FeatureSet:
    """Features of some images.

    Attributes:
        features: (N, D) floating.
        identities: (N,) integer.
        cameras: (N,) integer; -1 where unknown.
        paths: N texts.
        identity_names: N texts, as the user wrote the identities; none where there are none.
        camera_names: likewise.
    """

    features: Tensor
    identities: Tensor
    cameras: Tensor
    paths: Sequence[str]
    identity_names: Sequence[str] = ()
    camera_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("identities", "cameras", "paths", *_NAMES):
            length = len(getattr(self, name))
            if length != len(self.features) and (length or name not in _NAMES):
                raise ValueError(f"{name} has {length} entries for {len(self.features)} features")


def save_features(path: str | Path, **sets: FeatureSet) -> Path:
    """Write features, their labels and paths to an npz file, atomically.

    Of each set NAME_features, NAME_identities, NAME_cameras, NAME_paths and texts
    NAME_{identity,camera}_names.

    Args:
        path: the file.
        sets: by name: `query=..., gallery=...`. bfloat16, which numpy lacks, is stored as float32.

    Returns:
        The path.

    Raises:
        ValueError: no sets.
    """
    if not sets:
        raise ValueError("there is nothing to save: give sets by name, query=FeatureSet(...)")
    arrays: dict[str, Any] = {}
    for name, one in sets.items():
        features = one.features.detach().cpu()
        features = features.float() if features.dtype == torch.bfloat16 else features
        arrays[f"{name}_features"] = features.numpy()
        arrays[f"{name}_identities"] = one.identities.cpu().numpy()
        arrays[f"{name}_cameras"] = one.cameras.cpu().numpy()
        for key in ("paths", *_NAMES):
            arrays[f"{name}_{key}"] = np.array([str(text) for text in getattr(one, key)], dtype=np.str_)
    return write_atomic(path, lambda file: np.savez(file, **arrays))


def load_features(path: str | Path) -> dict[str, FeatureSet]:
    """Read what `save_features` wrote; nothing is unpickled.

    Raises:
        ValueError: the file holds no features, or pickled objects.
    """
    with np.load(path, allow_pickle=False) as content:
        names = [key.removesuffix("_features") for key in content.files if key.endswith("_features")]
        if not names:
            raise ValueError(f"{path} holds no NAME_features: {', '.join(content.files) or 'it is empty'}")
        return {
            name: FeatureSet(
                torch.from_numpy(content[f"{name}_features"]),
                torch.from_numpy(content[f"{name}_identities"]),
                torch.from_numpy(content[f"{name}_cameras"]),
                content[f"{name}_paths"].tolist(),
                *(content[f"{name}_{key}"].tolist() for key in _NAMES if f"{name}_{key}" in content.files),
            )
            for name in names
        }


def describe_images(
    weights: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    device: str = "auto",
    batch_size: int = 128,
    feature: str = "after",
    flip_test: bool = False,
    threads: int = 4,
) -> FeatureSet:
    """Features of new images, of which nothing is known.

    Args:
        weights: weights.pt, best.pt or checkpoint.pt of a run, which say size and normalization too.
        images: a folder, whose images are taken with those below, sorted; or image files, in their order.
        device: as of a run.
        batch_size: images at a time.
        feature: "after" or "before" the neck.
        flip_test: mean of the features of an image and its mirror image.
        threads: that decode.

    Returns:
        The features, on the CPU; identities and cameras are -1, paths relative to the folder.

    Raises:
        FileNotFoundError: no such weights, folder or file.
        ValueError: other weights, no images, images that cannot be read, an unknown `feature`.
    """
    _, names, first = _first_features(weights, images, device, batch_size, feature, flip_test, threads)
    features = first(len(names))()
    if not bool(torch.isfinite(features).all()):
        raise ValueError(f"{weights} gives features that are not finite: did training diverge?")
    nobody = torch.full((len(names),), -1)
    return FeatureSet(features, nobody, nobody, names)


def rehearse_images(
    weights: str | Path,
    images: str | Path,
    *,
    device: str,
    batch_size: int,
    feature: str,
    flip_test: bool,
    threads: int,
) -> str:
    """What `describe_images` would read and take, from a few of its batches; the arguments are the same.

    Raises:
        ValueError: what `describe_images` raises before it computes; images are checked as they come.
    """
    network, names, first = _first_features(weights, images, device, batch_size, feature, flip_test, threads)
    number, parameters = len(names), sum(one.numel() for one in network.parameters())
    said = facts(
        network=f"{weights}, {parameters:,} parameters",
        data=f"{images}: {number:,} images, {'two passes' if flip_test else 'one pass'} each",
        file=f"{number:,} x {network.feature_dim:,} numbers, {4e-6 * number * network.feature_dim:,.1f} MB",
    )
    steps, where = -(-number // batch_size), next(network.parameters()).device
    found = rehearse(first(min(batch_size, number)), steps, where)
    return f"{said}\n{found.lines()}"


def _first_features(
    weights: str | Path,
    images: str | Path | Sequence[str | Path],
    device: str,
    batch_size: int,
    feature: str,
    flip_test: bool,
    threads: int,
) -> tuple[ReidNetwork, list[str], Callable[[int], Callable[[], Tensor]]]:
    """The network, the images' names, and what checks the first so many and returns what extracts them."""
    if feature not in ("after", "before"):
        raise ValueError(f"feature must be 'after' or 'before' (the neck), got {feature!r}")
    if batch_size < 1 or threads < 1:
        raise ValueError(f"--batch-size and --num-workers must be 1 or more, got {batch_size} and {threads}")
    network, content = load_network(weights)
    files, names = _listed(images)
    world = setup(device)
    network.to(world.device)

    def first(number: int) -> Callable[[], Tensor]:
        size, nobody = (content["height"], content["width"]), torch.zeros(number, dtype=torch.int64)
        read = ResizedImages(files[:number], nobody, size, in_memory=False, threads=threads)
        return functools.partial(
            extract_features,
            network,
            read,
            mean=content["mean"],
            std=content["std"],
            world=world,
            batch_size=batch_size,
            after_neck=feature == "after" and content["neck"] != "none",
            flip_test=flip_test,
        )

    return network, names, first


def _listed(images: str | Path | Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """Files, and what they are called."""
    if not isinstance(images, str | Path):
        files = [Path(path).expanduser() for path in images]
        if missing := [str(path) for path in files if not path.is_file()]:
            raise FileNotFoundError(
                f"{len(missing)} of {len(files)} files do not exist: {', '.join(missing[:3])}"
            )
        names = [str(path) for path in images]
    else:
        root = Path(images).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {root}: give a folder of images, or a list of files")
        files = sorted(
            path
            for path in root.rglob("*")
            if path.suffix.lower() in EXTENSIONS
            and not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(root).parts)
        )
        names = [path.relative_to(root).as_posix() for path in files]
    if not files:
        raise ValueError(f"no images in {images} ({', '.join(EXTENSIONS)})")
    return files, names
