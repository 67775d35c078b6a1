"""What a run leaves for people: ranked lists, erased regions, features, an ONNX file."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image

from keepaug.baselines import RandomErasing
from keepaug.data.batch_transforms import normalise
from keepaug.keep import KeepRandomErasing
from keepaug.runs.files import write_atomic, write_bytes_atomic
from keepaug.runs.seeds import make_generator
from keepaug.saliency import saliency_map
from reid.config import ReidConfig
from reid.datamanager import TestSet
from reid.model import ReidNetwork
from reid.sampler import IdentityLoader
from reid.scores import Scored

__all__ = [
    "draw_erasing",
    "draw_ranked_lists",
    "export_onnx",
    "ranked_lists",
    "save_features",
    "write_artifacts",
]

_RIGHT, _WRONG, _INK = (20, 150, 60), (200, 40, 40), (30, 30, 30)
_FRAME, _TEXT, _TOP = 4, 26, 10


def write_artifacts(
    output: Path,
    config: ReidConfig,
    network: ReidNetwork,
    tested: TestSet,
    scored: Scored,
    train: IdentityLoader | None,
    device: torch.device,
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

    Returns:
        File names by role, for result.json.
    """
    found = {}
    if config.ranked:
        found["ranked"] = draw_ranked_lists(
            scored, tested, output / "ranked.png", num_queries=config.ranked, metric=config.metric
        )
    if config.pictures and train is not None and config.erasing != "none":
        found["erasing"] = draw_erasing(network, train, config, output / "erasing.png", device)
    if config.features:
        found["features"] = save_features(scored, tested, output / "features.npz")
    if config.onnx:
        found["onnx"] = export_onnx(network, config, output / "network.onnx")
    return {role: path.name for role, path in found.items()}


def ranked_lists(
    scored: Scored, tested: TestSet, *, metric: str = "cosine", top: int = _TOP
) -> tuple[Tensor, Tensor]:
    """The nearest gallery images of every query, without the protocol's junk.

    Args:
        scored: features.
        tested: identities and cameras.
        metric: "cosine" or "euclidean".
        top: length of the lists.

    Returns:
        Positions in the gallery and their distances, both (Q, top); infinite distances are junk.
    """
    query, gallery = scored.query, scored.gallery
    cosine = metric == "cosine"
    distances = 1 - F.normalize(query) @ F.normalize(gallery).T if cosine else torch.cdist(query, gallery)
    cameras = [tested.camera_numbers(split) for split in ("query", "gallery")]
    if cameras[0] is not None and cameras[1] is not None:
        same = tested.identities("query")[:, None] == tested.identities("gallery")[None]
        distances = distances.masked_fill(same & (cameras[0][:, None] == cameras[1][None]), torch.inf)
    values, places = distances.sort(dim=1, stable=True)
    return places[:, :top], values[:, :top]


def draw_ranked_lists(
    scored: Scored,
    tested: TestSet,
    path: Path,
    *,
    num_queries: int = 8,
    metric: str = "cosine",
    top: int = _TOP,
) -> Path:
    """One row for each of some queries: the query, then its nearest images, right ones framed green and wrong ones red.

    Below each image stand its camera and its distance.

    Args:
        scored: features.
        tested: images, identities, cameras.
        path: PNG file.
        num_queries: rows, evenly spread over the queries.
        metric: "cosine" or "euclidean".
        top: images in a row.
    """
    places, distances = ranked_lists(scored, tested, metric=metric, top=top)
    total = len(tested.query)
    rows = torch.linspace(0, total - 1, min(num_queries, total)).round().to(torch.int64)
    height, width = tested.query.size
    scale = max(1, 96 // height)
    cell = (width * scale + 2 * _FRAME + 4, height * scale + 2 * _FRAME + _TEXT)
    sheet = Image.new("RGB", (cell[0] * (places.shape[1] + 1) + 8, cell[1] * len(rows)), "white")
    for row, query in enumerate(rows.tolist()):
        record = tested.data.query[query]
        picture = tested.query.resized(torch.tensor([query]))[0]
        _paste(
            sheet, picture, (0, row * cell[1]), scale, _INK, [f"id {record.identity}", _camera(record.camera)]
        )
        nearest = tested.gallery.resized(places[query])
        for column, (place, distance) in enumerate(
            zip(places[query].tolist(), distances[query].tolist(), strict=True)
        ):
            if distance == float("inf"):
                continue
            match = tested.data.gallery[place]
            colour = _RIGHT if match.identity == record.identity else _WRONG
            corner = ((column + 1) * cell[0] + 8, row * cell[1])
            _paste(sheet, nearest[column], corner, scale, colour, [_camera(match.camera), f"{distance:.3f}"])
    return _save(sheet, path)


def draw_erasing(
    network: ReidNetwork,
    train: IdentityLoader,
    config: ReidConfig,
    path: Path,
    device: torch.device,
    *,
    number: int = 8,
) -> Path:
    """Four rows: training images, their saliency, and what random erasing and KeepRandomErasing (same sizes) leave of them.

    Args:
        network: whose identity classifier is asked.
        train: training images.
        config: settings of the erasing.
        path: PNG file.
        device: of the network.
        number: images.
    """
    indices = torch.arange(len(train.images))[:: max(1, len(train.images) // number)][:number]
    seeds = torch.randint(2**62, (len(indices),), generator=make_generator(config.seed, "pictures"))
    batch = train.images.load(indices, seeds)
    images = normalise(batch.images.to(device), config.mean, config.std)
    labels = batch.labels.to(device)
    heat = saliency_map(network, images, labels, forward=network.logits, scale=config.saliency_scale)
    area, aspect = (config.area[0], config.area[1]), (config.aspect[0], config.aspect[1])
    rows = [images]
    for eraser in (
        RandomErasing(1.0, area, aspect, config.fill),
        KeepRandomErasing(1.0, area, aspect, config.fill, tau=config.tau),
    ):
        rows.append(eraser(images, heat, generator=make_generator(config.seed, "picture regions")))
    std, mean = (torch.tensor(value).view(1, 3, 1, 1) for value in (config.std, config.mean))
    shown = [(row.float().cpu() * std + mean).clamp(0, 1) for row in rows]
    peak = heat.flatten(1).amax(dim=1).clamp(min=1e-12)[:, None, None]
    grey = (heat / peak).sqrt().cpu()[:, None].expand(-1, 3, -1, -1)
    grid = F.pad(torch.stack([shown[0], grey, *shown[1:]]), (1, 1, 1, 1), value=1.0)
    sheet = to_pil_image(
        (torch.cat([torch.cat(list(row), dim=2) for row in grid], dim=1) * 255).round().to(torch.uint8)
    )
    factor = max(1, 900 // sheet.width)
    return _save(sheet.resize((sheet.width * factor, sheet.height * factor), Image.Resampling.NEAREST), path)


def save_features(scored: Scored, tested: TestSet, path: Path) -> Path:
    """NumPy archive: `query_features`, `query_identities`, `query_cameras` (-1 unknown), `query_paths`, and `gallery_...`."""
    content: dict[str, Any] = {}
    for split, features in (("query", scored.query), ("gallery", scored.gallery)):
        records = tested.data.split(split)
        content[f"{split}_features"] = features.numpy()
        content[f"{split}_identities"] = np.array([record.identity for record in records], dtype=np.int64)
        cameras = [-1 if record.camera is None else record.camera for record in records]
        content[f"{split}_cameras"] = np.array(cameras, dtype=np.int64)
        content[f"{split}_paths"] = np.array(
            [str(record.path.relative_to(tested.data.root)) for record in records]
        )
    return write_atomic(path, lambda file: np.savez(file, **content))


class _Embedding(nn.Module):
    def __init__(self, network: ReidNetwork, after_neck: bool) -> None:
        super().__init__()
        self.network, self.after_neck = network, after_neck

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.network.features(images, after_neck=self.after_neck))


def export_onnx(network: ReidNetwork, config: ReidConfig, path: Path) -> Path:
    """Network as ONNX: `images` (N, 3, height, width) normalised float32 to `features` (N, D) of length 1.

    Raises:
        ImportError: onnx or onnxscript is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"onnx=true needs onnx and onnxscript ({error}): pip install 'keepaug[reid]'"
        ) from error
    modes = [(module, module.training) for module in network.modules()]
    embedding = _Embedding(network, config.feature == "after").eval()
    device = next(network.parameters()).device
    example = torch.zeros(2, 3, config.height, config.width, device=device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's remarks on its own internals
            program = torch.onnx.export(
                embedding,
                (example,),
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                dynamo=True,
                verbose=False,
            )
    finally:
        for module, training in modes:
            module.training = training
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return write_bytes_atomic(path, program.model_proto.SerializeToString())


def _camera(camera: int | None) -> str:
    return "" if camera is None else f"cam {camera}"


def _paste(
    sheet: Image.Image,
    pixels: Tensor,
    corner: tuple[int, int],
    scale: int,
    colour: tuple[int, int, int],
    lines: list[str],
) -> None:
    image = to_pil_image(pixels)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(sheet)
    left, top = corner
    bottom = top + image.height + 2 * _FRAME
    draw.rectangle((left, top, left + image.width + 2 * _FRAME - 1, bottom - 1), fill=colour)
    sheet.paste(image, (left + _FRAME, top + _FRAME))
    for number, line in enumerate(lines):
        draw.text((left + _FRAME, bottom + 1 + 11 * number), line, fill=colour)


def _save(picture: Image.Image, path: Path) -> Path:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return write_bytes_atomic(path, buffer.getvalue())
