"""Train a GAN, or a generator's encoder: what `dreamshard pretrain` does for these kinds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamshard.config import to_dict
from dreamshard.errors import ConfigError, Problem
from dreamshard.progress import stage
from dreamshard.redact import redact
from dreamshard.runfolder import RunFolder
from pipeline.learning.pretraining.config import ENCODER, KINDS

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pipeline.images.quality import Extractor
    from pipeline.images.source import ImageSource
    from pipeline.learning.pretraining.adversarial.kept import Recipe
    from pipeline.learning.pretraining.adversarial.objective import Objective
    from pipeline.learning.pretraining.adversarial.run import Plan
    from pipeline.learning.pretraining.batches import Batches
    from pipeline.learning.pretraining.config import PretrainConfig
    from pipeline.learning.pretraining.encoding.build import Encoding
WEIGHTS = (
    *("network-snapshot.pkl", "netG.pth", "ssgan.npz", "G_ema.pth", "BigBiGAN.pth"),
    *("uniform-generator.pth", "diffusion_pytorch_model.safetensors", "encoder.json"),
)
"""Files by which another teacher in the folder is known."""


def train(
    config: PretrainConfig,
    accelerator: Accelerator,
    source: ImageSource | None,
    identity: dict[str, object],
) -> Path:
    """Train a generator or an encoder, or find it already trained; return its folder.

    Args:
        config: with another `kind` than diffusion.
        accelerator: the processes, which have agreed on settings and images.
        source, identity: the images (an encoder may see none), and their fingerprint.

    Raises:
        ConfigError: `out` or the checkpoints are of other settings; figures are not finite; fewer
            images than a batch; a generator that cannot have an encoder.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    from pipeline.learning.pretraining.adversarial import kept
    from pipeline.learning.pretraining.adversarial.run import AdversarialRun
    from pipeline.learning.ranks import decided_by_chief, together

    recipe = kept.recipe_of(to_dict(config), identity, {*KINDS, ENCODER})
    encoding, licence = None, config.licence
    if config.kind == ENCODER:
        encoding = together(lambda: _encoding(config, accelerator, source))
        recipe, licence = encoding.recipe(recipe), encoding.licence
    plan = _plan(config, recipe, accelerator, identity, licence=licence)
    folder, run_dir = plan.folder, plan.run_dir
    find = partial(kept.find_finished, folder, run_dir, recipe=recipe, budget=plan.budget)
    if not config.overwrite and decided_by_chief(lambda: find(files=WEIGHTS)):
        if accelerator.is_main_process:
            stage(f"teacher {folder} is already trained: reused")
        return folder
    start = decided_by_chief(
        lambda: kept.resume_point(run_dir, recipe=recipe, overwrite=config.overwrite)
    )
    build: Callable[..., AdversarialRun] = AdversarialRun
    batches: Any
    if encoding is not None:
        batches, objective, build = encoding.parts(half=plan.half)
    else:
        assert source is not None, "a GAN sees images"
        batches = together(lambda: _batches(config, accelerator, source))
        objective = _objective(config, accelerator, source, half=plan.half)
    of, replace, chief = {"recipe": recipe.key}, config.overwrite, accelerator.is_main_process
    extract = together(lambda: _extractor(config) if chief else None)
    record = together(
        lambda: RunFolder(run_dir, config=config, of=of, replace=replace) if chief else None
    )
    run = build(
        plan, objective, batches,
        recipe=recipe, start=start, accelerator=accelerator, record=record, extract=extract,
    )  # fmt: skip
    try:
        run.go()
    finally:
        if batches.images is not None:
            batches.images.close()
    return folder


def _encoding(
    config: PretrainConfig, accelerator: Accelerator, source: ImageSource | None
) -> Encoding:
    from pipeline.learning.pretraining.encoding.build import Asked, Encoding

    asked = Asked(
        own=config.encoder, generator=config.generator, image=config.image,
        batch_size=config.batch_size, seed=config.seed, licence=config.licence,
    )  # fmt: skip
    return Encoding(asked, accelerator, source)


def _extractor(config: PretrainConfig) -> Extractor | None:
    """Open the features of the distance, before anything is trained, where one is measured."""
    from pipeline.images.quality import open_extractor

    if not config.distance_every:
        return None
    return open_extractor(config.distance_extractor, key="distance_extractor")


def _plan(
    config: PretrainConfig,
    recipe: Recipe,
    accelerator: Accelerator,
    identity: dict[str, object],
    *,
    licence: str,
) -> Plan:
    from pipeline.learning.pretraining import network
    from pipeline.learning.pretraining.adversarial.kept import Budget
    from pipeline.learning.pretraining.adversarial.run import Plan

    folder = Path(config.out)
    return Plan(
        kind=config.kind,
        folder=folder,
        run_dir=config.record,
        budget=Budget(config.steps, config.minutes),
        batch_size=config.batch_size,
        seed=config.seed,
        half=network.uses_bfloat16(config.precision, accelerator.device.type),
        checkpoint_every=config.checkpoint_every,
        sample_every=config.sample_every,
        num_samples=config.num_samples,
        distance_every=config.distance_every,
        distance_samples=config.distance_samples,
        distance_extractor=config.distance_extractor,
        weights_dtype=config.weights_dtype,
        teacher=config.teacher,
        card={
            "licence": licence,
            "data": identity,
            "seed": config.seed,
            "settings": redact(dict(recipe.settings)),
        },
    )


def _batches(config: PretrainConfig, accelerator: Accelerator, source: ImageSource) -> Batches:
    from pipeline.learning.pretraining.batches import Batches
    from pipeline.learning.pretraining.data import TrainingImages

    images = TrainingImages(source, config=config.image, seed=config.seed)
    if (usable := int(images.valid.sum())) < config.batch_size:
        images.close()
        allowed = f"1..{usable}, the images of the source that can be decoded"
        raise ConfigError(Problem("batch_size", str(config.batch_size), allowed))
    return Batches(
        images=images,
        seed=config.seed,
        batch_size=config.batch_size,
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
        device=accelerator.device,
        labels=config.class_conditional,
        noise=False,
    )


def _objective(
    config: PretrainConfig, accelerator: Accelerator, source: ImageSource, *, half: bool
) -> Objective:
    import torch

    from pipeline.learning.pretraining import network
    from pipeline.learning.pretraining.adversarial import kinds
    from pipeline.learning.pretraining.adversarial.objective import Facts

    if accelerator.device.type == "cuda":  # shapes stay the same: cuDNN finds its fastest kernels
        torch.backends.cudnn.benchmark = True
    facts = Facts(
        side=config.image.size,
        classes=network.count_classes(source) if config.class_conditional else 0,
        batch_size=config.batch_size,
        seed=config.seed,
        device=accelerator.device,
        half=half,
    )
    sections = {
        "stylegan2": config.stylegan2, "ssgan": config.ssgan, "bigbigan": config.bigbigan,
    }  # fmt: skip
    return kinds.build(config.kind, sections[config.kind], facts)
