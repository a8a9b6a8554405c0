"""Train a teacher on your own images: a diffusion model here, the others in `pretrain_gan`.

    dreamshard pretrain --config recipes/digits/pretrain.yaml
    accelerate launch pipeline/pretrain.py --config recipes/digits/pretrain.yaml

Everything random is keyed by (seed, position), so an interrupted run goes on from its checkpoint
exactly as if undisturbed, and any number of processes sees the same global batches.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: import our packages, not the files beside this script
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dreamshard.config import load_config, to_dict
from dreamshard.errors import ConfigError, Problem, run_main
from dreamshard.owner.folders import check_command
from dreamshard.progress import Progress, begin, stage
from dreamshard.redact import redact
from dreamshard.runfolder import RunFolder, trim_metrics
from pipeline import pretrain_gan
from pipeline.learning.pretraining.config import PretrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

    from pipeline.images.source import ImageSource
    from pipeline.learning.loop import Learner, Taken
    from pipeline.learning.pretraining.batches import Batch

DESCRIPTION = "Train a teacher: a diffusion model (a UNet2DModel), a GAN, a generator's encoder."
OF_A_RANK = ("out", "run_dir", "threads", "device", "licence", "source")
"""Settings that ranks may have of their own; of the source its content counts."""
LOG_EVERY = 10
"""Steps between lines of metrics.jsonl."""


def main(argv: Sequence[str]) -> int | None:
    """Run the command; see `dreamshard pretrain --help`."""
    config = load_config(PretrainConfig, argv, prog="dreamshard pretrain", description=DESCRIPTION)
    length = f"{config.steps:,} steps" if config.minutes is None else f"{config.minutes:g} minutes"
    begin(f"pretrain: {length} into {config.out}; loading PyTorch")
    pretrain(config)
    return None


def pretrain(config: PretrainConfig) -> Path:
    """Train a teacher, or find it already trained; return its folder.

    Raises:
        ConfigError: settings that contradict each other or the source; `out` holds another teacher.
        DataError: no usable image, or a damaged checkpoint.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    from pipeline.learning.pretraining.network import start_ranks
    from pipeline.learning.ranks import alone

    device, threads = config.device, config.threads
    accelerator = start_ranks(device, config.precision, threads, batch_size=config.batch_size)
    with alone(config.record, key="run_dir"):
        return _pretrain_on(accelerator, config)


def _pretrain_on(accelerator: Accelerator, config: PretrainConfig) -> Path:
    from pipeline.images.source import fingerprint, open_source
    from pipeline.learning.pretraining import state
    from pipeline.learning.ranks import check_same, check_shared, decided_by_chief, together

    folder = Path(config.out)
    source, identity = None, {}
    if config.sees_images:
        source = together(lambda: open_source(config.source))
        identity = together(lambda: fingerprint(source))
    if config.class_conditional and source is not None and not source.has_labels:
        hint = "Use a source with labels."
        raise ConfigError(Problem("class_conditional", "true without labels", "false", hint))
    told = {name: v for name, v in to_dict(config).items() if name not in OF_A_RANK}
    check_same({**told, "source": identity})
    check_shared(run_dir := config.record, key="run_dir")
    together(lambda: check_command(folder, "pretrain", key="out"))
    if config.kind != "diffusion":
        return pretrain_gan.train(config, accelerator, source, identity)
    assert source is not None, "a diffusion model sees images"
    config = _within_budget(config, accelerator, source, identity)
    card = None
    if not config.overwrite:
        card = decided_by_chief(
            lambda: state.find_teacher(folder, run_dir, settings=_told(config), source=identity)
        )
    if card is not None:
        if accelerator.is_main_process:
            first = state.first_key(_told(config), identity, extended=card.get("extended", ()))
            state.clear(folder, run_dir, first)
            stage(f"teacher {folder} is already trained ({card.get('steps')} steps): reused")
        return folder
    _Run(config, accelerator, source, identity).go()
    return folder


class _Run:
    """One training run: what is built once, and the loop over it."""

    def __init__(
        self,
        config: PretrainConfig,
        accelerator: Accelerator,
        source: ImageSource,
        identity: dict[str, object],
    ) -> None:
        from pipeline.images.quality import open_extractor
        from pipeline.learning.pretraining import network, objective
        from pipeline.learning.pretraining.batches import Batches
        from pipeline.learning.pretraining.data import TrainingImages
        from pipeline.learning.pretraining.watch import Sampler, Watch

        self.config, self.identity, self.accelerator = config, identity, accelerator
        self.device, seed, goal = accelerator.device, config.seed, config.objective
        self.half = network.uses_bfloat16(config.precision, self.device.type)
        self.images = TrainingImages(source, config=config.image, seed=seed, window=config.crop)
        self.scheduler = objective.scheduler_config(goal.kind, goal.noise_schedule, goal.timesteps)
        self.schedule = objective.schedule_for(goal.kind, goal.noise_schedule, goal.timesteps)
        classes = network.count_classes(source) if config.class_conditional else 0
        self.batches = Batches(
            images=self.images,
            seed=seed,
            batch_size=config.batch_size,
            rank=accelerator.process_index,
            ranks=accelerator.num_processes,
            device=self.device,
            labels=classes > 0,
        )
        shape = config.image.shape or (0, 0)
        size = shape if config.image.width else config.image.size
        self.learner = self._learner(
            network.build_network(config.unet, sample_size=size, classes=classes, seed=seed)
        )
        sampler = Sampler(
            network=self.learner.kept,
            schedule=self.schedule,
            size=(config.crop, config.crop) if config.crop else shape,  # what the network knows
            classes=classes,
            steps=config.sample_steps,
            seed=seed,
        )
        self.folder = config.record
        extract, count, crop = None, config.distance_samples, config.crop
        if config.distance_every:
            extract = open_extractor(config.distance_extractor, key="distance_extractor")
        told = {"crop": crop, "extract": extract, "samples": count}
        self.watch = Watch(sampler, self.images, self.folder, **told)

    def _learner(self, module: nn.Module) -> Learner:
        """Put beside a network what trains it."""
        from pipeline.learning.device import on_device
        from pipeline.learning.pretraining import network
        from pipeline.learning.pretraining.diffusion import DiffusionStep
        from pipeline.teachers.recording.compiled import compile_blocks

        config, goal = self.config, self.config.objective
        self.step = DiffusionStep(
            schedule=self.schedule,
            seed=config.seed,
            device=self.device.type,
            half=self.half,
            dropout=config.unet.dropout > 0,
            min_snr=goal.min_snr,
            augment=goal.augment,
            dispersive=goal.dispersive,
            temperature=goal.dispersive_temperature,
        )
        trained, schedule = on_device(self.step.module(module), self.device), config.schedule()
        decay, clip, ema = config.weight_decay, config.clip, config.ema
        learner = network.build_learner(trained, module, schedule, decay=decay, clip=clip, ema=ema)
        if network.compiles(config.compile, self.device.type, config.steps):
            compile_blocks(module)  # after the average has its copy
        return learner

    def rate(self, minutes: float) -> float:
        """Take steps for their time alone; return how many a second there are, on every rank."""
        from pipeline.learning.loop import take_steps
        from pipeline.learning.pretraining.budget import measure
        from pipeline.learning.ranks import decided_by_chief

        batches = self.batches.between(0, self.config.steps)
        steps = take_steps(
            self.learner,
            lambda model, step, _: self._forward(model, step, next(batches)),
            engine=self.accelerator,
        )
        whole = (float(taken.terms["loss"]) for taken in steps)  # the device is waited for
        rate = measure(whole, minutes=minutes, tell=lambda s: decided_by_chief(lambda: s))
        batches.close()
        self.images.close()
        return rate

    def _record(self) -> RunFolder:
        """Open the record of the run; another teacher's goes where this one replaces it."""
        from pipeline.learning.pretraining.state import first_key

        key = first_key(_told(self.config), self.identity, extended=self.start.extended)
        of = {"recipe": key}
        return RunFolder(self.folder, config=self.config, of=of, replace=self.config.overwrite)

    def _begin(self) -> int:
        """Load the last checkpoint, if there is one; return the steps done."""
        from pipeline.learning.checkpoint import load_checkpoint, parts_of
        from pipeline.learning.pretraining import state
        from pipeline.learning.ranks import decided_by_chief, together

        settings = _told(self.config)
        self.start = decided_by_chief(
            lambda: state.resume_point(self.folder, settings=settings, source=self.identity)
        )
        extended = self.start.extended
        self.key = state.recipe_key(settings, self.identity, extended=extended)
        self.length = {"steps": self.config.steps} | ({"extended": extended} if extended else {})
        self.told = {"data": self.identity, "settings": redact(to_dict(self.config))}
        if (checkpoint := self.start.checkpoint) is not None:
            together(lambda: load_checkpoint(checkpoint, parts_of(self.learner)))
        return self.start.step

    def go(self) -> None:
        """Train from the last checkpoint to the end, then write the teacher."""
        from pipeline.learning.figures import Figures
        from pipeline.learning.loop import take_steps
        from pipeline.learning.ranks import decided_by_chief, gathered_rows, together
        from pipeline.learning.stopping import StopAfterStep

        config, first, chief = self.config, self._begin(), self.accelerator.is_main_process
        record = together(lambda: self._record() if chief else None)
        if record is not None:
            trim_metrics(record.path / "metrics.jsonl", step=first)
            size = sum(weight.numel() for weight in self.learner.module.parameters())
            kind = "bfloat16" if self.half else "float32"
            begun = f", going on at step {first}" if first else ""
            stage(f"pretrain: {size / 1e6:.2f} M parameters, {self.device.type} {kind}{begun}")
            self._tell_extension()
        total, done = config.steps * config.batch_size, first * config.batch_size
        started, figures = time.monotonic(), Figures(_diverged, gather=gathered_rows)
        batches = self.batches.between(first, config.steps)
        with (
            Progress("pretrain", total=total, initial=done, quiet=not chief) as progress,
            StopAfterStep("pretrain") as stopping,
        ):
            for taken in take_steps(
                self.learner,
                lambda model, step, _: self._forward(model, step, next(batches)),
                done=first,
                engine=self.accelerator,
            ):
                figures.note(taken.step, taken.terms)
                if taken.due(LOG_EVERY):
                    means = figures.fewer(LOG_EVERY) | figures.means()
                    progress.update(0, **means)
                    if record is not None:
                        record.log(step=taken.step, **means, lr=taken.rate, img_per_s=progress.rate)
                progress.update(config.batch_size)
                stop = stopping.now(taken, every=LOG_EVERY)
                if stop or self._is_due(taken):
                    decided_by_chief(partial(self._keep_and_show, taken, record, stop=stop))
                if stop:
                    stopping.leave(taken.step, config.steps)
        spent = time.monotonic() - started
        made = (config.steps - first) * config.batch_size
        speed = {"seconds": spent, "img_per_s": made / max(spent, 1e-9)}
        decided_by_chief(lambda: self._finish(record, **speed))
        self.images.close()

    def _tell_extension(self) -> None:
        """Say what a run that is extended goes on with: its rate jumps."""
        from pipeline.learning.schedule import extension

        step = self.start.step
        for before, at in self.start.extended[-1:]:
            if at == step:
                old, new = (
                    replace(self.config, steps=n).schedule() for n in (before, self.config.steps)
                )
                stage(f"pretrain: {extension(old, new, step=step)}")

    def _forward(self, model: nn.Module, step: int, batch: Batch) -> Mapping[str, Tensor]:
        """Return the loss of this rank's share of a step's batch."""
        return self.step(model, step, batch)

    def _is_due(self, taken: Taken) -> bool:
        """Tell whether rank zero has something to keep or show, for which all ranks wait."""
        every = (self.config.checkpoint_every, self.config.sample_every, self.config.distance_every)
        return any(number and taken.due(number) for number in every)

    def _keep_and_show(self, taken: Taken, record: RunFolder | None, *, stop: bool) -> None:
        """Write a checkpoint, draw samples and measure them when they are due."""
        from pipeline.learning.checkpoint import parts_of, save_checkpoint

        assert record is not None, "rank zero has one"
        config, step = self.config, taken.step
        if stop or taken.due(config.checkpoint_every):
            now = {"step": step, "key": self.key, **self.length, **self.told}
            save_checkpoint(self.folder, parts_of(self.learner), state=now, keep=1)
        if taken.last:  # the finished teacher's are drawn with it
            return
        if config.sample_every and step % config.sample_every == 0:
            self.watch.draw(config.num_samples, self.folder / f"samples-{step:06d}.png")
        if config.distance_every and step % config.distance_every == 0:
            self.watch.measure(step, record)

    def _finish(self, record: RunFolder | None, **speed: float) -> None:
        """Write the teacher and its last pictures; `speed` is that of this part of the run."""
        from pipeline.learning.pretraining import state
        from pipeline.learning.pretraining.following import next_commands

        assert record is not None, "rank zero has one"
        config, folder = self.config, Path(self.config.out)
        card = {
            "kind": "dreamshard diffusion teacher",
            "licence": config.licence,
            "recipe_key": self.key,
            "images_seen": config.steps * config.batch_size,
            **self.length,
            "seed": config.seed,
            **self.told,
        }
        if config.distance_every:
            told = {"samples": config.distance_samples, "extractor": config.distance_extractor}
            card["proxy_distance"] = {**self.watch.measure(config.steps, record), **told}
        network, dtype = self.learner.kept, config.weights_dtype
        card["parameters"] = state.save_network(
            folder,
            network,
            scheduler=self.scheduler,
            run={"recipe_key": self.key, **self.length},
            dtype=dtype,
        )
        self.watch.draw(config.num_samples, folder / "samples.png")
        record.stats(teacher=str(folder), steps=config.steps, **speed)
        depth, timesteps = len(network.config["block_out_channels"]), config.objective.timesteps
        record.propose(
            *next_commands(folder, config.source, config.image, depth=depth, timesteps=timesteps)
        )
        state.save_card(folder, card)  # from here on the run is finished


def _told(config: PretrainConfig) -> dict[str, Any]:
    """Return the settings that a teacher is known by: an average fitted to the steps is no number.

    So a run that is given more minutes is the same run, extended.
    """
    return to_dict(config) | ({} if config.minutes is None else {"ema": "fitted"})


def _within_budget(
    config: PretrainConfig,
    accelerator: Accelerator,
    source: ImageSource,
    identity: dict[str, object],
) -> PretrainConfig:
    """Turn minutes into steps, as planned before or by a rate measured now, and say what they buy.

    Raises:
        ConfigError: less than the warm-up needs, or than the run was given before.
    """
    from pipeline.learning.pretraining import budget
    from pipeline.learning.ranks import decided_by_chief

    minutes, run_dir = config.minutes, config.record
    if minutes is None:
        return config
    anew = config.overwrite
    plan = None if anew else decided_by_chief(lambda: budget.plan_of(run_dir, minutes=minutes))
    if plan is None:
        trial = _Run(replace(config, steps=sys.maxsize), accelerator, source, identity)
        rate = trial.rate(minutes)
        warmup = config.warmup_steps
        plan = decided_by_chief(
            lambda: budget.make_plan(run_dir, minutes=minutes, rate=rate, warmup=warmup, anew=anew)
        )
    if accelerator.is_main_process:
        stage(budget.tell_plan(plan, batch_size=config.batch_size, images=len(source)))
    return replace(config, steps=plan.steps, ema=budget.fitted_average(plan.steps))


def _diverged(step: int, figures: Mapping[str, float], _: object) -> ConfigError:
    hint = "Lower --lr, or set --precision float32."
    return ConfigError(Problem("lr", f"a loss of {figures['loss']} at step {step}", "less", hint))


if __name__ == "__main__":
    sys.exit(run_main(main, sys.argv[1:]))
