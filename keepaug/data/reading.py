"""The one reader of image files: right RGB pixels, or an error that names the file and what it holds."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF", "TGA")
"""Pillow's names of what is read; not all that it knows: its EPS reader starts another program."""
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_ORIENTATION = 0x0112  # EXIF's tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)
_DEPTHS = (8, 10, 12, 14, 16)


class ImageError(ValueError):
    """A file that is no readable image, or whose values cannot be told; the text begins with the path."""


def read_image(path: str | Path, *, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture in a file as 8-bit RGB, upright.

    - EXIF's orientation is applied, here and therefore everywhere.
    - Of an animation or a file of several pages: the first.
    - Transparent parts show white, as on a page; a picture that is transparent all over is refused.
    - Grey of more than 8 bits, and 32-bit integers from 0 to 65535: 255 stands for the largest number of the
      smallest usual depth (8, 10, 12, 14 or 16 bits) that holds all values of the image.
    - Floating point: values within [0, 1] times 255, otherwise values within [0, 255] as they are, rounded.
    - CMYK, YCbCr and palettes are converted by Pillow. Everything else is refused.

    Args:
        path: of the file.
        size: the (height, width) that the upright image must have, for example an annotation's.

    Raises:
        ImageError: no regular file, empty, damaged, cut short, of another format than `FORMATS`, larger than
            Pillow's limit (`PIL.Image.MAX_IMAGE_PIXELS`, twice), values out of range, another size.
    """
    with _opened(path) as image:
        orientation = _orientation(image)  # before TIFF's reader has turned the image itself
        _compare(_upright_size(image, orientation), size, path, orientation)
        image.load()
        return _turn(_to_rgb(image), _orientation(image))


def read_part(
    path: str | Path, choose: Callable[[int, int], tuple[int, int, int, int]], *, detail: tuple[int, int]
) -> np.ndarray:
    """A part of what `read_image` returns; of a large JPEG at a half, a quarter or an eighth of its scale.

    At full scale simplejpeg decodes, where it is installed: the same pixels sooner, both being libjpeg-turbo.

    Args:
        path: of the file.
        choose: from (height, width) of the upright image to (top, left, height, width) of the part.
        detail: (height, width) in pixels that the reduced part has at least; twice what it will be resized
            to, so that the resizing decides the sharpness, as `PIL.Image.thumbnail` does.

    Returns:
        (h, w, 3) uint8; the part's edges to the nearest pixel of the reduced scale.

    Raises:
        ImageError: as `read_image`.
    """
    with _opened(path) as image:
        orientation = _orientation(image)
        height, width = _upright_size(image, orientation)
        part = choose(height, width)
        reduction = min(part[2] // detail[0], part[3] // detail[1])
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))  # JPEG alone
        elif image.format == "JPEG" and image.mode == "RGB" and orientation == 1:
            pixels = _decode_jpeg(Path(path).read_bytes())
            if pixels is not None:
                return pixels[part[0] : part[0] + part[2], part[1] : part[1] + part[3]]
        image.load()
        plain = image.mode == "RGB" and not image.has_transparency_data
        upright = _turn(image if plain else _to_rgb(image), _orientation(image))
        down, across = upright.height / height, upright.width / width
        top, left = round(part[0] * down), round(part[1] * across)
        bottom, right = round((part[0] + part[2]) * down), round((part[1] + part[3]) * across)
        return np.asarray(upright.crop((left, top, right, bottom)))


def read_size(path: str | Path, *, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """(height, width) of what `read_image` returns, or its error: the whole file is read.

    All of a JPEG's coefficients are decoded, but to an eighth of the scale, in half of the time.

    Args:
        path: of the file.
        size: as for `read_image`.

    Raises:
        ImageError: as `read_image`.
    """
    with _opened(path) as image:
        orientation = _orientation(image)
        found = _upright_size(image, orientation)
        _compare(found, size, path, orientation)
        image.draft(None, (1, 1))  # does nothing but for JPEG
        image.load()
        _to_rgb(image)
    return found


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Pillow's image of a regular file; whatever goes wrong until it is closed becomes an `ImageError`."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = next((name for test, name in _KINDS if test(status.st_mode)), "no regular file")
            raise ImageError(f"{path} is {kind}, not an image file")
        if status.st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes); copy it again, or remove it")
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path} cannot be read as an image: no known format ({', '.join(FORMATS)}), or values stored in "
            "a way that Pillow does not know; convert or remove it"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{path} is too large ({error}); make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if it is "
            f"meant"
        ) from error
    except Exception as error:  # damaged files raise a dozen types
        reason = str(error) or type(error).__name__
        raise ImageError(
            f"{path} cannot be read as an image, it is damaged or cut short ({reason}); replace or remove it"
        ) from error


def _decode_jpeg(content: bytes) -> np.ndarray | None:
    """(H, W, 3) uint8, or None where Pillow must decide: simplejpeg is absent, or the content unusual."""
    if simplejpeg is None:
        return None
    try:
        return simplejpeg.decode_jpeg(content)
    except ValueError:
        return None


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1, upright, where the mark is absent, damaged or of no meaning."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF blocks raise many types, and the pixels are good
        return 1
    return value if value in _UPRIGHT else 1


def _upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    width, height = image.size
    # Pillow's TIFF reader gives the upright size from the start.
    return (width, height) if orientation in _SWAPS_SIDES and image.format != "TIFF" else (height, width)


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _compare(
    found: tuple[int, int], expected: tuple[int, int] | None, path: str | Path, orientation: int
) -> None:
    if expected is None or found == tuple(expected):
        return
    text = f"{path} is {found[0]} x {found[1]} (height x width), "
    text += f"its annotations say {expected[0]} x {expected[1]}"
    if found == tuple(expected)[::-1]:
        marked = f"EXIF orientation {orientation}" if orientation != 1 else "no EXIF orientation"
        text += (
            f": the sides are swapped. The file has {marked}, and images are turned upright by it before "
            "boxes are used; annotate the upright image, or save the file upright without the EXIF mark"
        )
    else:
        text += "; correct the annotation file"
    raise ImageError(text)


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB by the rules of `read_image`."""
    mode = image.mode
    if mode == "I" or mode.startswith("I;16"):
        return _deep_grey(image)
    if mode == "F":
        return _float_grey(image)
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"), image)
    if mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"):
        return image.convert("RGB")
    raise ImageError(f"{_name(image)} holds pixels of mode {mode}; convert it to 8-bit RGB or grey")


def _on_white(image: Image.Image, original: Image.Image) -> Image.Image:
    opacity = np.asarray(image.getchannel("A"))
    if not opacity.any():
        raise ImageError(
            f"{_name(original)} (mode {original.mode}) is transparent all over: there is nothing to see; "
            f"save it without alpha"
        )
    if opacity.min() < 255:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    depth = next((depth for depth in _DEPTHS if high < 2**depth), None)
    if low < 0 or depth is None:
        raise ImageError(
            f"{_name(image)} (mode {image.mode}) holds integers from {low} to {high}; 0 to 65535 can be "
            "read: scale it and save it as 8-bit or 16-bit grey"
        )
    return _grey(values * (255 / (2**depth - 1)))


def _float_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # also of NaN
        raise ImageError(
            f"{_name(image)} (mode F) holds floating-point values from {low:g} to {high:g}; [0, 1] or [0, "
            "255] can be read: scale it and save it as 8-bit or 16-bit grey"
        )
    return _grey(values * 255 if high <= 1 else values)


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")


def _name(image: Image.Image) -> str:
    return str(getattr(image, "filename", "") or "the image")
