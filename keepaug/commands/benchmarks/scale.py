"""Time and memory of what grows with the data, at several sizes, for `keepaug benchmark scale`: evaluating
re-identification and detections, and starting on a folder a second time.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from keepaug.runs.timing import Table

SIZES = {"gallery images": 500_000, "detections": 500_000, "images in a folder": 1_280_000}
_SHRUNK = {"gallery images": 800, "detections": 1200, "images in a folder": 1600}
_PARTS = (8, 4, 2, 1)  # of the whole
_QUERIES, _DIMENSIONS = 1000, 512
_CLASS = 1300  # images, about as many as in ImageNet's
_SETTLED = 2.5  # seconds, after which a folder's list is remembered


def _gallery(size: int, folder: Path) -> Callable[[], object]:
    from keepaug.commands.benchmarks.reid_evaluation import draw
    from reid.evaluation.protocol import evaluate

    data = draw((_QUERIES, size, _DIMENSIONS))
    return partial(evaluate, data.query, data.gallery, **data.labels)


def _detections(size: int, folder: Path) -> Callable[[], object]:
    from detection.evaluation import evaluate
    from keepaug.commands.benchmarks.coco_evaluation import drawn

    split, results = drawn(folder, size // 30)
    return partial(evaluate, split, results)


def _folder(size: int, folder: Path) -> Callable[[], object]:
    from keepaug.data.checking import check_images
    from keepaug.data.files import find_images

    return lambda: check_images(find_images(folder / "images")[0])


KINDS = {"gallery images": _gallery, "detections": _detections, "images in a folder": _folder}


def measure(kind: str, size: int, folder: str, threads: int) -> None:
    """Print {"seconds" of the processor, "megabytes" beyond the data} as JSON: for a process of its own."""
    torch.set_num_threads(threads)
    work = KINDS[kind](size, Path(folder))
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    start = time.process_time()
    work()
    seconds = time.process_time() - start
    print(json.dumps({"seconds": seconds, "megabytes": (_memory("VmHWM") - before) / 1e3}))


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _write_images(root: Path, start: int, stop: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (90, 120, 60)).save(file, "JPEG")
    for number in range(start, stop):
        folder = root / f"class{number // _CLASS:04d}"
        if number == start or number % _CLASS == 0:
            folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:07d}.jpg").write_bytes(file.getvalue())


def scale_section(device: torch.device, *, shrink: bool = False) -> tuple[Table, dict[str, Any]]:
    """An eighth, a quarter, a half and the whole of Market-1501's distractors, of a detector's results on
    COCO and of ImageNet; each in a process of its own. Linux.
    """
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "KEEPAUG_CACHE": str(Path(folder) / "cache")}
        for kind, whole in (_SHRUNK if shrink else SIZES).items():
            sizes = [whole // part for part in _PARTS]
            times = ["first start", "second start"] if kind == "images in a folder" else [""]
            for before, size in zip([0, *sizes], sizes, strict=False):
                if kind == "images in a folder":
                    _write_images(Path(folder) / "images", before, size)
                    time.sleep(_SETTLED)
                for which in times:
                    given = [kind, size, folder, torch.get_num_threads()]
                    command = [sys.executable, "-m", __name__, json.dumps(given)]
                    done = subprocess.run(
                        command, capture_output=True, text=True, check=False, env=environment
                    )
                    if done.returncode:
                        raise RuntimeError(f"measuring {kind} failed:\n{done.stderr[-2000:]}")
                    found = json.loads(done.stdout.splitlines()[-1])
                    name = f"{kind}, {which}" if which else kind
                    figures[f"{name}, {size}"] = found
                    rows.append([name, f"{size:,}", f"{found['seconds']:.2f}", f"{found['megabytes']:.0f}"])
    return (["what", "number", "s of the processor", "MB beyond the data"], rows), figures


if __name__ == "__main__":
    measure(*json.loads(sys.argv[1]))
