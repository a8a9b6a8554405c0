"""MAIN PATH 1: a config becomes committed shards. It reads from top to bottom.

resolve -> look-up in the catalog -> dataset -> cluster -> actors -> units -> manifest -> summary
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from secrets import token_hex

from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.progress import Progress, stage
from dreamshard.runfolder import RunFolder
from pipeline.cluster.join import EMBEDDED, Cluster, cluster, describe
from pipeline.cluster.worker import num_cpus, worker_env
from pipeline.offline.actor import Job
from pipeline.offline.books import Books, check_invalid, counts
from pipeline.offline.deadline import Deadline
from pipeline.offline.driver import Driver, Outcome, Task, Workers
from pipeline.offline.signals import StopSignal
from pipeline.request.config import PipelineConfig
from pipeline.request.fit_batch import settle_micro_batch
from pipeline.request.lookup import Found, check_pins, create, look_up
from pipeline.request.paths import settle_paths
from pipeline.request.plan import Plan, format_bytes
from pipeline.request.resolve import Request, resolve
from storage.dataset import Dataset

INTERRUPTED = 130


def run(config: PipelineConfig, *, command: Sequence[str]) -> int:
    """Make the dataset that a config asks for, or what is missing of it.

    Args:
        config: an EncodeConfig or a SynthesizeConfig.
        command: the command line, to be recorded and repeated.

    Returns:
        Exit code: 0 all there, 3 units were left out, 130 stopped on request.

    Raises:
        ConfigError, DataError, TeacherError: see `dreamshard.errors`.
    """
    config = settle_paths(config)
    request = resolve(config)
    found = look_up(config, request)
    if found is not None and found.complete:
        return _already_there(config, request, found)

    if config.micro_batch == 0:
        pins = found.dataset.pins if found else None
        config, request = settle_micro_batch(config, request, pins)
    dataset = found.dataset if found else create(config, request)
    check_pins(config, request, dataset)
    folder = RunFolder(config.run_dir, config=config, command=command)
    folder.finish(shlex.join(command))  # what to type if this run ends early
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{token_hex(3)}"
    with dataset.lease(run_id):  # sweeps up after runs that died
        dataset.grow(request.plan.num_samples)
        missing = dataset.missing(request.plan.num_samples)
        if not len(missing):  # since we looked, another run has made them
            return _already_there(config, request, Found(dataset, True, "another run was first"))
        job = _job(config, request, url=dataset.url, run_id=run_id)
        try:
            outcome, books = _make(config, request, dataset, job, missing.tolist(), folder=folder)
        finally:
            dataset.roll_up(final=True)
    folder.stats(**books.stats(), quarantined=len(outcome.quarantined), retries=outcome.retries)
    return _summarise(outcome, books, folder=folder, command=command)


def _make(
    config: PipelineConfig,
    request: Request,
    dataset: Dataset,
    job: Job,
    missing: Sequence[int],
    *,
    folder: RunFolder,
) -> tuple[Outcome, Books]:
    """Start actors and drive them over the units that are not committed."""
    plan, pins = request.plan, dataset.pins
    stage(
        f"{request.input.mode}: {plan.num_samples:,} samples, {len(missing):,} of "
        f"{plan.num_units:,} units of {plan.samples_per_unit:,} to make, "
        f"{format_bytes(plan.total_bytes)} in {dataset.url}"
    )
    for note in request.spec.notes:
        stage(f"teacher: {note}")
    wanted = config.actors or max(1, num_cpus() // pins.threads)
    with cluster(
        config.ray,
        num_cpus=wanted * pins.threads,
        num_gpus=wanted * config.gpus_per_actor,
    ) as there:
        from pipeline.offline.workers import RayWorkers  # imports Ray

        def target() -> int:
            return min(_actors(config, describe(there.where), threads=pins.threads), len(missing))

        with (
            StopSignal() as stopping,
            Progress(
                request.input.mode, total=plan.num_samples, initial=counts(dataset)[0]
            ) as progress,
            RayWorkers(
                job,
                request.input,
                target=target,
                num_cpus=pins.threads,
                num_gpus=config.gpus_per_actor,
                resources=config.actor_resources,
                env_vars=worker_env(pins.threads),
                on_ready=lambda ready: progress.update(0, actors=f"{ready}/{target()}"),
            ) as workers,
        ):
            books = Books(dataset, plan, config.max_invalid_share, folder, progress)
            driver = _driver(config, workers, books, stopping)
            return driver.run(_tasks(missing, plan)), books


def _driver(config: PipelineConfig, workers: Workers, books: Books, stopping: StopSignal) -> Driver:
    return Driver(
        workers,
        config.max_attempts,
        books.take,
        stopping,
        on_given_up=books.give_up,
        on_retry=books.retry,
        deadline=Deadline(config.unit_deadline_s),
    )


def _job(config: PipelineConfig, request: Request, *, url: str, run_id: str) -> Job:
    return Job(
        url=url,
        run_id=run_id,
        teacher=config.teacher,
        image_size=request.spec.image_size,
        seed=config.seed,
        fsync=config.fsync,
        halve_on_oom=config.halve_on_oom,
    )


def _tasks(missing: Sequence[int], plan: Plan) -> Iterator[Task]:
    return (Task(unit, plan.count(unit)) for unit in missing)


def _actors(config: PipelineConfig, there: Cluster, *, threads: int) -> int:
    """Decide how many actors to keep; a cluster of our own must have the GPUs for one."""
    if there.where == EMBEDDED and config.gpus_per_actor > there.num_gpus:
        hint = "Join a cluster with --ray.address, or run on the CPU with --gpus_per_actor 0."
        got, allowed = str(config.gpus_per_actor), f"{there.num_gpus:g} at most on this machine"
        raise ConfigError(Problem("gpus_per_actor", got, allowed, hint))
    return config.actors or there.room(
        num_cpus=threads, num_gpus=config.gpus_per_actor, **config.actor_resources
    )


def _already_there(config: PipelineConfig, request: Request, found: Found) -> int:
    url = found.dataset.url
    found.dataset.tidy()
    committed, invalid = counts(found.dataset)
    check_invalid(
        invalid,
        num_samples=committed,
        max_share=config.max_invalid_share,
        examples=[],
        url=url,
    )
    sys.stdout.write(
        f"already there: {committed:,} samples ({request.wanted:,} asked for), nothing to make\n"
        f"  {found.reason}\nnext: dreamshard inspect {shlex.quote(url)}\n"
    )
    return 0


def _summarise(outcome: Outcome, books: Books, *, folder: RunFolder, command: Sequence[str]) -> int:
    """Say what was made, what was not, and what to type next."""
    stats, url = books.stats(), books.dataset.url
    again = shlex.join(command)
    following = f"dreamshard inspect {shlex.quote(url)}"
    lines = [
        f"made {books.made:,} samples in {stats['seconds']:,.1f} s "
        f"({stats['img_per_s']:,.4g} img/s, {format_bytes(books.bytes)}); "
        f"{books.samples:,} of {books.plan.num_samples:,} are there, {books.invalid:,} unusable",
        f"  {url}",
    ]
    if outcome.interrupted:
        following = again
        lines.append("stopped as asked; what is committed stays, and the same command goes on")
    if outcome.quarantined:
        following = again
    folder.finish(following)
    sys.stdout.write("\n".join([*lines, f"run folder: {folder.path}", f"next: {following}\n"]))
    sys.stdout.flush()
    if outcome.interrupted:
        return INTERRUPTED
    if outcome.quarantined:
        listed = "".join(f"\n  {unit}: {why}" for unit, why in sorted(outcome.quarantined.items()))
        raise DataError(
            f"{url}: {len(outcome.quarantined)} units could not be made and are left out; the same "
            f"command tries them again, and training without them takes --data.allow_holes:{listed}"
        )
    return 0
