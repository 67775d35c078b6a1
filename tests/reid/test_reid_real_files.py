"""What people bring: CSV files of any spelling, hidden files, copies, labels that come back."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from reid_helpers import name, tiny_config, write_image, write_market

from keepaug.runs.distributed import setup
from reid.data.checks import check_data
from reid.data.layouts import SPLITS, open_data
from reid.data.manager import open_manager
from reid.evaluate import evaluate
from reid.evaluation.features import load_features
from reid.evaluation.run import evaluate_weights
from reid.evaluation.scores import score
from reid.rerank import rerank
from reid.training.loop import train

ROWS = [
    ("Änne", "Tür", "train"),
    ("Änne", "Hof", "train"),
    ("bob", "Tür", "train"),
    ("01", "Tür", "query"),
    ("01", "Hof", "gallery"),
    ("1", "Hof", "query"),
    ("1", "Tür", "gallery"),
    ("-1", "Tür", "gallery"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(len(ROWS)):
        write_image(tmp_path / "images" / f"{number}.png", number, 1, number)
    return tmp_path


def table(delimiter: str = ",", header: str = "path,identity,camera,split", slash: str = "/") -> str:
    lines = [header.replace(",", delimiter)]
    for number, row in enumerate(ROWS):
        lines.append(delimiter.join((f"images{slash}{number}.png", *row)))
    return "\n".join(lines) + "\n"


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_a_csv_of_any_program(folder: Path, encoding: str, delimiter: str, slash: str) -> None:
    file = folder / "list.csv"
    file.write_bytes(table(delimiter, slash=slash).encode(encoding))
    data = open_data("market1501", file)  # a file is a CSV, whatever the layout says
    assert [len(data.split(split)) for split in SPLITS] == [3, 2, 2]
    assert data.left_out == {"gallery": 1}
    names = {split: [data.identity_name(one.identity) for one in data.split(split)] for split in SPLITS}
    assert names == {"train": ["Änne", "Änne", "bob"], "query": ["01", "1"], "gallery": ["01", "1"]}
    assert [data.camera_name(one.camera) for one in data.train] == ["Tür", "Hof", "Tür"]
    assert all(record.path.is_file() for split in SPLITS for record in data.split(split))
    check_data(data)


@pytest.mark.parametrize(
    "header",
    ["Path,Identity,Camera,Split", " path , identity , camera , split ", "PATH,IDENTITY,CAMERA,SPLIT"],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_spaces_capitals_and_ends_of_lines(folder: Path, header: str, end: str) -> None:
    text = table(header=header).replace("train", " Train ").replace("query", "QUERY").replace("\n", end)
    (folder / "list.csv").write_bytes((end + text + end).encode())
    data = open_data("csv", folder / "list.csv")
    assert [len(data.split(split)) for split in SPLITS] == [3, 2, 2]


@pytest.mark.parametrize(
    "names", [("1", "01"), ("7", "007"), ("0", "00"), ("1", "\u0661"), ("a", "A"), ("²", "2")]
)
def test_different_texts_are_different_identities(folder: Path, names: tuple[str, str]) -> None:
    lines = ["path,identity,camera,split"]
    for number, (identity, split) in enumerate(itertools.product(names, SPLITS)):
        lines.append(f"images/{number}.png,{identity},{split},{split}")
    (folder / "list.csv").write_text("\n".join(lines))
    data = open_data("csv", folder / "list.csv")
    for split in SPLITS:
        assert {data.identity_name(record.identity) for record in data.split(split)} == set(names)


def test_numbers_stay_numbers(folder: Path) -> None:
    text = "path,identity,camera,split\nimages/0.png,0,3,query\nimages/1.png,0,12,gallery\n"
    text += "images/2.png,0040,1,train\n"
    (folder / "list.csv").write_text(text)
    data = open_data("csv", folder / "list.csv")
    assert [data.query[0].identity, data.train[0].identity, data.gallery[0].camera] == [0, 40, 12]
    assert data.identity_name(40) == "0040"
    assert data.camera_names == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected the columns path, identity, camera, split"),
        (b"\n\n", "is empty"),
        (b"path;identity\n", r"lacks the column\(s\) camera, split"),
        (
            b"path,identity,camera,split\nimages/0.png," + b"x" * 200_000 + b",1,train\n",
            "no CSV .field larger",
        ),
        (b"path,identity,camera,split\nimages/0.png,a,1\n", r"1 row\(s\).*line 2: images/0.png, a, 1, "),
        (
            b"path,identity,camera,split\nimages/0.png,a,1,val\n",
            r"1 row\(s\).*a split of train, query, gallery",
        ),
        (bytes(range(256)), r"lacks the column\(s\)|no CSV"),
    ],
)
def test_a_csv_that_cannot_be_meant(folder: Path, content: bytes, message: str) -> None:
    (folder / "list.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_data("csv", folder / "list.csv")
    with pytest.raises(FileNotFoundError, match=r"root is the CSV file; it holds list\.csv"):
        open_data("csv", folder)


def test_hidden_files_are_no_images(folder: Path, tmp_path: Path) -> None:
    market = write_market(tmp_path / "m")
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        first = sorted((market / part).iterdir())[0]
        (market / part / f"._{first.name}").write_bytes(b"\0\5\26\7")
        (market / part / f".{first.name}").write_bytes(b"")
        (market / part / ".DS_Store").write_bytes(b"")
        (market / part / "Thumbs.db").write_bytes(b"")
    assert [len(open_data("market1501", market).split(split)) for split in SPLITS] == [18, 4, 8]
    (folder / "list.csv").write_text(table() + "images/._0.png,bob,Hof,train\n")
    assert len(open_data("csv", folder / "list.csv").train) == 3


@pytest.mark.parametrize("part", ["bounding_box_train", "query", "bounding_box_test"])
@pytest.mark.parametrize("case", ["nested", ".tif", ".TIFF", ".heic"])
def test_what_the_layout_does_not_have_is_named(tmp_path: Path, part: str, case: str) -> None:
    market = write_market(tmp_path / "m")
    images = sorted((market / part).iterdir())
    if case == "nested":
        for path in images:
            target = market / part / path.name[:4] / path.name
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
        expected = rf"{part} has no images but \d+ folder\(s\): 000"
    else:
        images[0].rename(images[0].with_suffix(case))
        expected = rf"{part} has 1 image\(s\) of a kind .*{images[0].stem}{case}; convert"
    with pytest.raises(ValueError, match=expected):
        open_data("market1501", market)


def test_identity_0_in_a_set_numbered_from_0_is_somebody(tmp_path: Path) -> None:
    root = tmp_path / "m"
    for identity, camera in itertools.product(range(4), (1, 2)):
        folder = "bounding_box_train" if identity < 2 else ("query" if camera == 1 else "bounding_box_test")
        shown = identity if identity < 2 else identity - 2
        write_image(root / folder / name(shown, camera, identity), identity, camera, 0)
    data = open_data("market1501", root)
    assert [[one.identity for one in data.split(split)] for split in SPLITS] == [[0, 0, 1, 1], [0, 1], [0, 1]]
    assert data.left_out == {}
    check_data(data)


def noise(tmp_path: Path, *, linked: str) -> Path:
    """A set in which nobody can be told from anybody, and each query lies in the gallery too."""
    root, number = tmp_path / "noise", itertools.count()
    for identity in range(1, 13):
        for camera in (1, 2, 3):
            write_image(root / "bounding_box_train" / name(identity, camera, 0), next(number), camera, 0)
        for camera in (1, 2):
            write_image(root / "bounding_box_test" / name(identity, camera, 0), next(number), camera, 0)
        source = root / "bounding_box_test" / name(identity, 1, 0)
        target = root / "query" / name(identity, 3, 0)
        target.parent.mkdir(exist_ok=True)
        if linked == "copy":
            shutil.copy(source, target)
        elif linked == "link":
            target.symlink_to(source)
    return root


@pytest.mark.parametrize("linked", ["copy", "link", "csv"])
@pytest.mark.parametrize("cameras", ["use", "none"])
def test_a_query_is_no_match_of_itself(
    tmp_path: Path, linked: str, cameras: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = noise(tmp_path, linked=linked)
    overrides = ["allow_duplicates=true", f"cameras={cameras}", "identities=4"]
    if linked == "csv":
        lines = ["path,identity,camera,split"]
        for path in sorted(root.rglob("*.png")):
            test = path.parent.name == "bounding_box_test"
            label = f"{path.relative_to(tmp_path)},{int(path.name[:4])},"
            lines.append(label + f"{path.name[6]},{'gallery' if test else 'train'}")
            if test and path.name[6] == "1":
                lines.append(
                    label + "9,query"
                )  # as filmed by another camera, or the camera rule would see to it
        root = tmp_path / "list.csv"
        root.write_text("\n".join(lines))
    config = tiny_config(root, *overrides)
    manager = open_manager(config, setup("cpu"))
    (tested,) = manager.test_loader.values()
    assert "12 queries of" in capsys.readouterr().out
    assert len(tested.excluded) == 12
    for query, place in tested.excluded.tolist():
        assert tested.data.query[query].path.read_bytes() == tested.data.gallery[place].path.read_bytes()

    class Pixels(torch.nn.Module):
        """Features that know a file again."""

        feature_dim = 3 * 48 * 32

        def features(self, images: torch.Tensor, *, after_neck: bool) -> torch.Tensor:
            return images.flatten(1)

    found = score(Pixels(), tested, config, setup("cpu"))
    assert found is not None
    assert found.metrics["rank1"] < 60
    without = {**tested.labels, "excluded": None}
    assert evaluate(found.query, found.gallery, **without).rank1 == 1  # what it was


def test_excluded_pairs_against_a_loop(generator: torch.Generator) -> None:
    query, gallery = (torch.randn(n, 5, generator=generator) for n in (9, 40))
    query_ids, gallery_ids = (torch.randint(4, (n,), generator=generator) for n in (9, 40))
    excluded = torch.stack(
        [torch.randint(9, (30,), generator=generator), torch.randint(40, (30,), generator=generator)], dim=1
    )
    found = evaluate(query, gallery, query_ids=query_ids, gallery_ids=gallery_ids, excluded=excluded, chunk=4)
    precisions = []
    for number in range(9):
        left = [g for g in range(40) if [number, g] not in excluded.tolist()]
        one = evaluate(
            query[number : number + 1],
            gallery[left],
            query_ids=query_ids[number : number + 1],
            gallery_ids=gallery_ids[left],
        )
        precisions.append(one.mAP)
    assert found.mAP == pytest.approx(sum(precisions) / 9)
    for wrong in ([[9, 0]], [[0, 40]], [[-1, 0]], [0, 1]):
        with pytest.raises(ValueError, match=r"excluded must be \(M, 2\) pairs"):
            evaluate(query, gallery, query_ids=query_ids, gallery_ids=gallery_ids, excluded=wrong)


FORMS = {
    "float64": lambda x: x.numpy().astype(np.float64),
    "float16": lambda x: x.half().float().numpy().astype(np.float16),
    "big-endian": lambda x: x.numpy().astype(">f4"),
    "reversed": lambda x: x.numpy()[::-1].copy()[::-1],
    "columns": lambda x: np.asfortranarray(x.numpy()),
    "read-only": lambda x: np.frombuffer(x.numpy().tobytes(), np.float32).reshape(x.shape),
    "long double": lambda x: x.numpy().astype(np.longdouble),
    "lists": lambda x: x.tolist(),
    "list of tensors": lambda x: list(x),
    "list of arrays": lambda x: list(x.numpy()),
    "tuple of tuples": lambda x: tuple(map(tuple, x.tolist())),
}
LABELS = {
    "list": lambda x: x.tolist(),
    "tuple": lambda x: tuple(x.tolist()),
    "int32": lambda x: x.numpy().astype(np.int32),
    "int16": lambda x: x.numpy().astype(">i2"),
    "texts": lambda x: [f"id{number}" if number >= 0 else "-1" for number in x.tolist()],
    "array of texts": lambda x: np.array([f"id{number}" if number >= 0 else "-1" for number in x.tolist()]),
    "objects": lambda x: np.array([f"{number}" for number in x.tolist()], dtype=object),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("error")
def test_evaluate_takes_arrays_and_lists(form: str, generator: torch.Generator) -> None:
    compare(FORMS[form], LABELS["list"], generator)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.filterwarnings("error")
def test_evaluate_takes_labels_of_any_kind(labels: str, generator: torch.Generator) -> None:
    compare(FORMS["float64"], LABELS[labels], generator)


def compare(form, label, generator: torch.Generator) -> None:
    query, gallery = (torch.randn(n, 6, generator=generator).half().float() for n in (8, 50))
    ids = [torch.randint(-1, 4, (50,), generator=generator), torch.randint(3, (50,), generator=generator)]
    expected = evaluate(
        query,
        gallery,
        query_ids=ids[0][:8].clamp(min=0),
        gallery_ids=ids[0],
        query_cameras=ids[1][:8],
        gallery_cameras=ids[1],
    )
    given = {
        "query_ids": label(ids[0][:8].clamp(min=0)),
        "gallery_ids": label(ids[0]),
        "query_cameras": label(ids[1][:8]),
        "gallery_cameras": label(ids[1]),
    }
    for pair in ((form(query), form(gallery)), (query, form(gallery)), (form(query), gallery)):
        found = evaluate(*pair, **given)
        assert found.mAP == pytest.approx(expected.mAP, abs=1e-6)
    torch.testing.assert_close(
        rerank(form(query), form(gallery), k1=3, k2=2),
        rerank(query, gallery, k1=3, k2=2),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query_ids": ["a", "b"], "gallery_ids": [1, 2]}, TypeError, "both be texts or both be numbers"),
        ({"query_ids": ["a", 1]}, TypeError, "must both be|must be numbers"),
        ({"query_ids": [1.0, 2.0]}, TypeError, "integer dtype"),
        ({"query_ids": [None, 1]}, TypeError, "query_ids must be numbers, got object"),
        ({"query_ids": [[1], [2]]}, ValueError, r"query_ids must have the shape \(2,\)"),
        ({"query_cameras": [1, 2]}, ValueError, "or for neither"),
    ],
)
def test_labels_that_are_none(change: dict, error: type[Exception], message: str) -> None:
    given = {"query_ids": [1, 2], "gallery_ids": [1, 2]} | change
    with pytest.raises(error, match=message):
        evaluate(np.eye(2), np.eye(2), **given)
    with pytest.raises(TypeError, match=r"rows of equal length|must be numbers"):
        evaluate([[1.0], [1.0, 2.0]], np.eye(2), query_ids=[1, 2], gallery_ids=[1, 2])


def test_labels_come_back(tmp_path: Path) -> None:
    write_market(tmp_path / "m")
    folk = {1: "Ann", 2: "bob", 3: "Ça", 4: "04", 5: "4", 6: "x y", 7: "Q", 8: "R", 9: "S", 10: "T"}
    lines = ["path;identity;camera;split"]
    for path in sorted((tmp_path / "m").rglob("*.png")):
        split = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}[
            path.parent.name
        ]
        text = f"{path.relative_to(tmp_path)};{folk[int(path.name[:4])]};cam {path.name[6]};{split}"
        lines.append(text.replace("/", "\\"))
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-16")
    config = tiny_config(tmp_path / "list.csv", "max_steps=1", "ranked=2", "features=true")
    train(config, tmp_path / "run")
    found = load_features(tmp_path / "run" / "features.npz")
    assert list(found["query"].identity_names) == ["Q", "R", "S", "T"]
    assert list(found["gallery"].camera_names) == ["cam 2", "cam 3"] * 4
    weights = torch.load(tmp_path / "run" / "weights.pt", weights_only=True)
    assert weights["identities"] == ["04", "4", "Ann", "bob", "x y", "Ça"]
    scores = evaluate_weights(config, tmp_path / "run" / "weights.pt", tmp_path / "scored")
    assert scores["list"]["mAP"] > 0
