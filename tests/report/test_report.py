"""Tables beside the paper's: what may share a cell, seeds, the page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from keepaug.classify import ClassifyConfig
from keepaug.commands.known import recipes
from keepaug.report import aggregate, fill_table, load_paper, write_report
from keepaug.report.aggregate import formatted
from keepaug.runs.config import recipe_of, to_dict
from keepaug.runs.result import read_results, write_result
from ssl_uda.config import UdaConfig


def cifar(folder: Path, seed: int = 0, accuracy: float = 96.0, **change) -> Path:
    wanted = recipes("1")["KeepCutout", "ResNet-18"].recipe | change.pop("recipe", {})
    content = {
        "kind": "classify", "name": "x", "seed": seed,
        "metrics": {"accuracy": accuracy, "best": accuracy + 0.5, "median_last_20": accuracy},
        "config": {**wanted, "seed": seed}, "recipe": wanted, "synthetic": False, "shortened": False,
        "wall_time_s": 60.0,
        "dataset": {"name": "cifar10", "sizes": {"train": 50000, "val": 10000}, "checksum": "a"}, **change,
    }  # fmt: skip
    return write_result(folder, **content)


def backbone(**change) -> dict:
    run = {
        "kind": "classify",
        "recipe": recipes("9")["Faster R-CNN ResNet50-FPN", "Ours"].backbone,
        "engine": None,
        "precision": {},
        "dataset": {"name": "imagenet", "sizes": {"train": 1281167, "val": 50000}, "checksum": "i"},
        "seed": 0,
    }
    return {
        "file": "w.pt",
        "sha256": "a",
        "provenance": {**run, "synthetic": False, "shortened": False, **change},
    }


def detector(folder: Path, engine: str, **change) -> Path:
    content = {
        "kind": "detection", "name": "faster_rcnn_R_50_FPN_3x", "seed": 0, "config": {},
        "recipe": recipes("9")["Faster R-CNN ResNet50-FPN", "Ours"].recipe, "metrics": {"AP": 40.9,
        "AP50": 60.0, "AP75": 44.0},
        "dataset": {"name": "coco", "sizes": {"train": 118287, "val": 5000}, "checksum": "a"},
        "synthetic": False, "shortened": False, "engine": engine,
        "wall_time_s": 60.0, "started_from": backbone(), **change,
    }  # fmt: skip
    return write_result(folder, **content)


def table(number: str, root: Path):
    printed = next(t for t in load_paper() if str(t["id"]) == number)
    return fill_table(printed, aggregate(read_results(root)), recipes(number))


def cell(filled, row: str, column: int) -> tuple[str, str]:
    return dict(filled.rows)[row][column][:2]


def test_the_paper_as_printed() -> None:
    """Against a few cells read off the paper, in every table; every row has a cell for every column."""
    tables = {str(t["id"]): t for t in load_paper()}
    assert set(tables) == {"1", "1b", "2", "3", "4", "5", "6", "7", "8", "9"}
    for printed in tables.values():
        for row in printed["rows"]:
            assert len(row["cells"]) == len(printed["columns"]) == len(printed["column_match"])
    rows = {number: {row["name"]: row["cells"] for row in t["rows"]} for number, t in tables.items()}
    assert rows["1"]["KeepCutout (low resolution)"] == ["96.2±0.1", "95.5±0.1", "97.3±0.1"]
    assert rows["2"]["24"] == ["94.9±0.1", "95.6±0.1"]
    assert rows["6"]["KeepCutMix + Low Resolution"] == ["79.1 (94.4)", "80.3 (95.2)"]
    assert rows["7"]["UDA + KeepRandAug"] == ["95.4±0.2", "92.4±0.8", "not printed"]
    assert rows["8"]["+ Ours"] == ["95.0±0.1", "87.4±0.0"]
    assert rows["9"]["RetinaNet ResNet101-FPN"] == ["39.9", "41.2", "-"]
    assert [rows["9"][name][2] for name in list(rows["9"])[:3]] == ["23.7", "27.1", "25.4"]  # section 4.5
    assert rows["5"]["Attentive CutMix"] == ["97.3±0.1", "127", "97.4±0.1", "166"]


def test_seeds_are_averaged_with_their_spread(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((95.0, 96.0, 97.0)):
        cifar(tmp_path / str(seed), seed, accuracy)
    ours = "96.0 ± 1.0 (3 seeds) [best epoch 96.5]"
    assert cell(table("1", tmp_path), "KeepCutout", 0) == ("96.1±0.1", ours)
    assert cell(table("1", tmp_path), "Cutout", 0)[1] == "not run"
    assert cell(table("2", tmp_path), "16", 1)[1] == ours
    (group,) = aggregate(read_results(tmp_path))
    assert group.values("seconds_per_epoch") == [60.0 / 300] * 3
    assert formatted([]) == "-"


@pytest.mark.parametrize("change", [{"synthetic": True}, {"shortened": True}])
def test_drawn_or_shortened_never_beside_the_paper(change: dict, tmp_path: Path) -> None:
    cifar(tmp_path / "a", **change)
    detector(tmp_path / "b", "detectron2", **change)
    assert table("1", tmp_path).num_run == table("2", tmp_path).num_run == table("9", tmp_path).num_run == 0


def test_the_torchvision_engine_never_beside_the_paper(tmp_path: Path) -> None:
    detector(tmp_path / "a", "torchvision")
    assert table("9", tmp_path).num_run == 0
    detector(tmp_path / "b", "detectron2")
    assert cell(table("9", tmp_path), "Faster R-CNN ResNet50-FPN", 1) == ("40.7", "40.9 (1 seed)")
    assert len(aggregate(read_results(tmp_path))) == 2


def test_a_backbone_with_keep_pairs_with_the_one_without(tmp_path: Path) -> None:
    """By the seeds of both runs; other data below are no pair."""
    plain = {"recipe": {**backbone()["provenance"]["recipe"], "method": "cutmix"}}
    for seed in range(2):
        for name, AP, change in (("keep", 41.0 + seed, {}), ("plain", 40.0, plain)):
            began = backbone(seed=seed, **change)
            metrics = {"AP": AP, "AP50": 60.0, "AP75": 44.0}
            detector(tmp_path / f"{name}{seed}", "detectron2", started_from=began, metrics=metrics)
    other = backbone(**plain, dataset={"name": "imagenet", "sizes": {}, "checksum": "other"})
    detector(tmp_path / "other", "detectron2", started_from=other)
    markdown, _ = write_report(tmp_path, tmp_path / "page", recipes=recipes)
    lines = [line for line in markdown.read_text().splitlines() if "2 pairs" in line or "1 pair" in line]
    assert len(lines) == 1
    assert "+1.50" in lines[0]


def test_a_different_setting_is_another_group(tmp_path: Path) -> None:
    cifar(tmp_path / "a", 0)
    cifar(tmp_path / "b", 1, recipe={"lr": 0.2})
    assert len(aggregate(read_results(tmp_path))) == 2


def test_bookkeeping_is_no_other_group(tmp_path: Path) -> None:
    for seed, given in enumerate(
        ({}, {"tensorboard": False, "num_workers": 3, "root": "elsewhere", "log_every": 9})
    ):
        config = ClassifyConfig(**given, seed=seed)
        cifar(tmp_path / str(seed), seed, config=to_dict(config), recipe=recipe_of(config))
    assert len(aggregate(read_results(tmp_path))) == 1


def test_another_network_to_start_from_is_another_group(tmp_path: Path) -> None:
    """By the recipe of its run; by the contents of a foreign file."""
    foreign = [{"file": "x.pth", "sha256": digest * 8, "provenance": {}} for digest in "ab"]
    changed = backbone()
    changed["provenance"]["recipe"] = {**changed["provenance"]["recipe"], "tau": 0.2}
    for number, origin in enumerate((backbone(), changed, *foreign, None)):
        detector(tmp_path / str(number), "detectron2", started_from=origin, seed=1)
    markdown, _ = write_report(tmp_path, tmp_path / "page", recipes=recipes)
    names = [line for line in markdown.read_text().splitlines() if "engine: detectron2" in line]
    assert len(names) == len(set(names)) == 5
    text = "\n".join(names)
    assert "backbone: x.pth (aaaaaaaa)" in text
    assert "backbone: random weights" in text
    assert text.count("backbone: keep_cutmix (resnet50)") == 2


class Page(HTMLParser):
    void = ("meta", "img", "br", "link", "rect", "line")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_self_contained(tmp_path: Path) -> None:
    from PIL import Image

    changed = {"method": "<b>x</b>|"}
    cifar(tmp_path / "a", artifacts={"pictures": "p.png", "views": "../secret.png"}, recipe=changed)
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "p.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    write_result(
        tmp_path / "f", kind="fidelity", name="destruction", metrics={"cutout": 20.0, "keep_cutout": 2.0},
        seed=0, config={},
        dataset={"name": "d", "sizes": {}, "checksum": "a"}, synthetic=True, shortened=False, wall_time_s=1.0,
        extra={"pairs": [{"name": "Cutout", "plain": "cutout", "keep": "keep_cutout"}]},
    )  # fmt: skip
    markdown, page = write_report(tmp_path, tmp_path / "out", recipes=recipes)
    html = page.read_text()
    parser = Page()
    parser.feed(html)
    assert parser.open == []
    assert parser.images
    assert all(image["src"].startswith("data:image/webp;base64,") and image["alt"] for image in parser.images)
    assert not re.search(r"(src|href)=\"https?:", html)
    assert "<b>x</b>" not in html
    assert "<b>" not in markdown.read_text()
    assert "20.0\u00a0%" in html
    assert "| Cutout | 20.0 | 2.0 |" in markdown.read_text()
    assert "../a/p.png" in markdown.read_text()
    assert "secret" not in markdown.read_text()  # not a file of the run
    assert len(parser.images) == 1
    with pytest.raises(ValueError, match=r"no result\.json below"):
        write_report(tmp_path / "out", tmp_path, recipes=recipes)


def test_runs_of_one_name_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    for number, (size, seed) in enumerate(((16, 0), (16, 1), (24, 0))):
        recipe = {"method": "cutout", "arch": "resnet18", "size": size}
        cifar(tmp_path / str(number), seed, recipe=recipe, config=recipe)
    cifar(tmp_path / "keep")
    markdown, _ = write_report(tmp_path, tmp_path / "page", recipes=recipes)
    runs = [line.split(" | ")[0] for line in markdown.read_text().splitlines() if " | cifar10 (" in line]
    assert sorted(runs) == [
        "| cutout (resnet18, full saliency), size=16",
        "| cutout (resnet18, full saliency), size=24",
        "| keep_cutout (resnet18, full saliency)",
    ]


def test_keep_against_plain_over_the_seeds_of_both(tmp_path: Path) -> None:
    plain = recipe_of(ClassifyConfig(method="cutout"))
    keep = recipe_of(ClassifyConfig(method="keep_cutout"))
    other = recipe_of(ClassifyConfig(method="cutout", size=24))
    mixed = recipe_of(ClassifyConfig(method="cutmix"))
    for number, (recipe, values) in enumerate(
        [
            (plain, [95.0, 95.2, 95.1]),
            (keep, [95.5, 95.8, 95.3, 99.0]),
            (other, [90.0, 90.0]),
            (mixed, [91.0, 91.0]),
        ]
    ):
        for seed, accuracy in enumerate(values):
            write_result(
                tmp_path / "runs" / f"{number}-{seed}",
                kind="classify",
                name="x",
                seed=seed,
                metrics={"accuracy": accuracy, "best": accuracy, "median_last_20": accuracy},
                config=recipe,
                recipe=recipe,
                synthetic=False,
                shortened=False,
                wall_time_s=1.0,
                dataset={"name": "cifar10", "sizes": {"val": 10}, "checksum": "a"},
            )
    markdown, page = write_report(tmp_path / "runs", tmp_path, recipes=recipes)
    text, html = markdown.read_text(), page.read_text().replace("\u00a0", " ")
    assert text.count("+0.43 [-0.08, +0.95], 3 pairs") == 1
    assert "pairs still needed" in text
    assert text.count(" pairs |") == 1
    said = "+0.43 [-0.08, +0.95], 3 pairs (points of accuracy, 95 % interval); it holds zero"
    assert html.count(said) == 1
    assert html.count('class="axis"') == 1


def test_augmentations_against_none_where_there_are_two_pairs(tmp_path: Path) -> None:
    """Without Keep, and nothing else may differ."""
    runs = {
        "none": ({"method": "none"}, [90.0, 90.2]),
        "cutout": ({"method": "cutout"}, [91.0, 91.4]),
        "keep_cutout": ({"method": "keep_cutout"}, [92.0, 92.0]),
        "cutmix": ({"method": "cutmix"}, [99.0]),
        "rand_augment": ({"method": "rand_augment", "epochs": 1}, [80.0, 80.0]),
    }
    for name, (given, values) in runs.items():
        recipe = recipe_of(ClassifyConfig(**given))
        for seed, value in enumerate(values):
            content = {"metrics": {"accuracy": value, "best": value, "median_last_20": value}}
            content |= {"config": recipe, "recipe": recipe, "synthetic": False, "shortened": False}
            data = {"name": "cifar10", "sizes": {"val": 10}, "checksum": "a"}
            write_result(
                tmp_path / f"{name}-{seed}", kind="classify", name="x", seed=seed, dataset=data,
                wall_time_s=1.0, **content,
            )  # fmt: skip
    for algorithm, values in {"supervised": [50.0, 51.0], "uda": [60.0, 62.0]}.items():
        recipe = recipe_of(UdaConfig(algorithm=algorithm))
        for seed, value in enumerate(values):
            content = {"metrics": {"accuracy": value, "best": value, "median_last_20": value}}
            write_result(
                tmp_path / f"{algorithm}-{seed}", kind="ssl_uda", name="x", seed=seed, config=recipe,
                recipe=recipe, synthetic=False, shortened=False, wall_time_s=1.0,
                dataset={"name": "cifar10", "sizes": {"val": 10}, "checksum": "a"}, **content,
            )  # fmt: skip
    markdown, page = write_report(tmp_path, tmp_path / "page", recipes=recipes)
    parts = markdown.read_text().split("### Augmentation against none, pairs of one seed\n")[1:]
    tables = [
        [line for line in part.partition("\n#")[0].splitlines() if " - " in line.partition(" | ")[0]]
        for part in parts
    ]
    assert [line.partition(" | ")[0] for (line,) in tables] == [
        "| cutout (resnet18) - none (resnet18)",
        "| uda (wrn28_2, 4000 labels) - supervised (wrn28_2, 4000 labels)",
    ]
    assert "+1.10 [-0.17, +2.37], 2 pairs" in tables[0][0]
    assert "+10.50 [+4.15, +16.85], 2 pairs" in tables[1][0]
    html = page.read_text()
    assert html.count("Augmentation against none, pairs of one seed</h3>") == 2
    assert html.count("right of zero the augmentation is better") == 2
