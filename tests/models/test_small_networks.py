"""The networks for small images: published sizes, the papers' forward passes, and that every part of them
trains.
"""

from __future__ import annotations

import itertools

import network_oracles as oracles
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from keepaug import saliency_map
from keepaug.models import build_network
from keepaug.models.staged import StagedNetwork

TINY = ("resnet8", "wrn10_1", "shake_shake_8_2x4d", "pyramidnet11_a6")


def randomise(network: nn.Module) -> nn.Module:
    """Statistics and affine weights that a mistake would show in."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network


@pytest.mark.parametrize(
    ("arch", "options", "exact", "published"),
    [
        # He et al., arXiv:1512.03385, table 6: 0.27, 0.85, 1.7 M
        ("resnet20", {}, 269_722, "0.27"),
        ("resnet56", {}, 853_018, "0.85"),
        ("resnet110", {}, 1_727_962, "1.7"),
        # Zagoruyko and Komodakis, arXiv:1605.07146, table 4: 36.5 M; google-research/uda logs 1.467610 M for
        # WRN-28-2
        ("wrn28_10", {"dropout": 0.3}, 36_479_194, "36.5"),
        ("wrn16_8", {}, 10_961_370, "11.0"),
        ("wrn28_2", {}, 1_467_610, "1.47"),
        ("wrn28_2", {"shortcut": "raw"}, 1_467_610, "1.47"),
        # Gastaldi, arXiv:1705.07485: 2.9 M and 26.2 M
        ("shake_shake_26_2x32d", {}, 2_923_162, "2.9"),
        ("shake_shake_26_2x96d", {}, 26_192_922, "26.2"),
        # Han et al., arXiv:1610.02915, table 4: 26.0 M; their released PyTorch code (dyhan0920) builds
        # exactly this many
        ("pyramidnet272", {}, 26_210_842, "26.2"),
    ],
)
def test_published_sizes(arch: str, options: dict, exact: int, published: str) -> None:
    with torch.device("meta"):
        network = build_network(arch, 10, **options)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == exact
    digits = len(published.partition(".")[2])
    assert f"{count / 1e6:.{digits}f}" == published


def depth(network: nn.Module) -> int:
    """Convolutions and linear layers that count in a network's name: shortcuts do not."""
    counted = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum("shortcut" not in name and "branch2" not in name for name in counted)


@pytest.mark.parametrize(
    "arch", ["resnet110", "shake_shake_26_2x32d", "pyramidnet272", "wrn28_2", "wrn10_1", "pyramidnet11_a6"]
)
def test_the_depth_is_that_of_the_name(arch: str) -> None:
    with torch.device("meta"):
        network = build_network(arch, 10)
    # A Wide ResNet's name counts three shortcuts as well.
    named = int("".join(c if c.isdigit() else " " for c in arch).split()[0])
    assert depth(network) == (named - 2 if arch.startswith("wrn") else named)


@pytest.mark.parametrize(
    ("arch", "options", "oracle"),
    [
        ("wrn16_2", {}, lambda s, x: oracles.wide_resnet(s, x, 2, "activated")),
        ("wrn16_2", {"shortcut": "raw"}, lambda s, x: oracles.wide_resnet(s, x, 2, "raw")),
        ("wrn16_1", {}, lambda s, x: oracles.wide_resnet(s, x, 2, "activated")),
        ("resnet14", {}, lambda s, x: oracles.cifar_resnet(s, x, 2, "padded")),
        ("resnet14", {"shortcut": "projection"}, lambda s, x: oracles.cifar_resnet(s, x, 2, "projection")),
        ("shake_shake_14_2x8d", {}, lambda s, x: oracles.shake_shake(s, x, 2)),
        ("pyramidnet20_a12", {}, lambda s, x: oracles.pyramid_net(s, x, 2, 0.5)),
        ("pyramidnet20_a12", {"shake_drop": 0.0}, lambda s, x: oracles.pyramid_net(s, x, 2, 0.0)),
    ],
)
def test_forward_pass_is_the_papers(arch: str, options: dict, oracle) -> None:
    torch.manual_seed(0)
    network = randomise(build_network(arch, 7, **options)).eval().double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(images), oracle(network.state_dict(), images))


def test_pyramid_net_widens_by_alpha_in_equal_steps() -> None:
    with torch.device("meta"):
        network = build_network("pyramidnet272", 10)
    widths = [block.conv2.out_channels for stage in network.stages for block in stage]
    assert len(widths) == 90
    assert (widths[0], widths[1], widths[-1]) == (18, 20, 216)
    assert {after - before for before, after in itertools.pairwise(widths)} == {2, 3}
    drops = [block.shake_drop.drop for stage in network.stages for block in stage]
    assert drops == pytest.approx([0.5 * number / 90 for number in range(1, 91)])


def test_initialisation() -> None:
    torch.manual_seed(0)
    network = build_network("wrn16_4", 10)
    weight = network.stages[2][0].conv1.weight  # 128 to 256 channels
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert weight.mean().abs() < 1e-3
    assert not network.fc.bias.any()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.1, 1e-5)}


def test_initialisation_is_that_of_the_released_code() -> None:
    """Cutout's ResNet-18: uniform up to 1 / sqrt(fan in), PyTorch's default. UDA's last layer: up to 1 /
    sqrt(classes).
    """
    torch.manual_seed(0)
    network = build_network("resnet18", 10, stem="cifar")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            assert module.weight.abs().max().item() <= fan_in**-0.5
            assert module.weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.03)
    assert network.layer3[0].conv1.weight.std().item() == pytest.approx(0.017, abs=5e-4)
    torchvision = build_network("resnet18", 10).layer3[0].conv1.weight
    assert torchvision.std().item() == pytest.approx(0.029, abs=5e-4)
    for shortcut, bound in (("activated", 128**-0.5), ("raw", 10**-0.5)):
        layer = build_network("wrn28_2", 10, shortcut=shortcut).fc
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not layer.bias.any()


def test_dropout_of_wide_resnets_is_between_the_convolutions_and_only_in_training() -> None:
    torch.manual_seed(0)
    network = build_network("wrn10_1", 10, dropout=0.3)
    zeros = []
    for stage in network.stages:
        stage[0].conv2.register_forward_hook(
            lambda _, inputs, __: zeros.append((inputs[0] == 0).float().mean())
        )
    images = torch.randn(8, 3, 16, 16)
    network.train()(images)
    dropped = torch.stack(zeros)
    zeros.clear()
    network.eval()(images)
    # A ReLU leaves half: with dropout 0.5 + 0.5 * 0.3 are zero.
    torch.testing.assert_close(dropped.mean(), torch.tensor(0.65), atol=0.05, rtol=0)
    torch.testing.assert_close(network(images), network(images))


@pytest.mark.parametrize("arch", TINY)
def test_every_parameter_has_a_gradient_and_training_learns(arch: str) -> None:
    torch.manual_seed(0)
    network = build_network(arch, 4).train()
    images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 4
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(30):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:  # DistributedDataParallel waits for ever for a parameter without one
            assert all(parameter.grad is not None for parameter in network.parameters())
            assert all(
                parameter.grad.abs().sum() > 0 for parameter in network.parameters() if parameter.ndim == 4
            )
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


@pytest.mark.parametrize("arch", TINY)
def test_channels_last_and_bfloat16(arch: str) -> None:
    torch.manual_seed(0)
    network = build_network(arch, 4).eval()
    images = torch.randn(4, 3, 16, 16)
    expected = network(images)
    last = network.to(memory_format=torch.channels_last)
    formats = []
    last.stages[1].register_forward_hook(
        lambda _, __, out: formats.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    pixels = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last(pixels), expected, rtol=1e-4, atol=1e-5)
    assert formats == [True]
    with torch.autocast("cpu", torch.bfloat16):
        logits = last.train()(pixels)
    assert logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("arch", TINY)
def test_saliency_is_deterministic_and_draws_nothing(arch: str) -> None:
    torch.manual_seed(0)
    network = build_network(arch, 4, **({"dropout": 0.3} if arch.startswith("wrn") else {})).train()
    images, labels = torch.randn(3, 3, 16, 16), torch.tensor([0, 1, 2])
    drawn: list[str] = []
    before = torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        original = torch.rand
        torch.rand = lambda *args, **kwargs: drawn.append("rand") or original(*args, **kwargs)  # type: ignore[assignment]
        try:
            first = saliency_map(network, images, labels)
        finally:
            torch.rand = original
    assert torch.equal(first, saliency_map(network, images, labels))
    assert first.abs().sum() > 0
    assert drawn == []
    assert torch.equal(before, torch.get_rng_state())
    one = saliency_map(network, images[1:2], labels[1:2])
    torch.testing.assert_close(first[1:2], one, rtol=1e-4, atol=1e-6)  # images are not mixed


def test_any_even_size_and_half_resolution() -> None:
    for arch in TINY:
        network = build_network(arch, 4).eval()
        assert isinstance(network, StagedNetwork)
        for side in (8, 17, 20):
            assert network(torch.randn(1, 3, side, side)).shape == (1, 4)
