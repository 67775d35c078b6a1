"""Checkpoints survive damage, and nothing in them runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from keepaug.runs.checkpoint import FILE_NAME, PREVIOUS_NAME, checked, load_checkpoint, save_checkpoint


def test_the_previous_one_is_kept_and_takes_over(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, {"step": 1, "w": torch.arange(3)})
    save_checkpoint(tmp_path, {"step": 2, "w": torch.arange(3)})
    assert load_checkpoint(tmp_path)["step"] == 2
    whole = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=r"checkpoint\.pt cannot be read.*going on from .*previous"):
        assert load_checkpoint(tmp_path)["step"] == 1
    (tmp_path / PREVIOUS_NAME).write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint can be read"):
        load_checkpoint(tmp_path)


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 1})
    (tmp_path / FILE_NAME).rename(tmp_path / PREVIOUS_NAME)
    assert load_checkpoint(tmp_path)["step"] == 1


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"step": Evil()}, tmp_path / FILE_NAME)
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (torch.empty(2, device="meta"), "without values"),
        (torch.eye(2).to_sparse(), "sparse_coo"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (None, "expected keys and values"),
    ],
)
def test_what_neither_a_network_nor_an_optimizer_takes(value: Any, kind: str, tmp_path: Path) -> None:
    torch.save([1, 2] if value is None else {"step": 1, "model": {"w": value}}, tmp_path / FILE_NAME)
    with pytest.raises(ValueError, match=rf"no checkpoint can be read.*{kind}"):
        load_checkpoint(tmp_path)


DELETE = object()


def stepped(kind: Callable[..., torch.optim.Optimizer], **options: Any) -> torch.optim.Optimizer:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = kind([weight], lr=0.001, **options)
    weight.sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("kind", "options"), [(torch.optim.SGD, {}), (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adam, {})]
)
def test_a_state_of_its_own_fits_an_optimizer(kind: Any, options: dict[str, float]) -> None:
    optimizer = stepped(kind, **options)
    optimizer.param_groups[0]["lr"] = 1  # a whole number is a number
    with checked(optimizer):
        optimizer.load_state_dict(stepped(kind, **options).state_dict())


@pytest.mark.parametrize(
    ("where", "key", "value", "message"),
    [
        ("group", "lr", None, "lr is None, expected something like 0.001"),
        ("group", "lr", DELETE, "lr is missing, expected something like 0.001"),
        ("group", "betas", 0.9, "betas is 0.9, expected something like .0.9, 0.999."),
        ("group", "amsgrad", 0, "amsgrad is 0, expected something like False"),
        ("state", "exp_avg", torch.ones(3), r"exp_avg is .*, expected numbers of the shape .2,."),
        ("state", "exp_avg", [0.1, 0.1], "exp_avg is"),
        ("state", "step", torch.ones(2), "step is"),
    ],
)
def test_an_optimizers_state_of_another_kind_is_refused(
    where: str, key: str, value: Any, message: str
) -> None:
    optimizer = stepped(torch.optim.Adam)
    state = copy.deepcopy(optimizer.state_dict())
    part = state["param_groups"][0] if where == "group" else state["state"][0]
    part[key] = value
    if value is DELETE:
        del part[key]
    with pytest.raises(TypeError, match=message), checked(optimizer):
        optimizer.load_state_dict(state)
