"""The recommended strength, the judgement of maps, and the comparison with trained runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import audit_truth
import pytest
import torch
from audit_truth import judge_maps

from keepaug.audit.augmentations import parse_augmentation
from keepaug.audit.measures import identity_source
from keepaug.audit.table import differences, recommended
from keepaug.audit.trials import Trial
from keepaug.models.networks import build_network
from keepaug.models.weights import NetworkSpec, save_classifier
from keepaug.runs.result import write_result


def _swept(shares: list[float], num: int = 400) -> tuple[dict, list]:
    """A sweep in which that share of the images stays right at each strength."""
    clean = {"images": {"correct": torch.ones(num, dtype=torch.float64)}}
    cutout = parse_augmentation("cutout:8", 32)
    trials = []
    for value, share in enumerate(shares):
        correct = (torch.arange(num) < share * num).double()
        trials.append((Trial(cutout, False, 0.6, num, value), {"images": {"correct": correct}}))
    return clean, trials


def test_the_strongest_setting_up_to_which_fidelity_holds() -> None:
    def found(shares: list[float]):
        clean, trials = _swept(shares)
        return recommended(clean, trials, keep=False, tau=0.6, bound=0.95, seed=0)

    assert found([1.0, 0.99, 0.7, 0.2])["value"] == 1
    assert found([1.0, 0.99, 0.7, 0.2])["share"] == 1
    assert found([1.0, 0.7, 0.99, 0.98])["value"] == 0  # not past a strength that breaks it
    assert found([0.5, 0.4])["value"] is None
    unsure = found([1.0, 0.951, 0.7])
    assert (unsure["low"], unsure["high"]) == (0, 1)
    assert 0.3 < unsure["share"] < 0.8
    clean, trials = _swept([1.0])
    assert recommended(clean, trials, keep=True, tau=0.6, bound=0.95, seed=0) is None


def test_maps_are_judged_by_what_they_know(generator: torch.Generator) -> None:
    masks = torch.zeros(6, 20, 20, dtype=torch.bool)
    for row in range(6):
        masks[row, 2 * row : 2 * row + 6, 4:10] = True
    noise = torch.rand(6, 20, 20, generator=generator)
    judged = judge_maps(
        {"perfect": masks.float(), "noise": noise, "constant": torch.ones(6, 20, 20)},
        masks,
        size=8,
        draws=60,
        generator=generator,
    )
    assert judged["perfect"]["correlation"] == pytest.approx(1)
    assert judged["perfect"]["within"] == pytest.approx(1)
    assert judged["perfect"]["object"] == pytest.approx(1)
    assert all(told == pytest.approx(true) for told, true, _ in judged["perfect"]["calibration"])
    assert abs(judged["noise"]["correlation"]) < 0.5
    assert math.isnan(judged["constant"]["correlation"])


def test_policies_tell_where_pixels_come_from() -> None:
    from keepaug import BatchPolicy, rand_augment

    images = identity_source(8, 16, 16)[:, None].expand(-1, 3, -1, -1).to(torch.uint8)
    policy, seeds = BatchPolicy(rand_augment(2, 20)), torch.arange(8) * 7919
    chosen, operations = policy.draw(seeds, (16, 16))
    sources, moved = policy.sources((16, 16), seeds), policy(images, seeds)
    still = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Identity")
    compared = 0
    for row, positions in enumerate(chosen.tolist()):
        if all(operations[position][0] in still for position in positions):
            shown = sources[row] >= 0
            assert torch.equal(moved[row, 0][shown].long(), sources[row][shown])
            compared += 1
    assert compared >= 1


def test_the_command_compares_with_runs(tmp_path: Path, capsys) -> None:
    from keepaug.data.synthetic import write_classification

    root = write_classification(tmp_path / "drawn", num_train=4, num_val=24, size=(32, 32), num_classes=3)
    torch.manual_seed(0)
    classes = sorted(entry.name for entry in (root / "val").iterdir())
    weights = save_classifier(
        tmp_path / "weights.pt",
        build_network("resnet8", 3),
        NetworkSpec("resnet8", 3),
        classes=classes,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        provenance={},
    )
    assert (
        audit_truth.main(
            ["maps", "--weights", str(weights), "--data", str(root), "--limit-images", "12", "--draws", "3"]
        )
        == 0
    )
    judged = json.loads(capsys.readouterr().out)
    assert set(judged) == {"full", "low resolution", "full, untrained network", "constant map"}
    plain = {"method": "cutout", "placement": "clipped", "arch": "resnet8", "saliency": "full", "tau": 0.6}
    keep = plain | {"method": "keep_cutout"}
    settings = [
        *((plain | {"size": size}, 90.0 - number) for number, size in enumerate((4, 8, 16))),
        *((keep | {"size": size}, 90.5 + number) for number, size in enumerate((4, 8, 16))),
        # What the audit does not measure.
        (plain | {"size": 12, "arch": "resnet18"}, 99.0),
        (keep | {"size": 8, "saliency": "noise"}, 99.0),
        (keep | {"size": 8, "saliency": "low_resolution"}, 99.0),
        (keep | {"size": 8, "tau": 0.2}, 99.0),
    ]
    for number, (config, accuracy) in enumerate(settings):
        write_result(
            tmp_path / "runs" / str(number),
            kind="classify",
            name="run",
            metrics={"accuracy": accuracy},
            seed=0,
            config=config,
            dataset={"name": "drawn", "sizes": {"train": 4}, "checksum": "x"},
            synthetic=True,
            shortened=True,
            wall_time_s=1.0,
        )
    arguments = [
        "runs",
        str(tmp_path / "runs"),
        "--weights",
        str(weights),
        "--data",
        str(root),
        "--limit-images",
        "24",
    ]
    assert audit_truth.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    reached = {(entry["augmentation"], entry["keep"]): entry["accuracy"] for entry in found["settings"]}
    assert reached == {
        ("cutout:4,clipped", False): 90.0,
        ("cutout:8,clipped", False): 89.0,
        ("cutout:16,clipped", False): 88.0,
        ("cutout:4,clipped", True): 90.5,
        ("cutout:8,clipped", True): 91.5,
        ("cutout:16,clipped", True): 92.5,
    }
    assert found["correlations"]["importance_lost"]["rows"] == 6
    paired = found["correlations of Keep - plain"]["importance_lost"]
    assert paired["rows"] == 3
    assert paired["rank_correlation"] == pytest.approx(-1)  # Keep gains most where it saves most


def test_differences_are_over_images_and_of_what_both_tell_of() -> None:
    """Two objects in each image; of the last one Keep tells nothing."""
    ones = torch.ones(40, dtype=torch.float64)
    images = {"lost": 0 * ones, "known": ones, "flipped": 0 * ones, "correct": ones}
    changed = {**images, "lost": 0.7 * ones, "flipped": ones, "correct": 0 * ones}
    changed["known"] = (torch.arange(40) > 5).double()
    changed["lost"] = 0.7 * changed["known"]
    image = torch.arange(40).repeat_interleave(2)
    plain_hidden = torch.tensor([0.9, 0.1]).repeat(40).double()
    keep_hidden = torch.tensor([0.2, 0.6]).repeat(40).double()
    keep_hidden[:20] = 0.0
    known = torch.ones(80, dtype=torch.float64)
    told = known.clone()
    told[79] = 0
    plain = {"images": images, "objects": {"hidden": plain_hidden, "known": known, "image": image}}
    keep = {"images": changed, "objects": {"hidden": keep_hidden, "known": told, "image": image}}
    whole = differences({"images": images}, plain, keep, seed=0)
    means = {name: one["mean"] for name, one in whole.items() if one is not None}
    assert means["half_lost_difference"] == means["flipped_difference"] == 1
    assert means["fidelity_difference"] == -1
    found = whole["destroyed_difference"]
    both = told > 0
    mean = float(((keep_hidden >= 0.5).double() - (plain_hidden >= 0.5).double())[both].mean())
    assert found is not None
    assert found["mean"] == pytest.approx(mean, abs=1e-6)
    assert found["low"] < found["mean"] < found["high"]
    nothing = {"images": images, "objects": {"hidden": keep_hidden, "known": 0 * known, "image": image}}
    assert differences({"images": images}, plain, nothing, seed=0)["destroyed_difference"] is None
