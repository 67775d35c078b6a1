"""Install a Detectron2 wheel from $KEEPAUG_WHEELS, if there is one, and say what that means for the tests.

Detectron2 is on no package registry and its wheel fits one torch build only; a wheel that does not import is
removed again, so that a stale file leads to skipped tests and a message instead of to broken ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def _pip(*arguments: str) -> bool:
    return subprocess.run([sys.executable, "-m", "pip", *arguments, "--quiet"]).returncode == 0


def _imports() -> bool:
    return (
        subprocess.run([sys.executable, "-c", "import torch, detectron2._C"], capture_output=True).returncode
        == 0
    )


def main() -> None:
    folder = Path(os.environ.get("KEEPAUG_WHEELS") or Path.home() / ".cache" / "keepaug" / "wheels")
    if _imports():
        print("Detectron2 is installed: its tests will run.")
        return
    wheels = sorted(folder.glob("detectron2-*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        print(f"No Detectron2 wheel in {folder}: tests marked `detectron2` will be skipped.")
        return
    wheel = wheels[-1]
    if not _pip("install", str(wheel)):
        print(f"{wheel} could not be installed: tests marked `detectron2` will be skipped.")
        return
    if not _imports():
        _pip("uninstall", "--yes", "detectron2")
        print(
            f"{wheel} was built for another torch and was removed: tests marked `detectron2` will be skipped."
        )
        return
    print(f"Installed {wheel.name}: tests marked `detectron2` will run.")


if __name__ == "__main__":
    main()
