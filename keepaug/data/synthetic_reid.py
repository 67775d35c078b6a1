"""Drawn people seen by several cameras, in Market-1501's layout.

Who somebody is lies in several small regions: hair or hat, the pattern on the chest, trousers, shoes, a bag.
The large colours come from a small wardrobe that many share, so that no single region tells all. Each camera
has its own light and background; pose, crop and occlusions differ from image to image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from keepaug.data.drawing import (
    blend,
    draw_backgrounds,
    finish_folder,
    named_stream,
    prepare_folder,
    tight_boxes,
    to_uint8,
    uniform,
)

_CHUNK = 128
PARTS: tuple[str, ...] = ("head", "torso", "legs", "shoes", "bag")
"""Parts whose boxes are known."""
PATTERNS: tuple[str, ...] = ("plain", "hoops", "stripe", "checks", "sash", "patch")
"""What is drawn on the chest."""
# Muted colours of large garments, and vivid ones of small things.
_WARDROBE = torch.tensor(
    [
        [0.16, 0.17, 0.21], [0.75, 0.74, 0.72], [0.25, 0.33, 0.52], [0.50, 0.42, 0.33],
        [0.44, 0.47, 0.42], [0.48, 0.22, 0.24], [0.29, 0.42, 0.33], [0.62, 0.55, 0.60],
    ]
)  # fmt: skip
_ACCENTS = torch.tensor(
    [
        [0.88, 0.12, 0.14], [0.95, 0.80, 0.10], [0.10, 0.55, 0.90], [0.10, 0.70, 0.30],
        [0.95, 0.50, 0.05], [0.65, 0.20, 0.75], [0.96, 0.96, 0.96], [0.05, 0.05, 0.06],
    ]
)  # fmt: skip
_SKINS = torch.tensor([[0.94, 0.78, 0.66], [0.78, 0.58, 0.44], [0.50, 0.35, 0.26]])


class People(NamedTuple):
    """What identities wear, a row each: colours (P,3) in [0, 1], choices (P,) int64, build (P,)."""

    skin: Tensor
    hair: Tensor
    hat: Tensor
    torso: Tensor
    chest: Tensor
    pattern: Tensor
    sleeves: Tensor
    legs: Tensor
    short: Tensor
    shoes: Tensor
    bag: Tensor
    bag_kind: Tensor
    build: Tensor

    def take(self, index: Tensor) -> People:
        """The people at these places, with repetitions."""
        return People(*(value[index] for value in self))


class Cameras(NamedTuple):
    """Light and place of each camera: gain and offset (C,3,1,1), background (C,3,2H,2W)."""

    gain: Tensor
    offset: Tensor
    background: Tensor


class ReidImages(NamedTuple):
    """Images (N,3,H,W) uint8, boxes (N,4) of the person, part_boxes (N,5,4) as `PARTS` (0 without one)."""

    images: Tensor
    boxes: Tensor
    part_boxes: Tensor


def make_people(num: int, *, generator: torch.Generator) -> People:
    """Dress `num` identities at random."""

    def pick(palette: Tensor) -> Tensor:
        chosen = palette[torch.randint(len(palette), (num,), generator=generator)]
        return (chosen + uniform((num, 3), -0.04, 0.04, generator)).clamp_(0, 1)

    def choose(number: int) -> Tensor:
        return torch.randint(number, (num,), generator=generator)

    hair = torch.tensor([[0.10, 0.08, 0.07], [0.38, 0.24, 0.13], [0.80, 0.66, 0.36], [0.60, 0.60, 0.60]])
    hat = choose(3) == 0
    return People(
        skin=pick(_SKINS),
        hair=torch.where(hat[:, None], pick(_ACCENTS), pick(hair)),
        hat=hat,
        torso=pick(_WARDROBE),
        chest=pick(_ACCENTS),
        pattern=choose(len(PATTERNS)),
        sleeves=choose(2),
        legs=pick(_WARDROBE),
        short=choose(3) == 0,
        shoes=pick(_ACCENTS),
        bag=pick(_ACCENTS),
        bag_kind=choose(3),
        build=uniform((num,), 0.85, 1.15, generator),
    )


def draw_cameras(num: int, size: tuple[int, int], *, generator: torch.Generator) -> Cameras:
    """Give each of `num` cameras its light and its background."""
    brightness = uniform((num, 1, 1, 1), 0.75, 1.15, generator)
    tint = uniform((num, 3, 1, 1), 0.88, 1.12, generator)
    vivid = draw_backgrounds(num, (2 * size[0], 2 * size[1]), generator=generator)
    # Streets are greyer than clothes; a vivid background would drown them.
    grey = vivid.mean(dim=1, keepdim=True)
    background = 0.15 + 0.6 * (grey + 0.35 * (vivid - grey))
    return Cameras(brightness * tint, uniform((num, 3, 1, 1), -0.05, 0.06, generator), background)


def draw_people(
    people: People,
    cameras: Cameras,
    camera: Tensor,
    *,
    size: tuple[int, int] = (64, 32),
    occluded: float = 0.3,
    noise: float = 0.05,
    crop: Tensor | None = None,
    generator: torch.Generator,
) -> ReidImages:
    """One image of each of `people`.

    Args:
        people: N of them.
        cameras: C cameras.
        camera: (N,) int64 in [0, C), which one sees whom.
        size: (height, width) in pixels.
        occluded: share of the images in which something stands before the person.
        noise: largest standard deviation of the pixel noise, for pixels in [0, 1].
        crop: (N,) magnification and (N,) shift stacked (2,N), for badly cropped people; None for good crops.
        generator: the only source of randomness.

    Returns:
        The images; boxes are of what was drawn within the image, whether or not it is occluded.
    """
    height, width = size
    num = len(camera)
    top = torch.randint(height + 1, (num,), generator=generator)
    left = torch.randint(width + 1, (num,), generator=generator)
    canvas = torch.stack(
        [
            cameras.background[c, :, t : t + height, x : x + width]
            for c, t, x in zip(camera.tolist(), top.tolist(), left.tolist(), strict=True)
        ]
    )
    body = _Body(people, size, crop=crop, generator=generator)
    covered: dict[str, Tensor] = {}
    for part, alpha, colour in body.layers():
        canvas = blend(canvas, alpha, colour)
        solid = alpha > 0.5
        covered[part] = covered[part] | solid if part in covered else solid
    whole = torch.stack(list(covered.values())).any(0)
    part_boxes = torch.stack([tight_boxes(covered[part]) for part in PARTS], dim=1)
    canvas = _occlude(canvas, occluded, generator)
    light = uniform((num, 1, 1, 1), 0.88, 1.12, generator)
    lit = canvas * cameras.gain[camera] * light + cameras.offset[camera]
    return ReidImages(to_uint8(lit, noise, generator), tight_boxes(whole), part_boxes)


class _Body:
    """A standing body in units of its height: across (0 at its axis), down (0 at the crown, 1 below)."""

    def __init__(
        self, people: People, size: tuple[int, int], *, crop: Tensor | None, generator: torch.Generator
    ) -> None:
        num, (height, width) = len(people.build), size

        def draw(low: float, high: float) -> Tensor:
            return uniform((num, 1, 1), low, high, generator)

        self.people = people
        self.length = height * draw(0.82, 0.94)
        crown = height * draw(0.02, 0.07)
        axis = width * (0.5 + draw(-0.08, 0.08))
        if crop is not None:
            self.length = self.length * crop[0].view(-1, 1, 1)
            crown = crown + crop[1].view(-1, 1, 1) * height
        y = torch.arange(height).add(0.5).view(1, height, 1)
        x = torch.arange(width).add(0.5).view(1, 1, width)
        self.v = ((y - crown) / self.length).expand(num, height, width)
        facing = (torch.rand(num, 1, 1, generator=generator) < 0.5).float() * 2 - 1
        lean = draw(-0.06, 0.06)
        self.u = (x - axis) / self.length * facing + lean * (self.v - 0.5)
        self.stride, self.swing = draw(-0.09, 0.09), draw(-0.05, 0.05)
        self.build = people.build.view(-1, 1, 1)

    def _fill(self, distance: Tensor) -> Tensor:
        """Opacity of a shape from its signed distance in units of the body's height."""
        return (0.5 - distance * self.length).clamp(0, 1)

    def _bar(self, u: Tensor | float, v: float, half_width: Tensor | float, half_height: float) -> Tensor:
        return torch.maximum((self.u - u).abs() - half_width, (self.v - v).abs() - half_height)

    def _oval(self, v: float, half_width: float, half_height: float) -> Tensor:
        return ((self.u / half_width) ** 2 + ((self.v - v) / half_height) ** 2).sqrt().sub(1) * half_width

    def _pattern(self) -> Tensor:
        """Distance of the second colour on the chest, by pattern."""
        u, v = self.u, self.v
        choices = torch.stack(
            [
                torch.ones_like(u),
                ((v / 0.11) % 1 - 0.5).abs() * 0.11 - 0.025,
                u.abs() - 0.035,
                torch.where(((u / 0.07).floor() + (v / 0.07).floor()) % 2 == 0, -1.0, 1.0),
                (u + (v - 0.32) * 0.8).abs() - 0.04,
                self._bar(-0.06, 0.26, 0.045, 0.04),
            ]
        )
        return choices[self.people.pattern, torch.arange(len(u))]

    def layers(self) -> list[tuple[str, Tensor, Tensor]]:
        """(part, opacity, colour) from back to front."""
        people, width = self.people, 0.125 * self.build

        def only(where: Tensor, alpha: Tensor) -> Tensor:
            return alpha * where.view(-1, 1, 1)

        found: list[tuple[str, Tensor, Tensor]] = []
        torso = self._fill(self._bar(0.0, 0.325, width, 0.17))
        backpack = self._fill(self._bar(-width, 0.30, 0.07, 0.11))
        found.append(("bag", only(people.bag_kind == 1, backpack), people.bag))
        for side in (-1, 1):
            leg_axis = side * (0.06 + self.stride * (self.v - 0.48).clamp(min=0))
            leg = self._fill(self._bar(leg_axis, 0.70, 0.05 * self.build, 0.23))
            found.append(("legs", leg, people.legs))
            found.append(("legs", only(people.short, leg * (self.v > 0.66)), people.skin))
            shoe = self._fill(self._bar(side * (0.06 + 0.48 * self.stride) + 0.012, 0.955, 0.065, 0.035))
            found.append(("shoes", shoe, people.shoes))
            arm_axis = side * (width + 0.02) + side * self.swing * (self.v - 0.18).clamp(min=0) * 3
            arm = self._fill(self._bar(arm_axis, 0.345, 0.03, 0.165))
            found.append(("torso", arm, people.torso))
            found.append(("torso", only(people.sleeves == 1, arm * (self.v > 0.31)), people.skin))
        found.append(("torso", torso, people.torso))
        found.append(("torso", torso * self._fill(self._pattern()), people.chest))
        strap = torso * self._fill((self.u + (self.v - 0.3) * 0.9 + 0.01).abs() - 0.014)
        pouch = self._fill(self._bar(width + 0.045, 0.54, 0.055, 0.06))
        found.append(("bag", only(people.bag_kind == 2, torch.maximum(strap, pouch)), people.bag))
        head = self._fill(self._oval(0.085, 0.062, 0.085))
        found.append(("head", head, people.skin))
        found.append(("head", head * self._fill(self.v - 0.065), people.hair))
        brim = self._fill(self._bar(0.02, 0.065, 0.085, 0.012))
        found.append(("head", only(people.hat, brim), people.hair))
        return found


def _occlude(canvas: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Something of one colour before some of the people: a post, or a wall from below."""
    num, _, height, width = canvas.shape
    y = torch.arange(height).add(0.5).view(1, height, 1)
    x = torch.arange(width).add(0.5).view(1, 1, width)
    colour = uniform((num, 3), 0.15, 0.85, generator)
    centre, half = uniform((2, num, 1, 1), 0, 1, generator)
    post = (half * 0.06 + 0.06) * width - (x - centre * width).abs()
    wall = y - (1 - 0.12 - 0.23 * half) * height
    kind, drawn = torch.rand(2, num, 1, 1, generator=generator)
    alpha = torch.where(kind < 0.5, post.expand(num, height, width), wall.expand(num, height, width))
    return blend(canvas, (alpha + 0.5).clamp(0, 1) * (drawn < share), colour)


class _Row(NamedTuple):
    """One image to draw."""

    folder: str
    identity: int
    camera: int
    person: int
    bad_crop: bool


def _plan(
    num_train: int, num_test: int, cameras: int, per_camera: int, distractors: int, junk: int
) -> list[_Row]:
    rows = []
    for person in range(num_train + num_test):
        for camera in range(cameras):
            for number in range(per_camera):
                folder = "bounding_box_train"
                if person >= num_train:
                    folder = "bounding_box_test" if number else "query"
                rows.append(_Row(folder, person + 1, camera, person, False))
    strangers = num_train + num_test
    for number in range(distractors):
        rows.append(_Row("bounding_box_test", 0, number % cameras, strangers + number, number % 2 == 0))
    for number in range(junk):
        person = num_train + number % num_test
        rows.append(_Row("bounding_box_test", -1, number % cameras, person, True))
    return rows


def write_reid(
    root: Path | str,
    *,
    num_train_identities: int = 60,
    num_test_identities: int = 30,
    cameras: int = 4,
    images_per_camera: int = 2,
    size: tuple[int, int] = (64, 32),
    distractors: int = 20,
    junk: int = 10,
    occluded: float = 0.3,
    noise: float = 0.05,
    seed: int = 0,
) -> Path:
    """Write `root/{bounding_box_train,query,bounding_box_test}/0001_c1s1_000001_00.jpg` and boxes.

    Training and test identities are disjoint. Of each test identity, every camera's first image is a query
    and the others are in the gallery, beside distractors (identity 0000: strangers, half of them badly
    cropped) and junk (-1: test identities, badly cropped). `boxes.json` holds the person's box and
    `part_boxes.json` the boxes of the parts (`PARTS`) by path: top, left, height, width in pixels. A folder
    that holds the very dataset is left as it is.

    Args:
        root: the folder.
        num_train_identities: at least 1.
        num_test_identities: at least 1.
        cameras: 2 to 9 (a name holds one digit).
        images_per_camera: images of each identity in each camera, at least 2.
        size: (height, width) in pixels, at least (32, 16).
        distractors: images of identity 0000.
        junk: images of identity -1.
        occluded: share of images with something before the person, in [0, 1].
        noise: largest standard deviation of the pixel noise, for pixels in [0, 1].
        seed: of everything drawn.

    Returns:
        The root.

    Raises:
        ValueError: when the folder holds something else, or an argument is out of range.
    """
    root = Path(root)
    _check(num_train_identities, num_test_identities, cameras, images_per_camera, size, distractors, junk)
    if not (0 <= occluded <= 1 and noise >= 0):
        raise ValueError(f"occluded must be in [0, 1] and noise >= 0, got {occluded} and {noise}")
    identity: dict[str, object] = {
        "name": "synthetic-reid",
        "synthetic": True,
        "identities": {"train": num_train_identities, "test": num_test_identities},
        "settings": {
            "cameras": cameras,
            "images_per_camera": images_per_camera,
            "size": list(size),
            "distractors": distractors,
            "junk": junk,
            "occluded": occluded,
            "noise": noise,
            "seed": seed,
        },
    }
    if (partial := prepare_folder(root, identity)) is None:
        return root
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (partial / folder).mkdir()
    rows = _plan(num_train_identities, num_test_identities, cameras, images_per_camera, distractors, junk)
    people = make_people(
        num_train_identities + num_test_identities + distractors,
        generator=named_stream(seed, "reid", "people"),
    )
    sites = draw_cameras(cameras, size, generator=named_stream(seed, "reid", "cameras"))
    generator = named_stream(seed, "reid", "images")
    boxes: dict[str, list[int]] = {}
    part_boxes: dict[str, dict[str, list[int]]] = {}
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        magnify, shift = uniform((2, len(part)), 0, 1, generator)
        bad = torch.tensor([row.bad_crop for row in part])
        drawn = draw_people(
            people.take(torch.tensor([row.person for row in part])),
            sites,
            torch.tensor([row.camera for row in part]),
            size=size,
            occluded=occluded,
            noise=noise,
            crop=torch.stack([torch.where(bad, 1.3 + 0.6 * magnify, 1), torch.where(bad, -shift, 0)]),
            generator=generator,
        )
        pixels = drawn.images.permute(0, 2, 3, 1).contiguous().numpy()
        for offset, row in enumerate(part):
            stem = "-1" if row.identity < 0 else f"{row.identity:04d}"
            path = f"{row.folder}/{stem}_c{row.camera + 1}s1_{start + offset + 1:06d}_00.jpg"
            Image.fromarray(pixels[offset]).save(partial / path, quality=95)
            boxes[path] = drawn.boxes[offset].tolist()
            known = zip(PARTS, drawn.part_boxes[offset].tolist(), strict=True)
            part_boxes[path] = {name: box for name, box in known if box[2]}
    (partial / "boxes.json").write_text(json.dumps(boxes) + "\n")
    (partial / "part_boxes.json").write_text(json.dumps(part_boxes) + "\n")
    finish_folder(partial, root, identity)
    return root


def _check(
    train: int, test: int, cameras: int, per_camera: int, size: tuple[int, int], distractors: int, junk: int
) -> None:
    if train < 1 or test < 1 or train + test > 9999:
        raise ValueError(
            f"there are {train} training and {test} test identities; give at least 1 each, 9999 together at "
            f"most"
        )
    if not 2 <= cameras <= 9:
        raise ValueError(f"cameras is {cameras}; a match needs 2, and a file name holds 1 digit: 2 to 9")
    if per_camera < 2:
        raise ValueError(
            f"images_per_camera is {per_camera}; the first is a query, so that the gallery needs a second: "
            f"at least 2"
        )
    if size[0] < 32 or size[1] < 16:
        raise ValueError(f"size is {size} (height, width); people can be told apart from (32, 16) on")
    if distractors < 0 or junk < 0:
        raise ValueError(f"distractors and junk are counts, got {distractors} and {junk}")
