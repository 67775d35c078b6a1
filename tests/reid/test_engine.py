"""The training step, and each fault of torchreid's Engine: theirs shown, ours without it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy
import pytest
import torch
from reid_helpers import tiny_config, write_market
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from fake_gpu import fake_gpu

import reid.training.engine
import reid.training.erasing
from keepaug.data.batch_transforms import normalize
from keepaug.regions import Regions, region_scores
from keepaug.runs.checkpoint import read_weights_only
from keepaug.runs.config import ConfigError
from keepaug.runs.distributed import Distributed, setup
from keepaug.runs.errors import NonFiniteLossError
from keepaug.runs.recorder import Recorder
from reid.data.manager import open_manager
from reid.models.weights import build
from reid.torchreid_api import torchreid_module
from reid.training.engine import KeepEngine
from reid.training.loop import train

Make = Callable[..., KeepEngine]


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_market(tmp_path_factory.mktemp("m"))


@pytest.fixture
def make(market: Path, tmp_path: Path) -> Make:
    def made(*overrides: str) -> KeepEngine:
        config = tiny_config(market, "arch=torchreid:osnet_x0_25", *overrides)
        torch.manual_seed(0)
        world = setup("cpu")
        manager = open_manager(config, world)
        return KeepEngine(manager, build(config, manager.num_train_pids), config, world)

    return made


@contextmanager
def recorded(engine: KeepEngine, folder: Path, *, resume: bool = False) -> Iterator[None]:
    with Recorder(folder, engine.config, kind="reid", tensorboard=False) as recorder:
        engine.claim(recorder, resume=resume, started_from=None)
        yield


def test_it_is_torchreids_engine(make: Make) -> None:
    engine = make()
    assert isinstance(engine, torchreid_module("engine").Engine)
    with pytest.raises(TypeError, match="settings are in the config"):
        engine.run(max_epoch=3)


def test_training_learns_the_identities(make: Make) -> None:
    engine = make(
        "recipe=custom",
        "method=none",
        "label_smoothing=0",
        "centre_weight=0",
        "identities=6",
        "images=3",
        "lr=0.003",
    )
    losses = []
    for _ in range(25):
        for batch in engine.train_loader:
            engine.network.train()
            losses.append(engine.forward_backward(batch))
    assert losses[-1]["identity"] < 0.5 * losses[0]["identity"]
    assert losses[-1]["triplet"] < 0.5 * max(loss["triplet"] for loss in losses)
    assert engine.test()["m0"].metrics["mAP"] > 80


def test_neck_bias_stays_frozen_where_torchreid_opens_it(make: Make) -> None:
    engine = make("epochs=1")
    engine.epoch, engine.max_epoch = 0, 1
    engine.train(print_freq=100)
    bias = engine.network.neck.bias
    assert not bias.requires_grad
    assert (bias == 0).all()
    assert engine.network.neck.weight.requires_grad
    assert (engine.network.neck.weight != 1).any()
    torchreid_module("engine").Engine.two_stepped_transfer_learning(engine, 0, 0, None)
    assert bias.requires_grad  # what would have happened


def test_adam_has_the_recipes_beta2_not_torchreids(make: Make) -> None:
    theirs = torchreid_module("optim").build_optimizer(nn.Linear(2, 2))
    assert theirs.param_groups[0]["betas"][1] == 0.99
    assert make().optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_small_galleries_are_evaluated_where_torchreid_raises(make: Make) -> None:
    engine = make()
    metrics = engine.test()["m0"].metrics
    assert set(metrics) == {"rank1", "rank5", "rank10", "mAP", "mINP"}
    tested = engine.test_loader["m0"]
    columns = [tested.identities(s).numpy() for s in ("query", "gallery")]
    cameras = [tested.camera_numbers(s).numpy() for s in ("query", "gallery")]
    cameras[1][0] = 1  # one gallery image more is junk for one query
    distances = numpy.random.default_rng(0).random((4, 8), dtype=numpy.float32)
    with pytest.raises(ValueError):
        torchreid_module("metrics").evaluate_rank(distances, *columns, *cameras, use_cython=False)


def test_every_target_is_reported_where_torchreid_returns_the_last(make: Make, tmp_path: Path) -> None:
    other = write_market(tmp_path / "other", train=2, test=3)
    engine = make(f"also_evaluate=[market1501:{other}]")
    results = engine.test()
    assert list(results) == engine.datamanager.targets == ["m0", "other-2"]
    assert len(results["other-2"].query) == 3
    theirs = SimpleNamespace(
        test_loader={name: {"query": None, "gallery": None} for name in ("a", "b")},
        datamanager=SimpleNamespace(sources=["a"]),
        writer=None,
        set_model_mode=lambda mode: None,
        _evaluate=lambda dataset_name, **kwargs: ({"a": 0.9, "b": 0.1}[dataset_name], 0.5),
    )
    assert torchreid_module("engine").Engine.test(theirs) == 0.1


def test_checkpoints_can_be_read_back_where_torchreids_cannot(make: Make, tmp_path: Path) -> None:
    engine, again = make(), make()
    with recorded(engine, tmp_path):
        engine.forward_backward(next(iter(engine.train_loader)))
        engine.save_model(0, numpy.float32(0.5), str(tmp_path))
    with recorded(again, tmp_path, resume=True):
        assert again.step == 1
    for key, value in engine.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[key], value)
    tools = torchreid_module("utils.torchtools")
    state = {"state_dict": {}, "epoch": 1, "rank1": numpy.float32(0.5)}
    tools.save_checkpoint(state, str(tmp_path / "theirs"))
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        tools.load_checkpoint(str(tmp_path / "theirs" / "model.pth.tar-1"))


def test_reranking_gets_true_distances_where_torchreid_squares_squares(make: Make) -> None:
    from reid.evaluation.reranking import rerank
    from reid.evaluation.scores import rerank_scores

    module = torchreid_module("metrics.distance")
    features = torch.randn(4, 8)
    assert torch.allclose(
        module.compute_distance_matrix(features, features, "euclidean"),
        torch.cdist(features, features) ** 2,
        atol=1e-4,
    )  # and its re_ranking squares that
    engine = make("rerank=true", "k1=4", "k2=2")
    scored = engine.test()["m0"]
    scores = rerank_scores(scored, engine.test_loader["m0"], engine.config)
    assert set(scores) == {f"{key}_reranked" for key in scored.metrics}
    ours = rerank(scored.query, scored.gallery, k1=4, k2=2, lambda_value=1.0)
    direct = torch.cdist(nn.functional.normalize(scored.query), nn.functional.normalize(scored.gallery))
    order = (ours.argsort(dim=1) == direct.argsort(dim=1)).float().mean()
    assert order == 1.0


def test_every_step_has_its_own_randomness(make: Make) -> None:
    """Dropout, for example, draws what it would have drawn without an interruption."""
    draws = []
    for seed in (1, 2):
        engine = make()
        torch.manual_seed(seed)  # whatever was drawn before
        engine.network.classifier.register_forward_hook(lambda *_: draws.append(torch.rand(1)))
        for batch in engine.train_loader:
            engine.forward_backward(batch)
    half = len(draws) // 2
    assert draws[:half] == draws[half:]
    assert len({float(draw) for draw in draws}) > 1


def test_other_identities_cannot_be_resumed(make: Make, tmp_path: Path) -> None:
    engine = make()
    with recorded(engine, tmp_path):
        engine.save()
    again = make("limit_identities=5")
    again.config.limit_identities = 0  # as if an identity had gone from the folder
    refused = pytest.raises(ConfigError, match=r"the data \(was m0: 18 train, .*, is m0: 15 train, ")
    with refused, recorded(again, tmp_path, resume=True):
        pass


def test_erasing_happens_after_normalisation_on_the_geometry_view(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network's input differs from the normalised batch in the erased boxes alone: the raw mean."""
    engine = make("p=1.0", "method=keep_random_erasing")
    seen: dict[str, Any] = {}
    original = reid.training.erasing.saliency_map

    def spy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, **settings: Any) -> torch.Tensor:
        seen["saliency"] = (images.clone(), labels, settings)
        return original(model, images, labels, **settings)

    monkeypatch.setattr(reid.training.erasing, "saliency_map", spy)
    engine.forward_network = Recording(engine.network, seen)
    batch = next(iter(engine.train_loader))
    engine.network.train()
    engine.forward_backward(batch)
    clean = normalize(batch.images, engine.config.mean, engine.config.std)
    images, labels, settings = seen["saliency"]
    assert torch.equal(images, clean)  # mirrored, padded and cropped already
    assert torch.equal(labels, batch.labels)
    assert settings["scale"] == 0.5
    inputs = seen["inputs"]
    changed = (inputs != clean).any(dim=1)
    assert changed.flatten(1).any(dim=1).all()
    sizes = set()
    for image, mask in zip(inputs, changed, strict=True):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        box = image[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert torch.allclose(box, torch.tensor([0.485, 0.456, 0.406])[:, None, None].expand_as(box))
        sizes.add(tuple(box.shape[1:]))
    assert len(sizes) > 2  # each image has its own


class Recording(nn.Module):
    def __init__(self, network: nn.Module, seen: dict[str, Any]) -> None:
        super().__init__()
        self.network, self.seen = network, seen

    def forward(self, images: torch.Tensor) -> Any:
        self.seen["inputs"] = images.detach().clone()
        return self.network(images)


def test_saliency_is_of_the_identity_classifiers_logit_and_keep_stays_below_tau(make: Make) -> None:
    engine = make("p=1.0", "method=keep_random_erasing", "saliency=full")
    batch = next(iter(engine.train_loader))
    images = normalize(batch.images, engine.config.mean, engine.config.std)
    generators = [torch.Generator().manual_seed(1), torch.Generator()]
    drawn = reid.training.erasing.draw_erasing(engine.eraser, images, generator=generators[0])
    heat = reid.training.erasing.heat_of(
        engine.eraser, engine.network, images, batch.labels, drawn, scale=1.0
    )
    _, regions = reid.training.erasing.erase(
        engine.eraser, images, heat, drawn, regions_generator=generators[0], fill_generator=generators[1]
    )
    network = engine.network.eval()
    pixels = images.clone().requires_grad_(True)
    network.classifier(network.neck(network.backbone(pixels))).gather(
        1, batch.labels[:, None]
    ).sum().backward()
    torch.testing.assert_close(heat, pixels.grad.abs().amax(dim=1))
    for number in range(len(images)):
        one = Regions(*(value[number : number + 1] for value in regions))
        size = torch.stack([one.height, one.width], dim=1)
        scores, valid = region_scores(heat[number : number + 1], size, placement="inside")
        values = scores[valid].sort().values
        top, left, height, width = (int(value) for value in one)
        own = float(heat[number, top : top + height, left : left + width].double().sum())
        below = int((values < own * (1 - 1e-6)).sum())
        assert below < 0.6 * len(values)


def test_only_erased_images_are_looked_at(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """At p = 0.5 the pass costs half; the network sees in it what it erases, and nothing else."""
    engine = make("p=0.5", "method=keep_random_erasing", "identities=6", "images=4")
    engine.network.train()
    found: dict[str, Any] = {}
    monkeypatch.setattr(
        engine.network, "logits", lambda images: _noted(found, engine.network(images)[0], images)
    )
    engine.forward_network = Recording(engine.network, found)
    batch = next(iter(engine.train_loader))
    engine.forward_backward(batch)
    clean = normalize(batch.images, engine.config.mean, engine.config.std)
    erased = (found["inputs"] != clean).flatten(1).any(dim=1)
    assert 4 < int(erased.sum()) < 20
    assert len(found["saliency"]) == int(erased.sum())


def _noted(found: dict[str, Any], logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    found["saliency"] = images
    return logits


def test_random_erasing_needs_no_saliency(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("no saliency is needed")

    monkeypatch.setattr(reid.training.erasing, "saliency_map", refuse)
    engine = make("method=random_erasing", "recipe=bag_of_tricks", "p=1.0")
    engine.forward_backward(next(iter(engine.train_loader)))


def test_centres_learn_at_their_own_rate(make: Make) -> None:
    """One step moves a centre by lr x the unweighted loss's gradient: 0.5 x 2 x (its share of the batch)."""
    engine = make("method=none", "recipe=custom")
    before = engine.center.centres.detach().clone()
    features: list[torch.Tensor] = []
    engine.network.backbone.register_forward_hook(
        lambda module, inputs, output: features.append(output.detach())
    )
    batch = next(iter(engine.train_loader))
    engine.network.train()
    engine.forward_backward(batch)
    expected = before.clone()
    for label in batch.labels.unique():
        rows = features[0][batch.labels == label]
        expected[label] += 0.5 * 2 * (rows - before[label]).sum(dim=0) / len(batch.labels)
    torch.testing.assert_close(engine.center.centres.detach(), expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_features_give_float32_losses(make: Make) -> None:
    engine = make("precision=bf16")
    batch = next(iter(engine.train_loader))
    engine.network.train()
    with torch.autocast("cpu", torch.bfloat16):
        logits, features = engine.network(normalize(batch.images, engine.config.mean, engine.config.std))
    assert logits.dtype == torch.bfloat16
    assert all(
        value.dtype == torch.float32 for value in engine.losses(logits, features, batch.labels).values()
    )
    assert engine.forward_backward(batch)["loss"] > 0


def test_a_loss_that_is_no_number_stops_the_run(make: Make, tmp_path: Path) -> None:
    engine = make()
    with recorded(engine, tmp_path):
        engine.forward_backward(next(iter(engine.train_loader)))
        engine.save()
        with torch.no_grad():
            engine.network.classifier.weight.fill_(torch.nan)
        with pytest.raises(
            NonFiniteLossError, match=r"at step 1; the last good checkpoint is .*checkpoint.pt"
        ):
            engine.forward_backward(next(iter(engine.train_loader)))


@pytest.mark.parametrize("part", ["network", "optimizer", "centers"])
def test_numbers_that_are_none_are_never_saved(make: Make, tmp_path: Path, part: str) -> None:
    """A gradient of the last step may break what the loss before it did not."""
    engine = make()
    with recorded(engine, tmp_path):
        engine.forward_backward(next(iter(engine.train_loader)))
        engine.save()
        good = (tmp_path / "checkpoint.pt").read_bytes()
        weight = engine.network.classifier.weight
        state = {"network": weight, "optimizer": engine.optimizer.state[weight]["exp_avg"]}
        with torch.no_grad():
            (state | {"centers": engine.center.centres})[part].view(-1)[3] = torch.nan
        with pytest.raises(NonFiniteLossError, match="no longer finite, so it is not saved; the last good"):
            engine.save()
        assert (tmp_path / "checkpoint.pt").read_bytes() == good
        if part == "network":
            with pytest.raises(NonFiniteLossError, match=r"classifier\.weight is not finite"):
                engine.save_weights("weights.pt")
        assert not (tmp_path / "weights.pt").exists()


def test_best_and_last_are_kept(market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([50.0, 20.0])
    original = reid.training.engine.score

    def fake(*args: Any) -> Any:
        scored = original(*args)
        scored.metrics["mAP"] = next(scores)
        return scored

    monkeypatch.setattr(reid.training.engine, "score", fake)
    config = tiny_config(market, "arch=torchreid:osnet_x0_25", "eval_every=1")
    metrics = train(config, tmp_path / "run")
    assert (metrics["mAP"], metrics["best_mAP"]) == (20.0, 50.0)
    best, last = (
        read_weights_only(tmp_path / "run" / name)["state_dict"] for name in ("best.pt", "weights.pt")
    )
    assert not torch.equal(best["classifier.weight"], last["classifier.weight"])
    assert torch.equal(
        last["classifier.weight"],
        read_weights_only(tmp_path / "run" / "checkpoint.pt")["state_dict"]["classifier.weight"],
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["config"]["recipe"] == "bag_of_tricks_keep"
    assert result["artifacts"]["best"] == "best.pt"
    assert result["dataset"]["sizes"] == {"train": 18, "query": 4, "gallery": 8}


@pytest.mark.parametrize("cameras", ["use", "none"])
def test_training_from_a_csv_file(market: Path, tmp_path: Path, cameras: str) -> None:
    file = tmp_path / "data.csv"
    rows = ["path,identity,camera,split"]
    for path in sorted(market.rglob("*.png")):
        split = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}[
            path.parent.name
        ]
        identity, camera = path.name[:4], path.name[6] if cameras == "use" else ""
        rows.append(f"{path},{identity},{camera},{split}")  # images outside the file's folder
    file.write_text("\n".join(rows) + "\n")
    config = tiny_config(
        file, "layout=csv", "arch=torchreid:osnet_x0_25", "max_steps=1", f"cameras={cameras}"
    )
    world = setup("cpu")
    manager = open_manager(config, world)
    engine = KeepEngine(manager, build(config, manager.num_train_pids), config, world)
    engine.run()
    assert engine.step == engine.total_steps == 1
    assert manager.targets == ["data"]
    assert manager.identity["sizes"] == {"train": 18, "query": 4, "gallery": 8}


@pytest.mark.parametrize("recipe", ["standard", "bag_of_tricks", "bag_of_tricks_keep"])
def test_a_step_on_a_gpu_waits_for_its_losses_alone(recipe: str, make: Make) -> None:
    """Checked without a GPU, on shapes; the losses are read when all is launched."""
    engine = make(f"recipe={recipe}")
    batch = next(iter(engine.train_loader))
    engine.world = Distributed(0, 1, 0, torch.device("cuda"))
    events: list[str] = []

    def start(values: Tensor) -> Callable[[], Tensor]:
        events.append("start")
        return lambda: events.append("read") or torch.ones(values.shape)

    with (
        fake_gpu() as watch,
        mock.patch.object(reid.training.engine, "start_reading", start),
        mock.patch("keepaug.runs.guard.start_reading", start),
        mock.patch.object(engine.optimizer, "step", side_effect=lambda: events.append("optimizer")),
    ):
        engine.network.to("cuda")
        if engine.center is not None:
            engine.center.to("cuda")
        watch.waits.clear()  # of moving the network
        engine.forward_backward(batch)
    assert watch.waits == []
    number = 2 if recipe == "bag_of_tricks_keep" else 1
    assert events == ["start"] * number + ["optimizer"] + ["read"] * number
