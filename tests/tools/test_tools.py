"""Each command runs its smallest job, and says what is wrong when something is."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from keepaug.__main__ import commands
from keepaug.choices import RANGES
from keepaug.commands import panels
from keepaug.models import EarlyHeadNetwork
from keepaug.models.weights import NetworkSpec, save_classifier
from keepaug.policies import OPERATIONS as POLICY_OPERATIONS

ROOT = Path(__file__).parents[2]


def tool(name: str):
    return importlib.import_module(commands()[name].module)


@pytest.mark.slow
def test_quickstart_from_data_to_report_and_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quickstart = tool("quickstart")
    assert quickstart.main(["--output", str(tmp_path / "q"), "--shrink", "--at-once", "2"]) == 0
    html = (tmp_path / "q" / "report.html").read_text()
    methods = ("keep_cutmix", "keep_rand_augment")
    for word in (*methods, "engine: torchvision", "Random erasing", "data:image/webp;base64"):
        assert word in html
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "q" / "detectors").rglob("result.json")}
    assert len(first) == 3
    assert quickstart.main(["--output", str(tmp_path / "q"), "--shrink"]) == 0
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert "done before" in capfd.readouterr().out


def test_convert_report_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert = tool("convert")
    torch.save(resnet18().state_dict(), tmp_path / "w.pth")
    assert (
        convert.main(
            [
                "--weights",
                str(tmp_path / "w.pth"),
                "--output",
                str(tmp_path / "b.pth"),
                "--verify",
                "--report",
            ]
        )
        == 0
    )
    assert "MODEL.RESNETS.DEPTH 18" in capsys.readouterr().out
    assert (
        convert.main(["--weights", str(tmp_path / "b.pth"), "--output", str(tmp_path / "r.pth"), "--reverse"])
        == 0
    )
    assert convert.main(["--weights", str(tmp_path / "b.pth"), "--output", str(tmp_path / "c.pth")]) == 2
    assert "Detectron2 backbone already" in capsys.readouterr().err
    assert not (tmp_path / "c.pth").exists()


def test_show_regions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show = tool("show")
    torch.save(resnet18().state_dict(), tmp_path / "w.pth")
    Image.effect_noise((80, 60), 60).convert("RGB").save(tmp_path / "i.png")
    base = ["--torchvision", str(tmp_path / "w.pth"), "--side", "64", "--output", str(tmp_path / "o.png")]
    assert show.main(["--image", str(tmp_path / "i.png"), "--arch", "resnet18", *base]) == 0
    assert Image.open(tmp_path / "o.png").width > 6 * 190
    plain = (tmp_path / "o.png").read_bytes()
    assert panels.TITLES == ("image", "Cutout", "RandAugment", "saliency", "KeepCutout", "KeepRandAugment")
    assert show.main(["--image", str(tmp_path / "i.png"), "--arch", "resnet18", "--contrast", *base]) == 0
    assert (tmp_path / "o.png").read_bytes() != plain
    model = ["--model", "torchvision:resnet18", "--weights", str(tmp_path / "w.pth")]
    assert show.main(["--image", str(tmp_path / "i.png"), *model, *base[2:]]) == 0
    assert (tmp_path / "o.png").read_bytes() == plain
    assert show.main(["--image", str(tmp_path / "i.png"), *base]) == 2
    assert "is no resnet50" in capsys.readouterr().err
    assert show.main(["--image", str(tmp_path / "w.pth"), "--arch", "resnet18", *base]) == 2


def test_show_regions_draws_figure_4_and_all_policies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show = tool("show")
    Image.effect_noise((40, 40), 60).convert("RGB").save(tmp_path / "i.png")
    base = ["--image", str(tmp_path / "i.png"), "--side", "32", "--output", str(tmp_path / "o.png")]
    spec = NetworkSpec("resnet8", 3, {"stem": "cifar"})
    widths = []
    for name, early in (("early", True), ("plain", False)):
        network = spec.build()
        save_classifier(
            tmp_path / f"{name}.pt", network, spec, classes=["a", "b", "c"], mean=(0.5,) * 3, std=(0.2,) * 3,
            provenance={}, early=EarlyHeadNetwork(network) if early else None,
        )  # fmt: skip
        given = ["--weights", str(tmp_path / f"{name}.pt"), "--show", "figure4"]
        assert show.main([*base, *given]) == 0
        picture = Image.open(tmp_path / "o.png").convert("L")
        picture = picture.crop((0, 36, picture.width, picture.height))  # without the titles
        widths.append(picture.point(lambda value: 255 * (value < 250)).getbbox()[2])  # the last picture's end
    assert widths[0] - widths[1] > 300  # two pictures more, of the early head
    assert show.main([*base, "--show", "policies"]) == 0
    args = show.build_parser().parse_args([*base, "--show", "policies"])
    labels = [label for label, _ in panels.policies(args)]
    for wanted in (*POLICY_OPERATIONS, *RANGES, "of 10", "of 30", "cifar10", "imagenet", "svhn", "AugMix"):
        assert any(wanted in label for label in labels), wanted
    assert Image.open(tmp_path / "o.png").height > (len(labels) + 1) * 190
    assert show.main(base) == 2
    assert "give --weights" in capsys.readouterr().err


def test_show_regions_reads_what_the_converter_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same picture from one ResNet, however it is wrapped."""
    show = tool("show")
    Image.effect_noise((80, 60), 60).convert("RGB").save(tmp_path / "i.png")
    torch.manual_seed(0)
    state = resnet18(num_classes=5).state_dict()
    other = resnet18(num_classes=5).state_dict()
    trunk = {key: value for key, value in state.items() if not key.startswith("fc.")}
    flipped = {**state, "conv1.weight": state["conv1.weight"].flip(1)}
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    wrapped = {
        "plain": state,
        "ddp": {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 1},
        "mmpretrain": {
            "state_dict": {
                **{f"backbone.{key}": value for key, value in trunk.items()},
                **{f"head.{key}": state[key] for key in ("fc.weight", "fc.bias")},
            }
        },
        "bgr": {"state_dict": flipped, "color_order": "BGR", "mean": mean, "std": std},
        "two": {"model": other, "model_ema": {f"module.{key}": value for key, value in state.items()}},
    }
    pictures = {}
    for name, content in wrapped.items():
        torch.save(content, tmp_path / f"{name}.pth")
        out = tmp_path / f"{name}.png"
        args = ["--image", str(tmp_path / "i.png"), "--side", "64", "--output", str(out)]
        key = ["--key", "model_ema"] if name == "two" else []
        assert show.main([*args, "--weights", str(tmp_path / f"{name}.pth"), *key]) == 0
        pictures[name] = np.asarray(Image.open(out)).astype(int)
    assert all(np.abs(picture - pictures["plain"]).max() <= 2 for picture in pictures.values())
    for name, content, message in (
        ("headless", trunk, "no classifier"),
        ("aa", {"arch": "resnetaa18", "state_dict": state}, "anti-aliased"),
        ("two", wrapped["two"], "several sets of weights"),
        ("none", {"features.0.weight": torch.ones(2)}, "no ResNet"),
    ):
        torch.save(content, tmp_path / f"{name}.pth")
        args = ["--image", str(tmp_path / "i.png"), "--weights", str(tmp_path / f"{name}.pth")]
        assert show.main([*args, "--output", str(tmp_path / "no.png")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no.png").exists()


def test_report_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tool("report")
    assert report.main([str(tmp_path)]) == 2
    assert "no result.json below" in capsys.readouterr().err
    assert report.main([str(tmp_path), "--table", "12"]) == 2
    assert report.main([str(tmp_path), "--table", "9"]) == 0
    assert "Faster R-CNN ResNet50-C4" in capsys.readouterr().out


def test_train_classifier_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = tool("train-classifier")
    config = str(ROOT / "configs" / "classify" / "laptop.yaml")
    assert train.main(["--config", config, "root=/nowhere", "--output", str(tmp_path)]) == 2
    assert "no folder /nowhere" in capsys.readouterr().err
    assert train.main(["--config", config, "methd=cutout"]) == 2
    assert "did you mean method?" in capsys.readouterr().err
    assert "keep_cutmix" in train.build_parser().format_help()


def test_train_classifier_runs_seeds_and_does_not_repeat_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from keepaug.data.synthetic import write_classification

    train = tool("train-classifier")
    root = write_classification(tmp_path / "d", num_train=16, num_val=8, num_classes=4, size=(32, 32))
    config = str(ROOT / "configs" / "classify" / "laptop.yaml")
    call = [
        "--config",
        config,
        "--output",
        str(tmp_path / "run"),
        "--shrink",
        "--seeds",
        "0",
        "1",
        f"root={root}",
    ]
    assert train.main([*call, "pictures=false", "tensorboard=false"]) == 0
    results = [tmp_path / f"run-seed{seed}" / "result.json" for seed in (0, 1)]
    assert [json.loads(path.read_text())["seed"] for path in results] == [0, 1]
    assert "(2 seeds)" in capsys.readouterr().out
    before = [path.stat().st_mtime_ns for path in results]
    assert train.main([*call, "pictures=false", "tensorboard=false", "--resume"]) == 0
    assert [path.stat().st_mtime_ns for path in results] == before


def test_train_detector_command_line_is_detectron2s() -> None:
    """Frozen: scripts that call Detectron2's own training script call this one."""
    parser = tool("train-detector").build_parser()
    given = [
        "--config-file",
        "c.yaml",
        "--resume",
        "--eval-only",
        "--num-gpus",
        "2",
        "--num-machines",
        "3",
        "--machine-rank",
        "1",
    ]
    overrides = ["SOLVER.BASE_LR", "0.01", "SEED", "-1"]
    # Detectron2's takes everything after the first override for overrides; this one finds its options there
    # too.
    for order in (
        [*given, "--dist-url", "tcp://x", *overrides],
        [*overrides, *given, "--dist-url", "tcp://x"],
    ):
        args = parser.parse_intermixed_args(order)
        assert (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url) == (2, 3, 1, "tcp://x")
        assert args.opts == overrides
        assert args.resume
        assert args.eval_only


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "processes"),
    [
        ("torchvision", 1),
        pytest.param("detectron2", 1, marks=pytest.mark.detectron2),
        pytest.param("detectron2", 2, marks=pytest.mark.detectron2),
    ],
)
def test_train_detector_trains_evaluates_and_scores_again(
    engine: str, processes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from keepaug.data.synthetic import write_detection

    detect = tool("train-detector")
    root = write_detection(tmp_path / "d", num_train=4, num_val=2, num_classes=4)
    config = [
        "--config-file",
        str(ROOT / "configs" / "quickstart" / "detector.yaml"),
        "--engine",
        engine,
        "--data-root",
        str(root),
        "--num-gpus",
        str(processes),
    ]
    opts = ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "OUTPUT_DIR", str(tmp_path / "run")]
    assert detect.main([*config, "--draw", "2", *opts]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["engine"] == engine
    assert result["synthetic"]
    assert result["shortened"]
    assert detect.main([*config, *opts]) == 2
    assert "holds a run already" in capsys.readouterr().err
    results = tmp_path / "run" / "inference" / "coco_instances_results.json"
    before = json.loads((tmp_path / "run" / "evaluation.json").read_text())["stats"]
    assert detect.main([*config, "--eval-only", "--results-json", str(results), *opts]) == 0
    again = json.loads(results.with_suffix(".evaluation.json").read_text())["stats"]
    assert again == before
    assert (
        detect.main(
            [*config, "--eval-only", "MODEL.WEIGHTS", str(tmp_path / "run" / "model_final.pth"), *opts]
        )
        == 0
    )


def test_benchmark_prints_ratios(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = tool("benchmark")
    assert benchmark.main(["--shrink", "--output", str(tmp_path / "b.json"), "--device", "cpu"]) == 0
    figures = json.loads((tmp_path / "b.json").read_text())["figures"]
    assert set(figures) == {"saliency", "pipeline", "regions", "fidelity"}
    assert all(network["low_resolution_early"] > 0 for network in figures["saliency"].values())
    assert "resnet18" in figures["saliency"]
    assert figures["pipeline"]["crop, flip, normalize, 0 workers"] > 0
    assert 0.2 < figures["fidelity"]["uniform (chance)"] < 0.6  # the share that the quantile forbids is 0.4
    assert figures["fidelity"]["bfloat16"] < 0.2
    assert figures["fidelity"]["kept in 16 bits, same crop"] < 0.2  # the padding's share alone
    assert figures["fidelity"]["low resolution and early head"] > 0
    reid = ["reid_evaluation", "reid_reranking", "scale"]
    output = ["--output", str(tmp_path / "r.json"), "--device", "cpu"]
    assert benchmark.main([*reid, "--shrink", *output]) == 0
    figures = json.loads((tmp_path / "r.json").read_text())["figures"]
    assert list(figures) == reid
    assert all(
        figures[name]["re-ranking, ours" if "rerank" in name else "ours"]["seconds"] > 0 for name in reid[:2]
    )
    assert len(figures["scale"]) >= 3  # gallery, detections, folder
    monkeypatch.setattr(torch, "compile", lambda module: module)  # half a minute, and not what is tested
    output = ["--output", str(tmp_path / "s.json"), "--device", "cpu"]
    assert benchmark.main(["step", "--shrink", *output]) == 0
    steps = json.loads((tmp_path / "s.json").read_text())["figures"]["step"]["resnet8"]
    assert list(steps) == ["float32, eager", "float32, compiled", "bf16, eager", "bf16, compiled"]
    eager = steps["float32, eager"]
    assert sum(eager.values()) == pytest.approx(2)  # itself, and its parts
    assert eager["convolutions"] > eager["normalization"] > 0
    assert benchmark.main(["speed"]) == 2
    assert "unknown section speed" in capsys.readouterr().err
