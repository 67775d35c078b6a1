"""KeepCutout in a plain training loop around a timm network: the three lines marked with (1), (2) and (3).

    python tools/examples/timm_loop.py --arch resnet18 --epochs 3
    python tools/examples/timm_loop.py --arch convnext_pico --data IMAGES --epochs 10     IMAGES/CLASS/*.jpg

Without --data it learns to tell drawn squares from drawn discs. Needs timm (pip install timm).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import timm
import torch
from shapes import shapes
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from keepaug import KeepCutout, saliency_map


def open_data(folder: str | None, side: int) -> tuple[Dataset, int]:
    if folder is None:
        return shapes(side=side), 2
    transform = timm.data.create_transform(side, is_training=True)
    data = ImageFolder(folder, transform)
    return data, len(data.classes)


def train(args: argparse.Namespace) -> list[float]:
    torch.manual_seed(args.seed)
    data, num_classes = open_data(args.data, args.side)
    loader = DataLoader(data, args.batch_size, shuffle=True, drop_last=True)
    model = timm.create_model(args.arch, num_classes=num_classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    keep = KeepCutout(size=args.side // 4)  # (1)
    losses = []
    for epoch in range(args.epochs):
        for images, labels in loader:
            heat = saliency_map(model, images, labels, scale=0.5)  # (2)
            loss = F.cross_entropy(model(keep(images, heat)), labels)  # (3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {losses[-1]:.3f}", flush=True)
    return losses


def main(argv: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--arch", default="resnet18", help="any of timm.list_models()")
    parser.add_argument("--data", help="folder of folders of images")
    parser.add_argument("--side", type=int, default=32, help="pixels")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    return train(parser.parse_args(argv))


if __name__ == "__main__":
    main()
