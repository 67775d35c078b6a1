"""Networks for other run times (ONNX), checked before they are kept."""

from __future__ import annotations

import copy
import importlib
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keepaug.runs.files import write_bytes_atomic


def export_onnx(
    path: str | Path,
    module: nn.Module,
    *,
    size: tuple[int, int],
    metadata: Mapping[str, str] | None = None,
    tolerance: float = 1e-4,
) -> Path:
    """Write a network that takes (N, 3, height, width) float32 "images" and gives "features", for any N.

    The file is written after onnxruntime has given, on batches of 1 and 3, what torch gives. The module is
    copied, in evaluation mode on the CPU, and left as it is.

    Args:
        path: the file.
        module: its call on images returns one tensor.
        size: (height, width) in pixels.
        metadata: texts kept in the file, mean and std of the normalization for example.
        tolerance: largest allowed difference, relative to the largest feature.

    Returns:
        The path.

    Raises:
        ModuleNotFoundError: without onnx, onnxscript or onnxruntime.
        RuntimeError: onnxruntime gives something else than torch.
    """
    onnx, _, runtime = (_required(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    network = copy.deepcopy(module).cpu().float().eval()
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2, 3, *size, generator=generator)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about the exporter's own workings
        file = Path(folder) / "network.onnx"
        torch.onnx.export(
            network,
            (example,),
            file,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        model = onnx.load(file)
    onnx.helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for number in (1, 3):
        images = torch.randn(number, 3, *size, generator=generator)
        with torch.no_grad():
            expected = network(images)
        found = torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])
        difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
        if found.shape != expected.shape or not difference <= tolerance:
            raise RuntimeError(
                f"onnxruntime gives {tuple(found.shape)} with a relative difference of {difference:.1e} for "
                f"torch's {tuple(expected.shape)}; {path} was not written"
            )
    return write_bytes_atomic(path, content)


def _required(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the ONNX export needs {name}: pip install 'keepaug[reid]'") from error
