"""The config files that come with the program, by name."""

from __future__ import annotations

import difflib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_PACKAGED, _CLONE = _PACKAGE / "configs", _PACKAGE.parent / "configs"
CONFIGS = _PACKAGED if _PACKAGED.is_dir() else _CLONE


def config_names() -> list[str]:
    """`reid/r50_bag_of_tricks_keep` and so on, sorted; those that others only start from are left out."""
    found = (path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))
    return sorted(name for name in found if not name.rpartition("/")[2].startswith("Base-"))


def find_config(given: str | Path) -> Path:
    """The file that is meant.

    Args:
        given: a path; or the name of a file that comes with the program: `reid/r50_bag_of_tricks_keep`, with
            or without `configs/` before it and `.yaml` behind it.

    Raises:
        FileNotFoundError: there is neither; names what is close.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return path
    name = path.as_posix().removeprefix("configs/")
    for packaged in (CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if not path.is_absolute() and packaged.is_file():
            return packaged
    names = config_names()
    close = difflib.get_close_matches(name.removesuffix(".yaml"), names, n=2)
    close = close or [one for one in names if one.rpartition("/")[2] == path.stem]
    hint = f"did you mean {' or '.join(close)}?" if close else "`keepaug configs` lists what there is"
    raise FileNotFoundError(f"no config file {given}; {hint}")
