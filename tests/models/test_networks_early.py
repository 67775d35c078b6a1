"""Networks and the early head."""

from __future__ import annotations

import pytest
import torch
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
