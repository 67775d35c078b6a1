"""The settings of the lab recipe against rules written out, its controls, and what pairs of runs share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from keepaug.classify import ClassifyConfig, loop, train
from keepaug.classify.config import check
from keepaug.classify.optimizer import build_optimizer, learning_rate, set_learning_rate
from keepaug.data.synthetic import write_classification
from keepaug.models.weights import load_classifier
from keepaug.runs.config import ConfigError, load_config

ROOT = Path(__file__).parents[2]
RECIPE = [
    "arch=lab",
    "epochs=3",
    "batch_size=8",
    "lr=0.5",
    "momentum=0.85",
    "weight_decay=0.002",
    "decoupled_decay=true",
    "norm_bias_factor=8",
    "schedule=triangle",
    "label_smoothing=0.2",
    "padding=2",
    "border=reflect",
    "alternate_flips=true",
    "look_ahead=2",
    "whitening_epochs=1",
    "mirrored_test=true",
    "tensorboard=false",
    "pictures=false",
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classes") / "drawn"
    return write_classification(root, num_train=16, num_val=8, num_classes=2, size=(32, 32), colour_cue=0.8)


@pytest.fixture(autouse=True)
def small_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keepaug.models.lab.WIDTHS", {"lab": (24, 24, 24)})


def config(root: Path, *more: str) -> ClassifyConfig:
    return load_config(ClassifyConfig, None, [f"root={root}", *RECIPE, *more])


def prepared(root: Path, *more: str) -> loop._Run:
    settings = config(root, *more)
    loop.seed_everything(settings.seed)
    return loop._prepare(settings, loop.setup("cpu"), loop.open_datasets(settings))


def test_triangle_is_two_straight_lines() -> None:
    settings = load_config(
        ClassifyConfig, None, ["schedule=triangle", "triangle=[0.2, 0.25, 0.1]", "lr=2", "epochs=10"]
    )
    found = [learning_rate(settings, step, 7) for step in range(71)]
    wanted = 2 * numpy.interp(numpy.arange(71), [0, 17.5, 70], [0.2, 1, 0.1])
    numpy.testing.assert_allclose(found, wanted)


def test_decoupled_decay_and_norm_biases_against_the_rule(drawn: Path) -> None:
    settings = config(drawn, "momentum=0", "nesterov=false")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    optimizer = build_optimizer(settings, network)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    network(torch.randn(5, 3, 6, 6)).square().mean().backward()
    set_learning_rate(optimizer, settings.lr * 0.3)
    optimizer.step()
    for name, value in network.named_parameters():
        factor = 8 if name == "1.bias" else 1
        wanted = before[name] - 0.3 * (0.5 * factor * value.grad + 0.002 * before[name])
        torch.testing.assert_close(value, wanted)


def test_without_these_settings_it_is_pytorchs_sgd(drawn: Path) -> None:
    settings = load_config(ClassifyConfig, None, [f"root={drawn}", "lr=0.3", "weight_decay=0.01"])
    ours, theirs = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    first = build_optimizer(settings, ours)
    second = torch.optim.SGD(theirs.parameters(), lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.01)
    for step in range(3):
        images = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(step))
        for network, optimizer in ((ours, first), (theirs, second)):
            optimizer.zero_grad()
            network(images).pow(3).sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_the_whitening_bias_is_trained_in_the_first_epochs_only(drawn: Path) -> None:
    run = prepared(drawn, "look_ahead=0")
    values = [run.network.whitening.bias.detach().clone()]
    filters = run.network.whitening.weight.clone()
    for _ in range(3):
        for batch in run.loader:
            run.trained.train()
            loop._step(run, batch, None)
            run.step += 1
        values.append(run.network.whitening.bias.detach().clone())
    assert not torch.equal(values[0], values[1])
    assert torch.equal(values[1], values[3])
    assert torch.equal(run.network.whitening.weight, filters)


@pytest.mark.slow
def test_two_processes_go_on_when_the_bias_no_longer_learns(drawn: Path, tmp_path: Path) -> None:
    """DDP waits for the gradients of all parameters that ever had one."""
    tool = str(ROOT / "tools" / "train_classifier.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", tool]
    given = [f"root={drawn}", *RECIPE, "epochs=2", "look_ahead=0", "checkpoint_every=2"]
    subprocess.run(
        [*command, *given, "--output", str(tmp_path)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    names = ("checkpoint.previous.pt", "checkpoint.pt")
    states = [torch.load(tmp_path / name, weights_only=True) for name in names]
    assert [state["step"] for state in states] == [2, 4]
    before, after = (state["model"] for state in states)
    assert torch.equal(before["stem.0.bias"], after["stem.0.bias"])
    assert before["stem.0.bias"].any()
    assert not torch.equal(before["fc.weight"], after["fc.weight"])


def test_whitened_with_images_of_all_classes(drawn: Path) -> None:
    data = loop.open_datasets(config(drawn)).train
    some = loop._evenly_spaced(data, 4)
    found = [int(data.labels[(data.images == image).all(dim=(1, 2, 3))].item()) for image in some]
    assert set(found) == {0, 1}


def test_resumed_run_equals_the_whole_one(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(drawn, "method=keep_cutout", "size=12", "saliency=noise", "checkpoint_every=1")
    train(settings, tmp_path / "whole")
    calls = 0
    step = loop._step

    def stopping(*arguments: object) -> float:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(loop, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "halves")
    monkeypatch.setattr(loop, "_step", step)
    before = torch.load(tmp_path / "halves" / "checkpoint.pt", weights_only=True)["cpu_seconds"]
    train(settings, tmp_path / "halves", resume=True)
    spent = json.loads((tmp_path / "halves" / "result.json").read_text())["extra"]["cpu_time_s"]
    assert 0 < before < spent  # the processor time of both parts
    whole, halves = (load_classifier(tmp_path / name / "weights.pt").network for name in ("whole", "halves"))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, halves.state_dict()[key]), key


def test_mirrored_test_is_the_mean_of_both(drawn: Path) -> None:
    run = prepared(drawn)
    run.network.eval()
    images, labels = run.data.val.images, run.data.val.labels
    pixels = loop.normalize(images, run.data.mean, run.data.std)
    with torch.no_grad():
        logits = (run.network(pixels) + run.network(pixels.flip(-1))) / 2
    wanted = 100 * float((logits.argmax(dim=1) == labels).double().mean())
    assert loop._evaluate(run)["accuracy"] == pytest.approx(wanted)


class Seen:
    """Records what a method is given, and what the network is trained on."""

    def __init__(self, run: loop._Run) -> None:
        self.augment, self.views, self.inputs = run.augment, [], []

    def __call__(self, views: loop.Views, generator: torch.Generator | None = None) -> object:
        self.views.append(views)
        inputs, labels = self.augment(views, generator)
        self.inputs.append(inputs)
        return inputs, labels


def first_steps(root: Path, *more: str, num: int = 2) -> tuple[loop._Run, Seen]:
    run = prepared(root, "lr=0.000001", *more)
    seen = run.augment = Seen(run)  # type: ignore[assignment]
    for batch in run.loader:
        run.trained.train()
        loop._step(run, batch, None)
        run.step += 1
        if run.step == num:
            break
    return run, seen


@pytest.mark.parametrize(
    ("plain", "keep"),
    [("cutout", "keep_cutout"), ("cutmix", "keep_cutmix"), ("rand_augment", "keep_rand_augment")],
)
def test_a_seed_is_the_same_network_order_crops_and_strong_views(plain: str, keep: str, drawn: Path) -> None:
    one, other = (prepared(drawn, f"method={method}", "seed=4") for method in (plain, keep))
    for key, value in one.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[key])
    for first, second in zip(one.loader, other.loader, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.indices, second.indices)
        assert (first.strong is None) == (second.strong is None)
        if first.strong is not None:
            assert torch.equal(first.strong, second.strong)


def test_a_seed_is_the_same_region_draw_where_keep_allows_all(drawn: Path) -> None:
    """At tau=1 Keep forbids nothing: what is left of the pair's difference must be nothing."""
    settings = ["size=12", "placement=inside", "seed=4"]
    _, plain = first_steps(drawn, "method=cutout", *settings)
    _, keep = first_steps(drawn, "method=keep_cutout", "tau=1", *settings)
    _, noise = first_steps(drawn, "method=keep_cutout", "tau=1", "saliency=noise", *settings)
    for inputs, kept, chance in zip(plain.inputs, keep.inputs, noise.inputs, strict=True):
        assert torch.equal(inputs, kept)
        assert torch.equal(inputs, chance)


def test_a_region_that_keep_allows_is_the_one_that_plain_draws(drawn: Path) -> None:
    """Only what is forbidden is drawn again, so that pairs differ in as little as they can."""
    settings = ["size=12", "placement=inside", "seed=4"]
    _, plain = first_steps(drawn, "method=cutout", *settings, num=4)
    _, keep = first_steps(drawn, "method=keep_cutout", "saliency=noise", *settings, num=4)
    same = [
        torch.equal(one, other)
        for inputs, kept in zip(plain.inputs, keep.inputs, strict=True)
        for one, other in zip(inputs, kept, strict=True)
    ]
    assert 6 <= sum(same) < len(same) == 16  # 0.6 are allowed


def test_noise_is_new_in_every_step_and_knows_no_image(drawn: Path) -> None:
    _, seen = first_steps(drawn, "method=keep_cutout", "size=12", "saliency=noise")
    first, second = (views.saliency for views in seen.views)
    assert first.shape == (8, 32, 32)
    assert not torch.equal(first, second)
    assert abs(float(first.mean()) - 0.5) < 0.02
    _, again = first_steps(drawn, "method=keep_cutmix", "saliency=noise")
    assert torch.equal(again.views[0].saliency, first)


def test_other_is_the_map_of_another_image_of_the_batch(drawn: Path) -> None:
    _, own = first_steps(drawn, "method=keep_cutout", "size=12", "saliency=full", num=1)
    _, other = first_steps(drawn, "method=keep_cutout", "size=12", "saliency=other", num=1)
    maps, moved = own.views[0].saliency, other.views[0].saliency
    assert torch.equal(own.views[0].images, other.views[0].images)
    for index in range(8):
        assert torch.equal(moved[index], maps[index - 1])
        assert not torch.equal(moved[index], maps[index])


def test_a_random_paste_is_noise_at_tau_0(drawn: Path) -> None:
    """The control of KeepRandAugment: every place is equally likely, and the pasted pixels are the clean
    image's.
    """
    settings = ["method=keep_rand_augment", "size=8", "tau=0", "saliency=noise"]
    places = torch.zeros(25, 25)
    run, seen = first_steps(drawn, *settings)
    keep = run.augment.augment.augment
    for index in range(400):
        generator = torch.Generator().manual_seed(index)
        maps = torch.rand(8, 32, 32, generator=torch.Generator().manual_seed(1000 + index))
        regions = keep.sample(seen.views[0].images, maps, generator=generator)
        places[regions.top, regions.left] += 1
    halves = F.avg_pool2d(places[None, :24, :24], 6) * 36
    assert (
        float((halves - halves.mean()).square().sum() / halves.mean()) < 37.7
    )  # chi-square, 15 degrees, p = 0.001
    views, inputs = seen.views[0], seen.inputs[0]
    assert ((inputs == views.images) | (inputs == views.strong)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["triangle=[0.2, 1.0, 0.1]"], "peak between 0 and 1"),
        (["warmup_epochs=1"], "warms up by itself"),
        (["ema=0.9"], "averages the weights, and so does"),
        (["lr=0"], "decoupled_decay needs lr above 0"),
        (["loading=files"], "border is for loading=memory"),
        (["method=keep_cutout", "saliency=other", "batch_size=1"], "another image in the batch"),
        (["method=keep_cutout", "saliency=noise", "reuse_every=2"], "no maps to keep"),
    ],
)
def test_settings_that_contradict_each_other(settings: list[str], message: str, drawn: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        check(config(drawn, *settings))
