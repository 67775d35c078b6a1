"""The network's shapes and frozen parts, and weights that fit or are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reid_helpers import tiny_config
from torch import nn
from torchvision.models import resnet18, resnet50

from keepaug.runs.config import ConfigError
from reid.models.network import build_reid_network
from reid.models.weights import describe_network, load_backbone, load_trained, save_trained


@pytest.mark.parametrize(("arch", "width"), [("resnet18", 512), ("resnet50", 2048)])
@pytest.mark.parametrize("last_stride", [1, 2])
def test_last_stride_doubles_the_last_map(arch: str, width: int, last_stride: int) -> None:
    network = build_reid_network(arch, 3, last_stride=last_stride).eval()
    seen = []
    network.backbone.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    with torch.no_grad():
        logits, features = network(torch.zeros(1, 3, 64, 32))
    assert seen[0][1:] == ((width, 4, 2) if last_stride == 1 else (width, 2, 1))
    assert logits.shape == (1, 3)
    assert features.shape == (1, width)


def test_backbone_is_torchvisions(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    reference = resnet18().eval()
    network = build_reid_network("resnet18", 3, last_stride=2).eval()
    network.backbone.load_state_dict(
        {k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    )
    reference.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 32, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(network.features(images, after_neck=False), reference(images))
        without = build_reid_network("resnet18", 3, last_stride=2, first_relu=False).eval()
        without.backbone.load_state_dict(network.backbone.state_dict())
        assert not torch.allclose(without.features(images), network.features(images))
        through: list[torch.Tensor] = []
        without.backbone.maxpool.register_forward_hook(
            lambda module, inputs, output: through.append(inputs[0])
        )
        without.features(images)
    assert (through[0] < 0).any()  # the release has no ReLU there


def test_neck_bias_is_frozen_at_zero_and_the_classifier_has_none() -> None:
    network = build_reid_network("resnet18", 300)
    assert not network.neck.bias.requires_grad
    assert (network.neck.bias == 0).all()
    assert network.neck.weight.requires_grad
    assert network.classifier.bias is None
    assert float(network.classifier.weight.std()) == pytest.approx(0.001, rel=0.05)
    plain = build_reid_network("resnet18", 3, neck="none")
    assert plain.classifier.bias is not None
    images = torch.zeros(1, 3, 32, 16)
    plain.eval()
    assert torch.equal(plain.features(images), plain.features(images, after_neck=False))


@pytest.mark.parametrize("name", ["osnet_x0_25", "shufflenet_v2_x0_5"])
def test_networks_of_torchreid(name: str) -> None:
    network = build_reid_network(f"torchreid:{name}", 5, size=(64, 32))
    images = torch.randn(3, 3, 64, 32)
    logits, features = network(images)
    assert logits.shape == (3, 5)
    logits.sum().backward()
    assert not [
        key for key, value in network.named_parameters() if value.requires_grad and value.grad is None
    ]
    assert network.eval().features(images).shape == features.shape == (3, network.feature_dim)


def test_networks_of_torchreid_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="torchreid has no network 'osnet_x9'"):
        build_reid_network("torchreid:osnet_x9", 5)
    with pytest.raises(ValueError, match="one feature vector per image"):
        build_reid_network("torchreid:pcb_p4", 5, size=(64, 32))


def test_imagenet_weights(tmp_path: Path) -> None:
    reference = resnet18().state_dict()
    for number, content in enumerate(
        [
            reference,
            {"state_dict": {f"module.{key}": value for key, value in reference.items()}, "best_err1": 20.0},
            {"model": {k: v for k, v in reference.items() if not k.endswith("num_batches_tracked")}},
        ]
    ):
        torch.save(content, tmp_path / f"{number}.pth")
        network = build_reid_network("resnet18", 3)
        load_backbone(network, tmp_path / f"{number}.pth")
        assert torch.equal(network.backbone.layer4[1].conv2.weight, reference["layer4.1.conv2.weight"])


def test_osnet_weights(tmp_path: Path) -> None:
    source = build_reid_network("torchreid:osnet_x0_25", 3, size=(64, 32)).backbone.network
    source.classifier = nn.Linear(512, 1000)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "osnet.pth")
    network = build_reid_network("torchreid:osnet_x0_25", 5, size=(64, 32))
    load_backbone(network, tmp_path / "osnet.pth")
    assert torch.equal(network.backbone.network.conv1.conv.weight, source.conv1.conv.weight)


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    network = build_reid_network("resnet18", 3)
    path = tmp_path / "w.pth"
    torch.save(resnet50().state_dict(), path)
    with pytest.raises(
        ValueError, match=r"unknown: layer1.0.conv3.weight.*another shape: layer1.0.conv1.weight is"
    ):
        load_backbone(network, path)
    broken = resnet18().state_dict()
    del broken["layer2.0.bn1.running_mean"]
    torch.save(broken, path)
    with pytest.raises(ValueError, match=r"1 key\(s\) missing: layer2.0.bn1.running_mean"):
        load_backbone(network, path)
    broken = resnet18().state_dict()
    broken["conv1.weight"][0, 0, 0, 0] = torch.nan
    torch.save(broken, path)
    with pytest.raises(ValueError, match=r"not finite in conv1\.weight"):
        load_backbone(network, path)
    torch.save({"state_dict": resnet18().state_dict(), "mean": [0.0, 0.0, 0.0]}, path)
    with pytest.raises(ConfigError, match=r"trained with mean \[0, 0, 0\], the config says \[0.485"):
        load_backbone(network, path, mean=[0.485, 0.456, 0.406])
    torch.save({"state_dict": resnet18().state_dict(), "mean": [0.485]}, path)
    with pytest.raises(ConfigError, match=r"trained with mean \[0\.485\], the config says"):
        load_backbone(network, path, mean=[0.485, 0.456, 0.406])
    torch.save({"encoder.proj": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"does not fit this backbone: 100 key\(s\) missing"):
        load_backbone(network, path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="holds no tensors"):
        load_backbone(network, path)
    with pytest.raises(ValueError, match="holds no trained ReID network"):
        load_trained(path)
    with pytest.raises(FileNotFoundError, match="no weights file"):
        load_backbone(network, tmp_path / "absent.pth")
    save_trained(network, path, describe_network(tiny_config(tmp_path), [1, 2, 3], {}))
    content = load_trained(path)
    assert content["identities"] == [1, 2, 3]
    torch.save({key: value for key, value in content.items() if key != "last_stride"}, path)
    with pytest.raises(ValueError, match=r"w\.pth.*last_stride"):
        load_trained(path)
