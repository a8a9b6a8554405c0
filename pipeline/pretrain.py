"""Train a diffusion teacher on your own images.

    dreamshard pretrain --config recipes/digits/pretrain.yaml
    accelerate launch pipeline/pretrain.py --config recipes/digits/pretrain.yaml

Everything random is keyed by (seed, position): noise, noise levels, views and the order of the
images depend on nothing else, so an interrupted run goes on from its checkpoint exactly as if
undisturbed, and any number of processes sees the same global batches.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: import our packages, not the files beside this script
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import math
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamshard import rng
from dreamshard.config import load_config
from dreamshard.errors import ConfigError, Problem, run_main
from pipeline.pretrain_config import PretrainConfig

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn

    from dreamshard.progress import Progress
    from dreamshard.runfolder import RunFolder
    from pipeline.pretraining.data import TrainingImages
    from pipeline.pretraining.resident import ResidentImages
    from pipeline.pretraining.state import Average
    from pipeline.pretraining.watch import ProxyDistance
    from pipeline.teachers.schedules import Schedule

DESCRIPTION = "Train a diffusion teacher (a UNet2DModel) on a set of images."
AHEAD = 2
"""Batches prepared ahead of the network."""
LOG_EVERY = 10
"""Steps between lines of metrics.jsonl."""


def main(argv: Sequence[str]) -> int | None:
    """Run the command; see `dreamshard pretrain --help`."""
    config = load_config(PretrainConfig, argv, prog="dreamshard pretrain", description=DESCRIPTION)
    pretrain(config)
    return None


def pretrain(config: PretrainConfig) -> Path:
    """Train a teacher, or find it already trained; return its folder.

    Raises:
        ConfigError: settings that contradict each other or the source; `out` holds another teacher.
        DataError: no usable image, or a damaged checkpoint.
    """
    from dreamshard.progress import stage
    from pipeline.images import fingerprint, open_source
    from pipeline.pretraining import state

    source = open_source(config.source)
    identity = fingerprint(source)
    if config.class_conditional and not source.has_labels:
        hint = "Use a source with labels."
        raise ConfigError(Problem("class_conditional", "true without labels", "false", hint))
    key = state.recipe_key(config, identity)
    if (card := state.find_teacher(config, key)) is not None:
        stage(f"teacher {config.out} is already trained ({card.get('steps')} steps): reused")
        return Path(config.out)
    _Run(config, source, identity, key).go()
    return Path(config.out)


@dataclass(frozen=True)
class _Batch:
    """One rank's share of a step: tensors on the device."""

    images: Tensor
    noise: Tensor
    labels: Tensor | None
    positions: range


class _Run:
    """One training run: what is built once, and the loop over it."""

    def __init__(
        self, config: PretrainConfig, source: Any, identity: dict[str, object], key: str
    ) -> None:
        import torch
        from accelerate import Accelerator

        from pipeline.pretraining import network, objective
        from pipeline.pretraining.data import TrainingImages
        from pipeline.pretraining.resident import ResidentImages
        from storage.positions import PositionStream

        self.config, self.identity, self.key = config, identity, key
        if config.threads:
            torch.set_num_threads(config.threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        device = device if config.device == "auto" else config.device
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(Problem("device", "cuda", "cpu: no CUDA device was found"))
        self.accelerator: Accelerator = Accelerator(cpu=device == "cpu")
        self.device: torch.device = self.accelerator.device
        self.half = network.uses_bfloat16(config.precision, self.device.type)
        self.ranks = self.accelerator.num_processes
        if config.batch_size % self.ranks:
            allowed = f"a multiple of the {self.ranks} processes"
            raise ConfigError(Problem("batch_size", str(config.batch_size), allowed))
        self.images: TrainingImages = TrainingImages(
            source, config=config.image, seed=config.seed, window=config.crop
        )
        self.resident: ResidentImages | None = None
        if config.draws == "device":
            self.resident = ResidentImages(self.images, config=config, device=self.device)
        self.stream = PositionStream(
            num_samples=len(source), valid=self.images.valid, seed=config.seed
        )
        goal = config.objective
        self.scheduler = objective.scheduler_config(goal.kind, goal.noise_schedule, goal.timesteps)
        self.schedule: Schedule = objective.schedule_for(
            goal.kind, goal.noise_schedule, goal.timesteps
        )
        classes = network.count_classes(source) if config.class_conditional else 0
        module = network.build_network(config, classes).to(self.device)
        self.classes = classes
        self.network: nn.Module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._start_over()
        self.trained = self.accelerator.prepare_model(self.network)
        if config.compile:
            self.trained = torch.compile(self.trained, dynamic=False)
        self.folder = Path(config.run_dir or Path(config.out) / "run")
        self._losses: list[Tensor] = []
        self._distance: ProxyDistance | None = None

    def _start_over(self) -> None:
        """Begin with the average at the network's weights and an optimiser without a past."""
        import torch

        from pipeline.pretraining.state import Average

        self.average: Average = Average(self.network, self.config.ema)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=self.config.lr,
            weight_decay=self.config.weight_decay,
            fused=self.device.type == "cuda",
        )

    def _fit_to_budget(self) -> None:
        """Settle the schedule by a measured step, then begin with the weights untouched."""
        from pipeline.pretraining import budget

        first = {name: value.clone() for name, value in self.network.state_dict().items()}
        batches = self._batches(0, budget.TRIAL_STEPS)
        plan = budget.settle(
            self.config,
            folder=self.folder,
            key=self.key,
            accelerator=self.accelerator,
            step=lambda number: self._step(number, next(batches)),
        )
        batches.close()
        self.network.load_state_dict(first)
        self.config = plan.apply(self.config)
        self._start_over()

    def go(self) -> None:
        """Train from the last checkpoint to the end, then write the teacher."""
        from dreamshard.progress import Progress, stage
        from dreamshard.runfolder import RunFolder
        from pipeline.pretraining import state

        if self.config.minutes is not None:
            self._fit_to_budget()
        config, first = self.config, 0
        if (found := state.read_checkpoint(self.folder / "checkpoint.pt", self.key)) is not None:
            first, parts = found
            state.restore(parts, self._parts())
        chief = self.accelerator.is_main_process
        record = RunFolder(self.folder, config=config) if chief else None
        if chief:
            size = sum(weight.numel() for weight in self.network.parameters())
            kind = "bfloat16" if self.half else "float32"
            begun = f", going on at step {first}" if first else ""
            stage(f"pretrain: {size / 1e6:.2f} M parameters, {self.device.type} {kind}{begun}")
        total, done = config.steps * config.batch_size, first * config.batch_size
        started = time.monotonic()
        with Progress("pretrain", total=total, initial=done, quiet=not chief) as progress:
            for step, batch in enumerate(self._batches(first, config.steps), first):
                loss = self._step(step, batch)
                self._after(step, loss, progress, record)
        if record is not None:
            spent = time.monotonic() - started
            made = (config.steps - first) * config.batch_size
            self._finish(record, seconds=spent, img_per_s=made / max(spent, 1e-9))
        self.images.close()
        self.accelerator.wait_for_everyone()

    def _batches(self, first: int, end: int) -> Generator[_Batch]:
        """Yield this rank's share of every global batch, prepared ahead in a thread."""
        share = self.config.batch_size // self.ranks
        offset = share * self.accelerator.process_index
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            waiting = []
            for step in range(first, end):
                start = step * self.config.batch_size + offset
                waiting.append(pool.submit(self._load, range(start, start + share)))
                if len(waiting) > AHEAD:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()

    def _load(self, positions: range) -> _Batch:
        import torch

        samples = self.stream.samples(positions.start, len(positions))
        if self.resident is not None:
            drawn = self.resident.batch(samples, positions, labels=self.classes > 0)
            return _Batch(**drawn, positions=positions)
        images, labels = self.images.batch(samples, positions)
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
        shape = (3, *images.shape[1:3])
        noise = rng.normal(self.config.seed, positions, 0, "pretrain-noise", shape)
        kind = None
        if self.classes and labels is not None:
            kind = torch.from_numpy(labels).to(self.device)
        return _Batch(
            images=pixels.to(torch.float32) / 127.5 - 1,
            noise=torch.from_numpy(noise).to(self.device),
            labels=kind,
            positions=positions,
        )

    def _step(self, step: int, batch: _Batch) -> Tensor:
        """Take one optimiser step; return the loss over all processes."""
        import torch

        from pipeline.pretraining import objective

        config = self.config
        rate = learning_rate(step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if config.unet.dropout:  # torch's generator decides dropout: set it by step and rank
            rank = self.accelerator.process_index
            draw = rng.generator(config.seed, step, rank, "pretrain-dropout")
            torch.manual_seed(int(draw.integers(2**62)))
        told = {"seed": config.seed, "positions": batch.positions}
        if self.resident is None:
            levels = objective.draw_levels(self.schedule, **told)
        else:
            levels = self.resident.draw_levels(self.schedule, **told)
        example = objective.example(
            self.schedule, batch.images, batch.noise, levels, min_snr=config.objective.min_snr
        )
        x = example.x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            output = self.trained(x, example.time, class_labels=batch.labels, return_dict=False)[0]
        loss = objective.loss_of(output, example)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        if config.clip:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        self.optimizer.step()
        self.average.update(step)
        return loss.detach()

    def _after(self, step: int, loss: Tensor, progress: Progress, record: RunFolder | None) -> None:
        """Log, checkpoint and draw samples when they are due."""
        from pipeline.pretraining import state, watch

        config, number = self.config, step + 1
        last = number == config.steps
        self._losses.append(loss)
        if number % LOG_EVERY == 0 or last:
            mean = self._mean_loss()
            if not math.isfinite(mean):
                hint = "Lower --lr, or set --precision float32."
                raise ConfigError(Problem("lr", f"a loss of {mean} at step {number}", "less", hint))
            progress.update(0, loss=mean)
            if record is not None:
                rate = progress.rate
                record.log(step=number, loss=mean, lr=learning_rate(step, config), img_per_s=rate)
        progress.update(config.batch_size)
        if record is None:
            return
        if number % config.checkpoint_every == 0 or last:
            parts = {name: part.state_dict() for name, part in self._parts().items()}
            path = self.folder / "checkpoint.pt"
            state.save_checkpoint(path, step=number, key=self.key, parts=parts)
        if config.sample_every and number % config.sample_every == 0 and not last:
            grid = self._samples(range(config.num_samples))
            state.save_grid(grid, self.folder / f"samples-{number:06d}.png")
            watch.draw_loss_curve(self.folder)
        if config.distance_every and number % config.distance_every == 0 and not last:
            watch.log_distance(record, number, self._proxy(), self._samples)

    def _mean_loss(self) -> float:
        """Return the mean loss since it was last asked for, over all processes."""
        import torch

        mean = torch.stack(self._losses).mean()
        self._losses.clear()
        return float(self.accelerator.reduce(mean, "mean"))  # type: ignore[arg-type]

    def _parts(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "average": self.average.module,
            "optimizer": self.optimizer,
        }

    def _proxy(self) -> ProxyDistance:
        """Return the measure of the samples' distance to the images, made at its first use."""
        from pipeline.pretraining.watch import ProxyDistance

        if self._distance is None:
            images = self.images.plain(self.config.distance_samples)
            if side := self.config.crop:  # windows from the middle: samples are windows, too
                top, left = ((length - side) // 2 for length in images.shape[1:3])
                images = images[:, top : top + side, left : left + side]
            self._distance = ProxyDistance(self.config.distance_extractor, images)
        return self._distance

    def _samples(self, numbers: range) -> np.ndarray:
        """Draw some numbered samples from the averaged weights, uint8 (N, H, W, 3)."""
        import torch

        from pipeline.pretraining import watch

        size = self.config.image.shape or (0, 0)
        if self.config.crop:
            size = (self.config.crop, self.config.crop)  # what the network knows
        noise = rng.normal(self.config.seed, numbers, 0, "pretrain-grid", (3, *size))
        x = torch.from_numpy(noise).to(self.device).contiguous(memory_format=torch.channels_last)
        labels = torch.arange(numbers.start, numbers.stop, device=self.device)
        labels = labels % self.classes if self.classes else None
        images = watch.draw(
            self.average.module, self.schedule, x, labels, steps=self.config.sample_steps
        )
        return images.permute(0, 2, 3, 1).cpu().numpy()

    def _finish(self, record: RunFolder, **speed: float) -> None:
        """Write the teacher and its last pictures; `speed` is that of this part of the run."""
        from pipeline.pretraining import state, watch

        config = self.config
        card = {
            "kind": "dreamshard diffusion teacher",
            "recipe_key": self.key,
            "data": self.identity,
            "images_seen": config.steps * config.batch_size,
            "steps": config.steps,
            "seed": config.seed,
        }
        if config.distance_every:
            found = watch.log_distance(record, config.steps, self._proxy(), self._samples)
            told = {"samples": config.distance_samples, "extractor": config.distance_extractor}
            card["proxy_distance"] = {**found, **told}
        folder = state.save_teacher(
            config, self.average.module, scheduler=self.scheduler, card=card
        )
        state.save_grid(self._samples(range(config.num_samples)), folder / "samples.png")
        watch.draw_loss_curve(self.folder)
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        record.stats(teacher=str(folder), steps=config.steps, **speed)
        record.finish(
            f"dreamshard encode --teacher.path {folder} --teacher.timesteps [100] "
            f"--source.kind {config.source.kind}"
        )


def learning_rate(step: int, config: PretrainConfig) -> float:
    """Return the rate of step `step` (from 0): linear warm-up, then a cosine down to the floor."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * share))
    return config.lr * (config.floor + (1 - config.floor) * cosine)


if __name__ == "__main__":
    sys.exit(run_main(main, sys.argv[1:]))
