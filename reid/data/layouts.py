"""Re-identification datasets on disk: Market-1501, DukeMTMC-reID, MSMT17 and CSV files."""

from __future__ import annotations

import codecs
import csv
import functools
import io
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from keepaug.runs.config import ConfigError

SPLITS = ("train", "query", "gallery")
JUNK = -1
"""The identity of images that the protocol leaves out; 0 (false detections) stays in the gallery."""
OFFICIAL_SIZES = {
    "market1501": (12936, 3368, 15913),  # the gallery without its 3,819 junk images
    "dukemtmc": (16522, 2228, 17661),
    "msmt17": (32621, 11659, 82161),
}
COLUMNS = ("path", "identity", "camera", "split")
"""Of a CSV file."""
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_OTHER_IMAGES = (".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif", ".heic", ".tga")
_NAME = re.compile(r"^(-?\d+)_c(\d+)")  # 0002_c1s1_000451_03.jpg, -1_c1s1_..., 0001_c2_f0046182.jpg
_MSMT17_NAME = re.compile(r"^\d+_\d+_(\d+)_")  # 0000_001_01_0303morning_0015_0.jpg: the camera is third


class Record(NamedTuple):
    """One image.

    Attributes:
        path: of the file.
        identity: >= 0.
        camera: None where unknown.
    """

    path: Path
    identity: int
    camera: int | None


@dataclass
class ReidData:
    """A dataset.

    Attributes:
        layout: how it lies on disk.
        root: folder that all paths are below.
        name: of the folder or the CSV file.
        train: images to train on.
        query: images to look for.
        gallery: images to look in.
        left_out: number of junk images per split, which are in none of the lists.
        name: for results, where it is not the layout's own.
        identity_names: the user's texts by number, where identities are not numbers already.
        camera_names: likewise.
    """

    layout: str
    root: Path
    train: list[Record]
    query: list[Record]
    gallery: list[Record]
    left_out: dict[str, int] = field(default_factory=dict)
    name: str = ""
    identity_names: dict[int, str] = field(default_factory=dict)
    camera_names: dict[int, str] = field(default_factory=dict)

    def identity_name(self, number: int) -> str:
        """As the user wrote it."""
        return self.identity_names.get(number, str(number))

    def camera_name(self, number: int | None) -> str:
        """As the user wrote it; "" where unknown."""
        return "" if number is None else self.camera_names.get(number, str(number))

    def split(self, name: str) -> list[Record]:
        """One of `SPLITS`."""
        records: list[Record] = getattr(self, name)
        return records


def open_data(layout: str, root: str | Path) -> ReidData:
    """List a dataset's images, sorted by path.

    Args:
        layout: one of `LAYOUTS`.
        root: the dataset's folder or one above it; or a CSV file, whatever the layout, with the columns path
            (relative to the file), identity, camera (may be empty) and split (train, query or gallery).

    Raises:
        FileNotFoundError: the folder, the file or a part of the layout is missing.
        ValueError: file names or rows that do not fit the layout, with counts and examples.
    """
    root = Path(root).expanduser()
    if layout == "csv" or root.is_file():
        return _read_csv(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    return LAYOUTS[layout](root)


def name_of(data: ReidData, given: str = "") -> str:
    """The name for results. Only data of the official sizes gets the official name.

    Raises:
        ConfigError: an official name for other data.
    """
    sizes = tuple(len(data.split(split)) for split in SPLITS)
    official = data.layout if OFFICIAL_SIZES.get(data.layout) == sizes else ""
    if given in OFFICIAL_SIZES and given != official:
        raise ConfigError(
            f"data_name={given} is the name of the official data with {OFFICIAL_SIZES[given]} images for "
            "training, query and "
            f"gallery; {data.root} has {sizes} in the layout {data.layout}: choose another name"
        )
    if given or official:
        return given or official
    stem = data.name or data.root.name
    taken = stem.lower().startswith("market-1501") or stem in OFFICIAL_SIZES
    return f"{data.layout}-like" if taken else stem


def _read_market(layout: str, root: Path) -> ReidData:
    folders = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    below = ("", "Market-1501-v15.09.15", "market1501", "market1501/Market-1501-v15.09.15", "DukeMTMC-reID")
    base = _first(root, below, lambda path: all((path / name).is_dir() for name in folders.values()))
    if base is None:
        found = sorted(path.name for path in root.iterdir())[:10]
        raise FileNotFoundError(
            f"{root} is not in the {layout} layout: expected the folders {', '.join(folders.values())}, "
            f"found {', '.join(found) or 'nothing'}"
        )
    data = ReidData(layout, base, [], [], [])
    listed: dict[str, list[Record]] = {}
    for split, folder in folders.items():
        listed[split], wrong = [], []
        for path in _images(base / folder):
            if (match := _NAME.match(path.name)) is None:
                wrong.append(path.name)
                continue
            listed[split].append(Record(path, int(match[1]), int(match[2])))
        _refuse(
            wrong,
            f"file name(s) in {base / folder} are not IDENTITY_cCAMERA..., such as 0002_c1s1_000451_03.jpg",
        )
    for split, records in listed.items():
        # Identity 0 is nobody in the published galleries, which have it nowhere else; a set numbered from 0
        # has.
        kept = [record for record in records if record.identity >= 0]
        if len(kept) < len(records):
            data.left_out[split] = len(records) - len(kept)
        data.split(split).extend(kept)
    return data


def _read_msmt17(root: Path) -> ReidData:
    below = ("", "MSMT17_V1", "MSMT17_V2", "msmt17", "msmt17/MSMT17_V1", "msmt17/MSMT17_V2", "MSMT17")
    if (base := _first(root, below, lambda path: (path / "list_query.txt").is_file())) is None:
        raise FileNotFoundError(
            f"{root} is not in the msmt17 layout: expected list_train.txt, list_val.txt, list_query.txt, "
            "list_gallery.txt and the folders train and test (mask_train_v2 and mask_test_v2)"
        )
    train = "mask_train_v2" if (base / "mask_train_v2").is_dir() else "train"
    test = "mask_test_v2" if (base / "mask_test_v2").is_dir() else "test"
    data = ReidData("msmt17", base, [], [], [])
    # The published 32,621 training images are the lists train and val together.
    for split, lists, folder in (
        ("train", ("list_train.txt", "list_val.txt"), train),
        ("query", ("list_query.txt",), test),
        ("gallery", ("list_gallery.txt",), test),
    ):
        wrong = []
        for name in lists:
            if not (base / name).is_file():
                raise FileNotFoundError(f"{base / name} is missing: MSMT17 comes with it")
            for line in (base / name).read_text().splitlines():
                if not line.strip():
                    continue
                relative, _, identity = line.strip().replace("\\", "/").rpartition(" ")
                if Path(relative).name.startswith("."):
                    continue
                match = _MSMT17_NAME.match(Path(relative).name)
                if match is None or not identity.isdecimal():
                    wrong.append(f"{name}: {line}")
                    continue
                data.split(split).append(Record(base / folder / relative, int(identity), int(match[1])))
        _refuse(wrong, "line(s) are not FOLDER/IDENTITY_NUMBER_CAMERA_....jpg IDENTITY")
        data.split(split).sort()
    return data


def _read_csv(path: Path) -> ReidData:
    if not path.is_file():
        tables = ", ".join(one.name for one in sorted(path.glob("*.csv")))
        there = f"; it holds {tables}" if path.is_dir() else ""
        raise FileNotFoundError(f"no file {path}; with layout=csv, root is the CSV file{there}")
    rows = [row for row in _csv_rows(path) if not Path(row["path"]).name.startswith("._")]
    wrong = [
        f"line {row['line']}: {', '.join(row[key] for key in COLUMNS)}"
        for row in rows
        if row["split"] not in SPLITS or not row["path"] or not row["identity"]
    ]
    _refuse(wrong, f"row(s) of {path} need a path, an identity and a split of {', '.join(SPLITS)}")
    identities = _numbers(row["identity"] for row in rows if row["identity"] != str(JUNK))
    cameras = _numbers(row["camera"] for row in rows if row["camera"])
    base = path.parent.resolve()
    paths = [_existing(base, row["path"]) for row in rows]
    common = Path(os.path.commonpath([base, *(one.parent for one in paths)]))
    data = ReidData("csv", common, [], [], [], name=path.stem)
    data.identity_names = _names(identities)
    data.camera_names = _names(cameras)
    for row, file_path in zip(rows, paths, strict=True):
        if row["identity"] == str(JUNK):
            data.left_out[row["split"]] = data.left_out.get(row["split"], 0) + 1
            continue
        record = Record(file_path, identities[row["identity"]], cameras.get(row["camera"]))
        data.split(row["split"]).append(record)
    for split in SPLITS:
        data.split(split).sort(key=lambda record: record.path)
    return data


def _csv_rows(path: Path) -> list[dict[str, str]]:
    """Rows of `COLUMNS` and "line"; columns in any order and case, between commas, semicolons or tabs."""
    text = _decoded(path.read_bytes())
    head = next((line for line in text.splitlines() if line.strip()), "")
    # What the header is divided by: spreadsheets write semicolons where the comma is the decimal sign.
    delimiter = max(",;\t|", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    found: list[dict[str, str]] = []
    names: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [cell.strip().lower() for cell in cells]
                if missing := [column for column in COLUMNS if column not in names]:
                    raise ValueError(
                        f"{path} lacks the column(s) {', '.join(missing)}; expected {', '.join(COLUMNS)}, "
                        f"found {', '.join(names)}"
                    )
                continue
            row = dict.fromkeys(COLUMNS, "") | dict(zip(names, map(str.strip, cells), strict=False))
            found.append(row | {"split": row["split"].lower(), "line": str(reader.line_num)})
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: no CSV ({error})") from error
    if not names:
        raise ValueError(f"{path} is empty; expected the columns {', '.join(COLUMNS)}")
    return found


def _decoded(content: bytes) -> str:
    """Text in UTF-8, with or without its mark, UTF-16, or what Windows of the West writes."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    if content[1:2] == b"\0" or content[:1] == b"\0":  # without a mark: every second byte of "path" is 0
        return content.decode("utf-16-be" if content[:1] == b"\0" else "utf-16-le", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _existing(base: Path, name: str) -> Path:
    """A path as it is written; Windows' backslashes as what they mean, where no file is called so."""
    path = base / name
    return base / name.replace("\\", "/") if "\\" in name and not path.exists() else path


def _numbers(names: Iterable[str]) -> dict[str, int]:
    """Whole numbers keep their value if all are such and differ in it; otherwise alphabetical places."""
    unique = sorted(set(names))
    if all(name.isascii() and name.isdecimal() for name in unique):
        values = {name: int(name) for name in unique}
        if len(set(values.values())) == len(values) and max(values.values(), default=0) < 2**62:
            return values
    return {name: position for position, name in enumerate(unique)}


def _names(numbers: dict[str, int]) -> dict[int, str]:
    """The texts that a number alone would not give back."""
    return {number: name for name, number in numbers.items() if str(number) != name}


def _images(folder: Path) -> list[Path]:
    """Image files of a flat folder, sorted; hidden ones (AppleDouble's ._NAME among them) are none.

    Raises:
        ValueError: the images lie in folders below, or are of a kind that is not read: they would be missed.
    """
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    images = sorted(path for path in files if path.suffix.lower() in _EXTENSIONS)
    if others := sorted(path.name for path in files if path.suffix.lower() in _OTHER_IMAGES):
        raise ValueError(
            f"{folder} has {len(others)} image(s) of a kind that this layout does not have: "
            f"{', '.join(others[:3])}; convert them to one of {', '.join(_EXTENSIONS)}"
        )
    folders = [] if images else sorted(one.name for one in files if one.name != "__MACOSX" and one.is_dir())
    if folders:
        raise ValueError(
            f"{folder} has no images but {len(folders)} folder(s): {', '.join(folders[:3])}; this layout has "
            "all images directly in it (a CSV file lists images wherever they lie: root=FILE.csv)"
        )
    return images


def _first(root: Path, below: Iterable[str], good: Callable[[Path], bool]) -> Path | None:
    return next((root / name for name in below if (root / name).is_dir() and good(root / name)), None)


def _refuse(wrong: list[str], what: str) -> None:
    if wrong:
        raise ValueError(f"{len(wrong)} {what}: {'; '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}")


LAYOUTS: dict[str, Callable[[Path], ReidData]] = {
    "market1501": functools.partial(_read_market, "market1501"),
    "dukemtmc": functools.partial(_read_market, "dukemtmc"),
    "msmt17": _read_msmt17,
    "csv": _read_csv,
}
"""How each layout is read; a new one is a line here, and in `OFFICIAL_SIZES` where it has such."""
