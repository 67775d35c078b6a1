"""KeepRandAugment in a plain PyTorch loop: the three lines marked with (1), (2) and (3).

    python tools/examples/plain_loop.py --epochs 20

The policy changes uint8 pixels, before the normalization; the map is of the normalized images. Learns to tell
drawn squares from drawn discs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from shapes import shapes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from keepaug import KeepRandAugment, saliency_map


def normalize(pixels: Tensor) -> Tensor:
    return pixels.float() / 64 - 1


def small_network() -> nn.Module:
    """Three strided convolutions; any other classifier will do."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))


def train(epochs: int, seed: int) -> tuple[list[float], float]:
    """Losses of the steps, and the accuracy on images that were not shown."""
    torch.manual_seed(seed)
    images, labels = shapes(num=640).tensors
    pixels = ((images + 1) * 64).clamp(0, 255).to(torch.uint8)
    loader = DataLoader(TensorDataset(pixels[:512], labels[:512]), 32, shuffle=True)
    model = small_network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    keep = KeepRandAugment(num_ops=2, magnitude=4, size=12)  # (1)
    losses = []
    for epoch in range(epochs):
        for batch, target in loader:
            heat = saliency_map(model, normalize(batch), target, scale=0.5)  # (2)
            loss = F.cross_entropy(model(normalize(keep(batch, heat))), target)  # (3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {losses[-1]:.3f}", flush=True)
    with torch.no_grad():
        right = model.eval()(normalize(pixels[512:])).argmax(dim=1) == labels[512:]
    accuracy = float(right.float().mean())
    print(f"accuracy on other images {100 * accuracy:.0f} %")
    return losses, accuracy


def main(argv: Sequence[str] | None = None) -> tuple[list[float], float]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    return train(args.epochs, args.seed)


if __name__ == "__main__":
    main()
