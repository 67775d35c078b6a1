"""The steps and the loop: one forward pass, what shares it, exact resume, two processes equal one, and that
it learns.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

from keepaug.data.batch_transforms import normalize
from keepaug.data.synthetic import write_classification
from keepaug.models import build_network
from keepaug.models.lab import whitening_filters
from keepaug.models.weights import load_classifier
from keepaug.runs.config import ConfigError, load_config
from keepaug.runs.errors import NonFiniteLossError, StopRequestedError
from keepaug.saliency import saliency_map
from ssl_uda import ALGORITHMS, UdaConfig, loop, train
from ssl_uda.algorithms import fixmatch
from ssl_uda.algorithms.fixmatch import pseudo_labels
from ssl_uda.algorithms.uda import sharpened
from ssl_uda.augment import Views
from ssl_uda.data import open_data
from ssl_uda.loop import network_spec
from ssl_uda.policy import apply_policy, draw_policy
from ssl_uda.schedule import learning_rate
from ssl_uda.step import shares_forward, step_loss, targets_and_saliency

ROOT = Path(__file__).parents[2]
TOOL = str(ROOT / "tools" / "train_uda.py")
TINY = [
    "dataset=image_folder",
    "arch=wrn10_1",
    "num_labels=6",
    "split=balanced",
    "batch_size=4",
    "steps=3",
    "lr=0.01",
    "ema=0.9",
    "tensorboard=false",
    "pictures=false",
]
UNLABELLED = ["unlabelled_ratio=2", "cutout=8", "confidence=0.3"]
KEEP = [*UNLABELLED, "keep=true", "size=8"]
UDA = ["confidence=0.4", "weight=2"]
VARIANTS = {
    "supervised": ["algorithm=supervised"],
    "uda": UNLABELLED,
    "uda-keep": KEEP,
    "fixmatch": ["algorithm=fixmatch", *UNLABELLED],
    "fixmatch-keep": ["algorithm=fixmatch", *KEEP],
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classes") / "drawn"
    return write_classification(root, num_train=30, num_val=10, num_classes=2, size=(20, 20), colour_cue=0.8)


def config(root: Path, *more: str, variant: str = "uda-keep") -> UdaConfig:
    return load_config(UdaConfig, None, [f"root={root}", *TINY, *VARIANTS[variant], *more])


class Recorded(nn.Module):
    """A linear network that remembers its batches."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(12, num_classes)
        self.batches: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(images)
        return self.fc(images.flatten(1))


def small(*more: str) -> UdaConfig:
    return load_config(UdaConfig, None, ["root=x", *(() if "algorithm=supervised" in more else UDA), *more])


def test_loss_is_one_forward_over_labelled_clean_and_strong() -> None:
    torch.manual_seed(0)
    network = Recorded()
    images, labels = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    views = Views(torch.randn(6, 3, 2, 2), torch.randn(6, 3, 2, 2))
    parts = step_loss(network, images, labels, views, None, small(), 0)
    assert len(network.batches) == 1
    assert torch.equal(network.batches[0], torch.cat([images, views.clean, views.strong]))
    clean, strong = network.fc(views.clean.flatten(1)), network.fc(views.strong.flatten(1))
    supervised = nn.functional.cross_entropy(network.fc(images.flatten(1)), labels)
    target = (clean / 0.4).softmax(1).detach()
    distance = (target * (target.log() - strong.log_softmax(1))).sum(1)
    passed = clean.softmax(1).amax(1) > 0.4
    assert 0 < int(passed.sum()) < 6
    consistency = (distance * passed).sum() / 6  # the mean over all, not over those that pass
    torch.testing.assert_close(parts.total, supervised + 2 * consistency)
    (ours,) = torch.autograd.grad(parts.total, network.fc.weight)
    (expected,) = torch.autograd.grad(supervised + 2 * consistency, network.fc.weight)
    torch.testing.assert_close(ours, expected)


def test_options_of_the_loss() -> None:
    torch.manual_seed(0)
    network = Recorded()
    images, labels = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    views = Views(torch.randn(6, 3, 2, 2), torch.randn(6, 3, 2, 2))

    def total(*more: str, views: Views | None = views, target: Tensor | None = None) -> float:
        return float(step_loss(network, images, labels, views, target, small(*more), 10).total.detach())

    plain = total()
    clean = network.fc(views.clean.flatten(1))
    clean = clean.detach()
    entropy = -(clean.softmax(1) * clean.log_softmax(1)).sum(1).mean()
    assert total("entropy=0.5") == pytest.approx(plain + 0.5 * float(entropy))
    target = sharpened(clean, 0.4)
    extra = (-(target * target.log()).sum(1) * (clean.softmax(1).amax(1) > 0.4)).mean()
    assert total("consistency=cross_entropy") == pytest.approx(plain + 2 * float(extra))
    supervised = total("algorithm=supervised", views=None)
    assert total("weight=0") == pytest.approx(supervised)
    assert total("algorithm=supervised", "tsa=exp", "steps=100", views=None) != pytest.approx(supervised)
    network.batches.clear()
    assert total(target=clean.detach()) == pytest.approx(plain)  # without BatchNorm the two modes are one
    assert len(network.batches[0]) == 10  # the clean view is not run again


def test_shared_pass_is_exact_where_it_is_used() -> None:
    """target_mode=eval at full resolution: one pass gives the same logits and the same map, bit for bit."""
    torch.manual_seed(0)
    network = network_spec(small("arch=wrn10_1"), 4).build().train()
    clean = torch.randn(5, 3, 16, 16)
    for _ in range(2):  # statistics that are not the initial ones
        network(clean)
    calls = []
    network.register_forward_hook(lambda module, inputs, output: calls.append(module.training))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    shared = small("keep=true", "target_mode=eval", "saliency=full")
    assert shares_forward(shared)
    logits, heat = targets_and_saliency(network, clean, shared)
    assert calls == [False]
    assert not logits.requires_grad
    alone = network.eval()(clean)
    network.train()
    assert torch.equal(logits, alone)
    assert torch.equal(heat, saliency_map(network, clean))
    calls.clear()
    other = small("keep=true", "target_mode=eval", "saliency=low_resolution")
    logits, heat = targets_and_saliency(network, clean, other)
    assert calls == [False, False]
    torch.testing.assert_close(logits, alone)
    assert torch.equal(heat, saliency_map(network, clean, scale=0.5))
    calls.clear()
    assert targets_and_saliency(network, clean, small()) == (None, None)
    assert not calls
    assert targets_and_saliency(network, clean, small("target_mode=eval"))[1] is None
    calls.clear()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.training
    # and why it is not with target_mode=train: the training-mode gradient is another one
    pixels = clean.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(pixels).amax(1).sum(), pixels)
    assert not torch.allclose(gradient.abs().amax(1), saliency_map(network, clean), rtol=0.1)


def test_variants_are_all_algorithms() -> None:
    assert {config(Path("x"), variant=name).algorithm for name in VARIANTS} == set(ALGORITHMS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_algorithm_runs_and_records_itself(variant: str, drawn: Path, tmp_path: Path) -> None:
    settings = config(drawn, "pictures=true", "log_every=1", "eval_every=1", variant=variant)
    metrics = train(settings, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"] == metrics
    assert set(metrics) == {"accuracy", "best", "median_last_20", "accuracy_last_weights"}
    assert len(result["extra"]["history"]) == 3
    assert result["synthetic"]
    assert not result["shortened"]  # of all its data; two or three steps are in its recipe
    assert result["recipe"]["steps"] == 3
    labels = json.loads((tmp_path / "labels.json").read_text())
    assert labels["per_class"] == {name: 3 for name in result["extra"]["labels_per_class"]}
    assert len(labels["labelled"]) == 6
    assert (tmp_path / result["artifacts"]["views"]).stat().st_size > 1000
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert ("train/mask_rate" in lines[0]) == (variant != "supervised")
    assert result["name"] == f"drawn-wrn10_1-{variant}-6labels"


@pytest.mark.parametrize("arch", ["wrn10_1", "resnet18"])
def test_loaded_weights_are_the_network_that_was_evaluated(arch: str, drawn: Path, tmp_path: Path) -> None:
    settings = config(drawn, "steps=4", "lr=0.1", f"arch={arch}", variant="supervised")
    metrics = train(settings, tmp_path)
    loaded = load_classifier(tmp_path / "weights.pt")
    data = open_data(settings, torch.device("cpu"))
    images = normalize(data.val_images, loaded.mean, loaded.std)
    logits = loaded.network(images)
    assert 100 * float((logits.argmax(1) == data.val_labels).double().mean()) == metrics["accuracy"]
    content = torch.load(tmp_path / "weights.pt", weights_only=True)
    trained = network_spec(settings, 2).build().eval()
    trained.load_state_dict(content["state_dict_ema"])
    assert torch.equal(logits, trained(images))
    assert not torch.equal(logits, load_classifier(tmp_path / "weights.pt", averaged=False).network(images))
    if arch.startswith("wrn"):
        other = build_network(arch, 2, shortcut="activated").eval()  # equal shapes, another function
        other.load_state_dict(content["state_dict_ema"])
        assert not torch.allclose(logits, other(images), atol=1e-3)
    assert loaded.provenance["recipe"]["algorithm"] == "supervised"
    assert loaded.provenance["dataset"] == data.identity
    assert loaded.provenance["synthetic"]


def test_the_lab_network_is_whitened_and_keeps_its_filters(drawn: Path, tmp_path: Path) -> None:
    settings = config(drawn, "arch=lab", "ema=0", variant="supervised")
    train(settings, tmp_path)
    network = load_classifier(tmp_path / "weights.pt").network
    data = open_data(settings, torch.device("cpu"))
    filters = whitening_filters(normalize(data.images, data.mean, data.std), 2)
    assert torch.allclose(network.whitening.weight, torch.cat([filters, -filters]), atol=1e-5)


def test_averaged_weights_and_statistics_are_what_is_evaluated(drawn: Path, tmp_path: Path) -> None:
    """EMA = decay * EMA + (1 - decay) * weights, from the initial weights on, BatchNorm's statistics
    included.
    """
    states = []
    for steps in (
        1,
        2,
    ):  # TSA off: the steps of the longer run begin like the shorter one's, but for its learning rate
        train(config(drawn, f"steps={steps}", "lr=0", "ema=0.75", "ema_ramp=false"), tmp_path / str(steps))
        states.append(torch.load(tmp_path / str(steps) / "weights.pt", weights_only=True))
    for key, value in states[1]["state_dict_ema"].items():
        if key.endswith("running_mean"):
            one, two = states[0]["state_dict"][key], states[1]["state_dict"][key]
            torch.testing.assert_close(value, 0.75 * (0.75 * 0 + 0.25 * one) + 0.25 * two)


def weights(folder: Path) -> dict[str, Tensor]:
    content = torch.load(folder / "weights.pt", weights_only=True)
    return {
        **content["state_dict"],
        **{f"ema.{key}": value for key, value in content["state_dict_ema"].items()},
    }


def run_tool(*arguments: str, processes: int = 1, tool: str = TOOL) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*start, tool, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted(drawn: Path, tmp_path: Path) -> None:
    options = [
        f"root={drawn}",
        *TINY,
        *KEEP,
        "steps=40",
        "checkpoint_every=1",
        "log_every=1",
        "eval_every=10",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_tool(*options, "--output", str(whole))
    process = subprocess.Popen(
        [sys.executable, TOOL, *options, "--output", str(killed)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline, metrics = time.monotonic() + 120, killed / "metrics.jsonl"
    while time.monotonic() < deadline and not (
        metrics.is_file() and len(metrics.read_text().splitlines()) >= 12
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "result.json").exists()
    assert "resuming at step" in run_tool(*options, "--output", str(killed), "--resume")
    first, second = weights(whole), weights(killed)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (whole / "metrics.jsonl").read_text() == metrics.read_text()


@pytest.mark.slow
def test_two_processes_are_one(drawn: Path, tmp_path: Path) -> None:
    """Same images, draws, pasted regions, BatchNorm statistics, annealing and loss; equal to the order of
    sums.
    """
    options = [
        f"root={drawn}",
        *TINY,
        *KEEP,
        "tsa=linear",
        "weight=3",
        "log_every=1",
        "saliency=low_resolution",
        "precision=float32",
    ]
    in_double = str(ROOT / "tests" / "in_double.py")
    for name, processes in (("one", 1), ("two", 2)):
        run_tool("train-uda", *options, "--output", str(tmp_path / name), processes=processes, tool=in_double)
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["extra"]["world_size"] == 2
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in one.items():
        assert value.dtype in (torch.float64, torch.int64)
        torch.testing.assert_close(two[key], value, atol=1e-11, rtol=0)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for ours, theirs in zip(*logs, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-11)
    run_tool(*options, "sync_batchnorm=false", "--output", str(tmp_path / "apart"), processes=2)
    apart = weights(tmp_path / "apart")
    moved = max(float((apart[key] - one[key]).abs().max()) for key in one if "running_mean" in key)
    assert moved > 1e-3  # without it the statistics are those of a half: the agreement above is no accident


def test_resume_refuses_other_settings_and_other_data(drawn: Path, tmp_path: Path) -> None:
    train(config(drawn), tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run already"):
        train(config(drawn), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"temperature \(was 0.4, is 0.5\)"):
        train(config(drawn, "temperature=0.5"), tmp_path / "run", resume=True)
    other = write_classification(
        tmp_path / "other", num_train=30, num_val=10, num_classes=2, size=(20, 20), seed=9
    )
    with pytest.raises(ConfigError, match=r"the data \(was drawn: 30 train, 10 val"):
        train(config(other), tmp_path / "run", resume=True)


def test_resume_of_a_run_from_when_method_was_one_setting(drawn: Path, tmp_path: Path) -> None:
    train(config(drawn, "checkpoint_every=2"), tmp_path)
    path = tmp_path / "config.yaml"
    written = {
        key: value
        for key, value in yaml.safe_load(path.read_text()).items()
        if key not in ("algorithm", "keep")
    }
    path.write_text(yaml.safe_dump(written | {"method": "keep_rand_augment", "recipe_steps": 500_000}))
    (tmp_path / "run.json").unlink()
    with pytest.raises(ConfigError, match=r"keep \(was True, is False\)"):
        train(config(drawn, variant="uda"), tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"algorithm \(was 'uda', is 'supervised'\)"):
        train(config(drawn, variant="supervised"), tmp_path, resume=True)
    train(config(drawn), tmp_path, resume=True)


@pytest.mark.parametrize(("variant", "what"), [("uda", "loss"), ("uda-keep", "saliency")])
def test_diverging_stops_with_the_step(variant: str, what: str, drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteLossError, match=f"the {what} is .* at step 1; the last good checkpoint is .*checkpoint.pt"
    ):
        train(config(drawn, "lr=1e20", "steps=20", "checkpoint_every=1", variant=variant), tmp_path)


def test_a_signal_stops_after_the_step_and_resumed_is_uninterrupted(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(drawn, "log_every=1"), tmp_path / "whole")

    def signalled(step: int, *rest: Any) -> float:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return learning_rate(step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", signalled)
        with pytest.raises(StopRequestedError, match="stopped by SIGTERM after step 2, with a checkpoint"):
            train(config(drawn, "log_every=1"), tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "result.json").exists()
    train(config(drawn, "log_every=1"), tmp_path / "stopped", resume=True)
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(stopped[key], value) for key, value in whole.items())
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "stopped")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("bad", [2, 3])
def test_weights_that_are_no_numbers_are_never_saved(
    bad: int, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a checkpoint's step, or of the last one, is fine; what its gradient does to the weights is
    not.
    """
    monkeypatch.setattr(loop, "learning_rate", lambda step, *rest: math.inf if step + 1 == bad else 0.01)
    with pytest.raises(
        NonFiniteLossError, match="no longer finite, so it is not saved; the last good checkpoint"
    ):
        train(config(drawn, "checkpoint_every=1"), tmp_path)
    assert not list(tmp_path.glob("result.json")) + list(tmp_path.glob("weights.pt"))
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == bad - 1
    assert all(value.isfinite().all() for value in saved["model"].values())


def test_unlabelled_images_teach(tmp_path: Path) -> None:
    """The consistency loss alone moves the network: with weight 0 the weights are those of other
    gradients.
    """
    root = write_classification(
        tmp_path / "d", num_train=24, num_val=8, num_classes=2, size=(16, 16), colour_cue=0.8
    )
    base = ["confidence=-1", "ema=0"]
    first = torch.load
    train(config(root, *base, variant="uda"), tmp_path / "with")
    train(config(root, *base, "weight=0", variant="uda"), tmp_path / "without")
    ours, without = (
        first(tmp_path / name / "weights.pt", weights_only=True)["state_dict"] for name in ("with", "without")
    )
    assert any(
        not torch.allclose(ours[key], without[key], atol=1e-5) for key in ours if key.endswith("weight")
    )


def test_compiled(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured and give the plain run's weights; the code generator, which takes minutes, is left
    out.
    """
    compiled = []

    def compile_quickly(module: nn.Module) -> nn.Module:
        compiled.append(module)
        return original(module, backend="aot_eager")

    original = torch.compile
    monkeypatch.setattr(torch, "compile", compile_quickly)
    train(config(drawn, "compile=true"), tmp_path / "compiled")
    monkeypatch.undo()
    train(config(drawn), tmp_path / "plain")
    assert len(compiled) == 2
    ours, plain = weights(tmp_path / "compiled"), weights(tmp_path / "plain")
    assert set(ours) == set(plain)
    for key, value in plain.items():
        torch.testing.assert_close(ours[key], value, atol=1e-4, rtol=1e-3)


def test_bf16_channels_last_eval_targets(drawn: Path, tmp_path: Path) -> None:
    options = [
        "precision=bf16",
        "channels_last=true",
        "target_mode=eval",
        "saliency=full",
        "warmup_steps=1",
    ]
    metrics = train(config(drawn, *options, "clip_norm=1"), tmp_path)
    assert 0 <= metrics["accuracy"] <= 100


def striped(root: Path) -> Path:
    """Stripes, across or along: clean ones to learn from, strongly augmented ones to be evaluated on."""
    generator = torch.Generator().manual_seed(0)
    for split, num in (("train", 160), ("val", 200)):
        labels = torch.arange(num) % 2
        period, phase = (torch.rand(2, num, 1, generator=generator) * 4 + 4).unbind()
        wave = (torch.arange(20) * 2 * torch.pi / period + 2 * phase).sin()
        across, along = (wave[:, None].expand(-1, 20, 20), wave[:, :, None].expand(-1, 20, 20))
        pattern = torch.where(labels[:, None, None] == 0, along, across)[:, None]
        colours = 40 + 60 * torch.rand(num, 3, 1, 1, generator=generator)
        noise = 12 * torch.randn(num, 3, 20, 20, generator=generator)
        images = (128 + pattern * colours + noise).clamp(0, 255).to(torch.uint8)
        if split == "val":
            draws = draw_policy(num, policy="fixmatch", levels=(5, 9), p=1.0, generator=generator)
            images, _ = apply_policy(images, draws)
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            path = root / split / "ab"[label] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pil_image(image).save(path)
    return root


def test_fixmatch_learns_what_four_labels_do_not_teach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strongly augmented images are recognised; not without the second loss, and not when it points to other
    classes.
    """
    root = striped(tmp_path / "stripes")
    options = ["num_labels=4", "steps=24", "lr=0.06", "ema=0", "flip=false", "unlabelled_ratio=8", "seed=3"]
    options += ["confidence=0.8", "cutout=6", "policy=fixmatch", "algorithm=fixmatch"]

    def accuracy(name: str, *more: str) -> float:
        settings = load_config(UdaConfig, None, [f"root={root}", *TINY, *options, *more])
        return train(settings, tmp_path / name)["accuracy"]

    right = accuracy("right")
    without = accuracy("without", "weight=0")

    def wrong(*given: Any) -> tuple[Tensor, Tensor]:
        believed, mask = pseudo_labels(*given)
        return (believed + 1) % 2, mask

    monkeypatch.setattr(fixmatch, "pseudo_labels", wrong)
    assert right > 85 > 78 > max(without, accuracy("wrong"))
