"""The table of outcomes, and the page that it stands on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from keepaug.runs.files import write_text_atomic
from trust_checks.processes import COLUMNS, REFUSED, RIGHT, Outcome

BEGIN, END = "<!-- table -->", "<!-- end of table -->"


def bad(outcome: Outcome) -> bool:
    """In one of the columns that should hold zeros."""
    return outcome.column not in (RIGHT, REFUSED)


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a row for each kind, and the sum."""
    kinds = list(dict.fromkeys(outcome.kind for outcome in outcomes))
    counts = Counter((outcome.kind, outcome.column) for outcome in outcomes)
    rows = [["kind", "tried", *COLUMNS], ["---", *["---:"] * (1 + len(COLUMNS))]]
    for kind in sorted(kinds):
        found = [counts[kind, column] for column in COLUMNS]
        rows.append([kind, f"{sum(found):,}", *map(str, found)])
    sums = Counter(outcome.column for outcome in outcomes)
    rows.append(["all", f"{len(outcomes):,}", *(f"{sums[column]:,}" for column in COLUMNS)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def page(path: Path, outcomes: Sequence[Outcome], *, minutes: float, jobs: int, seed: int) -> Path:
    """Put the table into the page, between its marks.

    Raises:
        ValueError: the page has no marks.
    """
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no {BEGIN} and {END} to put the table between")
    call = f"`python tools/trust.py --seed {seed} --jobs {jobs}`"
    said = f"{call}: {len(outcomes):,} cases, {minutes:.0f} minutes."
    worst = "\n".join(f"- {one.column}: {one.kind}, {one.name}: {one.detail}" for one in outcomes if bad(one))
    middle = "\n\n".join(part for part in (said, table(outcomes), worst) if part)
    return write_text_atomic(path, f"{before}{BEGIN}\n{middle}\n{END}{after}")
