"""Losses against loops written from their papers, the released schedule's values, and bfloat16."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.nn import functional as F

from reid.torchreid_api import torchreid_module
from reid.training.losses import CenterLoss, batch_hard_triplet, learning_rate


def oracle_triplet(features: torch.Tensor, labels: torch.Tensor, margin: float) -> float:
    total = 0.0
    for a in range(len(labels)):
        positives = [
            float((features[a] - features[p]).norm()) for p in range(len(labels)) if labels[p] == labels[a]
        ]
        negatives = [
            float((features[a] - features[n]).norm()) for n in range(len(labels)) if labels[n] != labels[a]
        ]
        total += max(0.0, max(positives) - min(negatives) + margin)
    return total / len(labels)


@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
def test_triplet(margin: float, generator: torch.Generator) -> None:
    features = torch.randn(12, 5, generator=generator)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 0])
    loss = batch_hard_triplet(features, labels, margin=margin)
    assert float(loss) == pytest.approx(oracle_triplet(features, labels, margin), rel=1e-4)


def test_triplet_pulls_positives_and_pushes_negatives() -> None:
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.4], [0.5, 0.9]], requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1])
    before = batch_hard_triplet(features, labels)
    before.backward()
    assert torch.isfinite(features.grad).all()  # also where an image is its own positive at distance 0
    after = batch_hard_triplet((features - 0.1 * features.grad).detach(), labels)
    assert after < before.detach()


def test_triplet_needs_two_identities() -> None:
    with pytest.raises(ValueError, match="two identities or more"):
        batch_hard_triplet(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))


def test_triplet_of_bfloat16_features_is_exact_where_torchreids_is_not(generator: torch.Generator) -> None:
    features = (
        torch.randn(32, 64, generator=generator) * 0.1 + 1
    ).bfloat16()  # what a network under autocast returns
    labels = torch.arange(32) // 4
    theirs = torchreid_module("losses").TripletLoss()
    exact = oracle_triplet(features.double(), labels, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        ours = batch_hard_triplet(features, labels)
        wrong = theirs(features, labels)
    assert ours.dtype == torch.float32
    assert float(ours) == pytest.approx(exact, rel=1e-3)
    assert abs(float(wrong) - exact) / exact > 0.02


def test_centre_loss_and_its_own_rate(generator: torch.Generator) -> None:
    """As the release computes it, with the full distance matrix, a mask and the rescaled gradient."""
    features = torch.randn(6, 4, generator=generator)
    labels = torch.tensor([0, 2, 2, 1, 0, 4])
    center = CenterLoss(5, 4, generator=generator)
    matrix = torch.cdist(features, center.centres.detach()) ** 2
    mask = labels[:, None] == torch.arange(5)
    assert float(center(features, labels).detach()) == pytest.approx(
        float((matrix * mask).sum() / 6), rel=1e-5
    )
    (0.0005 * center(features, labels)).backward()
    center.rescale_gradient(0.0005)
    expected = torch.zeros(5, 4)
    for feature, label in zip(features, labels, strict=True):
        expected[label] += 2 * (center.centres.detach()[label] - feature) / 6
    torch.testing.assert_close(center.centres.grad, expected)
    assert (center.centres.grad[3] == 0).all()  # nobody's centre stays


def test_schedule_is_the_released_one() -> None:
    rates = [learning_rate(epoch, base=3.5e-4) for epoch in range(120)]
    assert rates[0] == pytest.approx(3.5e-4 * (0.01 * 0.9 + 0.1))
    assert rates[8] == pytest.approx(3.5e-4 * (0.01 * 0.1 + 0.9))
    assert rates[9:39] == [3.5e-4] * 30
    assert rates[39] == pytest.approx(3.5e-5)  # the release counts from 1: its epoch 40
    assert rates[68] == pytest.approx(3.5e-5)
    assert rates[69] == rates[119] == pytest.approx(3.5e-6)
    assert learning_rate(0, base=1.0, warmup_epochs=0) == 1.0


def test_label_smoothing_is_the_released_formula(generator: torch.Generator) -> None:
    logits, labels = torch.randn(5, 7, generator=generator), torch.tensor([0, 6, 2, 2, 3])
    targets = 0.9 * F.one_hot(labels, 7) + 0.1 / 7
    expected = (-targets * logits.log_softmax(1)).mean(0).sum()
    torch.testing.assert_close(F.cross_entropy(logits, labels, label_smoothing=0.1), expected)


def test_torchreids_adam_forgets_faster_than_the_recipes() -> None:
    build = torchreid_module("optim").build_optimizer
    assert inspect.signature(build).parameters["adam_beta2"].default == 0.99
