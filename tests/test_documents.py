"""What README and docs say: code runs, commands and settings are taken, what is named and linked is there."""

from __future__ import annotations

import argparse
import doctest
import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional as F
from torchvision.models import resnet18
from torchvision.transforms import v2

import keepaug
from keepaug.__main__ import commands
from keepaug.commands import known

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def _prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def _quoted(page: Path) -> list[str]:
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", _prose(page))]


def _commands(page: Path) -> Iterator[tuple[list[str], bool]]:
    """The words of each command, and whether it is one to copy, of a block, or a part quoted in the text."""
    lines = [line for block in _blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    shown = "".join(_blocks(page, "")).replace("\\\n", " ")  # with what they print
    lines += re.findall(r"^\$ (.*)$", shown, re.MULTILINE)
    quoted = [text for text in _quoted(page) if re.match(r"(python|torchrun|keepaug) [a-z-]", text)]
    for line, copied in [*((line, True) for line in lines), *((text, False) for text in quoted)]:
        if words := shlex.split(line, comments=True):
            yield words, copied


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pages
def test_commands_are_taken(page: Path) -> None:
    """By the parser of their tool, and their settings by their config, before anything is read or run."""
    for words, copied in _commands(page):
        where = next((place for place, word in enumerate(words) if _COMMAND.match(word)), None)
        if where is None:
            assert words[0] in {"make", "pip", "cd", "git"}, words
            continue
        name, given, module = _module(words[where:])
        if not hasattr(module, "build_parser"):
            continue
        parser = module.build_parser()
        if not copied and not parser._subparsers:
            options = {word for word in given if word.startswith("--")}
            assert options <= parser._option_string_actions.keys(), words
            continue
        args = _parse(parser, given)
        if name == "train-detector":
            opts = module.settings_of(args.opts)[1]
            pairs = [f"{key}={value}" for key, value in zip(opts[::2], opts[1::2], strict=True)]
            known.tool("train_detector").load(args.config_file, pairs)
        elif name.replace("-", "_") in known.PACKAGES:
            known.tool(name.replace("-", "_")).load(args.config, args.overrides)


_COMMAND = re.compile(r"tools/|keepaug(\.|$)")


def _module(words: list[str]) -> tuple[str, list[str], ModuleType]:
    """Command, arguments and module of `keepaug NAME ...`, `tools/NAME.py ...`, `keepaug.MODULE ...`."""
    name, *given = words
    if name.startswith("tools/"):
        script = re.search(r'main\(\["([\w-]+)"', (ROOT / name).read_text())
        if script is None:
            path = name.removeprefix("tools/").removesuffix(".py").replace("/", ".")
            return name, given, importlib.import_module(path)
        name = script[1]
    elif name == "keepaug":
        name, *given = given or ["--help"]
        if name.startswith("-") or name == "COMMAND":
            return name, given, importlib.import_module("keepaug.__main__")
    else:
        return name, given, importlib.import_module(name)
    return name, given, importlib.import_module(commands()[name].module)


def _parse(parser: argparse.ArgumentParser, given: list[str]) -> argparse.Namespace:
    try:
        return (parser.parse_args if parser._subparsers else parser.parse_intermixed_args)(given)
    except SystemExit:
        pytest.fail(f"not taken: {parser.prog} {shlex.join(given)}")


@pages
def test_code_runs(page: Path) -> None:
    """Each block after the other, with a model and a batch as a training loop has them."""
    if page.stem == "drop-in":
        return  # each of its sections is a program of its own: test_drop_in_page.py
    space = _training()
    for block in _blocks(page, "python"):
        exec(compile(block, page.name, "exec"), space)
    if page.stem == "README":
        assert space["loss"].requires_grad


def _training() -> dict[str, object]:
    """What a training loop has: a network, an optimizer, a batch."""
    torch.manual_seed(0)
    model = resnet18(num_classes=3)
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "images": torch.randn(3, 3, 32, 32),
        "labels": torch.arange(3),
    }


MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("keepaug", "detection", "reid", "ssl_uda")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_run(name: str) -> None:
    image = Image.new("RGB", (40, 40), "teal")
    space = {"F": F, "torch": torch, "image": image, "keep": keepaug.KeepCutout(8), **_training()}
    space |= {"clean": space["images"], "strong": -space["images"], "v2": v2}
    space["pixels"] = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    space |= {public: getattr(keepaug, public) for public in keepaug.__all__}
    result = doctest.testmod(importlib.import_module(name), extraglobs=space)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("installed", [False, True])  # pdoc remembers what it could import
def test_reference_is_written_from_docstrings(
    installed: bool,
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where Detectron2 is not installed."""
    pytest.importorskip("pdoc", reason="pdoc is not installed")
    if not installed:
        loaded = ("detectron2", "detection.detectron2_engine")
        for name in [name for name in sys.modules if name.startswith(loaded)]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "detectron2", None)
    reference = importlib.import_module("reference")
    assert reference.main(["--output", str(tmp_path)]) == 0
    assert [str(one.message) for one in recwarn if "pdoc" in str(one.filename)] == []
    page = (tmp_path / "keepaug.html").read_text()
    for public in keepaug.__all__:
        assert f'id="{public}"' in page
        assert getattr(keepaug, public).__doc__
    assert "keepaug.html" in (tmp_path / "index.html").read_text()
    engine = tmp_path / "detection" / "detectron2_engine.html"
    assert engine.is_file() == (importlib.util.find_spec("detectron2") is not None)


@pages
def test_what_is_named_exists(page: Path) -> None:
    """Files of this project, targets of make, options of its tools."""
    named = set(re.findall(r"(?<![\w/.])(?:tools|configs|tests|docs|keepaug)/[\w/-]+\.\w+", page.read_text()))
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)\b", "\n".join([*_quoted(page), *_blocks(page, "bash")])):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    words = {word for text in _quoted(page) for word in text.split()}
    options = {word for word in words if re.fullmatch(r"--[a-z][a-z-]+", word)}
    assert sorted(options - _options()) == []


def _options() -> set[str]:
    sources = [
        path.read_text()
        for pattern in ("tools/*.py", "*/*command.py", "keepaug/*/command.py", "keepaug/commands/**/*.py")
        for path in ROOT.glob(pattern)
    ]
    return {"--help", *re.findall(r"\"(--[a-z-]+)\"", "\n".join(sources))}


@pages
def test_commands_are_named_as_every_installation_has_them(page: Path) -> None:
    """A wheel has no tools/; `docs/commands.md` says which script is which command."""
    scripts = [path for path in (ROOT / "tools").glob("*.py") if 'main(["' in path.read_text()]
    assert scripts
    named = set(re.findall(r"\b\w+\.py\b", page.read_text())) & {path.name for path in scripts}
    assert page.stem == "commands" or sorted(named) == []


@pages
def test_every_block_is_of_a_language_that_is_tested(page: Path) -> None:
    """Another word behind the fence would hide a block from the tests above."""
    fences = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)
    assert set(fences[::2]) <= {"bash", "python", ""}  # no word: what a command prints
    assert set(fences[1::2]) <= {""}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", _prose(page)):
        if target.startswith("http"):
            assert re.match(r"https://[\w.-]+\.\w+(/|$)", target), target
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor in map(_anchor, headings), f"{page.name}: {target}"


@pages
def test_lines_are_no_longer_than_those_of_the_code(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert [line for line in lines if len(line) > 110 and not line.startswith(("|", "!["))] == []


def test_issue_forms_are_whole() -> None:
    """Without these keys GitHub shows no form."""
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(forms) == 3
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= form.keys()
        for part in form["body"]:
            assert part["type"] in {"textarea", "input", "checkboxes", "markdown"}
            assert part["attributes"].keys() & {"label", "value"}


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(([\w./-]+\.md)\)", README))
    assert sorted({str(page.relative_to(ROOT)) for page in PAGES[1:]} - linked) == []


def test_the_readme_is_short_and_its_picture_small() -> None:
    assert len(README.split()) <= 900
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert len(pictures) == 1
    assert (ROOT / pictures[0]).stat().st_size < 150_000


def test_figures_of_the_readme_stand_on_their_pages() -> None:
    """The README repeats results and has none of its own."""
    rows = re.findall(r"^\| .*$", README[README.index("## Does keeping help?") :], re.MULTILINE)[1:]
    pages = "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("results", "evidence", "speed"))
    numbers = {number for row in rows for number in re.findall(r"[-+]?\d+\.\d+", re.sub(r"\(.*?\)", "", row))}
    assert len(numbers) >= 10
    assert sorted(number for number in numbers if number not in pages) == []
