"""Every way to name a network, and files that would run a program when read."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from keepaug.audit.networks import open_network, wrap_network
from keepaug.models.weights import NetworkSpec, save_classifier

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class Evil:
    """Leaves a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


def test_our_files(tmp_path: Path) -> None:
    spec = NetworkSpec("resnet8", 3)
    network = spec.build().eval()
    own = {"classes": ["a", "b", "c"], **IMAGENET}
    path = save_classifier(
        tmp_path / "weights.pt", network, spec, **own, provenance={"recipe": {"image_size": 48}}
    )
    images = torch.randn(2, 3, 32, 32)
    found = open_network(path)
    assert found.size == 48  # photographs of any size are brought to the run's
    assert open_network(path, size=40).size == 40
    assert found.classes == ["a", "b", "c"]
    assert found.mean == pytest.approx(IMAGENET["mean"])
    assert torch.equal(found.module(images), network(images))
    torch.save({"model": network.state_dict(), "step": 7}, tmp_path / "checkpoint.pt")
    again = open_network(tmp_path / "checkpoint.pt")
    assert torch.equal(again.module.eval()(images), network(images))
    assert again.identity == found.identity
    assert "step 7" in again.name
    assert again.size == 48
    for odd in ({}, {"recipe": 3}, {"recipe": {"image_size": 0}}, {"recipe": {"image_size": "48"}}):
        save_classifier(path, network, spec, **own, provenance=odd)
        assert open_network(path).size is None
    for model in ({3: torch.ones(1)}, [], "x"):
        torch.save({"model": model, "step": 7}, tmp_path / "checkpoint.pt")
        with pytest.raises(ValueError, match=r"checkpoint\.pt has"):
            open_network(tmp_path / "checkpoint.pt")
    (tmp_path / "weights.pt").unlink()
    for model, config in (
        ({"fc.weight": torch.ones(3, 3)}, "arch: [1]"),
        ({"fc.weight": torch.ones(3, 3)}, "[" * 3000),
        ({"fc.weight": torch.ones(3, 3)}, "arch: 3"),
        ({}, "arch: resnet8"),
    ):
        torch.save({"model": model, "step": 7}, tmp_path / "checkpoint.pt")
        (tmp_path / "config.yaml").write_text(config)
        with pytest.raises(ValueError, match=r"config\.yaml"):
            open_network(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize(("name", "wrapped"), [("torchvision:resnet18", False), ("timm:resnet18", True)])
def test_libraries_networks(tmp_path: Path, name: str, wrapped: bool) -> None:
    state = {f"module.{key}": value for key, value in resnet18(num_classes=6).state_dict().items()}
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "w.pth")
    found = open_network(name, weights=tmp_path / "w.pth")
    assert found.size == 224
    assert found.mean == pytest.approx(IMAGENET["mean"])
    assert found.module(torch.zeros(1, 3, 64, 64)).shape == (1, 6)
    with pytest.raises(ValueError, match="needs weights"):
        open_network(name)
    with pytest.raises(ValueError, match=r"^.{,300}does not fit.{,300}$"):
        open_network(name.replace("18", "34"), weights=tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError, match="no weights"):
        open_network(name, weights=tmp_path / "other.pth")
    assert "untrained" in open_network(name, weights="RANDOM").name


def test_torchscript_is_read_and_no_pickle_runs(tmp_path: Path) -> None:
    network = small().eval()
    path = tmp_path / "net.pt"
    torch.jit.trace(network, torch.zeros(1, 3, 16, 16)).save(path)
    images = torch.randn(3, 3, 16, 16)
    found = open_network(path, **IMAGENET)
    assert torch.allclose(found.module(images), network(images), atol=1e-6)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for name in [name for name in parts if name.endswith(".pkl")]:
        changed = tmp_path / "changed.pt"
        with zipfile.ZipFile(changed, "w") as archive:
            for other, content in parts.items():
                archive.writestr(
                    other, pickle.dumps(Evil(tmp_path / "ran"), protocol=2) if other == name else content
                )
        with contextlib.suppress(ValueError):  # some parts are not even looked at
            open_network(changed, **IMAGENET)
    assert len([name for name in parts if name.endswith(".pkl")]) >= 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("dynamic", [True, False])
def test_exported_programs(tmp_path: Path, dynamic: bool) -> None:
    network, path = small().eval(), tmp_path / "net.pt2"
    shapes = ({0: torch.export.Dim("batch", min=1, max=512)},) if dynamic else None
    program = torch.export.export(network, (torch.randn(4, 3, 16, 16),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    found = open_network(path, **IMAGENET)
    images = torch.randn(6, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(found.module(images), network(images), atol=1e-6)


def _rewritten(path: Path, out: Path, change) -> Path:
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for name in archive.namelist():
            new.writestr(name, change(name, archive.read(name)))
    return out


def test_exported_programs_that_would_run_something_are_refused(tmp_path: Path) -> None:
    path, ran = tmp_path / "net.pt2", tmp_path / "ran"
    shapes = ({0: torch.export.Dim("batch", min=1, max=512)},)
    torch.export.save(
        torch.export.export(small().eval(), (torch.randn(4, 3, 16, 16),), dynamic_shapes=shapes), path
    )
    buffer = io.BytesIO()
    torch.save(Evil(ran), buffer)
    tried = 0
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    for target in [
        name for name in names if name.endswith(".pt") or "/weights/" in name or "/constants/" in name
    ]:
        if target.endswith(".json"):
            continue
        for content in (buffer.getvalue(), pickle.dumps(Evil(ran))):
            changed = _rewritten(
                path, tmp_path / "c.pt2", lambda name, old, t=target, c=content: c if name == t else old
            )
            with contextlib.suppress(ValueError):  # raw numbers are numbers, whatever they spell
                open_network(changed, **IMAGENET).module(torch.zeros(4, 3, 16, 16))
            tried += 1
    assert tried >= 4
    assert not ran.exists()

    def expression(name: str, old: bytes) -> bytes:
        if not name.endswith(".json") or b"expr_str" not in old:
            return old
        evil = f"__import__('pathlib').Path({str(ran)!r}).touch()"

        def walk(value):
            if isinstance(value, dict):
                return {key: evil if key == "expr_str" else walk(one) for key, one in value.items()}
            return [walk(one) for one in value] if isinstance(value, list) else value

        return json.dumps(walk(json.loads(old))).encode()

    def call(name: str, old: bytes) -> bytes:
        return old.replace(b"torch.ops.aten.relu.default", b"torch.serialization.os.getcwd")

    with pytest.raises(ValueError, match="is no operator"):
        open_network(_rewritten(path, tmp_path / "o.pt2", call), **IMAGENET)
    with pytest.raises(ValueError, match="is no size"):
        open_network(_rewritten(path, tmp_path / "e.pt2", expression), **IMAGENET)
    assert not ran.exists()


def test_weights_that_would_run_something_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": Evil(tmp_path / "ran")}, tmp_path / "w.pth")
    for arguments in (("torchvision:resnet18", tmp_path / "w.pth"), (tmp_path / "w.pth", None)):
        with pytest.raises(ValueError):
            open_network(arguments[0], weights=arguments[1])
    assert not (tmp_path / "ran").exists()


def test_code_of_the_users(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets_of_mine.py").write_text(
        "from torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
        "ready = build()\n"
        "def needs(width):\n    return width\n"
    )
    for name in ("nets_of_mine:build", "nets_of_mine:ready"):
        assert open_network(name, **IMAGENET).module(torch.zeros(2, 3, 2, 2)).shape == (2, 3)
    with pytest.raises(ValueError, match="callable without arguments"):
        open_network("nets_of_mine:needs", **IMAGENET)
    with pytest.raises(ValueError, match="give mean and std"):
        open_network("nets_of_mine:build")


def test_what_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a network is a"):
        open_network(tmp_path / "nothing.pt")
    torch.save(resnet18().state_dict(), tmp_path / "s.pth")
    with pytest.raises(ValueError, match="does not say of which"):
        open_network(tmp_path / "s.pth")
    (tmp_path / "t.pt").write_bytes(b"no network at all")
    with pytest.raises(ValueError, match="cannot be read"):
        open_network(tmp_path / "t.pt")
    with pytest.raises(ValueError, match="mean must be three numbers"):
        wrap_network(small(), mean=(120.0, 110.0, 100.0), std=(1, 1, 1))
    images = torch.randn(2, 3, 8, 8)
    called = wrap_network(lambda x: x.flatten(1)[:, :5], mean=(0, 0, 0), std=(1, 1, 1))
    assert called.module(images).shape == (2, 5)
    assert called.identity is None
