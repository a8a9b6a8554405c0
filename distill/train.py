"""Train a student on a teacher's recorded features. MAIN PATH 2: read `train_on`, then
`pipeline.learning.loop.take_steps`.

    dreamshard train --config recipes/digits/train.yaml
    python distill/train.py --config ...                        one process
    accelerate launch distill/train.py --config ...             several GPUs
    torchrun --nproc_per_node 2 distill/train.py --config ...   several processes, CPU or GPU

A rerun into the same run folder goes on from its last checkpoint and ends with the very weights an
undisturbed run would have. Every rank reads its own share of every global batch.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: import our packages, not the files beside this script
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np

from distill.configs.train import TrainConfig
from dreamshard.config import load_config, to_dict
from dreamshard.errors import ConfigError, run_main
from dreamshard.progress import begin, stage
from dreamshard.runfolder import RunFolder, trim_metrics

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from distill.data.batches import Batches
    from distill.data.sets import TrainingSet
    from distill.methods.base import Method
    from distill.students.student import Student
    from distill.training.runlog import RunLog
    from distill.training.state import TrainState
    from pipeline.learning.loop import Learner

DESCRIPTION = "Train a student backbone on a teacher's recorded features."


def main(argv: Sequence[str]) -> int | None:
    """Run the command; see `dreamshard train --help`."""
    config = load_config(TrainConfig, argv, prog="dreamshard train", description=DESCRIPTION)
    begin(f"train: {config.student.name} into {config.run_dir}; loading PyTorch")
    train(config)
    return None


def train(config: TrainConfig) -> Path:
    """Train a student to the last step, from the run folder's last checkpoint if it has one.

    Returns:
        The folder of the trained student.

    Raises:
        ConfigError: settings that do not fit the dataset, the student, the ranks, the launcher, the
            memory or the run folder.
        DataError: a dataset or checkpoint that cannot be read or written, or features that are not
            finite.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved.
        DreamshardError: a loss that is not finite although the features are.
    """
    from distill.training.launch import stop_accelerator
    from distill.training.memory import memory_problem
    from pipeline.learning.ranks import alone

    accelerator = join_ranks(config)
    try:
        with alone(Path(config.run_dir), key="run_dir"):
            return train_on(accelerator, config=config)
    except (RuntimeError, MemoryError) as error:
        problem = memory_problem(
            error,
            batch_size=config.batch_size,
            parts=config.accumulate,
            grad_checkpointing=config.student.grad_checkpointing,
        )
        if problem is None:
            raise
        raise ConfigError(problem) from error
    finally:
        stop_accelerator(accelerator)


def join_ranks(config: TrainConfig) -> Accelerator:
    """Join the other ranks, if there are any; see `distill.training.launch.start_accelerator`."""
    import torch

    from distill.training.launch import start_accelerator

    if config.threads:
        torch.set_num_threads(config.threads)
    return start_accelerator(
        device=config.device,
        precision=config.precision,
        trackers=config.trackers,
        run_dir=config.run_dir,
        batch_size=config.batch_size,
        parts=config.accumulate,
        sync_batchnorm=config.sync_batchnorm,
    )


def train_on(accelerator: Accelerator, *, config: TrainConfig) -> Path:
    """Find data and starting point, build the parts, take the steps, keep the student."""
    from distill.methods.build import method_class, open_for
    from distill.students.card import STUDENT_FOLDER
    from distill.training.holding import name_run, pin_for_checkpoints, unpin
    from distill.training.keep import keep_student
    from distill.training.start import check_ranks, find_start, tell_start
    from pipeline.learning.ranks import decided_by_chief, together

    name_run(config.run_dir)
    run_dir, settings = Path(config.run_dir), config.method_settings()
    kind = method_class(config.method)
    check_ranks(config)
    training_set = together(lambda: open_for(kind, settings, data=config.data, seed=config.seed))
    start = find_start(config, training_set)
    tell_start(start, config)
    if start.finished:
        decided_by_chief(lambda: tidy(config, training_set))
        return run_dir / STUDENT_FOLDER
    state = start.state
    training_set = together(lambda: training_set.at(state.snapshot, real=state.real))
    decided_by_chief(lambda: pin_for_checkpoints(training_set.sources, run_dir))
    method, learner = together(
        lambda: build(
            accelerator, config=config, training_set=training_set, checkpoint=start.checkpoint
        )
    )
    log = train_steps(
        state,
        config=config,
        accelerator=accelerator,
        training_set=training_set,
        method=method,
        learner=learner,
    )

    def keep() -> None:
        method.keep(run_dir)
        keep_student(
            learner.kept,
            config=config.student,
            summary=config.summary(views=method.views, extended=state.extended),
            training_set=training_set,
            log=log,
        )
        unpin(training_set.sources, run_dir)

    decided_by_chief(keep)
    return run_dir / STUDENT_FOLDER


def tidy(config: TrainConfig, training_set: TrainingSet) -> None:
    """Do what a finished run has left to do, if it was killed when its student was in place."""
    from distill.training.holding import unpin
    from distill.training.keep import complete_record

    run_dir = Path(config.run_dir)
    complete_record(run_dir, lambda: RunFolder(config.run_dir, config=config))
    unpin(training_set.sources, run_dir)


def build(
    accelerator: Accelerator,
    *,
    config: TrainConfig,
    training_set: TrainingSet,
    checkpoint: Path | None,
) -> tuple[Method, Learner]:
    """Build the method, its optimiser and average on their devices, as a checkpoint has them."""
    from distill.data.statistics import constant_levels
    from distill.training.batch_norm import partial_statistics
    from distill.training.learner import build_learner
    from distill.training.memory import check_estimate, try_step
    from distill.training.rehearsal import rehearse
    from distill.training.start import plan_of, step_size
    from pipeline.learning.checkpoint import load_checkpoint, parts_of

    method = new_method(config, training_set)
    ranks, device = accelerator.num_processes, accelerator.device.type
    lines = rehearse(method, plan=plan_of(config), training_set=training_set, ranks=ranks)
    lines += partial_statistics(
        method,
        batch_size=config.batch_size,
        parts=config.accumulate,
        sync_batchnorm=config.sync_batchnorm,
        ranks=ranks,
        device=device,
    )
    if accelerator.is_main_process:
        for line in lines + constant_levels(training_set):
            stage(f"train: {line}")
    step = step_size(config, training_set, ranks=ranks)
    if device == "cpu":
        check_estimate(method, step)
    learner = build_learner(
        method,
        accelerator,
        optimizer=config.optimizer,
        student=config.student,
        image_size=training_set.image_size,
        steps=config.steps,
        batch_size=config.batch_size,
        ema=config.ema,
        sync_batchnorm=config.sync_batchnorm,
    )
    if device != "cpu":
        try_step(method, step, device=accelerator.device, autocast=accelerator.autocast())
    if checkpoint is not None:
        load_checkpoint(checkpoint, parts_of(learner))
    return method, learner


def new_method(config: TrainConfig, training_set: TrainingSet) -> Method:
    """Build the method as it is before the first step, on the CPU."""
    from distill.methods.build import build_method, method_class

    return build_method(
        method_class(config.method),
        config.method_settings(),
        student=config.student,
        training_set=training_set,
        seed=config.seed,
    )


def open_batches(
    training_set: TrainingSet,
    *,
    config: TrainConfig,
    accelerator: Accelerator,
    student: Student,
    start: int,
) -> Batches:
    """Open this rank's share of every batch, from a position of the endless stream on."""
    from distill.data.batches import Batches
    from storage.batches.filler import Share

    return Batches(
        training_set,
        share=Share(
            batch_size=config.part_size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            start=start,
        ),
        mean=student.mean,
        std=student.std,
        device=accelerator.device,
    )


def open_log(
    accelerator: Accelerator, *, config: TrainConfig, training_set: TrainingSet, start: int
) -> RunLog:
    """Open the run's record, without the lines of steps that are taken again, and its trackers."""
    from distill.training.runlog import RunLog, open_trackers

    record = None
    if accelerator.is_main_process:
        record = RunFolder(config.run_dir, config=config, replace=config.restart)
        trim_metrics(record.path / "metrics.jsonl", step=start)
    open_trackers(accelerator, config.trackers, to_dict(config))
    return RunLog(
        record,
        accelerator=accelerator,
        training_set=training_set,
        steps=config.steps,
        batch_size=config.batch_size,
        start=start,
    )


def train_steps(
    state: TrainState,
    *,
    config: TrainConfig,
    accelerator: Accelerator,
    training_set: TrainingSet,
    method: Method,
    learner: Learner,
) -> RunLog:
    """Take the steps that are left; write metrics and checkpoints.

    Raises:
        DataError, DreamshardError: the loss or the gradient was not finite.
        Interrupted: asked to stop; a checkpoint was saved.
    """
    from pipeline.learning.loop import take_steps
    from pipeline.learning.ranks import together
    from pipeline.learning.stopping import StopAfterStep

    batches = together(
        lambda: open_batches(
            training_set,
            config=config,
            accelerator=accelerator,
            student=method.student,
            start=state.position,
        )
    )
    log = together(
        lambda: open_log(accelerator, config=config, training_set=training_set, start=state.step)
    )
    log.headline(config.student.name, method.student, parts=config.accumulate)
    forward, index = passes(
        batches,
        seed=config.seed,
        rank=accelerator.process_index,
        method=method,
        measured=lambda step: config.tells_gradients(step, several=method.several),
    )
    with closing(batches), log, StopAfterStep("train") as stopping:
        look, save = after_step(state, config, training_set, learner, log=log, batches=batches)
        for taken in take_steps(
            learner, forward, done=state.step, parts=config.accumulate, engine=accelerator
        ):
            method.after_step()
            log.note(taken, index=np.concatenate(index))
            if taken.due(config.log_every):
                log.line(rate=taken.rate, waited_s=batches.waited_s, every=config.log_every)
            if config.monitor.every and taken.due(config.monitor.every):
                look()
            stop = stopping.now(taken, every=config.log_every)
            if stop or taken.due(config.save_every):
                save(taken.step)
            if stop:
                stopping.leave(taken.step, config.steps)
    return log


def passes(
    batches: Batches, *, seed: int, rank: int, method: Method, measured: Callable[[int], bool]
) -> tuple[Callable[..., Mapping[str, Tensor]], list[np.ndarray]]:
    """Return the forward pass of a part of a step, and the sample numbers of the step's parts."""
    from distill.training.launch import seed_step

    index: list[np.ndarray] = []

    def forward(model: Callable[..., Mapping[str, Tensor]], step: int, part: int):
        if part == 0:
            seed_step(seed, step=step, rank=rank)
            index.clear()
            method.before_step(measured=measured(step))
        batch = batches.next()
        index.append(batch.index)
        return model(batch.images, batch.targets)

    return forward, index


def after_step(
    state: TrainState,
    config: TrainConfig,
    training_set: TrainingSet,
    learner: Learner,
    *,
    log: RunLog,
    batches: Batches,
) -> tuple[Callable[[], None], Callable[[int], None]]:
    """Return what looks at the student and what saves a checkpoint; rank zero does, all wait."""
    from distill.training.monitor import Monitor
    from pipeline.learning.checkpoint import parts_of, save_checkpoint
    from pipeline.learning.ranks import decided_by_chief, this_rank

    size, monitor = training_set.image_size, None

    def open_monitor() -> None:
        nonlocal monitor
        monitor = Monitor(config.monitor, image_size=size, seed=config.seed)

    if config.monitor.every:
        decided_by_chief(open_monitor)

    def look() -> None:
        decided_by_chief(lambda: log.look(monitor(learner.kept)) if monitor else None)

    def save(step: int) -> None:
        now = asdict(replace(state, step=step, position=batches.position))
        parts = {} if this_rank() else parts_of(learner)
        decided_by_chief(
            lambda: save_checkpoint(Path(config.run_dir), parts, state=now, keep=config.keep)
        )

    return look, save


if __name__ == "__main__":
    raise SystemExit(run_main(main, sys.argv[1:]))
