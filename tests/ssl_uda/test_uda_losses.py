"""Each part of the objective against numbers worked out by hand, and what has a gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from keepaug.runs.config import load_config
from ssl_uda.algorithms import Outputs
from ssl_uda.algorithms.fixmatch import fixmatch_loss
from ssl_uda.algorithms.supervised import masked_mean, supervised_losses, tsa_mask, tsa_threshold
from ssl_uda.algorithms.uda import confidence_mask, consistency_losses, entropies, sharpened, uda_loss
from ssl_uda.config import UdaConfig
from ssl_uda.schedule import learning_rate

LOG = math.log


def logits_of(*rows: list[float]) -> Tensor:
    """Logits whose softmax is the given probabilities."""
    return torch.tensor(rows).log()


def test_temperature_sharpens_by_powers() -> None:
    """Softmax of log(p) / T is p^(1/T), normalised: at T = 0.5 (0.8, 0.2) becomes (0.64, 0.04) / 0.68."""
    logits = logits_of([0.8, 0.2])
    torch.testing.assert_close(sharpened(logits, 0.5), torch.tensor([[0.64, 0.04]]) / 0.68)
    torch.testing.assert_close(sharpened(logits, 1.0), torch.tensor([[0.8, 0.2]]))
    recipe = sharpened(logits, 0.4)
    torch.testing.assert_close(recipe[0, 0], torch.tensor(32 / 33))  # 4^2.5 = 32
    assert float(entropies(recipe.log())) < float(entropies(logits))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        sharpened(logits, 0.0)


def test_divergence_by_hand() -> None:
    target = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])
    logits = logits_of([0.25, 0.75], [0.5, 0.5], [0.25, 0.75])
    expected = [0.5 * LOG(0.5 / 0.25) + 0.5 * LOG(0.5 / 0.75), LOG(2), 0.0]
    torch.testing.assert_close(consistency_losses(target, logits), torch.tensor(expected))
    cross = [-0.5 * LOG(0.25) - 0.5 * LOG(0.75), LOG(2), -0.25 * LOG(0.25) - 0.75 * LOG(0.75)]
    torch.testing.assert_close(consistency_losses(target, logits, "cross_entropy"), torch.tensor(cross))
    other = consistency_losses(torch.tensor([[0.25, 0.75]]), logits_of([0.5, 0.5]))
    assert abs(float(other) - expected[0]) > 0.01  # not symmetric: the target comes first


def test_target_has_no_gradient_and_both_losses_have_the_same() -> None:
    clean = torch.randn(6, 4, requires_grad=True)
    strong = torch.randn(6, 4, requires_grad=True)
    assert not sharpened(clean, 0.4).requires_grad
    gradients = {}
    for kind in ("kl", "cross_entropy"):
        consistency_losses(sharpened(clean, 0.4), strong, kind).sum().backward()
        gradients[kind], strong.grad = strong.grad, None
        assert clean.grad is None
    assert gradients["kl"].abs().sum() > 0.1
    torch.testing.assert_close(gradients["kl"], gradients["cross_entropy"])
    # d KL / d logits = softmax(strong) - target
    torch.testing.assert_close(gradients["kl"], (strong.softmax(1) - sharpened(clean, 0.4)).detach())
    # a target that still hangs on the graph is cut off too
    consistency_losses(clean.softmax(1), strong).sum().backward()
    assert clean.grad is None
    with pytest.raises(ValueError, match="one shape"):
        consistency_losses(clean.softmax(1), strong[:, :3])
    with pytest.raises(ValueError, match="kind must be"):
        consistency_losses(clean, strong, "mse")


def test_confidence_looks_at_the_largest_probability_at_temperature_one() -> None:
    logits = logits_of([0.81, 0.19], [0.79, 0.21], [0.1, 0.9])
    assert confidence_mask(logits, 0.8).tolist() == [1, 0, 1]  # sharpened, the second would have passed
    assert sharpened(logits, 0.4)[1, 0] > 0.8
    assert confidence_mask(logits, -1).tolist() == [1, 1, 1]
    assert not confidence_mask(logits.requires_grad_(), 0.8).requires_grad


def test_entropy_by_hand_and_with_gradient() -> None:
    logits = logits_of([0.5, 0.5], [0.25, 0.75]).requires_grad_()
    expected = torch.tensor([LOG(2), -0.25 * LOG(0.25) - 0.75 * LOG(0.75)])
    torch.testing.assert_close(entropies(logits), expected)
    entropies(logits).sum().backward()
    assert logits.grad[1].abs().sum() > 0.1


@pytest.mark.parametrize(
    ("schedule", "halfway"),
    [
        ("linear", 0.5 * 0.9 + 0.1),
        ("exp", math.exp(-2.5) * 0.9 + 0.1),
        ("log", (1 - math.exp(-2.5)) * 0.9 + 0.1),
        ("off", math.inf),
    ],
)
def test_annealing_schedules(schedule: str, halfway: float) -> None:
    assert tsa_threshold(schedule, 50, 100, 10) == pytest.approx(halfway)


def test_annealing_ends() -> None:
    assert tsa_threshold("linear", 0, 100, 10) == pytest.approx(0.1)
    assert tsa_threshold("log", 0, 100, 10) == pytest.approx(0.1)
    assert tsa_threshold("exp", 0, 100, 10) == pytest.approx(0.1 + 0.9 * math.exp(-5))
    assert tsa_threshold("linear", 100, 100, 10) == tsa_threshold("exp", 100, 100, 10) == pytest.approx(1)
    with pytest.raises(ValueError, match="schedule must be"):
        tsa_threshold("cosine", 0, 100, 10)


def test_annealing_drops_what_is_known_and_divides_by_what_is_left() -> None:
    logits = logits_of([0.6, 0.4], [0.3, 0.7], [0.9, 0.1])
    labels = torch.tensor([0, 0, 1])
    losses = supervised_losses(logits, labels)
    torch.testing.assert_close(losses, -torch.tensor([0.6, 0.3, 0.1]).log())
    mask = tsa_mask(logits, labels, 0.5)
    assert mask.tolist() == [0, 1, 1]
    torch.testing.assert_close(masked_mean(losses, mask), torch.tensor((-LOG(0.3) - LOG(0.1)) / 2))
    assert tsa_mask(logits, labels, math.inf).tolist() == [1, 1, 1]
    nothing = masked_mean(losses, torch.zeros(3))
    assert float(nothing) == 0  # divided by 1, not by 0
    shared = masked_mean(losses, mask, torch.tensor(4.0))
    torch.testing.assert_close(shared, torch.tensor((-LOG(0.3) - LOG(0.1)) / 4))


def test_learning_rate_is_seven_sixteenths_of_a_cosine() -> None:
    assert learning_rate(0, 1000, 0.03) == pytest.approx(0.03)
    assert learning_rate(500, 1000, 0.03) == pytest.approx(0.03 * math.cos(7 * math.pi / 32))
    assert learning_rate(1000, 1000, 0.03) == pytest.approx(0.03 * 0.19509, rel=1e-4)
    assert [learning_rate(step, 110, 0.1, 10) for step in (0, 5, 10)] == pytest.approx([0, 0.05, 0.1])
    assert learning_rate(60, 110, 0.1, 10) == pytest.approx(0.1 * math.cos(7 * math.pi / 32))


def drawn_outputs(seed: int = 0) -> tuple[Outputs, Tensor]:
    """Logits of 4 labelled and 9 unlabelled images of 3 classes, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = [(2 * torch.randn(num, 3, generator=generator)).requires_grad_() for num in (4, 9, 9)]
    return Outputs(*logits), torch.tensor([2, 0, 1, 1])


def oracle_fixmatch(outputs: Outputs, labels: Tensor, threshold: float, weight: float) -> tuple[float, int]:
    """Equations 3 and 4 of FixMatch in loops, and how many images are believed."""
    labelled, weak, strong = outputs
    supervised = sum(
        -math.log(row.softmax(0)[label].item()) for row, label in zip(labelled, labels, strict=True)
    )
    unlabelled, believed = 0.0, 0
    for q, prediction in zip(weak.softmax(1).tolist(), strong.softmax(1).tolist(), strict=True):
        if max(q) >= threshold:
            believed += 1
            unlabelled -= math.log(prediction[q.index(max(q))])
    return supervised / len(labelled) + weight * unlabelled / len(weak), believed


def oracle_uda(
    outputs: Outputs, labels: Tensor, *, temperature: float, confidence: float, weight: float, eta: float
) -> float:
    """UDA's section 2.2 with sharpening, masking (2.4) and annealing below `eta`, in loops."""
    labelled, clean, strong = outputs
    right = [row.softmax(0)[label].item() for row, label in zip(labelled, labels, strict=True)]
    trained = [-math.log(probability) for probability in right if probability <= eta]
    unlabelled = 0.0
    for logits, prediction in zip(clean, strong.softmax(1).tolist(), strict=True):
        if max(logits.softmax(0).tolist()) > confidence:
            target = [math.exp(value / temperature) for value in logits.tolist()]
            target = [value / sum(target) for value in target]
            unlabelled += sum(p * math.log(p / q) for p, q in zip(target, prediction, strict=True))
    return sum(trained) / max(len(trained), 1) + weight * unlabelled / len(clean)


def test_fixmatch_is_its_algorithm_one_image_after_the_other() -> None:
    outputs, labels = drawn_outputs()
    expected, believed = oracle_fixmatch(outputs, labels, 0.8, 1.5)
    assert 0 < believed < 9
    config = load_config(UdaConfig, None, ["algorithm=fixmatch", "confidence=0.8", "weight=1.5"])
    parts = fixmatch_loss(outputs, labels, config, 0)
    assert parts.total.item() == pytest.approx(expected, rel=1e-5)
    assert parts.figures["mask_rate"].item() == pytest.approx(believed / 9)
    parts.total.backward()
    labelled, weak, strong = outputs
    assert weak.grad is None  # the pseudo-label is a constant
    hidden = weak.softmax(1).amax(1) < 0.8
    assert not strong.grad[hidden].any()
    assert strong.grad[~hidden].any(dim=1).all()
    assert labelled.grad.any()


@pytest.mark.parametrize("step", [0, 40, 90])
def test_uda_is_its_objective_one_image_after_the_other(step: int) -> None:
    outputs, labels = drawn_outputs(1)
    config = load_config(UdaConfig, None, ["confidence=0.7", "weight=1.5", "tsa=linear", "steps=100"])
    eta = step / 100 * (1 - 1 / 3) + 1 / 3
    expected = oracle_uda(outputs, labels, temperature=0.4, confidence=0.7, weight=1.5, eta=eta)
    parts = uda_loss(outputs, labels, config, step)
    assert parts.total.item() == pytest.approx(expected, rel=1e-5)
    parts.total.backward()
    assert outputs.clean.grad is None
