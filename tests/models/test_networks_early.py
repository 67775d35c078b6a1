"""Networks and the early head."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models import googlenet as torchvision_googlenet
from torchvision.models import resnet18 as torchvision_resnet18

from keepaug import saliency_map
from keepaug.models import EarlyHeadNetwork, build_network


def test_imagenet_stem_is_torchvisions() -> None:
    network, reference = build_network("resnet18", 5), torchvision_resnet18(num_classes=5)
    reference.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(network.eval()(images), reference.eval()(images))


def test_cifar_stem_keeps_the_resolution_and_has_the_published_size() -> None:
    network = build_network("resnet18", 10, stem="cifar").eval()
    assert sum(p.numel() for p in network.parameters()) == 11_173_962
    shapes = []
    network.layer1.register_forward_hook(lambda _, __, out: shapes.append(out.shape[2:]))
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(32, 32)]


@pytest.mark.parametrize("after", ["stage", "block"])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_early_head_changes_nothing_but_adds_logits(after: str, arch: str) -> None:
    torch.manual_seed(0)
    network = build_network(arch, 5)
    early = EarlyHeadNetwork(network, after=after)
    images = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(early.eval()(images), network.eval()(images))
    torch.testing.assert_close(early._split.both(images)[1], network(images))
    logits, early_logits = early.train()(images)
    assert logits.shape == early_logits.shape == (2, 5)
    torch.testing.assert_close(
        early.eval().forward_early(images), early.head(early._split.early(images).mean(dim=(2, 3)))
    )


def test_probe_leaves_the_statistics_alone() -> None:
    network = build_network("resnet18", 5).train()
    before = network.bn1.running_mean.clone()
    EarlyHeadNetwork(network)
    assert network.training
    assert torch.equal(network.bn1.running_mean, before)


def test_early_saliency_does_not_run_the_later_layers() -> None:
    early = EarlyHeadNetwork(build_network("resnet18", 5))
    ran = []
    for name in ("layer1", "layer2", "layer4"):
        getattr(early.network, name).register_forward_hook(lambda *_, name=name: ran.append(name))
    heat = saliency_map(early, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), forward=early.forward_early)
    assert heat.abs().sum() > 0
    assert ran == ["layer1"]


SMALL = ("resnet8", "wrn10_1", "shake_shake_8_2x4d", "pyramidnet11_a6")
TORCHVISION = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11_bn",
)
TIMM = ("resnet18", "convnext_atto", "mobilenetv3_small_050", "vit_tiny_patch16_224", "swin_s3_tiny_224")


def ran_layers(network: nn.Module) -> tuple[set[str], list]:
    """Names of the layers that run from now on."""
    ran: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.add(name))
        for name, module in network.named_modules()
        if not any(module.children())
    ]
    return ran, handles


def check_early_head(
    network: nn.Module, side: int, *, after: str = "stage", rough: bool = False
) -> EarlyHeadNetwork:
    """Logits unchanged in both modes, only the first layers run for saliency, every parameter is trained."""
    torch.manual_seed(0)
    early = EarlyHeadNetwork(network, after=after)
    assert list(early.state_dict())[:-2] == [f"network.{key}" for key in network.state_dict()]
    images, labels = torch.randn(2, 3, side, side), torch.tensor([0, 1])
    torch.testing.assert_close(early.eval()(images), network(images))
    with torch.no_grad():
        torch.testing.assert_close(early._split.both(images)[1], network(images))

    ran, handles = ran_layers(early)
    heat = saliency_map(early, images, labels, forward=early.forward_early)
    first = set(ran)
    ran.clear()
    early.train()
    logits, early_logits = early(images)
    every = set(ran)
    for handle in handles:
        handle.remove()
    assert heat.abs().sum() > 0
    assert "head" in first < every
    assert len(first) < len(every) * (0.75 if rough else 0.6)

    assert logits.shape == early_logits.shape == (2, 5)
    (logits.square().sum() + early_logits.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in early.parameters())
    early.zero_grad()
    early(images)[1].square().sum().backward()
    trained = {name.removesuffix(".weight") for name, p in early.named_parameters() if p.grad is not None}
    assert {name for name in trained if name in every} <= first
    return early


@pytest.mark.parametrize("after", ["stage", "block"])
@pytest.mark.parametrize("arch", SMALL)
def test_early_head_of_small_networks(arch: str, after: str) -> None:
    torch.manual_seed(0)
    early = check_early_head(build_network(arch, 5), 16, after=after)
    assert early.head.in_features == early._split.channels


def test_block_is_less_than_stage() -> None:
    network = build_network("wrn16_1", 5)
    counts = []
    for after in ("stage", "block"):
        early = EarlyHeadNetwork(network, after=after)
        ran, handles = ran_layers(early)
        early.eval().forward_early(torch.randn(1, 3, 8, 8))
        counts.append(sum("conv" in name for name in ran))
        for handle in handles:
            handle.remove()
    assert counts == [4, 2]


@pytest.mark.parametrize(
    "arch", [*TORCHVISION[:1], "mobilenet_v3_small", "shufflenet_v2_x0_5", "regnet_x_400mf"]
)
def test_early_head_of_torchvision_networks(arch: str) -> None:
    check_early_head(build_network(f"torchvision:{arch}", 5), 96, rough=True)


@pytest.mark.slow
@pytest.mark.parametrize("arch", TORCHVISION)
def test_early_head_of_each_torchvision_family(arch: str) -> None:
    check_early_head(build_network(f"torchvision:{arch}", 5), 96, rough=True)


@pytest.mark.parametrize("arch", TIMM[:1])
def test_early_head_of_timm_networks(arch: str) -> None:
    pytest.importorskip("timm")
    early = check_early_head(build_network(f"timm:{arch}", 5), 64)
    ran, _ = ran_layers(early.network)
    early.eval().forward_early(torch.randn(1, 3, 64, 64))
    assert {name.partition(".")[0] for name in ran} == {"conv1", "bn1", "act1", "maxpool", "layer1"}


@pytest.mark.slow
@pytest.mark.parametrize("arch", TIMM[1:])
def test_early_head_of_each_timm_family(arch: str) -> None:
    pytest.importorskip("timm")
    check_early_head(build_network(f"timm:{arch}", 5), 224)


@pytest.mark.parametrize("arch", ["wrn10_1", "torchvision:shufflenet_v2_x0_5", "resnet18"])
def test_a_copy_has_weights_of_its_own(arch: str) -> None:
    early = EarlyHeadNetwork(build_network(arch, 5)).eval()
    twin = copy.deepcopy(early)
    images = torch.randn(1, 3, 32, 32)
    before = twin.forward_early(images)
    torch.testing.assert_close(before, early.forward_early(images))
    with torch.no_grad():
        for parameter in early.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin.forward_early(images), before)
    torch.testing.assert_close(twin.train()(images.repeat(2, 1, 1, 1))[1].shape, torch.Size([2, 5]))


def test_state_moves_with_the_network() -> None:
    """Loading and converting reach the layers that the early head runs."""
    early = EarlyHeadNetwork(build_network("torchvision:shufflenet_v2_x0_5", 5)).eval()
    other = EarlyHeadNetwork(build_network("torchvision:shufflenet_v2_x0_5", 5)).eval()
    other.load_state_dict(early.state_dict())
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(early.forward_early(images), other.forward_early(images))
    assert early.double().forward_early(images.double()).dtype == torch.float64
    assert early.train()(images.double().repeat(2, 1, 1, 1))[0].dtype == torch.float64


@pytest.mark.slow
def test_compiled_early_head() -> None:
    """One graph without breaks, equal in evaluation, seeded in training (the draws have another order than
    eagerly).
    """
    torch.manual_seed(0)
    early = EarlyHeadNetwork(build_network("shake_shake_8_2x4d", 3))
    images = torch.randn(4, 3, 16, 16)
    compiled = torch.compile(early, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled.eval()(images), early.eval()(images))
    results = []
    compiled.train()
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        early.zero_grad()
        logits, early_logits = compiled(images)
        (logits.square().sum() + early_logits.square().sum()).backward()
        assert all(parameter.grad is not None for parameter in early.parameters())
        results.append((logits.detach(), early.network.stem[0].weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1])
    assert not torch.allclose(results[0][0], results[2][0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_network("resnet19", 5), "arch must be one of resnet18"),
        (lambda: build_network("resnet18", 5, stem="mnist"), "stem must be one of"),
        (lambda: build_network("resnet18", 0), "num_classes must be 1 or more"),
        (lambda: EarlyHeadNetwork(build_network("resnet18", 5), after="all"), "after must be one of"),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_networks_without_an_early_head_are_refused() -> None:
    with pytest.raises(TypeError, match="no early head is known for Sequential"):
        EarlyHeadNetwork(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="aux_logits=False"):
        EarlyHeadNetwork(torchvision_googlenet(num_classes=5, init_weights=False))
    with pytest.raises(ValueError, match="first stage of DenseNet is not a sequence of blocks"):
        EarlyHeadNetwork(build_network("torchvision:densenet121", 5), after="block")
