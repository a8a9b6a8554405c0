"""`dreamshard clean`: train a copy of a diffusion teacher that needs no noise and no timestep.

    dreamshard clean recipes/cifar10/teacher --source.path cifar10-train.parquet --out clean

The copy sees the clean image, the frozen teacher the noisy one at a random timestep; heads that are
told the timestep turn the copy's features into the teacher's, and are dropped afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dreamshard.config import load_config, to_dict
from dreamshard.errors import ConfigError, DreamshardError, Problem
from dreamshard.foreign.text import read_json
from dreamshard.owner.alone import only_one
from dreamshard.progress import Progress, begin, stage
from dreamshard.redact import redact
from pipeline.learning.launcher import check_one
from pipeline.learning.pretraining.cleaning.config import CleanConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dreamshard.runfolder import RunFolder
    from pipeline.images.source import ImageSource
    from pipeline.learning.loop import Learner
    from pipeline.learning.pretraining.batches import Batch
    from pipeline.learning.pretraining.cleaning.heads import Cleaner
    from pipeline.teachers.diffusion.teacher import DiffusionTeacher

DESCRIPTION = "Train a copy of a diffusion teacher that reads clean images in one pass."
ALGORITHM = 1
"""Raised whenever the same settings would train other weights."""
NOT_THE_WEIGHTS = (
    "out",
    "run_dir",
    "overwrite",
    "threads",
    "device",
    "checkpoint_every",
    "teacher",
)
LOG_EVERY = 10
"""Steps between lines of metrics.jsonl."""


def main(argv: Sequence[str]) -> int | None:
    """Run the command; see `dreamshard clean --help`."""
    if argv and not argv[0].startswith("-"):
        argv = ["--teacher", *argv]
    config = load_config(CleanConfig, argv, prog="dreamshard clean", description=DESCRIPTION)
    check_one("clean")
    begin(f"clean: {config.teacher} for {config.steps:,} steps into {config.out}; loading PyTorch")
    clean(config)
    return None


def clean(config: CleanConfig) -> Path:
    """Train a clean teacher, or find it already trained; return its folder.

    Raises:
        ConfigError: settings that contradict the teacher or the source; `out` holds another.
        TeacherError: no network of the kind that can be cleaned.
        DataError: no usable image, or a damaged checkpoint.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    with only_one(config.record):
        return _clean(config)


def _clean(config: CleanConfig) -> Path:
    import torch

    from dreamshard.runfolder import RunFolder
    from pipeline.images.source import fingerprint, open_source
    from pipeline.learning.checkpoint import forget
    from pipeline.learning.device import choose_device

    if config.threads:
        torch.set_num_threads(config.threads)
    source, device = open_source(config.source), torch.device(choose_device(config.device))
    teacher = _open(config, device)
    identity = fingerprint(source)
    key = _key(config, teacher, identity)
    folder = Path(config.out)
    if _is_trained(folder, key, overwrite=config.overwrite):
        stage(f"clean: {folder} is already trained: reused")
        return folder
    record = RunFolder(
        config.record,
        config=config,
        of={"recipe": key},
        replace=config.overwrite,
    )
    learner = _fit(config, teacher, source, record=record, key=key)
    _save(config, teacher, learner, key=key, identity=identity)
    forget(record.path)
    record.stats(teacher=str(folder), steps=config.steps)
    return folder


def _open(config: CleanConfig, device: torch.device) -> DiffusionTeacher:
    """Open the teacher to clean, at one timestep that stands for all."""
    from pipeline.teachers.diffusion.checkpoints import kind_of
    from pipeline.teachers.diffusion.teacher import DiffusionTeacher
    from pipeline.teachers.door import open_teacher
    from pipeline.teachers.inspecting.choose import candidate_taps

    kind = kind_of(Path(config.teacher))
    if kind != "diffusers":
        hint = "Other teachers read clean images already."
        raise ConfigError(Problem("teacher", f"{config.teacher} ({kind})", "a diffusion one", hint))
    teacher = cast(DiffusionTeacher, open_teacher(config.teacher, device=str(device), threads=0))
    known = teacher.description
    if known.family != "unet" or known.clean:
        got = f"{config.teacher}, {'a clean teacher' if known.clean else known.family}"
        hint = "Latent networks and other checkpoints are read with noise only."
        raise ConfigError(Problem("teacher", got, "a folder of a pixel-space UNet", hint))
    levels = config.levels or candidate_taps(known)
    return cast(
        DiffusionTeacher,
        open_teacher(config.teacher, levels=levels, timesteps=[0], device=str(device), threads=0),
    )


def _key(config: CleanConfig, teacher: DiffusionTeacher, source: Mapping[str, object]) -> str:
    from storage.schema import canonical_json

    settings = {name: v for name, v in to_dict(config).items() if name not in NOT_THE_WEIGHTS}
    settings |= {"source": dict(source), "teacher": teacher.fingerprint, "algorithm": ALGORITHM}
    return hashlib.sha256(canonical_json(settings).encode()).hexdigest()


def _is_trained(folder: Path, key: str, *, overwrite: bool) -> bool:
    """Tell whether the clean teacher is there; refuse to replace another."""
    from pipeline.teachers.weights import CARD

    if overwrite or not (folder / CARD).exists():
        return False
    card = read_json(folder / CARD, infinite=True)
    if isinstance(card, dict) and card.get("recipe_key") == key:
        return True
    hint = "Choose another --out, or replace it with --overwrite true."
    raise ConfigError(Problem("out", f"{folder} with another teacher", "its own folder", hint))


def _fit(
    config: CleanConfig,
    teacher: DiffusionTeacher,
    source: ImageSource,
    *,
    record: RunFolder,
    key: str,
) -> Learner:
    from dreamshard.runfolder import trim_metrics
    from pipeline.learning.figures import Figures
    from pipeline.learning.loop import take_steps
    from pipeline.learning.pretraining.batches import Batches
    from pipeline.learning.pretraining.data import TrainingImages
    from pipeline.learning.resume import load_stopped, save_stopped
    from pipeline.learning.stopping import StopAfterStep

    height, width = teacher.image_size
    size = {"size": height} if height == width else {"size": height, "width": width}
    images = TrainingImages(source, config=_sized(config, size), seed=config.seed)
    batches = Batches(
        images=images,
        seed=config.seed,
        batch_size=config.batch_size,
        rank=0,
        ranks=1,
        device=teacher.device,
        labels=False,
    )
    learner, figures = _learner(config, teacher), Figures(_diverged)
    done = load_stopped(record.path, learner, key=key)
    trim_metrics(record.path / "metrics.jsonl", step=done)
    step_of, given = _Step(config, teacher, learner), batches.between(done, config.steps)
    with (
        Progress("clean", total=config.steps, initial=done, unit="step") as progress,
        StopAfterStep("clean") as stopping,
    ):
        for taken in take_steps(learner, lambda *_: step_of(next(given)), done=done):
            figures.note(taken.step, taken.terms)
            if taken.due(LOG_EVERY):
                means = figures.fewer(LOG_EVERY) | figures.means()
                record.log(step=taken.step, lr=config.lr * taken.rate, **means)
                progress.update(0, **means)
            progress.update(1)
            stop = stopping.now(taken, every=1)
            if stop or taken.due(config.checkpoint_every):
                save_stopped(record.path, learner, step=taken.step, key=key)
            if stop:
                stopping.leave(taken.step, config.steps)
    images.close()
    return learner


def _sized(config: CleanConfig, size: Mapping[str, int]) -> Any:
    from dataclasses import replace

    return replace(config.image, **size)


def _learner(config: CleanConfig, teacher: DiffusionTeacher) -> Learner:
    """Put heads and an optimiser beside a copy of the teacher's network."""
    import copy

    import torch
    from torch.optim import AdamW

    from pipeline.learning.device import on_device
    from pipeline.learning.loop import Learner
    from pipeline.learning.pretraining.cleaning.heads import Cleaner, Head
    from pipeline.learning.schedule import WarmupCosine

    network = copy.deepcopy(teacher.network.module).train().requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        heads = {
            level.tap: Head(level.shape[0], width=config.width, depth=config.depth)
            for level in teacher.levels
        }
    cleaner = on_device(Cleaner(network, heads), teacher.device)
    groups = [
        {"params": list(cleaner.network.parameters()), "lr_scale": config.lr},
        {"params": list(cleaner.heads.parameters()), "lr_scale": config.head_lr},
    ]
    warmup = config.warmup_steps
    return Learner(
        module=cleaner,
        network=cleaner.network,
        optimizer=AdamW(groups, weight_decay=0.0),
        schedule=WarmupCosine(peak=1.0, steps=config.steps, warmup=warmup, lag=1),
        clip=1.0,
    )


class _Step:
    """Compare a batch's clean and noisy features."""

    def __init__(self, config: CleanConfig, teacher: DiffusionTeacher, learner: Learner) -> None:
        from pipeline.teachers.recording.taps import Recorder

        self.config, self.teacher = config, teacher
        self.cleaner = cast("Cleaner", learner.module)
        by_name = {tap.name: tap for tap in teacher.description.taps}
        taps = [by_name[level.tap] for level in teacher.levels]
        self.frozen = Recorder(teacher.network.module, taps)
        self.copy = Recorder(self.cleaner.network, taps)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        import torch

        from pipeline.learning.pretraining.cleaning.heads import draw_timesteps, unlikeness

        schedule, config, device = self.teacher.schedule, self.config, self.teacher.device
        steps = draw_timesteps(
            len(schedule), highest=config.highest, seed=config.seed, positions=batch.positions
        )
        network, frozen, labels = self.cleaner.network, self.teacher.network, None
        with torch.no_grad():
            noised = [
                schedule.model_input(
                    schedule.add_noise(batch.images[row : row + 1], batch.noise[row : row + 1], t),
                    t,
                )
                for row, t in enumerate(int(step) for step in steps)
            ]
            told = torch.from_numpy(schedule.time[steps].astype("float32")).to(device)
            x = torch.cat(noised).contiguous(memory_format=torch.channels_last)
            wanted, _ = self.frozen.run(lambda: frozen(x, told, labels))
        clean = schedule.model_input(batch.images, 0).contiguous(memory_format=torch.channels_last)
        at = torch.full((len(clean),), float(schedule.time[0]), device=device)
        maps, _ = self.copy.run(lambda: type(frozen)(network)(clean, at, labels))
        share = torch.from_numpy((steps / len(schedule)).astype("float32")).to(device)
        predicted = self.cleaner.predicted(maps, share)
        terms = {name: unlikeness(predicted[name], wanted[name]) for name in predicted}
        return {"loss": torch.stack(list(terms.values())).mean()}


def _save(
    config: CleanConfig,
    teacher: DiffusionTeacher,
    learner: Learner,
    *,
    key: str,
    identity: Mapping[str, object],
) -> None:
    """Write the copy as a teacher's folder; its config says that it is clean."""
    from pipeline.learning.pretraining.state import save_card, save_network
    from pipeline.teachers.diffusion.networks.unet import CLEAN

    folder, network = Path(config.out), cast(Any, learner.kept)
    scheduler = dict(cast(Mapping[str, Any], teacher.description.architecture["scheduler"]))
    scheduler["_class_name"] = scheduler.pop("class")
    count = save_network(
        folder,
        network,
        scheduler=scheduler,
        run={"recipe_key": key},
        dtype=config.weights_dtype,
        config={CLEAN: True},
    )
    save_card(
        folder,
        {
            "kind": "dreamshard clean diffusion teacher",
            "licence": teacher.description.licence,
            "recipe_key": key,
            "data": dict(identity),
            "images_seen": config.steps * config.batch_size,
            "steps": config.steps,
            "seed": config.seed,
            "cleaned_from": teacher.fingerprint,
            "parameters": count,
            "settings": redact(to_dict(config)),
        },
    )


def _diverged(step: int, figures: Mapping[str, float], _: object) -> DreamshardError:
    return DreamshardError(f"step {step}: the loss is {figures['loss']}. Lower lr or head_lr.")
