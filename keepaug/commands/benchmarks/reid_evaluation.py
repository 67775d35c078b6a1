"""Evaluation and re-ranking against torchreid's, for `keepaug benchmark`.

Every variant starts from the features, so that the time of the distances is in all of them. Fast variants
take turns in one process; memory, and the time of the slow ones, is measured in a process of its own: the
largest resident size sampled every few milliseconds, less that with the features alone.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from keepaug.runs.seeds import make_generator
from keepaug.runs.timing import Table, interleaved
from reid.evaluation.protocol import evaluate
from reid.evaluation.reranking import rerank
from reid.torchreid_api import torchreid_module

_MARKET = (3368, 15913, 2048)
_SHRUNK = (40, 300, 32)
_BLOCK = 2048  # as in `rerank`


class _Set(NamedTuple):
    """Features and labels like those of a test set: 750 identities, 6 cameras, distractors of identity 0."""

    query: Tensor
    gallery: Tensor
    labels: dict[str, Any]


def draw(size: Sequence[int]) -> _Set:
    """Features of queries and gallery.

    Args:
        size: numbers of queries and gallery images, and dimensions.
    """
    queries, gallery, dimensions = size
    generator = make_generator(0, "benchmark", "features")
    # Of few intrinsic dimensions, as trained features are; at Market-1501's size mAP 0.86, as Bag of Tricks
    # reaches.
    inner = min(64, dimensions)
    centres = torch.randn(751, inner, generator=generator)
    basis = torch.randn(inner, dimensions, generator=generator)
    query_ids = torch.randint(1, 751, (queries,), generator=generator)
    gallery_ids = torch.randint(0, 751, (gallery,), generator=generator)
    # Of half a million images most are distractors: 20 matches a query as in Market-1501.
    gallery_ids[15913:] = 0
    labels = {
        "query_ids": query_ids,
        "gallery_ids": gallery_ids,
        "query_cameras": torch.randint(1, 7, (queries,), generator=generator),
        "gallery_cameras": torch.randint(1, 7, (gallery,), generator=generator),
    }

    def features(ids: Tensor) -> Tensor:
        drawn = torch.empty(len(ids), dimensions)
        for part, some in zip(drawn.split(2048), ids.split(2048), strict=True):
            torch.mm(centres[some] + torch.randn(len(some), inner, generator=generator), basis, out=part)
        return drawn

    return _Set(features(query_ids), features(gallery_ids), labels)


def _matmul(data: _Set) -> object:
    """The distances alone, in the chunks that keep memory low."""
    for part in data.query.split(512):
        part @ data.gallery.T
    return None


def _torchreid(name: str) -> Any:
    """A module of torchreid, or None where there is none."""
    try:
        return torchreid_module(name)
    except ImportError:
        return None


def _cython() -> Any:
    """The compiled evaluation of torchreid: in its package, or `rank_cy` built elsewhere and on the path."""
    if (found := _torchreid("metrics.rank_cylib.rank_cy")) is None:
        try:
            found = importlib.import_module("rank_cy")
        except ModuleNotFoundError:
            return None
    return found.evaluate_cy


def _labels(data: _Set) -> list[Any]:
    names = ("query_ids", "gallery_ids", "query_cameras", "gallery_cameras")
    return [data.labels[name].numpy() for name in names]


def _cosine_distances(first: Tensor, second: Tensor) -> Any:
    return (1 - F.normalize(first) @ F.normalize(second).T).numpy()


def _torchreid_python(data: _Set) -> object:
    score = _torchreid("metrics.rank").eval_market1501
    return score(_cosine_distances(data.query, data.gallery), *_labels(data), max_rank=50)


def _symmetric_products(data: _Set) -> object:
    """What no exact re-ranking from features goes without: each block of the symmetric product once."""
    features = torch.cat([data.query, data.gallery])
    for start in range(0, len(features), _BLOCK):
        rows = features[start : start + _BLOCK]
        for other in range(start, len(features), _BLOCK):
            rows @ features[other : other + _BLOCK].T
    return None


def _torchreid_distances(data: _Set) -> list[Any]:
    """The true distances, with which torchreid's formula is the paper's."""
    pairs = ((data.query, data.gallery), (data.query, data.query), (data.gallery, data.gallery))
    return [(2 * torch.from_numpy(_cosine_distances(*pair))).clamp_(min=0).sqrt_().numpy() for pair in pairs]


VARIANTS: dict[str, Callable[[_Set], object]] = {
    "matrix product, in chunks": _matmul,
    "matrix product, whole": lambda data: data.query @ data.gallery.T,
    "ours": lambda data: evaluate(data.query, data.gallery, **data.labels),
    "torchreid, Cython": lambda data: _cython()(
        _cosine_distances(data.query, data.gallery), *_labels(data), 50
    ),
    "torchreid, Python": _torchreid_python,
    "re-ranking, ours": lambda data: rerank(data.query, data.gallery),
    "re-ranking, torchreid": lambda data: _torchreid("utils.rerank").re_ranking(*_torchreid_distances(data)),
    "ours, products alone": _symmetric_products,
    "torchreid, distances alone": _torchreid_distances,
}


def measure(variants: Sequence[str], size: Sequence[int], threads: int, processor_time: bool) -> None:
    """Run variants and print {"seconds", "megabytes"} of each as JSON: what the process of its own does.

    Memory that an earlier variant left to the allocator is not seen again: take one variant for figures.

    Raises:
        ModuleNotFoundError: without psutil.
    """
    try:
        process = importlib.import_module("psutil").Process()
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("measuring memory needs psutil: pip install psutil") from error
    torch.set_num_threads(threads)
    now = time.process_time if processor_time else time.perf_counter
    for variant in variants:
        VARIANTS[variant](draw(_SHRUNK))  # imports and thread pools are no part of it
    data = draw(size)
    found = {}
    for variant in variants:
        done, peak = threading.Event(), [0]

        def sample(done: threading.Event = done, peak: list[int] = peak) -> None:
            while not done.wait(0.003):
                peak[0] = max(peak[0], process.memory_info().rss)

        before = process.memory_info().rss
        watcher = threading.Thread(target=sample, daemon=True)
        watcher.start()
        start = now()
        kept = VARIANTS[variant](data)
        seconds = now() - start
        peak[0] = max(peak[0], process.memory_info().rss)
        del kept
        done.set()
        watcher.join()
        found[variant] = {"seconds": seconds, "megabytes": max(0, peak[0] - before) / 1e6}
    print(json.dumps(found))


def _alone(
    variants: Sequence[str], size: tuple[int, int, int], *, processor_time: bool, shrink: bool
) -> dict[str, dict[str, float]]:
    """`measure`, each variant in a process of its own; a shrunk run, which measures nothing, in one."""
    found: dict[str, dict[str, float]] = {}
    for some in [list(variants)] if shrink else [[name] for name in variants]:
        given = [some, size, torch.get_num_threads(), processor_time]
        command = [sys.executable, __file__, json.dumps(given)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"measuring {', '.join(some)} failed:\n{done.stderr[-2000:]}")
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


def _title(size: tuple[int, int, int]) -> str:
    queries, gallery, dimensions = size
    return f"{queries} x {gallery}, D {dimensions}, {torch.get_num_threads()} threads"


def evaluation_section(
    device: torch.device, *, rounds: int = 7, processor_time: bool = False, shrink: bool = False
) -> tuple[Table, dict[str, Any]]:
    """Scores at Market-1501's size against the matrix product alone and torchreid's."""
    size = _SHRUNK if shrink else _MARKET
    data = draw(size)
    fast = ["matrix product, whole", "matrix product, in chunks", "ours"]
    fast += ["torchreid, Cython"] if _cython() is not None else []
    slow = ["torchreid, Python"] if _torchreid("metrics.rank") is not None else []
    calls: dict[str, Callable[[], object]] = {name: partial(VARIANTS[name], data) for name in fast}
    seconds = interleaved(calls, 1 if shrink else rounds, device, processor_time=processor_time)
    del data, calls
    alone = _alone([*fast, *slow], size, processor_time=processor_time, shrink=shrink)
    seconds |= {name: alone[name]["seconds"] for name in slow}
    base = seconds["matrix product, whole"]
    rows = [
        [name, f"{value:.3f}", f"{value / base:.2f}", f"{alone[name]['megabytes']:.0f}"]
        for name, value in seconds.items()
    ]
    figures = {
        name: {"seconds": value, "of the product": value / base, "megabytes": alone[name]["megabytes"]}
        for name, value in seconds.items()
    }
    return ([_title(size), "s", "of the product", "MB beyond the features"], rows), figures


def reranking_section(
    device: torch.device, *, processor_time: bool = False, shrink: bool = False
) -> tuple[Table, dict[str, Any]]:
    """Re-ranking at Market-1501's size against torchreid's."""
    size = _SHRUNK if shrink else _MARKET
    names = ["re-ranking, ours", "ours, products alone"]
    if _torchreid("utils.rerank") is not None:
        names += ["re-ranking, torchreid", "torchreid, distances alone"]
    figures: dict[str, Any] = _alone(names, size, processor_time=processor_time, shrink=shrink)
    base = figures["re-ranking, ours"]
    rows = [
        [
            name,
            f"{found['seconds']:.2f}",
            f"{found['seconds'] / base['seconds']:.1f}",
            f"{found['megabytes']:.0f}",
            f"{found['megabytes'] / max(base['megabytes'], 1e-9):.1f}",
        ]
        for name, found in figures.items()
    ]
    return ([_title(size), "s", "of ours", "MB beyond the features", "of ours"], rows), figures


if __name__ == "__main__":
    measure(*json.loads(sys.argv[1]))
