"""Atomic files, result records, generators."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from keepaug.runs.ema import ModelEma, ema_decay
from keepaug.runs.errors import NonFiniteLossError
from keepaug.runs.files import sha256_of, write_atomic, write_json_atomic
from keepaug.runs.guard import check_finite, only_finite
from keepaug.runs.result import read_results, write_result
from keepaug.runs.seeds import make_generator
from keepaug.transfer import start_reading

RESULT = {
    "kind": "classify",
    "name": "x",
    "metrics": {"accuracy": 91.5},
    "seed": 3,
    "config": {"epochs": 2},
    "dataset": {"name": "cifar10", "sizes": {"train": 5}, "checksum": "ab"},
    "synthetic": False,
    "shortened": True,
    "wall_time_s": 1.0,
}


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = write_json_atomic(tmp_path / "a.json", {"old": 1})

    def broken(file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, broken)
    assert json.loads(path.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json_atomic(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"old": 1}


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_results_are_read_back_with_their_circumstances(tmp_path: Path) -> None:
    write_result(tmp_path / "b", **RESULT)
    write_result(tmp_path / "a", **{**RESULT, "seed": 4})
    results = read_results(tmp_path)
    assert [result["seed"] for result in results] == [4, 3]
    first = results[0]
    assert first["metrics"] == {"accuracy": 91.5}
    assert first["packages"]["torch"] == torch.__version__.split("+")[0] or first["packages"]["torch"]
    assert first["hardware"]["cores"] == os.cpu_count()
    assert first["folder"] == str(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "classification"}, "kind must be one of"),
        ({"metrics": {"accuracy": float("nan")}}, "'accuracy' must be a finite number"),
        ({"dataset": {"name": "x"}}, "checksum, sizes"),
    ],
)
def test_bad_results_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_result(tmp_path, **{**RESULT, **change})
    assert not list(tmp_path.iterdir())


def test_damaged_results_are_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result\.json is not JSON"):
        read_results(tmp_path)
    (tmp_path / "result.json").write_text('{"schema": 1}')
    with pytest.raises(ValueError, match="lacks kind"):
        read_results(tmp_path)


def test_streams_are_reproducible_and_independent() -> None:
    draw = [
        torch.rand(4, generator=make_generator(*names))
        for names in ((1, "a"), (1, "a"), (1, "b"), (2, "a"), (1, "a", 0))
    ]
    assert torch.equal(draw[0], draw[1])
    assert len({tuple(d.tolist()) for d in draw}) == 4


def test_ema_follows_the_formula() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    ema = ModelEma(network, 0.9)
    weight, mean = network[0].weight.detach().clone(), network[1].running_mean.clone()
    with torch.no_grad():
        network[0].weight.add_(1)
        network[1].running_mean.add_(2)
        network[1].num_batches_tracked.add_(5)
    ema.update(network)
    torch.testing.assert_close(ema.model[0].weight, weight + 0.1)
    torch.testing.assert_close(ema.model[1].running_mean, mean + 0.2)
    assert int(ema.model[1].num_batches_tracked) == 5
    assert not any(p.requires_grad for p in ema.model.parameters())


def test_average_of_a_short_run_is_not_its_beginning() -> None:
    """What is left of the first weights after the last step, and that the recipes' decay is the constant
    one.
    """

    def left(steps: int, decay: float, **options: bool) -> float:
        return math.prod(ema_decay(step, steps, decay, **options) for step in range(steps))

    assert left(3000, 0.9999, ramp=False) == pytest.approx(0.74, abs=0.01)
    for steps in (10, 100, 3000, 30_000):
        assert left(steps, 0.9999) < 0.021
    assert {ema_decay(step, 500_000, 0.9999) for step in (0, 10, 499_999)} == {0.9999}
    assert {ema_decay(step, 2**20, 0.999) for step in (0, 10, 2**20 - 1)} == {0.999}
    assert ema_decay(0, 100, 0.0) == 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_reading_returns_the_value_of_the_start(device: str) -> None:
    value = torch.full((), 2.5, device=device)
    read = start_reading(value)
    value.add_(1)
    assert float(read()) == 2.5


def test_only_finite_lets_a_step_go_on_and_tells() -> None:
    good, read = only_finite(torch.tensor([1.0, 2.0]))
    assert good.tolist() == [1, 2]
    assert float(read()) == 3
    for bad in (float("nan"), float("inf")):
        values, read = only_finite(torch.tensor([1.0, bad]))
        assert values.tolist() == [1, 0]
        with pytest.raises(NonFiniteLossError, match="the saliency is"):
            check_finite(float(read()), 0, None, what="saliency")


def test_guard_names_step_and_checkpoint() -> None:
    check_finite(1.0, 3, None)
    with pytest.raises(NonFiniteLossError, match=r"nan at step 7; the last good checkpoint is run/c\.pt"):
        check_finite(float("nan"), 7, "run/c.pt")
