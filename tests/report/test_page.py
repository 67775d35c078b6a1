"""The report's page: what is on it; in a browser: sorted, filtered, by keyboard, on a phone, in the dark."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import check_readable, chromium, opened
from torchvision.transforms.v2.functional import to_pil_image

from keepaug.classify import ClassifyConfig
from keepaug.commands.known import recipes
from keepaug.report import write_report
from keepaug.report.curves import Line, chart_of, read_curve, round_steps
from keepaug.report.pairs import Pairs
from keepaug.report.view import Section, answer, forest, scope
from keepaug.runs.config import recipe_of
from keepaug.runs.result import write_result

METHODS = {
    "keep_cutmix": 78.5,
    "cutmix": 77.0,
    "none": 80.0,
    "keep_cutout": 9.5,
    "cutout": 79.0,
    "mixup": 70.0,
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve runs, each with weights, a curve and a picture that cannot be packed."""
    root = tmp_path_factory.mktemp("page")
    for method, accuracy in METHODS.items():
        for seed in range(2):
            folder = root / "runs" / f"{method} #{seed}"
            recipe = recipe_of(ClassifyConfig(method=method))
            value = accuracy + seed * (0.5 if method.startswith("keep_") else 0.25)
            origin = {"file": "w.pt", "sha256": "c0ffee" * 10, "provenance": {}}
            write_result(
                folder, kind="classify", name="x", seed=seed, config={**recipe, "seed": seed}, recipe=recipe,
                metrics={"accuracy": value, "best": value, "median_last_20": value}, synthetic=False,
                shortened=False, wall_time_s=60.0, artifacts={"pictures": "augmented.png"},
                dataset={"name": "cifar10", "sizes": {"val": 10}, "checksum": "a"}, started_from=origin,
            )  # fmt: skip
            rows = [
                {"step": step, "val/accuracy": value - 20 / step, "train/loss": 1 / step}
                for step in (1, 5, 9)
            ]
            (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 1')
            (folder / "config.yaml").write_text("method: x\n")
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randint(256, (3, 400, 1100), generator=generator, dtype=torch.uint8)
            to_pil_image(noise).save(folder / "augmented.png")
    return write_report(root / "runs", root / "out", recipes=recipes)[1]


def test_twelve_runs_take_less_than_two_megabytes(page: Path) -> None:
    assert page.read_text().count("data:image/webp") == len(METHODS)
    assert page.stat().st_size < 2e6


def test_the_answer_comes_first_and_the_baseline_before_the_methods(page: Path) -> None:
    text = re.sub(r"<[^>]+>", "", page.read_text()[page.read_text().index("<body>") :])
    assert text.index("points of accuracy") < text.index("12 runs") < text.index("Learning curves")
    names = re.findall(r'<tr><th scope="row">(\w+)', page.read_text())[: len(METHODS)]
    assert names == ["none", "cutmix", "keep_cutmix", "cutout", "keep_cutout", "mixup"]
    assert re.findall(r"(\w+) \([\w ,]+\) <span[^>]*>baseline<", page.read_text()) == ["none"]


def test_a_cell_says_what_keeps_a_run_out_of_it(page: Path) -> None:
    """In the cell itself, in the folded tables of the paper."""
    cell = re.search(r'<th scope="row">KeepCutout</th>.*?</tr>', page.read_text(), re.DOTALL)
    assert '<div class="near">9.8 ± 0.4 (2 seeds), differs in ' in cell[0]
    assert "10 val images instead of 10000" in cell[0]
    assert "Table 9: Detection AP (%) on COCO 2017 val <span>(0 of 18 cells run)</span>" in page.read_text()


def test_links_lead_to_folder_config_and_weights(page: Path) -> None:
    html = page.read_text()
    assert "./../runs/none%20%230/config.yaml" in html
    assert html.count(">folder</a>") == html.count(">config</a>") == 12
    assert ">weights</a>" not in html  # there are none
    assert "c0ffeec0ffee" in html


@pytest.mark.parametrize(
    ("values", "verdict", "said"),
    [
        ([], "open", "nothing was run both with and without Keep"),
        ([0.4], "open", "one pair has no interval and decides nothing"),
        ([0.4, -0.4, 0.3], "open", "it holds zero"),
        ([0.4, 0.41, 0.42], "gains", "Keep gains"),
        ([-0.4, -0.41, -0.42], "loses", "Keep loses"),
    ],
)
def test_the_answer_says_what_the_interval_says(values: list[float], verdict: str, said: str) -> None:
    pairs = [("keep", "plain", Pairs(tuple(range(len(values))), tuple(values)))]
    found, text = answer(Section("x", "X", "accuracy", [], [], [], pairs, []))
    assert found == verdict
    assert said in text


def test_the_answer_hides_no_comparison_that_says_the_opposite() -> None:
    gains, loses = Pairs((0, 1, 2), (0.4, 0.41, 0.42)), Pairs((0, 1), (-0.4, -0.41))
    pairs = [("a", "b", gains), ("c", "d", loses), ("e", "f", Pairs((0,), (1.0,))), ("g", "h", Pairs((), ()))]
    verdict, text = answer(Section("x", "X", "accuracy", [], [], [], pairs, []))
    assert verdict == "open"
    assert "Of 3 comparisons Keep gains in 1, loses in 1, and 1 decide nothing." in text
    assert answer(Section("x", "X", "accuracy", [], [], [], [pairs[0], pairs[2]], []))[0] == "gains"


def test_curves_are_the_metrics_and_never_those_of_training(tmp_path: Path) -> None:
    rows = [
        {"step": 2, "train/accuracy": 9.0, "train/loss": 2.0},
        {"step": 1, "train/accuracy": 8.0},
        {"step": 2, "val/accuracy": 50.0},
    ]
    rows += [
        {"step": 1, "val/accuracy": 40.0},
        {"step": 1, "train/loss": 3.0},
        {"step": 3, "val/accuracy": None},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + '\nno json\n{"step": 9, "val/accuracy": NaN}\n')
    assert read_curve(tmp_path, "accuracy") == ("val/accuracy", ((1.0, 40.0), (2.0, 50.0)))
    assert read_curve(tmp_path, "AP") == ("train/loss", ((1.0, 3.0), (2.0, 2.0)))
    assert read_curve(tmp_path / "none", "AP") == ("", ())
    path.write_text("\n".join(json.dumps({"step": step, "x/AP": step}) for step in range(1000)))
    _, points = read_curve(tmp_path, "AP")
    assert len(points) <= 201
    assert (points[0], points[-1]) == ((0, 0), (999, 999))


def test_a_chart_holds_its_lines(tmp_path: Path) -> None:
    chart = chart_of(
        "accuracy", [Line("a", 0, ((10, 20.0), (40, 80.0))), Line("a", 0, ((10, 30.0), (20, 31.0)))]
    )
    assert chart.legend == (("a", 0),)
    assert chart.lines[0][2] == "25.0,100.0 100.0,0.0"
    assert [text for _, text in chart.upwards] == ["20", "40", "60", "80"]
    assert [text for _, text in chart.across] == ["0", "10", "20", "30", "40"]
    for low, high in ((0, 1), (96.4, 96.9), (5, 5), (0, 0), (-3, 1e6)):
        steps = round_steps(low, high, 4)
        assert steps[0] <= low
        assert steps[-1] >= high
        assert 2 <= len(steps) <= 7


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with chromium() as one:
        yield one


def _column(page, place: int) -> list[str]:
    cells = f"#classify ~ .scroll tbody tr:not([hidden]) > :nth-child({place + 1})"
    return [text.split(" ")[0] for text in page.locator(cells).all_inner_texts()]


def test_sorted_and_filtered_by_pointer(browser, page: Path) -> None:
    with opened(browser, page) as shown:
        table = shown.locator("table.sortable").first
        table.get_by_role("button", name="accuracy").click()
        assert _column(shown, 2) == ["9.8", "70.1", "77.1", "78.8", "79.1", "80.1"]  # numbers, not texts
        table.get_by_role("button", name="accuracy").click()
        assert _column(shown, 0) == ["none", "cutout", "keep_cutmix", "cutmix", "mixup", "keep_cutout"]
        assert table.locator("th[aria-sort]").all_inner_texts() == ["accuracy (%)"]
        shown.get_by_role("searchbox").first.fill("keep CUTMIX")
        assert _column(shown, 0) == ["keep_cutmix"]
        assert shown.get_by_role("status").first.inner_text() == "1 of 6 rows"
        shown.get_by_role("searchbox").first.fill("")
        assert len(_column(shown, 0)) == 6


def test_all_of_it_by_keyboard(browser, page: Path) -> None:
    """Tab reaches filter, heads, links and folds; Enter and space act."""
    with opened(browser, page) as shown:
        reached = []
        for _ in range(80):
            shown.keyboard.press("Tab")
            name = shown.evaluate(
                "document.activeElement.tagName + ' ' + document.activeElement.textContent.trim()"
            )
            reached.append(name)
            if name == "BUTTON run":
                shown.keyboard.press("Enter")
            if name.startswith("SUMMARY Table 9"):
                shown.keyboard.press("Space")
                break
        kinds = {name.split(" ")[0] for name in reached}
        assert {"A", "BUTTON", "INPUT", "SUMMARY", "DIV"} <= kinds
        assert _column(shown, 0) == sorted(METHODS)
        assert shown.get_by_text("Faster R-CNN ResNet50-C4").is_visible()
        outline = shown.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_readable_on_phone_and_desktop_in_light_and_dark(
    browser, page: Path, width: int, scheme: str
) -> None:
    with opened(browser, page, width=width, scheme=scheme) as shown:
        shown.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        check_readable(shown, width)
        heights = shown.evaluate(
            "[...document.querySelectorAll('.plot span, .ticks span')].map((one) => one.clientHeight)"
        )
        assert max(heights) < 25  # the numbers of a scale stand on one line
        wide = "one.scrollWidth - one.clientWidth"
        cut = f"[...document.querySelectorAll('.scroll:has(.cards)')].map((one) => {wide})"
        assert max(shown.evaluate(cut)) <= 0
        background = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        assert shown.evaluate("[...document.images].every((one) => one.naturalWidth > 0)")


def test_whole_without_scripts(browser, page: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    shown = context.new_page()
    shown.goto(page.as_uri())
    assert shown.locator("#classify ~ .scroll tbody tr").count() == len(METHODS)
    assert shown.get_by_role("searchbox").count() == 0
    context.close()


@pytest.mark.parametrize(
    ("pair", "verdict", "said"),
    [
        (
            {"difference": [-18.0, -22.0, -14.0]},
            "gains",
            "-18.0 [-22.0, -14.0] (points, 95 % interval); Keep gains.",
        ),
        ({"difference": [-18.0, -22.0, 1.0]}, "open", "it holds zero"),
        ({}, "open", "-18.0 (points); nothing is decided without an interval"),
    ],
)
def test_the_sentence_of_destruction_has_its_interval(
    pair: dict, verdict: str, said: str, tmp_path: Path
) -> None:
    """Of results before there was one, the sentence says so."""
    write_result(
        tmp_path / "a", kind="fidelity", name="audit", metrics={"cutout": 20.0, "keep_cutout": 2.0},
        seed=0, config={}, dataset={"name": "d", "sizes": {}, "checksum": "a"}, synthetic=True,
        shortened=False,
        wall_time_s=1.0,
        extra={"pairs": [{"name": "Cutout", "plain": "cutout", "keep": "keep_cutout"} | pair]},
    )  # fmt: skip
    markdown, html = write_report(tmp_path, tmp_path / "out", recipes=recipes)
    assert f'<li class="{verdict}"><a href="#fidelity">' in html.read_text()
    text = html.read_text().replace("\u00a0", " ")
    assert "Cutout destroys 20.0 % of the objects, with Keep 2.0 %: -18.0" in text
    assert said in text
    assert "| Cutout | 20.0 | 2.0 | -18.0" in markdown.read_text()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("uda + Keep (wrn, 24 labels)", "uda (wrn, 24 labels)"), "uda + Keep against uda"),
        (("d, backbone: keep_x (r18), engine: t", "d, backbone: x (r18), engine: t"), "keep_x against x"),
        (("keep_x (r18, full saliency)", "x (r18)"), "keep_x (r18, full saliency) against x (r18)"),
    ],
)
def test_the_answer_leaves_out_what_both_names_say(names: tuple[str, str], said: str) -> None:
    """Unless another comparison would then have the same names."""
    pairs = Pairs((0, 1), (0.4, 0.41))
    section = Section("x", "X", "accuracy", [], [], [], [(*names, pairs)], [])
    assert answer(section)[1].startswith(f"{said}: +0.4")
    twice = dataclasses.replace(
        section, pairs=[(*names, pairs), (f"{names[0]}, b=1", f"{names[1]}, b=1", pairs)]
    )
    assert answer(twice)[1].startswith(f"{names[0]} against {names[1]}: ") or said == " against ".join(names)


def _classify(folder: Path, name: str, accuracy: float | None, *, seed: int = 0, **changed) -> None:
    write_result(
        folder, kind="classify", name=name, seed=seed, config={}, recipe={"name": name},
        metrics={} if accuracy is None else {"accuracy": accuracy},
        dataset={"name": "cifar10", "sizes": {"val": 10, "train": 20}, "checksum": "a"}, wall_time_s=2.0,
        **{"synthetic": False, "shortened": False} | changed,
    )  # fmt: skip


def test_what_an_answer_is_of_stands_before_it_and_whole_runs_come_first() -> None:
    """Five drawn pairs decide nothing about the data that two whole pairs are of."""
    pairs = [
        ("keep", "plain", Pairs((0, 1), (0.4, 0.42))),
        ("keep, drawn", "plain, drawn", Pairs(tuple(range(5)), (-1, -1.1, -1, -1.1, -1))),
    ]
    rows = [["keep", "cifar10 (2 val)", "whole run"], ["plain", "cifar10 (2 val)", "whole run"]]
    rows += [[f"{name}, drawn", "shapes (2 val)", "drawn data, shortened"] for name in ("keep", "plain")]
    section = Section("x", "X", "accuracy", [], [], rows, pairs, [])
    verdict, text = answer(section)
    assert verdict == "gains"
    assert text.startswith("keep against plain: +0.41")
    assert text.endswith("Not counted: 1 on drawn data, shortened or by another engine.")
    assert scope(section) == "cifar10"
    drawn = dataclasses.replace(section, pairs=pairs[1:])
    assert answer(drawn)[0] == "loses"
    assert scope(drawn) == "shapes, drawn data, shortened"


def test_differences_have_a_scale_and_what_decides_nothing_is_hollow() -> None:
    """Zero and the ends lie at their ticks; an interval that holds zero is no effect, one pair no number."""
    found = forest(
        [
            ("a keep", "a plain", Pairs((0, 1, 2), (0.4, -0.4, 0.3))),
            ("b keep", "b plain", Pairs((0,), (9.0,))),
            ("c keep", "c plain", Pairs((0, 1, 2), (1.5, 1.6, 1.7))),
            ("d keep", "d plain", Pairs((), ())),
        ]
    )
    assert [row.get("open") for row in found["rows"]] == [True, None, False, None]
    assert [text for _, text in found["ticks"]] == ["-1", "0", "+1", "+2"]
    assert [round(place) for place, _ in found["ticks"]] == [4, 35, 65, 96]
    first = found["rows"][0]
    assert first["low"] > 4
    assert first["low"] + first["span"] / 2 == pytest.approx(first["mean"], abs=0.1)
    assert found["rows"][1]["text"] == "1 pair"
    assert forest([("b", "c", Pairs((0,), (9.0,)))])["ticks"] == []


def test_a_run_without_the_metric_is_in_no_pair(tmp_path: Path) -> None:
    for method in ("cutout", "keep_cutout"):
        recipe = recipe_of(ClassifyConfig(method=method))
        for seed in range(2):
            known = seed or method == "cutout"
            _classify(tmp_path / f"{method}{seed}", "x", 50.0 if known else None, seed=seed)
            path = tmp_path / f"{method}{seed}" / "result.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"recipe": recipe, "config": recipe}))
    html = write_report(tmp_path, tmp_path / "out", recipes=recipes)[1].read_text()
    said = "keep_cutout (resnet18, full saliency) <em>minus</em> cutout (resnet18)<br><span>1 pair</span>"
    assert said in html


def test_a_chart_of_many_runs_says_how_many_it_draws_and_no_two_look_alike(page: Path) -> None:
    styles = re.findall(r"\.s\d+ \{ ([^}]*) \}", page.read_text())
    assert len(set(styles)) == len(styles) == 32


ODD = (
    "x" * 120,
    "קידוד עם שמירה (רשת)",
    "対照なし 拡張",
    "<img src=x onerror=alert(1)>",
    "a|b & \"c\" 'd'",
    "e\u0301\u200f\n new line",
)


@pytest.mark.parametrize("number", [1, 40])
def test_odd_results_read_well_on_a_phone(browser, tmp_path: Path, number: int) -> None:
    """One run, or forty whose names are long, from right to left, or HTML."""
    for index in range(number):
        folder = tmp_path / "runs" / str(index)
        _classify(folder, f"{ODD[index % len(ODD)]} {index}", 50.0 + index, synthetic=index % 2 == 0)
        rows = [{"step": step, "val/accuracy": 40.0 + step} for step in (1, 2)]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    html = write_report(tmp_path / "runs", tmp_path / "out", recipes=recipes)[1]
    with opened(browser, html, width=390) as shown:
        check_readable(shown, 390)
        assert shown.locator("#classify ~ .scroll tbody tr").count() == number
        assert shown.locator("img").count() == 0
        summary = shown.locator("header > p").inner_text()
        assert summary.startswith("1 run, all on data" if number == 1 else "40 runs, 20 on data")
        title = shown.locator(".chart figcaption").inner_text()
        assert ("24 of 40 drawn" in title) == (number == 40)
        assert shown.locator("tbody th .tag").count() == 0  # none of them is another's


@pytest.mark.parametrize("width", [390, 1280])
def test_the_letters_of_pictures_are_not_shrunk(browser, page: Path, width: int) -> None:
    with opened(browser, page, width=width) as shown:
        sizes = shown.evaluate("[...document.images].map((one) => one.clientWidth / one.naturalWidth)")
        assert len(sizes) == len(METHODS)
        assert min(sizes) >= 0.99
