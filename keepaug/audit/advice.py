"""Sentences: what was found, whether it can be believed, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def percent(share: float) -> str:
    """`31 %`; below 10 % with a digit more where it tells something."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 9.95 or value in (0.0,) else f"{value:.1f} %"


def spread(interval: Mapping[str, float]) -> str:
    """`31 % [25, 38]`, the 95 % interval in brackets."""
    low, high = (percent(interval[end]).removesuffix(" %") for end in ("low", "high"))
    return f"{percent(interval['mean'])} [{low}, {high}]"


def _differs(keep: Row, measure: str) -> bool:
    """Whether Keep and plain are told apart by these images; taken for granted where no audit says."""
    interval = keep.get(f"{measure}_difference")
    return interval is None or not interval["low"] <= 0 <= interval["high"]


def _mean(row: Row | None, measure: str) -> float | None:
    if row is None or row.get(measure) is None:
        return None
    return float(row[measure]["mean"])


def capital(text: str) -> str:
    """A title as a sentence begins with it; module:object as it is."""
    return text if ":" in text.split(" ")[0] else text[:1].upper() + text[1:]


def _twin(row: Row, rows: Sequence[Row]) -> Row | None:
    for other in rows:
        if other["augmentation"] == row["augmentation"] and other["keep"] != row["keep"]:
            return other
    return None


def _harm(row: Row) -> tuple[float, float]:
    shares = (_mean(row, "destroyed"), _mean(row, "half_lost"), 0.0)
    return next(share for share in shares if share is not None), 1 - (_mean(row, "fidelity") or 0)


def headline(rows: Sequence[Row]) -> str:
    """The finding in one sentence, about the plain augmentation that destroys most, and of its Keep."""
    plain = [row for row in rows if not row["keep"]]
    worst = max(plain, key=_harm)
    keep = _twin(worst, rows)
    title = capital(worst["title"])
    destroyed, half = _mean(worst, "destroyed"), _mean(worst, "half_lost")
    within, measure = "in ", "destroyed"
    if destroyed is not None and destroyed >= 0.005:
        kinds = [(entry["object"], entry["objects"]) for entry in worst["by_object"]]
        rest = _mean(keep, "destroyed")
        if len(kinds) == 1 and kinds[0][1] == worst["images"]:
            text = f"{title} hides at least half of the {kinds[0][0]} in {percent(destroyed)} of your images"
        else:
            share = percent(destroyed)
            text = f"{title} destroys {share} of the objects in your images (at least half hidden)"
            within = ""
    elif half is not None and half >= 0.005:
        share = percent(half)
        text = f"{title} takes away at least half of what the network looks at in {share} of your images"
        rest, measure = _mean(keep, "half_lost"), "half_lost"
    else:
        lost, flipped = _mean(worst, "importance_lost"), _mean(worst, "flipped") or 0.0
        text = f"{title} "
        if lost is not None:
            text += f"hides {percent(lost)} of what the network looks at and "
        text += f"changes its answer in {percent(flipped)} of your images"
        rest, measure = _mean(keep, "flipped"), "flipped"
    if keep is not None and rest is not None:
        named = keep["title"] if keep["title"].startswith("Keep") else "with a region pasted back"
        text += f"; {named} {within}{percent(rest)}"
        if not _differs(keep, measure):
            text += f", a difference that {worst['images']} images do not settle"
    return text + "."


def _near_chance(chance: float) -> float:
    """The accuracy that guessing may reach: a quarter above chance, less where one class is most of all.

    Images of a single class tell nothing of guessing; none of them right does.
    """
    return chance * (1 + 0.25 * (1 - chance)) if chance < 1 else 0.0


def warnings(
    clean: Mapping[str, Any], rows: Sequence[Row], *, left_out: tuple[int, int], labelled: bool
) -> list[str]:
    """What must be known before anything is believed, the most important first."""
    found = []
    accuracy = clean["accuracy"]
    if labelled and accuracy["low"] <= _near_chance(clean["chance"]):
        found.append(
            f"The network is right about {percent(accuracy['mean'])} of these images, and always naming the "
            f"most frequent class would be about {percent(clean['chance'])}: it was not trained for them, or "
            "is given them in a way it does not know (mean, std, size, order of the classes). What it looks "
            "at says nothing; do not act on this page."
        )
    if not labelled:
        found.append(
            "The images have no class labels: the network's own answer on the clean image counts as right, "
            "so fidelity says how often that answer stays."
        )
    untold = [row for row in rows if row["untold"] and not row["keep"]]
    for row in untold:
        found.append(
            f"What {row['title']} hides could not be told for {row['untold']} of {row['images']} images (it "
            "blends several views of the image, or cannot be repeated with the same random numbers); their "
            "hidden shares are left out, everything else counts."
        )
    if left_out[0]:
        found.append(
            f"{left_out[0]} of {left_out[1]} objects lie mostly outside of what the network is shown, or are "
            "smaller than 2 pixels there: they are not counted."
        )
    return found


def advise(rows: Sequence[Row], sweeps: Sequence[Mapping[str, Any]], bound: float) -> list[str]:
    """What to do about each augmentation, one sentence each."""
    found = []
    for row in (row for row in rows if not row["keep"]):
        keep = _twin(row, rows)
        if (plain := row["fidelity"]) is None:
            continue
        kept = keep["fidelity"] if keep is not None else None
        text = f"{capital(row['title'])}: "
        if plain["mean"] >= bound:
            sure = "harmless to this network as it is" if plain["low"] >= bound else "seems harmless as it is"
            text += f"{sure} (fidelity {spread(plain)})."
        elif keep is not None and kept and kept["mean"] >= bound and _differs(keep, "fidelity"):
            text += f"take {keep['title']} (fidelity {spread(kept)} instead of {spread(plain)})."
        else:
            sure = "too strong" if plain["high"] < bound else "perhaps too strong"
            better = f", {spread(kept)} with Keep" if kept else ""
            text += f"{sure} for this network (fidelity {spread(plain)}{better})."
        if keep is not None and _border_favours(row, keep):
            text += (
                f" {keep['title']} loses more, at equal area: a box that the border clips lies at the "
                "border, where these images show little, and Keep may put one of its size anywhere; "
                "placement=inside compares whole boxes."
            )
        sweep = next((entry for entry in sweeps if entry["augmentation"] == row["augmentation"]), None)
        if sweep is not None:
            text += _strongest(sweep, bound)
        found.append(text)
    return found


def _border_favours(row: Row, keep: Row) -> bool:
    """Whether the plain boxes lose less because they lie at the border, beyond the noise."""
    plain, kept = row["importance_lost"], keep["importance_lost"]
    matched = row["settings"].get("placement") == "matched"
    return matched and plain is not None and kept is not None and kept["low"] > plain["high"]


def strongest(entry: Mapping[str, Any]) -> str:
    """`32 (24 to 32)`: a recommended setting, and what 90 % of the resamples recommend where they differ."""
    value = "none of those tried" if entry["value"] is None else f"{entry['value']:g}"
    low, high = ("none" if entry[end] is None else f"{entry[end]:g}" for end in ("low", "high"))
    return value if low == high else f"{value} ({low} to {high})"


def _strongest(sweep: Mapping[str, Any], bound: float) -> str:
    parts = []
    for name, entry in (("plain", sweep["recommended"]), ("Keep", sweep["recommended_keep"])):
        if entry is None:
            continue
        parts.append(f"{name} {strongest(entry)}")
    if not parts:
        return ""
    setting, what = sweep["setting"], ", ".join(parts)
    return f" The strongest {setting} with a fidelity of at least {percent(bound)}: {what}."
