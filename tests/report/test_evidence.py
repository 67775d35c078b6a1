"""The planned experiments: the plan resolves, the page says what the results say and nothing else."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from keepaug.commands import known
from keepaug.report.cells import Wanted
from keepaug.report.evidence import (
    Evidence,
    collect,
    evidence_page,
    evidence_pictures,
    load_evidence,
    of_run,
)
from keepaug.runs.result import read_results

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def plan() -> Evidence:
    return load_evidence()


@pytest.fixture(scope="module")
def wanted(plan: Evidence) -> dict[str, Wanted]:
    return plan.wanted(known.tool, ROOT / "configs")


@pytest.fixture(scope="module")
def recipes(wanted: dict[str, Wanted]) -> dict[str, dict[str, Any]]:
    return {name: one.recipe for name, one in wanted.items()}


def result(recipe: dict[str, Any], seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
    return {
        "schema": 2,
        "kind": "classify",
        "name": "cifar10-lab",
        "seed": seed,
        "synthetic": False,
        "shortened": False,
        "dataset": {"name": "cifar10", "sizes": {}, "checksum": "0123456789abcdef"},
        "engine": None,
        "started_from": None,
        "recipe": copy.deepcopy(recipe),
        "config": copy.deepcopy(recipe),
        "precision": {"precision": "bf16"},
        "hardware": {"cpu": "a processor", "gpus": []},
        "created": f"2026-01-0{seed + 1}T00:00:00+00:00",
        "packages": {"torch": "2.0"},
        "metrics": {"accuracy": accuracy},
        "extra": {"cpu_time_s": 600.0},
        "folder": f"runs/{seed}-{accuracy}",
        **more,
    }


def on_gpu(one: dict[str, Any]) -> dict[str, Any]:
    hardware = {"cpu": "another", "gpus": ["H100"], "device": "cuda:0", "processes": 1}
    return {**one, "hardware": hardware, "created": "2026-02-01T00:00:00+00:00"}


def page(plan: Evidence, results: list[dict[str, Any]]) -> str:
    return evidence_page(plan, plan.wanted(known.tool, ROOT / "configs"), results)


def test_every_planned_run_is_a_recipe_of_its_own(plan: Evidence, recipes: dict[str, dict[str, Any]]) -> None:
    assert set(recipes) == set(plan.runs)
    whole = [(plan.runs[name].tool, plan.runs[name].after, recipe) for name, recipe in recipes.items()]
    assert len({json.dumps(one, sort_keys=True) for one in whole}) == len(whole)
    configs = {f"lab/{path.name}" for path in (ROOT / "configs" / "lab").glob("*.yaml")}
    assert {run.config for run in plan.runs.values()} == configs
    for run in plan.runs.values():
        tool = known.tool(run.tool)
        data = [] if run.tool == "train_detector" else ["root=x"]
        tool.check(tool.load(ROOT / "configs" / run.config, data))
        head = (ROOT / "configs" / run.config).read_text()
        assert f"keepaug {run.tool.replace('_', '-')} --config configs/{run.config}" in head
        minutes = re.search(r"# Time: .*?(\d+) minutes of one core", head)
        assert minutes
        assert int(minutes[1]) in {one.core_minutes for one in plan.runs.values() if one.config == run.config}
        if only := re.search(r"reproduce lab .*--only (\S+)", head):
            letters = {
                one.id for one in plan.questions for name in one.runs if plan.runs[name].config == run.config
            }
            assert set(only[1].split(",")) == letters
    paired = {name for question in plan.questions if question.id in "abcd" for name in question.runs}
    assert {recipes[name]["arch"] for name in paired} == {"lab"}


def test_runs_come_seed_by_seed_and_once(plan: Evidence) -> None:
    order = [(run.name, seed) for run, seed in plan.order()]
    assert len(order) == len(set(order))
    first = [name for name, seed in plan.order(["a"]) if seed == 0]
    assert [name for name, _ in plan.order(["a"])][: len(first)] == first
    with pytest.raises(ValueError, match="got z"):
        plan.order(["a", "z"])


def test_a_plan_that_names_unknown_runs(tmp_path: Path) -> None:
    text = (
        (ROOT / "keepaug/report/evidence.yaml")
        .read_text()
        .replace("- [cutout-16-inside, none,", "- [cut, none,")
    )
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ValueError, match="do not fit: cut"):
        load_evidence(tmp_path / "plan.yaml")


def test_a_page_without_results_says_so(plan: Evidence) -> None:
    text = " ".join(page(plan, []).split())
    assert text.count("Nothing is decided yet.") == len(plan.questions)
    assert plan.missing({name: {} for name in plan.runs}) == plan.order()
    assert f"{len(plan.order())} runs are missing" in text
    assert "No run is finished." in text


def test_numbers_are_those_of_the_results(plan: Evidence, recipes: dict[str, dict[str, Any]]) -> None:
    results = [result(recipes["none"], seed, value) for seed, value in enumerate([90.0, 90.2, 90.1])]
    results += [
        result(recipes["cutout-16-inside"], seed, value) for seed, value in enumerate([89.5, 89.8, 89.6])
    ]
    text = " ".join(page(plan, results).split())
    assert "| cutout-16-inside - none | -0.47 [-0.61, -0.32] | 3 of 5 | 0 | a processor |" in text
    assert "Cutout of 16 x 16 hurts (-0.47 [-0.61, -0.32], 3 pairs); not decided yet (choosing" in text
    assert (
        "`keepaug reproduce lab root=CIFAR --only a --output RUNS`: 6 of 40 runs are done and took 1.0"
        in text
    )
    assert "| none | 90.10 ± 0.10 | 3 | 10.0 | a processor |" in text
    assert (
        "6 runs, 1.0 core-hours on CPU (a processor, torch 2.0); data: cifar10, checksum 0123456789ab."
        in text
    )


def test_the_picture_shows_point_and_interval(
    plan: Evidence, wanted: dict[str, Wanted], recipes: dict[str, dict[str, Any]]
) -> None:
    results = [result(recipes["none"], seed, value) for seed, value in enumerate([90.0, 90.2, 90.1])]
    results += [
        result(recipes["cutout-16-inside"], seed, value) for seed, value in enumerate([89.5, 89.8, 89.6])
    ]
    results += [result(recipes["keep_cutout-16-inside"], 0, 89.9)]
    pictures = evidence_pictures(plan, wanted, results)
    assert sorted(pictures) == ["a.svg"]
    tree = ElementTree.fromstring(pictures["a.svg"])
    circles = [one for one in tree.iter() if one.tag.endswith("circle")]
    lines = [one for one in tree.iter() if one.tag.endswith("line")]
    assert len(circles) == 1  # cutout - none; keep - cutout is one pair, without an interval
    assert len(lines) == 2  # zero, and one interval
    zero, interval = lines
    assert (
        float(interval.get("x1"))
        < float(circles[0].get("cx"))
        < float(interval.get("x2"))
        < float(zero.get("x1"))
    )
    assert "(evidence/a.svg)" in page(plan, results)


def test_what_is_off_the_scale_is_an_arrow_with_its_value(
    plan: Evidence, wanted: dict[str, Wanted], recipes: dict[str, dict[str, Any]]
) -> None:
    values = {"none": [90.0, 90.0], "cutout-24-inside": [70.0, 70.4], "cutout-16-inside": [89.0, 90.8]}
    results = [
        result(recipes[name], seed, value) for name, pair in values.items() for seed, value in enumerate(pair)
    ]
    text = evidence_pictures(plan, wanted, results)["a.svg"]
    tree = ElementTree.fromstring(text)
    assert [one.get("fill") for one in tree.iter() if one.tag.endswith("circle")] == ["white"]  # holds zero
    assert len([one for one in tree.iter() if one.tag.endswith("path")]) == 3  # and both ends of the other
    assert ">-19.80</text>" in text


def test_an_interval_that_holds_zero_decides_nothing(
    plan: Evidence, recipes: dict[str, dict[str, Any]]
) -> None:
    results = [result(recipes["none"], seed, value) for seed, value in enumerate([90.0, 90.2])]
    results += [result(recipes["cutout-16-inside"], seed, value) for seed, value in enumerate([90.5, 90.1])]
    text = " ".join(page(plan, results).split())
    assert text.count("Nothing is decided yet.") == len(plan.questions)
    one = page(plan, [result(recipes["none"], 0, 90.0), result(recipes["cutout-16-inside"], 0, 91.0)])
    assert "| cutout-16-inside - none | - | 1 of 5 | not known | a processor |" in one


def test_an_interval_narrow_as_planned_says_how_small_the_difference_is(
    plan: Evidence, recipes: dict[str, dict[str, Any]]
) -> None:
    results = [result(recipes["none"], seed, 90.0) for seed in range(3)]
    results += [
        result(recipes["cutout-16-inside"], seed, value) for seed, value in enumerate([90.0, 90.05, 89.95])
    ]
    assert "Cutout of 16 x 16 changes less than 0.12 (+0.00 [-0.12, +0.12], 3 pairs);" in " ".join(
        page(plan, results).split()
    )


def test_what_is_no_planned_run_is_left_out(wanted: dict[str, Wanted]) -> None:
    recipe = wanted["none"].recipe
    others = [
        result({**recipe, "lr": 0.1}, 0, 95.0),
        result(recipe, 0, 95.0, shortened=True),
        result(recipe, 0, 95.0, synthetic=True),
        result(recipe, 0, 95.0, started_from={"file": "weights.pt", "sha256": "0"}),
    ]
    assert of_run(others, wanted["none"]) == {}
    with pytest.raises(ValueError, match="two results of one run and seed 0 on one machine"):
        of_run([result(recipe, 0, 90.0), result(recipe, 0, 91.0)], wanted["none"])


def test_a_pair_is_of_one_machine(plan: Evidence, wanted: dict[str, Wanted]) -> None:
    none, cutout = wanted["none"].recipe, wanted["cutout-16-inside"].recipe
    apart = [result(none, 0, 90.0), on_gpu(result(cutout, 0, 89.0))]
    assert "| cutout-16-inside - none | - | 0 of 5 | not known | - |" in page(plan, apart)
    engines = [result(none, 0, 90.0, engine="one"), result(cutout, 0, 89.0, engine="other")]
    assert "| cutout-16-inside - none | - | 0 of 5 | not known | - |" in page(plan, engines)
    assert "| none | 90.00 | 1 | 10.0 | a processor, one |" in page(plan, engines)
    both = {name: of_run(apart, one) for name, one in wanted.items()}
    assert ("none", 0) in {(run.name, seed) for run, seed in plan.missing(both, ["a"])}
    here = [result(cutout, 0, 91.0)]
    both = {name: of_run([*apart, *here], one) for name, one in wanted.items()}
    left = {(run.name, seed) for run, seed in plan.missing(both, ["a"])}
    assert ("none", 1) in left
    assert ("cutout-24-inside", 0) in left
    assert ("none", 0) in left  # for cutout-24-inside


def test_two_machines_stand_beside_each_other(plan: Evidence, wanted: dict[str, Wanted]) -> None:
    none, cutout = wanted["none"].recipe, wanted["cutout-16-inside"].recipe
    cpu = [result(none, seed, 90.0) for seed in range(3)]
    cpu += [result(cutout, seed, value) for seed, value in enumerate([91.0, 91.2, 91.1])]
    gpu = [on_gpu(result(none, seed, 80.0)) for seed in range(1, 4)]
    gpu += [on_gpu(result(cutout, seed, value)) for seed, value in ((1, 80.5), (2, 80.7), (3, 81.0))]
    assert of_run([*gpu, *cpu], wanted["none"])[1] == [cpu[1], gpu[0]]  # the first run first
    row = "| cutout-16-inside - none | {} | 4 of 5 | 0 | {} |"
    again = "| the same again | {} | 2 | | {} |"
    first = page(plan, [*gpu, *cpu])  # as many seeds: that which ran first, and the other's for seed 3
    assert row.format("+1.07 [+0.92, +1.23]", "a processor, H100") in first
    assert again.format("+0.60 [-0.67, +1.87]", "H100") in first
    said = "(+1.07 [+0.92, +1.23], 4 pairs; again on H100: +0.60 [-0.67, +1.87], 2 pairs)"
    assert said in " ".join(first.split())
    assert "| none | 90.00 ± 0.00 | 3 | 10.0 | a processor |" in first
    assert "| none | 80.00 ± 0.00 | 3 | 10.0 | H100 |" in first
    more = page(plan, [*cpu[:2], *cpu[3:], *gpu])  # fewer seeds here
    assert "| H100, a processor |" in more
    assert sum(line.startswith("| the same again |") for line in more.splitlines()) == 0  # seed 1 alone


def test_a_detector_is_a_run_of_the_plan_on_the_backbone_of_its_own_number(wanted: dict[str, Wanted]) -> None:
    one = wanted["detector-cutmix"]

    def detector(backbone: dict[str, Any] | None, number: int, **more: Any) -> dict[str, Any]:
        below = None if backbone is None else result(backbone, number, 80.0, **more)
        origin = below and {"file": "backbone.pth", "sha256": "0", "provenance": below}
        return result(one.recipe, 3, 40.0, kind="detection", started_from=origin)

    backbone = wanted["backbone-cutmix"].recipe
    right = detector(backbone, 2)  # a detector's seeds begin at 1
    others = [
        detector(None, 2),
        detector(backbone, 1),
        detector(wanted["backbone-none"].recipe, 2),
        detector(backbone, 2, shortened=True),
        detector(backbone, 2, synthetic=True),
    ]
    assert of_run([*others, right], one) == {2: [right]}
    assert of_run([right, others[0]], wanted["detector-random"]) == {2: [others[0]]}


def test_what_a_run_starts_from_comes_before_it(plan: Evidence) -> None:
    order = [(run.name, seed) for run, seed in plan.order(["g", "h"])]
    assert len(order) == len(set(order))
    for run, seed in plan.order(["g", "h"]):
        if run.after:
            assert order.index((run.after, seed)) < order.index((run.name, seed))
    assert ("backbone-none", 4) in order  # five pairs of question h


def test_a_question_compares_one_metric_of_one_tool(tmp_path: Path) -> None:
    text = (ROOT / "keepaug/report/evidence.yaml").read_text()
    (tmp_path / "plan.yaml").write_text(text.replace("- [uda-keep, uda,", "- [uda-keep, reid-keep,"))
    with pytest.raises(ValueError, match=r"question i of the plan compares .*mAP"):
        load_evidence(tmp_path / "plan.yaml")


def test_backbones_of_other_data_are_no_pair(plan: Evidence, wanted: dict[str, Wanted]) -> None:
    runs = []
    for name, checksum in (("none", "a"), ("cutmix", "b")):
        below = result(
            wanted[f"backbone-{name}"].recipe, 0, 80.0, dataset={"name": "c", "checksum": checksum}
        )
        origin = {"file": "backbone.pth", "sha256": "0", "provenance": below}
        detector = result(wanted[f"detector-{name}"].recipe, 1, 40.0, kind="detection", started_from=origin)
        runs.append(detector | {"metrics": {"AP": 40.0}})
    with pytest.raises(ValueError, match="are no pair: what they start from saw"):
        page(plan, runs)


@pytest.mark.parametrize("key", ["dataset", "precision"])
def test_runs_on_other_data_are_no_pair(key: str, plan: Evidence, recipes: dict[str, dict[str, Any]]) -> None:
    other = result(recipes["cutout-16-inside"], 0, 90.0)
    change = {"dataset": {"checksum": "0"}, "precision": {"precision": "float32"}}
    other[key] = {**other[key], **change[key]}
    with pytest.raises(ValueError, match=f"are no pair: {key}"):
        page(plan, [result(recipes["none"], 0, 90.0), other])


def test_collected_files_are_kept_as_they_are(
    plan: Evidence, wanted: dict[str, Wanted], tmp_path: Path
) -> None:
    content = result(wanted["none"].recipe, 3, 90.0)
    del content["folder"]
    content |= {
        "wall_time_s": 1.0,
        "artifacts": {},
        "created": "2026-01-01T00:00:00+00:00",
        "root": str(Path.home() / "cifar10"),
    }
    (tmp_path / "runs" / "any").mkdir(parents=True)
    (tmp_path / "runs" / "any" / "result.json").write_text(json.dumps(content))
    runs, kept = read_results(tmp_path / "runs"), tmp_path / "kept"
    new = collect(plan, wanted, runs, [], kept)
    assert [path.relative_to(tmp_path / "kept").parts for path in new] == [("none", "seed3", "result.json")]
    assert json.loads(new[0].read_text()) == content | {"root": "~/cifar10"}  # says nobody's name
    assert collect(plan, wanted, runs, read_results(kept), kept) == []
    content["hardware"] = on_gpu(content)["hardware"]
    (tmp_path / "runs" / "any" / "result.json").write_text(json.dumps(content))
    (second,) = collect(plan, wanted, read_results(tmp_path / "runs"), read_results(kept), kept)
    assert second.relative_to(kept).parts == ("none", "seed3-2", "result.json")
    assert json.loads(second.read_text())["hardware"] == content["hardware"]
    assert collect(plan, wanted, read_results(tmp_path / "runs"), read_results(kept), kept) == []


def test_the_page_is_what_the_kept_results_make(plan: Evidence, wanted: dict[str, Wanted]) -> None:
    kept = ROOT / "docs" / "evidence"
    results = known.results(kept) if kept.is_dir() else []
    assert (ROOT / "docs" / "evidence.md").read_text() == page(plan, results)
    drawn = evidence_pictures(plan, wanted, results)
    assert {path.name: path.read_text() for path in kept.glob("*.svg")} == drawn
    found = [of_run(results, one) for one in wanted.values()]
    assert sum(len(same) for seeds in found for same in seeds.values()) == len(results)
