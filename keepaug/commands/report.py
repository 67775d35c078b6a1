"""Put all results below a folder into tables and one HTML page, beside the paper's numbers.

keepaug report runs --output report
keepaug report table1 --runs runs      one table of the paper, with what has been run and what has not
keepaug report runs --table 9          the same
keepaug report evidence --runs runs    docs/evidence.md anew, from docs/evidence and runs
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from keepaug.commands.known import recipes, results, tool
from keepaug.report import aggregate, fill_table, load_paper, write_report
from keepaug.report.evidence import collect, evidence_page, evidence_pictures, load_evidence
from keepaug.report.page import table_markdown
from keepaug.report.paper import NOT_RUN
from keepaug.runs.command import CommandParser, exit_code
from keepaug.runs.configs import CONFIGS
from keepaug.runs.files import write_text_atomic


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(__doc__)
    parser.add_argument(
        "what",
        metavar="runs|tableN|evidence",
        help="folder of run folders; table1, table1b ... table9; evidence",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="DIR",
        help="folder of run folders, after tableN (default runs) or evidence (whose results are copied from "
        "there)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for report.md and report.html, default report; evidence: default docs",
    )
    parser.add_argument("--table", help="only print this table of the paper beside ours (1, 1b, 2 ... 9)")
    return parser


def _table(number: str, runs: Path, *, must_exist: bool) -> str:
    """The table (1: both halves) beside what lies below `runs`, or the paper's numbers alone."""
    tables = {str(table["id"]): table for table in load_paper()}
    if number not in tables:
        raise ValueError(f"table {number}: the paper has {', '.join(tables)}")
    groups = aggregate(results(runs)) if must_exist or runs.is_dir() else []
    parts = [
        fill_table(tables[name], groups, recipes(name))
        for name in ([number, "1b"] if number == "1" else [number])
    ]
    text = "\n\n".join(table_markdown(part) for part in parts)
    missing = any(ours == NOT_RUN for part in parts for _, cells in part.rows for _, ours, _ in cells)
    if missing and number != "3":
        text += f"\n\nWhat is not run: keepaug reproduce {number} --dry-run root=DATA prints the commands."
    return text


def _evidence(runs: Path | None, output: Path) -> Path:
    """The page of the paired experiments, after keeping the results of planned runs below `runs`."""
    plan = load_evidence()
    wanted, kept = plan.wanted(tool, CONFIGS), output / "evidence"
    found = results(kept) if kept.is_dir() else []
    if runs is not None:
        for path in collect(plan, wanted, results(runs), found, kept):
            print(f"new: {path}")
        found = results(kept) if kept.is_dir() else []
    for name, picture in evidence_pictures(plan, wanted, found).items():
        write_text_atomic(kept / name, picture)
    return write_text_atomic(output / "evidence.md", evidence_page(plan, wanted, found))


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    named = re.fullmatch(r"table(\w+)", args.what)

    def act() -> int:
        if args.what == "evidence":
            print(_evidence(args.runs, args.output or CONFIGS.parent / "docs"))
        elif named and not Path(args.what).is_dir():
            print(_table(named[1], args.runs or Path("runs"), must_exist=args.runs is not None))
        elif args.table is not None:
            print(_table(args.table, Path(args.what), must_exist=True))
        else:
            output = args.output or Path("report")
            for path in write_report(Path(args.what), output, recipes=recipes, read=results):
                print(path)
        return 0

    return exit_code(act)
