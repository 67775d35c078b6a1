"""Dropout, DropPath and DropBlock in torchvision's ResNets, against the DropBlock paper's definitions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet50
from torchvision.ops import drop_block2d

from keepaug import saliency_map
from keepaug.models import build_network
from keepaug.models.drop_resnet import DropBlock, DropPath, drop_block, schedule_drops

ALL = {"dropout": 0.3, "drop_path": 0.1, "drop_block": 0.1}


def slow_drop_block(features: torch.Tensor, probability: float, side: int) -> torch.Tensor:
    """Algorithm 1, with loops, from the same random numbers."""
    num_images, channels, height, width = features.shape
    side = min(side, height, width)
    rows, columns = height - side + 1, width - side + 1
    gamma = probability / side**2 * (height * width) / (rows * columns)
    seeds = torch.rand(num_images, channels, rows, columns)
    mask = torch.ones_like(features)
    for image, channel, row, column in (seeds < gamma).nonzero().tolist():
        mask[image, channel, row : row + side, column : column + side] = 0
    return features * mask * mask.numel() / mask.sum()


@pytest.mark.parametrize(
    ("shape", "side"),
    [((3, 4, 14, 14), 7), ((3, 4, 7, 7), 7), ((2, 3, 9, 12), 4), ((4, 2, 3, 5), 7), ((2, 2, 6, 6), 1)],
)
def test_drop_block_is_algorithm_1(shape: tuple[int, ...], side: int) -> None:
    features = torch.rand(shape) + 0.5
    for seed in range(5):
        torch.manual_seed(seed)
        expected = slow_drop_block(features, 0.2, side)
        torch.manual_seed(seed)
        found = drop_block(features, torch.tensor(0.2), block_size=side)
        torch.testing.assert_close(found, expected)


def test_drop_block_drops_the_same_share_as_torchvisions() -> None:
    torch.manual_seed(0)
    features = torch.ones(64, 32, 14, 14)
    ours = (drop_block(features, torch.tensor(0.1), block_size=7) == 0).float().mean()
    theirs = (drop_block2d(features, 0.1, 7) == 0).float().mean()
    torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0)
    # Of one block per map with probability gamma * 64 = 0.4 each 49 of 196 pixels; overlaps take a little
    # away.
    assert 0.085 < ours < 0.1


def test_drop_block_draws_per_image_and_channel_and_survives_dropping_all() -> None:
    torch.manual_seed(0)
    out = drop_block(torch.ones(8, 16, 14, 14), torch.tensor(0.3))
    patterns = (out == 0).flatten(2).reshape(128, -1)
    assert len(patterns.unique(dim=0)) > 60
    assert not drop_block(torch.ones(2, 2, 7, 7), torch.tensor(1.0)).any()
    assert torch.equal(drop_block(torch.ones(2, 2, 7, 7), torch.tensor(0.0)), torch.ones(2, 2, 7, 7))


def test_drop_path_leaves_whole_images_out_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(8000, 2, 2, 2))
    assert torch.equal(out, out[:, :1, :1, :1].expand_as(out))
    factors = out[:, 0, 0, 0]
    assert factors.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (factors == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(DropPath(0.25).eval()(torch.ones(4, 1, 1, 1)), torch.ones(4, 1, 1, 1))


def test_where_each_acts() -> None:
    """Groups 3 and 4, a quarter in group 3, DropBlock on the skip connections too, DropPath in group 4
    alone.
    """
    network = build_network("resnet50", 5, **ALL)
    found = {
        kind: sorted({name.partition(".")[0] for name, m in network.named_modules() if isinstance(m, kind)})
        for kind in (nn.Dropout, DropBlock, DropPath)
    }
    assert found == {
        nn.Dropout: ["layer3", "layer4"],
        DropBlock: ["layer3", "layer4"],
        DropPath: ["layer4"],
    }
    for stage, share in ((network.layer3, 0.25), (network.layer4, 1.0)):
        for block in stage:
            dropout, drop = block.drop
            assert dropout.p == pytest.approx(0.3 * share)
            assert float(drop.now) == pytest.approx(0.1 * share)
            assert float(block.drop_skip.now) == pytest.approx(0.1 * share)
            assert drop.block_size == 7
    # Three convolutions, and the skip connection, of one block.
    calls = []
    block = network.layer4[1]
    for name in ("drop", "drop_skip", "drop_path"):
        getattr(block, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    block.train()(torch.randn(2, 2048, 2, 2))
    assert calls == ["drop", "drop", "drop", "drop_skip", "drop_path"]
    basic = build_network("resnet18", 5, drop_block=0.1)
    assert len([m for m in basic.modules() if isinstance(m, DropBlock)]) == 2 * 2 * 2


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_weights_and_evaluation_are_torchvisions(arch: str) -> None:
    torch.manual_seed(0)
    plain = build_network(arch, 5)
    torch.manual_seed(0)
    network = build_network(arch, 5, **ALL)
    assert list(network.state_dict()) == list(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(network.eval()(images), plain.eval()(images))
    schedule_drops(network, 0.0)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.testing.assert_close(network.train()(images), plain.train()(images))
    if arch == "resnet50":
        assert list(network.state_dict()) == list(resnet50(num_classes=5).state_dict())


def test_schedule_is_linear_and_dropout_is_fixed() -> None:
    network = build_network("resnet18", 5, **ALL)
    for progress in (0.0, 0.25, 1.0):
        schedule_drops(network, progress)
        assert float(network.layer3[0].drop[1].now) == pytest.approx(0.025 * progress)
        assert float(network.layer4[0].drop_skip.now) == pytest.approx(0.1 * progress)
        assert float(network.layer4[0].drop_path.now) == pytest.approx(0.1 * progress)
        assert network.layer4[0].drop[0].p == pytest.approx(0.3)
    schedule_drops(build_network("resnet18", 5), 0.5)  # nothing to schedule
    with pytest.raises(ValueError, match=r"progress must be in \[0, 1\], got 1.2"):
        schedule_drops(network, 1.2)


@pytest.mark.parametrize("method", ["dropout", "drop_path", "drop_block"])
def test_the_methods_of_table_6_act_in_training_alone(method: str) -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", 5, **{method: 0.5})
    images, labels = torch.randn(8, 3, 64, 64), torch.arange(8) % 5
    network.train()
    assert not torch.allclose(network(images), network(images))
    heat = saliency_map(network, images, labels)
    assert torch.equal(heat, saliency_map(network, images, labels))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"drop_block must be in \[0, 1\), got 1.0"):
        build_network("resnet18", 5, drop_block=1.0)
    with pytest.raises(ValueError, match=r"resnet20 does not take these options.*drop_block"):
        build_network("resnet20", 5, drop_block=0.1)
