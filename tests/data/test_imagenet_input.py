"""ImageNet's training images: the crops' distribution, and pixels against Pillow's and torchvision's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from keepaug.data import reading
from keepaug.data.drawing import draw_backgrounds
from keepaug.data.imagenet import draw_resized_crop, read_eval, read_train
from keepaug.data.reading import ImageError, read_image, read_part


def photo(height: int, width: int) -> Image.Image:
    """Smooth colours with some noise, as photographs have."""
    generator = torch.Generator().manual_seed(height)
    pixels = draw_backgrounds(1, (height, width), generator=generator)[0] * 255
    pixels += 8 * torch.randn(1, height, width, generator=generator)
    return Image.fromarray(pixels.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())


def ks_distance(first: list[float], second: list[float]) -> float:
    """Largest difference of the two distribution functions."""
    places = np.sort(np.concatenate([first, second]))
    parts = [
        np.searchsorted(np.sort(values), places, side="right") / len(values) for values in (first, second)
    ]
    return float(np.abs(parts[0] - parts[1]).max())


@pytest.mark.parametrize("shape", [(480, 640), (300, 90), (40, 400)])
def test_crops_have_torchvisions_distribution(shape: tuple[int, int]) -> None:
    height, width = shape
    num = 2000
    ours = [draw_resized_crop(height, width, seed) for seed in range(num)]
    transform, image = v2.RandomResizedCrop(224), torch.zeros(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = [transform.make_params([image]) for _ in range(num)]
    for name in ("top", "left", "height", "width"):
        distance = ks_distance([getattr(crop, name) for crop in ours], [crop[name] for crop in theirs])
        assert distance < 0.055  # 1.74 standard errors: the 0.5 % quantile
    assert abs(np.mean([crop.mirrored for crop in ours]) - 0.5) < 0.04
    assert all(crop.top + crop.height <= height and crop.left + crop.width <= width for crop in ours)
    assert all(min(crop[:2]) >= 0 and min(crop[2:4]) > 0 for crop in ours)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize(("shape", "mean", "largest"), [((150, 200), 0.5, 1), ((450, 600), 1.5, 30)])
def test_pixels_against_pillows_crop_and_resize(
    suffix: str, shape: tuple[int, int], mean: float, largest: int, tmp_path: Path
) -> None:
    """Within a grey level at full scale; where a large JPEG is decoded at a half, the filter differs a
    little.
    """
    path = tmp_path / f"a.{suffix}"
    photo(*shape).save(path, **({"quality": 90} if suffix == "jpg" else {}))
    for seed in range(8):
        crop = draw_resized_crop(*shape, seed)
        box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        wanted = read_image(path).crop(box).resize((64, 64), Image.Resampling.BILINEAR)
        if crop.mirrored:
            wanted = wanted.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        got = read_train(path, seed, size=64)
        assert got.dtype == torch.uint8
        difference = np.abs(got.permute(1, 2, 0).numpy().astype(int) - np.asarray(wanted))
        assert difference.mean() < mean
        assert difference.max() <= (largest if suffix == "jpg" else 1)


@pytest.mark.parametrize(
    "options",
    [{"subsampling": kind} for kind in (0, 1, 2)]
    + [{"progressive": True}, {"restart_marker_blocks": 3}, {"keep_rgb": True}, {"quality": 30}],
    ids=str,
)
def test_the_faster_decoder_gives_pillows_pixels(
    options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("simplejpeg")
    photo(203, 317).save(tmp_path / "a.jpg", **options)

    def part() -> np.ndarray:
        return read_part(
            tmp_path / "a.jpg", lambda height, width: (3, 5, height - 9, width - 8), detail=(400, 400)
        )

    fast = part()
    whole = np.asarray(read_image(tmp_path / "a.jpg"))
    assert np.array_equal(fast, whole[3 : 3 + 194, 5 : 5 + 309])
    monkeypatch.setattr(reading, "simplejpeg", None)
    assert np.array_equal(part(), fast)


@pytest.mark.parametrize("decoder", ["simplejpeg", "pillow"])
def test_parts_of_turned_grey_and_broken_files(
    decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if decoder == "pillow":
        monkeypatch.setattr(reading, "simplejpeg", None)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = photo(240, 160)
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.convert("L").save(tmp_path / "grey.jpg")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.save(tmp_path / "cut.jpg")
    for name in ("turned", "grey", "cmyk"):
        path = tmp_path / f"{name}.jpg"
        whole = np.asarray(read_image(path))
        got = read_part(path, lambda height, width: (height // 4, 0, height // 2, width), detail=(999, 999))
        assert np.array_equal(got, whole[len(whole) // 4 : 3 * len(whole) // 4])
        half = read_part(path, lambda height, width: (0, 0, height, width), detail=(80, 80))
        assert half.shape == (whole.shape[0] // 2, whole.shape[1] // 2, 3)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(cut.read_bytes()[:2000])
    with pytest.raises(ImageError, match=r"cut\.jpg .*cut short"):
        read_train(cut, 0)


def test_evaluation_is_resize_and_centre_crop(tmp_path: Path) -> None:
    photo(300, 500).save(tmp_path / "a.png")
    steps = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    assert torch.equal(read_eval(tmp_path / "a.png"), steps(read_image(tmp_path / "a.png")))


def test_broken_files_of_both_splits_are_named_before_training(tmp_path: Path) -> None:
    from keepaug.classify.config import ClassifyConfig
    from keepaug.classify.datasets import open_datasets

    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            photo(40, 50).save(tmp_path / split / name / "1.jpg")
        (tmp_path / split / "b" / "1.jpg").write_bytes(b"")
    (tmp_path / "dataset.json").write_text('{"synthetic": true}')  # its classes need not be ImageNet's
    config = ClassifyConfig(dataset="imagenet", root=str(tmp_path), loading="files")
    with pytest.raises(
        ImageError, match=r"val: 1 of 2 .*val/b/1\.jpg is empty.*train: 1 of 2 .*train/b/1\.jpg is empty"
    ):
        open_datasets(config)
