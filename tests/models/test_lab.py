import itertools

import pytest
import torch
from torch.nn import functional as F

from keepaug.models.early import EarlyHeadNetwork
from keepaug.models.lab import LabNetwork, whitening_filters
from keepaug.models.networks import build_network, check_arch
from keepaug.saliency import saliency_map


@pytest.fixture
def network() -> LabNetwork:
    torch.manual_seed(0)
    return LabNetwork((32, 40, 48), 7)


def coloured(num: int = 40) -> torch.Tensor:
    """Images whose pixels and colours hang together."""
    noise = torch.randn(num, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    smooth = F.avg_pool2d(noise, 3, stride=1, padding=1)
    return smooth + 2 * smooth.roll(1, dims=1) + 0.3


def test_whitened_patches_are_uncorrelated_with_variance_one() -> None:
    images = coloured()
    filters = whitening_filters(images, 2, eps=0.0)
    assert filters.shape == (12, 3, 2, 2)
    outputs = []
    for image, top, left in itertools.product(images, range(15), range(15)):  # the slow rule
        patch = image[:, top : top + 2, left : left + 2]
        outputs.append((filters * patch).sum(dim=(1, 2, 3)))
    covariance = torch.stack(outputs).T.double().cov()
    assert torch.allclose(covariance, torch.eye(12, dtype=torch.float64), atol=2e-2)


def test_whitening_without_enough_patches_says_so() -> None:
    with pytest.raises(ValueError, match="12 whitening filters need at least as many patches, got 9"):
        whitening_filters(torch.zeros(1, 3, 4, 4), 2)


def test_first_layer_is_trained_until_it_is_whitened_with_both_signs(network: LabNetwork) -> None:
    assert network.whitening.weight.requires_grad
    network.whiten(coloured())
    weight = network.whitening.weight
    assert torch.equal(weight[:12], -weight[12:])
    assert not weight.requires_grad
    assert network.whitening.bias is not None
    assert network.whitening.bias.requires_grad


def test_an_untrained_group_passes_its_channels_on(network: LabNetwork) -> None:
    features = torch.randn(2, 24, 9, 9)
    convolved = network.stages[0][0][0](features)
    assert torch.equal(convolved[:, :24], features)
    assert not torch.equal(convolved[:, 24:], torch.zeros_like(convolved[:, 24:]))


def test_norms_learn_their_bias_alone(network: LabNetwork) -> None:
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    norms = {name for name, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert len(norms) == 6
    assert {f"{name}.bias" for name in norms} < trained
    assert not {f"{name}.weight" for name in norms} & trained


@pytest.mark.parametrize("side", [10, 16, 32, 45])
def test_any_size_down_to_ten_pixels(network: LabNetwork, side: int) -> None:
    assert network.eval()(torch.randn(2, 3, side, side)).shape == (2, 7)


def test_low_resolution_saliency_and_early_head(network: LabNetwork) -> None:
    images, labels = coloured(4), torch.arange(4)
    assert (saliency_map(network, images.repeat(1, 1, 2, 2), labels, scale=0.5) > 0).any()
    both = EarlyHeadNetwork(network)(images)
    assert [tuple(part.shape) for part in both] == [(4, 7), (4, 7)]


def test_built_by_name() -> None:
    check_arch("lab")
    network = build_network("lab_large", 10)
    assert isinstance(network, LabNetwork)
    assert [stage[1][0].out_channels for stage in network.stages] == [128, 384, 384]
    with pytest.raises(ValueError, match="lab_huge"):
        check_arch("lab_huge")
