"""Which images are labelled, in which order they come, and what the two views share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from keepaug.data.batch_transforms import normalize, random_crop_flip
from keepaug.data.synthetic import write_classification
from keepaug.runs.config import ConfigError, load_config
from ssl_uda import train
from ssl_uda.augment import draw_step, finish_strong, make_views, paste_rule, rank_slice
from ssl_uda.config import UdaConfig, check, is_shortened
from ssl_uda.data import Data, Stream, open_data
from ssl_uda.split import choose_labelled, split_labels

MEAN = STD = (0.5, 0.5, 0.5)
LABELS = torch.tensor([0, 1, 1, 2, 0, 1, 2, 2, 0, 1, 0, 2])


def test_first_is_the_first_and_balanced_first_the_first_of_each_class() -> None:
    assert choose_labelled(LABELS, 5, 3, "first", 0).tolist() == [0, 1, 2, 3, 4]
    assert choose_labelled(LABELS, 6, 3, "balanced_first", 0).tolist() == [0, 1, 2, 3, 4, 6]
    assert choose_labelled(LABELS, 5, 3, "balanced_first", 0).tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]  # one more of class 0 and 1


@pytest.mark.parametrize("num", [3, 6, 7, 11])
def test_balanced_is_balanced_seeded_and_without_repetition(num: int) -> None:
    chosen = choose_labelled(LABELS, num, 3, "balanced", 4)
    counts = LABELS[chosen].bincount(minlength=3)
    assert int(counts.max() - counts.min()) <= 1
    assert len(chosen.unique()) == num
    assert torch.equal(chosen, choose_labelled(LABELS, num, 3, "balanced", 4))
    others = {tuple(choose_labelled(LABELS, num, 3, "balanced", seed).tolist()) for seed in range(8)}
    assert len(others) > 1


def test_google_numbers_on_labels_like_cifars() -> None:
    labels = torch.randint(10, (50_000,), generator=torch.Generator().manual_seed(0))
    for num in (250, 2500, 4000):
        unbalanced = split_labels(labels, num, 10, "first", seed=0)
        assert torch.equal(unbalanced.labelled, torch.arange(num))
        assert len(set(unbalanced.counts)) > 1
        assert len(unbalanced.unlabelled) == 50_000  # labelled ones included
        balanced = split_labels(labels, num, 10, "balanced", seed=0, unlabelled="rest")
        assert balanced.counts == [num // 10] * 10
        assert len(balanced.unlabelled) == 50_000 - num
        assert not set(balanced.labelled.tolist()) & set(balanced.unlabelled.tolist())


@pytest.mark.parametrize(
    ("num", "kind", "message"),
    [
        (13, "first", "num_labels is 13, there are 12"),
        (2, "balanced", "each needs one"),
        (3, "first", "leaves the classes 2 without any"),
        (4, "odd", "split must be one of"),
        (12, "balanced", "class 3 has 0 images"),
    ],
)
def test_splits_that_cannot_be(num: int, kind: str, message: str) -> None:
    num_classes = 4 if "class 3" in message else 3
    with pytest.raises(ConfigError, match=message):
        split_labels(LABELS, num, num_classes, kind, seed=0)
    with pytest.raises(ConfigError, match="leaves no image"):
        split_labels(LABELS, 12, 3, "first", seed=0, unlabelled="rest")


def test_stream_is_epoch_after_epoch_and_any_batch_at_any_time() -> None:
    stream = Stream(5, 3, seed=1, name="x")
    drawn = torch.cat([stream.batch(number) for number in range(10)])
    assert all(sorted(drawn[start : start + 5].tolist()) == list(range(5)) for start in range(0, 30, 5))
    assert len({tuple(drawn[start : start + 5].tolist()) for start in range(0, 30, 5)}) > 1
    fresh = Stream(5, 3, seed=1, name="x")
    assert torch.equal(fresh.batch(7), drawn[21:24])
    assert torch.equal(fresh.batch(2), drawn[6:9])
    few = Stream(2, 7, seed=0, name="x").batch(3)
    assert len(few) == 7
    assert few.bincount().tolist() in ([3, 4], [4, 3])
    assert not torch.equal(
        Stream(50, 50, seed=1, name="y").batch(0), Stream(50, 50, seed=1, name="x").batch(0)
    )


def test_reflected_crop_against_padding_and_slicing() -> None:
    images = torch.randint(256, (40, 3, 9, 11), dtype=torch.uint8)
    seeds = torch.randint(2**62, (40,), generator=torch.Generator().manual_seed(0))
    ours = random_crop_flip(images, seeds, padding=4, border="reflect")
    padded = torch.nn.functional.pad(images.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
    for number, seed in enumerate(seeds.tolist()):
        top, left, mirrored = seed % 9, seed // 9 % 9, seed // 81 % 2
        expected = padded[number, :, top : top + 9, left : left + 11]
        assert torch.equal(ours[number], expected.flip(2) if mirrored else expected)
    with pytest.raises(ValueError, match="border must be"):
        random_crop_flip(images, seeds, padding=9, border="reflect")


def settings(*more: str) -> UdaConfig:
    return load_config(
        UdaConfig, None, ["root=x", "batch_size=8", "unlabelled_ratio=4", "keep=true", "size=10", *more]
    )


def test_views_share_crop_and_flip_so_that_the_paste_is_aligned() -> None:
    config = settings("cutout=0")
    images = torch.randint(256, (32, 3, 24, 24), dtype=torch.uint8)
    draws = draw_step(config, 5, (24, 24))
    views = make_views(images, draws, config, MEAN, STD)
    alone = draws._replace(policy=draws.policy._replace(applied=torch.zeros_like(draws.policy.applied)))
    same = make_views(images, alone, config, MEAN, STD)
    assert torch.equal(same.clean, same.strong)
    idle = ~draws.policy.changes  # what is pasted into these changes nothing, so that they need no map
    assert 0 < int(idle.sum()) < 32
    assert torch.equal(views.clean[idle], views.strong[idle])
    assert torch.equal(same.clean, views.clean)
    assert not torch.equal(views.clean, views.strong)
    heat = torch.rand(32, 24, 24)
    regions = paste_rule(config).sample(views.clean, heat)
    strong = finish_strong(views, regions, draws, config)
    for number in range(32):
        top, left, height, width = (int(part[number]) for part in regions)
        inside = (slice(None), slice(top, top + height), slice(left, left + width))
        assert torch.equal(strong[number][inside], views.clean[number][inside])
        outside = torch.ones(24, 24, dtype=torch.bool)
        outside[inside[1:]] = False
        assert torch.equal(strong[number][:, outside], views.strong[number][:, outside])


def test_cutout_comes_after_the_paste_and_empty_pixels_are_the_mean_colour() -> None:
    config = settings("cutout=8", "p=1.0")
    images = torch.randint(1, 256, (32, 3, 24, 24), dtype=torch.uint8)
    draws = draw_step(config, 0, (24, 24))
    views = make_views(images, draws, config, MEAN, STD)
    strong = finish_strong(
        views, paste_rule(config).sample(views.clean, torch.rand(32, 24, 24)), draws, config
    )
    for number in range(32):
        top, left, height, width = (int(part[number]) for part in draws.cutout)
        assert height * width >= 16
        assert not strong[number][:, top : top + height, left : left + width].any()
    shifted = draws._replace(
        policy=draws.policy._replace(operation=torch.full_like(draws.policy.operation, 6))
    )
    moved = make_views(
        images, shifted, config, MEAN, STD
    ).strong  # TranslateX twice, in one direction or back
    black = float(normalize(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), MEAN, STD).max())
    assert (moved == 0).all(dim=1).any()
    assert not (moved == black).all(dim=1).any()


def test_independent_crops_are_googles_order() -> None:
    config = load_config(UdaConfig, None, ["batch_size=8", "unlabelled_ratio=4", "crops=independent"])
    images = torch.randint(256, (32, 3, 24, 24), dtype=torch.uint8)
    draws = draw_step(config, 0, (24, 24))
    alone = draws._replace(policy=draws.policy._replace(applied=torch.zeros_like(draws.policy.applied)))
    views = make_views(images, alone, config, MEAN, STD)
    crops = random_crop_flip(images, draws.other_seeds, border="reflect")
    hidden = (views.strong == 0).all(dim=1)
    assert 0.1 < float(hidden.float().mean()) < 0.5
    expected = normalize(crops, MEAN, STD).masked_fill(hidden[:, None], 0.0)
    torch.testing.assert_close(views.strong, expected)
    assert torch.equal(finish_strong(views, None, alone, config), views.strong)  # no second Cutout


def test_processes_divide_one_step_between_them() -> None:
    config = settings()
    whole = draw_step(config, 3, (24, 24))
    halves = [draw_step(config, 3, (24, 24), rank=rank, world_size=2) for rank in range(2)]
    assert torch.equal(torch.cat([half.seeds for half in halves]), whole.seeds)
    assert torch.equal(torch.cat([half.labelled_seeds for half in halves]), whole.labelled_seeds)
    for key in range(5):
        assert torch.equal(torch.cat([half.policy[key] for half in halves]), whole.policy[key])
    for key in range(4):
        assert torch.equal(torch.cat([half.cutout[key] for half in halves]), whole.cutout[key])
    assert not torch.equal(draw_step(config, 4, (24, 24)).seeds, whole.seeds)
    assert rank_slice(8, 1, 2) == slice(4, 8)


def test_folders_drawn_and_resized(tmp_path: Path) -> None:
    root = write_classification(tmp_path / "d", num_train=24, num_val=8, num_classes=2, size=(40, 40))
    folder = ["dataset=image_folder", f"root={root}", "num_labels=4", "split=balanced"]
    data = open_data(settings(*folder, "image_size=20"), torch.device("cpu"))
    assert data.images.shape == (24, 3, 20, 20)
    assert data.images.dtype == torch.uint8
    assert data.synthetic
    assert data.split.counts == [2, 2]
    limited = open_data(settings(*folder, "limit_train=10", "limit_val=4"), torch.device("cpu"))
    assert limited.labels.bincount().tolist() == [5, 5]
    assert len(limited.val_images) == 4
    with pytest.raises(ConfigError, match="leaves the classes 1 without any"):
        open_data(settings(*folder, "split=first"), torch.device("cpu"))
    with pytest.raises(ConfigError, match="padding 40"):
        open_data(settings(*folder, "padding=40"), torch.device("cpu"))
    with pytest.raises(ConfigError, match="size 41, of the pasted region, is larger than images"):
        open_data(settings(*folder, "keep=true", "size=41"), torch.device("cpu"))
    from PIL import Image

    Image.new("RGB", (10, 12)).save(next((root / "train").rglob("*.png")))
    with pytest.raises(ConfigError, match="set image_size to resize"):
        open_data(settings(*folder), torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["root=''"], "root is empty"),
        (["image_size=32"], "image_size is for image folders"),
        (["arch=wrn28"], "arch is 'wrn28'"),
        (["levels=[5, 2]"], "levels must be"),
        (["momentum=0"], "nesterov needs momentum"),
        (["crops=independent"], "no region of one can be pasted"),
        (["entropy=0.1", "target_mode=eval"], "entropy needs"),
    ],
)
def test_contradictions(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(settings(*options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["algorithm=supervised", "temperature=0.5"], "temperature is for uda; .*supervised"),
        (["algorithm=supervised", "keep=true"], "keep is for uda, fixmatch"),
        (["algorithm=fixmatch", "tsa=exp"], "tsa is for supervised, uda"),
        (["size=8"], "size is for keep"),
        (["split_seed=3"], "split_seed is for balanced"),
        (["stem=imagenet"], "stem is for resnet"),
    ],
)
def test_settings_that_nothing_uses(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(UdaConfig, None, options)


def test_defaults_are_the_recipe() -> None:
    config = load_config(UdaConfig, None, ["root=x"])
    check(config)
    assert not is_shortened(config)
    assert (config.batch_size, config.unlabelled_ratio, config.steps, config.lr) == (64, 7, 500_000, 0.03)
    assert (config.temperature, config.confidence, config.weight_decay, config.ema) == (
        0.4,
        0.8,
        5e-4,
        0.9999,
    )
    assert (config.levels, config.num_ops, config.p, config.cutout, config.tau, config.size) == (
        [1, 9],
        2,
        0.5,
        16,
        0.6,
        16,
    )
    for change in ("limit_train=1000", "limit_val=100"):
        assert is_shortened(load_config(UdaConfig, None, ["root=x", change]))


def picture(path: Path, side: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side), 77).save(path)


@pytest.mark.parametrize("second_root", [False, True])
def test_unlabelled_folder_comes_in_addition(second_root: bool, tmp_path: Path) -> None:
    """Flat or in folders, of any size with image_size; the labels of the training images stay where they
    were.
    """
    root = write_classification(tmp_path / "d", num_train=12, num_val=4, num_classes=2, size=(24, 24))
    extra = tmp_path / "more" if second_root else root / "unlabelled"
    picture(extra / "b.png", 40)
    picture(extra / "deep" / "a.png", 24, "L")
    picture(extra / ".hidden.png", 24)
    options = [f"root={root}", "dataset=image_folder", "num_labels=4", "split=balanced", "image_size=20"]
    options += [f"unlabelled_root={extra}"] if second_root else []

    def opened(*more: str) -> Data:
        return open_data(load_config(UdaConfig, None, [*options, *more]), torch.device("cpu"))

    data = opened()
    assert data.images.shape == (14, 3, 20, 20)
    assert data.split.unlabelled.tolist() == list(range(14))
    assert (data.images[12, 0] == 77).all()  # red, then grey
    assert not data.images[12, 1:].any()
    assert (data.images[13] == 77).all()
    assert data.identity["sizes"] == {"train": 12, "val": 4, "unlabelled": 2}
    assert int(data.split.labelled.max()) < 12
    assert opened("unlabelled=extra").split.unlabelled.tolist() == [12, 13]
    rest = opened("unlabelled=rest").split
    assert rest.unlabelled.tolist() == [n for n in range(14) if n not in rest.labelled.tolist()]
    with pytest.raises(ConfigError, match="set image_size to resize"):
        open_data(load_config(UdaConfig, None, [*options, "image_size=0"]), torch.device("cpu"))
    if not second_root:
        assert len(opened("algorithm=supervised").images) == 12
    picture(extra / "c.png", 24)
    assert opened().identity["checksum"] != data.identity["checksum"]


def test_images_that_nothing_reads_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classification(tmp_path / "d", num_train=12, num_val=4, num_classes=2, size=(24, 24))
    options = [f"root={root}", "dataset=image_folder", "num_labels=4", "split=balanced"]

    def opened(*more: str) -> Data:
        return open_data(load_config(UdaConfig, None, [*options, *more]), torch.device("cpu"))

    picture(root / "unsup" / "deep" / "a.png", 24)
    (root / "notes").mkdir()
    assert len(opened().images) == 12
    assert (
        f"{root}/unsup holds images that nothing reads; unlabelled_root={root}/unsup would"
        in capsys.readouterr().out
    )
    assert len(opened(f"unlabelled_root={root}/unsup").images) == 13
    assert "note" not in capsys.readouterr().out
    (root / "unsup").rename(root / "unlabeled")  # the other spelling
    assert len(opened().images) == 13
    assert "note" not in capsys.readouterr().out
    picture(root / "unlabelled" / "a.png", 24)
    with pytest.raises(ConfigError, match=r"both .*unlabelled and .*unlabeled are there"):
        opened()


def test_unlabelled_folders_that_cannot_be_meant(tmp_path: Path) -> None:
    root = write_classification(tmp_path / "d", num_train=12, num_val=4, num_classes=2, size=(24, 24))
    options = [f"root={root}", "dataset=image_folder", "num_labels=4", "split=balanced"]
    (tmp_path / "empty").mkdir()
    for more, message in (
        ("unlabelled=extra", "there is no unlabelled folder"),
        (f"unlabelled_root={tmp_path}/nowhere", "no folder .*nowhere"),
        (f"unlabelled_root={tmp_path}/empty", "holds no images"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_data(load_config(UdaConfig, None, [*options, more]), torch.device("cpu"))
    with pytest.raises(ConfigError, match="unlabelled_root is for uda"):
        load_config(UdaConfig, None, [*options, "algorithm=supervised", "unlabelled_root=x"])


def test_step_takes_images_of_the_unlabelled_folder_alone(tmp_path: Path) -> None:
    root = write_classification(tmp_path / "d", num_train=12, num_val=4, num_classes=2, size=(24, 24))
    for number in range(3):
        picture(root / "unlabelled" / f"{number}.png", 24)
    options = ["dataset=image_folder", "num_labels=4", "split=balanced", "unlabelled=extra", "arch=wrn10_1"]
    options += ["steps=1", "batch_size=2", "tensorboard=false"]
    train(load_config(UdaConfig, None, [f"root={root}", *options]), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "labels.json").read_text())["num_unlabelled"] == 3
