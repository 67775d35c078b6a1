"""Scores of all candidate regions, and exact sampling below or above the tau-quantile (Eq. 1, the Remark)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from keepaug.choices import PLACEMENTS
from keepaug.transfer import to_device

Size = int | tuple[int, int] | Tensor
_MISS = 1e-9  # chance that an image is still undecided after the fixed number of proposals
_MAX_ROUNDS = 64
_COMPARISONS = 2**27  # at once on a GPU: a byte each


class Regions(NamedTuple):
    """One box per image, in pixels; a height or width of 0 is no box.

    Attributes:
        top: (N,) int64, first row.
        left: (N,) int64, first column.
        height: (N,) int64.
        width: (N,) int64.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor

    def to(self, device: torch.device | str) -> Regions:
        """The same boxes on another device."""
        return Regions(*(to_device(part, device) for part in self))

    @property
    def area(self) -> Tensor:
        """(N,) int64 number of pixels."""
        return self.height * self.width

    def where(self, keep: Tensor) -> Regions:
        """The boxes where `keep` ((N,) bool) holds, and no box (height 0) elsewhere."""
        return self._replace(height=self.height * to_device(keep, self.height.device))


def given(generator: torch.Generator | None) -> dict[str, Any]:
    """The keyword of torch's random functions; with None a compiled batch of another size fails."""
    return {} if generator is None else {"generator": generator}


def _at_once(device: torch.device) -> bool:
    """Whether values must not be read: on a GPU that would stall the queue, and a compiler has none."""
    return device.type != "cpu" or torch.compiler.is_compiling()


def _require(condition: Tensor, message: str) -> None:
    """Raise ValueError; an assertion on the device where values must not be read."""
    if _at_once(condition.device):
        torch._assert_async(condition, message)
    elif not bool(condition):
        raise ValueError(message)


def check_placement(placement: str) -> None:
    """Refuse an unknown placement."""
    if placement not in PLACEMENTS:
        raise ValueError(f"placement must be one of {', '.join(PLACEMENTS)}, got {placement!r}")


def check_tau(tau: float) -> None:
    """Refuse what is no quantile."""
    if not 0 <= tau <= 1:
        raise ValueError(f"tau is a quantile and must be in [0, 1], got {tau}")


def _check_saliency(saliency: Tensor) -> None:
    if saliency.ndim != 3:
        raise ValueError(f"saliency must have the shape (N, H, W), got {tuple(saliency.shape)}")
    if not saliency.is_floating_point():
        raise TypeError(f"saliency must be floating point, got {saliency.dtype}")
    if 0 in saliency.shape[1:]:
        raise ValueError(f"saliency must have pixels, got the shape {tuple(saliency.shape)}")
    if saliency.numel():
        _require(
            torch.isfinite(saliency).all() & (saliency >= 0).all(),
            "saliency must be finite and not negative, got NaN, infinite or negative values; look for NaN in "
            "the network's weights or overflow in float16",
        )


def _sizes(size: Size, num: int, image_size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Height and width per image, checked against the image."""
    height, width = image_size
    if isinstance(size, Tensor):
        if size.shape != (num, 2) or size.is_floating_point() or size.dtype == torch.bool:
            raise ValueError(
                f"size per image must be an integer tensor of the shape ({num}, 2), (height, width) per row; "
                f"got {size.dtype} {tuple(size.shape)}"
            )
        size = size.to(torch.int64)
        if num:
            limit = torch.tensor([height, width], device=size.device)
            _require(
                ((size >= 1) & (size <= limit)).all(),
                f"every region must be at least 1 x 1 and at most as large as the image ({height} x "
                f"{width}); clamp the sizes first",
            )
        moved = to_device(size, device)
        return moved[:, 0], moved[:, 1]
    rows, columns = check_size(size)
    if not (rows <= height and columns <= width):
        raise ValueError(
            f"the region of {rows} x {columns} must be at least 1 x 1 and at most as large as the image "
            f"({height} x {width})"
        )
    return torch.full((num,), rows, device=device), torch.full((num,), columns, device=device)


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a box in pixels.

    Raises:
        ValueError: no whole numbers of at least 1.
    """
    pair = (size, size) if isinstance(size, int | float) else tuple(size)
    if len(pair) != 2 or not all(isinstance(part, int) and not isinstance(part, bool) for part in pair):
        raise ValueError(f"size must be a whole number, (height, width), or a (N, 2) tensor; got {size!r}")
    if min(pair) < 1:
        raise ValueError(f"a region must be at least 1 x 1 pixels, got {size!r}; p=0 cuts nothing")
    return pair[0], pair[1]


def _grid(
    size: Size, num: int, image_size: tuple[int, int], placement: str, device: torch.device
) -> tuple[int, int, Tensor, Tensor, Tensor, Tensor]:
    """Rows and columns of the grid of candidates, those valid per image, and the box size per image."""
    height, width = image_size
    box_height, box_width = _sizes(size, num, image_size, device)
    if placement == "clipped":
        num_rows, num_columns = torch.full_like(box_height, height), torch.full_like(box_width, width)
        return height, width, num_rows, num_columns, box_height, box_width
    num_rows, num_columns = height - box_height + 1, width - box_width + 1
    if isinstance(size, Tensor):  # the largest grid, so that nothing has to be read back from a GPU
        return height, width, num_rows, num_columns, box_height, box_width
    one_height, one_width = check_size(size)
    return height - one_height + 1, width - one_width + 1, num_rows, num_columns, box_height, box_width


def _edges(position: Tensor, length: Tensor, limit: int, placement: str) -> tuple[Tensor, Tensor]:
    """First and one-past-last row (column) of the candidate at a grid position."""
    if placement == "inside":
        return position, (position + length).clamp(max=limit)  # sizes per image: past their own grid
    half = length // 2
    return (position - half).clamp(min=0), (position + half).clamp(max=limit)


def _integral(saliency: Tensor) -> tuple[Tensor, Tensor]:
    """(N, H+1, W+1) integral image in whole units of a power of two per image, and that unit (N,).

    Sums of whole numbers below 2^53 are exact in float64, so equal regions get equal scores whatever the
    order of the additions: ties, a constant map above all, are really ties. The unit is at most 2^-36 of the
    largest value at 224 x 224, far below float32's own precision.
    """
    height, width = saliency.shape[1:]
    bits = 52 - math.ceil(math.log2(height * width)) if height * width > 1 else 52
    values = saliency.to(torch.float64)
    _, exponent = torch.frexp(values.flatten(1).amax(dim=1))
    unit = torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent - bits)
    whole = (values / unit[:, None, None]).round_()
    return F.pad(whole.cumsum_(dim=1).cumsum_(dim=2), (1, 0, 1, 0)), unit


def _scores(
    saliency: Tensor, size: Size, placement: str
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Whole-number scores (N, rows, columns), unit (N,), per image (valid rows, columns, height, width)."""
    num, height, width = saliency.shape
    device = saliency.device
    grid = _grid(size, num, (height, width), placement, device)
    rows, columns, num_rows, num_columns, box_height, box_width = grid
    limits = (num_rows, num_columns, box_height, box_width)
    if num == 0:
        empty = torch.zeros(0, rows, columns, dtype=torch.float64, device=device)
        return empty, empty.new_zeros(0), limits
    table, unit = _integral(saliency)
    if placement == "inside" and not isinstance(size, Tensor):
        h, w = check_size(size)
        bands = table[:, h:] - table[:, :-h]
        return bands[:, :, w:] - bands[:, :, :-w], unit, limits
    top, bottom = _edges(torch.arange(rows, device=device), box_height[:, None], height, placement)
    left, right = _edges(torch.arange(columns, device=device), box_width[:, None], width, placement)

    def take_rows(index: Tensor) -> Tensor:
        return table.gather(1, index.expand(num, rows)[:, :, None].expand(-1, -1, width + 1))

    bands = take_rows(bottom) - take_rows(top)

    def take_columns(index: Tensor) -> Tensor:
        return bands.gather(2, index.expand(num, columns)[:, None, :].expand(-1, rows, -1))

    return take_columns(right) - take_columns(left), unit, limits


def _valid(rows: int, columns: int, num_rows: Tensor, num_columns: Tensor) -> Tensor:
    device = num_rows.device
    row_ok = torch.arange(rows, device=device) < num_rows[:, None]
    column_ok = torch.arange(columns, device=device) < num_columns[:, None]
    return row_ok[:, :, None] & column_ok[:, None, :]


def region_scores(saliency: Tensor, size: Size, *, placement: str = "inside") -> tuple[Tensor, Tensor]:
    """Importance of every candidate region: the sum of its saliency (Eq. 1), by an integral image.

    Args:
        saliency: (N, H, W) floating, finite, >= 0.
        size: box size: one number, (height, width), or an integer tensor (N, 2) with a size per image.
        placement: "inside": all boxes within the image, indexed by their top left corner; "clipped": the
            centre on any pixel, the box `[centre - size // 2, centre + size // 2)` clipped at the border, as
            in the released code of Cutout and CutMix (an odd size covers one row and column less), by the
            centre.

    Returns:
        scores: float64; (N, H-h+1, W-w+1) for one size and "inside", otherwise (N, H, W).
        valid: bool of that shape; False where the box does not fit (only with sizes per image).

    Raises:
        ValueError: wrong shape, NaN, infinite or negative saliency, a box larger than the image, unknown
            placement, or "matched", whose candidates depend on a draw.
        TypeError: integer saliency.
    """
    check_placement(placement)
    if placement == "matched":
        raise ValueError(
            "placement 'matched' has no candidates before a plain draw gives their size; score regions of "
            "that size with placement='inside'"
        )
    _check_saliency(saliency)
    scores, unit, (num_rows, num_columns, _, _) = _scores(saliency, size, placement)
    valid = _valid(scores.shape[1], scores.shape[2], num_rows, num_columns)
    return scores * unit[:, None, None], valid


def _draw(
    low_level_shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Uniform float64 in [0, 1) from the generator, on its own device, moved to `device`."""
    source = generator.device if generator is not None else device
    drawn = torch.rand(low_level_shape, device=source, dtype=torch.float64, **given(generator))
    return to_device(drawn, device)


def _index(uniform: Tensor, count: Tensor) -> Tensor:
    """Uniform whole numbers in [0, count)."""
    return torch.minimum((uniform * count).to(torch.int64), count - 1)


def _to_regions(
    row: Tensor, column: Tensor, box: tuple[Tensor, Tensor], image_size: tuple[int, int], placement: str
) -> Regions:
    top, bottom = _edges(row, box[0], image_size[0], placement)
    left, right = _edges(column, box[1], image_size[1], placement)
    return Regions(top, left, bottom - top, right - left)


def random_regions(
    num: int,
    image_size: tuple[int, int],
    size: Size,
    *,
    placement: str = "inside",
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Regions:
    """Uniform over all candidate regions: what the plain augmentations cut.

    Args:
        num: number of images.
        image_size: (H, W).
        size: as in `region_scores`.
        placement: as in `region_scores`; "matched" is "clipped" here.
        generator: source of randomness, of any device; None is torch's global one.
        device: where the boxes are wanted.

    Raises:
        ValueError: a box larger than the image, unknown placement.
    """
    check_placement(placement)
    if placement == "matched":
        placement = "clipped"
    device = torch.device(device)
    _, _, num_rows, num_columns, box_height, box_width = _grid(size, num, image_size, placement, device)
    uniform = _draw((2, num), generator, device)
    row, column = _index(uniform[0], num_rows), _index(uniform[1], num_columns)
    return _to_regions(row, column, (box_height, box_width), image_size, placement)


def sample_regions(
    saliency: Tensor,
    size: Size,
    *,
    tau: float = 0.6,
    prefer: str = "low",
    placement: str = "inside",
    generator: torch.Generator | None = None,
) -> Regions:
    """One region per image, uniform over those below (or above) the tau-quantile of its image's candidates.

    With n candidates, "low" allows those with fewer than max(1, floor(tau n)) candidates scoring strictly
    lower, "high" those with fewer than max(1, n - floor(tau n)) scoring strictly higher: the selective-cut
    and selective-paste of Algorithm 1 with the quantile threshold of the Remark. Ties at the threshold are
    all allowed: a constant map allows everything, and the set is never empty (tau 0 and "low": the lowest).

    Propose one candidate per image, accept by counting ranks, redraw the rest: exact, without a sort. On a
    GPU a fixed number is proposed at once and nothing is read back; an image with none that is allowed
    (chance below 1e-9) gets its extreme region, which always is.

    Args:
        saliency: (N, H, W) floating, finite, >= 0.
        size: one number, (height, width), or an integer tensor (N, 2), in pixels.
        tau: quantile in [0, 1]; the paper's is 0.6.
        prefer: "low" for regions to cut, "high" for regions to paste.
        placement: as in `region_scores`, or "matched": `random_regions` of the same generator and "clipped"
            gives each image the visible height and width of its box, and the region is chosen among all those
            of that size within the image. Plain and saliency-aware boxes then have equal sizes, draw by draw.
        generator: source of randomness, of any device; None is torch's global one.

    Returns:
        Regions on the device of `saliency`.

    Raises:
        ValueError: wrong shape, NaN, infinite or negative saliency, tau outside [0, 1], a box larger than the
            image, unknown prefer or placement.
        TypeError: integer saliency.
    """
    check_placement(placement)
    _check_saliency(saliency)
    check_tau(tau)
    if prefer not in ("low", "high"):
        raise ValueError(f"prefer must be 'low' or 'high', got {prefer!r}")
    image_size = (saliency.shape[1], saliency.shape[2])
    if placement == "matched":
        plain = random_regions(
            len(saliency), image_size, size, placement="clipped", generator=generator, device=saliency.device
        )
        visible = torch.stack([plain.height, plain.width], dim=1).clamp(min=1)
        placed = sample_regions(saliency, visible, tau=tau, prefer=prefer, generator=generator)
        return placed._replace(height=plain.height, width=plain.width)
    scores, _, (num_rows, num_columns, *box) = _scores(saliency, size, placement)
    rows, columns = scores.shape[1:]
    if prefer == "high":
        scores = scores.neg_()
    if isinstance(size, Tensor) and placement == "inside":
        scores = scores.masked_fill_(~_valid(rows, columns, num_rows, num_columns), math.inf)
    candidates = num_rows * num_columns
    below = (tau * candidates.to(torch.float64) + 1e-9).floor().to(torch.int64)
    allowed = (below if prefer == "low" else candidates - below).clamp(min=1)
    if isinstance(size, Tensor) and placement == "inside":
        share = tau / 2 if prefer == "low" else 1 - tau  # a lower bound: floor(x) >= x / 2 from 1 on
    else:
        below_one = math.floor(tau * rows * columns + 1e-9)
        share = max(1, below_one if prefer == "low" else rows * columns - below_one) / (rows * columns)
    chosen = _choose(scores.flatten(1), (num_rows, num_columns), columns, allowed, share, generator)
    return _to_regions(chosen // columns, chosen % columns, (box[0], box[1]), image_size, placement)


def _choose(
    scores: Tensor,
    grid: tuple[Tensor, Tensor],
    columns: int,
    allowed: Tensor,
    share: float,
    generator: torch.Generator | None,
) -> Tensor:
    """(N,) flat positions, uniform among candidates of a rank below `allowed`, at least `share` of all."""
    rounds = math.ceil(math.log(_MISS) / math.log1p(-share)) if 0 < share < 1 else (1 if share == 1 else 0)
    if not 0 < rounds <= _MAX_ROUNDS:
        return _choose_sorted(scores, allowed, generator)
    choose = _choose_at_once if _at_once(scores.device) else _choose_in_turns
    return choose(scores, grid, columns, allowed, rounds, generator)


def _propose(
    num_rows: Tensor, num_columns: Tensor, columns: int, generator: torch.Generator | None
) -> Tensor:
    """Flat positions of uniformly drawn candidates, one for each of the given numbers of rows and columns."""
    uniform = _draw((2, *num_rows.shape), generator, num_rows.device)
    return _index(uniform[0], num_rows) * columns + _index(uniform[1], num_columns)


def _choose_in_turns(
    scores: Tensor,
    grid: tuple[Tensor, Tensor],
    columns: int,
    allowed: Tensor,
    rounds: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Propose for all images, then again for those whose proposal ranks too high."""
    todo = torch.arange(len(scores), device=scores.device)
    chosen = torch.zeros_like(todo)
    for _ in range(rounds):
        position = _propose(grid[0][todo], grid[1][todo], columns, generator)
        some = scores[todo] if len(todo) < len(scores) else scores
        take = (some < some.gather(1, position[:, None])).sum(dim=1) < allowed[todo]
        chosen[todo[take]] = position[take]
        todo = todo[~take]
        if not len(todo):
            return chosen
    chosen[todo] = _choose_sorted(scores[todo], allowed[todo], generator)
    return chosen


def _choose_at_once(
    scores: Tensor,
    grid: tuple[Tensor, Tensor],
    columns: int,
    allowed: Tensor,
    rounds: int,
    generator: torch.Generator | None,
) -> Tensor:
    """All proposals at once; each image takes its first that is allowed: few launches, nothing read back."""
    num_rows, num_columns = (count[:, None].expand(-1, rounds) for count in grid)
    position = _propose(num_rows, num_columns, columns, generator)
    proposed = scores.gather(1, position)
    together = max(1, _COMPARISONS // max(1, scores.numel()))
    parts = [proposed[:, start : start + together] for start in range(0, rounds, together)]
    ranks = [(scores[:, None] < part[:, :, None]).sum(dim=2) for part in parts]
    accepted = torch.cat(ranks, dim=1) < allowed[:, None]
    first = accepted.to(torch.uint8).argmax(dim=1, keepdim=True)
    chosen = position.gather(1, first)[:, 0]
    return torch.where(accepted.any(dim=1), chosen, scores.argmin(dim=1))


def _choose_sorted(scores: Tensor, allowed: Tensor, generator: torch.Generator | None) -> Tensor:
    """The same choice by sorting: for small allowed shares, where proposals would rarely be accepted."""
    if not len(scores):
        return allowed.clone()
    ordered, order = scores.sort(dim=1)
    threshold = ordered.gather(1, (allowed - 1)[:, None])
    count = (ordered <= threshold).sum(dim=1)  # ties at the threshold belong to the set
    pick = _index(_draw((len(scores),), generator, scores.device), count)
    return order.gather(1, pick[:, None])[:, 0]


def region_mask(regions: Regions, image_size: tuple[int, int]) -> Tensor:
    """M(S): (N, H, W) bool, True inside each image's box."""
    height, width = image_size
    device = regions.top.device

    def inside(length: int, start: Tensor, extent: Tensor) -> Tensor:
        place = torch.arange(length, device=device)
        return (place >= start[:, None]) & (place < (start + extent)[:, None])

    rows = inside(height, regions.top, regions.height)
    columns = inside(width, regions.left, regions.width)
    return rows[:, :, None] & columns[:, None, :]
