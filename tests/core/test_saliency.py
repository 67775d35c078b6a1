"""The saliency pass: right by two oracles, and leaves no trace."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

sys.path.insert(0, str(Path(__file__).parent.parent))
import oracles

from keepaug import saliency_map, sample_regions


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip
    network[1].running_mean.normal_()
    network[1].running_var.uniform_(0.5, 2)
    return network


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 10, 8, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([0, 3, 4, 1])


def test_is_the_paper_formula_image_by_image(model: nn.Module, images: torch.Tensor) -> None:
    heat = saliency_map(model, images, LABELS)
    assert heat.shape == (4, 10, 8)
    assert heat.dtype == torch.float32
    for index in range(4):
        torch.testing.assert_close(heat[index], oracles.saliency(model, images[index], int(LABELS[index])))


@pytest.mark.parametrize("labels", [LABELS, None])
def test_of_the_loss_is_the_gradient_of_the_cross_entropy(
    labels: torch.Tensor | None, model: nn.Module, images: torch.Tensor
) -> None:
    """Another map than the logit's: what speaks for the other classes counts too."""
    heat = saliency_map(model, images, labels, of="loss")
    for index in range(4):
        pixels = images[index : index + 1].clone().requires_grad_(True)
        logits = model.eval()(pixels)
        label = logits.argmax(dim=1) if labels is None else labels[index : index + 1]
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, label), pixels)
        torch.testing.assert_close(heat[index], gradient[0].abs().amax(dim=0))
    both = torch.stack([heat.flatten(), saliency_map(model, images, labels).flatten()])
    assert float(torch.corrcoef(both)[0, 1]) < 0.98


def test_agrees_with_captum(model: nn.Module, images: torch.Tensor) -> None:
    captum = pytest.importorskip("captum.attr")
    wanted = (
        captum.Saliency(model.eval()).attribute(images.clone().requires_grad_(), target=LABELS).amax(dim=1)
    )
    torch.testing.assert_close(saliency_map(model, images, LABELS), wanted.detach())


def test_without_labels_uses_the_largest_logit(model: nn.Module, images: torch.Tensor) -> None:
    best = model.eval()(images).argmax(dim=1)
    assert torch.equal(saliency_map(model, images), saliency_map(model, images, best))


def test_low_resolution_runs_on_the_shrunk_image(model: nn.Module, images: torch.Tensor) -> None:
    seen = []
    hook = model[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    heat = saliency_map(model, images, LABELS, scale=0.5)
    hook.remove()
    assert seen == [(4, 3, 5, 4)]
    small = F.interpolate(images, size=(5, 4), mode="bicubic", antialias=True)
    wanted = F.interpolate(saliency_map(model, small, LABELS)[:, None], size=(10, 8), mode="bilinear")[:, 0]
    torch.testing.assert_close(heat, wanted)
    nearest = saliency_map(model, images, LABELS, scale=0.5, upsample="nearest")
    assert torch.equal(nearest[:, ::2, ::2], nearest[:, 1::2, 1::2])


def test_leaves_everything_as_found(model: nn.Module, images: torch.Tensor) -> None:
    model.train()
    model[4].eval()  # a mixture of modes must come back as it was
    model[0].weight.requires_grad_(False)
    model(images).sum().backward()
    before = {
        "modes": [m.training for m in model.modules()],
        "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires": [p.requires_grad for p in model.parameters()],
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "rng": torch.get_rng_state(),
        "images": images._version,
    }
    heat = saliency_map(model, images, LABELS)
    assert [m.training for m in model.modules()] == before["modes"]
    for parameter, grad in zip(model.parameters(), before["grad"], strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)
    assert [p.requires_grad for p in model.parameters()] == before["requires"]
    assert all(torch.equal(v, before["state"][k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before["rng"])
    assert images._version == before["images"]
    assert not images.requires_grad
    assert not heat.requires_grad
    assert heat.grad_fn is None


def test_restores_after_an_error(model: nn.Module, images: torch.Tensor) -> None:
    model.train()
    with pytest.raises(RuntimeError, match="broken"):
        saliency_map(model, images, LABELS, forward=lambda x: (_ for _ in ()).throw(RuntimeError("broken")))
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_random_layers_do_not_consume_the_generator(images: torch.Tensor) -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * torch.rand_like(x)).mean(dim=(2, 3))

    state = torch.get_rng_state()
    saliency_map(Noisy(), images)
    assert torch.equal(torch.get_rng_state(), state)


def test_computes_no_weight_gradients(model: nn.Module, images: torch.Tensor) -> None:
    seen: list[bool] = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        seen.extend(p.requires_grad for p in model.parameters())
        return model(x)

    saliency_map(model, images, LABELS, forward=forward)
    assert seen
    assert not any(seen)


def test_does_not_mix_images(images: torch.Tensor) -> None:
    """In training mode BatchNorm couples the images of a batch; here another neighbour changes nothing."""
    torch.manual_seed(0)
    network = resnet18(num_classes=5).train()
    pixels = torch.randn(3, 3, 32, 32)
    other = torch.cat([pixels[:1], 5 * torch.randn(2, 3, 32, 32)])
    first = saliency_map(network, pixels, torch.tensor([0, 1, 2]))[0]
    torch.testing.assert_close(first, saliency_map(network, other, torch.tensor([0, 1, 2]))[0])


def test_works_where_gradients_are_off(model: nn.Module, images: torch.Tensor) -> None:
    wanted = saliency_map(model, images, LABELS)
    with torch.no_grad():
        assert torch.equal(saliency_map(model, images, LABELS), wanted)
    with torch.inference_mode():
        found = saliency_map(model, images.clone(), LABELS)
    assert torch.equal(found, wanted)
    assert not found.is_inference()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(model: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> None:
    wanted = saliency_map(model, images, LABELS, scale=0.5)
    found = saliency_map(model.to(dtype), images.to(dtype), LABELS, scale=0.5)
    assert found.dtype == torch.float32
    assert torch.corrcoef(torch.stack([found.flatten(), wanted.flatten()]))[0, 1] > 0.98


def test_channels_last_and_autocast(model: nn.Module, images: torch.Tensor) -> None:
    wanted = saliency_map(model, images, LABELS)
    torch.testing.assert_close(
        saliency_map(model, images.to(memory_format=torch.channels_last), LABELS), wanted
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = saliency_map(model, images, LABELS)
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.02)


def test_empty_batch(model: nn.Module) -> None:
    assert saliency_map(model, torch.zeros(0, 3, 7, 5), torch.zeros(0, dtype=torch.int64)).shape == (0, 7, 5)


def test_through_distributed_data_parallel(model: nn.Module, images: torch.Tensor, tmp_path: Path) -> None:
    wanted = saliency_map(model, images, LABELS)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        parallel.module.forward, original = parallel.module.forward, parallel.module.forward
        assert torch.equal(saliency_map(parallel, images, LABELS), wanted)
        parallel.train()
        parallel(images).sum().backward()  # the reducer still expects exactly this backward
        assert all(p.grad is not None for p in model.parameters())
        assert original is not None
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_through_torch_compile(model: nn.Module, images: torch.Tensor) -> None:
    wanted = saliency_map(model, images, LABELS)
    compiled = torch.compile(model, backend="aot_eager").train()
    torch.testing.assert_close(saliency_map(compiled, images, LABELS), wanted)
    assert compiled.training
    assert all(m.training for m in model.modules())
    compiled(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(3, 8, 8)}, ValueError, r"shape \(N, C, H, W\).*\(3, 8, 8\)"),
        ({"images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, TypeError, "floating point.*uint8"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"labels must have the shape \(4,\)"),
        ({"labels": torch.zeros(4)}, TypeError, "integer"),
        ({"labels": torch.tensor([0, 1, 2, 9])}, ValueError, r"labels must be in \[0, 4\], got 0 to 9"),
        ({"scale": 0.0}, ValueError, r"scale must be in \(0, 1\]"),
        ({"upsample": "cubic"}, ValueError, "bilinear.*nearest"),
        ({"of": "entropy"}, ValueError, "logit, loss"),
        ({"forward": lambda x: x}, ValueError, "must return logits"),
        ({"forward": lambda x: torch.zeros(4, 5)}, ValueError, "do not depend on the images"),
    ],
)
def test_errors_say_what_to_do(model, images, change, error, message) -> None:
    call = {"images": images, "labels": LABELS, **change}
    with pytest.raises(error, match=message):
        saliency_map(model, call.pop("images"), call.pop("labels"), **call)


def test_a_resnets_map_and_its_choice_of_regions_are_those_of_plain_autograd() -> None:
    torch.manual_seed(0)
    network = resnet18(num_classes=5)
    network(torch.randn(16, 3, 64, 64))  # statistics that are not 0 and 1
    pixels, labels = torch.randn(6, 3, 64, 64), torch.tensor([0, 1, 2, 3, 4, 0])
    found = saliency_map(network.train(), pixels, labels)
    leaf = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network.eval()(leaf).gather(1, labels[:, None]).sum(), leaf)
    wanted = gradient.abs().amax(dim=1)
    assert float((found - wanted).abs().max() / wanted.max()) < 1e-5
    drawn = [sample_regions(heat, 16, generator=torch.Generator().manual_seed(1)) for heat in (found, wanted)]
    assert all(torch.equal(first, second) for first, second in zip(*drawn, strict=True))


def test_through_a_compiled_function_inside_forward(model: nn.Module, images: torch.Tensor) -> None:
    wanted = saliency_map(model, images, LABELS)
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(saliency_map(model, images, LABELS, forward=lambda x: compiled(x)), wanted)
