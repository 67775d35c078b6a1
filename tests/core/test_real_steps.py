"""The two lines inside the steps that people have, whatever network, label, wrapper or compiler is there."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.transforms import v2

import keepaug
from keepaug import (
    AttentiveCutMix,
    CutMix,
    Cutout,
    GridMask,
    KeepCutMix,
    KeepCutout,
    KeepPaste,
    KeepRandomErasing,
    ManifoldMixup,
    MixedLabels,
    Mixup,
    RandomErasing,
    mixed_cross_entropy,
    saliency_map,
)

SEEDS = range(4)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(seed: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Images of a drawn number and size, and their classes."""
    num, height, width = (int(torch.randint(low, 13, (), generator=seeded(seed))) for low in (2, 8, 9))
    images = torch.randn(num, 3, height, width, generator=seeded(seed))
    return images, torch.randint(classes, (num,), generator=seeded(seed))


class Trunk(nn.Module):
    """Convolution, BatchNorm, dropout, linear layer; `around` runs the block in the middle."""

    def __init__(self, outputs: int = 4, around: Callable[..., Tensor] = lambda block, x: block(x)) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.block = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), nn.Conv2d(6, 6, 3, padding=1))
        self.head, self.around = nn.Linear(6, outputs), around

    def forward(self, images: Tensor) -> Any:
        return self.head(self.around(self.block, self.first(images)).mean(dim=(2, 3)))


def network(outputs: int = 4, seed: int = 0) -> Trunk:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Trunk(outputs)


def gradient(module: nn.Module, images: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    """The oracle: plain autograd in evaluation mode."""
    module = copy.deepcopy(module).eval()
    pixels = images.clone().requires_grad_()
    (found,) = torch.autograd.grad(total(module(pixels)), pixels)
    return found.abs().amax(dim=1)


# --- networks ---


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    plain = network()
    images, labels = batch(1)
    wanted = saliency_map(plain, images, labels)
    saving = copy.deepcopy(plain)
    saving.around = lambda block, x: checkpoint(block, x, use_reentrant=reentrant)
    saving(images).sum().backward()
    before = [parameter.grad.clone() for parameter in saving.parameters()]
    for part in saving.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.load_state_dict(plain.block[0].state_dict())
    for _ in range(2):
        torch.testing.assert_close(saliency_map(saving, images, labels), wanted)
    assert all(torch.equal(p.grad, g) for p, g in zip(saving.parameters(), before, strict=True))
    assert all(p.requires_grad for p in saving.parameters())


def test_reentrant_checkpointing_in_a_forward_of_ones_own_is_not_guessed_at() -> None:
    """Parameters outside of the network would be given a gradient."""
    images, labels = batch(2)
    module, head = network(6), nn.Linear(6, 4)
    module.around = lambda block, x: checkpoint(block, x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant"):
        saliency_map(module, images, labels, forward=lambda x: head(module(x)))
    assert head.weight.grad is None


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_network_that_begins_in_place(scale: float) -> None:
    class InPlace(Trunk):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.sub_(0.5).mul_(2))

    class Copying(Trunk):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward((images - 0.5) * 2)

    images, labels = batch(3)
    before = images.clone()
    own, other = InPlace(), Copying()
    other.load_state_dict(own.state_dict())
    found = saliency_map(own, images, labels, scale=scale)
    assert torch.equal(images, before)
    torch.testing.assert_close(found, saliency_map(other, images, labels, scale=scale))


class OneSize(nn.Module):
    """Takes one size alone, and refuses others in one of the ways that networks have."""

    def __init__(self, size: tuple[int, int], way: str) -> None:
        super().__init__()
        self.size, self.way, self.seen = size, way, []
        self.flat = nn.Linear(3 * size[0] * size[1], 4)

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape[2:]))
        if self.way == "assert":
            assert images.shape[2:] == self.size, "Input height doesn't match model"
        if self.way == "value" and images.shape[2:] != self.size:
            raise ValueError("Input image size doesn't match model")
        return self.flat(images.flatten(1)).sin()


@pytest.mark.parametrize("way", ["assert", "value", "linear"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_network_of_one_size_sees_its_size(seed: int, way: str) -> None:
    images, labels = batch(seed)
    height, width = images.shape[2:]
    scale = float(torch.empty(()).uniform_(0.3, 0.8, generator=seeded(seed)))
    module = OneSize((height, width), way)
    shrunk = (round(height * scale), round(width * scale))
    with pytest.warns(UserWarning, match=f"OneSize takes no images of {shrunk[0]} x {shrunk[1]} .*costs"):
        found = saliency_map(module, images, labels, scale=scale)
    small = F.interpolate(images, size=shrunk, mode="bicubic", antialias=True).requires_grad_()
    logits = module(F.interpolate(small, size=(height, width), mode="bilinear"))
    (wanted,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), small)
    wanted = F.interpolate(wanted.abs().amax(dim=1)[:, None], size=(height, width), mode="bilinear")[:, 0]
    torch.testing.assert_close(found, wanted)
    module.seen.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        torch.testing.assert_close(saliency_map(module, images, labels, scale=scale), wanted)
    assert module.seen == [(height, width)]  # and not tried again


def test_a_networks_own_error_is_not_taken_for_a_size() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("broken at any size")

    class Full(nn.Module):
        calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            raise torch.OutOfMemoryError("out of memory")

    images, labels = batch(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="broken at any size"):
            saliency_map(Broken(), images, labels, scale=0.5)
        full = Full()
        with pytest.raises(torch.OutOfMemoryError):
            saliency_map(full, images, labels, scale=0.5)
    assert full.calls == 1


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "levit_128s"])
def test_timms_networks_of_one_size(name: str) -> None:
    timm = pytest.importorskip("timm")
    module = timm.create_model(name, num_classes=4, depth=1) if "vit_t" in name else timm.create_model(name)
    with pytest.warns(UserWarning, match="enlarged again to 224 x 224"):
        heat = saliency_map(module, torch.randn(1, 3, 224, 224), torch.tensor([1]), scale=0.5)
    assert heat.shape == (1, 224, 224)
    assert bool((heat > 0).any())


def test_a_map_of_nothing_is_said() -> None:
    """A last layer that starts at 0, or float16 that underflows: Keep would then choose at random."""
    images, labels = batch(5)
    module = network()
    nn.init.zeros_(module.head.weight)
    with pytest.warns(UserWarning, match="0 everywhere"):
        saliency_map(module, images, labels)
    half = network().half()
    half.first.weight.data *= 1e-7
    with pytest.warns(UserWarning, match="float16 loses small gradients"):
        saliency_map(half, images.half(), labels, scale=0.5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        for _ in range(3):
            saliency_map(module, images, labels)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # images that need no map, and maps of one's own, say nothing
        saliency_map(network(), images, labels, only=torch.arange(len(images)) == 0)
        KeepCutout(3)(images, torch.zeros(len(images), *images.shape[2:]))


# --- labels and logits ---


@pytest.mark.parametrize("of", ["logit", "loss"])
@pytest.mark.parametrize("seed", SEEDS)
def test_soft_and_one_hot_labels(seed: int, of: str) -> None:
    classes = 2 + seed
    images, labels = batch(seed, classes)
    module = network(classes, seed)
    wanted = saliency_map(module, images, labels, of=of)
    for same in (
        F.one_hot(labels, classes),
        F.one_hot(labels, classes).double(),
        labels[:, None],
        labels.int(),
    ):
        torch.testing.assert_close(saliency_map(module, images, same, of=of), wanted)
    soft = torch.rand(len(images), classes, generator=seeded(seed)).softmax(dim=1)
    total = (lambda z: (z * soft).sum()) if of == "logit" else (lambda z: -(soft * z.log_softmax(1)).sum())
    torch.testing.assert_close(saliency_map(module, images, soft, of=of), gradient(module, images, total))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_single_logit(seed: int) -> None:
    images, labels = batch(seed, 2)
    module = network(1, seed)
    column = copy.deepcopy(module)
    flat = nn.Sequential(column, nn.Flatten(0))  # logits (N,)
    wanted = gradient(module, images, lambda z: z.sum())
    loss = gradient(
        module, images, lambda z: F.binary_cross_entropy_with_logits(z[:, 0], labels.float(), reduction="sum")
    )
    for own in (labels, labels[:, None], labels.float(), labels[:, None].float(), labels.bool()):
        for one in (module, flat):
            torch.testing.assert_close(saliency_map(one, images, own), wanted)
            torch.testing.assert_close(saliency_map(one, images, own, of="loss"), loss)
    torch.testing.assert_close(saliency_map(module, images), wanted)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 1\], got 0 to 7"):
        saliency_map(module, images, (labels > 9).long() + 7 * F.one_hot(torch.tensor(0), len(images)))


def test_an_output_that_holds_its_logits() -> None:
    class Holder(Trunk):
        def forward(self, images: Tensor) -> Any:
            return type("Output", (), {"logits": super().forward(images), "loss": None})

    images, labels = batch(1)
    plain = network()
    module = Holder()
    module.load_state_dict(plain.state_dict())
    assert torch.equal(saliency_map(module, images, labels), saliency_map(plain, images, labels))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": lambda x: x}, TypeError, r"nn.Module itself.*got function; .*forward=function"),
        ({"images": [torch.zeros(3, 8, 8)]}, TypeError, "got list: .*torch.stack"),
        ({"images": np.zeros((2, 3, 8, 8), "f")}, TypeError, "got ndarray"),
        ({"images": torch.zeros(2, 3, 4, 8, 8)}, ValueError, r"got \(2, 3, 4, 8, 8\)"),
        ({"labels": [0, 1]}, TypeError, r"got list: pass torch.tensor\(labels\)"),
        ({"labels": torch.tensor([0.0, 1.0])}, TypeError, r"float32: pass labels.long\(\)"),
        ({"labels": torch.tensor([[0.0], [1.0]])}, TypeError, r"float32: pass labels.long\(\)"),
        ({"labels": torch.zeros(2, 3)}, ValueError, "of the 4 classes of the logits, got 3"),
        ({"labels": torch.zeros(3, 4)}, ValueError, r"shape \(2,\), or \(2, classes\).*got \(3, 4\)"),
        ({"labels": torch.zeros(2, 4, 1)}, ValueError, r"got \(2, 4, 1\)"),
    ],
)
def test_what_is_no_batch_gets_the_way_to_one(change: dict, error: type[Exception], message: str) -> None:
    call = {"model": network(), "images": torch.zeros(2, 3, 8, 8), "labels": torch.tensor([0, 1]), **change}
    with pytest.raises(error, match=message):
        saliency_map(**call)


ON_IMAGES = [Cutout(3), KeepCutout(3), RandomErasing(), KeepRandomErasing(), GridMask()]
MIXING = [CutMix(), KeepCutMix(), Mixup(), AttentiveCutMix(3, 2), ManifoldMixup(num_layers=1)]


@pytest.mark.parametrize("augment", ON_IMAGES, ids=lambda a: type(a).__name__)
def test_on_one_image_the_advice_is_a_batch(augment: Any) -> None:
    picture = Image.fromarray(np.zeros((9, 8, 3), np.uint8))
    for transform, error in (
        (augment, TypeError),
        (v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32), augment]), ValueError),
    ):
        with pytest.raises(error, match="on a batch, after the loader"):
            transform(picture)
    for mixing in MIXING:
        with pytest.raises(TypeError, match="on a batch, after the loader"):
            mixing(picture, 1)
    with pytest.raises(TypeError, match="on a batch, after the loader"):
        KeepPaste(3)(picture, picture)


@pytest.mark.parametrize("kind", [Cutout, KeepCutout, KeepPaste])
@pytest.mark.parametrize("size", [0, -1, (3, 0), 2.5, (1, 2, 3), True])
def test_a_size_that_is_none_is_refused_when_it_is_said(kind: Any, size: Any) -> None:
    with pytest.raises(ValueError, match=r"at least 1 x 1 pixels, got|size must be a whole number"):
        kind(size)


@pytest.mark.parametrize("augment", MIXING, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("seed", SEEDS)
def test_mixing_of_soft_labels_is_that_of_their_classes(augment: Any, seed: int) -> None:
    classes = 3 + seed
    images, labels = batch(seed, classes)
    heat = torch.rand(len(images), *images.shape[2:], generator=seeded(seed))
    logits = torch.randn(len(images), classes, generator=seeded(seed), dtype=torch.float64)
    rows = F.one_hot(labels, classes)
    found = []
    for given in (labels, rows, rows.float().softmax(dim=1)):
        mixed, own = augment(images, given, heat, generator=seeded(9))
        found.append((mixed, own if isinstance(own, MixedLabels) else own.labels))
    (first, of_classes), (second, of_rows), (third, of_soft) = found
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert torch.equal(of_classes.dense(classes), of_rows.dense(classes))
    torch.testing.assert_close(mixed_cross_entropy(logits, of_classes), mixed_cross_entropy(logits, of_rows))
    torch.testing.assert_close(  # the loss of a mixture is the mixture of the losses
        mixed_cross_entropy(logits, of_soft), F.cross_entropy(logits, of_soft.dense(classes).double())
    )
    with pytest.raises(ValueError, match=f"of {classes} classes, not {classes + 1}"):
        of_rows.dense(classes + 1)


def test_mixing_for_a_single_logit() -> None:
    images, labels = batch(2, 2)
    for given in (labels.float(), labels[:, None].float()):
        _, mixed = CutMix()(images, given)
        assert mixed.dense(1).shape == (len(images), 1)
        with pytest.raises(
            ValueError, match=r"binary_cross_entropy_with_logits\(logits, labels.dense\(1\)\)"
        ):
            mixed_cross_entropy(torch.zeros(len(images), 1), mixed)


# --- compilers and wrappers ---

COMPILED: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    **{type(a).__name__: lambda x, y, h, a=a: a(x, h) for a in ON_IMAGES},
    **{type(a).__name__: lambda x, y, h, a=a: a(x, y, h)[0] for a in MIXING[:-1]},
    "KeepPaste of small tau": lambda x, y, h: KeepPaste(3, tau=0.01)(x, x + 1, h),
    "matched": lambda x, y, h: KeepCutout(4, placement="matched", p=0.5)(x, h),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_without_a_break_for_any_batch(name: str) -> None:
    """The last batch of an epoch is smaller: `generator=None` in a call of torch fails then."""
    torch._dynamo.reset()
    compiled = torch.compile(COMPILED[name], backend="eager", fullgraph=True)
    images, labels, heat = torch.randn(6, 3, 12, 10), torch.arange(6) % 4, torch.rand(6, 12, 10)
    for num in (6, 4):
        found = compiled(images[:num], labels[:num], heat[:num])
        assert found.shape == images[:num].shape
        assert bool(torch.isfinite(found).all())


def test_a_compiled_cut_is_below_the_quantile() -> None:
    torch._dynamo.reset()
    heat = torch.rand(40, 9, 8, generator=seeded(0))
    compiled = torch.compile(lambda h: keepaug.sample_regions(h, 3), backend="eager", fullgraph=True)
    regions = compiled(heat)
    scores, _ = keepaug.region_scores(heat, 3)
    ranks = scores.flatten(1).argsort(dim=1).argsort(dim=1)
    chosen = ranks.gather(1, (regions.top * scores.shape[2] + regions.left)[:, None])
    assert int(chosen.max()) < 0.6 * scores[0].numel()
    assert len(set(chosen[:, 0].tolist())) > 10


def test_a_map_inside_of_a_compiled_step() -> None:
    torch._dynamo.reset()
    module = network()

    def step(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(module(images * saliency_map(module, images, labels)[:, None]), labels)

    compiled = torch.compile(step, backend="eager")
    images, labels = torch.randn(6, 3, 12, 10), torch.arange(6) % 4
    for num in (6, 4, 3):
        images, labels = images[:num], labels[:num]
        module.eval()
        torch.testing.assert_close(compiled(images, labels), step(images, labels))
    torch._dynamo.reset()
    with pytest.raises(Exception, match="compute the map before the compiled step"):
        torch.compile(step, backend="eager", fullgraph=True)(images, labels)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_in_lightning_fabric(precision: str) -> None:
    lightning = pytest.importorskip("lightning")
    module = network()
    images, labels = batch(1)
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
    wrapped, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
    found = saliency_map(wrapped, images, labels, scale=0.5)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        given = images.to(module.head.weight.dtype)
        wanted = saliency_map(module, given, labels, scale=0.5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05 * float(wanted.max()))
    fabric.backward(F.cross_entropy(wrapped(KeepCutout(3)(images, found)), labels))
    assert all(p.grad is not None and p.requires_grad for p in module.parameters())
    optimizer.step()


def test_fully_sharded_with_flat_parameters_is_refused() -> None:
    """Frozen for the saliency pass, they would reduce no gradients in the step that follows."""
    module = network()
    module.block.__dict__["_use_orig_params"] = False  # as FullyShardedDataParallel sets it
    with pytest.raises(ValueError, match="use_orig_params=True, or take fully_shard"):
        saliency_map(module, *batch(0))


def test_messages_are_one_sentence() -> None:
    with pytest.raises(TypeError) as caught:
        KeepCutout(3)(Image.new("RGB", (4, 4)))
    assert "\n" not in str(caught.value)
    assert not re.search(r"  ", str(caught.value))


def _sharded_losses(rank: int, store: str, results: Any) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    torch.set_num_threads(1)
    shared = torch.distributed.FileStore(store, 2)
    torch.distributed.init_process_group("gloo", store=shared, rank=rank, world_size=2)
    images, labels = torch.randn(4, 3, 9, 8, generator=seeded(rank)), torch.arange(4)
    for kind in ("fully_shard", "FullyShardedDataParallel"):
        for keep in (False, True):
            module: Any = network()
            torch.manual_seed(0)  # of dropout, which the maps draw no number from
            wanted = saliency_map(module, images, labels, scale=0.5)
            if kind == "fully_shard":
                fully_shard(module.block)
                fully_shard(module)
            else:
                module = FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)
            optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
            for step in range(4):
                if keep:
                    heat = saliency_map(module, images, labels, scale=0.5)
                    assert step or torch.allclose(heat, wanted)
                loss = F.cross_entropy(module(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                results.put((kind, rank, step, keep, loss.item()))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_sharded_networks_train_on_as_without_maps(tmp_path: Any) -> None:
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(_sharded_losses, (str(tmp_path / "store"), results), nprocs=2)
    losses: dict[bool, dict[tuple[Any, ...], float]] = {False: {}, True: {}}
    while not results.empty():
        kind, rank, step, keep, loss = results.get()
        losses[keep][kind, rank, step] = loss
    assert len(losses[True]) == 16
    assert losses[True] == losses[False]
