"""Print what makes a shell complete commands, options and settings (needs shtab).

keepaug completion bash > ~/.local/share/bash-completion/completions/keepaug
keepaug completion zsh > ~/.zsh/completions/_keepaug        a folder of $fpath
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from keepaug.runs.command import CommandParser, exit_code


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(__doc__)
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="whose")
    return parser


def all_commands() -> argparse.ArgumentParser:
    """One parser of all commands, with the names of their settings."""
    from keepaug.__main__ import commands

    whole = argparse.ArgumentParser(prog="keepaug")
    parts = whole.add_subparsers()
    for name, command in commands().items():
        own: CommandParser = importlib.import_module(command.module).build_parser()
        for action in own._actions:
            if action.dest == "overrides" and own.settings:
                action.choices = [f"{key}=" for key in own.settings]
        parts.add_parser(name, parents=[own], add_help=False, help=(own.description or "").partition("\n")[0])
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def act() -> int:
        try:
            import shtab
        except ImportError as error:
            raise ImportError("completion needs shtab: pip install 'keepaug[completion]'") from error
        print(shtab.complete(all_commands(), args.shell))
        return 0

    return exit_code(act)
