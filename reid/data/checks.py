"""What is wrong with a dataset, found before the first epoch rather than after it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from reid.data.layouts import SPLITS, Record, ReidData

_EXAMPLES = 5


def check_data(
    data: ReidData,
    *,
    cameras: bool = True,
    allow_unmatched: bool = False,
    allow_duplicates: bool = False,
    splits: Sequence[str] = SPLITS,
) -> None:
    """Everything that can be told without decoding images; see `keepaug.data.checking` for those.

    Args:
        data: the dataset.
        cameras: False evaluates without the camera rule, so that cameras may be missing.
        allow_unmatched: queries without a match in the gallery are left out of the scores, and no error.
        allow_duplicates: two files may have the same contents, and a file may be listed twice.
        splits: the ones that are needed.

    Raises:
        ValueError: with the number of cases and examples.
    """
    check_splits(data, splits)
    check_cameras(data, splits, cameras=cameras)
    check_files(data, splits)
    if not allow_duplicates:
        check_duplicates(data, splits)
    if "query" in splits and "gallery" in splits and not allow_unmatched:
        check_matches(data.query, data.gallery, cameras=cameras)


def check_splits(data: ReidData, splits: Sequence[str] = SPLITS) -> None:
    """Raise when a split is empty."""
    if empty := [split for split in splits if not data.split(split)]:
        sizes = ", ".join(f"{split} {len(data.split(split))}" for split in SPLITS)
        junk = ", ".join(f"{number} in {split}" for split, number in data.left_out.items())
        raise ValueError(
            f"{data.root}: no images for {', '.join(empty)} (images: {sizes}"
            + (f"; left out as junk, identity -1 or 0: {junk}" if junk else "")
            + ")"
        )


def check_cameras(data: ReidData, splits: Sequence[str] = SPLITS, *, cameras: bool = True) -> None:
    """Raise when the camera rule is asked for and cameras are missing (only the test images matter)."""
    if not cameras:
        return
    tested = [record for split in splits if split != "train" for record in data.split(split)]
    if without := [record for record in tested if record.camera is None]:
        raise ValueError(
            f"the camera is missing for {len(without)} of {len(tested)} query and gallery "
            f"images{_paths(without)}; add it, or set cameras=none to evaluate without the camera rule"
        )


def check_matches(query: Sequence[Record], gallery: Sequence[Record], *, cameras: bool = True) -> None:
    """Raise when a query has no match: its identity is absent, or only its own camera or file has it."""
    present: dict[int, list[Record]] = defaultdict(list)
    for record in gallery:
        present[record.identity].append(record)
    if absent := [record for record in query if record.identity not in present]:
        identities = sorted({record.identity for record in absent})
        raise ValueError(
            f"{len(identities)} of {len({record.identity for record in query})} query identities do not "
            f"appear in the gallery (identities {_some(identities)}; {len(absent)} of "
            f"{len(query)} queries{_paths(absent)}); the gallery has identities {_some(sorted(present))}. "
            "Were query and gallery numbered apart? allow_unmatched=true leaves them out"
        )
    others = [[one for one in present[record.identity] if one.path != record.path] for record in query]
    if alone := [record for record, found in zip(query, others, strict=True) if not found]:
        raise ValueError(
            f"{len(alone)} of {len(query)} queries have no match but their own file{_paths(alone)}, which "
            "does not count; allow_unmatched=true leaves these queries out"
        )
    if not cameras:
        return
    alone = [
        record
        for record, found in zip(query, others, strict=True)
        if all(one.camera == record.camera for one in found)
    ]
    if alone:
        number = Counter(record.camera for record in gallery)
        raise ValueError(
            f"{len(alone)} of {len(query)} queries have no match from another camera{_paths(alone)}; the "
            f"gallery's images by camera: {dict(sorted(number.items(), key=str))}. Set cameras=none to count "
            "matches from the same camera, or allow_unmatched=true to leave these queries out"
        )


def same_files(query: Sequence[Record], gallery: Sequence[Record]) -> list[tuple[int, int]]:
    """Pairs (query, gallery image) of one file, by path or contents; only files of equal size are read."""
    sizes = {record.path: record.path.stat().st_size for record in (*query, *gallery)}
    common = {sizes[record.path] for record in query} & {sizes[record.path] for record in gallery}
    contents = {one: hashlib.sha256(one.read_bytes()).digest() for one in sizes if sizes[one] in common}
    places: dict[bytes, list[int]] = defaultdict(list)
    for place, record in enumerate(gallery):
        if record.path in contents:
            places[contents[record.path]].append(place)
    return [
        (number, place)
        for number, record in enumerate(query)
        if record.path in contents
        for place in places.get(contents[record.path], ())
    ]


def check_files(data: ReidData, splits: Sequence[str] = SPLITS) -> None:
    """Raise when a listed file does not exist or is empty."""
    records = [record for split in splits for record in data.split(split)]
    if missing := [record for record in records if not record.path.is_file()]:
        raise ValueError(f"{len(missing)} of {len(records)} listed image files do not exist{_paths(missing)}")


def check_duplicates(data: ReidData, splits: Sequence[str] = SPLITS) -> None:
    """Raise when a file is listed twice, or two files have the same bytes.

    Only files of equal size are read.
    """
    by_size: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    listed: Counter[Path] = Counter()
    for split in splits:
        for record in data.split(split):
            listed[record.path] += 1
            by_size[record.path.stat().st_size].append((split, record.path))
    if twice := [path for path, number in listed.items() if number > 1]:
        raise ValueError(f"{len(twice)} file(s) are listed more than once: {_some(twice)}")
    same: list[str] = []
    for candidates in by_size.values():
        if len(candidates) < 2:
            continue
        by_content: dict[bytes, list[str]] = defaultdict(list)
        for split, path in candidates:
            by_content[hashlib.sha256(path.read_bytes()).digest()].append(f"{split}/{path.name}")
        same += [" = ".join(names) for names in by_content.values() if len(names) > 1]
    if same:
        raise ValueError(
            f"{len(same)} image(s) exist more than once under different names: {_some(same)}; remove the "
            "copies, or set allow_duplicates=true"
        )


def _some(items: Sequence[object]) -> str:
    shown = ", ".join(str(item) for item in items[:_EXAMPLES])
    return shown + (" ..." if len(items) > _EXAMPLES else "")


def _paths(records: Sequence[Record]) -> str:
    return ", for example " + _some([record.path.name for record in records][:3])
