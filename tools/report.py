"""Put all results below a folder into tables and one HTML page, beside the paper's numbers.

python tools/report.py runs --output report
python tools/report.py runs --table 9
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keepaug.report import aggregate, fill_table, load_paper, write_report
from keepaug.report.page import table_markdown
from keepaug.runs.result import read_results


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", type=Path, help="folder of run folders")
    parser.add_argument(
        "--output", type=Path, default=Path("report"), help="folder for report.md and report.html"
    )
    parser.add_argument(
        "--table", help="print this table of the paper beside ours (1, 1b, 2 ... 9) and write nothing"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        if args.table is not None:
            tables = {str(table["id"]): table for table in load_paper()}
            if args.table not in tables:
                raise ValueError(f"--table {args.table}; the paper has {', '.join(tables)}")
            print(table_markdown(fill_table(tables[args.table], aggregate(read_results(args.runs)))))
            return 0
        for path in write_report(args.runs, args.output):
            print(path)
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
