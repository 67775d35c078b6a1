"""The YAML files: Detectron2's keys and values, safe to load, each with its command, time and expectation."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from detection.config import ConfigError, check_values, defaults, flat, load_config
from detection.tool import recipe_of
from keepaug.runs.planning import differences
from keepaug.runs.result import plain

CONFIGS = Path(__file__).parents[2] / "configs" / "detection"
LEAVES = sorted(path for path in CONFIGS.glob("*.yaml") if not path.stem.startswith(("Base", "schedule")))


def test_the_six_of_table_nine_and_their_variants_exist() -> None:
    names = {path.stem for path in LEAVES}
    six = {f"{model}_3x" for model in (
        "faster_rcnn_R_50_C4", "faster_rcnn_R_50_FPN", "retinanet_R_50_FPN",
        "faster_rcnn_R_101_C4", "faster_rcnn_R_101_FPN", "retinanet_R_101_FPN",
    )}  # fmt: skip
    assert (
        six
        | {"retinanet_R_50_FPN_3x_paper2019", "retinanet_R_101_FPN_3x_paper2019", "faster_rcnn_R_50_FPN_1x"}
        <= names
    )
    assert any(name.startswith("small") for name in names)


@pytest.mark.parametrize("path", LEAVES, ids=lambda p: p.stem)
def test_each_loads_safely_and_says_how_to_run_it(path: Path) -> None:
    yaml.safe_load(path.read_text())
    cfg = load_config(path)
    check_values(cfg)
    assert flat(cfg) != flat(defaults())
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    for word in ("keepaug train-detector --config-file", "Time:", "Expected"):
        assert word in header, word
    assert "TODO" not in header


@pytest.mark.parametrize("path", [p for p in LEAVES if "_3x" in p.stem], ids=lambda p: p.stem)
def test_what_torchvision_backbones_need(path: Path) -> None:
    cfg = load_config(path)
    assert cfg.INPUT.FORMAT == "RGB"
    assert list(cfg.MODEL.PIXEL_MEAN) == [123.675, 116.28, 103.53]
    assert list(cfg.MODEL.PIXEL_STD) == [58.395, 57.12, 57.375]
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False
    assert (cfg.SOLVER.MAX_ITER, tuple(cfg.SOLVER.STEPS), cfg.SOLVER.IMS_PER_BATCH) == (
        270000,
        (210000, 250000),
        16,
    )
    beta = cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA
    if "retinanet" in path.stem:
        assert beta == (0.1 if "paper2019" in path.stem else 0.0)
        assert cfg.SOLVER.BASE_LR == 0.01


@pytest.mark.detectron2
def test_defaults_are_detectron2s() -> None:
    from detectron2.config import get_cfg

    theirs = flat(get_cfg())
    for key, value in flat(defaults()).items():
        assert plain(theirs[key]) == plain(value), key


@pytest.mark.detectron2
@pytest.mark.parametrize("path", LEAVES, ids=lambda p: p.stem)
def test_detectron2_reads_the_same_from_the_same_file(path: Path) -> None:
    from detectron2.config import get_cfg

    theirs = get_cfg()
    # Detectron2 takes one base; the small files name two.
    bases = yaml.safe_load(path.read_text()).get("_BASE_")
    if isinstance(bases, list):
        for base in bases:
            theirs.merge_from_file(str(CONFIGS / base))
        content = yaml.safe_load(path.read_text())
        content.pop("_BASE_")
        from fvcore.common.config import CfgNode

        theirs.merge_from_other_cfg(CfgNode(content))
    else:
        theirs.merge_from_file(str(path))
    found = flat(theirs)
    for key, value in flat(load_config(path)).items():
        assert plain(found[key]) == plain(value), key


ZOO_DIFFERENCES = {
    "MODEL.WEIGHTS", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.STRIDE_IN_1X1", "INPUT.FORMAT",
    "OUTPUT_DIR",
    "MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.MASK_ON", "MODEL.RESNETS.DEPTH",
}  # fmt: skip


@pytest.mark.detectron2
def test_a_result_of_detectron2s_whole_config_is_the_recipe_that_was_planned() -> None:
    """Its defaults are tuples, which a result file gives back as lists: a finished run was refused."""
    from detectron2.config import get_cfg

    planned = load_config(CONFIGS / "small_faster_rcnn_R_18_FPN.yaml")
    read = load_config(CONFIGS / "small_faster_rcnn_R_18_FPN.yaml", known=get_cfg())
    assert differences(recipe_of(plain(dict(read))), recipe_of(planned)) == []
    changed = load_config(
        CONFIGS / "small_faster_rcnn_R_18_FPN.yaml", ["MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "(0.5, 0.6)"],
        known=get_cfg(),
    )  # fmt: skip
    assert len(differences(recipe_of(plain(dict(changed))), recipe_of(planned))) == 1


@pytest.mark.detectron2
@pytest.mark.parametrize("path", [p for p in LEAVES if p.stem.endswith(("_3x", "_1x"))], ids=lambda p: p.stem)
def test_only_the_documented_differences_to_the_model_zoo(path: Path) -> None:
    import detectron2
    from detectron2.config import get_cfg

    zoo = Path(detectron2.__file__).parent / "model_zoo" / "configs" / "COCO-Detection" / path.name
    if not zoo.is_file():
        pytest.skip(f"the installed Detectron2 has no {path.name}")
    theirs = get_cfg()
    theirs.merge_from_file(str(zoo), allow_unsafe=True)
    found, ours = flat(theirs), flat(load_config(path))
    different = {key for key, value in ours.items() if plain(found[key]) != plain(value)}
    assert different <= ZOO_DIFFERENCES
    assert found["MODEL.RESNETS.DEPTH"] == ours["MODEL.RESNETS.DEPTH"]
    sizes = zip(ours["MODEL.ANCHOR_GENERATOR.SIZES"], found["MODEL.ANCHOR_GENERATOR.SIZES"], strict=True)
    for own, other in sizes:
        assert list(own) == pytest.approx(list(other))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER: {BASE_LRR: 0.1}", r"unknown key SOLVER\.BASE_LRR; did you mean SOLVER\.BASE_LR"),
        ("SOLVER: {MAX_ITER: many}", "SOLVER.MAX_ITER must be of type int"),
        ("MODEL: {FPN: {OUT_CHANNELS: null}}", "FPN.OUT_CHANNELS must be of type int .*got None"),
        ("MODEL: {ROI_MASK_HEAD: {NAME: x}}", "torchvision engine does not know.*--engine detectron2"),
        ("MODEL: {PIXEL_MEAN: [0.485, 0.456, 0.406]}", "0-255 scale"),
        ("MODEL: {MASK_ON: True}", "allowed: False .boxes are what"),
        ("SEED: 1\nSEED: 2", "given twice"),
        ("MODEL: {ANCHOR_GENERATOR: {SIZES: !!python/object/apply:eval ['1']}}", "no Python tags"),
        ("[1, 2]", "expected keys and values"),
        ("VERSION: 1", "VERSION is 1"),
    ],
)
def test_mistakes_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "c.yaml")


def test_overrides() -> None:
    cfg = load_config(LEAVES[0], ["SOLVER.BASE_LR", "0.5", "INPUT.MIN_SIZE_TRAIN", "(320, 480)"])
    assert cfg.SOLVER.BASE_LR == 0.5
    assert cfg.INPUT.MIN_SIZE_TRAIN == (320, 480)
    with pytest.raises(ConfigError, match="odd number"):
        load_config(None, ["SOLVER.BASE_LR"])
    with pytest.raises(ConfigError, match="with a blank"):
        load_config(None, ["SOLVER.BASE_LR=1", "2"])
