"""Every tool on damaged files of every kind that it reads, and on odd command lines."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import pickle
import random
import re
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from PIL import Image

from trust_checks.damage import damaged, same_kind
from trust_checks.kills import watch
from trust_checks.processes import HALF, REFUSED, RIGHT, TRACEBACK, WRONG, Case, call, verdict
from trust_checks.runs import DETECTOR, Run, broken_files, differences, digest, main_of

SECONDS = 60.0  # of a case, which takes one
_SAID = ("note:", "warning", "Warning", "going on from", "left out", "passed over")


class Reached(BaseException):
    """The first step of a training: the files were taken."""


class Target(NamedTuple):
    """A tool with a file that is to be damaged.

    Attributes:
        kind: of the file: row of the table.
        tool: command.
        base: a folder with all that the call needs.
        file: that is damaged, in it; of a pattern any file that fits.
        codec: of the file.
        arguments: of the tool, run in the folder.
        products: files that tell what came out; for a resumed run its folder, whose digest counts.
        trains: the call ends at its first step.
        before: the call is made first, whole, and leaves the file that is damaged.
    """

    kind: str
    tool: str
    base: Path
    file: str
    codec: str
    arguments: tuple[str, ...]
    products: tuple[str, ...] = ()
    trains: bool = False
    before: bool = False


def _stop_at_first_step() -> None:
    def reached(*args: Any, **kwargs: Any) -> Any:
        raise Reached

    modules = sys.modules
    modules["keepaug.classify.loop"]._step = reached  # type: ignore[attr-defined]
    modules["ssl_uda.loop"]._step = reached  # type: ignore[attr-defined]
    modules["reid.training.engine"].KeepEngine.forward_backward = reached  # type: ignore[attr-defined]
    modules["detection.torchvision_engine.loop"]._iterate = reached  # type: ignore[attr-defined]
    if engine := modules.get("detection.detectron2_engine"):
        engine.Trainer.run_step = reached  # type: ignore[attr-defined]
    modules["keepaug.commands.quickstart"].Quickstart._run = reached  # type: ignore[attr-defined]
    modules["keepaug.commands.benchmark"].run_section = reached  # type: ignore[attr-defined]


def _call(target: Target, folder: Path, arguments: Sequence[str]) -> Any:
    def work() -> int:
        os.chdir(folder)
        os.environ["KEEPAUG_CACHE"] = str(folder / "cache")
        if target.before:
            for name in ("files", "checking"):  # few files are remembered too
                sys.modules[f"keepaug.data.{name}"]._WORTH = 0  # type: ignore[attr-defined]
            sys.modules["keepaug.data.files"]._SETTLED = 0  # type: ignore[attr-defined]
        if target.trains:
            _stop_at_first_step()
        try:
            return main_of(target.tool)(list(arguments))
        except Reached:
            return 0

    return call(work, folder.parent / "process", timeout=SECONDS)


def _copy(base: Path, folder: Path) -> None:
    """Data by links, everything that a tool writes to as copies."""
    for path in sorted(base.rglob("*")):
        place = folder / path.relative_to(base)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif path.suffix in (".png", ".jpg"):
            os.link(path, place)
        else:
            shutil.copyfile(path, place)


def product(target: Target, folder: Path) -> dict[str, Any]:
    """What came out."""
    found: dict[str, Any] = {}
    for name in target.products:
        path = folder / name
        if path.is_dir():
            with contextlib.suppress(OSError, ValueError, KeyError):
                found[name] = digest(path) if (path / "result.json").is_file() else {}
            about = path / "run.json"
            with contextlib.suppress(OSError, ValueError):
                content = json.loads(about.read_text())
                began = content.get("started_from") or {}
                found[f"{name}/run.json"] = [content.get("dataset"), began.get("file")]
            with contextlib.suppress(OSError):
                config = (path / "config.yaml").read_text()
                found[f"{name}/config.yaml"] = config.replace(str(folder.parent), "")
        elif path.is_file():
            text = path.read_bytes().decode("latin1")
            if path.name == "audit.json":
                text = re.sub(r'"cost": \{[^}]*\}', "", text)  # measured
            if path.suffix == ".pth":
                text = str(differences({"": torch.load(path, weights_only=True)}, {}) and path.stat().st_size)
            found[name] = text.replace(str(folder.parent), "")
    return found


def attempt(target: Target, wanted: dict[str, Any], seed: str, folder: Path) -> tuple[str, str]:
    """One damaged file."""
    chance, place, mark = random.Random(seed), folder / "work", folder / "executed"
    place.mkdir()
    _copy(target.base, place)
    if target.before and (bad := verdict(_call(target, place, target.arguments))):
        return bad
    file = chance.choice(sorted(path for path in place.glob(target.file) if path.is_file()))
    before = file.read_bytes()
    after, what = damaged(target.codec, before, chance, mark)
    file.unlink()
    file.write_bytes(after)
    inputs = {path for path in place.rglob("*") if path.is_file()}
    done = _call(target, place, target.arguments)
    said = f"{what}: "
    if mark.exists():
        return WRONG, f"{said}it was executed"
    bad = verdict(done)
    if bad and bad[0] != REFUSED:
        return bad[0], said + bad[1]
    new = place / "run"
    if broken := broken_files(new) if new.is_dir() and target.file.split("/")[0] != "run" else "":
        return HALF, said + broken
    if left := [path.name for path in place.rglob("*.partial") if path not in inputs]:
        return HALF, said + ", ".join(left)
    if bad:
        return REFUSED, said + bad[1]
    different = differences(product(target, place), wanted)
    text = done.out + done.err
    if not different or same_kind(target.codec, before, after) or any(word in text for word in _SAID):
        return RIGHT, said
    return WRONG, f"{said}other {different}"


def command_line(tool: str, base: Path, arguments: Sequence[str], seed: str, folder: Path) -> tuple[str, str]:
    """An argument left out, added or replaced by something odd."""
    chance, place, given = random.Random(seed), folder / "work", list(arguments)
    place.mkdir()
    _copy(base, place)
    odd = [
        "", "x", "-1", "0", "nan", "1e999", "9" * 300, "=", "a=b=c", "--", "--resume", "--nope", "--output",
        "/dev/null/x", "/proc/nowhere", "a" * 5000, "é\udce9", "[", "{}", "true", "root=", "seed=x",
        "~nobody/x", "device=gpu", "--seeds", "lr=[1,2]", "config.yaml", ".",
    ]  # fmt: skip
    at = chance.randrange(len(given) + 1)
    way = chance.random()
    if way < 0.2 and given and at < len(given):
        del given[at]
    elif way < 0.5 or at == len(given):
        given.insert(at, chance.choice(odd))
    elif "=" in given[at] and chance.random() < 0.7:
        given[at] = f"{given[at].partition('=')[0]}={chance.choice(odd)}"
    else:
        given[at] = chance.choice(odd)
    target = Target("", tool, base, "", "", (), trains=True)
    done = _call(target, place, [*given, "--dry-run"] if tool == "reproduce" else given)
    what = f"{tool} {' '.join(one[:30] for one in given)!r}: "[:250]
    bad = verdict(done)
    if bad and bad[0] == TRACEBACK and done.status == 2 and "usage:" in done.err:
        return REFUSED, what
    return (bad[0], what + bad[1]) if bad else (RIGHT, what)


def names(base: Path, seed: str, folder: Path) -> tuple[str, str]:
    """Odd names of image files in Market-1501's layout."""
    chance, place = random.Random(seed), folder / "work"
    place.mkdir()
    _copy(base, place)
    image = chance.choice(sorted((place / "people").rglob("*.jpg")))
    odd = [
        "9" * 200 + "_c1s1_000001_00.jpg", "-1_c9s1_1_0.jpg", "0002_c1.jpg", "x.jpg", ".jpg",
        "0001_c99999999999999s1_0.jpg", "-5_c1s1_000451_03.jpg", "\u0663_c1s1_000451_03.jpg",
        "0001_c1s1_000451_03.JPG", "\udce9_c1s1_1.jpg", f"{2**63}_c1s1_1_1.jpg", f"{2**64}_c1s1_1_1.jpg",
        f"1_c{2**70}s1_1_1.jpg",
    ]  # fmt: skip
    image.rename(image.with_name(name := chance.choice(odd)))
    target = Target("", "train-reid", base, "", "", (), trains=True)
    done = _call(target, place, ["--config", "reid.yaml", "--output", "run"])
    bad = verdict(done)
    return (bad[0], f"{name[:60]!r}: {bad[1]}") if bad else (RIGHT, name[:60])


def interrupted(run: Run, folder: Path, file: str) -> None:
    """A run that was killed before its last file: with checkpoints, without result."""

    def die(number: int, event: Any) -> None:
        if event.what == "rename" and event.file == file:
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> int:
        os.chdir(folder)
        watch(folder / "run", die)
        return run.main(run.argv(folder / "run"))

    done = call(work, folder.parent / "process")
    if done.status != -signal.SIGKILL:
        raise RuntimeError(f"{run.name} was not interrupted: {done.err[-500:]}")


def targets(folder: Path, runs: dict[str, Run], references: Path) -> list[Target]:
    """Folders with everything that the calls need, and the calls."""
    found: list[Target] = []
    data = folder / "data"

    def base(name: str, *parts: str) -> Path:
        place = folder / "fuzz" / name
        place.mkdir(parents=True)
        for part in parts:
            _copy_into(data / part, place / part)
        return place

    loops = {"classifier": "classes", "few labels": "classes", "re-identification": "people"}
    for name, part in loops.items():
        if name not in runs:
            continue
        run, place = runs[name], base(name, part)
        settings = dict(item.partition("=")[::2] for item in run.arguments)
        settings["root"] = part
        values = {key: yaml.safe_load(value) for key, value in settings.items()}
        (place / "config.yaml").write_text(yaml.safe_dump({"_base_": "base.yaml", **values}))
        (place / "base.yaml").write_text("seed: 3\n")
        if part == "people":
            (place / "reid.yaml").write_text(yaml.safe_dump(values))
        call_it = ("--config", "config.yaml", "--output", "run")
        common = {"tool": run.tool, "base": place, "arguments": call_it, "products": ("run",), "trains": True}
        found.append(Target("config (YAML)", file="config.yaml", codec="yaml", **common))
        found.append(Target("dataset card", file=f"{part}/dataset.json", codec="json", **common))
        image = sorted((place / part).rglob("*.png" if part == "classes" else "*_c1*.jpg"))[0]
        found.append(Target("image", file=str(image.relative_to(place)), codec="image", **common))
        resume = base(f"resumed {name}", part)
        interrupted(run, resume, "weights.pt")
        again = run.argv(Path("run"))
        common = {"tool": run.tool, "base": resume, "arguments": ("--resume", *again), "products": ("run",)}
        for file, codec in (
            ("checkpoint.pt", "torch"),
            ("run.json", "json"),
            ("config.yaml", "yaml"),
            ("metrics.jsonl", "jsonl"),
        ):
            kind = {"checkpoint.pt": "checkpoint", "metrics.jsonl": "metrics"}.get(file, f"{file} of a run")
            found.append(Target(kind, file=f"run/{file}", codec=codec, **common))
    found += _detectors(base, runs)
    found += _readers(base, references, runs)
    return found


def _copy_into(source: Path, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    _copy(source, place)


def _detectors(base: Callable[..., Path], runs: dict[str, Run]) -> list[Target]:
    from torchvision.models import resnet18

    from detection.convert import convert

    found = []
    for engine in ("torchvision", "detectron2"):
        name = next((one for one in runs if engine.lower() in one.lower()), None)
        if name is None:
            continue
        run, place = runs[name], base(f"detector {engine}", "objects")
        options = _relative(run.arguments, place)
        (place / "config.yaml").write_text(_flat_config(run))
        torch.manual_seed(0)
        torch.save(resnet18(num_classes=4).state_dict(), place / "classifier.pth")
        convert(place / "classifier.pth", place / "backbone.pth")
        few = ("--engine", engine, "--data-root", "objects", "OUTPUT_DIR", "run")
        common = {"tool": run.tool, "base": place, "products": ("run",), "trains": True}
        own = ("--config-file", "config.yaml", *few)
        found.append(Target("config (YAML)", file="config.yaml", codec="yaml", arguments=own, **common))
        for split in ("train", "val"):
            file = f"objects/annotations/instances_{split}2017.json"
            found.append(Target("COCO annotations", file=file, codec="json", arguments=own, **common))
        found.append(
            Target("dataset card", file="objects/dataset.json", codec="json", arguments=own, **common)
        )
        from trust_checks.runs import DETECTOR

        built = ("--config-file", str(DETECTOR), *few, "MODEL.WEIGHTS", "backbone.pth")
        for file, codec in (("backbone.pth.json", "json"), ("backbone.pth", "torch")):
            kind = "sidecar" if codec == "json" else "backbone"
            found.append(Target(kind, file=file, codec=codec, arguments=built, **common))
        resume = base(f"resumed {engine}", "objects")
        interrupted(run, resume, "model_final.pth")
        common = {"tool": run.tool, "base": resume, "products": ("run",)}
        again = ("--resume", *options, "OUTPUT_DIR", "run")
        for file, codec, kind in (
            ("model_0000003.pth", "torch", "checkpoint"), ("last_checkpoint", "text", "last_checkpoint"),
            ("run.json", "json", "run.json of a run"), ("config.yaml", "yaml", "config.yaml of a run"),
        ):  # fmt: skip
            found.append(Target(kind, file=f"run/{file}", codec=codec, arguments=again, **common))
    scored = base("scored", "objects")
    truth = json.loads((scored / "objects/annotations/instances_val2017.json").read_text())
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.5}
        for a in truth["annotations"]
    ]
    (scored / "r.json").write_text(json.dumps(results))
    arguments = ("--eval-only", "--results-json", "r.json", "--data-root", "objects")
    common = {
        "tool": "train-detector",
        "base": scored,
        "arguments": arguments,
        "products": ("r.evaluation.json",),
    }
    found.append(Target("COCO results", file="r.json", codec="json", **common))
    file = "objects/annotations/instances_val2017.json"
    return [*found, Target("COCO annotations", file=file, codec="json", **common)]


def _relative(arguments: Sequence[str], place: Path) -> tuple[str, ...]:
    given = list(arguments)
    given[given.index("--data-root") + 1] = "objects"
    return tuple(given)


def _flat_config(run: Run) -> str:
    """The run's settings as one file."""
    given = list(run.arguments)
    pairs = given[given.index("SOLVER.MAX_ITER") :]
    tree: dict[str, Any] = {"_BASE_": str(DETECTOR)}
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        node = tree
        *branches, leaf = key.split(".")
        for branch in branches:
            node = node.setdefault(branch, {})
        node[leaf] = value if value.startswith("(") else yaml.safe_load(value)
    return yaml.safe_dump(tree, sort_keys=False)


def _readers(base: Callable[..., Path], references: Path, runs: dict[str, Run]) -> list[Target]:
    """Tools that do not train."""
    found = []
    reports = base("report")
    finished = [name for name in runs if name != "detector (Detectron2)"]
    for name in finished:
        (reports / "runs" / name).mkdir(parents=True)
        shutil.copyfile(references / name / "run" / "result.json", reports / "runs" / name / "result.json")
    for name in finished:
        for tool, arguments, products in (
            ("report", ("runs", "--output", "out"), ("out/report.md",)),
            ("figures", ("2", "runs", "--output", "f.png", "--shortened", "--arch", "wrn10_1"), ()),
        ):
            file = f"runs/{name}/result.json"
            found.append(Target("result", tool, reports, file, "json", arguments, products))
    nets = base("networks", "classes", "people")
    shutil.copyfile(references / "classifier" / "run" / "weights.pt", nets / "weights.pt")
    reid = references / "re-identification" / "run" / "weights.pt"
    if reid.is_file():
        shutil.copyfile(reid, nets / "reid.pt")
    shutil.copyfile(references / "classifier" / "run" / "checkpoint.pt", nets / "checkpoint.pt")
    shutil.copyfile(references / "classifier" / "run" / "config.yaml", nets / "config.yaml")
    from safetensors.torch import save_file
    from torchvision.models import resnet18

    torch.manual_seed(0)
    state = resnet18(num_classes=4).state_dict()
    torch.save({"state_dict": state, "mean": [0.5] * 3, "std": [0.2] * 3, "epoch": 3}, nets / "resnet.pth")
    save_file(state, nets / "resnet.safetensors")
    (nets / "resnet.pkl").write_bytes(pickle.dumps({key: value.numpy() for key, value in state.items()}))
    audit = ("--model", "weights.pt", "--data", "classes/val", "--augment", "cutout:6", "--limit-images", "6",
             "--sweep", "0", "--fresh", "--output", "a")  # fmt: skip
    image = "classes/val/" + sorted(path.name for path in (nets / "classes/val").iterdir())[0]
    image += "/" + sorted(path.name for path in (nets / image).iterdir())[0]
    show = ("--weights", "weights.pt", "--image", image, "--side", "16", "--output", "o.png")
    features = ("--weights", "reid.pt", "--data", "people/query", "--output", "f.npz", "--num-workers", "1")
    for tool, file, codec, arguments, products in (
        ("audit", "weights.pt", "torch", audit, ()),
        ("audit", "checkpoint.pt", "torch", ("--model", "checkpoint.pt", *audit[2:]), ()),
        ("show", "weights.pt", "torch", show, ("o.png",)),
        ("extract-reid", "reid.pt", "torch", features, ()),
        ("convert", "resnet.pth", "torch", ("--weights", "resnet.pth", "--output", "b.pth"), ()),
        ("convert", "resnet.safetensors", "bytes",
         ("--weights", "resnet.safetensors", "--output", "b.pth"), ()),
        ("convert", "resnet.pkl", "pickle", ("--weights", "resnet.pkl", "--output", "b.pth"), ()),
    ):  # fmt: skip
        kind = "weights of a run" if file in ("weights.pt", "reid.pt") else "weights of others"
        if not (nets / file).is_file():
            continue
        found.append(Target(kind, tool, nets, file, codec, arguments, products))
    found.append(Target("image", "audit", nets, image, "image", audit, ()))
    found.append(Target("image", "show", nets, image, "image", show, ()))
    people = base("csv", "people")
    rows = ["path,identity,camera,split"]
    for split, folder in (
        ("train", "bounding_box_train"),
        ("query", "query"),
        ("gallery", "bounding_box_test"),
    ):
        for path in sorted((people / "people" / folder).glob("0*.jpg")):
            identity, camera = path.name.split("_")[0], path.name.split("_c")[1][0]
            rows.append(f"people/{folder}/{path.name},{identity},{camera},{split}")
    (people / "list.csv").write_text("\n".join(rows) + "\n")
    arguments = ("layout=csv", "root=list.csv", "arch=torchreid:osnet_x0_25", "height=48", "width=32",
                 "identities=2", "images=2", "num_workers=1", "device=cpu", "tensorboard=false",
                 "--output", "run")  # fmt: skip
    found.append(Target("CSV", "train-reid", people, "list.csv", "csv", arguments, ("run",), True))
    return [*found, *_more_readers(base, nets, references, audit)]


def _more_readers(
    base: Callable[..., Path], nets: Path, references: Path, audit: Sequence[str]
) -> list[Target]:
    """Lists, boxes and caches of the audit; lists of ImageNet, MSMT17 and CIFAR-10; weights in a run."""
    found = []
    few = audit[4:]
    images = sorted(path.relative_to(nets) for path in (nets / "classes").rglob("*.png"))
    (nets / "list.txt").write_text("".join(f"{path}\t{path.parent.name}\n" for path in images))
    listed = ("--model", "weights.pt", "--data", "list.txt", *few)
    found.append(Target("lists of images", "audit", nets, "list.txt", "text", listed))
    found.append(Target("boxes", "audit", nets, "classes/boxes.json", "json", tuple(audit)))
    boxed = base("boxed", "objects")
    shutil.copyfile(nets / "weights.pt", boxed / "weights.pt")
    truth = "objects/annotations/instances_val2017.json"
    boxes = ("--model", "weights.pt", "--data", "objects/val2017", "--boxes", truth, "--side", "16", *few)
    found.append(Target("COCO annotations", "audit", boxed, truth, "json", boxes))
    known = tuple(item for item in audit if item != "--fresh")
    found.append(
        Target("caches", "audit", nets, "cache/audit/**/*.pt", "bytes", known, ("a/audit.json",), before=True)
    )
    train = ("--config", "config.yaml", "--output", "run", "loading=files", "image_size=16")
    place = references.parent / "fuzz" / "classifier"
    for pattern in ("cache/**/*.npz", "cache/**/*.npy"):
        found.append(
            Target(
                "caches",
                "train-classifier",
                place,
                pattern,
                "npz",
                (*train, "--resume"),
                ("run",),
                True,
                True,
            )
        )
    run = base("weights", "classes", "people")
    for name, tool, key in (
        ("classifier", "train-classifier", "teacher"), ("re-identification", "train-reid", "weights"),
    ):  # fmt: skip
        if not (references / name / "run").is_dir():
            continue
        shutil.copyfile(references / name / "run" / "weights.pt", run / f"{name}.pt")
        settings = yaml.safe_load((references / name / "run" / "config.yaml").read_text())
        settings["root"] = "classes" if tool == "train-classifier" else "people"
        if key == "teacher":
            settings |= {"method": "attentive_cutmix", "attention_grid": 2, "num_patches": 1}
        (run / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        given = ("--config", f"{name}.yaml", "--output", "run", f"{key}={name}.pt")
        found.append(Target("weights of a run", tool, run, f"{name}.pt", "torch", given, ("run",), True))
    if (references / "re-identification" / "run").is_dir():
        _copy_into(references / "re-identification" / "run", run / "old")
        again = ("--eval-only", "old", "root=people")
        for file, codec, kind in (
            ("weights.pt", "torch", "weights of a run"), ("config.yaml", "yaml", "config.yaml of a run"),
        ):  # fmt: skip
            found.append(
                Target(kind, "train-reid", run, f"old/{file}", codec, again, ("old/evaluation.json",))
            )
    return [*found, *_layouts(base)]


def _layouts(base: Callable[..., Path]) -> list[Target]:
    """Datasets whose labels stand in lists, or in pickles."""
    found = []
    flat = base("imagenet", "classes")
    images = sorted((flat / "classes/val").rglob("*.png"))
    numbers = {name: at for at, name in enumerate(sorted({path.parent.name for path in images}))}
    lines = []
    for at, path in enumerate(images):
        path.rename(flat / "classes/val" / f"{at:04d}.png")
        lines.append(f"{at:04d}.png {path.parent.name}\n")
    for name in numbers:
        (flat / "classes/val" / name).rmdir()
    (flat / "classes/boxes.json").unlink()
    (flat / "classes/val.txt").write_text("".join(lines))
    train = (
        "dataset=image_folder", "root=classes", "arch=wrn10_1", "tensorboard=false", "batch_size=8",
        "pictures=false", "--output", "run",
    )  # fmt: skip
    common = {"tool": "train-classifier", "products": ("run",), "trains": True}
    found.append(
        Target("lists of images", base=flat, file="classes/val.txt", codec="text", arguments=train, **common)
    )
    kit = base("development kit")
    shutil.copytree(flat, kit, dirs_exist_ok=True)
    (kit / "classes/val.txt").unlink()
    labels = [line.split()[1] for line in lines]
    torch.save(({name: (name,) for name in numbers}, labels), kit / "classes/meta.bin")
    found.append(
        Target("lists of images", base=kit, file="classes/meta.bin", codec="torch", arguments=train, **common)
    )
    cifar = base("cifar")
    batches = cifar / "cifar-10-batches-py"
    batches.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        data = torch.randint(256, (4, 3072), dtype=torch.uint8).numpy()
        (batches / name).write_bytes(pickle.dumps({"data": data, "labels": [0, 1, 2, 3]}))
    with tarfile.open(cifar / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(batches, batches.name)
    for file, codec in ((f"{batches.name}/data_batch_2", "pickle"), ("cifar-10-python.tar.gz", "bytes")):
        place = cifar
        if codec == "bytes":
            place = base("packed cifar")
            shutil.move(cifar / file, place / file)
        given = ("dataset=cifar10", "root=.", *train[2:])
        found.append(Target("CIFAR-10", base=place, file=file, codec=codec, arguments=given, **common))
    lists = base("msmt17")
    rows: dict[str, list[str]] = {"train": [], "query": [], "gallery": []}
    for (part, split), identity, camera in itertools.product(enumerate(rows), range(4), range(2)):
        folder = "train" if split == "train" else "test"
        name = f"{identity:04d}/{identity:04d}_{part:03d}_{camera + 1:02d}_0303morning_0008_0.jpg"
        (lists / folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 48), (40 * identity, 40 * camera, 40 * part)).save(lists / folder / name)
        rows[split].append(f"{name} {identity}\n")
    for split, content in (*rows.items(), ("val", [])):
        (lists / f"list_{split}.txt").write_text("".join(content))
    given = (
        "layout=msmt17", "root=.", "arch=torchreid:osnet_x0_25", "height=48", "width=32", "identities=2",
        "images=2", "num_workers=1", "device=cpu", "tensorboard=false", "pictures=false", "--output", "run",
    )  # fmt: skip
    found.append(
        Target("lists of images", "train-reid", lists, "list_train.txt", "text", given, ("run",), True)
    )
    return found


COMMANDS: dict[str, tuple[str, ...]] = {
    "train-classifier": ("--config", "config.yaml", "--output", "run", "lr=0.1", "method=keep_cutmix"),
    "train-uda": ("--config", "config.yaml", "--output", "run", "lr=0.1", "steps=2"),
    "train-reid": ("--config", "config.yaml", "--output", "run", "lr=0.1", "epochs=1"),
    "train-detector": ("--config-file", "config.yaml", "--engine", "torchvision", "--data-root", "objects",
                       "SOLVER.BASE_LR", "0.01", "OUTPUT_DIR", "run"),
    "report": ("runs", "--output", "out"),
    "figures": ("2", "runs", "--output", "f.png", "--dry-run", "root=x"),
    "reproduce": ("1", "root=x", "--seeds", "0", "--output", "out"),
    "convert": ("--weights", "resnet.pth", "--output", "b.pth", "--report"),
    "audit": ("--model", "weights.pt", "--data", "classes/val", "--augment", "cutout:6",
              "--limit-images", "4", "--sweep", "0", "--output", "a"),
    "show": ("--weights", "weights.pt", "--image", "i.png", "--side", "16", "--output", "o.png"),
    "extract-reid": ("--weights", "reid.pt", "--data", "people/query", "--output", "f.npz", "--num-workers",
                     "1"),
    "benchmark": ("regions", "--shrink", "--rounds", "1", "--output", "b.json"),
    "completion": ("bash",),
    "configs": ("reid", "--copy-to", "copied"),
    "quickstart": ("--output", "quick", "--at-once", "1", "--shrink"),
}  # fmt: skip
_BASES = {
    "train-classifier": "classifier", "train-uda": "few labels", "train-reid": "re-identification",
    "train-detector": "detector torchvision", "report": "report", "figures": "report", "reproduce": "report",
}  # fmt: skip


def _key(target: Target) -> tuple[str, Path, tuple[str, ...]]:
    """What is the same for targets of which another file is damaged."""
    return target.tool, target.base, target.arguments


def cases(folder: Path, runs: dict[str, Run], references: Path, *, number: int, seed: int) -> list[Case]:
    """`number` of them, each target alike."""
    all_targets = targets(folder, runs, references)
    wanted: dict[tuple[str, Path, tuple[str, ...]], dict[str, Any]] = {}
    for target in all_targets:
        if _key(target) in wanted:
            continue
        place = folder / "fuzz product" / "work"
        place.mkdir(parents=True)
        _copy(target.base, place)
        done = _call(target, place, target.arguments)
        if done.status != 0:
            raise RuntimeError(f"{target.tool} {target.arguments} does not even run: {done.err[-1500:]}")
        wanted[_key(target)] = product(target, place)
        shutil.rmtree(place.parent)
    found = []
    each = -(-number // (len(all_targets) + len(COMMANDS) + 1))
    for count in range(each):
        for target in all_targets:
            name = f"{target.tool}, {target.file}, {count}"
            work = functools.partial(attempt, target, wanted[_key(target)], f"{seed} {name} {target.codec}")
            found.append(Case(f"fuzz: {target.kind}", name, work, 2 * SECONDS))
        for tool, arguments in COMMANDS.items():
            base = folder / "fuzz" / _BASES.get(tool, "networks")
            if not base.is_dir():
                continue
            work = functools.partial(command_line, tool, base, arguments, f"{seed} {tool} {count}")
            found.append(Case("fuzz: command lines", f"{tool}, {count}", work, 2 * SECONDS))
        people = folder / "fuzz" / "re-identification"
        if people.is_dir():
            work = functools.partial(names, people, f"{seed} names {count}")
            found.append(Case("fuzz: names of files", f"{count}", work, 2 * SECONDS))
    return found[:number] if number < len(found) else found
