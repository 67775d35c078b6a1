"""Maps that are kept: carried as the slow way would, exact where fresh, and part of the checkpoint."""

from __future__ import annotations

import pytest
import torch

from keepaug.data.batch_transforms import (
    CropFlip,
    crop_flip,
    draw_crop_flip,
    random_crop_flip,
    undo_crop_flip,
)
from keepaug.data.saliency_cache import SaliencyCache, carried_or_fresh

PADDING, HEIGHT, WIDTH = 2, 6, 5


def slowly(image: torch.Tensor, top: int, left: int, mirrored: bool, padding: int) -> torch.Tensor:
    """Pixel by pixel: pad with zeros, cut, mirror."""
    height, width = image.shape
    out = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            source = (row + top - padding, (width - 1 - column if mirrored else column) + left - padding)
            if 0 <= source[0] < height and 0 <= source[1] < width:
                out[row, column] = image[source]
    return out


def seeds_of(num: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2**62, (num,), generator=torch.Generator().manual_seed(seed))


def straight(num: int) -> CropFlip:
    middle = torch.full((num,), PADDING)
    return CropFlip(middle, middle, torch.zeros(num, dtype=torch.bool), PADDING)


@pytest.fixture
def maps(generator: torch.Generator) -> torch.Tensor:
    return torch.rand(40, HEIGHT, WIDTH, generator=generator) ** 4


def test_the_same_seeds_move_the_map_as_the_image(maps: torch.Tensor) -> None:
    seeds = seeds_of(40)
    place = draw_crop_flip(seeds, padding=PADDING)
    assert place.mirrored.any()
    assert not place.mirrored.all()
    moved = random_crop_flip(maps[:, None], seeds, padding=PADDING)[:, 0]
    for index in range(40):
        wanted = slowly(maps[index], *(part[index].item() for part in place[:3]), PADDING)
        assert torch.equal(moved[index], wanted)


def test_undo_puts_back_what_was_shown_and_nothing_else(maps: torch.Tensor) -> None:
    place = draw_crop_flip(seeds_of(40), padding=PADDING)
    back, shown = undo_crop_flip(crop_flip(maps[:, None], place), place)
    assert torch.equal(back[:, 0], maps * shown)
    # counted the slow way: a crop shifted by s rows hides s rows
    hidden = (place.top - PADDING).abs() * WIDTH + (place.left - PADDING).abs() * HEIGHT
    hidden -= (place.top - PADDING).abs() * (place.left - PADDING).abs()
    assert torch.equal((~shown).sum(dim=(1, 2)), hidden)


@pytest.mark.parametrize(("dtype", "error"), [("uint8", 0.5 / 255), ("float16", 2**-11)])
def test_carried_is_cropped_and_flipped_the_slow_way(maps: torch.Tensor, dtype: str, error: float) -> None:
    cache = SaliencyCache(50, (HEIGHT, WIDTH), dtype=dtype)
    indices = torch.randperm(50, generator=torch.Generator().manual_seed(3))[:40]
    cache.update(indices, maps, straight(40), epoch=0)
    place = draw_crop_flip(seeds_of(40, 1), padding=PADDING)
    found = cache.lookup(indices, place)
    for index in range(40):
        wanted = slowly(maps[index], *(part[index].item() for part in place[:3]), PADDING)
        # half a step of the square root, as a share of the map's maximum
        torch.testing.assert_close(
            (found[index] / maps[index].max()).sqrt(), (wanted / maps[index].max()).sqrt(), rtol=0, atol=error
        )
    assert cache.maps.nbytes == 50 * HEIGHT * WIDTH * (1 if dtype == "uint8" else 2)


def test_what_a_crop_hides_keeps_its_earlier_value_or_gets_the_mean(maps: torch.Tensor) -> None:
    cache = SaliencyCache(2, (HEIGHT, WIDTH), dtype="float16")
    corner = CropFlip(torch.tensor([0]), torch.tensor([PADDING]), torch.tensor([False]), PADDING)
    seen = crop_flip(maps[:1, None], corner)[:, 0]  # its lowest two rows hide
    cache.update(torch.tensor([0]), seen, corner, epoch=0)
    whole = cache.lookup(torch.tensor([0]), straight(1))[0]
    torch.testing.assert_close(whole[:-PADDING], maps[0, :-PADDING], rtol=2e-3, atol=1e-6)
    mean = maps[0, :-PADDING].mean()
    torch.testing.assert_close(whole[-PADDING:], mean.expand(PADDING, WIDTH), rtol=2e-3, atol=1e-6)
    cache.update(torch.tensor([0]), maps[1:2], straight(1), epoch=1)
    cache.update(torch.tensor([0]), 2 * seen, corner, epoch=2)
    whole = cache.lookup(torch.tensor([0]), straight(1))[0]
    torch.testing.assert_close(whole[:-PADDING], 2 * maps[0, :-PADDING], rtol=4e-3, atol=1e-6)
    torch.testing.assert_close(whole[-PADDING:], maps[1, -PADDING:], rtol=4e-3, atol=1e-6)


def test_a_zero_map_stays_zero() -> None:
    cache = SaliencyCache(1, (HEIGHT, WIDTH))
    cache.update(torch.tensor([0]), torch.zeros(1, HEIGHT, WIDTH), straight(1), epoch=0)
    assert torch.equal(cache.lookup(torch.tensor([0]), straight(1)), torch.zeros(1, HEIGHT, WIDTH))


def test_refreshed_in_every_epoch_is_fresh_and_in_every_third_carried(maps: torch.Tensor) -> None:
    indices, calls = torch.arange(40), []

    def run(
        cache: SaliencyCache, epoch: int, every: int, batch: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        fresh = maps[batch] * (1 + epoch)

        def compute(rows: torch.Tensor) -> torch.Tensor:
            calls.append(len(rows))
            return fresh[rows]

        place = draw_crop_flip(seeds_of(len(batch), epoch), padding=PADDING)
        return carried_or_fresh(cache, batch, place, compute, epoch=epoch, every=every), fresh

    each = SaliencyCache(40, (HEIGHT, WIDTH))
    for epoch in range(3):
        found, wanted = run(each, epoch, 1, indices)
        assert torch.equal(found, wanted)
    third = SaliencyCache(40, (HEIGHT, WIDTH))
    calls.clear()
    for epoch in range(7):
        run(third, epoch, 3, indices)
    assert calls == [40, 40, 40]  # epochs 0, 3 and 6
    calls.clear()
    left_out = SaliencyCache(40, (HEIGHT, WIDTH))
    run(left_out, 0, 3, indices[:30])
    found, fresh = run(left_out, 1, 3, indices)
    assert calls == [30, 10]  # an incomplete last batch is made up for in the next epoch
    assert torch.equal(found[30:], fresh[30:])
    assert not torch.equal(found[:30], fresh[:30])


def test_state_goes_through_a_checkpoint(maps: torch.Tensor) -> None:
    cache, other = SaliencyCache(40, (HEIGHT, WIDTH)), SaliencyCache(40, (HEIGHT, WIDTH))
    cache.update(torch.arange(40), maps, straight(40), epoch=4)
    other.load_state_dict(cache.state_dict())
    place = draw_crop_flip(seeds_of(40), padding=PADDING)
    assert torch.equal(other.lookup(torch.arange(40), place), cache.lookup(torch.arange(40), place))
    assert not other.stale(torch.arange(40), epoch=5, every=4).any()
    with pytest.raises(ValueError, match="cannot be resumed on other data"):
        SaliencyCache(41, (HEIGHT, WIDTH)).load_state_dict(cache.state_dict())


def test_errors_say_what_to_do(maps: torch.Tensor) -> None:
    cache = SaliencyCache(40, (HEIGHT, WIDTH))
    with pytest.raises(ValueError, match="40 images have no map yet"):
        cache.lookup(torch.arange(40), straight(40))
    with pytest.raises(ValueError, match="mapped back to the image's size"):
        cache.update(torch.arange(40), maps[:, ::2, ::2], straight(40), epoch=0)
    with pytest.raises(ValueError, match="uint8, float16"):
        SaliencyCache(1, (2, 2), dtype="int4")


def test_a_map_carried_into_a_reflected_border_shows_what_the_border_shows(maps: torch.Tensor) -> None:
    cache = SaliencyCache(40, (HEIGHT, WIDTH), dtype="float16")
    rows = torch.arange(40)
    cache.update(rows, maps, straight(40), epoch=0)
    place = draw_crop_flip(seeds_of(40), padding=PADDING, border="reflect")
    moved = cache.lookup(rows, place)
    torch.testing.assert_close(moved, crop_flip(maps[:, None], place)[:, 0], rtol=0, atol=2e-3)
    assert (moved > 0).float().mean() > (cache.lookup(rows, place._replace(border="zero")) > 0).float().mean()


def test_a_coloured_border_has_no_saliency(maps: torch.Tensor) -> None:
    cache = SaliencyCache(40, (HEIGHT, WIDTH))
    rows = torch.arange(40)
    cache.update(rows, maps, straight(40), epoch=0)
    place = draw_crop_flip(seeds_of(40), padding=PADDING, border=(125, 123, 114))
    assert torch.equal(cache.lookup(rows, place), cache.lookup(rows, place._replace(border="zero")))
