"""The torchvision engine computes what Detectron2 computes: every stage of the way, on the same weights."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tv_helpers import KINDS, TARGETS, config, detectron2_model, image, random_model, to_detectron2

from detection.coco import CocoDataset, load_coco
from detection.evaluation import load_results
from detection.torchvision_engine.build import build_model
from detection.torchvision_engine.data import TrainingBatches, load_image, resized_shape
from detection.torchvision_engine.loop import _clip, build_optimizer, learning_rate, predict
from detection.torchvision_engine.weights import load_detectron2_state, to_detectron2_state
from keepaug.data.synthetic import write_detection

pytestmark = pytest.mark.detectron2

# No random choice is left when everything is sampled; weights and betas that are not 1 and 0 show where one
# is missing.
EVERYTHING_SAMPLED = [
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "100000",
    "MODEL.RPN.POSITIVE_FRACTION", "1.0", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0",
    "MODEL.RPN.SMOOTH_L1_BETA", "0.1", "MODEL.RPN.LOSS_WEIGHT", "200.0", "MODEL.RPN.BBOX_REG_LOSS_WEIGHT",
    "3.0",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", "0.5", "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", "0.1",
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA", "0.3", "MODEL.RETINANET.FOCAL_LOSS_GAMMA", "1.5",
]  # fmt: skip


def both(kind: str, *opts: str):
    cfg = config(kind, *opts)
    ours = random_model(cfg)
    return cfg, ours, detectron2_model(cfg, to_detectron2_state(ours)).eval()


def instances_of(target, height: int = 96, width: int = 128):
    from detectron2.structures import Boxes, Instances

    instances = Instances((height, width))
    instances.gt_boxes, instances.gt_classes = Boxes(target["boxes"].clone()), target["labels"].clone()
    return instances


@pytest.mark.parametrize("kind", KINDS)
def test_same_weights_same_raw_outputs(kind: str) -> None:
    """Padding, normalisation, feature maps, anchors and the outputs of the dense head, number by number."""
    _, ours, theirs = both(kind)
    pixels = [image(0), image(1, 90, 100)]
    with torch.no_grad():
        batch, wanted = ours.batch(pixels), theirs.preprocess_image([{"image": p} for p in pixels])
        assert torch.equal(batch.tensors, wanted.tensor)
        assert batch.image_sizes == [tuple(size) for size in wanted.image_sizes]
        features, expected = ours.backbone(batch.tensors), theirs.backbone(wanted.tensor)
        for name in expected:
            scale = float(expected[name].abs().mean())
            torch.testing.assert_close(features[name], expected[name], rtol=1e-5, atol=1e-5 * scale)
        names = theirs.head_in_features if kind == "retinanet" else theirs.proposal_generator.in_features
        maps = [expected[name] for name in names]
        if kind == "retinanet":
            generator, (logits, deltas) = theirs.anchor_generator, theirs.head(maps)
            anchors, found = ours.head.anchors, ours.head(maps)
            found_logits, found_deltas = found["cls_logits"], found["bbox_regression"]
        else:
            rpn = theirs.proposal_generator
            generator, (logits, deltas) = rpn.anchor_generator, rpn.rpn_head(maps)
            anchors, (ours_logits, ours_deltas) = ours.rpn.anchor_generator, ours.rpn.head(maps)
            found_logits, found_deltas = flatten(ours_logits, 1), flatten(ours_deltas, 4)
        width = logits[0].shape[1] // (deltas[0].shape[1] // 4)
        torch.testing.assert_close(found_logits, flatten(logits, width), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found_deltas, flatten(deltas, 4), rtol=1e-4, atol=1e-5)
        boxes = torch.cat([level.tensor for level in generator(maps)])
        assert torch.equal(anchors(batch, maps)[0], boxes)


def flatten(levels, width: int) -> torch.Tensor:
    """(N, A * width, H, W) of each level to (N, all of them, width)."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(len(level), -1, width) for level in levels], dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_same_weights_same_detections(kind: str) -> None:
    _, ours, theirs = both(
        kind, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.02", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.03"
    )
    size = torch.tensor([128.0, 96, 128, 96])
    for seed in range(2):
        pixels = image(seed)
        with torch.no_grad():
            found = ours.detect([pixels])[0]
            wanted = theirs([{"image": pixels, "height": 96, "width": 128}])[0]["instances"]
        boxes = torch.minimum(found["boxes"].clamp(min=0), size)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # as the last step of either engine's evaluation
        assert len(wanted) > 10
        assert torch.equal(found["labels"][kept], wanted.pred_classes)
        torch.testing.assert_close(found["scores"][kept], wanted.scores, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(boxes[kept], wanted.pred_boxes.tensor, rtol=1e-4, atol=1e-3)


def test_confident_proposals_keep_their_order() -> None:
    """Logits of 20 and more are one and the same sigmoid in float32; the better must still suppress the
    worse.
    """
    _, ours, theirs = both("fpn")
    rpn, generator = ours.rpn, torch.Generator().manual_seed(0)
    corner = torch.rand(1, 300, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 5 + torch.rand(1, 300, 2, generator=generator) * 40], dim=2)
    logits = 20 + torch.rand(1, 300, generator=generator) * 20
    assert len(logits.sigmoid().unique()) == 1
    from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals

    proposals, found = rpn.filter_proposals(boxes, logits.reshape(-1, 1), [(96, 100)], [200, 100])
    levels = [boxes[:, :200], boxes[:, 200:]], [logits[:, :200], logits[:, 200:]]
    theirs_rpn = theirs.proposal_generator
    wanted = find_top_rpn_proposals(
        *levels, [(96, 100)], rpn.nms_thresh, theirs_rpn.pre_nms_topk[False], theirs_rpn.post_nms_topk[False],
        0.0, False
    )[0]  # fmt: skip
    assert len(wanted) == 40
    assert torch.equal(proposals[0], wanted.proposal_boxes.tensor)
    assert torch.equal(found[0], wanted.objectness_logits)


@pytest.mark.parametrize(
    ("kind", "clip", "norm", "tolerance"),
    [
        # BatchNorm in training amplifies what rounding does to the signs in an L1 gradient.
        ("fpn", "norm", "BN", 2e-2),
        ("fpn", "value", "FrozenBN", 2e-3),
        ("retinanet", "value", "BN", 2e-2),
        ("retinanet", "norm", "FrozenBN", 2e-3),
        ("c4", "norm", "FrozenBN", 2e-3),
    ],
)
def test_same_losses_and_the_same_weights_after_two_steps(
    kind: str, clip: str, norm: str, tolerance: float
) -> None:
    """Matching, losses, normalisers, frozen parts, gradients, clipping, optimizer groups and learning rate at
    once.
    """
    from detectron2.solver import build_lr_scheduler
    from detectron2.solver import build_optimizer as build
    from detectron2.utils.events import EventStorage

    cfg, ours, theirs = both(
        kind, *EVERYTHING_SAMPLED, "MODEL.BACKBONE.FREEZE_AT", "2", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip,
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "1.0" if clip == "norm" else "0.01", "SOLVER.BIAS_LR_FACTOR",
        "2.0",
        "SOLVER.WEIGHT_DECAY_BIAS", "0.1", "SOLVER.WEIGHT_DECAY", "0.05", "SOLVER.WEIGHT_DECAY_NORM", "0.02",
        "SOLVER.NESTEROV", "True", "MODEL.RESNETS.NORM", norm,
    )  # fmt: skip
    before = to_detectron2_state(ours)
    ours.train(), theirs.train()
    optimizer, config2 = build_optimizer(cfg, ours), to_detectron2(cfg)
    reference = build(config2, theirs)
    scheduler = build_lr_scheduler(config2, reference)
    for step in range(2):
        pixels = [image(2 * step), image(2 * step + 1)]
        found = ours.losses(pixels, copy.deepcopy(TARGETS))
        with EventStorage():
            wanted = theirs(
                [
                    {"image": p, "instances": instances_of(t), "height": 96, "width": 128}
                    for p, t in zip(pixels, TARGETS, strict=True)
                ]
            )
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert value > 1e-3
            torch.testing.assert_close(found[name], value, rtol=2e-4, atol=1e-5)
        for model_losses, one in ((found, optimizer), (wanted, reference)):
            one.zero_grad()
            sum(model_losses.values()).backward()
        _clip(cfg, ours)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(cfg, step) * group["factor"]
        optimizer.step()
        reference.step()
        scheduler.step()
    moved = 0
    state = theirs.state_dict()
    for name, value in to_detectron2_state(ours).items():
        change = float((state[name] - before[name]).norm())
        moved += change > 0
        error = float((value - state[name]).norm())
        assert error <= tolerance * change + 1e-6, (name, error, change)
    assert moved > 30


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_boxes_are_all_background(kind: str) -> None:
    from detectron2.utils.events import EventStorage

    _, ours, theirs = both(kind, *EVERYTHING_SAMPLED, "MODEL.RESNETS.NORM", "FrozenBN")
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    ours.train(), theirs.train()
    found = ours.losses([image(0), image(1)], [copy.deepcopy(TARGETS[0]), empty])
    with EventStorage():
        wanted = theirs(
            [
                {"image": image(0), "instances": instances_of(TARGETS[0])},
                {"image": image(1), "instances": instances_of(empty)},
            ]
        )
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_weights_are_drawn_alike(kind: str) -> None:
    """Constants are equal; for random tensors the spread is."""
    cfg = config(kind)
    torch.manual_seed(0)
    found = to_detectron2_state(build_model(cfg))
    wanted = detectron2_model(cfg).state_dict()
    for name, value in found.items():
        spread, expected = float(value.std()), float(wanted[name].std())
        if expected == 0:
            assert torch.equal(value, wanted[name]), name
        else:
            assert spread == pytest.approx(expected, rel=0.15 if value.numel() < 5000 else 0.05), name
            assert float(value.max() / value.std()) == pytest.approx(
                float(wanted[name].max() / wanted[name].std()), rel=0.5
            ), name  # uniform or normal


@pytest.mark.parametrize(
    ("height", "width", "short", "long"),
    [(480, 640, 800, 1333), (427, 640, 192, 320), (100, 1000, 96, 200), (640, 427, 640, 1333)],
)
def test_resizing_as_detectron2(height: int, width: int, short: int, long: int) -> None:
    from detectron2.data.transforms import ResizeShortestEdge

    assert resized_shape(height, width, short, long) == ResizeShortestEdge.get_output_shape(
        height, width, short, long
    )


@pytest.mark.parametrize("warmup", ["7", "0", "60"])
@pytest.mark.parametrize("method", ["linear", "constant"])
@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupCosineLR"])
def test_schedule_as_detectron2(name: str, method: str, warmup: str) -> None:
    from detectron2.solver import build_lr_scheduler

    cfg = config(
        "fpn", "SOLVER.LR_SCHEDULER_NAME", name, "SOLVER.MAX_ITER", "40", "SOLVER.STEPS", "(5, 20, 30)",
        "SOLVER.WARMUP_ITERS", warmup, "SOLVER.WARMUP_METHOD", method, "SOLVER.BASE_LR_END", "0.002",
    )  # fmt: skip
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(to_detectron2(cfg), optimizer)
    for iteration in range(40):
        found, wanted = learning_rate(cfg, iteration), optimizer.param_groups[0]["lr"]
        assert found == pytest.approx(wanted, rel=1e-6), iteration
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_same_pixels_reach_the_network(order: str, tmp_path: Path) -> None:
    """JPEG, EXIF rotation and grey images, resized, against Detectron2's mapper."""
    from detectron2.data import DatasetMapper
    from detectron2.data.transforms import ResizeShortestEdge

    random = np.random.default_rng(0)
    colour = Image.fromarray(random.integers(0, 256, (60, 90, 3), dtype=np.uint8)).resize((317, 203))
    turned = Image.Exif()
    turned[0x0112] = 6
    colour.save(tmp_path / "plain.jpg")
    colour.save(tmp_path / "turned.jpg", exif=turned)
    colour.convert("L").save(tmp_path / "grey.png")
    mapper = DatasetMapper(
        is_train=False, augmentations=[ResizeShortestEdge(96, 140)], image_format=order
    )  # fmt: skip
    for name, height, width in (("plain.jpg", 203, 317), ("turned.jpg", 317, 203), ("grey.png", 203, 317)):
        record = {"file_name": str(tmp_path / name), "height": height, "width": width}
        found = load_image(record, order, resized_shape(height, width, 96, 140))
        assert torch.equal(found, mapper(record)["image"]), name
    with pytest.raises(ValueError, match=r"is 203 x 317 \(height x width\), its annotations say 200 x 317"):
        load_image({**record, "height": 200}, order, (96, 140))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    root = write_detection(
        tmp_path_factory.mktemp("d") / "objects", num_train=4, num_val=1, num_classes=3, colour_cue=0.8
    )
    return load_coco(root / "annotations" / "instances_train2017.json", root / "train2017")


def test_training_boxes_as_detectron2s_mapper(drawn: CocoDataset) -> None:
    """Scaled and clipped boxes; crowds and slivers left out."""
    from detectron2.data import DatasetMapper
    from detectron2.data.transforms import ResizeShortestEdge
    from detectron2.structures import BoxMode

    records = copy.deepcopy(drawn.records)
    width, height = records[0]["width"], records[0]["height"]
    records[0]["annotations"] += [
        {"bbox": [3.0, 4, 20, 20], "category_id": 1, "iscrowd": 1},
        {"bbox": [width - 5.0, height - 9, 20, 30], "category_id": 2, "iscrowd": 0},
        {"bbox": [width + 3.0, 4, 20, 20], "category_id": 1, "iscrowd": 0},
    ]
    cfg = config("fpn", "SOLVER.MAX_ITER", "4", "DATALOADER.ASPECT_RATIO_GROUPING", "False")
    batches = TrainingBatches(records, cfg, 0, 0)
    mapper = DatasetMapper(is_train=True, augmentations=[ResizeShortestEdge(96, 320)], image_format="RGB")
    for number in range(2):
        for position, sample in zip(batches.plan[number], batches[number], strict=True):
            record = copy.deepcopy(records[position])
            for annotation in record["annotations"]:
                annotation["bbox_mode"] = BoxMode.XYWH_ABS
            wanted = mapper(record)
            assert torch.equal(sample.image, wanted["image"])
            torch.testing.assert_close(sample.boxes, wanted["instances"].gt_boxes.tensor)
            assert torch.equal(sample.labels, wanted["instances"].gt_classes)


@pytest.mark.parametrize("kind", KINDS)
def test_either_engine_evaluates_the_others_weights_alike(
    kind: str, drawn: CocoDataset, tmp_path: Path
) -> None:
    """Files and all: COCO results of one weights file from both engines."""
    from detection import detectron2_engine
    from detection.evaluation import load_results

    cfg = config(
        kind, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.02", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.03",
        "OUTPUT_DIR", str(tmp_path), "DATALOADER.NUM_WORKERS", "0", "MODEL.WEIGHTS", str(tmp_path / "w.pth"),
    )  # fmt: skip
    model = random_model(cfg)
    torch.save({"model": to_detectron2_state(model)}, tmp_path / "w.pth")
    detectron2_engine.run(to_detectron2(cfg), None, drawn, eval_only=True)
    wanted = load_results(tmp_path / detectron2_engine.RESULTS_FILE)
    state = detectron2_model(cfg, to_detectron2_state(model)).state_dict()
    again = build_model(cfg).eval()
    load_detectron2_state(again, state)
    found = predict(cfg, again, drawn)
    assert len(found) == len(wanted) > 40
    for one, other in zip(found, wanted, strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], rel=1e-4)
        assert one["bbox"] == pytest.approx(other["bbox"], rel=1e-4, abs=1e-2)


def test_detectron2_does_not_resume_our_checkpoints(drawn: CocoDataset, tmp_path: Path) -> None:
    from detection import detectron2_engine

    cfg = config("fpn", "OUTPUT_DIR", str(tmp_path), "DATALOADER.NUM_WORKERS", "0")
    torch.save(
        {"model": to_detectron2_state(build_model(cfg)), "engine_state": {}}, tmp_path / "model_0000001.pth"
    )
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    with pytest.raises(
        ValueError, match="was not written by Detectron2's trainer; resume it with --engine torch"
    ):
        detectron2_engine.run(to_detectron2(cfg), drawn, drawn, resume=True)


@pytest.mark.parametrize("kind", ["fpn", "retinanet"])
def test_detectron2_stopped_and_resumed_is_uninterrupted(
    kind: str, drawn: CocoDataset, tmp_path: Path
) -> None:
    from detection import detectron2_engine

    states = {}
    for name, workers in (("whole", "1"), ("stopped", "1")):
        cfg = config(
            kind, "OUTPUT_DIR", str(tmp_path / name), "DATALOADER.NUM_WORKERS", workers, "SOLVER.MAX_ITER",
            "4",
            "SOLVER.STEPS", "(3,)", "SOLVER.CHECKPOINT_PERIOD", "1", "INPUT.RANDOM_FLIP", "horizontal",
            "INPUT.MIN_SIZE_TRAIN", "(64, 96)", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM",
            "32",
        )  # fmt: skip
        if name == "stopped":
            with pytest.MonkeyPatch.context() as patch:
                original = detectron2_engine.Trainer.run_step

                def stop(self, original=original):
                    if self.iter == 2:
                        raise KeyboardInterrupt
                    original(self)

                patch.setattr(detectron2_engine.Trainer, "run_step", stop)
                with pytest.raises(KeyboardInterrupt):
                    detectron2_engine.run(to_detectron2(cfg), drawn, drawn)
            (tmp_path / name / "model_0000001.pth").write_bytes(b"half a file")
            if kind == "retinanet":
                (tmp_path / name / "last_checkpoint").unlink()
            with pytest.warns(UserWarning, match=r"going on from .*model_0000000"):
                detectron2_engine.run(to_detectron2(cfg), drawn, drawn, resume=True)
        else:
            detectron2_engine.run(to_detectron2(cfg), drawn, drawn)
        for _ in range(2):  # evaluated again, nothing else
            detectron2_engine.run(to_detectron2(cfg), drawn, drawn, resume=True)
        states[name] = torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"]
    for name in states:
        lines = (tmp_path / name / "metrics.json").read_text().splitlines()
        assert [json.loads(line)["iteration"] for line in lines] == [3, 4]  # steps, evaluation
    whole, stopped = states["whole"], states["stopped"]
    assert whole.keys() == stopped.keys()
    assert [key for key, value in whole.items() if not torch.equal(value, stopped[key])] == []


def test_a_checkpoint_of_detectron2_has_all_lines_of_metrics(
    drawn: CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within the last step, right after its checkpoint."""
    from detection import detectron2_engine

    cfg = config("fpn", "OUTPUT_DIR", str(tmp_path), "DATALOADER.NUM_WORKERS", "0", "SOLVER.MAX_ITER", "2",
                 "SOLVER.STEPS", "(1,)", "MODEL.FPN.OUT_CHANNELS", "32")  # fmt: skip
    save = detectron2_engine._Checkpointer.save

    def stop(self, name, **extra):
        save(self, name, **extra)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(detectron2_engine._Checkpointer, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            detectron2_engine.run(to_detectron2(cfg), drawn, drawn)
    assert (tmp_path / "model_final.pth").is_file()
    detectron2_engine.run(to_detectron2(cfg), drawn, drawn, resume=True)
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2]
    cfg.defrost()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 1, ()
    with pytest.raises(ValueError, match=r"has done 2 iterations, more than SOLVER\.MAX_ITER 1"):
        detectron2_engine.run(to_detectron2(cfg), drawn, drawn, resume=True)


def test_lines_of_detectron2s_metrics_that_are_lost_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from detection import detectron2_engine

    path = tmp_path / "metrics.json"
    for text, kept, said in (
        ("1\n2\n3\n{", "12", ""),
        ("1\n2 x\n3\n", "1", "1 of its 3 lines are lost"),
    ):
        path.write_text(re.sub(r"(\d.*)", r'{"iteration": \1}', text))
        detectron2_engine._forget_after(path, 3)
        lines = path.read_text().splitlines()
        assert [str(json.loads(line)["iteration"]) for line in lines] == list(kept)
        out = capsys.readouterr().out
        assert said in out if said else not out


@pytest.mark.slow
def test_two_processes_of_detectron2_evaluate_each_image_once(tmp_path: Path) -> None:
    """Three images, so that one process has two of them."""
    write_detection(tmp_path / "d", num_train=2, num_val=3, num_classes=3, size=(64, 64))
    cfg = config("fpn", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32")
    (tmp_path / "c.yaml").write_text(cfg.dump())
    torch.save({"model": to_detectron2_state(random_model(cfg))}, tmp_path / "model.pth")
    found = []
    for processes in (1, 2):
        arguments = [
            "train-detector", "--engine", "detectron2", "--eval-only", "--config-file", "c.yaml",
            "--data-root", "d", "--num-gpus", str(processes), "--dist-url", "auto",
            "OUTPUT_DIR", f"run{processes}", "MODEL.WEIGHTS", "model.pth", "DATALOADER.NUM_WORKERS", "0",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            [sys.executable, "-m", "keepaug", *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        results = load_results(tmp_path / f"run{processes}" / "inference" / "coco_instances_results.json")
        found.append(sorted(results, key=lambda one: (one["image_id"], -one["score"], *one["bbox"])))
    assert len({one["image_id"] for one in found[0]}) == 3
    assert found[0] == found[1]
