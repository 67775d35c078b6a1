"""The classifier loop: methods do what they say, runs resume exactly, the early head learns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import oracles
import pytest
import torch

from keepaug.classify import METHODS, SALIENCY, ClassifyConfig, datasets, loop, train
from keepaug.classify.config import check
from keepaug.classify.datasets import _limit, open_datasets
from keepaug.classify.losses import loss_of
from keepaug.classify.methods import build_policy, compute_saliency
from keepaug.classify.optimizer import learning_rate
from keepaug.data.images import one_by_one
from keepaug.data.synthetic import write_classification
from keepaug.models import EarlyHeadNetwork, build_network
from keepaug.models.weights import load_classifier
from keepaug.policies import Repeated
from keepaug.runs.config import ConfigError, load_config, recipe_of

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).with_name("tiny.yaml")
IN_DOUBLE = ROOT / "tests" / "in_double.py"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classes") / "drawn"
    return write_classification(root, num_train=24, num_val=8, num_classes=2, size=(32, 32), colour_cue=0.8)


def config(root: Path, *more: str) -> ClassifyConfig:
    return load_config(ClassifyConfig, TINY, [f"root={root}", *more])


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if "network" not in one.traits])
def test_every_method_runs_and_records_itself(method: str, drawn: Path, tmp_path: Path) -> None:
    saliency = ["saliency=low_resolution"] if METHODS[method].needs_saliency else []
    metrics = train(config(drawn, f"method={method}", *saliency), tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"] == metrics
    assert result["synthetic"] is True
    assert result["shortened"] is True
    weights = load_classifier(tmp_path / "weights.pt")
    assert weights.provenance["recipe"]["method"] == result["recipe"]["method"] == method
    assert weights.provenance["dataset"] == result["dataset"]
    assert (tmp_path / "augmented.png").stat().st_size > 1000


@pytest.mark.parametrize("saliency", SALIENCY)
@pytest.mark.parametrize("method", ["keep_cutout", "keep_cutmix", "keep_rand_augment"])
def test_every_saliency_mode(method: str, saliency: str, drawn: Path, tmp_path: Path) -> None:
    train(config(drawn, f"method={method}", f"saliency={saliency}", "pictures=false"), tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert any(key.startswith("head.") for key in state) == ("early" in saliency)


SETTINGS = {
    "cutout": ["placement=inside", "size=20"],
    "random_erasing": [],
    "cutmix": ["placement=inside", "alpha=4"],
}


@pytest.mark.parametrize("pair", SETTINGS)
def test_keep_spares_what_is_important(pair: str) -> None:
    """A map with one hot square: the plain method covers it, the Keep version hardly ever."""
    images = torch.randn(400, 3, 48, 48)
    heat = torch.zeros(400, 48, 48)
    heat[:, 20:28, 4:12] = 1
    boxes = torch.tensor([[20, 4, 8, 8]]).expand(400, 4)
    lost = {}
    for method in (pair, f"keep_{pair}"):
        settings = load_config(ClassifyConfig, None, [f"method={method}", *SETTINGS[pair]])
        seen = []
        augment = METHODS[method].build(settings).augment
        for seed in range(3):
            regions = augment.sample(images, heat, generator=torch.Generator().manual_seed(seed))
            seen.append((oracles.covered_share(regions, boxes) >= 0.5).double().mean())
        lost[method] = float(sum(seen) / 3)
    assert lost[pair] > 0.05
    assert lost[f"keep_{pair}"] < (0.9 if pair == "cutmix" else 0.5) * lost[pair], (
        lost
    )  # CutMix's boxes are often half the image


def test_early_head_learns_with_its_weight() -> None:
    torch.manual_seed(0)
    early = EarlyHeadNetwork(build_network("resnet18", 3)).train()
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    gradients = {}
    for weight in (0.3, 0.6):
        early.zero_grad()
        settings = ClassifyConfig(early_weight=weight)
        loss_of(early(images), labels, settings).backward()
        gradients[weight] = early.head.weight.grad.clone()
    torch.testing.assert_close(gradients[0.6], 2 * gradients[0.3])
    assert gradients[0.3].abs().sum() > 0
    assert early.network.fc.weight.grad.abs().sum() > 0


def test_saliency_modes_differ_as_they_should() -> None:
    early = EarlyHeadNetwork(build_network("resnet18", 3))
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    maps = [compute_saliency(early, images, labels, mode) for mode in SALIENCY]
    for first in range(4):
        assert maps[first].shape == (2, 32, 32)
        for second in range(first):
            assert not torch.allclose(maps[first], maps[second])
    with pytest.raises(ValueError, match="needs a network with an early head"):
        compute_saliency(early.network, images, labels, "early_head")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["keep_cutmix", "keep_rand_augment"])
def test_killed_and_resumed_is_uninterrupted(method: str, drawn: Path, tmp_path: Path) -> None:
    options = [
        f"root={drawn}",
        f"method={method}",
        "max_steps=7",
        "epochs=9",
        "checkpoint_every=1",
        "pictures=false",
        "log_every=1",
        "ema=0.9",
    ]
    command = [sys.executable, str(ROOT / "tools" / "train_classifier.py"), "--config", str(TINY), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, "--output", str(whole)], check=True, env=environment, capture_output=True)
    process = subprocess.Popen(
        [*command, "--output", str(killed)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    metrics = killed / "metrics.jsonl"
    while time.monotonic() < deadline and not (
        metrics.is_file() and len(metrics.read_text().splitlines()) >= 3
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "result.json").exists()
    done = subprocess.run(
        [*command, "--output", str(killed), "--resume"],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "resuming at step" in done.stdout
    first, second = weights(whole), weights(killed)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (whole / "metrics.jsonl").read_text() == metrics.read_text()


@pytest.mark.slow
def test_two_processes_are_one(drawn: Path, tmp_path: Path) -> None:
    """BatchNorm over both, a policy, a last batch of five images that they share unevenly, and an
    evaluation of seven: each image counts once; weights and logs are equal to the order of sums.
    """
    options = [
        f"root={drawn}", "method=rand_augment", "pictures=false", "stem=cifar", "batch_size=8",
        "limit_train=13", "limit_val=7", "epochs=1", "max_steps=0", "log_every=1", "sync_batchnorm=true",
        "lr=0.005", "precision=float32",
    ]  # fmt: skip
    tool = [str(IN_DOUBLE), "train-classifier", "--config", str(TINY), *options]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for name, start in (("one", []), ("two", torchrun)):
        command = [sys.executable, *start, *tool, "--output", str(tmp_path / name)]
        subprocess.run(command, check=True, env=environment, capture_output=True)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in one.items():
        assert value.dtype in (torch.float64, torch.int64)
        # The mean of both halves' means would be off by 6e-4.
        torch.testing.assert_close(two[key], value, atol=1e-11, rtol=0)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert [line["step"] for line in logs[0]] == [1, 2, 2]
    for ours, theirs in zip(*logs, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-11)


@pytest.mark.slow
def test_two_processes_share_one_batch(drawn: Path, tmp_path: Path) -> None:
    """torchrun with two processes: weights close to those of one process, and all images' saliency maps
    kept.
    """
    options = [
        f"root={drawn}",
        "method=keep_cutout",
        "pictures=false",
        "p=0",
        "flip=false",
        "padding=0",
        "lr=0.001",
        "stem=cifar",
        "batch_size=8",
        "limit_train=16",
        "epochs=3",
        "max_steps=0",
        "reuse_every=2",
    ]
    tool = str(ROOT / "tools" / "train_classifier.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*torchrun, tool, "--config", str(TINY), *options, "--output", str(tmp_path / "two")],
        check=True,
        env=environment,
        capture_output=True,
    )
    subprocess.run(
        [sys.executable, tool, "--config", str(TINY), *options, "--output", str(tmp_path / "one")],
        check=True,
        env=environment,
        capture_output=True,
    )
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["extra"]["world_size"] == 2
    moved = max(float((one[key] - two[key]).abs().max()) for key in one if key.endswith("weight"))
    assert moved < 0.02  # BatchNorm sees half of the batch in each process: close, not equal
    caches = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["saliency_cache"]
        for name in ("one", "two")
    ]
    assert caches[0]["epochs"].tolist() == caches[1]["epochs"].tolist() == [2] * 16
    # Each image's map is most like its own in the other run, though BatchNorm's averages are one process's.
    likeness = torch.corrcoef(torch.cat([cache["maps"].flatten(1).float() for cache in caches]))[:16, 16:]
    assert int((likeness.argmax(dim=1) == torch.arange(16)).sum()) >= 14, likeness.diagonal()


def test_resume_refuses_another_run(drawn: Path, tmp_path: Path) -> None:
    train(config(drawn, "pictures=false"), tmp_path)
    with pytest.raises(ConfigError, match="holds a run already"):
        train(config(drawn, "pictures=false"), tmp_path)
    with pytest.raises(ConfigError, match=r"lr \(was 0.01, is 0.5\)"):
        train(config(drawn, "pictures=false", "lr=0.5"), tmp_path, resume=True)


def test_learning_rate() -> None:
    cosine = load_config(ClassifyConfig, None, ["epochs=10", "lr=0.4"])
    assert [round(learning_rate(cosine, step, 10), 4) for step in (0, 50, 100)] == [0.4, 0.2, 0.0]
    steps = load_config(
        ClassifyConfig,
        None,
        ["epochs=10", "lr=0.4", "schedule=multistep", "milestones=[3, 6]", "warmup_epochs=1"],
    )
    found = [learning_rate(steps, step, 10) for step in (0, 9, 10, 29, 30, 60)]
    assert found == pytest.approx([0.04, 0.4, 0.4, 0.4, 0.04, 0.004])


@pytest.mark.parametrize(
    "path",
    [
        *sorted(ROOT.glob("configs/classify/*.yaml")),
        *(ROOT / "configs" / "lab" / f"{name}.yaml" for name in ("cifar10", "cifar10_large", "backbone")),
    ],
    ids=lambda p: p.stem,
)
def test_configs_load_change_a_default_and_say_how_to_run(path: Path) -> None:
    settings = load_config(ClassifyConfig, path, ["root=x"])
    check(settings)
    assert settings != load_config(ClassifyConfig, None, ["root=x"])
    header = path.read_text().split("\n_base_")[0]
    for word in ("keepaug train-classifier --config", "Time:", "Expected"):
        assert word in header


def test_limit_takes_every_class() -> None:
    labels = torch.tensor([0] * 5 + [1] * 5 + [2] * 5)
    assert labels[_limit(15, 6, labels)].bincount().tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["root=''"], "root is empty"),
        (["method=random_erasing", "area=[0.5, 0.1]"], "area must be"),
        (["schedule=multistep", "milestones=[5, 2]"], "rising epochs"),
        (["momentum=0"], "nesterov needs momentum"),
        (["dataset=imagenet", "loading=memory"], "loading=memory cannot hold"),
        (["batch_size=500", "drop_last=true"], "larger than the 12 images"),
        (["method=rand_augment", "magnitude=12", "magnitude_max=10"], "beyond magnitude_max=10"),
        (["device=cuda:7"], "no CUDA device|GPU"),
    ],
)
def test_contradictions_stop_before_training(
    options: list[str], message: str, drawn: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(config(drawn, *options), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_image_files_with_workers(drawn: Path) -> None:
    data = open_datasets(config(drawn, "loading=files", "image_size=24", "method=rand_augment", "jitter=0.4"))
    batch = data.train.load(torch.arange(4), torch.arange(4) << 30)
    assert batch.images.shape == batch.strong.shape == (4, 3, 24, 24)
    assert data.synthetic


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        (["limit_train=10"], [4, 4, 2]),
        (["limit_train=9"], [4, 4]),
        (["limit_train=10", "drop_last=true"], [4, 4]),
    ],
)
def test_an_epoch_shows_all_images_but_one_alone(
    options: list[str], batches: list[int], drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PyTorch's loaders in the released code; BatchNorm has no statistics of one image."""
    seen, original = [], loop._step

    def step(run, batch, *rest):
        seen.append(len(batch.labels))
        return original(run, batch, *rest)

    monkeypatch.setattr(loop, "_step", step)
    train(config(drawn, "method=none", "max_steps=3", "pictures=false", *options), tmp_path)
    assert seen == batches


@pytest.mark.parametrize("method", ["keep_rand_augment", "aug_mix"])
@pytest.mark.parametrize("loading", ["memory", "files"])
def test_views_differ_by_the_policy_alone(
    loading: str, method: str, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the identity for a policy both views of each training step are one, jitter and lighting
    included.
    """
    one = lambda config: Repeated(identity, 2) if config.method == "aug_mix" else identity  # noqa: E731
    monkeypatch.setattr(datasets, "build_policy", one)
    monkeypatch.setattr(datasets, "build_batch_policy", lambda config: one_by_one(one(config)))
    seen, original = [], loop._views

    def views(*given):
        seen.append(original(*given))
        return seen[-1]

    monkeypatch.setattr(loop, "_views", views)
    settings = ["jitter=0.4", "lighting=0.1", f"loading={loading}", "epochs=1"]
    settings += ["image_size=32"] if loading == "files" else []
    train(config(drawn, f"method={method}", *settings), tmp_path)
    assert len(seen) == 3  # two steps and the pictures
    for clean, strong in seen:
        for view in strong.unbind(dim=1) if strong.ndim == 5 else [strong]:
            assert torch.equal(view, clean)


def identity(image):
    return image


def test_policies_have_googles_ranges_and_colours_where_a_recipe_says_so() -> None:
    root = ROOT / "configs" / "classify"
    for name, method, wanted in (
        ("cifar10_auto_augment", "keep_auto_augment", [125.0, 123.0, 114.0]),
        ("cifar10_auto_augment", "rand_augment", [125.0, 123.0, 114.0]),
        ("imagenet", "rand_augment", [128.0] * 3),
        ("imagenet", "auto_augment", [128.0] * 3),
        ("cifar10", "rand_augment", None),
    ):
        settings = load_config(ClassifyConfig, root / f"{name}.yaml", [f"method={method}", "root=x"])
        policy = build_policy(settings)
        assert policy.fill == wanted
        enhancer = policy._AUGMENTATION_SPACE["Color"]
        assert enhancer[1] is (wanted is None)  # Google's go one way
    assert settings.mean_colour == (125.0, 123.0, 114.0)
    imagenet = build_policy(
        load_config(ClassifyConfig, root / "imagenet.yaml", ["method=rand_augment", "root=x"])
    )
    assert (imagenet.magnitude, imagenet.num_magnitude_bins) == (9, 11)


@pytest.mark.slow
def test_compiled_bf16_channels_last(drawn: Path, tmp_path: Path) -> None:
    options = [
        "method=keep_cutout",
        "precision=bf16",
        "channels_last=true",
        "pictures=false",
        "saliency=low_resolution_early",
    ]
    train(config(drawn, *options), tmp_path)
    assert (tmp_path / "weights.pt").is_file()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("severity=9", "severity is for aug_mix"),
        ("tau=0.1", "tau is for keep"),
        ("saliency=early_head", "saliency is for keep"),
        ("num_ops=7", "num_ops is for rand_augment"),
        ("early_weight=0.1", "early_weight is for early"),
        ("milestones=[3]", "milestones is for multistep"),
    ],
)
def test_a_setting_that_the_method_does_not_use_is_refused(given: str, said: str, drawn: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        config(drawn, "method=cutout", given)
    assert recipe_of(config(drawn, "method=cutout")).keys().isdisjoint({given.partition("=")[0]})
