"""Pictures show what was ranked and erased; exports hold what the network computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from reid_helpers import tiny_config, write_market
from torch.nn import functional as F

from keepaug.data.batch_transforms import normalize
from keepaug.runs.distributed import setup
from reid.config import ReidConfig
from reid.data.manager import DataManager, TestSet, open_manager
from reid.evaluation.artifacts import erased_importance, write_artifacts
from reid.evaluation.scores import Scored
from reid.models.weights import build


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


@pytest.mark.slow
def test_onnx_computes_the_features_that_are_ranked(
    made: tuple[ReidConfig, DataManager], tested: TestSet, generator: torch.Generator, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    config, manager = made
    torch.manual_seed(0)
    network = build(config, manager.num_train_pids)
    network.neck.running_mean.normal_()
    scored = scored_of(tested, generator)
    config.onnx = True
    try:
        names = write_artifacts(tmp_path, config, network, tested, scored, None, torch.device("cpu"))
    finally:
        config.onnx = False
    assert names == {"onnx": "network.onnx"}
    session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"))
    assert network.training  # as found
    network.eval()
    inputs = normalize(tested.query.resized(torch.arange(3)), config.mean, config.std)
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
    with np.load(tmp_path / "features.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["query_features"], scored.query.numpy())
        assert archive["gallery_identities"].tolist() == tested.identities("gallery").tolist()
        assert archive["gallery_cameras"].tolist() == [2, 3] * 4
        assert archive["query_paths"][0] == "query/0007_c1s1_000000_00.png"


def test_keep_never_erases_what_is_important(made: tuple[ReidConfig, DataManager]) -> None:
    config, manager = made
    torch.manual_seed(0)
    network = build(config, manager.num_train_pids)
    assert erased_importance(config, network, manager.train_loader, torch.device("cpu")) == {}
    config.pictures = True
    try:
        found = erased_importance(config, network, manager.train_loader, torch.device("cpu"))
    finally:
        config.pictures = False
    assert found["important_erased_keep"] == 0
    assert found["important_erased_random"] == pytest.approx(40, abs=12)
    assert network.training
