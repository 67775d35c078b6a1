"""The page: sentence, bars, sweep, worst images, settings to copy; one HTML file that needs no other."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image

from keepaug.audit.advice import capital, percent, strongest
from keepaug.audit.choices import MEASURES, PERCENT
from keepaug.audit.images import class_name
from keepaug.audit.trials import Picture
from keepaug.runs import pages

_BARS = (
    ("destroyed", "Objects destroyed", "at least half hidden"),
    ("importance_lost", "Importance lost", "share of what the network looks at that is no longer visible"),
    ("fidelity", "Fidelity", "accuracy on augmented over accuracy on clean images"),
    ("flipped", "Answers changed", "share of images whose predicted class changes"),
)
_PANEL, _LARGE = 112, 180  # pixels of a picture's panel, of photographs
_SMALL = 64  # pixels of an image that is enlarged without smoothing
_TOP, _BOTTOM, _LEFT, _RIGHT = 30, 168, 40, 330
_APART = 2.5  # of plain and Keep at one strength, whose intervals would hide each other
_UNITS = {"size": "pixels", "area_high": "share of the image"}


def render(content: Mapping[str, Any], pictures: Sequence[tuple[str, Sequence[Picture]]]) -> str:
    """The page as HTML.

    Args:
        content: of `audit.json`.
        pictures: the worst images by augmentation.

    Raises:
        ImportError: jinja2 is missing.
    """
    rows, classes = content["rows"], content["data"]["classes"]
    accuracy = content["network"]["accuracy"]
    worst = [
        {"title": capital(title), "pictures": [_picture(picture, classes) for picture in own]}
        for title, own in pictures
        if own
    ]
    return pages.render(
        Path(__file__).parent / "page.html.j2",
        "audit",
        audit=content,
        grave=bool(content["warnings"]) and content["warnings"][0].startswith("The network is right about"),
        accuracy=_interval("fidelity", accuracy) if accuracy else "",
        bound=percent(content["bound"]),
        bars=[chart for name, title, note in _BARS if (chart := _bars(rows, name, title, note))],
        sweeps=[_sweep(sweep, content["bound"]) for sweep in content["sweeps"]],
        worst=worst,
        num_worst=sum(len(group["pictures"]) for group in worst),
        titles=[capital(row["title"]) for row in rows],
        large=max(content["data"]["shape"]) > _SMALL,
        table=[
            {
                "title": _title(row),
                "cells": [(name, _interval(name, row[name]).partition(" [")) for name in MEASURES],
            }
            for row in rows
        ],
        curves=[
            {
                "title": _title(row),
                "shares": [percent(share) for share, _ in row["destroyed_curve"]],
                "values": [percent(value) for _, value in row["destroyed_curve"]],
            }
            for row in rows
            if row["destroyed_curve"]
        ],
        suffering=[
            {
                "title": _title(row),
                "classes": ", ".join(
                    f"{entry['class']} {percent(entry['fidelity'])} of {entry['images']}"
                    for entry in row["by_class"][:4]
                ),
                "objects": ", ".join(
                    f"{entry['object']} {percent(entry['destroyed'])} of {entry['objects']}"
                    for entry in row["by_object"][:4]
                ),
            }
            for row in rows
            if row["by_class"] or row["by_object"]
        ],
    )


def _title(row: Mapping[str, Any]) -> str:
    return f"{row['title']} ({row['augmentation']})" if row["keep"] else capital(row["title"])


def _interval(name: str, interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "-"
    if name in PERCENT:
        return f"{100 * interval['mean']:.1f} % [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"
    unit = " ms" if name == "cost" else ""
    mean, low, high = (
        f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
        for value in (interval[end] for end in ("mean", "low", "high"))
    )
    return f"{mean}{unit} [{low}, {high}]"


def _bars(rows: Sequence[Mapping[str, Any]], name: str, title: str, note: str) -> dict[str, Any] | None:
    pairs: dict[str, dict[str, Any]] = {}
    top = max([1.0, *(row[name]["high"] for row in rows if row[name] is not None)])
    for row in rows:
        if (interval := row[name]) is None:
            continue
        pair = pairs.setdefault(row["augmentation"], {"title": "", "bars": []})
        pair["title"] = capital(row["title"]) if not row["keep"] else pair["title"] or row["title"]
        pair["bars"].append(
            {
                "kind": "keep" if row["keep"] else "plain",
                "width": round(100 * interval["mean"] / top, 2),
                "low": round(100 * interval["low"] / top, 2),
                "span": round(max(0.3, 100 * (interval["high"] - interval["low"]) / top), 2),
                "text": _interval(name, interval),
            }
        )
    return {"title": title, "note": note, "pairs": list(pairs.values())} if pairs else None


def _sweep(sweep: Mapping[str, Any], bound: float) -> dict[str, Any]:
    points, setting = sweep["points"], sweep["setting"]
    strengths = [point for point in points if not point["keep"]]
    tau = next((point["tau"] for point in points if point["keep"]), None)
    kept = [point for point in points if point["keep"] and point["tau"] == tau]
    taus = sorted(
        (point for point in points if point["keep"] and point["value"] == sweep["named"]),
        key=lambda point: point["tau"],
    )
    charts = []
    lost = "destroyed" if any(point["destroyed"] for point in points) else "importance_lost"
    for measure, title in (
        ("fidelity", "fidelity"),
        (lost, "objects destroyed" if lost == "destroyed" else "importance lost"),
    ):
        lines = [("plain", strengths, "value"), *([("keep", kept, "value")] if kept else [])]
        charts.append(_chart(title, setting, measure, lines, bound if measure == "fidelity" else None))
    if len(taus) > 1:
        charts.append(
            _chart(
                f"fidelity at {setting} {sweep['named']:g}", "tau", "fidelity", [("keep", taus, "tau")], bound
            )
        )
    told = (("plain", sweep["recommended"]), (sweep["keep_title"], sweep["recommended_keep"]))
    parts = [f"{name} {strongest(entry)}" for name, entry in told if entry is not None]
    return {
        "title": capital(sweep["title"]),
        "text": f"Recommended {_axis(setting)}: {'; '.join(parts)}.",
        "charts": charts,
    }


def _axis(setting: str) -> str:
    return f"{setting} ({_UNITS[setting]})" if setting in _UNITS else setting


_Lines = Sequence[tuple[str, Sequence[Mapping[str, Any]], str]]


def _chart(title: str, axis: str, measure: str, lines: _Lines, bound: float | None) -> dict[str, Any]:
    xs = sorted({float(point[key]) for _, points, key in lines for point in points})
    top = max(
        [1.0, *(point[measure]["high"] for _, points, _ in lines for point in points if point[measure])]
    )

    def across(value: float, aside: float = 0.0) -> float:
        span = xs[-1] - xs[0] or 1.0
        return round(_LEFT + 12 + (value - xs[0]) / span * (_RIGHT - _LEFT - 24) + aside, 1)

    def down(value: float) -> float:
        return round(_BOTTOM - value / top * (_BOTTOM - _TOP), 1)

    drawn = []
    for kind, points, key in lines:
        known = sorted((point for point in points if point[measure]), key=lambda point: float(point[key]))
        places = [(across(float(p[key]), _APART if kind == "keep" else -_APART), p[measure]) for p in known]
        drawn.append(
            {
                "kind": kind,
                "points": [(x, down(of["mean"])) for x, of in places],
                "whiskers": [{"x": x, **{end: down(of[end]) for end in ("low", "high")}} for x, of in places],
            }
        )
    said = "; ".join(
        f"{kind} at {axis} {point[key]:g}: {percent(point[measure]['mean'])}"
        for kind, points, key in lines
        for point in points
        if point[measure]
    )
    return {
        "title": title,
        "axis": _axis(axis),
        "label": f"{title} by {axis}: {said}",
        "ticks": [
            {"y": down(value), "text": f"{100 * value:.0f} %"} for value in (0.0, 0.25, 0.5, 0.75, 1.0)
        ],
        "marks": [{"x": across(value), "text": f"{value:g}"} for value in xs],
        "bound": None if bound is None else down(bound),
        "lines": drawn,
    }


def _picture(picture: Picture, classes: Sequence[str] | None) -> dict[str, Any]:
    panels, facts = picture.panels, picture.facts
    image = panels["image"].float()
    objects = panels["objects"].bool()
    if bool(objects.any()):
        image = torch.where(objects, image, image * 0.55)
    shown = [
        image.to(torch.uint8),
        *(panels[name] for name in ("saliency", "plain", "keep") if name in panels),
    ]
    blank = [torch.full_like(shown[0], 255)] * (4 - len(shown))
    side = _LARGE if max(image.shape[1:]) > _SMALL else _PANEL
    parts = [_scaled(panel, side) for panel in [*shown, *blank]]
    sheet = torch.cat([parts[0], *(F.pad(part, (2, 0), value=255) for part in parts[1:])], dim=2)
    return {"source": _embedded(sheet), "caption": _caption(facts, classes), "keep": "keep" in panels}


def _scaled(panel: Tensor, side: int) -> Tensor:
    mode = Image.Resampling.NEAREST if panel.shape[2] < side else Image.Resampling.BILINEAR
    height = round(side * panel.shape[1] / panel.shape[2])
    picture = to_pil_image(panel).resize((side, height), mode)
    return (
        torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        .view(height, side, 3)
        .permute(2, 0, 1)
    )


def _embedded(sheet: Tensor) -> str:
    buffer = io.BytesIO()
    to_pil_image(sheet.contiguous()).save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _caption(facts: Mapping[str, Any], classes: Sequence[str] | None) -> str:
    shown = f"{class_name(facts['label'], classes)}: " if classes else ""
    parts = [f"{shown}{percent(facts['lost'])} of the importance lost"]
    if "kept_lost" in facts:
        parts[0] += f", {percent(facts['kept_lost'])} with Keep"
    if facts["hidden"] is not None:
        parts.append(f"{percent(facts['hidden'])} of the {facts['object']} hidden")
    if facts["after"] != facts["prediction"]:
        parts.append(f"then taken for {class_name(facts['after'], classes)}")
    return "; ".join(parts) + "."
