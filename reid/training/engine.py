"""Training and testing on torchreid's Engine.

torchreid's loop over batches, its registration of networks and optimizers and its model modes are used as
they are; `forward_backward` is ours. What its Engine gets wrong is overridden here: it opens frozen
parameters each epoch, tests by a protocol that fails on small galleries and returns the last target's rank-1
alone, and saves checkpoints that cannot be read back.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from keepaug.data.batch_transforms import normalize
from keepaug.data.images import Batch
from keepaug.runs.config import ConfigError
from keepaug.runs.distributed import Distributed, gather_all
from keepaug.runs.guard import check_finite, only_finite
from keepaug.runs.progress import RunBar, say
from keepaug.runs.recorder import Recorder
from keepaug.runs.seeds import derive_seed, make_generator
from keepaug.transfer import start_reading, to_device
from reid.config import ReidConfig, is_shortened
from reid.data.manager import DataManager
from reid.evaluation.scores import Scored, score
from reid.models.network import ReidNetwork
from reid.models.weights import describe_network, save_trained
from reid.torchreid_api import torchreid_module
from reid.training.erasing import build_eraser, draw_erasing, erase, heat_of
from reid.training.losses import CenterLoss, batch_hard_triplet, learning_rate

BEST = "best.pt"
_Engine: Any = torchreid_module("engine").Engine


class KeepEngine(_Engine):
    """Bag of Tricks with KeepRandomErasing.

    Args:
        manager: loaders.
        network: the network, on the CPU.
        config: resolved settings.
        world: this process among others.
    """

    def __init__(
        self, manager: DataManager, network: ReidNetwork, config: ReidConfig, world: Distributed
    ) -> None:
        super().__init__(manager, use_gpu=False)  # placement is ours: torchreid knows DataParallel alone
        self.config, self.world = config, world
        self.recorder: Recorder | None = None
        self.network = self.model = network
        self.forward_network = world.place(
            network, sync_batchnorm=config.sync_batchnorm, channels_last=config.channels_last
        )
        self.optimizer = torch.optim.Adam(
            [parameter for parameter in network.parameters() if parameter.requires_grad],
            lr=config.lr,
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
        )
        self.register_model("model", network, self.optimizer, None)  # the rate is a function of the epoch
        self.center: CenterLoss | None = None
        self.center_optimizer: torch.optim.SGD | None = None
        if config.centre_weight:
            generator = make_generator(config.seed, "centres")
            self.center = CenterLoss(network.num_identities, network.feature_dim, generator=generator)
            self.center.to(world.device)
            self.center_optimizer = torch.optim.SGD(self.center.parameters(), lr=config.centre_lr)
        self.eraser = build_eraser(config)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best = -1.0
        self.results: dict[str, Scored] = {}
        self.tested_at: int | None = None  # the step that the results are of
        self.bar: RunBar | None = None

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        total = self.config.epochs * len(self.train_loader.sampler)
        return min(total, self.config.max_steps) if self.config.max_steps else total

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Train to the end; evaluate every `eval_every` epochs and at the end, checkpoint after each epoch.

        torchreid's own arguments are not taken: the settings are in the config.
        """
        if args or kwargs:
            raise TypeError("run() takes no arguments here; the settings are in the config")
        self.max_epoch = self.config.epochs
        with RunBar(self.total_steps, self.step, disable=not self.world.is_main) as self.bar:
            self._run()

    def _run(self) -> None:
        while True:
            if self._evaluation_is_due():
                self._evaluate_and_record()
                self.save()
            if self.step >= self.total_steps:
                return
            self.epoch = self.train_loader.epoch
            self.train(print_freq=sys.maxsize)
            self.save()  # before the evaluation, which may find that an image is gone

    def _evaluation_is_due(self) -> bool:
        if self.history and self.history[-1]["step"] == self.step:
            return False
        if self.step == 0:
            return self.config.eval_untrained
        loader = self.train_loader
        whole_epoch = loader.position == 0 and loader.epoch % self.config.eval_every == 0
        return whole_epoch or self.step >= self.total_steps

    def two_stepped_transfer_learning(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: torchreid's would open all parameters for training, the neck's frozen bias among them."""

    def forward_backward(self, data: Batch) -> dict[str, float]:
        """One step.

        Returns:
            The losses, for torchreid's meters.

        Raises:
            NonFiniteLossError: the loss is no longer a number.
        """
        config, device, world = self.config, self.world.device, self.world
        last_good = None if self.recorder is None else self.recorder.last_checkpoint
        # Every step has its own streams, so that a resumed run goes on as the first one would have.
        torch.manual_seed(derive_seed(config.seed, "network", self.step, world.rank))
        labels = to_device(data.labels, device)
        images = normalize(to_device(data.images, device), config.mean, config.std)
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            regions_generator = make_generator(config.seed, "regions", self.step)
            drawn = draw_erasing(self.eraser, images, generator=regions_generator, world=world)
            scale = config.saliency_scale
            heat = heat_of(self.eraser, self.network, images, labels, drawn, scale=scale, world=world)
            read_heat = None
            if heat is not None:
                heat, read_heat = only_finite(heat)
            inputs, _ = erase(
                self.eraser,
                images,
                heat,
                drawn,
                regions_generator=regions_generator,
                fill_generator=make_generator(config.seed, "fill", self.step, world.rank),
                world=world,
            )
            logits, features = self.forward_network(inputs)
        losses = self.losses(logits, features, labels)
        total = losses["loss"]
        values = torch.stack([value.detach() for value in losses.values()])
        read_losses = start_reading(world.sum(values) / world.world_size)
        self._update(total)
        # Here, so that a GPU has the rest of the step to do while the host waits.
        if read_heat is not None:
            check_finite(float(read_heat()), self.step, last_good, what="saliency")
        summary = dict(zip(losses, read_losses().tolist(), strict=True))
        check_finite(summary["loss"], self.step, last_good)
        self.step += 1
        if self.bar is not None:
            self.bar.step(epoch=self.train_loader.epoch + 1, loss=summary["loss"])
        self._record(summary)
        return summary

    def losses(self, logits: Tensor, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Identity, triplet and center loss and their weighted sum "loss", in float32.

        The identity loss is over this process's images, the others over those of all processes.
        """
        config = self.config
        identity = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing or 0.0)
        everyone, everyones = gather_all(features.float()), gather_all(labels)
        triplet = batch_hard_triplet(everyone, everyones, margin=config.margin)
        losses = {"identity": identity, "triplet": triplet}
        total = identity + config.triplet_weight * triplet
        if self.center is not None:
            losses["centre"] = self.center(everyone, everyones)
            total = total + (config.centre_weight or 0.0) * losses["centre"]
        return {**losses, "loss": total}

    def _update(self, total: Tensor) -> None:
        config = self.config
        rate = learning_rate(
            self.train_loader.epoch,
            base=config.lr,
            warmup_epochs=config.warmup_epochs if config.warmup else 0,
            warmup_factor=config.warmup_factor,
            milestones=config.milestones,
            gamma=config.gamma,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        if self.center_optimizer is not None:
            self.center_optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        if self.center is not None and self.center_optimizer is not None:
            self.center.rescale_gradient(config.centre_weight or 1.0)
            self.center_optimizer.step()

    def _record(self, summary: dict[str, float]) -> None:
        config = self.config
        if self.recorder is not None and (self.step % config.log_every == 0 or self.step == self.total_steps):
            values = {f"train/{key}": value for key, value in summary.items()}
            self.recorder.log(self.step, {**values, "train/lr": self.get_current_lr()})
        if (
            config.checkpoint_every
            and self.step % config.checkpoint_every == 0
            and self.step < self.total_steps
        ):
            self.save()
        if self.recorder is not None and self.step < self.total_steps:
            self.recorder.stop_if_asked(self.step, self.save, self.world)

    def test(self, *args: Any, **kwargs: Any) -> dict[str, Scored]:  # type: ignore[override]
        """Scores of every target, by name (on the main process; the others only compute features)."""
        self.results = {
            name: scored
            for name, one in self.test_loader.items()
            if (scored := score(self.network, one, self.config, self.world)) is not None
        }
        self.tested_at = self.step
        return self.results

    def _evaluate_and_record(self) -> None:
        results = self.test()
        if self.recorder is None or not self.world.is_main:
            return
        first = results[self.datamanager.targets[0]].metrics
        self.history.append({"step": float(self.step), **first})
        scores = [(name, one.metrics) for name, one in results.items()]
        values = {f"{name}/{key}": value for name, own in scores for key, value in own.items()}
        self.recorder.log(self.step, values)
        shown = ", ".join(f"{key} {first[key]:.1f}" for key in ("rank1", "mAP"))
        say(f"step {self.step}: {shown} %")
        if self.step and first["mAP"] > self.best:
            self.best = first["mAP"]
            self.save_weights(BEST)

    def claim(self, recorder: Recorder, *, resume: bool, started_from: dict[str, Any] | None) -> None:
        """Record with `recorder` from now on, and go on from its folder's checkpoint if there is one.

        Args:
            recorder: of the run's folder.
            resume: whether there may be a checkpoint.
            started_from: the file of the first weights.

        Raises:
            ConfigError: what `Recorder.claim` refuses, or a run that has done more steps than are asked for.
        """
        config, manager = self.config, self.datamanager
        state = recorder.claim(
            resume,
            name=config.name or f"{manager.identity['name']}-{config.arch.replace(':', '-')}-{config.recipe}",
            dataset=manager.identity,
            synthetic=manager.synthetic,
            shortened=is_shortened(config),
            started_from=started_from,
            root=config.root,
            device=str(self.world.device),
            processes=self.world.world_size,
            state_dict=self.network,
            optimizer=self.optimizer,
            centre=self.center,
            centre_optimizer=self.center_optimizer,
            loader=self.train_loader,
            history=self.history,
        )
        self.recorder, self.step, self.best = recorder, state["step"], state.get("best", -1.0)
        if self.step > self.total_steps:
            raise ConfigError(
                f"{recorder.path} holds a run of {self.step} steps, more than the {self.total_steps} asked "
                "for: raise epochs or max_steps, or choose another folder"
            )

    def save(self) -> None:
        """Write the checkpoint: all that the rest of the run depends on, as tensors and plain numbers."""
        if self.recorder is not None:
            about = describe_network(self.config, self.datamanager.labels, self.recorder.provenance)
            self.recorder.save(self.step, **about, best=self.best)

    def save_weights(self, name: str) -> None:
        """Write the network into the run's folder."""
        if self.recorder is not None and self.world.is_main:
            about = describe_network(self.config, self.datamanager.labels, self.recorder.provenance)
            save_trained(self.network, self.recorder.path / name, about)

    def save_model(self, epoch: int, rank1: float, save_dir: str, is_best: bool = False) -> None:
        """`save`, by torchreid's name; its own checkpoints hold numpy numbers, which weights_only refuses."""
        self.save()
