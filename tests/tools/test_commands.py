"""`keepaug COMMAND`: what there is, and that help and refusals come before anything slow is imported."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from keepaug.__main__ import commands, main
from keepaug.runs.command import RESUMES
from keepaug.runs.config import load_config
from keepaug.runs.configs import config_names, find_config

ROOT = Path(__file__).parents[2]
SLOW = {"torch", "torchvision", "timm", "detectron2", "torchreid", "matplotlib", "pycocotools"}
REFUSED = [
    ("audit", "--model m --data d --augment cutot", "cutot"),
    ("audit", "--model m --data d --augment cutout --fail-above destroyed", "MEASURE=LIMIT"),
    ("benchmark", "nothing", "unknown section nothing"),
    ("configs", "nothing", "no config nothing"),
    ("figures", "2 nowhere", "nowhere"),
    ("report", "nowhere", "no folder nowhere"),
    ("reproduce", "1 root=d lrr=1", "did you mean lr"),
    ("reproduce", "9 root=d", "root"),
    ("train-classifier", "--config classify/cifar10 root=d methot=cutout", "did you mean method"),
    ("train-classifier", "root=d method=cutot", "did you mean cutout"),
    ("train-classifier", "root=d arch=resnet51", "did you mean resnet"),
    ("train-classifier", "root=d arch=resnext50_32x4d", "torchvision:resnext50_32x4d"),
    ("train-classifier", "root=d nesterov=true momentum=0", "nesterov needs momentum"),
    ("train-classifier", "--config reid/laptop root=d", "layout is a setting of train-reid"),
    ("train-classifier", "root=d SOLVER.BASE_LR=1", "SOLVER is a setting of train-detector"),
    ("train-classifier", "root=d --checkpoint x.pt", "--checkpoint: did you mean --eval-only RUN?"),
    ("train-reid", "root=d grid_ratio=1", "grid_ratio is a setting of train-classifier"),
    ("train-reid", "root=d erasing=keep", "method=none, random_erasing or keep_random_erasing"),
    ("train-reid", "root=d threads=2", "threads is no setting any more: num_workers"),
    ("train-detector", "--config detection/schedule_3x --max-images 3", "did you mean --limit-images?"),
    ("train-detector", "--config-file nowhere.yaml", "no config file nowhere.yaml"),
    ("train-detector", "--config-file detection/schedule_3x SOLVER.BASE_LRR 0.1", "SOLVER.BASE_LR"),
    ("train-reid", "--config reid/r50_bag_of_tricks_kep root=d", "did you mean reid/r50_bag_of_tricks_keep"),
    ("train-reid", "root=d recipe=standard neck=bnneck", "recipe=standard means neck=none"),
    ("train-detector", "--config quickstart/detector lr=0.1", "lr is a setting of train-classifier, train-"),
    ("train-detector", "--config quickstart/detector solver.base_lr=1.0", "did you mean SOLVER.BASE_LR"),
    ("train-detector", "root=d --eval-only nowhere", "nowhere has no config.yaml; weights alone are"),
    ("train-detector", "root=d --eval-only=nowhere.pth", "nowhere.pth has no config.yaml"),
    ("train-reid", "--eval-only root=d", "--eval-only takes a run before the settings"),
    ("train-reid", "--eval-only r --resume root=d", "--resume goes on with training; --eval-only"),
    ("train-classifier", "root=d lr=1e309", "lr is inf; allowed: finite numbers"),
    ("train-classifier", "root=d --seeds 1 --seeds 2 1", "--seeds must differ, got 1, 2, 1"),
    ("train-classifier", "root=d --seeds lr=0.1", "--seeds needs whole numbers"),
    ("reproduce", "1 root=d --seeds 1 --seeds 1", "--seeds must differ"),
    ("reproduce", "1 root=d --num-gpus 0", "--num-gpus counts the processes of a run"),
    ("figures", "2 . --seeds 1 --seeds 1", "--seeds must differ"),
    ("train-uda", "root=d keep=yes2", "keep"),
    ("train-uda", "root=d entropy=1 target_mode=eval", "entropy needs"),
]  # fmt: skip


def in_process(*argv: str) -> tuple[int, str, set[str]]:
    """Exit code, everything printed, and the imported packages of a process of its own."""
    script = (
        "import sys; from keepaug.__main__ import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code or 0\n"
        "print('IMPORTED', *{name.partition('.')[0] for name in sys.modules}); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, cwd=ROOT)
    text, _, imported = done.stdout.rpartition("IMPORTED ")
    return done.returncode, text + done.stderr, set(imported.split())


@pytest.mark.parametrize("name", ["", *commands()])
def test_help_imports_nothing_slow(name: str) -> None:
    code, text, imported = in_process(*filter(None, [name, "--help"]))
    assert code == 0
    assert f"usage: keepaug {name}".strip() in text
    assert "keepaug.__main__" not in text
    assert not imported & SLOW


@pytest.mark.parametrize(("name", "arguments", "message"), REFUSED)
def test_refusals_import_nothing_slow(name: str, arguments: str, message: str) -> None:
    code, text, imported = in_process(name, *arguments.split())
    assert code == 2
    assert message in text
    assert "Traceback" not in text
    assert not imported & SLOW


@pytest.mark.parametrize(
    "line",
    [
        "train-reid root=d --output",
        "train-detector --config quickstart/detector --output",
        "audit --model m --data d --augment cutout --output",
        "convert --weights w --output",
        "report . --output",
    ],
)
def test_an_empty_path_is_not_the_folder_here(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*line.split(), ""])
    assert end.value.code == 2
    assert "argument --output: expected a path, got an empty text" in capsys.readouterr().err


def test_only_what_can_be_resumed_is_told_to_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*given: object, **more: object) -> None:
        raise KeyboardInterrupt

    for module, name, line, said in (
        ("keepaug.audit.run", "audit", "audit --model m --data d --augment cutout", "interrupted"),
        ("keepaug.classify.loop", "train", "train-classifier root=d", f"interrupted; {RESUMES}"),
    ):
        monkeypatch.setattr(importlib.import_module(module), name, interrupted)
        assert main(line.split()) == 130
        assert capsys.readouterr().err == f"{said}\n"
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", interrupted)  # while it is being imported
    assert main(["report"]) == 130


@pytest.mark.parametrize(
    ("line", "output", "said"),
    [
        ("train-reid root=d", "f", "f is a file: choose another folder"),
        ("train-detector --config quickstart/detector", "f/run", "f is a file: choose another folder"),
        (
            "audit --model m --data d --augment cutout --dry-run",
            "f/a/b",
            "f is a file: choose another folder",
        ),
        ("extract-reid --weights w --data d", "", " is a folder; name a file in it"),
        ("show --weights w --image i", "9" * 5000, "File name too long"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    line: str, output: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(SystemExit) as end:
        main([*line.split(), "--output", str(tmp_path / output)])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", commands())
def test_every_option_says_what_it_is(name: str) -> None:
    if not hasattr(module := importlib.import_module(commands()[name].module), "build_parser"):
        return
    for action in module.build_parser()._actions:
        said = action.option_strings or action.dest
        assert action.help, f"{name} {said} has no help"
        if action.type in (int, float):
            assert action.default is None or str(action.default) in module.build_parser().format_help()


@pytest.mark.parametrize(
    ("line", "now"),
    [
        ("audit --model m --data d --augment cutout --images 3", "--limit-images"),
        ("audit --model m --data d --augment cutout --size 3", "--side"),
        ("benchmark --workers 3", "--num-workers"),
        ("benchmark --batch 3", "--batch-size"),
        ("extract-reid --data d --weights w --output o --images d", "--data"),
        ("figures 2 runs --commands", "--dry-run"),
        ("quickstart --jobs 3", "--at-once"),
        ("reproduce 1 --gpus 3", "--num-gpus"),
    ],
)
def test_old_names_are_refused_with_todays(line: str, now: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert end.value.code == 2
    assert f"did you mean {now}?" in capsys.readouterr().err


def test_every_command_is_listed_and_every_script_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    for name, command in commands().items():
        assert re.search(rf"^  {name} +\w", text, flags=re.MULTILINE), name
        assert callable(command.load())
    called = [re.search(r'main\(\["([\w-]+)"', path.read_text()) for path in (ROOT / "tools").glob("*.py")]
    assert {found[1] for found in called if found} == set(commands()) - {"configs", "completion"}


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-clasifier"]) == 2
    assert "did you mean train-classifier?" in capsys.readouterr().err


def test_a_script_is_its_command(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "train_reid.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={})
    assert done.stdout.startswith("usage: keepaug train-reid")


def test_configs_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = ROOT / "configs" / "reid" / "laptop.yaml"
    for name in ("reid/laptop", "reid/laptop.yaml", "configs/reid/laptop.yaml"):
        assert find_config(name) == wanted
    (tmp_path / "reid").mkdir()
    (tmp_path / "reid" / "laptop.yaml").touch()  # the user's own file goes first
    assert find_config("reid/laptop.yaml") == Path("reid/laptop.yaml")
    assert find_config(wanted) == wanted
    with pytest.raises(FileNotFoundError, match="did you mean reid/laptop"):
        find_config("laptop.yaml")


def test_configs_are_listed_printed_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from detection.config import load_config as load_detector
    from reid.config import ReidConfig

    assert main(["configs"]) == 0
    text = capsys.readouterr().out
    for name in config_names():
        assert re.search(rf"^{name} +\w", text, flags=re.MULTILINE), name
    assert main(["configs", "reid", "detection/small_retinanet_R_18_FPN", "--copy-to", str(tmp_path)]) == 0
    assert load_config(ReidConfig, tmp_path / "reid" / "laptop.yaml").arch == "resnet18"
    name = "detection/small_retinanet_R_18_FPN"
    copied, original = load_detector(tmp_path / f"{name}.yaml"), load_detector(name)
    assert copied == original
    capsys.readouterr()
    assert main(["configs", "reid", "--copy-to", str(tmp_path)]) == 2
    assert "there already" in capsys.readouterr().err
    assert main(["configs", "reid/laptop", "--print"]) == 0
    assert capsys.readouterr().out == (ROOT / "configs" / "reid" / "laptop.yaml").read_text()


def test_the_detector_takes_our_names_and_detectron2s() -> None:
    from detection.train_command import build_parser, job_from

    parser = build_parser()
    given = [
        "--config",
        "c.yaml",
        "root=COCO",
        "seed=3",
        "SOLVER.BASE_LR=0.1",
        "--output",
        "o",
        "weights=a=b",
    ]
    job = job_from(parser.parse_intermixed_args(given), parser)
    own = ["SEED", "3", "SOLVER.BASE_LR", "0.1", "MODEL.WEIGHTS", "a=b", "OUTPUT_DIR", "o"]
    assert (job.data_root, list(job.opts)) == (Path("COCO"), own)
    theirs = ["--config-file", "c.yaml", "--data-root", "COCO", "SEED", "3", "SOLVER.BASE_LR", "0.1"]
    job = job_from(parser.parse_intermixed_args([*theirs, "MODEL.WEIGHTS", "a=b", "OUTPUT_DIR", "o"]), parser)
    assert (job.data_root, list(job.opts)) == (Path("COCO"), own)


def test_an_evaluation_takes_the_runs_own_config(tmp_path: Path) -> None:
    from detection.train_command import own_config

    (tmp_path / "config.yaml").touch()
    run = str(tmp_path)
    own = ["--eval-only", "--config", f"{run}/config.yaml", "--resume", f"OUTPUT_DIR={run}", "root=COCO"]
    assert own_config(["--eval-only", run, "root=COCO"]) == own
    theirs = ["--eval-only", "MODEL.WEIGHTS", "x.pth"]
    assert own_config(theirs) == theirs


def test_a_shell_completes_commands_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    text = capsys.readouterr().out
    for wanted in (*commands(), "--eval-only", "saliency=", "unlabelled_ratio="):
        assert wanted in text
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_the_page_of_commands_is_true() -> None:
    from keepaug.audit.command import build_parser as audit_parser

    page = (ROOT / "docs" / "commands.md").read_text()
    rows = {
        row[0]: row for row in (line.strip("| ").split(" | ") for line in page.splitlines() if "|" in line)
    }
    assert {name.strip("`") for name in rows} >= set(commands())
    for name in commands():
        scripts = re.findall(r"tools/\w+\.py", rows[f"`{name}`"][2])
        assert all(f'main(["{name}"' in (ROOT / script).read_text() for script in scripts)
        assert bool(scripts) == (name not in ("completion", "configs"))
    for code in (0, 1, 2, 75, 130, 141):
        assert str(code) in rows
    parsers = {
        name: importlib.import_module(command.module).build_parser()
        for name, command in commands().items()
        if name.startswith("train-")
    }
    settings = {name: set(getattr(parser, "settings", ())) for name, parser in parsers.items()}
    for key in ("method", "saliency", "recipe", "keep", "weights"):
        owners = {name for name, known in settings.items() if key in known}
        said = set(re.findall(r"train-\w+", rows[f"`{key}`"][2])) - {"train-detector"}
        assert owners == said, key
    for key in ("root", "num_workers", "precision", "tracker"):
        missing = {name for name, known in settings.items() if known and key not in known}
        assert missing <= {"train-uda"} if key == "num_workers" else not missing, key
    for option in ("--config", "--output", "--resume"):
        assert all(option in parser._option_string_actions for parser in parsers.values())
    assert "--output" in audit_parser()._option_string_actions
