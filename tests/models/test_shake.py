"""Shake-Shake and ShakeDrop: what is drawn, forwards, backwards and in evaluation."""

from __future__ import annotations

import pytest
import torch

from keepaug.models import build_network
from keepaug.models.shake import ShakeDrop, scale, shake_shake


def factors(function, num_images: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """The factor of each image forwards and backwards, from features of 1; equal within an image."""
    features = torch.ones(num_images, 2, 2, 3, requires_grad=True)
    out = function(features)
    (gradient,) = torch.autograd.grad(out.sum(), features)
    for values in (out, gradient):
        assert torch.equal(values, values[:, :1, :1, :1].expand_as(values))
    return out.detach()[:, 0, 0, 0], gradient[:, 0, 0, 0]


def uniform(values: torch.Tensor, low: float, high: float) -> bool:
    """Kolmogorov-Smirnov at about 1e-4."""
    ordered = values.sort().values
    expected = (ordered - low) / (high - low)
    distance = (expected - (torch.arange(len(values)) + 0.5) / len(values)).abs().max()
    return (
        bool(distance < 2.2 / len(values) ** 0.5)
        and low <= float(values.min()) <= float(values.max()) <= high
    )


def test_scale_has_the_gradient_of_the_second_factor() -> None:
    features = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    forwards, backwards = torch.rand(3, 1, 1, 1).double(), torch.rand(3, 1, 1, 1).double()
    out = scale(features, forwards, backwards)
    torch.testing.assert_close(out, features * forwards)
    weights = torch.randn_like(features)
    (gradient,) = torch.autograd.grad((out * weights).sum(), features)
    torch.testing.assert_close(gradient, weights * backwards)


def test_shake_shake_draws_alpha_and_beta_per_image() -> None:
    torch.manual_seed(0)
    alpha, beta = factors(lambda ones: shake_shake(ones, torch.zeros_like(ones), training=True))
    assert uniform(alpha, 0, 1)
    assert uniform(beta, 0, 1)
    assert abs(torch.corrcoef(torch.stack([alpha, beta]))[0, 1]) < 0.06
    torch.manual_seed(0)
    other, other_beta = factors(lambda ones: shake_shake(torch.zeros_like(ones), ones, training=True))
    torch.testing.assert_close(alpha + other, torch.ones_like(alpha))  # the branches share one image
    torch.testing.assert_close(beta + other_beta, torch.ones_like(beta))


def test_shake_shake_in_evaluation_is_the_mean_of_training() -> None:
    torch.manual_seed(0)
    first, second = torch.tensor(3.0).expand(1, 1, 1, 1), torch.tensor(-1.0).expand(1, 1, 1, 1)
    even = shake_shake(first, second, training=False)
    assert even.item() == 1
    many = shake_shake(first.expand(20_000, 1, 1, 1), second.expand(20_000, 1, 1, 1), training=True)
    torch.testing.assert_close(many.mean(), even.squeeze(), atol=0.04, rtol=0)


def test_shake_drop_draws_a_gate_alpha_and_beta_per_image() -> None:
    torch.manual_seed(0)
    alpha, beta = factors(ShakeDrop(0.4).train(), 20_000)
    kept = alpha == 1
    assert kept.float().mean().item() == pytest.approx(0.6, abs=0.02)
    assert torch.equal(kept, beta == 1)  # one gate for both directions
    assert uniform(alpha[~kept], -1, 1)
    assert uniform(beta[~kept], 0, 1)
    assert abs(torch.corrcoef(torch.stack([alpha[~kept], beta[~kept]]))[0, 1]) < 0.05


@pytest.mark.parametrize("drop", [0.0, 0.25, 1.0])
def test_shake_drop_in_evaluation_is_the_mean_of_training(drop: float) -> None:
    torch.manual_seed(0)
    layer = ShakeDrop(drop)
    forwards, backwards = factors(layer.eval())
    assert torch.allclose(forwards, torch.tensor(1 - drop))
    assert torch.allclose(backwards, torch.tensor(1 - drop))
    torch.testing.assert_close(
        factors(layer.train(), 20_000)[0].mean(), torch.tensor(1 - drop), atol=0.02, rtol=0
    )


def test_bfloat16_draws_in_full_precision() -> None:
    torch.manual_seed(0)
    features = torch.ones(2000, 1, 1, 1, dtype=torch.bfloat16)
    out = ShakeDrop(1.0).train()(features)
    torch.manual_seed(0)
    expected = ShakeDrop(1.0).train()(features.float())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected.bfloat16())


@pytest.mark.parametrize("arch", ["shake_shake_8_2x4d", "pyramidnet11_a6"])
def test_a_seeded_step_repeats_and_another_differs(arch: str) -> None:
    torch.manual_seed(0)
    network = build_network(arch, 4).train()
    images = torch.randn(4, 3, 8, 8)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        network.zero_grad()
        network(images).sum().backward()
        results.append(network.stem[0].weight.grad.clone())
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"drop must be in \[0, 1\], got 1.5"):
        ShakeDrop(1.5)
