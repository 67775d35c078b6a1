"""All cases: what they need is made once, before the processes part."""

from __future__ import annotations

import importlib
import random
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from trust_checks import fuzz, kills
from trust_checks.processes import Case
from trust_checks.runs import all_runs, digest, main_of, write_data

FUZZ = 3600  # cases of the whole
# What the tools import when they need it: once here, instead of in every case.
LATER = (
    "keepaug.classify.loop", "ssl_uda.loop", "reid.training.loop", "reid.evaluation.run",
    "detection.torchvision_engine.loop", "detection.draw", "keepaug.report", "hotcoco",
)  # fmt: skip


def all_cases(folder: Path, *, share: float, only: Sequence[str], seed: int) -> list[Case]:
    """In seeded order, long and short ones mixed.

    Args:
        folder: for data, references and cases.
        share: of the cases of each kind; at least one.
        only: words of which a row's name must have one; nothing: all.
        seed: of moments and damage.

    Raises:
        ValueError: no row has one of the words.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in LATER:
        importlib.import_module(name)
    for name in fuzz.COMMANDS:
        main_of(name)
    write_data(folder / "data")
    runs = all_runs(folder / "data")
    try:
        importlib.import_module("detection.detectron2_engine")
    except ImportError:
        del runs["detector (Detectron2)"]
    references = {name: kills.reference(run, folder / "references" / name) for name, run in runs.items()}
    pairs = {}
    for name, run in runs.items():
        if run.tool != "train-detector":
            output = folder / "references" / f"two {name}"
            if bad := kills.two(run, output / "run", output):
                raise RuntimeError(f"two processes of {name} do not even run: {bad}")
            pairs[name] = references[name]._replace(digest=digest(output / "run"))
    cases = kills.cases(list(runs.values()), references, pairs, seed=seed)
    cases += fuzz.cases(folder, runs, folder / "references", number=FUZZ, seed=seed)
    chance = random.Random(seed)
    kinds: dict[str, list[Case]] = {}
    for case in cases:
        if not only or any(word in case.kind for word in only):
            kinds.setdefault(case.kind, []).append(case)
    if not kinds:
        known = ", ".join(sorted({case.kind for case in cases}))
        raise ValueError(f"no row's name has one of {', '.join(only)}; rows: {known}")
    cases = [
        case for kind in kinds.values() for case in chance.sample(kind, max(1, round(share * len(kind))))
    ]
    chance.shuffle(cases)
    return cases
