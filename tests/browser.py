"""A headless Chromium for the tests of pages; they are skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_QUIET = ("sandbox", "first-run")
_OFF = ("gpu", "quic", "background-networking", "component-update", "sync")

# Contrast of each text with the first background behind it, by WCAG 2; and sizes of the letters.
TEXTS = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("script")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(style.color), light(behind(element))].sort((x, y) => y - x);
    const frame = element.ownerSVGElement, scale = frame ? frame.getScreenCTM().a : 1;
    found.push({ text: element.textContent.trim().slice(0, 40), contrast: (a + 0.05) / (b + 0.05),
                 size: parseFloat(style.fontSize) * scale });
  }
  return found;
}"""


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser, or a skip that says what is missing."""
    library = pytest.importorskip("playwright.sync_api", reason="browser: playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    flags = [*(f"--no-{name}" for name in _QUIET), *(f"--disable-{name}" for name in _OFF)]
    with library.sync_playwright() as running:
        if path is None and not Path(running.chromium.executable_path).is_file():
            pytest.skip("browser: no Chromium (playwright install chromium)")
        browser = running.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, *, width: int = 1280, scheme: str = "light") -> Iterator[Any]:
    """A page as a reader sees it; fails where it asks for anything or complains."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert complaints == []


def check_readable(page: Any, width: int) -> None:
    """Nothing is wider than the screen, nothing small or faint."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    texts = page.evaluate(TEXTS)
    assert len(texts) > 20
    assert [one for one in texts if one["size"] < 12] == []
    assert [one for one in texts if one["contrast"] < 4.5] == []
