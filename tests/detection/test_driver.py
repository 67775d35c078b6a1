"""The driver refuses what cannot work before it trains; loading is checked tensor by tensor."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from convert_helpers import caffe2
from PIL import Image
from torchvision.models import resnet18

from detection.architecture import Architecture
from detection.coco import CocoPaths, load_coco
from detection.config import ConfigError
from detection.convert import convert
from detection.driver import run
from detection.prepare import DetectorJob, choose_engine, prepare
from keepaug.classify import ClassifyConfig
from keepaug.data.synthetic import write_detection
from keepaug.runs.recorder import Recorder

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart" / "detector.yaml"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detection(tmp_path_factory.mktemp("driver") / "d", num_train=4, num_val=2, num_classes=4)


def job(root: Path, output: Path, *opts: str, **change) -> DetectorJob:
    return DetectorJob(
        CONFIG, ("OUTPUT_DIR", str(output), *opts), **{"engine": "torchvision", "data_root": root, **change}
    )


@pytest.mark.parametrize(
    ("opts", "change", "message"),
    [
        (
            ("SOLVER.AMP.ENABLED", "True", "MODEL.RESNETS.NORM", "GN"),
            {},
            "torchvision engine does not honour: MODEL.RESNETS.NORM",
        ),
        (("MODEL.ROI_HEADS.NUM_CLASSES", "80"), {}, "4 categories, the model 80 classes"),
        (("MODEL.WEIGHTS", "/nowhere.pth"), {}, r"no file /nowhere\.pth; keepaug convert"),
        (("MODEL.WEIGHTS", "https://x/y.pth"), {}, "download the file"),
        (("MODEL.BACKBONE.FREEZE_AT", "2"), {}, "frozen layers cannot learn"),
        ((), {"engine": "tensorflow"}, "expected one of"),
        ((), {"num_gpus": 2}, "one process"),
        ((), {"max_images": 0}, "1 or more"),
        ((), {"eval_only": True}, "needs MODEL.WEIGHTS"),
        ((), {"data_root": Path("/nowhere")}, "no annotation file"),
        (("DATASETS.TEST", "('a', 'b')"), {}, "exactly one data set"),
    ],
)
def test_refused_before_training(opts, change, message: str, root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(job(root, tmp_path / "run", *opts, **change))
    assert not list(tmp_path.rglob("*.pth"))


def test_weights_that_contradict_the_config_are_refused(root: Path, tmp_path: Path) -> None:
    torch.save(resnet18().state_dict(), tmp_path / "w.pth")
    convert(tmp_path / "w.pth", tmp_path / "b.pth")
    prepared = prepare(job(root, tmp_path / "run", "MODEL.WEIGHTS", str(tmp_path / "b.pth")))
    assert any("ResNet-18" in note for note in prepared.notes)
    with pytest.raises(ConfigError, match=r"set INPUT\.FORMAT RGB"):
        prepare(job(root, tmp_path / "run", "MODEL.WEIGHTS", str(tmp_path / "b.pth"), "INPUT.FORMAT", "BGR"))


ZOO = (
    "MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "256", "MODEL.RESNETS.STRIDE_IN_1X1",
    "True", "INPUT.FORMAT", "BGR",
    "MODEL.PIXEL_MEAN", "[103.53,116.28,123.675]", "MODEL.PIXEL_STD", "[1.0,1.0,1.0]",
)  # fmt: skip


def test_caffe2_weights_want_the_zoos_config(root: Path, tmp_path: Path) -> None:
    shapes = Architecture(50).expected_shapes()
    state = {key: torch.ones(()).expand(shape) for key, shape in shapes.items()}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(caffe2(state)))
    opts = ("MODEL.WEIGHTS", str(tmp_path / "R-50.pkl"))
    notes = prepare(job(root, tmp_path / "run", *opts, *ZOO)).notes
    assert any("ResNet-50 from R-50.pkl under Caffe2's names" in note for note in notes)
    with pytest.raises(ConfigError) as caught:
        prepare(job(root, tmp_path / "run", *opts))
    assert all(
        f"{key} {value}" in str(caught.value)
        for key, value in zip(ZOO[::2], ZOO[1::2], strict=True)
        if "OUT" not in key
    )


class Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)])
@pytest.mark.parametrize("name", ["evil.pkl", "evil.pth", "evil.pyth"])
def test_no_way_of_giving_weights_runs_them(engine: str, name: str, root: Path, tmp_path: Path) -> None:
    mark, evil, output = tmp_path / "executed", tmp_path / name, tmp_path / "run"
    content = {
        "model": {"backbone.bottom_up.res2.0.conv1.weight": np.ones(1)},
        "trainer": Runs(mark),
        "__author__": "x",
    }
    evil.write_bytes(pickle.dumps(content))
    output.mkdir()
    weights = ("MODEL.WEIGHTS", str(evil))
    with pytest.raises(ValueError, match="any program"):
        run(job(root, output, *weights, engine=engine))
    with pytest.raises(ValueError, match="any program"):
        run(job(root, output, *weights, engine=engine, eval_only=True))
    (output / "last_checkpoint").write_text(f"../{name}")
    with pytest.raises(ValueError, match=r"any program|cannot be read"):
        run(job(root, output, engine=engine, eval_only=True, resume=True))
    with pytest.raises(ValueError, match=r"any program|cannot be read"):
        run(job(root, output, engine=engine, resume=True))
    assert not mark.exists()


def test_auto_engine_says_which() -> None:
    engine, notes = choose_engine("auto")
    assert engine in notes[0]


def test_resume_refuses_another_config_and_goes_on_with_its_own(root: Path, tmp_path: Path) -> None:
    steps = ("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SOLVER.CHECKPOINT_PERIOD", "1")
    metrics = run(job(root, tmp_path / "run", *steps))
    assert metrics is not None
    with pytest.raises(ConfigError, match=r"would change the run.*SOLVER\.BASE_LR \(was 0.01, is 0.5\)"):
        run(job(root, tmp_path / "run", *steps, "SOLVER.BASE_LR", "0.5", resume=True))
    before = (tmp_path / "run" / "result.json").read_bytes()
    with pytest.raises(ValueError, match=r"has done 2 iterations, more than SOLVER\.MAX_ITER 1"):
        run(job(root, tmp_path / "run", *steps, "SOLVER.MAX_ITER", "1", resume=True))
    assert (tmp_path / "run" / "result.json").read_bytes() == before
    (tmp_path / "run" / "last_checkpoint").unlink()  # as where it was killed just before writing it
    for only in (False, True):
        again = run(job(root, tmp_path / "run", *steps, resume=True, eval_only=only))
        assert again.stats == metrics.stats
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["engine"] == "torchvision"
    assert result["synthetic"] is True
    assert set(result["dataset"]["sizes"]) == {"train", "val"}


@pytest.mark.parametrize("engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)])
def test_what_a_detector_is_built_on_is_fixed_when_it_begins(engine: str, root: Path, tmp_path: Path) -> None:
    run_of = {"kind": "classify", "name": "a", "seed": 3, "config": {"lr": 0.1}}
    for name in ("a", "b"):
        made = {
            "state_dict": resnet18().state_dict(),
            "arch": "resnet18",
            "provenance": {**run_of, "name": name},
        }
        torch.save(made, tmp_path / f"{name}.pt")
        convert(tmp_path / f"{name}.pt", tmp_path / f"{name}.pth")
    output = tmp_path / "run"
    steps = ("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SOLVER.BASE_LR", "1e-9")
    run(job(root, output, *steps, "MODEL.WEIGHTS", str(tmp_path / "a.pth"), engine=engine))
    result = json.loads((output / "result.json").read_text())
    assert result["started_from"]["file"] == "a.pt"
    assert result["started_from"]["provenance"] == {**run_of, "name": "a"}
    with pytest.raises(ValueError, match=r"network that it began with \(was a\.pt .*, is b\.pt"):
        run(job(root, output, *steps, "MODEL.WEIGHTS", str(tmp_path / "b.pth"), engine=engine, resume=True))
    (output / "run.json").rename(tmp_path / "run.json")  # an earlier version wrote none
    with pytest.raises(ValueError, match=r"earlier version that began with '.*a\.pth', not with '.*b\.pth'"):
        run(job(root, output, *steps, "MODEL.WEIGHTS", str(tmp_path / "b.pth"), engine=engine, resume=True))
    (tmp_path / "run.json").rename(output / "run.json")
    (tmp_path / "a.pth").unlink()  # it is not needed any more
    (output / "result.json").unlink()
    run(job(root, output, *steps, "MODEL.WEIGHTS", str(tmp_path / "a.pth"), engine=engine, resume=True))
    assert json.loads((output / "result.json").read_text())["started_from"] == result["started_from"]


@pytest.mark.detectron2
def test_detectron2_engine_compares_what_it_loaded() -> None:
    from detection.detectron2_engine import WeightsNotLoadedError, check_loaded, compare_loaded

    model = {"backbone.bottom_up.res2.0.conv1.weight": torch.ones(2), "proposal_generator.x": torch.zeros(1)}
    good = compare_loaded(model, {"res2.0.conv1.weight": torch.ones(2)})
    check_loaded(good, "w.pth", whole_detector=False)
    assert good.missing == ["proposal_generator.x"]
    for file in ({}, {"res2.0.conv1.weight": torch.zeros(2)}, {"layer1.0.conv1.weight": torch.ones(2)}):
        with pytest.raises(WeightsNotLoadedError, match=r"res2\.0\.conv1\.weight"):
            check_loaded(compare_loaded(model, file), "w.pth", whole_detector=False)
    with pytest.raises(WeightsNotLoadedError, match="proposal_generator"):
        check_loaded(good, "w.pth", whole_detector=True)


CASCADE = """
_BASE_: {base}
MODEL:
  RPN: {{BBOX_REG_LOSS_TYPE: giou}}
  ROI_HEADS: {{NAME: CascadeROIHeads}}
  ROI_BOX_HEAD: {{CLS_AGNOSTIC_BBOX_REG: True}}
  ROI_BOX_CASCADE_HEAD: {{IOUS: [0.5, 0.55, 0.6]}}
SOLVER: {{MAX_ITER: 2, STEPS: [1]}}
DATALOADER: {{SAMPLER_TRAIN: RepeatFactorTrainingSampler, REPEAT_THRESHOLD: 0.5}}
"""


@pytest.mark.detectron2
def test_detectron2_runs_what_only_detectron2_knows(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "cascade.yaml"
    file.write_text(CASCADE.format(base=CONFIG))
    cascade = dataclasses.replace(job(root, tmp_path / "run", engine="detectron2"), config_file=file)
    metrics = run(cascade)
    assert metrics is not None
    assert metrics.num_detections > 0
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["config"]["MODEL"]["ROI_BOX_CASCADE_HEAD"]["IOUS"] == [0.5, 0.55, 0.6]
    state = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    assert any(key.startswith("roi_heads.box_predictor.2.") for key in state)
    with pytest.raises(ConfigError, match=r"MODEL\.ROI_BOX_CASCADE_HEAD\.IOUS .*--engine detectron2"):
        prepare(dataclasses.replace(cascade, engine="torchvision"))
    for opts, message in (
        (("MODEL.ROI_HEADS.NAME", "NoSuchHeads"), "Detectron2 cannot build the network.*NoSuchHeads"),
        (("MODEL.RPN.IN_FEATURES", "['p9']"), "Detectron2 cannot build the network.*p9"),
        (
            (
                "MODEL.ROI_HEADS.NAME",
                "CascadeROIHeads",
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
                "True",
                "MODEL.ROI_HEADS.IOU_THRESHOLDS",
                "[0.4]",
            ),
            r"AssertionError: assert cascade_ious\[0\] == cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS\[0\]",
        ),
        (("MODEL.META_ARCHITECTURE", "PanopticFPN"), "boxes are what this program trains"),
        (("MODEL.LOAD_PROPOSALS", "True"), "MODEL.LOAD_PROPOSALS is True"),
        (("SOLVER.BASE_LRR", "1.0"), r"did you mean SOLVER\.BASE_LR"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(job(root, tmp_path / "refused", *opts, engine="detectron2"))


@pytest.mark.detectron2
def test_that_a_backbone_has_no_heads_is_no_warning(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(resnet18(num_classes=4).state_dict(), tmp_path / "r18.pth")
    convert(tmp_path / "r18.pth", tmp_path / "b.pth")
    short = ("SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "MODEL.WEIGHTS", str(tmp_path / "b.pth"))
    run(job(root, tmp_path / "run", *short, engine="detectron2"))
    out = "".join(capfd.readouterr())
    assert "not found in the checkpoint" not in out
    assert re.search(r"b\.pth: 100 tensors loaded, \d+ not in the file \(backbone\.fpn_lateral2", out)
    assert "not found in the checkpoint" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.detectron2
def test_weights_trained_in_either_engine_score_the_same_in_the_other(root: Path, tmp_path: Path) -> None:
    steps = ("SOLVER.MAX_ITER", "12", "SOLVER.STEPS", "(11,)", "DATASETS.TEST", "('coco_2017_train',)")
    for trained in ("torchvision", "detectron2"):
        run(job(root, tmp_path / trained, *steps, engine=trained))
        scores = {}
        for engine in ("torchvision", "detectron2"):
            output = tmp_path / f"{trained}-in-{engine}"
            weights = str(tmp_path / trained / "model_final.pth")
            metrics = run(job(root, output, *steps, "MODEL.WEIGHTS", weights, engine=engine, eval_only=True))
            scores[engine] = metrics.stats["AP"]
            assert metrics.num_detections > 0
        assert scores["torchvision"] == pytest.approx(scores["detectron2"], abs=0.05)


def test_a_detectors_folder_and_its_backbone_are_fixed_at_its_first_step(root: Path, tmp_path: Path) -> None:
    """Another backbone on resume, another run's or another process's folder, fewer iterations than done:
    refused.
    """
    folder = tmp_path / "run"
    few = ("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)")
    backbones = []
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(resnet18(num_classes=4).state_dict(), tmp_path / f"{seed}.pth")
        convert(tmp_path / f"{seed}.pth", tmp_path / f"{seed}.backbone.pth")
        backbones.append(("MODEL.WEIGHTS", str(tmp_path / f"{seed}.backbone.pth")))
    run(job(root, folder, *few, *backbones[0]))
    before = json.loads((folder / "result.json").read_text())
    assert before["started_from"]["file"] == "0.pth"
    with pytest.raises(ValueError, match=r"network that it began with \(was 0.pth .*, is 1.pth"):
        run(job(root, folder, *few, *backbones[1], resume=True))
    with pytest.raises(ValueError, match=r"has done 2 iterations, more than SOLVER\.MAX_ITER 1"):
        run(job(root, folder, *few, "SOLVER.MAX_ITER", "1", *backbones[0], resume=True))
    with pytest.raises(ValueError, match="holds a run already"):
        run(job(root, folder, *few, *backbones[0]))
    other = tmp_path / "other"
    with Recorder(other, ClassifyConfig(), kind="classify", tensorboard=False) as recorder:
        recorder.claim(False, name="n", dataset=before["dataset"], synthetic=True, shortened=True)
        recorder.finish({"accuracy": 1.0})
        with pytest.raises(ValueError, match="in use by another run"):
            run(job(root, other, *few, *backbones[0]))
    with pytest.raises(ValueError, match=r"another kind \(classify\)"):
        run(job(root, other, *few, *backbones[0]))
    assert json.loads((folder / "result.json").read_text()) == before
    assert json.loads((other / "result.json").read_text())["kind"] == "classify"
    few_of_them = job(root, folder, *backbones[0], eval_only=True, resume=True, max_images=1)
    assert run(few_of_them) is not None  # without the iterations and the data of the training
    assert json.loads((folder / "result.json").read_text()) == before
    (tmp_path / "0.backbone.pth").unlink()  # known from the first step
    metrics = run(job(root, folder, *few, *backbones[0], resume=True))
    assert metrics is not None
    after = json.loads((folder / "result.json").read_text())
    assert after["started_from"] == before["started_from"]
    assert after["metrics"] == before["metrics"]


@pytest.fixture
def own(root: Path, tmp_path: Path) -> dict[str, CocoPaths]:
    """The drawn data as somebody's own: no card, other names, ids from 0, one empty box, 16-bit grey."""
    data = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    shutil.copytree(root / "train2017", tmp_path / "photos")
    for number, annotation in enumerate(data["annotations"]):
        annotation["id"] = number
    data["annotations"][0] |= {"bbox": [0, 0, 0, 0], "iscrowd": None}
    for image in data["images"]:
        path = tmp_path / "photos" / image["file_name"]
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
        image["file_name"] = f"far\\{path.stem}.tif"
        Image.fromarray(grey).save(path.with_suffix(".tif"))
    (tmp_path / "animals.json").write_text(json.dumps(data))
    paths = CocoPaths(tmp_path / "animals.json", tmp_path / "photos")
    return {"train": paths, "val": paths}


@pytest.mark.parametrize("engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)])
def test_own_data_in_either_engine(engine: str, own: dict, tmp_path: Path) -> None:
    opts = ("SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "INPUT.MIN_SIZE_TRAIN", "(64,)", "SEED", "-1")
    mine = job(tmp_path, tmp_path / "run", *opts, engine=engine, max_images=3, data_root=None, **own)
    assert run(mine) is not None
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["dataset"]["name"] == "animals"
    assert result["dataset"]["sizes"] == {"train": 3, "val": 3}
    assert result["shortened"]
    assert result["seed"] >= 0
    again = prepare(dataclasses.replace(mine, resume=True))
    assert result["seed"] == again.cfg.SEED
    other = dataclasses.replace(mine, resume=True, opts=(*mine.opts[:-1], str(result["seed"] + 1)))
    with pytest.raises(ValueError, match=r"would change the run.*SEED"):
        run(other)
    with pytest.raises(ValueError, match="no area and is dropped"):
        prepare(dataclasses.replace(mine, strict_boxes=True))


@pytest.mark.detectron2
def test_pixels_of_both_engines_come_from_one_reader(own: dict, tmp_path: Path) -> None:
    from detectron2.config import get_cfg

    from detection.detectron2_engine import _Mapper
    from detection.torchvision_engine.data import EvaluationImages

    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.FORMAT = 96, "RGB"
    records = load_coco(own["val"].json_path, own["val"].image_root, images=True).records
    wanted = EvaluationImages(records, cfg)[0]
    found = _Mapper(cfg, is_train=False)(records[0])["image"]
    assert torch.equal(found, wanted)
    assert wanted.float().std() > 5


def test_results_are_scored_again_without_a_config(own: dict, tmp_path: Path) -> None:
    data = json.loads(own["val"].json_path.read_text())
    truth = [
        {**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9} for a in data["annotations"]
    ]
    (tmp_path / "r.json").write_text(json.dumps(truth[1:]))
    for backend in ("hotcoco", "pycocotools"):
        again = DetectorJob(None, eval_only=True, results_json=tmp_path / "r.json", backend=backend, **own)
        assert run(again).stats["AP"] == pytest.approx(100)


@pytest.mark.parametrize(("given", "device"), [("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1")])
def test_several_processes_do_not_share_a_gpu(
    given: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detection.config import defaults
    from detection.prepare import _decide_device

    for name, value in (("is_available", True), ("device_count", 2), ("set_device", None)):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *_, value=value: value)
    cfg = defaults()
    cfg.MODEL.DEVICE = given
    _decide_device(cfg)
    chosen = cfg.MODEL.DEVICE
    assert chosen == device
