"""MAIN PATH 1: a config becomes committed shards. It reads from top to bottom.

resolve -> look-up in the catalog -> dataset -> cluster -> actors -> units -> manifest -> summary
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from secrets import token_hex

from dreamshard.progress import Progress, stage
from dreamshard.runfolder import RunFolder
from pipeline.cluster.deadline import Deadline
from pipeline.cluster.join import cluster, describe
from pipeline.learning.signals import StopSignal
from pipeline.offline.actor import Job
from pipeline.offline.books import Books, counts
from pipeline.offline.driver import Driver, Outcome, Task
from pipeline.offline.folder import own_folder, whose
from pipeline.offline.summary import already_there, announce, summarise
from pipeline.request.config import OfflineConfig
from pipeline.request.fit_batch import settle_micro_batch
from pipeline.request.lookup import Existing, check_pins, create, look_up
from pipeline.request.resolve import ResolvedRequest, resolve
from pipeline.request.same_source import check_source
from storage.dataset import Dataset


def run(config: OfflineConfig, *, command: Sequence[str]) -> tuple[int, Dataset]:
    """Make the dataset that a config asks for, or what is missing of it.

    Args:
        config: an EncodeConfig or a SynthesizeConfig.
        command: the command line, to be recorded and repeated.

    Returns:
        Exit code (0 all there, 130 stopped on request) and the dataset.

    Raises:
        ConfigError, DataError, TeacherError: see `dreamshard.errors`; DataError also where units
            were left out.
    """
    named, config = bool(config.run_dir), config.settled()
    request = resolve(config.request())
    existing = look_up(request)
    checked = check_source(existing.dataset, request.input) if existing else []
    if existing is not None and existing.complete:
        return already_there(existing, request, checked, max_share=config.max_invalid_share)
    for line in checked:
        stage(line)
    config = own_folder(config, request, existing, named=named)
    return _make_dataset(config, request, existing, command)


def _make_dataset(
    config: OfflineConfig,
    request: ResolvedRequest,
    existing: Existing | None,
    command: Sequence[str],
) -> tuple[int, Dataset]:
    """Begin or extend the dataset, and hold its lease and run folder while units are made."""
    if config.micro_batch == 0:  # as large as fits
        begun = existing.dataset.pins if existing else None
        size = config.actor_size()
        request = settle_micro_batch(request, begun, ray_config=config.ray, size=size)
        config = replace(config, micro_batch=request.pins.micro_batch)
    dataset = existing.dataset if existing else create(request)
    check_pins(request, dataset, num_gpus=config.gpus_per_actor)
    of = whose(dataset.url)
    folder = RunFolder(config.run_dir, config=config, command=command, of=of)
    folder.finish(shlex.join(command))  # what to type if this run ends early
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{token_hex(3)}"
    with dataset.lease(run_id):  # sweeps up after runs that died
        dataset.grow(request.plan.num_samples)
        missing = dataset.missing(request.plan.num_samples)
        if not len(missing):  # since we looked, another run has made them
            first = Existing(dataset, True, True, "another run was first")
            return already_there(first, request, [], max_share=config.max_invalid_share)
        job = Job(
            url=dataset.url,
            run_id=run_id,
            teacher=config.teacher,
            image_size=request.spec.image_size,
            seed=config.seed,
            fsync=config.fsync,
            halve_on_oom=config.halve_on_oom,
        )
        try:
            outcome, books = _make_units(config, request, dataset, missing.tolist(), job, folder)
        finally:
            dataset.roll_up(final=True)
    return summarise(outcome, books, folder=folder, command=command)


def _make_units(
    config: OfflineConfig,
    request: ResolvedRequest,
    dataset: Dataset,
    missing: Sequence[int],
    job: Job,
    folder: RunFolder,
) -> tuple[Outcome, Books]:
    """Start actors and drive them over the units that are not committed."""
    announce(request, dataset, num_missing=len(missing))
    plan, mode = request.plan, request.input.mode
    size = replace(config.actor_size(), threads=dataset.pins.threads)
    count = size.count(config.actors)
    with cluster(
        config.ray, num_cpus=count * size.threads, num_gpus=count * size.num_gpus
    ) as joined:
        from pipeline.offline.workers import RayWorkers  # imports Ray

        def target() -> int:
            now = describe(joined.where)  # nodes come and go
            return min(now.actors(size, asked=config.actors), len(missing))

        with (
            StopSignal() as stopping,
            Progress(mode, total=plan.num_samples, initial=counts(dataset)[0]) as progress,
            RayWorkers(
                job,
                request.input,
                target=target,
                options=size.options(),
                on_ready=lambda ready: progress.update(0, actors=f"{ready}/{target()}"),
                on_underway=progress.underway,
            ) as workers,
        ):
            books = Books(dataset, plan, config.max_invalid_share, folder, progress)
            driver = Driver(
                workers,
                config.max_attempts,
                books.take,
                stopping,
                on_given_up=books.give_up,
                on_retry=books.retry,
                deadline=Deadline(config.unit_deadline_s),
            )
            return driver.run(Task(unit, plan.count(unit)) for unit in missing), books
