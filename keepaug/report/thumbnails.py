"""Pictures of runs, small enough for a page that holds them all."""

from __future__ import annotations

import base64
import io
from pathlib import Path

_SIDE = 1080  # pixels; a page is as wide, and letters of a sheet are read at that size
_QUALITY = 50


def thumbnail(path: str | Path) -> str | None:
    """A picture as the text of an `src`; None for a file that is none.

    Args:
        path: of the picture; it is shown at 1080 pixels at most, as WebP.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures in the report need pillow: pip install 'keepaug[report]'") from error
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as picture:
            small = picture.convert("RGB")
            small.thumbnail((_SIDE, 2 * _SIDE), Image.Resampling.LANCZOS)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=_QUALITY, method=6)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
