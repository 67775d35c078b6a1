"""KeepAugment: augmentation that keeps what matters, from saliency to detection, re-identification and few
labels.

A command's module is imported when the command is called; any package can declare one of its own as an entry
point of the group `keepaug.commands`, a function of the arguments that returns the exit code.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

GROUP = "keepaug.commands"
_CLONE = Path(__file__).resolve().parents[1]


def commands() -> dict[str, EntryPoint]:
    """All commands by name: those of installed packages, and in a clone those of its pyproject.toml."""
    found = {one.name: one for one in importlib.metadata.entry_points(group=GROUP)}
    if (file := _CLONE / "pyproject.toml").is_file():
        declared = tomllib.loads(file.read_text())["project"]["entry-points"][GROUP]
        found |= {name: EntryPoint(name, value, GROUP) for name, value in declared.items()}
    return dict(sorted(found.items()))


def _remedy(command: EntryPoint, error: ImportError) -> str:
    """What is missing, and the extra that the command's package declares beside it: "module:main [extra]"."""
    package = command.dist.name if command.dist else "keepaug"
    needed = f"'{package}[{','.join(command.extras)}]'"
    return f"{error}: pip install {needed}" if command.extras else str(error)


def _overview(known: dict[str, EntryPoint]) -> str:
    lines = [f"usage: keepaug COMMAND ...\n\n{(__doc__ or '').partition(chr(10) * 2)[0]}\n\ncommands:"]
    for name, command in known.items():
        try:
            about = sys.modules[command.load().__module__].__doc__ or ""
            summary = " ".join(about.split("\n\n")[0].split())
        except ImportError as error:
            summary = f"({_remedy(command, error)})"
        lines.append(f"  {name:<17} {summary}")
    return "\n".join([*lines, "\nkeepaug COMMAND --help says more; keepaug configs lists settings' files."])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line `keepaug COMMAND ...`.

    Args:
        argv: command and its arguments; default the process's.

    Returns:
        The exit code: 2 for what cannot be meant, otherwise the command's.
    """
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    known = commands()
    if name in ("-h", "--help", "help"):
        print(_overview(known))
        return 0
    if name == "--version":
        from keepaug import __version__

        print(f"keepaug {__version__}")
        return 0
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        print(f"error: no command {name}; {hint}", file=sys.stderr)
        return 2
    if (_CLONE / "pyproject.toml").is_file():  # commands that start others: these find the same package
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(_CLONE), *filter(None, paths)]))
    sys.argv[0] = f"keepaug {name}"  # the name that argparse shows
    try:
        command = known[name].load()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        print(f"error: {_remedy(known[name], error)}", file=sys.stderr)
        return 2
    return int(command(rest))


if __name__ == "__main__":
    sys.exit(main())
