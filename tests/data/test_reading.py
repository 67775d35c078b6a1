"""The one image reader: modes x formats, EXIF, damage, and what is no image at all."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from keepaug.data.reading import ImageError, read_image, read_size

HEIGHT, WIDTH = 12, 20
RAMP = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
GREY = (RAMP * 255).round().astype(np.uint8)
COLOUR = np.stack([GREY, 255 - GREY, np.roll(GREY, 7)], axis=2)
SUFFIX = {
    "PNG": "png",
    "JPEG": "jpg",
    "TIFF": "tif",
    "WEBP": "webp",
    "BMP": "bmp",
    "GIF": "gif",
    "PPM": "ppm",
}
SUFFIX |= {"JPEG2000": "jp2", "TGA": "tga"}
if features.check("avif"):
    SUFFIX["AVIF"] = "avif"
LOSSY = {"JPEG", "WEBP", "AVIF", "JPEG2000"}
WRITTEN = {  # the modes that Pillow stores without changing them first
    "PNG": "1 L LA P RGB RGBA I;16 I;16B",
    "JPEG": "L RGB CMYK",
    "TIFF": "1 L LA P PA RGB RGBA CMYK I;16 I;16B I F LAB",
    "WEBP": "L RGB RGBA",
    "BMP": "1 L P RGB",
    "GIF": "1 L P",
    "PPM": "1 L RGB I;16 I F",
    "JPEG2000": "L LA RGB RGBA I;16",
    "TGA": "1 L LA P RGB RGBA",
    "AVIF": "L RGB RGBA",
}


def picture(mode: str) -> tuple[Image.Image, np.ndarray]:
    """An image of that mode, and the RGB pixels that stand for the same picture."""
    colour, grey = Image.fromarray(COLOUR), np.repeat(GREY[:, :, None], 3, axis=2)
    alpha = Image.fromarray(np.where(RAMP < 0.4, 0, 255).astype(np.uint8))
    shown = np.asarray(alpha)[:, :, None] > 0
    if mode == "1":
        return Image.fromarray(GREY > 127), np.where(grey > 127, 255, 0)
    if mode == "L":
        return Image.fromarray(GREY), grey
    if mode == "LA":
        return Image.merge("LA", (Image.fromarray(GREY), alpha)), np.where(shown, grey, 255)
    if mode == "RGBA":
        return Image.merge("RGBA", (*colour.split(), alpha)), np.where(shown, COLOUR, 255)
    if mode in ("P", "PA"):
        palette = colour.quantize(16, dither=Image.Dither.NONE)
        known = np.asarray(palette.convert("RGB"))
        return palette.convert(mode), known
    if mode == "CMYK":
        return colour.convert("CMYK"), COLOUR
    if mode.startswith("I"):
        kinds = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}
        return Image.fromarray((RAMP * 65535).round().astype(kinds[mode])), grey
    if mode == "F":
        return Image.fromarray(RAMP.astype(np.float32)), grey
    return colour.convert("RGB") if mode == "RGB" else Image.new(mode, (WIDTH, HEIGHT)), COLOUR


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    assert read_size(path) == (image.height, image.width)
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, mode) for kind in SUFFIX for mode in WRITTEN[kind].split()]
)
def test_right_pixels_or_an_error_that_names_file_and_mode(kind: str, mode: str, tmp_path: Path) -> None:
    image, expected = picture(mode)
    path = tmp_path / f"picture.{SUFFIX[kind]}"
    image.save(path, kind, **({"quality": 95} if kind in LOSSY - {"JPEG2000"} else {}))
    if mode == "LAB":
        for read in (read_image, read_size):
            with pytest.raises(ImageError, match=r"picture\.\w+ .*mode LAB"):
                read(path)
        return
    difference = np.abs(pixels(path) - expected)
    assert difference.mean() < (12 if kind in LOSSY else 1.5 if mode in ("CMYK", "P", "PA") else 0.51)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_grey_is_scaled_by_the_depth_that_holds_it(bits: int, tmp_path: Path) -> None:
    values = (RAMP * (2**bits - 1)).round()
    for number, kind in enumerate(("<u2", ">u2", "<i4")):
        Image.fromarray(values.astype(kind)).save(tmp_path / f"{number}.tif")
        assert np.abs(pixels(tmp_path / f"{number}.tif")[:, :, 1] - RAMP * 255).max() < 0.63


def test_floating_point_within_one_or_within_255_or_refused(tmp_path: Path) -> None:
    for number, scale in enumerate((1.0, 255.0, 200.0)):
        Image.fromarray((RAMP * scale).astype(np.float32)).save(tmp_path / f"{number}.tif")
        assert (
            np.abs(pixels(tmp_path / f"{number}.tif")[:, :, 0] - RAMP * max(scale, 255 * (scale == 1))).max()
            < 0.51
        )
    for values in (
        RAMP * 256,
        RAMP - 0.1,
        np.where(RAMP < 0.5, np.nan, RAMP),
        np.where(RAMP < 0.5, np.inf, RAMP),
    ):
        Image.fromarray(values.astype(np.float32)).save(tmp_path / "wrong.tif")
        for read in (read_image, read_size):
            with pytest.raises(ImageError, match=r"wrong\.tif \(mode F\) holds floating-point values from"):
                read(tmp_path / "wrong.tif")
    for values in (-1, 65536, 2**31 - 1):
        Image.fromarray(np.full((4, 4), values, dtype=np.int32)).save(tmp_path / "wrong.tif")
        with pytest.raises(ImageError, match=r"wrong\.tif \(mode I\) holds integers from"):
            read_image(tmp_path / "wrong.tif")


def test_transparency_shows_white_in_palettes_too(tmp_path: Path) -> None:
    palette = Image.fromarray(COLOUR).quantize(8)
    known = np.asarray(palette.convert("RGB")).astype(int)
    for number, transparent in enumerate((3, bytes([255, 0, 255, 255, 128, 255, 255, 255]))):
        for suffix in ("png", "gif") if number == 0 else ("png",):
            path = tmp_path / f"{number}.{suffix}"
            palette.save(path, transparency=transparent)
            alpha = np.full(8, 255) if number else np.where(np.arange(8) == 3, 0, 255)
            if number:
                alpha = np.frombuffer(transparent, np.uint8).astype(int)
            share = (alpha[np.asarray(palette)] / 255)[:, :, None]
            assert np.abs(pixels(path) - (share * known + (1 - share) * 255)).max() <= 1
    Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match=r"nothing\.png \(mode RGBA\) is transparent all over"):
        read_image(tmp_path / "nothing.png")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first(suffix: str, tmp_path: Path) -> None:
    first, second = (
        Image.fromarray(COLOUR).quantize(16).convert("RGB"),
        Image.new("RGB", (WIDTH, HEIGHT), "blue"),
    )
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], **options)
    assert np.array_equal(pixels(tmp_path / f"a.{suffix}"), np.asarray(first))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(10))
def test_images_are_turned_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # the bright quarter is up on the left
    undo = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2)}
    undo |= {6: np.rot90, 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, 3)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(undo.get(orientation, lambda a: a)(upright))
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(stored).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    assert np.abs(pixels(path) - upright).max() < 3
    for read in (read_image, read_size):
        read(path, size=(16, 32))
        word = f"EXIF orientation {orientation}" if orientation in range(2, 9) else "no EXIF orientation"
        with pytest.raises(
            ImageError, match=rf"turned\.{suffix} is 16 x 32 .* say 32 x 16: the sides are swapped.*{word}"
        ):
            read(path, size=(32, 16))
        with pytest.raises(ImageError, match=r"is 16 x 32 .* say 16 x 31; correct the annotation file"):
            read(path, size=(16, 31))


def test_a_damaged_exif_block_does_not_cost_the_image(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(
        tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f" + b"\x01" * 9
    )
    assert pixels(tmp_path / "a.jpg").shape == COLOUR.shape


@pytest.mark.parametrize("kind", SUFFIX)
def test_cut_short_is_an_error_or_changes_nothing(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{SUFFIX[kind]}"
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, kind)
    whole, known = path.read_bytes(), pixels(path)
    refused = 0
    for share in (0, 0.001, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        try:
            left = pixels(path)
        except ImageError:
            refused += 1
            for read in (read_image, read_size):
                with pytest.raises(ImageError, match=re.escape(f"{path} ")):
                    read(path)
        else:
            assert share > 0.5
            assert np.array_equal(left, known)
    assert refused >= (8 if kind not in ("TGA", "GIF") else 6)


@pytest.mark.filterwarnings("error")
def test_larger_than_pillows_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (300, 200)).save(tmp_path / "bomb.png")
    for limit in (10_000, 50_000):  # an error of Pillow's, and a warning, which is an error here
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match=r"bomb\.png is too large .*60000 pixels"):
            read_image(tmp_path / "bomb.png")


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("<!doctype html>\n" * 50)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "program.eps").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    expected = {
        "empty.jpg": r"is empty \(0 bytes\)",
        "text.jpg": "cannot be read as an image: no known format",
        "folder.jpg": "is a folder, not an image",
        "program.eps": "cannot be read as an image: no known format",
        "absent.jpg": "does not exist",
        "text.jpg/below.jpg": "cannot be read as an image",
    }
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe.jpg")
        (tmp_path / "zero.jpg").symlink_to("/dev/zero")
        expected |= {"pipe.jpg": "is a named pipe, not an image", "zero.jpg": "is a device, not an image"}
    for name, text in expected.items():
        for read in (read_image, read_size):
            with pytest.raises(ImageError, match=text) as caught:
                read(tmp_path / name)
            assert str(caught.value).startswith(str(tmp_path / name))
