"""Exports: what was written is what is read; a faulty ONNX network is never kept."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from reid.evaluation.export import export_onnx
from reid.evaluation.features import FeatureSet, load_features, save_features


def some(number: int) -> FeatureSet:
    return FeatureSet(
        torch.randn(number, 4),
        torch.arange(number),
        torch.full((number,), -1),
        [f"q/é{i}.jpg" for i in range(number)],
    )


def test_features_come_back_without_pickles(tmp_path: Path) -> None:
    query, gallery = some(3), some(5)
    path = save_features(tmp_path / "f.npz", query=query, gallery=gallery)
    found = load_features(path)
    assert list(found) == ["query", "gallery"]
    assert torch.equal(found["query"].features, query.features)
    assert torch.equal(found["gallery"].identities, gallery.identities)
    assert torch.equal(found["gallery"].cameras, gallery.cameras)
    assert list(found["gallery"].paths) == list(gallery.paths)
    assert [file.name for file in tmp_path.iterdir()] == ["f.npz"]
    half = FeatureSet(query.features.bfloat16(), query.identities, query.cameras, query.paths)
    stored = load_features(save_features(tmp_path / "h.npz", query=half))["query"].features
    assert torch.equal(stored, half.features.float())


def test_faulty_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to save"):
        save_features(tmp_path / "f.npz")
    with pytest.raises(ValueError, match="paths has 1 entries for 3 features"):
        FeatureSet(torch.randn(3, 2), torch.arange(3), torch.arange(3), ["a"])
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    with pytest.raises(ValueError, match="holds no NAME_features: a"):
        load_features(tmp_path / "x.npz")
    np.savez(tmp_path / "p.npz", q_features=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_features(tmp_path / "p.npz")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


@pytest.fixture
def onnxruntime():
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    return pytest.importorskip("onnxruntime")


def test_onnx_is_torch_for_any_batch(onnxruntime, tmp_path: Path) -> None:
    module = network().train()
    statistics = module[1].running_mean.clone()
    path = export_onnx(tmp_path / "n.onnx", module, size=(12, 8), metadata={"mean": "[0.5]"})
    assert module.training
    assert module[1].training
    assert torch.equal(module[1].running_mean, statistics)
    assert [file.name for file in tmp_path.iterdir()] == ["n.onnx"]
    session = onnxruntime.InferenceSession(str(path))
    images = torch.randn(7, 3, 12, 8)
    (found,) = session.run(["features"], {"images": images.numpy()})
    with torch.no_grad():
        expected = module.eval()(images)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert session.get_modelmeta().custom_metadata_map["mean"] == "[0.5]"


def test_a_network_that_differs_is_not_written(
    onnxruntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        def __init__(self, *_, **__) -> None:
            pass

        def run(self, _, inputs):
            return [np.zeros((len(inputs["images"]), 4), dtype=np.float32)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    with pytest.raises(RuntimeError, match="was not written"):
        export_onnx(tmp_path / "n.onnx", network(), size=(12, 8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_what_is_missing_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {name}: pip install"):
        export_onnx(tmp_path / "n.onnx", network(), size=(12, 8))
