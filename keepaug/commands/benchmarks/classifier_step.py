"""Table 3 of the paper as ratios on this machine, and the input pipeline beside a train step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from keepaug.choices import CIFAR_MEAN, CIFAR_STD
from keepaug.classify.config import SALIENCY
from keepaug.classify.methods import compute_saliency
from keepaug.data.batch_transforms import draw_crop_flip, normalize
from keepaug.data.images import MemoryImages
from keepaug.data.loader import Loader
from keepaug.data.saliency_cache import SaliencyCache
from keepaug.keep import KeepCutout
from keepaug.models import EarlyHeadNetwork, build_network
from keepaug.policies import BatchPolicy, auto_augment, rand_augment
from keepaug.runs.timing import Table, interleaved

# Table 3: seconds per epoch on a TITAN X, as multiples of Cutout's.
PAPER_RATIOS = {
    "resnet18": {"full": 38 / 19, "low_resolution": 24 / 19, "early_head": 23 / 19},
    "resnet110": {"full": 54 / 28, "low_resolution": 35 / 28, "early_head": 34 / 28},
    "wrn28_10": {"full": 185 / 92, "low_resolution": 102 / 92, "early_head": 99 / 92},
}
SHRUNK = ("resnet18", "resnet8", "wrn10_1")
Step = Callable[[], object]


class _Case:
    """One network with a batch, and what a step of its training is made of."""

    def __init__(
        self, arch: str, device: torch.device, *, batch: int, side: int, bf16: bool, compiled: bool
    ) -> None:
        torch.manual_seed(0)
        network = build_network(arch, 10, stem="cifar" if side <= 64 else "imagenet")
        self.model = EarlyHeadNetwork(network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.plain = self.model.network.train()
        # As the training loop does it: the saliency pass has a compiled graph of its own.
        wrap: Any = torch.compile if compiled else lambda module: module
        self.forward, self.seen, self.early = (
            wrap(self.plain),
            wrap(self.model),
            wrap(self.model.forward_early),
        )
        self.optimizer = torch.optim.SGD(self.plain.parameters(), lr=0.01, momentum=0.9)
        pixels = torch.randn(batch, 3, side, side, device=device)
        self.images = pixels.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(10, (batch,), device=device)
        self.device, self.bf16 = device, bf16
        how = (", bf16" if bf16 else "") + (", compiled" if compiled else "")
        self.name = f"{arch}, batch {batch}, {side} px{how}"

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def step(self) -> None:
        with self.autocast():
            loss = F.cross_entropy(self.forward(self.images).float(), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def pass_of(self, mode: str) -> Step:
        def run() -> Tensor:
            with self.autocast():
                return compute_saliency(self.seen, self.images, self.labels, mode, forward_early=self.early)

        return run

    def augmentations(self) -> dict[str, Step]:
        """What is done with a map once there is one."""
        num, _, height, width = self.images.shape
        keep, heat = KeepCutout(max(1, height // 2)), torch.rand(num, height, width, device=self.device)
        cache, indices = SaliencyCache(num, (height, width)), torch.arange(num)
        place = draw_crop_flip(torch.arange(num) * 7919)
        cache.update(indices, heat, place, epoch=0)
        return {
            "region selection and cut": lambda: keep(self.images, heat),
            "map carried over (reuse_every)": lambda: cache.lookup(indices, place),
        }


def case_of(
    arch: str, device: torch.device, batch: int, side: int, bf16: bool, compiled: bool, shrink: bool
) -> _Case:
    """A network with a batch; small ones with `shrink`."""
    batch, side = (8, 32) if shrink else (batch, side)
    return _Case(arch, device, batch=batch, side=side, bf16=bf16, compiled=compiled)


def saliency_section(
    device: torch.device,
    *,
    arch: Sequence[str] = (),
    batch: int = 128,
    side: int = 32,
    rounds: int = 7,
    bf16: bool = False,
    compiled: bool = False,
    processor_time: bool = False,
    shrink: bool = False,
) -> tuple[Table, dict[str, Any]]:
    """A step with each saliency pass as a multiple of the plain step, and the augmentation calls alone."""
    rows, figures = [], {}
    for network in arch or (SHRUNK if shrink else tuple(PAPER_RATIOS)):
        case = case_of(network, device, batch, side, bf16, compiled, shrink)
        variants: dict[str, Step] = {"train step": case.step}
        variants |= {mode: case.pass_of(mode) for mode in SALIENCY}
        variants |= case.augmentations()
        turns = 1 if shrink else rounds if network == "resnet18" else max(2, rounds // 2)
        seconds = interleaved(variants, turns, device, processor_time=processor_time)
        base = seconds["train step"]
        rows.append([case.name, f"{1000 * base:.1f}", "", "1.000", "1.00" if network in PAPER_RATIOS else ""])
        for name, value in list(seconds.items())[1:]:
            paper = PAPER_RATIOS.get(network, {}).get(name)
            rows.append(
                [
                    f"  {name}",
                    f"{1000 * value:.1f}",
                    f"{value / base:.4f}",
                    f"{1 + value / base:.3f}",
                    f"{paper:.2f}" if paper else "",
                ]
            )
        figures[network] = {n: value / base for n, value in seconds.items()} | {"train step (s)": base}
    head = [
        f"{device.type}, {torch.get_num_threads()} thread(s){', processor time' if processor_time else ''}",
        "ms",
        "share of a step",
        "step with it",
        "paper",
    ]
    return (head, rows), figures


def pipeline_section(
    device: torch.device,
    *,
    arch: Sequence[str] = (),
    batch: int = 128,
    side: int = 32,
    workers: int = 0,
    bf16: bool = False,
    compiled: bool = False,
    processor_time: bool = False,
    shrink: bool = False,
) -> tuple[Table, dict[str, Any]]:
    """Images per second of the input pipeline, without and with strong views, beside a train step's."""
    case = case_of([*arch, "resnet18"][0], device, batch, side, bf16, compiled, shrink)
    batch, side = len(case.images), case.images.shape[2]
    num = batch * (2 if shrink else 16)
    pixels = torch.randint(0, 256, (num, 3, side, side), dtype=torch.uint8)
    variants: dict[str, Step] = {"train step": case.step}
    images = {"train step": batch}
    views = {
        "crop, flip, normalize": None,
        "the same and RandAugment's view": BatchPolicy(rand_augment(3, 9)),
        "the same and AutoAugment's view": BatchPolicy(auto_augment("cifar10")),
    }
    for name, policy in views.items():
        labels = torch.zeros(num, dtype=torch.int64)
        data = MemoryImages(pixels, labels, ["x"], padding=4, flip=True, policy=policy)
        for processes in sorted({0, workers}):
            loader = Loader(data, batch, shuffle=True, num_workers=processes)

            def run(loader: Any = loader) -> None:
                for part in loader:
                    for view in (part.images, part.strong):
                        if view is not None:
                            normalize(view.to(device), CIFAR_MEAN, CIFAR_STD)

            variants[f"{name}, {processes} workers"], images[f"{name}, {processes} workers"] = run, num
    seconds = interleaved(variants, 1 if shrink else 3, device, processor_time=processor_time)
    speed = {name: images[name] / value for name, value in seconds.items()}
    base = speed["train step"]
    rows = [[name, f"{value:.0f}", f"{value / base:.1f}"] for name, value in speed.items()]
    return ([case.name, "images/s", "of the step's"], rows), {
        name: value / base for name, value in speed.items()
    } | {"train step (images/s)": base}
