"""Saliency maps reused over epochs: the choice of every epoch is the plain run, longer ones save passes and
resume exactly.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch

from keepaug.classify import ClassifyConfig, loop, train
from keepaug.classify.config import check
from keepaug.data.batch_transforms import draw_crop_flip
from keepaug.data.saliency_cache import SaliencyCache
from keepaug.data.synthetic import write_classification
from keepaug.models import build_network
from keepaug.runs.config import ConfigError, load_config

TINY = Path(__file__).with_name("reuse.yaml")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classes") / "drawn"
    return write_classification(root, num_train=24, num_val=8, num_classes=2, size=(32, 32), colour_cue=0.8)


def config(root: Path, *more: str) -> ClassifyConfig:
    return load_config(ClassifyConfig, TINY, [f"root={root}", *more])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)["state_dict"]


def same(first: Path, second: Path) -> bool:
    one, two = weights(first), weights(second)
    return all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each saliency pass of a run looks at."""
    calls: list[int] = []
    original = loop.compute_saliency

    def counting(model, images, labels, mode, **options):
        calls.append(len(images))
        return original(model, images, labels, mode, **options)

    monkeypatch.setattr(loop, "compute_saliency", counting)
    return calls


def test_passes_are_saved_and_the_maps_matter(drawn: Path, tmp_path: Path, passes: list[int]) -> None:
    train(config(drawn), tmp_path / "each")
    assert sum(passes) == 4 * 10
    passes.clear()
    train(config(drawn, "reuse_every=2"), tmp_path / "second")
    assert sum(passes) == 2 * 10  # epochs 0 and 2
    assert not same(tmp_path / "each", tmp_path / "second")


def test_a_cache_that_is_always_refreshed_changes_nothing(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(drawn), tmp_path / "plain")
    everything = lambda cache, indices, **_: torch.ones(len(indices), dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr(SaliencyCache, "stale", everything)
    train(config(drawn, "reuse_every=3"), tmp_path / "fresh")
    assert same(tmp_path / "plain", tmp_path / "fresh")


class Stop(Exception):
    """Stands for a killed process."""


@pytest.mark.parametrize(
    "stop", [3, 5, 7]
)  # within epoch 1, within 2, whose maps are half refreshed, within the last
def test_interrupted_and_resumed_is_uninterrupted(
    stop: int, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["reuse_every=2", "checkpoint_every=1"]
    train(config(drawn, *options), tmp_path / "whole")
    original = loop._step

    def step(run, *rest):
        if run.step == stop:
            raise Stop
        return original(run, *rest)

    monkeypatch.setattr(loop, "_step", step)
    with pytest.raises(Stop):
        train(config(drawn, *options), tmp_path / "killed")
    monkeypatch.setattr(loop, "_step", original)
    train(config(drawn, *options), tmp_path / "killed", resume=True)
    assert same(tmp_path / "whole", tmp_path / "killed")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed")]
    assert results[0]["metrics"] == results[1]["metrics"]
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert lines[0] == lines[1]
    assert lines[0].count("train/accuracy") == 4


def test_the_result_holds_the_train_accuracy(drawn: Path, tmp_path: Path) -> None:
    """The last epoch's, counted again by hand: with a learning rate of 0 every step has the same weights."""
    options = ["epochs=2", "lr=0", "method=none", "batch_size=7", "seed=7"]
    metrics = train(config(drawn, *options), tmp_path)
    data = loop.open_datasets(config(drawn, *options))
    loop.seed_everything(7)
    network = build_network("resnet8", 2, stem="cifar").train()
    batches = loop.Loader(data.train, 7, seed=7, shuffle=True)
    right = []
    for _ in range(2):
        hits = [
            network(loop.normalize(batch.images, data.mean, data.std)).argmax(dim=1) == batch.labels
            for batch in batches
        ]
        right.append(int(torch.cat(hits).sum()))
    assert metrics["train_accuracy"] == pytest.approx(100 * right[1] / 10)
    assert right[0] != right[1]  # or the two epochs together would do


def test_mixed_labels_have_no_train_accuracy(drawn: Path, tmp_path: Path) -> None:
    assert "train_accuracy" not in train(config(drawn, "epochs=1", "method=cutmix"), tmp_path)


@pytest.mark.parametrize("options", [["loading=files"], ["dataset=imagenet"]])
def test_reuse_needs_maps_of_images_in_memory(options: list[str], drawn: Path) -> None:
    with pytest.raises(ConfigError, match="reuse_every=2 keeps the maps of a keep_ method"):
        check(config(drawn, "reuse_every=2", *options))


def test_processes_share_their_maps() -> None:
    caches = [SaliencyCache(6, (4, 4)) for _ in range(2)]
    maps = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(0))
    place = draw_crop_flip(torch.zeros(3, dtype=torch.int64), padding=0)
    alone = SaliencyCache(6, (4, 4))
    for epoch in range(2):  # the processes take other images in the second epoch
        for rank in range(2):
            mine = torch.arange(6)[(rank + epoch) % 2 :: 2]
            for cache in (caches[rank], alone):
                cache.update(mine, (1 + epoch) * maps[mine], place, epoch=epoch)
        _share_together(caches)
        for cache in caches:
            for key, value in alone.state_dict().items():
                assert torch.equal(cache.state_dict()[key], value), key


def _share_together(caches: list[SaliencyCache]) -> None:
    barrier, parts = threading.Barrier(len(caches)), [None] * len(caches)

    def run(rank: int) -> None:
        def total(part: torch.Tensor) -> torch.Tensor:
            parts[rank] = part.clone()
            barrier.wait()
            result = sum(parts[1:], start=parts[0])
            barrier.wait()
            return result

        caches[rank].share(total)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(caches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)


@pytest.mark.parametrize("method", ["cutout", "attentive_cutmix"])
def test_reuse_is_for_keep_methods(method: str, drawn: Path) -> None:
    with pytest.raises(ConfigError, match="reuse_every is for keep"):
        config(drawn, "reuse_every=2", f"method={method}")
