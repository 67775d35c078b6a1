"""Paired experiments: the runs that were planned, and the page that says what came out of them."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keepaug.report.pairs import SETTLED, Pairs, compare
from keepaug.runs.files import write_text_atomic
from keepaug.runs.planning import Tool, differences
from keepaug.runs.result import FILE_NAME

try:
    import yaml
except ImportError as error:
    raise ImportError("the list of runs needs pyyaml: pip install 'keepaug[report]'") from error

__all__ = [
    "Evidence",
    "PlannedRun",
    "Question",
    "collect",
    "evidence_page",
    "evidence_pictures",
    "load_evidence",
    "of_run",
]


COMMAND = "keepaug reproduce lab root=CIFAR --output RUNS --missing"
AGAIN = "keepaug report evidence --runs RUNS"


@dataclass(frozen=True)
class PlannedRun:
    """Settings that are run with several seeds.

    Attributes:
        name: of the run.
        settings: on top of the config.
        core_minutes: processor time of one seed, one thread.
        added: why, where it was not planned from the beginning.
    """

    name: str
    settings: dict[str, Any]
    core_minutes: float
    added: str = ""


@dataclass(frozen=True)
class Question:
    """Runs that are compared.

    Attributes:
        id: a letter.
        title: the question.
        pairs: seeds that were planned.
        comparisons: names of two runs; the difference is the first minus the second.
        limits: what the answer does not show.
    """

    id: str
    title: str
    pairs: int
    comparisons: tuple[tuple[str, str], ...]
    limits: str

    @property
    def runs(self) -> list[str]:
        """Names, each once."""
        return list(dict.fromkeys(name for second in self.comparisons for name in reversed(second)))


@dataclass(frozen=True)
class Evidence:
    """The plan.

    Attributes:
        tool: that trains.
        config: its config, relative to `configs`.
        about: what the data and the recipe are, and what they are not.
        runs: by name.
        questions: the most informative first.
    """

    tool: str
    config: str
    about: str
    runs: dict[str, PlannedRun]
    questions: tuple[Question, ...]

    def order(self, questions: Sequence[str] = ()) -> list[tuple[PlannedRun, int]]:
        """Runs and seeds in the order in which pairs complete: question by question, seed by seed.

        Args:
            questions: ids; none means all.

        Raises:
            ValueError: an unknown question.
        """
        known = [question.id for question in self.questions]
        if unknown := sorted(set(questions) - set(known)):
            raise ValueError(f"the questions are {', '.join(known)}, got {', '.join(unknown)}")
        planned = {
            (name, seed): None
            for question in self.questions
            if not questions or question.id in questions
            for seed in range(question.pairs)
            for name in question.runs
        }
        return [(self.runs[name], seed) for name, seed in planned]

    def wanted(self, tool: Tool, configs: Path) -> dict[str, dict[str, Any]]:
        """The recipe of each run, by its name."""
        return {
            name: tool.recipe(
                tool.load(configs / self.config, [f"{key}={value}" for key, value in run.settings.items()])
            )
            for name, run in self.runs.items()
        }


def load_evidence(path: Path | None = None) -> Evidence:
    """Read the plan, `evidence.yaml` beside this module.

    Raises:
        ValueError: a comparison of runs that are not in the plan, or a run that no question asks for.
    """
    content = yaml.safe_load((path or Path(__file__).with_suffix(".yaml")).read_text())
    runs = {
        name: PlannedRun(name, dict(run["set"]), float(run["core_minutes"]), run.get("added", ""))
        for name, run in content["runs"].items()
    }
    questions = tuple(
        Question(
            str(one["id"]),
            one["title"],
            int(one["pairs"]),
            tuple(map(tuple, one["compare"])),
            one["limits"].strip(),
        )
        for one in content["questions"]
    )
    asked = {name for question in questions for name in question.runs}
    if asked != set(runs):
        raise ValueError(
            f"runs and comparisons of the plan do not fit: {', '.join(sorted(asked ^ set(runs)))}"
        )
    return Evidence(content["tool"], content["config"], content["about"].strip(), runs, questions)


def of_run(results: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """The results of one planned run, by seed: of the whole of it, on real data.

    Args:
        results: in today's terms, see `keepaug.runs.planning.in_todays_terms`.
        wanted: its recipe.

    Raises:
        ValueError: two results of one seed.
    """
    found: dict[int, Mapping[str, Any]] = {}
    for result in results:
        if result["synthetic"] or result["shortened"] or differences(result["recipe"], wanted):
            continue
        if result["seed"] in found:
            raise ValueError(
                f"two results of one run and seed {result['seed']}: {found[result['seed']]['folder']} and "
                f"{result['folder']}; keep the one that was run first"
            )
        found[result["seed"]] = result
    return found


def _paired(first: Mapping[int, Mapping[str, Any]], second: Mapping[int, Mapping[str, Any]]) -> Pairs:
    """Differences of accuracy; pairs share data and arithmetic.

    Raises:
        ValueError: a pair that differs in them.
    """
    for seed in set(first) & set(second):
        one, other = first[seed], second[seed]
        for key in ("dataset", "precision"):
            if one[key] != other[key]:
                raise ValueError(
                    f"{one['folder']} and {other['folder']} are no pair: {key} is {one[key]} and {other[key]}"
                )
    return compare(
        *({seed: run["metrics"]["accuracy"] for seed, run in runs.items()} for runs in (first, second))
    )


def evidence_page(
    plan: Evidence,
    wanted: Mapping[str, Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
) -> str:
    """The page in Markdown: every number of it comes from a result.

    Args:
        plan: of `load_evidence`.
        wanted: of `Evidence.wanted`.
        results: of `read_results`.
    """
    found = {name: of_run(results, one) for name, one in wanted.items()}
    parts = [
        _HEAD.format(config=plan.config, about=plan.about),
        *_answers(plan, found),
        *_planned(plan, found),
    ]
    for question in plan.questions:
        parts += ["", f"## ({question.id}) {question.title}", ""]
        parts += _differences(question, found)
        if _picture(question, found):
            parts += ["", f"![Mean differences and their 95 % intervals](evidence/{question.id}.svg)"]
        parts += ["", *_accuracies(question, found), "", f"What it does not show: {question.limits}"]
    parts += ["", *_made_with(found)]
    return "\n".join(line for part in parts for line in _wrapped(part)) + "\n"


def _wrapped(part: str) -> list[str]:
    """Paragraphs as long as a line may be; tables and pictures as they are."""
    lines: list[str] = []
    for paragraph in part.split("\n\n"):
        whole = paragraph.startswith(("|", "![", "#")) or "\n|" in paragraph
        text = paragraph if whole else textwrap.fill(" ".join(paragraph.split()), 110)
        lines += ["", *text.split("\n")] if lines else text.split("\n")
    return lines


def evidence_pictures(
    plan: Evidence, wanted: Mapping[str, Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """SVG by file name, one for each question that has a pair: mean differences and their intervals.

    Args:
        plan: of `load_evidence`.
        wanted: of `Evidence.wanted`.
        results: of `read_results`.
    """
    found = {name: of_run(results, one) for name, one in wanted.items()}
    drawn = {f"{question.id}.svg": _picture(question, found) for question in plan.questions}
    return {name: picture for name, picture in drawn.items() if picture}


_HEAD = """# Evidence: does keeping help?

Each difference is the mean over pairs of runs that share the seed: initial weights, order of the images, crops, and the
draws of regions wherever both may use them. The interval is Student's, 95 %; one that holds zero decides nothing, and one
pair has none. "Still needed" is the number of pairs to add until the interval is no wider than ± 0.2 points, if the spread
stays. Accuracy is on all 10,000 test images, of the last weights. The recipe is `configs/{config}`.

{about}
"""


def _answers(plan: Evidence, found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    lines = ["## Answers so far", ""]
    for question in plan.questions:
        said = [
            _said(first, second, _paired(found[first], found[second]))
            for first, second in question.comparisons
        ]
        decided = [sentence for sentence in said if sentence]
        answer = " ".join(decided) or "Nothing is decided yet."
        lines.append(f"- **({question.id}) {question.title}** {answer}")
    return lines


def _said(first: str, second: str, pairs: Pairs) -> str:
    """A sentence where the interval leaves zero out or is as narrow as planned; nothing elsewhere."""
    if len(pairs) < 2:
        return ""
    half = pairs.half_width()
    if abs(pairs.mean) > half:
        return f"{first} is {'better' if pairs.mean > 0 else 'worse'} than {second} ({pairs})."
    if half <= SETTLED:
        return f"{first} and {second} differ by less than can be told ({pairs})."
    return ""


def _planned(plan: Evidence, found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    lines = ["", "## Planned", ""]
    lines.append("Decided before any result was seen; what was added later says so.")
    lines += ["", "| run | settings | questions | seeds done | seeds planned |", "|---|---|---|---|---|"]
    for name, run in plan.runs.items():
        asking = [question for question in plan.questions if name in question.runs]
        settings = ", ".join(f"{key}={value}" for key, value in run.settings.items())
        wanted = max(question.pairs for question in asking)
        note = f" (added: {run.added})" if run.added else ""
        letters = ", ".join(question.id for question in asking)
        lines.append(f"| {name}{note} | {settings} | {letters} | {len(found[name])} | {wanted} |")
    left = [(run, seed) for run, seed in plan.order() if seed not in found[run.name]]
    hours = sum(run.core_minutes for run, _ in left) / 60
    lines += [
        "",
        f"{len(left)} runs are missing, about {hours:.0f} core-hours: `{COMMAND}` goes on with them",
        f"and `{AGAIN}` writes this page anew.",
    ]
    return lines


def _differences(question: Question, found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    lines = ["| difference | points of accuracy | pairs | still needed |", "|---|---|---|---|"]
    for first, second in question.comparisons:
        pairs = _paired(found[first], found[second])
        needed = pairs.still_needed()
        shown = str(pairs).partition("], ")[0] + "]" if len(pairs) > 1 else str(pairs).partition(",")[0]
        lines.append(
            f"| {first} - {second} | {shown} | {len(pairs)} of {question.pairs} | "
            f"{'not known' if needed is None else needed} |"
        )
    return lines


def _accuracies(question: Question, found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    lines = ["| run | accuracy (%) | seeds | core-minutes |", "|---|---|---|---|"]
    for name in question.runs:
        runs = list(found[name].values())
        values = [run["metrics"]["accuracy"] for run in runs]
        minutes = [run["extra"]["cpu_time_s"] / 60 for run in runs if "cpu_time_s" in run["extra"]]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        accuracy = f"{statistics.mean(values):.2f}{spread}" if values else "-"
        cost = f"{statistics.mean(minutes):.1f}" if minutes else "-"
        lines.append(f"| {name} | {accuracy} | {len(values)} | {cost} |")
    return lines


_ROW, _LEFT, _WIDE = 26, 430, 330  # pixels: of a row, of the names, of the scale


def _picture(question: Question, found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """A row for each comparison: a point, and a line where there is an interval; "" without any pair."""
    pairs = {both: _paired(found[both[0]], found[both[1]]) for both in question.comparisons}
    known = [one for one in pairs.values() if len(one)]
    if not known:
        return ""
    ends = [abs(one.mean) + (one.half_width() if len(one) > 1 else 0) for one in known]
    most = max(0.5, *(end for end in ends if end < 10)) if any(end < 10 for end in ends) else 10.0
    height = _ROW * len(pairs) + 44

    def across(value: float) -> float:
        return round(_LEFT + _WIDE * (1 + max(-1.0, min(1.0, value / most))) / 2, 1)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDE + 20} {height}" font-family="sans-serif" '
        'font-size="12" fill="#6b7280" stroke="none">',
        f'<line x1="{across(0)}" y1="6" x2="{across(0)}" y2="{height - 34}" stroke="#9ca3af"/>',
    ]
    for row, ((first, second), one) in enumerate(pairs.items()):
        y = _ROW * row + 20
        lines.append(f'<text x="{_LEFT - 12}" y="{y + 4}" text-anchor="end">{first} - {second}</text>')
        if len(one) > 1:
            low, high = one.mean - one.half_width(), one.mean + one.half_width()
            lines.append(
                f'<line x1="{across(low)}" y1="{y}" x2="{across(high)}" y2="{y}" stroke="#0f766e" stroke-width="3"/>'
            )
        if len(one):
            lines.append(f'<circle cx="{across(one.mean)}" cy="{y}" r="4.5" fill="#0f766e"/>')
    for value in (-most, 0.0, most):
        lines.append(f'<text x="{across(value)}" y="{height - 18}" text-anchor="middle">{value:+.1f}</text>')
    lines.append(
        f'<text x="{across(0)}" y="{height - 4}" text-anchor="middle">points of accuracy, 95 % intervals</text>'
    )
    return "\n".join([*lines, "</svg>"]) + "\n"


def _made_with(found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    runs = [run for by_seed in found.values() for run in by_seed.values()]
    if not runs:
        return ["No run is finished."]
    processors = sorted({run["hardware"]["cpu"] for run in runs})
    versions = sorted({f"torch {run['packages']['torch']}" for run in runs})
    data = sorted({f"{run['dataset']['name']}, checksum {run['dataset']['checksum'][:12]}" for run in runs})
    hours = sum(run["extra"].get("cpu_time_s", 0) for run in runs) / 3600
    return [
        "## Made with",
        "",
        f"{len(runs)} runs, {hours:.1f} core-hours on {'; '.join(processors)}; {'; '.join(versions)}; data: "
        f"{'; '.join(data)}.",
    ]


def collect(
    plan: Evidence,
    wanted: Mapping[str, Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    folder: Path,
) -> list[Path]:
    """Keep the result files of planned runs, `folder/RUN/seedN/result.json`; what is there already stays.

    Args:
        plan: of `load_evidence`.
        wanted: of `Evidence.wanted`.
        results: of `read_results`.
        folder: of the kept files.

    Returns:
        The new files.
    """
    new = []
    for name in plan.runs:
        for seed, result in of_run(results, wanted[name]).items():
            kept = folder / name / f"seed{seed}" / FILE_NAME
            if not kept.is_file():
                kept.parent.mkdir(parents=True, exist_ok=True)
                new.append(write_text_atomic(kept, (Path(result["folder"]) / FILE_NAME).read_text()))
    return new
