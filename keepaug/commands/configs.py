"""List the config files that come with the program, print one, or copy some to change them.

keepaug configs                              their names, each with its first line
keepaug configs reid                         those of re-identification
keepaug configs reid/r50_standard --print    its text
keepaug configs reid --copy-to my-configs    the files, with those that they start from
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from keepaug.runs.command import CommandParser, exit_code
from keepaug.runs.configs import CONFIGS, config_names
from keepaug.runs.errors import ConfigError
from keepaug.runs.files import write_text_atomic


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(__doc__)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="a folder or a config; default all")
    add("--print", action="store_true", dest="show", help="their text")
    add("--copy-to", type=Path, metavar="DIR", help="copy them there, into the same folders")
    return parser


def chosen(names: Sequence[str]) -> list[str]:
    """The configs that are named, by themselves or by their folder.

    Raises:
        ConfigError: a name that fits none.
    """
    known, found = config_names(), set()
    for name in names:
        plain = name.removeprefix("configs/").removesuffix(".yaml").rstrip("/")
        if not (fitting := {one for one in known if one == plain or one.startswith(f"{plain}/")}):
            folders = sorted({one.partition("/")[0] for one in known})
            raise ConfigError(f"no config {name}; folders are {', '.join(folders)}")
        found |= fitting
    return sorted(found) if names else known


def with_bases(path: Path) -> list[Path]:
    """The file and those that it starts from."""
    tree = yaml.safe_load(path.read_text()) or {}
    bases = tree.get("_base_", tree.get("_BASE_", []))
    bases = [bases] if isinstance(bases, str) else bases
    return [path, *(one for base in bases for one in with_bases((path.parent / base).resolve()))]


def summary(path: Path) -> str:
    """The first line of a config's header that is no command."""
    lines = re.findall(r"^# ?(.*)", path.read_text(), flags=re.MULTILINE)
    while lines and re.search(r"(train_detector\.py|keepaug train-|\\$)", lines[0]):
        lines = lines[1 + lines[0].endswith("\\") :]
    return lines[0] if lines else ""


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def act() -> int:
        names = chosen(args.names)
        paths = [CONFIGS.resolve() / f"{name}.yaml" for name in names]
        if args.copy_to is not None:
            sources = sorted({one for path in paths for one in with_bases(path)})
            targets = [args.copy_to / source.relative_to(CONFIGS.resolve()) for source in sources]
            if there := [str(target) for target in targets if target.exists()]:
                raise ConfigError(f"{', '.join(there)}: there already; choose another folder")
            for source, target in zip(sources, targets, strict=True):
                print(write_text_atomic(target, source.read_text()))
        elif args.show:
            print("\n".join(path.read_text() for path in paths), end="")
        else:
            width = max(map(len, names))
            for name, path in zip(names, paths, strict=True):
                print(f"{name:<{width}}  {summary(path)}")
        return 0

    return exit_code(act)
