"""Imports point to a lower layer only, and the core needs torch and torchvision alone."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {
    **dict.fromkeys(
        [
            "keepaug.choices",
            "keepaug.lazy",
            "keepaug.transfer",
            "keepaug.modes",
            "keepaug.saliency",
            "keepaug.regions",
            "keepaug.ops",
        ],
        0,
    ),
    **dict.fromkeys(["keepaug.keep", "keepaug.baselines", "keepaug.policies"], 1),
    **dict.fromkeys(["keepaug.runs", "keepaug.data", "keepaug.models"], 2),
    **dict.fromkeys(["keepaug.classify", "keepaug.report", "keepaug.audit"], 3),
    **dict.fromkeys(["detection", "reid", "ssl_uda"], 4),
    "keepaug.commands": 5,
    "tools": 6,
}
ADAPTERS = {"detection", "reid", "ssl_uda"}


def room_of(module: str) -> str | None:
    """The longest known prefix: `keepaug.runs.files` lives in `keepaug.runs`."""
    parts = module.split(".")
    for length in (2, 1):
        if (prefix := ".".join(parts[:length])) in LAYERS:
            return prefix
    return None


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, package: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            module = node.module or ""
            if node.level:
                module = f"{base}.{module}".rstrip(".")
            found.append(module)
            found += [f"{module}.{alias.name}" for alias in node.names]  # `from keepaug import keep`
    return found


def violation(importer: str, imported: str) -> str | None:
    here, there = room_of(importer), room_of(imported)
    if here is None or there is None or here == there:
        return None
    if LAYERS[there] > LAYERS[here]:
        return f"{importer} (layer {LAYERS[here]}) imports {imported} (layer {LAYERS[there]})"
    if LAYERS[there] == LAYERS[here] and LAYERS[here] >= 3:
        return f"{importer} imports {imported} of the same layer"
    if (LAYERS[here], LAYERS[there]) == (2, 1):
        return (
            f"{importer} imports {imported}: datasets, networks and bookkeeping do without the augmentations"
        )
    if here in ADAPTERS and there == "keepaug.classify":
        return f"the adapter {importer} imports {imported}"
    return None


def python_files() -> list[Path]:
    return [
        path
        for top in ("keepaug", "detection", "reid", "ssl_uda", "tools")
        for path in (ROOT / top).rglob("*.py")
    ]


def test_imports_point_downwards() -> None:
    files = python_files()
    assert len(files) > 20
    problems = []
    for path in files:
        module = module_of(path)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        problems += [p for name in imports_of(path.read_text(), package) if (p := violation(module, name))]
    assert not problems, "\n".join(sorted(set(problems)))


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("keepaug.regions", "keepaug.keep"),
        ("keepaug.data.images", "keepaug.policies"),
        ("keepaug.runs.files", "keepaug.classify.loop"),
        ("detection.convert", "reid.data"),
        ("detection.convert", "keepaug.classify"),
        ("keepaug.classify.loop", "keepaug.report"),
        ("keepaug.report.html", "tools.report"),
    ],
)
def test_the_rule_catches(importer: str, imported: str) -> None:
    assert violation(importer, imported)


def test_the_rule_allows_lower_layers() -> None:
    assert violation("detection.convert", "keepaug.runs.files") is None
    assert violation("keepaug.keep", "keepaug.regions") is None


def test_core_imports_torch_and_torchvision_alone() -> None:
    script = (
        "import sys, torch, torchvision; before = set(sys.modules); import keepaug;"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    allowed = {"keepaug", "torch", "torchvision", "PIL", "numpy"}  # the last two come with torchvision
    assert set(ast.literal_eval(result.stdout.strip())) <= allowed


def test_no_two_test_files_share_a_name() -> None:
    """Without packages, pytest takes the second for the first and collects neither."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert sorted(names) == sorted(set(names))


LOOPS = (
    "keepaug/classify/loop.py",
    "detection/detectron2_engine.py",
    "detection/torchvision_engine/loop.py",
    "reid/training/engine.py",
    "reid/training/loop.py",
    "ssl_uda/loop.py",
)


def longest_common_run(first: list[str], second: list[str]) -> list[str]:
    longest: list[str] = []
    before = [0] * (len(second) + 1)
    for i, line in enumerate(first, 1):
        now = [0] * (len(second) + 1)
        for j, other in enumerate(second, 1):
            now[j] = before[j - 1] + 1 if line == other else 0
            if now[j] > len(longest):
                longest = first[i - now[j] : i]
        before = now
    return longest


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(LOOPS, 2)))
def test_loops_share_no_run_of_ten_lines(first: str, second: str) -> None:
    """What is the same in two loops has one home below them."""
    lines = [
        [line for raw in (ROOT / path).read_text().splitlines() if (line := raw.strip()) and line[0] != "#"]
        for path in (first, second)
    ]
    assert len(run := longest_common_run(*lines)) < 10, "\n".join(run)
