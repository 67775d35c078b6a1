"""How often each augmentation destroys the object, on data whose object boxes are known."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from keepaug.baselines import CutMix, Cutout, RandomErasing
from keepaug.data.batch_transforms import normalise
from keepaug.data.folder import find_split, list_images
from keepaug.data.identity import describe_tensors, is_synthetic
from keepaug.data.images import decode_all
from keepaug.data.synthetic import covered_share, read_boxes
from keepaug.keep import KeepCutMix, KeepCutout, KeepPaste, KeepRandomErasing
from keepaug.models.weights import identity_of, load_classifier
from keepaug.regions import Regions, random_regions
from keepaug.runs.files import write_atomic
from keepaug.runs.result import write_result
from keepaug.runs.seeds import make_generator
from keepaug.saliency import saliency_map

__all__ = ["measure"]

DRAWS = 20
DESTROYED = 0.5


def measure(
    weights: str | Path,
    root: str | Path,
    output: str | Path,
    *,
    tau: float = 0.6,
    seed: int = 0,
    max_images: int = 300,
) -> dict[str, float]:
    """Destruction rates of Cutout, random erasing, CutMix and of pasting, plain against Keep; writes result.json and a picture.

    Each pair uses the same sizes, placement and random numbers, so that it differs in the selection alone. An object is
    destroyed when at least half of its box is cut; for pasting, when less than half of it is pasted back.

    Args:
        weights: weights.pt of a classifier trained on the data; its saliency (label logit, full resolution) is used.
        root: drawn image folder with boxes.json.
        output: run folder.
        tau: quantile.
        seed: of the regions.
        max_images: of the validation split.

    Returns:
        Percent by name: "cutout", "keep_cutout" ...

    Raises:
        FileNotFoundError: no weights, or no boxes.json.
    """
    started = time.monotonic()
    root, output = Path(root), Path(output)
    pixels, labels, boxes = _validation(root, max_images)
    trained = load_classifier(weights)
    network, images = trained.network, normalise(pixels, trained.mean, trained.std)
    chunks = zip(torch.split(images, 50), torch.split(labels, 50), strict=True)
    heat = torch.cat([saliency_map(network, some, some_labels) for some, some_labels in chunks])
    rates, pairs = _rates(images, heat, boxes, tau, seed)
    picture = _draw(pixels, images, heat, boxes, tau, seed)
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(output / "regions.png", lambda file: picture.save(file, "PNG"))
    synthetic = is_synthetic(root)
    write_result(
        output,
        kind="fidelity",
        name="destruction",
        metrics=rates,
        seed=seed,
        config={"tau": tau, "draws": DRAWS, "destroyed_from": DESTROYED, "weights": str(Path(weights).name)},
        dataset=describe_tensors(root.name, {"val": (pixels, labels)}),
        synthetic=synthetic,
        shortened=False,
        started_from=identity_of(weights, trained.provenance),
        wall_time_s=time.monotonic() - started,
        artifacts={"regions": "regions.png"},
        extra={"pairs": pairs},
    )
    return rates


def _validation(root: Path, max_images: int) -> tuple[Tensor, Tensor, Tensor]:
    known = read_boxes(root)
    paths, labels, _ = list_images(find_split(root, "val"))
    some = torch.linspace(0, len(paths) - 1, min(max_images, len(paths))).round().to(torch.int64)
    chosen = [paths[index] for index in some.tolist()]
    boxes = torch.tensor([known[path.relative_to(root).as_posix()] for path in chosen])
    return decode_all(chosen, "reading validation images"), labels[some], boxes


def _augmentations(side: int, tau: float) -> list[tuple[str, str, object, object]]:
    """(title, key, plain, keep): same settings in both."""
    size = round(side * 3 / 8)
    return [
        ("Cutout", "cutout", Cutout(size, placement="inside"), KeepCutout(size, tau=tau)),
        ("Random erasing", "random_erasing", RandomErasing(p=1.0), KeepRandomErasing(p=1.0, tau=tau)),
        ("CutMix", "cutmix", CutMix(placement="inside"), KeepCutMix(tau=tau)),
    ]


def _rates(
    images: Tensor, heat: Tensor, boxes: Tensor, tau: float, seed: int
) -> tuple[dict[str, float], list[dict[str, str]]]:
    def rate(regions: list[Regions], *, lost: bool) -> float:
        shares = torch.cat([covered_share(some, boxes) for some in regions])
        return 100 * float(((shares >= DESTROYED) == lost).double().mean())

    rates: dict[str, float] = {}
    pairs = []
    side = min(images.shape[2:])
    for title, key, plain, keep in _augmentations(side, tau):
        for name, augment, given in ((key, plain, None), (f"keep_{key}", keep, heat)):
            generator = make_generator(seed, key)
            drawn = [augment.sample(images, given, generator=generator) for _ in range(DRAWS)]  # type: ignore[attr-defined]
            rates[name] = rate(drawn, lost=True)
        pairs.append({"name": title, "plain": key, "keep": f"keep_{key}"})
    size, shape = side // 2, (images.shape[2], images.shape[3])
    generator = make_generator(seed, "paste")
    anywhere = [random_regions(len(images), shape, size, generator=generator) for _ in range(DRAWS)]
    chosen = [KeepPaste(size, tau).sample(images, heat, generator=generator) for _ in range(DRAWS)]
    rates["random_paste"], rates["keep_paste"] = rate(anywhere, lost=False), rate(chosen, lost=False)
    pairs.append({"name": "Pasting back (lost)", "plain": "random_paste", "keep": "keep_paste"})
    return rates, pairs


def _draw(pixels: Tensor, images: Tensor, heat: Tensor, boxes: Tensor, tau: float, seed: int) -> Image.Image:
    """Rows: images; columns: image, saliency, and what each augmentation cuts."""
    count = min(6, len(pixels))
    some = torch.linspace(0, len(pixels) - 1, count).round().to(torch.int64)
    pixels, images, heat, boxes = pixels[some], images[some], heat[some], boxes[some]
    side = max(1, 128 // pixels.shape[3])
    columns: list[tuple[str, Tensor, Regions | None]] = [("image", pixels, None)]
    grey = (heat / heat.flatten(1).amax(dim=1).clamp(min=1e-12)[:, None, None]).sqrt()
    columns.append(("saliency", (grey * 255).to(torch.uint8)[:, None].expand(-1, 3, -1, -1), None))
    for title, key, plain, keep in _augmentations(min(images.shape[2:]), tau):
        for name, augment, given in ((title, plain, None), (f"Keep {title}", keep, heat)):
            regions = augment.sample(images, given, generator=make_generator(seed, "picture", key))  # type: ignore[attr-defined]
            columns.append((name, pixels, regions))
    width, gap, head = pixels.shape[3] * side, 6, 18
    sheet = Image.new(
        "RGB", (len(columns) * (width + gap), head + count * (pixels.shape[2] * side + gap)), "white"
    )
    pen = ImageDraw.Draw(sheet)
    for column, (title, batch, regions) in enumerate(columns):
        pen.text((column * (width + gap), 3), title, fill="black")
        for row in range(count):
            cell = Image.fromarray(batch[row].permute(1, 2, 0).contiguous().numpy())
            cell = cell.resize((width, pixels.shape[2] * side), Image.Resampling.NEAREST)
            inner = ImageDraw.Draw(cell)
            if regions is not None:
                _frame(inner, tuple(int(part[row]) * side for part in regions), "#f97316", fill="#000000")
            _frame(inner, tuple(int(value) * side for value in boxes[row]), "white")
            sheet.paste(cell, (column * (width + gap), head + row * (pixels.shape[2] * side + gap)))
    return sheet


def _frame(pen: ImageDraw.ImageDraw, box: tuple[int, ...], colour: str, *, fill: str | None = None) -> None:
    top, left, height, width = box
    if height and width:
        pen.rectangle((left, top, left + width - 1, top + height - 1), outline=colour, fill=fill, width=2)
