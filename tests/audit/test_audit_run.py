"""The whole audit on drawn data: rows, page, pictures, cache, limits, and every sentence about bad input."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import oracles
import pytest
import torch
from torch import nn
from torchvision.transforms.v2.functional import to_pil_image

from keepaug.__main__ import commands
from keepaug.audit import advice, audit
from keepaug.data.synthetic import CLASSES, draw_classification, write_classification, write_detection

ROOT = Path(__file__).parents[2]
PLAIN = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
OURS = [
    "cutout:12",
    "random_erasing",
    "cutmix",
    "mixup",
    "grid_mask",
    "rand_augment:2,9",
    "auto_augment",
    "aug_mix",
]
INTERVALS = ("importance_lost", "fidelity", "flipped", "logit_drop", "diversity", "feature_spread", "cost")


def tool(name: str):
    return importlib.import_module(commands()[name].module)


def network(num_classes: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


@pytest.fixture(scope="module")
def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(draw_classification(70, size=(32, 32), num_classes=4, generator=generator))


def test_every_augmentation_of_ours(drawn) -> None:
    result = audit(network(), drawn, OURS, sweep=20, quiet=True, **PLAIN)
    rows = {(row["augmentation"], row["keep"]): row for row in result.rows}
    assert len(rows) == len(OURS) + 6
    for (name, keep), row in rows.items():
        assert row["images"] == 70
        assert row["settings"].get("tau") == (0.6 if keep else None)
        for measure in INTERVALS:
            if (name, measure) == ("aug_mix", "importance_lost"):
                assert row[measure] is None
                continue
            assert row[measure]["low"] <= row[measure]["mean"] <= row[measure]["high"], (name, measure)
        for measure in ("importance_lost", "destroyed", "flipped", "area_hidden"):
            assert row[measure] is None or 0 <= row[measure]["mean"] <= 1
    pixels, labels, _ = drawn
    theirs = {"torch": torch, "model": network(), "labels": labels, "strong": pixels / 255}
    for row in rows.values():  # what the page offers to copy runs
        images = pixels if "uint8 images" in row["code"] else pixels / 255
        exec(row["code"], {**theirs, "images": images, "image": to_pil_image(pixels[0])})
    for name in ("cutout:12", "random_erasing", "cutmix"):
        plain, keep = rows[name, False], rows[name, True]
        assert keep["area_hidden"]["mean"] == pytest.approx(plain["area_hidden"]["mean"], abs=1e-6)
        assert keep["importance_lost"]["mean"] != plain["importance_lost"]["mean"]
    assert rows["mixup", False]["importance_lost"]["mean"] == 0
    assert "blends several views" in " ".join(result.content["warnings"])
    assert {sweep["augmentation"] for sweep in result.content["sweeps"]} == {
        "cutout:12",
        "random_erasing",
        "grid_mask",
        "rand_augment:2,9",
        "aug_mix",
    }


def test_destroyed_is_what_the_boxes_say(drawn) -> None:
    """The oracle: Cutout's own regions, drawn again, against the boxes."""
    from keepaug import Cutout
    from keepaug.runs.seeds import make_generator

    images, _, boxes = drawn
    result = audit(network(), drawn, ["cutout:16"], images=64, sweep=0, quiet=True, **PLAIN)
    from keepaug.audit.images import Sample, open_source

    order = Sample(open_source(drawn), 64, None, 0).positions
    regions = Cutout(16).sample(images[order].float(), generator=make_generator(0, "audit", "cutout", 0))
    share = oracles.covered_share(regions, boxes[order])
    row = result.rows[0]
    assert row["destroyed"]["mean"] == pytest.approx(float((share >= 0.5).double().mean()), abs=1e-6)
    assert row["destroyed_curve"][1][1] == pytest.approx(float((share >= 0.2).double().mean()), abs=1e-6)


def test_fidelity_flips_and_drop_by_hand(drawn) -> None:
    model = network()
    result = audit(model, drawn, ["cutout:31,placement=inside"], images=64, sweep=0, quiet=True, **PLAIN)
    from keepaug import Cutout
    from keepaug.audit.images import Sample, open_source
    from keepaug.runs.seeds import make_generator

    images, labels, _ = drawn
    order = Sample(open_source(drawn), 64, None, 0).positions
    inputs = (images[order] / 255 - 0.5) / 0.25
    cut = Cutout(31, "inside")(inputs, generator=make_generator(0, "audit", "cutout", 0))
    with torch.no_grad():
        before, after = model(inputs), model(cut)
    own = labels[order]
    right, still = (before.argmax(1) == own).double().sum(), (after.argmax(1) == own).double().sum()
    row = result.rows[0]
    assert row["fidelity"]["mean"] == pytest.approx(float(still / right), abs=1e-6)
    assert row["flipped"]["mean"] == pytest.approx(
        float((before.argmax(1) != after.argmax(1)).double().mean())
    )
    drop = (before - after).gather(1, own[:, None]).mean()
    assert row["logit_drop"]["mean"] == pytest.approx(float(drop), abs=1e-5)
    losses = [nn.functional.cross_entropy(logits, own) for logits in (after, before)]
    assert row["diversity"]["mean"] == pytest.approx(float(losses[0] / losses[1]), abs=1e-5)


def test_the_network_is_left_alone_and_a_seed_decides(drawn) -> None:
    model = network().train()
    before = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    first = audit(model, drawn, ["cutmix", "rand_augment"], sweep=10, quiet=True, **PLAIN).content
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    again = audit(model, drawn, ["cutmix", "rand_augment"], sweep=10, quiet=True, **PLAIN).content
    for one, other in zip(first["rows"], again["rows"], strict=True):
        assert {**one, "cost": None} == {**other, "cost": None}


def test_a_limit_of_what_is_not_known_is_refused_before_anything_is_measured(drawn, monkeypatch) -> None:
    monkeypatch.setattr("keepaug.audit.run._measured", None)
    with pytest.raises(ValueError, match="destroyed has a limit, but no objects are known"):
        audit(
            network(),
            (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), None),
            ["cutout:4"],
            limits={"destroyed": 5},
            **PLAIN,
        )


def test_command_page_cache_and_limits(tmp_path: Path, monkeypatch, capsys) -> None:
    command = tool("audit")
    monkeypatch.setenv("KEEPAUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    root = write_classification(tmp_path / "drawn", num_train=4, num_val=40, size=(32, 32), num_classes=4)
    torch.jit.trace(network().eval(), torch.zeros(1, 3, 32, 32)).save(tmp_path / "net.pt")
    (tmp_path / "mine_for_audit.py").write_text(
        "from torchvision.transforms import v2\ntransform = v2.Compose([v2.RandomHorizontalFlip(1.0), "
        "v2.RandomErasing(1.0)])\n"
    )
    base = [
        "--model",
        "net.pt",
        "--data",
        str(root),
        "--mean",
        "0.5,0.5,0.5",
        "--std",
        "0.25,0.25,0.25",
        "--sweep",
        "10",
    ]
    named = ["--augment", "keep_cutout:16", "mine_for_audit:transform"]
    assert command.main([*base, *named, "--output", "a"]) == 0
    said = capsys.readouterr().out
    content = json.loads(Path("a/audit.json").read_text())
    assert content["sentence"] in said
    assert {"rows", "network", "data", "seed", "versions"} <= content.keys()
    assert [(row["augmentation"], row["keep"]) for row in content["rows"]] == [
        ("cutout:16", False),
        ("cutout:16", True),
        ("mine_for_audit:transform", False),
        ("mine_for_audit:transform", True),
    ]
    flipped = content["rows"][2]
    assert 0.02 < flipped["importance_lost"]["mean"] < 0.6  # what is erased, not what is mirrored
    page = Path("a/audit.html").read_text().replace("\u00a0", " ")
    assert page.index(content["sentence"].replace("'", "&#39;")) < page.index("<svg")
    assert page.count("<figure") == 24
    assert "KeepCutout(size=16" in page
    assert 'src="http' not in page
    # again: nothing is measured, not even with another limit
    monkeypatch.setattr("keepaug.audit.run.run_trials", None)
    assert command.main([*base, *named, "--output", "b", "--fail-above", "destroyed=99"]) == 0
    assert json.loads(Path("b/audit.json").read_text()) == content
    assert command.main([*base, *named, "--output", "b", "--fail-above", "destroyed=0"]) == 1
    failed = capsys.readouterr().err
    assert "KeepCutout: destroyed is" in failed
    assert "Cutout of 16" not in failed  # keep_cutout was named
    assert command.main([*base, *named, "--fail-above", "beauty=1"]) == 2
    assert "'beauty' is no measure" in capsys.readouterr().err
    monkeypatch.setattr("keepaug.audit.run.audit", None)  # said before anything is measured
    assert command.main([*base, *named, "--fail-above", "fidelity=90"]) == 2
    assert "fidelity is better the higher" in capsys.readouterr().err
    monkeypatch.undo()


def test_coco_boxes_without_labels(tmp_path: Path) -> None:
    root = write_detection(tmp_path / "coco", num_train=2, num_val=20, size=(96, 128))
    result = audit(
        network(5),
        root / "val2017",
        ["cutout:24"],
        boxes="instances_val2017.json",
        sweep=0,
        size=64,
        quiet=True,
        **PLAIN,
    )
    data = result.content["data"]
    counts = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    assert not data["labels"]
    assert 0 < data["objects"] <= len(counts["annotations"])
    assert 0 < result.rows[0]["destroyed"]["mean"] < 1
    assert "no class labels" in " ".join(result.content["warnings"])


def test_accuracy_near_chance_is_said_first(drawn) -> None:
    images, labels, _ = drawn
    wrong = labels.roll(1)
    result = audit(network(), (images, wrong), ["cutout"], sweep=0, quiet=True, **PLAIN)
    assert result.content["warnings"][0].startswith("The network is right about")


@pytest.mark.parametrize(("chance", "right"), [(0.1, 0.13), (0.8, 0.85), (1.0, 1.0)])
def test_networks_that_are_right_are_not_warned_of(chance: float, right: float) -> None:
    rows = [{"untold": 0, "keep": False}]

    def said(accuracy: float) -> list[str]:
        clean = {"accuracy": {"mean": accuracy, "low": accuracy}, "chance": chance}
        return advice.warnings(clean, rows, left_out=(0, 0), labelled=True)

    assert said(right) == []
    assert len(said(0.0)) == 1


def test_where_the_border_favours_plain_boxes_it_is_said(drawn) -> None:
    def towards_the_middle(images: torch.Tensor) -> torch.Tensor:
        return torch.stack([images[:, :, 8:24, 8:24].sum(dim=(1, 2, 3)), images.sum(dim=(1, 2, 3))], dim=1)

    images, labels = drawn[0], torch.zeros(70, dtype=torch.int64)
    options = {"sweep": 0, "quiet": True, "tau": 1.0, **PLAIN}
    matched = audit(towards_the_middle, (images, labels), ["cutout:16"], **options)
    assert "placement=inside compares whole boxes" in matched.content["advice"][0]
    inside = audit(towards_the_middle, (images, labels), ["cutout:16,inside"], **options)
    assert "placement=inside" not in inside.content["advice"][0]


class Larger:
    def __call__(self, image):
        return image.resize((40, 40))


class Text:
    def __call__(self, image):
        return "a picture"


class Normalised:
    def __call__(self, image):
        from torchvision.transforms.v2.functional import pil_to_tensor

        return pil_to_tensor(image) / 40.0 - 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": torch.full((70,), 9)}, "its classes do not fit the labels"),
        ({"augmentations": [Larger()]}, "returned 40 x 40 pixels for an image of 32 x 32"),
        ({"augmentations": [Text()]}, "returned str; expected an RGB image"),
        ({"augmentations": [Normalised()]}, "leave the normalisation out"),
        ({"augmentations": ["cutout:40"]}, "size is 40 and the images have a side of 32"),
        ({"augmentations": ["cutout:x"]}, "size must be a whole number, got 'x'"),
        ({"augmentations": ["cutout:speed=3"]}, "has no setting 'speed'"),
        ({"augmentations": ["cutoff"]}, "'cutoff' is no augmentation"),
        ({"augmentations": ["keep_mixup"]}, "mixup has no Keep version"),
        ({"augmentations": ["nowhere_to_be_found:x"]}, "cannot be loaded"),
        ({"augmentations": []}, "name at least one"),
        ({"mean": None}, "is not known: give mean and std"),
        ({"tau": 2.0}, "tau must be in"),
        ({"images": 0}, "1 or more"),
        ({"sweep": -1}, "0 for no sweep, got -1"),
        ({"size": 0}, "8 to 4096, got 0"),
        ({"device": "gpu"}, "allowed: auto, cpu, cuda"),
        ({"network": nn.Conv2d(3, 4, 3)}, "must return logits"),
    ],
)
def test_bad_input_is_one_sentence(drawn, change, said: str) -> None:
    images, labels, _ = drawn
    settings = {"network": network(), "augmentations": ["cutout"], "labels": labels, "sweep": 0, **PLAIN}
    settings |= change
    model, augmentations, labels = (settings.pop(name) for name in ("network", "augmentations", "labels"))
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        audit(model, (images, labels), augmentations, quiet=True, **settings)
    assert said in str(caught.value)


def test_boxes_outside_and_classes_that_do_not_fit(tmp_path: Path) -> None:
    root = write_detection(tmp_path / "coco", num_train=2, num_val=3)
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [100, 100, 60, 20]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not lie within its image"):
        audit(network(), root / "val2017", ["cutout"], boxes=file.name, size=32, **PLAIN)
    folder = write_classification(tmp_path / "classes", num_train=4, num_val=8, size=(32, 32), num_classes=4)
    with pytest.raises(ValueError, match="do not fit the 4 of the images"):
        audit(network(), folder, ["cutout"], classes=["cat", "dog", "bird", "fish"], **PLAIN)
    assert sorted(CLASSES[:4]) == sorted(path.name for path in (folder / "val").iterdir())


def test_a_picture_is_no_list_of_pictures(tmp_path: Path) -> None:
    from PIL import Image

    Image.effect_noise((32, 32), 50).convert("RGB").save(tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"one.png is no text: expected a folder"):
        audit(network(), tmp_path / "one.png", ["cutout:8"], **PLAIN)


def test_images_of_several_sizes_need_one(tmp_path: Path) -> None:
    from PIL import Image

    for number, size in enumerate([(32, 32), (40, 36)]):
        Image.effect_noise(size, 50).convert("RGB").save(tmp_path / f"photo {number}.png")
    with pytest.raises(ValueError, match=r"differ in size \(\S*photo [01]\.png is .* give size \(--side\)"):
        audit(network(), tmp_path, ["cutout:8"], **PLAIN)
    assert len(audit(network(), tmp_path, ["cutout:8"], size=32, quiet=True, sweep=0, **PLAIN).rows) == 2


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(run_measuring_memory) -> None:
    script = """
import sys
import torch
from torch import nn
from keepaug.audit import audit
torch.manual_seed(0)
pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
model = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), *pooled)
num = int(sys.argv[1])
images = torch.randint(0, 256, (num, 3, 32, 32), dtype=torch.uint8)
options = {"sweep": 0, "quiet": True, "mean": (0.5,) * 3, "std": (0.5,) * 3}
audit(model, (images, torch.arange(num) % 4), ["cutout", "rand_augment"], **options)
print(peak())
"""
    few, many = run_measuring_memory(script, "128"), run_measuring_memory(script, "1024")
    assert (
        many - few < 60
    )  # the images themselves are 6 MB; each with its float copies, maps and views would be 700


def test_a_cached_result_that_was_changed_is_measured_again(tmp_path: Path) -> None:
    from keepaug.audit.run import _load, _store

    file = tmp_path / "a" / "result.pt"
    assert _load(file) is None
    _store(file, {"columns": [{"known": torch.ones(3)}]})
    assert torch.equal(_load(file)["columns"][0]["known"], torch.ones(3))
    whole = file.read_bytes()
    for damaged in (b"", whole[:-1], whole[:40] + b"x" + whole[41:]):
        file.write_bytes(damaged)
        assert _load(file) is None
    torch.save({"columns": [{"others": torch.ones(3)}]}, file)
    assert _load(file) is None


def _row(keep: bool, mean: float, low: float, high: float, **more) -> dict:
    fidelity = {"mean": mean, "low": low, "high": high}
    row = {"augmentation": "cutout:8", "keep": keep, "title": "KeepCutout" if keep else "cutout of 8 pixels"}
    row |= {"settings": {}, "importance_lost": None, "by_object": [], "images": 40, "fidelity": fidelity}
    return row | more


def test_what_the_images_do_not_tell_apart_is_no_finding() -> None:
    """Of the headline and of the advice; the difference is that of the same images."""
    share = {"mean": 0.3, "low": 0.2, "high": 0.4}
    sure, open_ = {"mean": -0.1, "low": -0.2, "high": -0.02}, {"mean": -0.1, "low": -0.2, "high": 0.01}
    for difference, said in ((sure, "20 %."), (open_, "20 %, a difference that 40 images do not settle.")):
        rows = [
            _row(False, 0.9, 0.8, 0.94, destroyed=share),
            _row(True, 0.97, 0.9, 0.99, destroyed=share | {"mean": 0.2}, destroyed_difference=difference),
        ]
        assert advice.headline(rows).endswith(said)
        rows[1]["fidelity_difference"] = {"mean": 0.07, "low": -difference["high"], "high": 0.2}
        advised = advice.advise(rows, [], 0.95)[0]
        assert advised.startswith("Cutout of 8 pixels: ")
        assert ("take KeepCutout (fidelity 97 % [90, 99]" in advised) == (difference is sure)
        assert ("too strong" in advised) == (difference is open_)


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.97, 0.96, 0.99), "harmless to this network as it is (fidelity 97 % [96, 99])"),
        ((0.97, 0.9, 0.99), "seems harmless as it is"),
        ((0.93, 0.9, 0.96), "perhaps too strong for this network"),
        ((0.9, 0.85, 0.94), ": too strong for this network"),
    ],
)
def test_advice_is_as_sure_as_its_interval(interval: tuple[float, float, float], said: str) -> None:
    assert said in advice.advise([_row(False, *interval)], [], 0.95)[0]
