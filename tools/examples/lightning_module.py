"""KeepRandomErasing in a LightningModule: the three lines marked with (1), (2) and (3).

    python tools/examples/lightning_module.py --epochs 3

Under Trainer's mixed precision, gradient accumulation and DDP alike: the saliency pass touches no `.grad` and
passes DDP by. Needs lightning (pip install lightning). Learns to tell drawn squares from drawn discs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import lightning
import torch
from shapes import shapes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from keepaug import KeepRandomErasing, saliency_map


class LitClassifier(lightning.LightningModule):
    """Any classifier, trained with KeepRandomErasing.

    Args:
        model: from images to logits.
        lr: of AdamW.
    """

    def __init__(self, model: nn.Module, lr: float = 1e-3) -> None:
        super().__init__()
        self.model, self.lr = model, lr
        self.keep = KeepRandomErasing(p=0.5)  # (1)
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """One step."""
        images, labels = batch
        heat = saliency_map(self.model, images, labels, scale=0.5)  # (2)
        loss = F.cross_entropy(self.model(self.keep(images, heat)), labels)  # (3)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def main(argv: Sequence[str] | None = None) -> LitClassifier:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    lightning.seed_everything(args.seed)
    module = LitClassifier(resnet18(num_classes=2))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=args.epochs, accelerator="auto", **quiet)
    trainer.fit(module, DataLoader(shapes(), 16, shuffle=True, drop_last=True))
    print(f"loss {module.losses[0]:.3f} -> {module.losses[-1]:.3f}")
    return module


if __name__ == "__main__":
    main()
