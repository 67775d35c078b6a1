"""When a folder's run is the run that is wanted, and what a result of an earlier version says today."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from detection.config import flat, load_config
from detection.tool import TOOL as DETECTOR
from detection.tool import recipe_of as detector_recipe
from keepaug.classify.tool import TOOL
from keepaug.runs.config import ConfigError, changed_settings, precision_of, recipe_of, to_dict
from keepaug.runs.planning import Job, in_todays_terms, is_finished, shrunk
from keepaug.runs.result import read_result, write_result
from ssl_uda.tool import TOOL as UDA


def settings(root: Path, *given: str) -> Any:
    (root / "data").mkdir(parents=True, exist_ok=True)
    return TOOL.load(None, [f"root={root / 'data'}", "method=cutout", *given])


def finished(folder: Path, config: Any, **more: Any) -> Path:
    about = {
        "kind": "classify",
        "name": "x",
        "metrics": {"accuracy": 1.0},
        "wall_time_s": 1.0,
        "seed": config.seed,
        "config": to_dict(config),
        "recipe": recipe_of(config),
        "precision": precision_of(config),
        "dataset": {"name": "d", "sizes": {}, "checksum": "c"},
        "root": config.root,
        "synthetic": False,
        "shortened": False,
    }
    return write_result(folder, **about | more)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["lr=0.5"], "lr 0.1 instead of 0.5"),
        (["precision=float32"], "precision bf16 instead of float32"),
        (["channels_last=true"], "channels_last False instead of True"),
        (["seed=1"], "seed 0 instead of 1"),
        (["root=."], "data of .*data instead of ."),
    ],
)
def test_another_run_is_not_taken_for_done(given: list[str], said: str, tmp_path: Path) -> None:
    finished(tmp_path / "run", settings(tmp_path, "precision=bf16"))  # what auto meant there
    assert is_finished(tmp_path / "run", TOOL, settings(tmp_path, "log_every=7", "loading=memory"))
    assert not is_finished(tmp_path / "none", TOOL, settings(tmp_path))
    with pytest.raises(ConfigError, match=said):
        is_finished(tmp_path / "run", TOOL, settings(tmp_path, *given))


def test_data_that_were_moved_are_the_same_data(tmp_path: Path) -> None:
    finished(tmp_path / "run", settings(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    assert is_finished(tmp_path / "run", TOOL, settings(tmp_path / "new"))


def test_what_it_starts_from_is_compared_by_contents(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"one")
    own = [f"teacher={tmp_path / 'weights.pt'}", "method=attentive_cutmix"]
    config = settings(tmp_path, *own)
    finished(tmp_path / "run", config, started_from={**TOOL.origin(config), "provenance": {}})
    assert is_finished(tmp_path / "run", TOOL, config)
    (tmp_path / "weights.pt").write_bytes(b"another")
    with pytest.raises(ConfigError, match=r"started from weights.pt \(\w{8}\) instead of weights.pt"):
        is_finished(tmp_path / "run", TOOL, config)
    (tmp_path / "weights.pt").unlink()  # nothing to compare with: the result counts
    assert is_finished(tmp_path / "run", TOOL, config)


def test_a_run_of_another_kind_or_of_an_earlier_version_is_refused_in_words(tmp_path: Path) -> None:
    path = finished(tmp_path / "run", settings(tmp_path))
    job = Job("a", tmp_path / "run", (), TOOL, settings(tmp_path))
    assert job.state == "done"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "kind": "reid"}))
    assert job.state.startswith("refused: ")
    assert "of another kind (reid)" in job.state
    path.write_text(json.dumps({**content, "schema": 1}))
    assert "a run of an earlier version" in job.state
    path.write_text("{")
    assert "is not JSON" in job.state


def test_a_result_counts_settings_that_it_did_not_know_at_their_default(tmp_path: Path) -> None:
    path = finished(tmp_path / "run", settings(tmp_path))
    content = json.loads(path.read_text())
    for part in ("config", "recipe"):
        del content[part]["drop_last"]
        content[part]["loading"] = "auto"  # a part of the recipe once
    content["precision"] = {"precision": "float32"}
    path.write_text(json.dumps(content))
    assert is_finished(tmp_path / "run", TOOL, settings(tmp_path))
    with pytest.raises(ConfigError, match="drop_last False instead of True"):
        is_finished(tmp_path / "run", TOOL, settings(tmp_path, "drop_last=true"))


def test_todays_terms_reach_what_a_run_is_built_on_and_change_nothing_unknown(tmp_path: Path) -> None:
    result = read_result(finished(tmp_path / "run", settings(tmp_path)))
    old = {**result, "recipe": {**result["recipe"], "loading": "auto", "forgotten": 3}}
    above = {"kind": "detection", "recipe": {"a": 1}, "config": {}, "started_from": {"provenance": old}}
    renewed = in_todays_terms(above, {"classify": TOOL}.get)
    assert renewed["recipe"] == {"a": 1}
    assert renewed["started_from"]["provenance"]["recipe"] == {**result["recipe"], "forgotten": 3}
    assert old["recipe"]["loading"] == "auto"
    broken = {**old, "config": {**old["config"], "method": "gone"}}
    assert in_todays_terms(broken, {"classify": TOOL}.get) == broken


def test_a_run_of_detectron2_stays_as_written_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody else knows the defaults of its own keys, and its engine wrote the recipe without them."""
    monkeypatch.setitem(sys.modules, "detectron2.config", None)
    written = detector_recipe(load_config(None))
    config = {**flat(load_config(None)), "MODEL.DENSEPOSE_ON": False}
    run = {"kind": "detection", "schema": 2, "recipe": written, "precision": {"a": 1}, "config": config}
    assert in_todays_terms(run, {"detection": DETECTOR}.get) == run


def test_shrinking_leaves_out_what_the_run_does_not_use() -> None:
    given = ["algorithm=supervised", "num_labels=8"]
    settings = UDA.load(None, shrunk(UDA, None, given))
    assert (settings.steps, settings.num_labels) == (2, 8)
    assert "unlabelled_ratio=2" in shrunk(UDA, None, [])


def test_what_comes_into_use_is_a_change_of_the_run(tmp_path: Path) -> None:
    """`loading` is bookkeeping, but it decides who uses `image_size`."""
    before, files = settings(tmp_path), settings(tmp_path, "loading=files")
    assert changed_settings(to_dict(before), settings(tmp_path, "loading=memory")) == []
    assert changed_settings(to_dict(before), files) == ["image_size (was not used, is 224)"]
