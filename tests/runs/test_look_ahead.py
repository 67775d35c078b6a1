import pytest
import torch
from torch import nn

from keepaug.runs.look_ahead import LookAhead


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def disturb(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    model[1].running_mean += step
    model[1].num_batches_tracked += 1


def test_against_the_rule_written_out() -> None:
    model, total = network(), 13
    ahead = LookAhead(model, 5, decay=0.9)
    fast = {key: value.clone() for key, value in model.state_dict().items()}
    slow = {key: value.clone() for key, value in fast.items()}
    reference = network()
    for step in range(1, total + 1):
        disturb(model, step)
        ahead.update(model, step, total, last=step == total)
        reference.load_state_dict(fast)
        disturb(reference, step)
        fast = {key: value.clone() for key, value in reference.state_dict().items()}
        if step in (5, 10):
            weight = 0.9**5 * (step / 13) ** 3
            for key in slow:
                if key != "1.num_batches_tracked":
                    slow[key] = weight * slow[key] + (1 - weight) * fast[key]
                    fast[key] = slow[key].clone()
        if step == 13:  # no multiple of 5: the last steps are given up
            fast = {
                key: slow[key] if key != "1.num_batches_tracked" else value for key, value in fast.items()
            }
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, fast[key])
    assert int(model[1].num_batches_tracked) == 13


def test_goes_on_from_its_state() -> None:
    whole, half = network(), network()
    first, second = LookAhead(whole), LookAhead(half)
    for step in range(1, 11):
        disturb(whole, step)
        first.update(whole, step, 10, last=step == 10)
    for step in range(1, 7):
        disturb(half, step)
        second.update(half, step, 10)
    third = LookAhead(network())
    third.load_state_dict({key: value.clone() for key, value in second.state_dict().items()})
    for step in range(7, 11):
        disturb(half, step)
        third.update(half, step, 10, last=step == 10)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, half.state_dict()[key])


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="every must be 1 or more"):
        LookAhead(network(), 0)
    with pytest.raises(ValueError, match="got 5 and 1"):
        LookAhead(network(), 5, decay=1.0)
