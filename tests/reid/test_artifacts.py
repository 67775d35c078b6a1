"""Pictures show what was ranked and erased; exports hold what the network computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reid_helpers import tiny_config, write_market
from torch.nn import functional as F

from keepaug.data.batch_transforms import normalise
from keepaug.runs.distributed import setup
from reid.artifacts import (
    draw_erasing,
    draw_ranked_lists,
    export_onnx,
    ranked_lists,
    save_features,
    write_artifacts,
)
from reid.config import ReidConfig
from reid.datamanager import DataManager, TestSet, open_manager
from reid.evaluate import evaluate
from reid.loop import build
from reid.scores import Scored


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReidConfig, DataManager]:
    config = tiny_config(write_market(tmp_path_factory.mktemp("a") / "m"), "p=1.0")
    return config, open_manager(config, setup("cpu"))


@pytest.fixture
def tested(made: tuple[ReidConfig, DataManager]) -> TestSet:
    return made[1].test_loader["m"]


def scored_of(tested: TestSet, generator: torch.Generator) -> Scored:
    return Scored(
        {}, *(torch.randn(len(one), 6, generator=generator) for one in (tested.query, tested.gallery))
    )


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_ranked_lists_are_those_that_are_scored(
    tested: TestSet, generator: torch.Generator, metric: str
) -> None:
    scored = scored_of(tested, generator)
    places, distances = ranked_lists(scored, tested, metric=metric, top=8)
    assert (distances.diff(dim=1) >= 0).all()
    right = tested.identities("gallery")[places] == tested.identities("query")[:, None]
    found = evaluate(
        scored.query,
        scored.gallery,
        query_ids=tested.identities("query"),
        gallery_ids=tested.identities("gallery"),
        query_cameras=tested.camera_numbers("query"),
        gallery_cameras=tested.camera_numbers("gallery"),
        metric=metric,
    )
    first = right.int().argmax(dim=1)
    for rank in range(8):
        assert float(found.cmc[rank]) == pytest.approx(float((first <= rank).double().mean()))


def test_junk_is_not_listed(tested: TestSet, generator: torch.Generator) -> None:
    scored = scored_of(tested, generator)
    tested.data.gallery[0] = tested.data.gallery[0]._replace(camera=tested.data.query[0].camera)
    try:
        assert tested.data.gallery[0].identity == tested.data.query[0].identity
        places, distances = ranked_lists(scored, tested, top=8)
    finally:
        tested.data.gallery[0] = tested.data.gallery[0]._replace(camera=2)
    assert places[0, -1] == 0
    assert distances[0, -1] == torch.inf
    assert torch.isfinite(distances[1:]).all()


def test_frames_are_green_for_right_and_red_for_wrong(
    tested: TestSet, generator: torch.Generator, tmp_path: Path
) -> None:
    scored = scored_of(tested, generator)
    places, _ = ranked_lists(scored, tested)
    path = draw_ranked_lists(scored, tested, tmp_path / "r.png", num_queries=4)
    pixels = np.array(Image.open(path))
    height, width = tested.query.size
    scale = max(1, 96 // height)
    cell = (width * scale + 12, height * scale + 34)
    for row in range(4):
        for column in range(places.shape[1]):
            frame = pixels[row * cell[1] + 1, (column + 1) * cell[0] + 9]
            match = tested.data.gallery[places[row, column]].identity == tested.data.query[row].identity
            assert frame.argmax() == (1 if match else 0)


def test_erasing_picture_shows_both_with_the_same_sizes(
    made: tuple[ReidConfig, DataManager], tmp_path: Path
) -> None:
    config, manager = made
    torch.manual_seed(0)
    network = build(config, manager.num_train_pids)
    picture = draw_erasing(
        network, manager.train_loader, config, tmp_path / "e.png", torch.device("cpu"), number=6
    )
    image = Image.open(picture)
    factor = image.width // (6 * (config.width + 2))
    cells = np.array(image.resize((image.width // factor, image.height // factor), Image.Resampling.NEAREST))
    cells = cells.reshape(4, config.height + 2, 6, config.width + 2, 3).transpose(0, 2, 1, 3, 4)
    areas = [[(cells[row, i] != cells[0, i]).any(axis=-1).sum() for i in range(6)] for row in (2, 3)]
    for random, keep in zip(*areas, strict=True):
        assert random > 0
        assert keep == pytest.approx(random, rel=0.02)  # a pixel may have the fill's colour by chance
    assert (cells[2] != cells[3]).any()


def test_features_archive(tested: TestSet, generator: torch.Generator, tmp_path: Path) -> None:
    scored = scored_of(tested, generator)
    with np.load(save_features(scored, tested, tmp_path / "f.npz"), allow_pickle=False) as archive:
        assert np.array_equal(archive["query_features"], scored.query.numpy())
        assert archive["gallery_identities"].tolist() == tested.identities("gallery").tolist()
        assert archive["gallery_cameras"].tolist() == [2, 3] * 4
        assert archive["query_paths"][0] == "query/0007_c1s1_000000_00.png"


@pytest.mark.slow
def test_onnx_computes_the_same(made: tuple[ReidConfig, DataManager], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    config, manager = made
    torch.manual_seed(0)
    network = build(config, manager.num_train_pids)
    network.neck.running_mean.normal_()
    session = onnxruntime.InferenceSession(str(export_onnx(network, config, tmp_path / "n.onnx")))
    assert network.training  # as found
    network.eval()
    images = manager.test_loader["m"].query.resized(torch.arange(3))
    inputs = normalise(images, config.mean, config.std)
    (found,) = session.run(["features"], {"images": inputs.numpy()})
    with torch.no_grad():
        expected = F.normalize(network.features(inputs))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_what_the_config_asks_for_is_named(
    made: tuple[ReidConfig, DataManager], tested: TestSet, generator: torch.Generator, tmp_path: Path
) -> None:
    config, manager = made
    network = build(config, manager.num_train_pids)
    scored = scored_of(tested, generator)
    settings = {"ranked": 2, "pictures": True, "features": True}
    for key, value in settings.items():
        setattr(config, key, value)
    arguments = (tmp_path, config, network, tested, scored)
    try:
        names = write_artifacts(*arguments, manager.train_loader, torch.device("cpu"))
    finally:
        for key in settings:
            setattr(config, key, 0)
    assert names == {"ranked": "ranked.png", "erasing": "erasing.png", "features": "features.npz"}
    assert all((tmp_path / name).is_file() for name in names.values())
    assert write_artifacts(*arguments, None, torch.device("cpu")) == {}
