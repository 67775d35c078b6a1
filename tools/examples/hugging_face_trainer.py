"""KeepCutout in Hugging Face's Trainer: the three lines marked with (1), (2) and (3).

    python tools/examples/hugging_face_trainer.py --epochs 6

Any image classifier of transformers, in any precision and number of processes. Needs transformers and
accelerate (pip install transformers accelerate). Learns to tell drawn squares from drawn discs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

from shapes import shapes
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from keepaug import KeepCutout, saliency_map


class TrainerWithKeep(Trainer):
    """Trainer whose training steps see KeepCutout's images; evaluation is as ever."""

    keep = KeepCutout(size=8)  # (1)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of one batch."""
        if model.training:
            images, labels = inputs["pixel_values"], inputs["labels"]
            heat = saliency_map(model, images, labels, scale=0.5)  # (2)
            inputs = {**inputs, "pixel_values": self.keep(images, heat)}  # (3)
        return super().compute_loss(model, inputs, *args, **kwargs)


def main(argv: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rows = [{"pixel_values": image, "labels": label} for image, label in shapes(num=128)]
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1], "layer_type": "basic"}
    with tempfile.TemporaryDirectory() as folder:
        settings = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": args.seed}
        arguments = TrainingArguments(
            folder,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            logging_steps=1,
            **settings,
        )
        trainer = TrainerWithKeep(
            args=arguments,
            train_dataset=rows,
            model_init=lambda: ResNetForImageClassification(ResNetConfig(num_labels=2, **sizes)),
        )
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
