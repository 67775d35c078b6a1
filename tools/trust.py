"""Break runs and files in every way we know, and count what came of it; docs/trust.md is its page.

    python tools/trust.py                      all of it: 20 to 25 minutes on two free cores
    python tools/trust.py --write docs/trust.md
    python tools/trust.py --share 0.1          a tenth of the cases, as the tests run it
    python tools/trust.py --only SIGKILL fuzz  rows whose name has one of these words

Exit code 0 where nothing was silently wrong, half-written, hanging or a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from trust_checks.processes import COLUMNS, Outcome, run_all
from trust_checks.table import bad, page, table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "trust.md"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--share", type=float, default=1.0, help="of the cases, above 0 up to 1; default all")
    add("--only", nargs="+", default=[], metavar="WORD", help="rows whose name has one of these words")
    add("--seed", type=int, default=0, help="of the moments and of the damage")
    add("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="cases at a time; default 2")
    add("--minutes", type=float, default=1e9, help="stop after so many: the cases come in a drawn order")
    add("--write", type=Path, metavar="FILE", help=f"also put the table into this page ({PAGE.name})")
    return parser


def try_all(
    folder: Path,
    *,
    share: float,
    only: Sequence[str],
    seed: int,
    jobs: int,
    minutes: float = 1e9,
) -> list[Outcome]:
    """Every case, or a share of them, in an empty folder; each bad one is printed as it comes."""
    from trust_checks.cases import all_cases

    start = time.monotonic()
    cases = all_cases(folder, share=share, only=only, seed=seed)
    outcomes: list[Outcome] = []
    for outcome in run_all(cases, folder / "cases", jobs=jobs):
        outcomes.append(outcome)
        if bad(outcome):
            print(f"{outcome.column}: {outcome.kind}: {outcome.name}: {outcome.detail}", flush=True)
        late = time.monotonic() - start > 60 * minutes
        if late or len(outcomes) % 200 == 0:
            print(f"{len(outcomes)} of {len(cases)} in {time.monotonic() - start:.0f} s", flush=True)
        if late:
            break
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trust-") as folder:
        os.environ["KEEPAUG_CACHE"] = str(Path(folder) / "cache")
        outcomes = try_all(
            Path(folder),
            share=args.share,
            only=args.only,
            seed=args.seed,
            jobs=args.jobs,
            minutes=args.minutes,
        )
    print(table(outcomes))
    counts = Counter(outcome.column for outcome in outcomes)
    minutes = (time.monotonic() - start) / 60
    print(f"\n{len(outcomes)} cases in {minutes:.1f} minutes")
    if args.write is not None:
        page(args.write, outcomes, minutes=minutes, jobs=args.jobs, seed=args.seed)
    return int(any(counts[column] for column in COLUMNS[2:]))


if __name__ == "__main__":
    sys.exit(main())
