"""keepaug reproduce: shrunk runs of every row, skipping, going on, failing, SLURM by submitit's local
executor.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from keepaug.__main__ import commands
from keepaug.classify import loop
from keepaug.classify.tool import TOOL
from keepaug.commands.known import recipes
from keepaug.report import aggregate, fill_table, load_paper
from keepaug.report.cells import load_cells
from keepaug.runs.config import to_dict
from keepaug.runs.jobs import Command, Commands
from keepaug.runs.planning import Tool
from keepaug.runs.result import read_results, write_result

ROOT = Path(__file__).parents[2]


def load(name: str):
    return importlib.import_module(commands()[name].module)


@pytest.fixture(scope="module")
def reproduce():
    return load("reproduce")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def arguments(reproduce, *given: str):
    args = reproduce.build_parser().parse_intermixed_args(list(given))
    args.output = args.output.resolve()
    return args


# Row by row, the columns in turn; networks that take seconds to build once, then a small one of their kind.
BIG = {"wrn28_10": "wrn10_1", "resnet101": "resnet50"}


@pytest.mark.slow
@pytest.mark.parametrize("table", ["1", "1b", "2", "4", "5", "6"])
def test_every_row_runs_shrunk_on_drawn_images(
    table: str, reproduce, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: dict[str, list] = {}
    for cell in load_cells(table):
        rows.setdefault(cell.row, []).append(cell)
    built: set[str] = set()
    folder = output / table
    for number, (row, cells) in enumerate(rows.items()):
        cell = cells[number % len(cells)]
        given = [
            table,
            "--shrink",
            "--seeds",
            "0",
            "--output",
            str(folder),
            "--only",
            f"{row} / {cell.column}",
        ]
        jobs = [
            job for job in reproduce.plan(arguments(reproduce, *given)) if job.name == f"{cell.run}-seed0"
        ]
        arch = jobs[0].settings.arch
        if arch in BIG and arch in built and "arch" not in cell.overrides:
            jobs = reproduce.plan(arguments(reproduce, *given, f"arch={BIG[arch]}"))
            jobs = [job for job in jobs if job.name == f"{cell.run}-seed0"]
        built.add(arch)
        assert reproduce.run_here(jobs) == []
        result = json.loads((jobs[0].folder / "result.json").read_text())
        assert result["synthetic"]
        assert result["shortened"]
        assert {key: result["config"][key] for key in cell.overrides} == cell.overrides
        assert result["dataset"]["name"] == cell.wanted["dataset"]
        for heavy in jobs[0].folder.glob("*.pt"):
            heavy.unlink()
    printed = next(one for one in load_paper() if str(one["id"]) == table)
    filled = fill_table(printed, aggregate(read_results(folder)), recipes(table))
    assert filled.num_run == 0  # drawn and shortened: never in the paper's cells
    assert filled.num_left_out >= 1
    assert filled.num_left_out <= len(rows)
    shutil.rmtree(folder)
    capsys.readouterr()


SMALL = ["2", "--shrink", "--only", "8 / ", "arch=resnet8"]


def test_finished_runs_are_skipped_and_others_go_on(
    reproduce, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*SMALL, "--seeds", "0", "1", "--output", str(tmp_path)]
    real, calls = loop.train, []

    def interrupted(settings, folder, *, resume: bool):
        calls.append(folder.name)
        assert resume
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(settings, folder, resume=resume)

    monkeypatch.setattr(loop, "train", interrupted)
    assert reproduce.main(given) == 130
    assert "goes on from the last checkpoint" in capsys.readouterr().err
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    assert len(done) == 2
    assert reproduce.main(given) == 0
    text = capsys.readouterr().out
    assert text.count("done before") == 2
    assert "4 of 4 runs of table 2 are there" in text
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(list(tmp_path.glob("cifar10-*-seed[01]/result.json"))) == 4
    assert calls[2] == calls[3]  # the interrupted one was run again
    left = {path.name for path in tmp_path.glob("cifar10-*/*.pt")}
    assert left == {"weights.pt"}  # of a shrunk run; others may start from it
    assert reproduce.main([*given, "lr=0.5"]) == 1
    assert "holds a finished run with other settings: lr" in capsys.readouterr().err
    assert reproduce.main([*given, "--dry-run"]) == 0
    assert (out := capsys.readouterr().out).count(": done") == 4
    assert out.endswith("# hours and memory of one of them: its command with --dry-run\n")


def leave_result(folder: Path, tool: Tool, settings: Any, root: str = "") -> None:
    about = {
        "kind": tool.kind,
        "name": "x",
        "seed": tool.seed(settings),
        "config": to_dict(settings) if dataclasses.is_dataclass(settings) else dict(settings),
        "recipe": tool.recipe(settings),
        "precision": tool.precision(settings),
        "started_from": tool.origin(settings),
        "root": root,
        "synthetic": True,
        "shortened": True,
    }
    data = {"name": "d", "sizes": {}, "checksum": "a"}
    write_result(folder, **about, dataset=data, metrics={}, wall_time_s=1.0)


@pytest.mark.parametrize(
    ("table", "setting"),
    [
        ("1", "lr=0.5"),
        ("7", "lr=0.5"),
        ("8", "lr=0.5"),
        ("8", "weights=other"),
        ("9", "SOLVER.BASE_LR=0.5"),
    ],
)
def test_another_runs_folder_is_not_taken_for_this_ones(
    table: str, setting: str, reproduce, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One rule for all tools; bookkeeping does not count."""
    given = [
        table,
        "root=x",
        *(["imagenet=y"] if table == "9" else []),
        "--seeds",
        "0",
        "--output",
        str(tmp_path),
    ]
    job = reproduce.plan(arguments(reproduce, *given))[-1]
    assert not job.finished
    leave_result(job.folder, job.tool, job.settings, job.root)
    assert all(command.done.is_file() for command in job.commands[-1:])
    assert reproduce.main([*given, "--dry-run"]) == 0
    assert reproduce.main([*given[:1], "root=elsewhere", *given[2:], "--dry-run"]) == 0
    capsys.readouterr()
    assert reproduce.main([*given, "--dry-run", setting]) == 1
    assert "refused: " in (said := capsys.readouterr().out)
    assert "holds a finished run with other settings" in said


def test_a_failure_stops_only_what_needs_it(
    reproduce, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(settings, folder, *, resume: bool):
        if settings.seed == 0:
            raise ValueError("no such luck")
        leave_result(folder, TOOL, settings)

    monkeypatch.setattr(loop, "train", failing)
    assert reproduce.main([*SMALL, "--seeds", "0", "1", "--output", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "failed: no such luck" in captured.err
    assert "2 of 4 runs of table 2 are there" in captured.out
    jobs = reproduce.plan(
        arguments(reproduce, "9", "root=c", "imagenet=i", "--seeds", "0", "--output", str(tmp_path))
    )
    assert len(reproduce.run_here(jobs[:2])) == 2
    assert "left out, it needs imagenet-none-seed0" in capsys.readouterr().out


def test_commands_of_the_other_tables_are_the_tools(reproduce, tmp_path: Path) -> None:
    """Read by each tool's own parser; the classifier below a detector is shared with table 6."""
    expected = {"7": 18, "8": 9, "9": 45 + 15}
    for table, number in expected.items():
        given = [table, "root=data", *(["imagenet=i"] if table == "9" else []), "--output", str(tmp_path)]
        jobs = reproduce.plan(arguments(reproduce, *given))
        assert len(jobs) == number
        for job in jobs:
            for command in job.commands:
                run, name, given = command.argv[1:3], command.argv[3], command.argv[4:]
                assert run == ("-m", "keepaug")
                args = load(name).build_parser().parse_intermixed_args(list(given))
                config = getattr(args, "config", None) or getattr(args, "config_file", None)
                assert config is None or config.is_file(), config
    names = {job.name for job in jobs}
    six = reproduce.plan(arguments(reproduce, "6", "root=i", "--output", str(tmp_path)))
    assert {name for name in names if name.startswith("imagenet")} <= {job.name for job in six}
    order = [job.name for job in jobs]
    assert all(order.index(need) < order.index(job.name) for job in jobs for need in job.after)
    many = reproduce.plan(arguments(reproduce, "6", "root=i", "--num-gpus", "4", "--output", str(tmp_path)))
    assert many[0].commands[0].argv[1:6] == (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "4",
    )


@pytest.mark.slow
def test_submitted_by_submitit(
    reproduce, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its local executor pickles the job and runs it in another process, as SLURM would."""
    pytest.importorskip("submitit")
    args = arguments(reproduce, *SMALL, "--seeds", "0", "--output", str(tmp_path), "--hours", "0.1")
    jobs = reproduce.plan(args)[:1]
    handles = reproduce.submit(jobs, args, tmp_path / "slurm", cluster="local")
    handles[0].result()
    queued = handles[0].submission().function.checkpoint()  # what SLURM starts again after the time limit
    assert queued.function == handles[0].submission().function
    assert json.loads((jobs[0].folder / "result.json").read_text())["shortened"]
    assert reproduce.submit(jobs, args, tmp_path / "slurm", cluster="local") == []
    monkeypatch.setenv("PATH", "/nowhere")
    assert reproduce.main([*SMALL, "--seeds", "7", "--output", str(tmp_path), "--slurm"]) == 2
    assert "run on a login node" in capsys.readouterr().err


def test_slurm_jobs_wait_for_the_backbone(reproduce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Handle:
        def __init__(self, job_id: str) -> None:
            self.job_id = job_id

    class Executor:
        def submit(self, commands: Commands) -> Handle:
            return Handle(str(len(asked)))

    monkeypatch.setattr(
        reproduce, "slurm_executor", lambda logs, **options: (asked.append(options), Executor())[1]
    )
    given = [
        "9",
        "root=c",
        "imagenet=i",
        "--seeds",
        "0",
        "--only",
        "R-CNN ResNet50",
        "--output",
        str(tmp_path),
    ]
    args = arguments(reproduce, *given, "--partition", "gpu", "--num-gpus", "8")
    reproduce.submit(reproduce.plan(args), args, tmp_path)
    by_name = {options["name"]: options for options in asked}
    assert len(by_name) == 9
    for name, options in by_name.items():
        method = next(one for one in ("keep_cutmix-low_resolution", "cutmix", "none") if one in name)
        needed = f"imagenet-{method}-seed0"
        ids = [] if name.startswith("imagenet") else [str(list(by_name).index(needed) + 1)]
        assert options["after"] == ids
        assert (options["partition"], options["gpus"]) == ("gpu", 8)


def test_a_shrunk_run_keeps_no_checkpoint_once_its_result_is_there(reproduce, tmp_path: Path) -> None:
    """A table of ResNet-101 detectors kept eleven gigabytes. A whole run keeps all."""
    given = ["lab", "--output", str(tmp_path / "runs"), "--only", "g,h,i", "root=C", "bccd=B", "nyala=N"]
    shrunk, whole = (reproduce.plan(arguments(reproduce, *given, *more)) for more in (["--shrink"], []))
    assert {job.spent for job in whole} == {()}
    assert {job.name[-6:] for job in shrunk} == {"-seed0"}
    assert len(whole) > 2 * len(shrunk)
    spent = {job.tool.name: job.spent for job in shrunk}
    own = {"checkpoint.pt", "checkpoint.previous.pt"}
    gone = {
        "train_classifier": own,  # others start from its weights.pt
        "train_detector": {"model_0000001.pth", "model_final.pth", "last_checkpoint"},
        "train_reid": {*own, "weights.pt", "best.pt"},
        "train_uda": {*own, "weights.pt"},
    }
    assert spent.keys() == gone.keys()
    for name, patterns in spent.items():
        kept = {"result.json", "config.yaml", "metrics.jsonl", "backbone.pth"}
        kept |= {"weights.pt"} - gone[name]
        (folder := tmp_path / name).mkdir()
        for file in gone[name] | kept:
            (folder / file).touch()
        Commands((Command((), folder / "result.json"),), patterns)()
        assert {path.name for path in folder.iterdir()} == kept


def test_commands_run_in_order_and_must_leave_their_file(tmp_path: Path) -> None:
    def python(code: str, done: str) -> Command:
        return Command((sys.executable, "-c", code), tmp_path / done)

    first = python(f"open({str(tmp_path / 'a')!r}, 'w')", "a")
    second = python(f"import os; os.rename({str(tmp_path / 'a')!r}, {str(tmp_path / 'b')!r})", "b")
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(Exception, match="non-zero exit status 3"):
        Commands((first, python("raise SystemExit(3)", "c")), ("check*.pt",))()
    assert (tmp_path / "checkpoint.pt").is_file()  # with it the run goes on
    Commands((first, second), ("check*.pt",))()
    assert (tmp_path / "b").is_file()
    assert not (tmp_path / "checkpoint.pt").exists()
    (tmp_path / "a").write_text("")
    Commands((first, python("raise SystemExit(3)", "b")))()  # both are done: nothing runs
    with pytest.raises(Exception, match="non-zero exit status 3"):
        Commands((python("raise SystemExit(3)", "c"),))()
    with pytest.raises(Exception, match="exit status 0"):
        Commands((python("pass", "c"),))()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["3"], "keepaug benchmark measures it"),
        (["12"], "the paper has the tables"),
        (["1"], "root is empty"),
        (["9"], "root is"),
        (["1", "root=x", "method=none"], "method: that is what the cells"),
        (["1", "root=x", "epoks=3"], "did you mean epochs"),
        (["1", "root=x", "--only", "Cutmix"], "fits no cell"),
        (["1", "root"], "key=value"),
    ],
)
def test_mistakes_stop_before_anything_runs(
    given: list[str], message: str, reproduce, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = reproduce.main([*given, "--output", str(tmp_path / "o")])
    except SystemExit as end:  # what the parser refuses
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_report_prints_a_table_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = load("report")
    assert report.main(["table1", "--runs", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "### Table 1:" in text
    assert "### Table 1b:" in text
    assert "0 of 12 cells have been run" in text
    assert "keepaug reproduce 1 --dry-run" in text
    assert report.main(["table12", "--runs", str(tmp_path)]) == 2
    assert report.main(["table1", "--runs", str(tmp_path / "none")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_lab_plans_pairs_and_tells_their_cost(
    reproduce, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["lab", "root=CIFAR", "--output", str(tmp_path), "precision=float32"]
    jobs = reproduce.plan(arguments(reproduce, *given, "--only", "a", "--seeds", "1"))
    assert jobs[0].name == "none-seed1"
    assert "keep_cutout-16-matched-seed1" in {job.name for job in jobs}
    assert {job.settings.precision for job in jobs} == {"float32"}
    assert f"{len(jobs)} runs; what is not done yet takes about" in capsys.readouterr().out
    for wrong, message in (
        (["tau=0.3"], "tau: that is what the runs differ in"),
        (["--only", "z"], "the questions are a, b"),
        (["--seeds", "99"], "no such seed is planned"),
    ):
        with pytest.raises(ValueError, match=message):
            reproduce.plan(arguments(reproduce, *given, *wrong))


def test_settings_may_follow_seeds(reproduce) -> None:
    for command, before in (("reproduce", ["5"]), ("figures", ["2", "runs"])):
        parser = load(command).build_parser()
        args = parser.parse_intermixed_args([*before, "--seeds", "0", "1", "root=CIFAR", "lr=1"])
        assert (args.seeds, args.overrides) == ([0, 1], ["root=CIFAR", "lr=1"])
        with pytest.raises(SystemExit):
            parser.parse_intermixed_args([*before, "--seeds", "-1"])


def test_lab_plans_detectors_and_reid_on_backbones_of_its_own(reproduce, tmp_path: Path) -> None:
    given = ["lab", "root=CIFAR", "--output", str(tmp_path), "--only", "g,h", "--seeds", "1"]
    with pytest.raises(ValueError, match="bccd is missing: give the folder of detector-random's images"):
        reproduce.plan(arguments(reproduce, *given, "nyala=NYALA"))
    jobs = {job.name: job for job in reproduce.plan(arguments(reproduce, *given, "bccd=B", "nyala=NYALA"))}
    detector, reid = jobs["detector-cutmix-seed1"], jobs["reid-keep-seed1"]
    below = tmp_path / "backbone-cutmix-seed1"
    assert detector.after == ("backbone-cutmix-seed1",)
    convert, train = detector.commands
    assert convert.argv[-5:-1] == ("--weights", str(below / "weights.pt"), "--output", str(convert.done))
    assert convert.done == below / "backbone.pth"
    assert (str(below / "backbone.pth"), 2) == (detector.settings.MODEL.WEIGHTS, detector.settings.SEED)
    assert "root=B" in train.argv
    assert jobs["detector-random-seed1"].after == ()
    assert reid.after == ("backbone-none-seed1",)
    assert (reid.settings.weights, reid.settings.root) == (
        str(tmp_path / "backbone-none-seed1" / "weights.pt"),
        "NYALA",
    )
    assert jobs["backbone-none-seed1"].settings.root == "CIFAR"


def test_a_lab_run_shrunk_on_drawn_images(reproduce, tmp_path: Path) -> None:
    args = arguments(reproduce, "lab", "--output", str(tmp_path), "--shrink", "--only", "b", "--seeds", "0")
    chosen = [job for job in reproduce.plan(args) if job.name == "keep_cutout-16-inside-noise-seed0"]
    assert reproduce.run_here(chosen) == []
    assert chosen[0].finished


def test_runs_at_once_wait_for_what_they_need_and_for_nothing_else(
    reproduce, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first and the last only end when both are running, though what stands between needs the first;
    another needs one that fails.
    """
    wait = (
        "import pathlib, sys, time\n"
        "own, other = map(pathlib.Path, sys.argv[1:])\n"
        "own.touch()\n"
        "deadline = time.monotonic() + 30\n"
        "while not other.exists():\n"
        "    if time.monotonic() > deadline:\n"
        "        sys.exit(1)\n"
        "    time.sleep(0.01)\n"
    )

    def job(name: str, other: str, *after: str) -> object:
        folder = tmp_path / name
        argv = (sys.executable, "-c", wait, str(tmp_path / name), str(tmp_path / other))
        return reproduce.Job(name, folder, (Command(argv, tmp_path / name),), TOOL, None, after=after)

    failing = Command((sys.executable, "-c", "exit(1)"), tmp_path / "no")
    broken = reproduce.Job("broken", tmp_path / "broken", (failing,), TOOL, None)
    jobs = [
        job("one", "two"),
        job("three", "one", "one"),
        job("four", "one", "three", "elsewhere"),
        job("two", "one"),
        broken,
        job("five", "one", "broken"),
    ]
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / "result.json").write_text("{")
    jobs.insert(0, job("refused", "one"))
    failed = reproduce.run_here(jobs, at_once=2)
    assert sorted(failed) == ["broken", "five", "refused"]
    said = capsys.readouterr()
    assert "left out, it needs broken" in said.out
    assert "[1/7] refused: refused: " in said.err


def test_report_writes_the_evidence_page_and_keeps_planned_results_alone(
    reproduce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(
        reproduce, "lab", "root=x", "--output", str(tmp_path / "runs"), "--only", "a", "--seeds", "0"
    )
    jobs = {job.name: job for job in reproduce.plan(args)}
    named = {"none", "cutout-16-inside", "cutout-24-inside"}
    for name, change in [*((name, {}) for name in sorted(named)), ("mine", {"lr": 0.1})]:
        job = jobs[f"{'none' if name == 'mine' else name}-seed0"]
        recipe = job.tool.recipe(job.settings)
        write_result(
            tmp_path / "runs" / name,
            kind="classify",
            name="cifar10-lab-none",
            seed=0,
            metrics={"accuracy": 90.5},
            config={**recipe, **change},
            recipe={**recipe, **change},
            precision={"precision": "bf16"},
            synthetic=False,
            shortened=False,
            wall_time_s=1.0,
            dataset={"name": "cifar10", "sizes": {"val": 10}, "checksum": "a"},
        )
    report = load("report")
    assert (
        report.main(["evidence", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "docs")]) == 0
    )
    assert "| none | 90.50 | 1 | - | " in (tmp_path / "docs" / "evidence.md").read_text()
    kept = {path.relative_to(tmp_path / "docs") for path in (tmp_path / "docs").rglob("result.json")}
    assert kept == {Path(f"evidence/{name}/seed0/result.json") for name in named}
    monkeypatch.setattr(reproduce, "KEPT", tmp_path / "docs" / "evidence")
    names = [job.name for job in reproduce.plan(args)]
    args.missing = True
    # A run without a pair still needs its partner, on the same machine.
    assert [job.name for job in reproduce.plan(args)] == [name for name in names if name != "none-seed0"]
