"""Write the API reference, from the docstrings: one page a module.

python tools/reference.py --output build/docs
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pkgutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("keepaug", "detection", "reid", "ssl_uda")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, default=Path("build/docs"), help="folder of the pages")
    return parser


def resolve(package: str) -> None:
    """Names that a package imports on first use are looked up now: the tool reads what is there."""
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        vars(module)[name] = getattr(module, name)
    for found in pkgutil.iter_modules(module.__path__, f"{package}."):
        if found.ispkg:
            resolve(found.name)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        import pdoc
    except ImportError:
        print("error: the reference needs pdoc: pip install 'keepaug[dev]'", file=sys.stderr)
        return 2
    absent = [] if importlib.util.find_spec("detectron2") else ["detection.detectron2_engine"]
    for name in absent:
        print(f"left out: {name} (Detectron2 is not installed)", file=sys.stderr)
    for package in PACKAGES:
        resolve(package)
    pdoc.render.configure(docformat="google", footer_text="keepaug", show_source=False)
    with warnings.catch_warnings():  # dataclasses' own __init__ does not know the names of its module
        warnings.filterwarnings("ignore", "Error parsing type annotation")
        for name in absent:  # pdoc tries it nevertheless, for the contents of its package
            warnings.filterwarnings("ignore", f"Couldn't import {name}")
        pdoc.pdoc(*PACKAGES, *(f"!{name}" for name in absent), output_directory=args.output)
    print(args.output / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
