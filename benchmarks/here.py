"""Make a dataset in this process, without Ray: for machines where Ray is not installed."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from dreamshard.config import load_config
from pipeline.offline.actor import Job, ShardActor
from pipeline.request.config import EncodeConfig, OfflineConfig, SynthesizeConfig
from pipeline.request.lookup import create, look_up
from pipeline.request.resolve import resolve


def make_here(kind: str, words: Sequence[str]) -> str:
    """Make what is missing of the dataset of `dreamshard encode WORDS`, or synthesize.

    One teacher makes unit after unit; the dataset is the very same but for the run's record.

    Args:
        kind: encode or synthesize.
        words: the command's arguments.

    Returns:
        Where the dataset is.

    Raises:
        ConfigError, DataError, TeacherError: as the command.
    """
    made_by: type[OfflineConfig] = EncodeConfig if kind == "encode" else SynthesizeConfig
    config = load_config(made_by, words, prog=f"dreamshard {kind}", description="")
    config = config.settled()
    request = resolve(config.request())
    existing = look_up(request)
    if existing is not None and existing.complete:
        return existing.dataset.url
    dataset = existing.dataset if existing else create(request)
    total = request.plan.num_samples
    run_id = f"here-{time.strftime('%Y%m%d-%H%M%S')}"
    with dataset.lease(run_id):
        dataset.grow(total)
        job = Job(
            url=dataset.url,
            run_id=run_id,
            teacher=config.teacher,
            image_size=request.spec.image_size,
            seed=config.seed,
            fsync=config.fsync,
            halve_on_oom=config.halve_on_oom,
        )
        actor = ShardActor(job, request.input)
        actor.load()
        for unit in dataset.missing(total).tolist():
            done = actor.make(unit, request.plan.count(unit))
            print(f"unit {unit}: {done['seconds']:.1f} s", file=sys.stderr, flush=True)
        dataset.roll_up(final=True)
    return dataset.url
