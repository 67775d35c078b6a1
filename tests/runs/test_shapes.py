"""Shapes of files: what fits, and what is said of what does not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from keepaug.runs.checkpoint import checked, read_weights_only
from keepaug.runs.config import ConfigError
from keepaug.runs.shapes import PLAIN, check_shape, read_json, read_yaml

SHAPE = {"name": str, "sizes": {str: int}, "rate?": (float, None), "classes?": [str], "ok?": bool, str: Any}


def test_what_json_can_say_is_plain() -> None:
    check_shape({"a": [1, 2.5, "x", True, None, (1, {"b": []})]}, {str: PLAIN}, "f")
    for odd in (torch.ones(2), float("nan"), {"x"}, b"x", {"a": {1: 2}}, [[torch.ones(1)]], object()):
        with pytest.raises(ValueError, match="f has"):
            check_shape({"a": odd}, {str: PLAIN}, "f")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", r"has \[1\] as its content, expected keys and values"),
        ("{}", "lacks name, sizes"),
        ('{"name": 3, "sizes": {}}', "has 3 as name, expected a text"),
        ('{"name": "a", "sizes": {"train": 1.5}}', r"has 1.5 as sizes\.train, expected a whole number"),
        ('{"name": "a", "sizes": {"train": true}}', "has True as"),
        ('{"name": "a", "sizes": {}, "rate": NaN}', "has nan as rate, expected a finite number or null"),
        ('{"name": "a", "sizes": {}, "classes": ["x", 1]}', r"has 1 as classes\[1\], expected a text"),
        ('{"name": "a", "sizes": {}, "ok": 1}', "expected true or false"),
        ("[" * 100_000, "is not JSON"),
        ('{"name": ', "is not JSON"),
    ],
)
def test_what_does_not_fit_is_named(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_json(file, SHAPE)


def test_what_fits_is_taken() -> None:
    for more in ({}, {"rate": 1}, {"rate": None}, {"classes": ["a"], "ok": True, "else": object()}):
        check_shape({"name": "a", "sizes": {"train": 3}, **more}, SHAPE, "f")
    check_shape((1, 2.5), [float], "f")


@pytest.mark.parametrize(
    "text",
    ["a: &x [*x]", "[" * 3000 + "]" * 3000, "a: !!python/object/apply:print [1]", "3", "{? [1]: 2}", "1: 2",
     "a: \x00", "- a"],
)  # fmt: skip
def test_yaml_of_another_structure_is_one_sentence(text: str, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        read_yaml(file)
    for empty in ("", "# nothing\n", "null\n"):  # of a run's settings only a damaged file is that
        file.write_text(empty)
        with pytest.raises(ConfigError, match="expected keys and values, got nothing"):
            read_yaml(file)


@pytest.mark.parametrize(
    "odd",
    [
        torch.ones(2).to(torch.float8_e4m3fn), torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        torch.ones(2, 2).to_sparse(), torch.ones(2, device="meta"), torch.ones(2, dtype=torch.complex64),
    ],
)  # fmt: skip
def test_tensors_that_nothing_takes_are_named(odd: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2), "b": [odd]}}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"cannot be read.*model\.b\.0"):
        read_weights_only(tmp_path / "w.pt")


def test_an_optimizer_that_cannot_take_a_step_is_found_out() -> None:
    parameter = nn.Parameter(torch.ones(3))

    def make() -> torch.optim.SGD:
        return torch.optim.SGD([{"params": [parameter], "factor": 2.0}], lr=0.1, momentum=0.9)

    optimizer = make()
    parameter.grad = torch.ones(3)
    optimizer.step()

    def load(key: str, **change: Any) -> None:
        state = copy.deepcopy(optimizer.state_dict())
        state["state"][0] |= {name: value for name, value in change.items() if name == "momentum_buffer"}
        group = state["param_groups"][0]
        group |= {name: value for name, value in change.items() if name in group}
        group.pop(key, None)
        other = make()
        with checked(other):
            other.load_state_dict(state)

    load("")
    load("nesterov")  # which earlier versions of torch did not write
    for bad in ("", torch.ones(2), [1], -1, torch.tensor(True), torch.tensor(1.0)):
        with pytest.raises(TypeError, match="momentum_buffer"):
            load("", momentum_buffer=bad)
    with pytest.raises(TypeError, match="nesterov is 'yes'"):
        load("", nesterov="yes")
    with pytest.raises(TypeError, match="factor is 'x'"):
        load("", factor="x")
    for key in ("lr", "factor"):
        with pytest.raises(TypeError, match=f"{key} is missing"):
            load(key)
