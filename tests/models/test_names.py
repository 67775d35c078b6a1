"""Networks by name: torchvision's, timm's, and what is refused."""

from __future__ import annotations

import sys

import pytest
import torch
import torchvision

from keepaug.models import build_network, check_arch
from keepaug.models.networks import PAPER, _torchvision_names


def test_all_names_of_the_paper_are_known() -> None:
    for arch in ("resnet18", "resnet50", "resnet101", *PAPER, "wrn40_4", "pyramidnet110_a48", "resnet1202"):
        check_arch(arch)


def test_torchvisions_names_are_read_without_importing_it() -> None:
    assert sorted(_torchvision_names()) == torchvision.models.list_models(module=torchvision.models)


def test_torchvision_by_name_is_torchvisions() -> None:
    torch.manual_seed(0)
    network = build_network("torchvision:mobilenet_v3_small", 5)
    reference = torchvision.models.mobilenet_v3_small(num_classes=5)
    reference.load_state_dict(network.state_dict())
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(network.eval()(images), reference.eval()(images))


def test_networks_with_heads_of_their_own_return_logits_alone() -> None:
    with torch.device("meta"):
        network = build_network("torchvision:googlenet", 5, init_weights=False)
        assert network.train()(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_options_reach_torchvision_and_timm() -> None:
    pytest.importorskip("timm")
    with torch.device("meta"):
        assert build_network("torchvision:efficientnet_b0", 5, dropout=0.4).classifier[0].p == 0.4
        network = build_network("timm:resnet18", 5, dropout=0.2, drop_path=0.1, drop_block=0.1)
    assert network.drop_rate == 0.2
    assert network.layer4[1].drop_path.drop_prob == pytest.approx(0.1)
    assert any(type(module).__name__ == "DropBlock2d" for module in network.modules())


def test_timm_resnet_with_torchvisions_weights_is_torchvisions_resnet() -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    network, reference = build_network("timm:resnet18", 5), build_network("resnet18", 5)
    network.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network.eval()(images), reference.eval()(images))


def test_cifar_stem_of_any_torchvision_resnet() -> None:
    network = build_network("torchvision:resnext50_32x4d", 5, stem="cifar").eval()
    shapes = []
    network.layer1.register_forward_hook(lambda _, __, out: shapes.append(out.shape[2:]))
    network(torch.randn(1, 3, 8, 8))
    assert shapes == [(8, 8)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_network("resnet19", 5), "got 'resnet19'; did you mean resnet1"),
        (lambda: build_network("wrn28-10", 5), "did you mean wrn28_10"),
        (lambda: build_network("efficientnet_b0", 5), "did you mean torchvision:efficientnet_b0"),
        (lambda: build_network("torchvision:resnet5O", 5), "did you mean torchvision:resnet50"),
        (lambda: build_network("torchvision:fasterrcnn_resnet50_fpn", 5), "arch must be one of"),
        (lambda: build_network("other:resnet18", 5), "arch must be one of"),
        (lambda: build_network("resnet18", 5, stem="mnist"), "stem must be one of"),
        (
            lambda: build_network("torchvision:vgg11", 5, stem="cifar"),
            "stem=cifar is for torchvision's ResNets",
        ),
        (lambda: build_network("wrn10_1", 0), "num_classes must be 1 or more"),
        (lambda: build_network("wrn27_10", 5), r"6 n \+ 4 .* got 27; try 28"),
        (lambda: build_network("wrn28_0", 5), "width of a Wide ResNet must be 1"),
        (lambda: build_network("wrn10_1", 5, dropout=1.0), r"dropout must be in \[0, 1\)"),
        (lambda: build_network("wrn10_1", 5, shortcut="padded"), "shortcut must be one of activated, raw"),
        (lambda: build_network("resnet20", 5, shortcut="raw"), "shortcut must be one of padded, projection"),
        (lambda: build_network("wrn10_1", 5, droput=0.3), "wrn10_1 does not take these options.*droput"),
        (lambda: build_network("shake_shake_27_2x32d", 5), r"Shake-Shake network is 6 n \+ 2"),
        (lambda: build_network("shake_shake_26_2x33d", 5), "must be even"),
        (lambda: build_network("pyramidnet270", 5), "got 270; try 272"),
        (lambda: build_network("pyramidnet272", 5, shake_drop=1.5), "shake_drop must be in"),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_timm_name_has_close_matches() -> None:
    pytest.importorskip("timm")
    check_arch("timm:resnet50.a1_in1k")
    with pytest.raises(ValueError, match="did you mean timm:convnext_tiny"):
        check_arch("timm:convnext_tinny")


def test_without_timm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        build_network("timm:resnet18", 5)
    check_arch("wrn28_10")  # needs none
