"""Paired experiments: the runs that were planned, and the page that says what came out of them."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from keepaug.report.aggregate import Group, machine
from keepaug.report.cells import Wanted
from keepaug.report.pairs import SETTLED, Pairs, compare
from keepaug.runs.files import write_text_atomic
from keepaug.runs.planning import Tool, differences
from keepaug.runs.result import FILE_NAME

try:
    import yaml
except ImportError as error:
    raise ImportError("the list of runs needs pyyaml: pip install 'keepaug[report]'") from error

COMMAND = "keepaug reproduce lab root=CIFAR bccd=BCCD nyala=NYALA --output RUNS --missing"
AGAIN = "keepaug report evidence --runs RUNS"
DATA = {"train_detector": "bccd", "train_reid": "nyala"}
"""The setting that names the folder of a tool's data; the others' is root, CIFAR-10."""
_Seeds: TypeAlias = Mapping[int, Sequence[Mapping[str, Any]]]  # results by seed, one of each machine
_Found: TypeAlias = Mapping[str, _Seeds]  # by run
_Pair: TypeAlias = tuple[Mapping[str, Any], Mapping[str, Any]]
_Place: TypeAlias = tuple[str, str, str, str]  # machine, processor, version of torch, detection engine


@dataclass(frozen=True)
class PlannedRun:
    """Settings that are run with several seeds.

    Attributes:
        name: of the run.
        tool: that trains.
        config: its config, relative to `configs`.
        settings: on top of the config.
        core_minutes: processor time of one seed, one thread.
        metric: of its result that is compared.
        after: the planned run of the same seed whose network it starts from; empty: random weights.
        added: why, where it was not planned from the beginning.
    """

    name: str
    tool: str
    config: str
    settings: dict[str, Any]
    core_minutes: float
    metric: str = "accuracy"
    after: str = ""
    added: str = ""


@dataclass(frozen=True)
class Comparison:
    """The difference of two runs, the first minus the second.

    Attributes:
        first: name of a run.
        second: name of another.
        what: they differ in, as the subject of a sentence.
    """

    first: str
    second: str
    what: str

    def __str__(self) -> str:
        return f"{self.first} - {self.second}"


@dataclass(frozen=True)
class Question:
    """Runs that are compared.

    Attributes:
        id: a letter.
        title: the question.
        pairs: seeds that were planned.
        comparisons: that answer it.
        limits: what the answer does not show.
    """

    id: str
    title: str
    pairs: int
    comparisons: tuple[Comparison, ...]
    limits: str

    @property
    def runs(self) -> list[str]:
        """Names, each once."""
        return list(dict.fromkeys(name for one in self.comparisons for name in (one.second, one.first)))


@dataclass(frozen=True)
class Evidence:
    """The plan.

    Attributes:
        about: what the data and the recipe are, and what they are not.
        runs: by name.
        questions: the most informative first.
    """

    about: str
    runs: dict[str, PlannedRun]
    questions: tuple[Question, ...]

    def order(self, questions: Sequence[str] = ()) -> list[tuple[PlannedRun, int]]:
        """Runs and seeds in the order in which pairs complete: question by question, seed by seed; what a run
        starts from comes before it.

        Args:
            questions: ids; none means all.

        Raises:
            ValueError: an unknown question.
        """
        known = [question.id for question in self.questions]
        if unknown := sorted(set(questions) - set(known)):
            raise ValueError(f"the questions are {', '.join(known)}, got {', '.join(unknown)}")
        planned = {
            (one, seed): None
            for question in self.questions
            if not questions or question.id in questions
            for seed in range(question.pairs)
            for name in question.runs
            for one in (self.runs[name].after, name)
            if one
        }
        return [(self.runs[name], seed) for name, seed in planned]

    def missing(self, found: _Found, questions: Sequence[str] = ()) -> list[tuple[PlannedRun, int]]:
        """Of `order`, the runs of comparisons that have no pair of that seed yet, and what they start from.

        Args:
            found: of `of_run`, by run.
            questions: ids; none means all.
        """
        open_ = {
            (name, seed)
            for question in self.questions
            if not questions or question.id in questions
            for seed in range(question.pairs)
            for one in question.comparisons
            if not _pairs_of_seed(found[one.first].get(seed, ()), found[one.second].get(seed, ()))
            for run in (self.runs[one.first], self.runs[one.second])
            for name in (run.name, run.after)
        }
        return [(run, seed) for run, seed in self.order(questions) if (run.name, seed) in open_]

    def metric(self, question: Question) -> str:
        """What its runs are compared by; one for all of them."""
        return self.runs[question.runs[0]].metric

    def wanted(self, tool_of: Callable[[str], Tool], configs: Path) -> dict[str, Wanted]:
        """What a result must be to be one of a run, by the run's name."""

        def recipe(run: PlannedRun) -> dict[str, Any]:
            tool = tool_of(run.tool)
            given = [f"{key}={value}" for key, value in run.settings.items()]
            return tool.recipe(tool.load(configs / run.config, given))

        return {
            name: Wanted(recipe(run), recipe(self.runs[run.after]) if run.after else None)
            for name, run in self.runs.items()
        }


def load_evidence(path: Path | None = None) -> Evidence:
    """Read the plan, `evidence.yaml` beside this module.

    Raises:
        ValueError: a comparison of runs that are not in the plan or of different things, or a run that no
            question asks for.
    """
    content = yaml.safe_load((path or Path(__file__).with_suffix(".yaml")).read_text())
    runs = {
        name: PlannedRun(name=name, **{**group["shared"], **run})
        for group in content["runs"]
        for name, run in group["each"].items()
    }
    questions = tuple(
        Question(
            str(one["id"]),
            one["title"],
            int(one["pairs"]),
            tuple(Comparison(*each) for each in one["compare"]),
            one["limits"].strip(),
        )
        for one in content["questions"]
    )
    asked = {name for question in questions for name in question.runs}
    needed = asked | {runs[name].after for name in asked & set(runs)} - {""}
    if needed != set(runs):
        raise ValueError(
            f"runs and comparisons of the plan do not fit: {', '.join(sorted(needed ^ set(runs)))}"
        )
    for question in questions:
        if len(shared := {(runs[name].tool, runs[name].metric) for name in question.runs}) > 1:
            raise ValueError(f"question {question.id} of the plan compares {sorted(shared)}")
    return Evidence(content["about"].strip(), runs, questions)


def of_run(results: Sequence[Mapping[str, Any]], wanted: Wanted) -> dict[int, list[Mapping[str, Any]]]:
    """The results of one planned run, by its seed: of the whole of it, on real data, and where it starts from
    another planned run, from that run of the same number. A seed that was run on several machines has one of
    each, the first that was run first.

    Args:
        results: in today's terms, see `keepaug.runs.planning.in_todays_terms`.
        wanted: of `Evidence.wanted`.

    Raises:
        ValueError: two results of one seed and machine.
    """
    found: dict[int, list[Mapping[str, Any]]] = {}
    for result in sorted(results, key=_created):
        if not Group([dict(result)]).comparable or differences(result.get("recipe", {}), wanted.recipe):
            continue
        if _built_otherwise(result, wanted.backbone):
            continue
        same = found.setdefault(_number(result), [])
        if twin := next((one for one in same if _place(one) == _place(result)), None):
            raise ValueError(
                f"two results of one run and seed {result['seed']} on one machine: {twin['folder']} and "
                f"{result['folder']}; keep the one that was run first"
            )
        same.append(result)
    return found


def _created(result: Mapping[str, Any]) -> str:
    return str(result["created"])


def _place(result: Mapping[str, Any]) -> _Place:
    """What two runs must share beside their seed, or they differ by more than their methods."""
    engine = result.get("engine") or ""
    return machine(result), result["hardware"]["cpu"], result["packages"]["torch"], engine


def _built_otherwise(result: Mapping[str, Any], backbone: Mapping[str, Any] | None) -> bool:
    """Whether a run starts from anything but the run of this recipe and of its own number."""
    origin = result.get("started_from") or {}
    if backbone is None:
        return bool(origin)
    below = origin.get("provenance") or {}
    return bool(differences(below.get("recipe", {}), backbone)) or _number(result) != _number(below)


def _number(result: Mapping[str, Any]) -> int:
    """Of the pair that a result belongs to; a detector's seeds begin at 1, since its 0 is "not seeded"."""
    return int(result["seed"]) - (result["kind"] == "detection")


@dataclass(frozen=True)
class _Paired:
    """Pairs of a comparison, each of one machine.

    Attributes:
        pairs: one of each seed, of the machine that has most seeds (of those, that ran first) if it has it.
        machines: that they are of.
        again: what else there is, by machine.
    """

    pairs: Pairs
    machines: tuple[str, ...]
    again: tuple[tuple[str, Pairs], ...]

    def __str__(self) -> str:
        return "; ".join([str(self.pairs), *(f"again on {name}: {one}" for name, one in self.again)])


def _pairs_of_seed(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> dict[_Place, _Pair]:
    """By machine."""
    other = {_place(one): one for one in second}
    return {_place(one): (one, other[_place(one)]) for one in first if _place(one) in other}


def _paired(metric: str, first: _Seeds, second: _Seeds) -> _Paired:
    """Differences of a metric; pairs share machine, engine, data and arithmetic.

    Raises:
        ValueError: a pair that differs in them.
    """
    places: dict[_Place, dict[int, _Pair]] = {}
    for seed in sorted(set(first) & set(second)):
        for place, pair in _pairs_of_seed(first[seed], second[seed]).items():
            _check_pair(*pair)
            places.setdefault(place, {})[seed] = pair

    def rank(place: _Place) -> tuple[int, str]:
        return -len(places[place]), min(max(map(_created, pair)) for pair in places[place].values())

    chosen: dict[int, _Pair] = {}
    machines: list[str] = []
    again: list[tuple[str, Pairs]] = []
    for place in sorted(places, key=rank):
        rest = {seed: pair for seed, pair in places[place].items() if seed in chosen}
        if len(rest) < len(places[place]):
            machines.append(_short(place))
        if len(rest) > 1:
            again.append((_short(place), _compared(metric, rest)))
        chosen = places[place] | chosen
    return _Paired(_compared(metric, chosen), tuple(machines), tuple(again))


def _compared(metric: str, pairs: Mapping[int, _Pair]) -> Pairs:
    first, second = ({seed: pair[side]["metrics"][metric] for seed, pair in pairs.items()} for side in (0, 1))
    return compare(first, second)


def _short(place: _Place) -> str:
    """As in "AMD EPYC" or "NVIDIA H100 80GB HBM3, torchvision"."""
    computing, processor, _, engine = place
    return ", ".join(filter(None, (computing.removeprefix("1 x ").replace("CPU", processor), engine)))


def _check_pair(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    for key in ("dataset", "precision"):
        if one.get(key) != other.get(key):
            raise ValueError(
                f"{one['folder']} and {other['folder']} are no pair: {key} is {one.get(key)} and "
                f"{other.get(key)}"
            )
    below = [(run.get("started_from") or {}).get("provenance", {}).get("dataset") for run in (one, other)]
    if all(below) and below[0] != below[1]:
        raise ValueError(
            f"{one['folder']} and {other['folder']} are no pair: what they start from saw {below[0]} and "
            f"{below[1]}"
        )


def evidence_page(plan: Evidence, wanted: Mapping[str, Wanted], results: Sequence[Mapping[str, Any]]) -> str:
    """The page in Markdown: every number of it comes from a result.

    Args:
        plan: of `load_evidence`.
        wanted: of `Evidence.wanted`.
        results: of `read_results`.
    """
    found = {name: of_run(results, one) for name, one in wanted.items()}
    intervals = sum(len(question.comparisons) for question in plan.questions)
    head = _HEAD.format(about=plan.about, intervals=intervals)
    parts = [head, *_answers(plan, found), *_planned(plan, found)]
    for question in plan.questions:
        parts += ["", f"## ({question.id}) {question.title}", "", _command(plan, question, found), ""]
        parts += _differences(plan, question, found)
        if _picture(plan, question, found):
            parts += ["", f"![Mean differences and their 95 % intervals](evidence/{question.id}.svg)"]
        parts += ["", *_values(plan, question, found), "", f"What it does not show: {question.limits}"]
    parts += ["", *_made_with(found)]
    return "\n".join(line for part in parts for line in _wrapped(part)) + "\n"


def _wrapped(part: str) -> list[str]:
    """Paragraphs as long as a line may be; tables and pictures as they are."""
    lines: list[str] = []
    for paragraph in part.split("\n\n"):
        whole = paragraph.startswith(("|", "![", "#")) or "\n|" in paragraph
        text = paragraph if whole else textwrap.fill(" ".join(paragraph.split()), 110, break_on_hyphens=False)
        lines += ["", *text.split("\n")] if lines else text.split("\n")
    return lines


def evidence_pictures(
    plan: Evidence, wanted: Mapping[str, Wanted], results: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """SVG by file name, one for each question that has a pair: mean differences and their intervals.

    Args:
        plan: of `load_evidence`.
        wanted: of `Evidence.wanted`.
        results: of `read_results`.
    """
    found = {name: of_run(results, one) for name, one in wanted.items()}
    drawn = {f"{question.id}.svg": _picture(plan, question, found) for question in plan.questions}
    return {name: picture for name, picture in drawn.items() if picture}


_HEAD = """# Evidence: does keeping help?

Each difference is the mean over pairs of runs that share the seed: initial weights, order of the images, crops, and the
draws of regions wherever both may use them. The interval is Student's, 95 %; one that holds zero decides nothing, and one
pair has none. One in twenty such intervals misses what it is for; {intervals} are planned. "Still needed" is the number of pairs to add until the interval is no wider than ± 0.2 points, if the spread
stays. CIFAR-10's accuracy is on all 10,000 test images, of the last weights. Core-minutes are the processor's,
of a GPU's host where a GPU computed.

{about}
"""


def _answers(plan: Evidence, found: _Found) -> list[str]:
    lines = ["", "## Answers so far", ""]
    for question in plan.questions:
        decided: list[str] = []
        undecided: list[str] = []
        for one in question.comparisons:
            paired = _paired(plan.metric(question), found[one.first], found[one.second])
            if verdict := _verdict(paired.pairs):
                decided.append(f"{one.what} {verdict} ({paired})")
            else:
                undecided.append(one.what)
        if decided and undecided:
            decided.append(f"not decided yet ({'; '.join(undecided)})")
        answer = "; ".join(decided) or "nothing is decided yet"
        lines.append(f"- **({question.id}) {question.title}** {answer[0].upper()}{answer[1:]}.")
    return lines


def _verdict(pairs: Pairs) -> str:
    """A verb where the interval leaves zero out or is as narrow as planned; nothing elsewhere."""
    if len(pairs) < 2:
        return ""
    half = pairs.half_width()
    if abs(pairs.mean) > half:
        return "helps" if pairs.mean > 0 else "hurts"
    if half <= SETTLED:
        return f"changes less than {abs(pairs.mean) + half:.2f}"
    return ""


def _planned(plan: Evidence, found: _Found) -> list[str]:
    lines = ["", "## Planned", ""]
    lines.append("Decided before any result of the question was seen; what was added later says so.")
    lines += [
        "",
        "| run | config and settings | questions | seeds done | seeds planned |",
        "|---|---|---|---|---|",
    ]
    for name, run in plan.runs.items():
        above = {name, *(other.name for other in plan.runs.values() if other.after == name)}
        asking = [question for question in plan.questions if above & set(question.runs)]
        given = [f"{key}={value}" for key, value in run.settings.items()]
        settings = ", ".join([run.config, *given, *([f"on {run.after}"] if run.after else [])])
        wanted = max(question.pairs for question in asking)
        note = f" (added: {run.added})" if run.added else ""
        letters = ", ".join(question.id for question in asking)
        lines.append(f"| {name}{note} | {settings} | {letters} | {len(found[name])} | {wanted} |")
    here = [_place(one) for one in sorted(_all(found), key=_created)[-1:]]  # where the last run was
    left = [
        (run, seed)
        for run, seed in plan.missing(found)
        if not any(_place(one) in here for one in found[run.name].get(seed, ()))
    ]
    hours = sum(run.core_minutes for run, _ in left) / 60
    lines += [
        "",
        f"{len(left)} runs are missing, about {hours:.0f} core-hours: `{COMMAND}` goes on with them",
        f"and `{AGAIN}` writes this page anew.",
    ]
    return lines


def _command(plan: Evidence, question: Question, found: _Found) -> str:
    """What makes a question's runs, and what they took."""
    order = plan.order([question.id])
    folders = dict.fromkeys(DATA.get(run.tool, "root") for run, _ in order)
    given = " ".join(f"{name}={'CIFAR' if name == 'root' else name.upper()}" for name in folders)
    done = [found[run.name][seed] for run, seed in order if seed in found[run.name]]
    hours = sum(run["extra"].get("cpu_time_s", 0) for same in done for run in same) / 3600
    return (
        f"`keepaug reproduce lab {given} --only {question.id} --output RUNS`: {len(done)} of {len(order)} runs "
        f"are done and took {hours:.1f} core-hours."
    )


def _differences(plan: Evidence, question: Question, found: _Found) -> list[str]:
    metric = plan.metric(question)
    lines = [f"| difference | points of {metric} | pairs | still needed | on |", "|---|---|---|---|---|"]
    for one in question.comparisons:
        paired = _paired(metric, found[one.first], found[one.second])
        pairs, needed = paired.pairs, paired.pairs.still_needed()
        lines.append(
            f"| {one} | {_interval(pairs)} | {len(pairs)} of {question.pairs} | "
            f"{'not known' if needed is None else needed} | {', '.join(paired.machines) or '-'} |"
        )
        lines += [
            f"| the same again | {_interval(pairs)} | {len(pairs)} | | {name} |"
            for name, pairs in paired.again
        ]
    return lines


def _interval(pairs: Pairs) -> str:
    return str(pairs).partition("], ")[0] + "]" if len(pairs) > 1 else "-"


def _values(plan: Evidence, question: Question, found: _Found) -> list[str]:
    metric = plan.metric(question)
    lines = [f"| run | {metric} (%) | seeds | core-minutes | on |", "|---|---|---|---|---|"]
    for name in question.runs:
        places: dict[_Place, list[Mapping[str, Any]]] = {}
        for run in (run for same in found[name].values() for run in same):
            places.setdefault(_place(run), []).append(run)
        if not places:
            lines.append(f"| {name} | - | 0 | - | - |")
        for place, runs in places.items():
            values = [run["metrics"][metric] for run in runs]
            minutes = [run["extra"]["cpu_time_s"] / 60 for run in runs if "cpu_time_s" in run["extra"]]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cost = f"{statistics.mean(minutes):.1f}" if minutes else "-"
            accuracy = f"{statistics.mean(values):.2f}{spread}"
            lines.append(f"| {name} | {accuracy} | {len(values)} | {cost} | {_short(place)} |")
    return lines


_ROW, _LEFT, _WIDE = 26, 430, 330  # pixels: of a row, of the names, of the scale


def _picture(plan: Evidence, question: Question, found: _Found) -> str:
    """A row for each comparison, its mean and interval where there is one; "" where there is none.

    Only what is below 10 points decides the scale.
    """
    metric = plan.metric(question)
    pairs = {one: _paired(metric, found[one.first], found[one.second]).pairs for one in question.comparisons}
    ends = [abs(one.mean) + one.half_width() for one in pairs.values() if len(one) > 1]
    if not ends:
        return ""
    most = max(0.5, *(end for end in ends if end < 10)) if any(end < 10 for end in ends) else 10.0
    height = _ROW * len(pairs) + 44

    def across(value: float) -> float:
        return round(_LEFT + _WIDE * (1 + max(-1.0, min(1.0, value / most))) / 2, 1)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDE + 20} {height}" font-family="sans-serif" '
        'font-size="12" fill="#6b7280" stroke="none">',
        f'<line x1="{across(0)}" y1="6" x2="{across(0)}" y2="{height - 34}" stroke="#9ca3af"/>',
    ]
    for row, (names, one) in enumerate(pairs.items()):
        y = _ROW * row + 20
        lines.append(f'<text x="{_LEFT - 12}" y="{y + 4}" text-anchor="end">{names}</text>')
        if len(one) > 1:
            low, high = one.mean - one.half_width(), one.mean + one.half_width()
            lines.append(
                f'<line x1="{across(low)}" y1="{y}" x2="{across(high)}" y2="{y}" stroke="#0f766e" stroke-width="3"/>'
            )
            x = across(one.mean)
            for end, edge in ((low, -7), (high, 7)):  # an arrow where the scale ends before
                if abs(end) > most and end * edge > 0:
                    tip = across(end)
                    d = f"M{tip - edge} {y - 5} L{tip} {y} L{tip - edge} {y + 5}"
                    lines.append(f'<path d="{d}" fill="#0f766e"/>')
            if abs(one.mean) > most:
                side, anchor = (-14, "end") if one.mean > 0 else (14, "start")
                lines.append(
                    f'<text x="{x + side}" y="{y + 4}" text-anchor="{anchor}">{one.mean:+.2f}</text>'
                )
            else:
                fill = "#0f766e" if low * high > 0 else "white"  # hollow where nothing is decided
                lines.append(
                    f'<circle cx="{x}" cy="{y}" r="4.5" fill="{fill}" stroke="#0f766e" stroke-width="1.5"/>'
                )
    for value in (-most, 0.0, most):
        shown = f"{value:+.1f}" if value else "0"
        lines.append(f'<text x="{across(value)}" y="{height - 18}" text-anchor="middle">{shown}</text>')
    lines.append(
        f'<text x="{across(0)}" y="{height - 4}" text-anchor="middle">points of {metric}, 95 % intervals</text>'
    )
    return "\n".join([*lines, "</svg>"]) + "\n"


def _all(found: _Found) -> list[Mapping[str, Any]]:
    return [run for seeds in found.values() for same in seeds.values() for run in same]


def _made_with(found: _Found) -> list[str]:
    if not (runs := _all(found)):
        return ["No run is finished."]
    places = sorted({_place(run)[:3] for run in runs})
    machines = [f"{name.removeprefix('1 x ')} ({cpu}, torch {version})" for name, cpu, version in places]
    data = sorted({f"{run['dataset']['name']}, checksum {run['dataset']['checksum'][:12]}" for run in runs})
    hours = sum(run["extra"].get("cpu_time_s", 0) for run in runs) / 3600
    return [
        "## Made with",
        "",
        f"{len(runs)} runs, {hours:.1f} core-hours on {' and '.join(machines)}; data: {'; '.join(data)}.",
    ]


def collect(
    plan: Evidence,
    wanted: Mapping[str, Wanted],
    results: Sequence[Mapping[str, Any]],
    kept: Sequence[Mapping[str, Any]],
    folder: Path,
) -> list[Path]:
    """Keep the result files of planned runs, `folder/RUN/seedN/result.json` and, where another machine's is
    there, `folder/RUN/seedN-2/result.json`; what is there already stays.

    The home folder is written as ~ in them.

    Args:
        plan: of `load_evidence`.
        wanted: of `Evidence.wanted`.
        results: of `read_results`.
        kept: those of `folder`.
        folder: of the kept files.

    Returns:
        The new files.
    """
    new = []
    for name in plan.runs:
        have = of_run(kept, wanted[name])
        for seed, same in of_run(results, wanted[name]).items():
            places = [_place(one) for one in have.get(seed, ())]
            for result in (one for one in same if _place(one) not in places):
                places.append(_place(result))
                number = "" if len(places) == 1 else f"-{len(places)}"
                path = folder / name / f"seed{seed}{number}" / FILE_NAME
                path.parent.mkdir(parents=True, exist_ok=True)
                text = (Path(result["folder"]) / FILE_NAME).read_text()
                new.append(write_text_atomic(path, text.replace(str(Path.home()), "~")))
    return new
