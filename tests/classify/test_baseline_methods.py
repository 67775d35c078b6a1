"""The baselines as methods of the loop: what they do to a batch, their settings, exact resume."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from keepaug.baselines import ConsistentLabels, GridMask, HiddenMix, MixedLabels
from keepaug.classify import METHODS, ClassifyConfig, loop, train
from keepaug.classify.attention import feature_attention, load_teacher, stages_of
from keepaug.classify.config import check
from keepaug.classify.datasets import open_datasets
from keepaug.classify.losses import loss_of
from keepaug.classify.methods import Views
from keepaug.data.synthetic import write_classification
from keepaug.models import build_network
from keepaug.models.drop_resnet import DropBlock
from keepaug.models.weights import NetworkSpec
from keepaug.runs.config import ConfigError, load_config

SMALL = Path(__file__).with_name("small.yaml")
RESUMED = {
    "grid_mask": [],
    "aug_mix": [],
    "attentive_cutmix": ["saliency=low_resolution_early"],
    "mixup": ["per=batch", "alpha=0.4"],
    "manifold_mixup": ["hidden_layers=4"],
    "dropout": ["dropout=0.3"],
    "drop_path": ["drop_path=0.4", "arch=resnet18"],
    "drop_block": ["drop_block=0.4", "arch=resnet18"],
    "keep_rand_augment": ["operations=auto_augment", "policy_order=before_crop", "cutout_after=8",
    "clip_norm=5"],
    "keep_auto_augment": ["arch=shake_shake_26_2x4d", "saliency=early_head"],
    "keep_cutout": ["arch=pyramidnet29_a8"],
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classes") / "drawn"
    return write_classification(root, num_train=24, num_val=8, num_classes=2, size=(32, 32), colour_cue=0.8)


def config(root: Path | str, *more: str) -> ClassifyConfig:
    return load_config(ClassifyConfig, SMALL, [f"root={root}", *more])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("method", RESUMED)
def test_resumed_is_uninterrupted(
    method: str, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after four of six steps and resumed: the same weights, bit for bit; and each step counts."""
    settings = config(drawn, f"method={method}", *RESUMED[method], "checkpoint_every=1")
    train(settings, tmp_path / "whole")

    def stop(value: float, step: int, checkpoint: Path | None, **options: str) -> None:
        if step == 4:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(loop, "check_finite", stop)
        with pytest.raises(Interrupted):
            train(settings, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "result.json").exists()
    before = torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)
    assert before["step"] == 4
    train(settings, tmp_path / "stopped", resume=True)
    whole, resumed = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"]
        for name in ("whole", "stopped")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert any(not torch.equal(whole[key], before["model"][key]) for key in whole)


def stepped(method: str, *more: str, progress: float | None = None):
    step = METHODS[method].build(config("x", f"method={method}", *more))
    images = torch.randn(6, 3, 32, 32, generator=seeded(1))
    strong = torch.randn(6, 2, 3, 32, 32, generator=seeded(2))
    heat = torch.rand(6, 32, 32, generator=seeded(3))
    step = step if progress is None else step.at(progress)
    labels = torch.arange(6)
    return images, strong, labels, *step(Views(images, labels, strong, heat), seeded())


def test_grid_mask_ramps_up_over_the_training() -> None:
    images, _, _, inputs, _ = stepped("grid_mask", progress=0.0)
    assert torch.equal(inputs, images)
    images, _, _, inputs, _ = stepped("grid_mask", progress=0.8)
    assert (inputs == 0).flatten(1).any(dim=1).all()
    deleted = float((inputs == 0).double().mean())
    shares = [(1 - math.ceil(0.4 * unit) / unit) ** 2 for unit in range(24, 33)]
    assert deleted == pytest.approx(sum(shares) / 9, abs=0.08)


def test_the_loop_tells_grid_mask_and_drop_block_the_progress(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    real = GridMask.at
    with monkeypatch.context() as patch:
        patch.setattr(GridMask, "at", lambda self, progress: (seen.append(progress), real(self, progress))[1])
        train(config(drawn, "method=grid_mask"), tmp_path / "grid")
    assert seen == pytest.approx([step / 6 for step in range(6)])
    rates: list[float] = []
    forward = DropBlock.forward

    def noted(self: DropBlock, features: torch.Tensor) -> torch.Tensor:
        if self.training and self.target == 0.3:
            rates.append(float(self.now))
        return forward(self, features)

    monkeypatch.setattr(DropBlock, "forward", noted)
    train(config(drawn, "method=drop_block", "drop_block=0.3", "arch=resnet18"), tmp_path / "block")
    assert sorted(set(rates)) == pytest.approx([0.3 * step / 6 for step in range(6)])


def test_aug_mix_trains_on_three_views() -> None:
    images, strong, labels, inputs, target = stepped("aug_mix")
    assert torch.equal(inputs, torch.cat([images, strong[:, 0], strong[:, 1]]))
    assert isinstance(target, ConsistentLabels)
    settings = config("x", "method=aug_mix")
    logits = torch.randn(18, 6, generator=seeded())
    without = loss_of(logits, target._replace(weight=0.0), settings)
    torch.testing.assert_close(without, F.cross_entropy(logits[:6], labels))
    assert float(loss_of(logits, target, settings)) > float(without)


def test_aug_mix_views_come_from_the_loader(drawn: Path) -> None:
    for loading in ("memory", "files"):
        size = ["image_size=32"] if loading == "files" else []
        data = open_datasets(config(drawn, "method=aug_mix", f"loading={loading}", *size))
        batch = data.train.load(torch.arange(4), torch.arange(4) << 30)
        assert batch.strong.shape == (4, 2, 3, 32, 32)
        assert not torch.equal(batch.strong[:, 0], batch.strong[:, 1])
    single = open_datasets(config(drawn, "method=aug_mix", "consistency=0"))
    assert single.train.load(torch.arange(4), torch.arange(4) << 30).strong.shape == (4, 3, 32, 32)


def test_policy_order_reaches_the_loader(drawn: Path) -> None:
    """Before the crop, the padding stays black whatever the policy does to black."""
    black = {}
    for order in ("after_crop", "before_crop"):
        settings = config(drawn, "method=rand_augment", "padding=8", "flip=false", f"policy_order={order}")
        images = open_datasets(settings).train
        images.policy = lambda images, seeds: 255 - images
        batch = images.load(torch.arange(12), torch.randint(2**62, (12,), generator=seeded()))
        padded = (batch.images == 0).all(dim=1)
        assert float(padded.double().mean()) > 0.1
        black[order] = (batch.strong == 0).all(dim=1)[padded].double().mean()
        assert torch.equal(batch.strong[:, 0][~padded], 255 - batch.images[:, 0][~padded])
    assert float(black["before_crop"]) == 1
    assert float(black["after_crop"]) == 0


def test_mixups_return_mixed_labels() -> None:
    images, _, labels, inputs, target = stepped("mixup", "alpha=0.2")
    assert isinstance(target, MixedLabels)
    assert not torch.equal(inputs, images)
    layers = set()
    for seed in range(12):
        step = METHODS["manifold_mixup"].build(config("x", "method=manifold_mixup", "hidden_layers=3"))
        inputs, mix = step(Views(images, labels), seeded(seed))
        assert isinstance(mix, HiddenMix)
        assert torch.equal(inputs, images) == (mix.layer > 0)
        layers.add(mix.layer)
    assert layers == {0, 1, 2}


@pytest.mark.parametrize("arch", ["resnet18", "resnet8", "wrn10_1", "shake_shake_26_2x4d", "pyramidnet29_a8"])
def test_stages_are_found_and_mixed_in(arch: str) -> None:
    from keepaug.baselines import mix_hidden_features

    torch.manual_seed(0)
    network = build_network(arch, 3, stem="cifar").eval()
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    plain = network(images)
    target = MixedLabels(labels, labels.flip(0), torch.tensor([0.5, 0.5]))
    for layer in range(1, len(stages_of(network)) + 1):
        with mix_hidden_features(stages_of(network), HiddenMix(layer, torch.tensor([1, 0]), target)):
            mixed = network(images)
        torch.testing.assert_close(mixed[0], mixed[1])  # half and half: both are the same from there on
        assert not torch.allclose(mixed, plain)
    with pytest.raises(ValueError, match="no stages"):
        stages_of(nn.Linear(2, 2))


def test_feature_attention_leaves_the_network_alone() -> None:
    network = build_network("resnet18", 2, stem="cifar").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    heat = feature_attention(network, images)
    assert heat.shape == (2, 4, 4)
    assert network.training
    assert network.layer4.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    found: list[torch.Tensor] = []
    handle = network.layer4.register_forward_hook(lambda module, inputs, output: found.append(output))
    network.eval()(images)
    handle.remove()
    torch.testing.assert_close(heat, found[0].abs().mean(dim=1))


def test_attentive_cutmix_with_a_teacher(drawn: Path, tmp_path: Path) -> None:
    train(config(drawn, "method=none"), tmp_path / "teacher")
    weights = tmp_path / "teacher" / "weights.pt"
    teacher = load_teacher(weights, open_datasets(config(drawn)).train.classes)
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    final = {}
    for name, more in {
        "saliency": [f"teacher={weights}"],
        "features": [f"teacher={weights}", "attention=features"],
        "own": [],
    }.items():
        train(config(drawn, "method=attentive_cutmix", "pictures=true", *more), tmp_path / name)
        final[name] = torch.load(tmp_path / name / "weights.pt", weights_only=True)["state_dict"]["fc.weight"]
        assert (tmp_path / name / "augmented.png").is_file()
    assert not torch.equal(final["saliency"], final["own"])
    assert not torch.equal(final["saliency"], final["features"])
    with pytest.raises(ValueError, match="knows 2 classes and the data has 3"):
        load_teacher(weights, ["a", "b", "c"])
    with pytest.raises(FileNotFoundError, match=r"weights\.pt of a run"):
        load_teacher(tmp_path / "none.pt", [])
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="lacks arch, classes"):
        load_teacher(tmp_path / "x.pt", [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["method=dropout"], "does nothing at dropout=0"),
        (["method=drop_block"], "does nothing at drop_block=0"),
        (["method=manifold_mixup", "compile=true"], "compile=false"),
        (["method=rand_augment", "policy_order=before_crop", "loading=files"], "policy_order=after_crop"),
        (["method=rand_augment", "dataset=imagenet", "policy_order=before_crop"], "policy_order=after_crop"),
        (["method=attentive_cutmix", "attention_grid=2", "num_patches=5"], "num_patches=5 of 2 x 2"),
        (["method=cutmix", "teacher=x"], "teacher is for attentive_cutmix"),
        (["method=attentive_cutmix", "teacher=x", "saliency=early_head"], "no early head"),
        (["method=grid_mask", "grid_unit=[9, 5]"], "grid_unit must be"),
        (["arch=resnet19"], "arch must be one of"),
    ],
)
def test_settings_that_cannot_be_meant(options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(config("x", *options))


def test_more_hidden_layers_than_stages(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wrn10_1 has 3 stages"):
        train(config(drawn, "method=manifold_mixup", "hidden_layers=5"), tmp_path)


LEARNING = {
    "grid_mask": ["grid_ratio=0.6", "grid_unit=[4, 8]"],
    "aug_mix": [],
    "attentive_cutmix": ["saliency=low_resolution"],
    "mixup": [],
    "manifold_mixup": [],
}


@pytest.mark.parametrize("method", LEARNING)
def test_a_network_learns_with_it(method: str, tmp_path: Path) -> None:
    """Two drawn classes of different colours: far above chance after 60 to 100 steps, and not before."""
    shape = {"num_train": 160, "num_val": 100, "num_classes": 2, "size": (16, 16), "object_share": (0.5, 0.7)}
    root = write_classification(tmp_path / "d", **shape, colour_cue=1.0, noise=0.02)
    epochs = 6 if method == "aug_mix" else 10
    more = ["limit_train=0", "limit_val=0", "batch_size=16", f"epochs={epochs}", "eval_every=10", "padding=1"]
    settings = config(root, f"method={method}", *more, *LEARNING[method])
    untrained = config(root, "limit_val=0", "lr=0", "max_steps=1")
    before = train(untrained, tmp_path / "before")["accuracy"]
    after = train(settings, tmp_path / "run")["accuracy"]
    assert before < 75
    assert after > 85, (before, after)


@pytest.mark.parametrize("method", ["grid_mask", "aug_mix", "attentive_cutmix", "mixup", "manifold_mixup"])
def test_bf16_and_channels_last(
    method: str, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network sees channels_last inputs whatever the method did to them, and the weights stay float32."""
    seen = []
    real = loop.loss_of

    def noted(output, targets, settings):
        seen.append(output.dtype)
        return real(output, targets, settings)

    monkeypatch.setattr(loop, "loss_of", noted)
    formats = []
    built = NetworkSpec.build

    def spied(spec: NetworkSpec):
        network = built(spec)
        network.register_forward_pre_hook(
            lambda module, inputs: formats.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        )
        return network

    monkeypatch.setattr(NetworkSpec, "build", spied)
    more = ["precision=bf16", "channels_last=true", "epochs=1"]
    more += ["attention=features"] if method == "attentive_cutmix" else []
    train(config(drawn, f"method={method}", *more), tmp_path)
    assert set(seen) == {torch.bfloat16}
    assert formats
    assert all(formats)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)["state_dict"]
    assert weights["fc.weight"].dtype == torch.float32
