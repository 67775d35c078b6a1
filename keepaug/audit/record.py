"""An audit as a result among others, for the report."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keepaug.audit.run import Audit
from keepaug.data.pictures import enlarged, labelled_sheet
from keepaug.runs.files import write_atomic
from keepaug.runs.result import write_result

_SHOWN = 2  # pictures of each augmentation


def record(
    result: Audit,
    output: str | Path,
    *,
    synthetic: bool,
    wall_time_s: float,
    started_from: Mapping[str, Any] | None = None,
) -> Path:
    """Write `result.json` beside the page: the share of objects destroyed, plain, Keep and the difference, in
    percent, with 95 % intervals over images.

    Args:
        result: of an audit with known objects.
        output: its folder.
        synthetic: the images were drawn by the program.
        wall_time_s: seconds that it took.
        started_from: identity of the network's file.

    Returns:
        The path of result.json.

    Raises:
        ValueError: no objects were known.
    """
    content, output = result.content, Path(output)
    pairs: dict[str, dict[str, Any]] = {}
    metrics = {}
    for row in result.rows:
        if row["destroyed"] is None:
            continue
        key = ("keep_" if row["keep"] else "") + row["augmentation"]
        metrics[key] = 100 * row["destroyed"]["mean"]
        pair = pairs.setdefault(row["augmentation"], {"name": row["title"][:1].upper() + row["title"][1:]})
        kind = "keep" if row["keep"] else "plain"
        pair |= {kind: key, f"{kind}_interval": _percent(row["destroyed"])}
        if row.get("destroyed_difference"):
            pair["difference"] = _percent(row["destroyed_difference"])
    if not metrics:
        raise ValueError("no objects are known in these images: there is no share of destroyed ones")
    data = content["data"]
    picture = _sheet(result)
    write_atomic(output / "worst.png", lambda file: picture.save(file, "PNG"))
    return write_result(
        output,
        kind="fidelity",
        name="audit",
        metrics=metrics,
        seed=content["seed"],
        config={"tau": content["tau"], "bound": content["bound"], "augmentations": sorted(pairs)},
        dataset={"name": data["name"], "sizes": {"val": data["images"]}, "checksum": data["checksum"]},
        synthetic=synthetic,
        shortened=False,
        started_from=started_from,
        wall_time_s=wall_time_s,
        artifacts={"worst": "worst.png", "page": "audit.html"},
        extra={"pairs": [pair for pair in pairs.values() if {"plain", "keep"} <= pair.keys()]},
    )


def _percent(interval: Mapping[str, float]) -> list[float]:
    return [100 * interval[key] for key in ("mean", "low", "high")]


def _sheet(result: Audit) -> Any:
    """The worst images of each augmentation, as rows that say which, of which class, and with which tau."""
    data = result.content["data"]
    classes, scale = data["classes"], max(1, 128 // max(data["shape"]))
    rows = []
    for title, pictures in result.pictures:
        for picture in pictures[:_SHOWN]:
            label, facts = picture.facts["label"], picture.facts
            named = classes[label] if classes else f"class {label}"
            text = [
                *textwrap.wrap(title, 20),
                named,
                f"tau {result.content['tau']:g}",
                f"lost {facts['lost']:.0%}",
            ]
            if "kept_lost" in facts:
                text.append(f"with Keep {facts['kept_lost']:.0%}")
            panels = [
                picture.panels[name]
                for name in ("image", "saliency", "plain", "keep")
                if name in picture.panels
            ]
            rows.append(("\n".join(text), [enlarged(panel, scale) for panel in panels]))
    return labelled_sheet(("image", "saliency", "plain", "Keep"), rows)
