"""The audit's page in a browser: on phone and desktop, in light and dark, by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import check_readable, chromium, opened
from torchvision.models import resnet18

from keepaug.audit import audit

BROKEN_WORDS = """() => [...document.querySelectorAll("tbody th")].flatMap((head) => {
  const node = head.firstChild, text = node.textContent;
  return [...text.matchAll(/\\S+/g)].filter((word) => {
    const range = document.createRange();
    range.setStart(node, word.index);
    range.setEnd(node, word.index + word[0].length);
    return range.getClientRects().length > 1;
  }).map((word) => word[0]);
})"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (12, 3, 32, 32), generator=generator, dtype=torch.uint8)
    output = tmp_path_factory.mktemp("audit")
    audit(
        resnet18(num_classes=3), (images, torch.arange(12) % 3), ["cutout:16", "cutmix", "rand_augment:2,9"],
        mean=(0.5,) * 3, std=(0.25,) * 3, output=output, sweep=4, quiet=True,
    )  # fmt: skip
    return output / "audit.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with chromium() as one:
        yield one


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_readable_on_phone_and_desktop_in_light_and_dark(
    browser, page: Path, width: int, scheme: str
) -> None:
    with opened(browser, page, width=width, scheme=scheme) as shown:
        check_readable(shown, width)
        assert shown.evaluate(
            "document.images.length > 5 && [...document.images].every((one) => one.naturalWidth > 0)"
        )


def test_figures_are_sorted_by_keyboard(browser, page: Path) -> None:
    with opened(browser, page) as shown:
        table = shown.locator("table.sortable").first
        column = table.locator("thead th").all_inner_texts().index("importance lost")
        table.get_by_role("button", name="importance lost").press("Enter")
        cells = table.locator(f"tbody tr > :nth-child({column + 1})").all_inner_texts()
        values = [float(cell.split()[0]) for cell in cells]
        assert len(values) == 6
        assert values == sorted(values)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_of_the_figures_and_the_code_is_cut(browser, page: Path, width: int) -> None:
    """Whole on the screen, without scrolling sideways."""
    with opened(browser, page, width=width) as shown:
        cut = shown.evaluate(
            "[...document.querySelectorAll('pre, .scroll:has(.cards)')]"
            ".filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.textContent.trim())"
        )
        assert cut == []


def test_plain_and_keep_are_told_apart_without_colour(browser, page: Path) -> None:
    """Lines by dashes and hollow circles, with a legend beside them; bars by their order, which is said."""
    with opened(browser, page) as shown:
        looks = shown.evaluate(
            "['polyline.plain', 'polyline.keep', 'circle.plain', 'circle.keep'].map((one) => {"
            " const style = getComputedStyle(document.querySelector('.charts ' + one));"
            " return one[0] === 'p' ? style.strokeDasharray : style.fill; })"
        )
        assert looks[0] != looks[1]
        assert looks[2] == shown.evaluate("getComputedStyle(document.body).backgroundColor")  # hollow
        assert looks[2] != looks[3]
        assert shown.locator(".key.lines").inner_text() == "plainKeep"
        assert "plain, above" in shown.locator(".key").first.inner_text()


def test_no_name_is_broken_inside_of_a_word(browser, page: Path) -> None:
    """Where a table is wider than the screen and its columns are as narrow as they go."""
    with opened(browser, page, width=700) as shown:
        assert shown.evaluate(BROKEN_WORDS) == []
