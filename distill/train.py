"""Train a student on a teacher's recorded features. MAIN PATH 2: read `train`, then `take_steps`.

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

import math
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from distill.configs.train import TrainConfig
from dreamshard.config import load_config
from dreamshard.errors import run_main
from dreamshard.progress import stage

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from torch import Tensor

    from distill.data.batches import Batches
    from distill.data.sets import TrainingSet
    from distill.students.student import Student
    from distill.training.learner import Learner
    from distill.training.monitor import Monitor
    from distill.training.runlog import RunLog
    from distill.training.state import TrainState

DESCRIPTION = "Train a student backbone on a teacher's recorded features."


def main(argv: Sequence[str]) -> int | None:
    """Run the command; see `dreamshard train --help`."""
    train(load_config(TrainConfig, argv, prog="dreamshard train", description=DESCRIPTION))
    return None


def train(config: TrainConfig) -> Path:
    """Train a student to the last step, from the run folder's last checkpoint if it has one.

    Returns:
        The folder of the trained student.

    Raises:
        ConfigError: settings that do not fit the dataset, the student, the ranks or the run folder.
        DataError: a dataset or checkpoint that cannot be read, or features that are not finite.
        DreamshardError: a loss that is not finite although the features are.
    """
    from distill.training.launch import start_accelerator, stop_accelerator

    accelerator = start_accelerator(config)
    try:
        return train_on(accelerator, config=config)
    finally:
        stop_accelerator(accelerator)


def train_on(accelerator: Accelerator, *, config: TrainConfig) -> Path:
    """Find data and starting point, build the parts, take the steps, keep the student."""
    from distill.data.open import open_training_set
    from distill.methods.build import method_class
    from distill.students.card import STUDENT_FOLDER
    from distill.training.keep import keep_student
    from distill.training.monitor import open_monitor
    from distill.training.runlog import RunLog

    run_dir, chief = Path(config.run_dir), accelerator.is_main_process
    kind, settings = method_class(config.method), config.method_settings()
    training_set = open_training_set(config.data, needs=kind.needs(settings), seed=config.seed)
    state, checkpoint = find_start(accelerator, config=config, training_set=training_set)
    student_folder = run_dir / STUDENT_FOLDER
    if state.step >= config.steps and student_folder.exists():
        if chief:
            stage(f"train: {run_dir} is finished ({state.step} steps), its student is reused")
        return student_folder
    training_set = training_set.at(state.snapshot)
    learner = build(accelerator, config=config, training_set=training_set, checkpoint=checkpoint)
    method, start = learner.method, state.position
    batches = open_batches(
        training_set, config=config, accelerator=accelerator, student=method.student, start=start
    )
    log = RunLog(config, accelerator=accelerator, training_set=training_set, start=state.step)
    monitor = open_monitor(config, training_set=training_set) if chief else None
    log.headline(method.student)
    with closing(batches), log:
        take_steps(
            state,
            config=config,
            accelerator=accelerator,
            learner=learner,
            batches=batches,
            log=log,
            monitor=monitor,
        )
    if chief:
        method.keep(run_dir)
        keep_student(
            learner.kept,
            config=config.student,
            summary=config.summary(views=method.views),
            training_set=training_set,
            log=log,
        )
    accelerator.wait_for_everyone()
    return student_folder


def build(
    accelerator: Accelerator,
    *,
    config: TrainConfig,
    training_set: TrainingSet,
    checkpoint: Path | None,
) -> Learner:
    """Build the method, its optimiser and average on their devices, as a checkpoint has them."""
    from distill.methods.build import build_method, method_class
    from distill.training.checkpoint import load_checkpoint
    from distill.training.launch import place
    from distill.training.learner import build_learner

    method = build_method(
        method_class(config.method),
        config.method_settings(),
        student=config.student,
        training_set=training_set,
        seed=config.seed,
    )
    place(method, config=config, accelerator=accelerator)
    learner = build_learner(
        method, config=config, image_size=training_set.image_size, scaler=accelerator.scaler
    )
    if checkpoint is not None:
        load_checkpoint(checkpoint, learner)
    return learner


def find_start(
    accelerator: Accelerator, *, config: TrainConfig, training_set: TrainingSet
) -> tuple[TrainState, Path | None]:
    """Return where the run folder's last checkpoint stands, and its folder; or step 0 and None."""
    from distill.training.checkpoint import forget, resume_point
    from distill.training.state import first_state

    run_dir = Path(config.run_dir)
    if config.restart and accelerator.is_main_process:
        forget(run_dir)
    accelerator.wait_for_everyone()
    first = first_state(config, training_set=training_set, processes=accelerator.num_processes)
    return resume_point(run_dir, fresh=first)


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


def take_steps(
    state: TrainState,
    *,
    config: TrainConfig,
    accelerator: Accelerator,
    learner: Learner,
    batches: Batches,
    log: RunLog,
    monitor: Monitor | None,
) -> None:
    """Take the steps that are left; write metrics and checkpoints.

    Raises:
        DataError, DreamshardError: the loss or the gradient was not finite.
    """
    from distill.training.checkpoint import save_checkpoint
    from distill.training.launch import seed_step
    from distill.training.optim import learning_rate, peak_rate, set_learning_rate

    run_dir = Path(config.run_dir)
    peak = peak_rate(config.optimizer, batch_size=config.batch_size)
    model, stepper = accelerator.prepare(learner.method, learner.optimizer)
    for step in range(state.step + 1, config.steps + 1):
        rate = learning_rate(
            step, steps=config.steps, config=config.optimizer, batch_size=config.batch_size
        )
        set_learning_rate(learner.optimizer, rate, peak=peak)
        seed_step(config.seed, step=step, rank=accelerator.process_index)
        terms, index = add_gradients(model, stepper, batches, accelerator, parts=config.accumulate)
        norm = accelerator.clip_grad_norm_(model.parameters(), config.optimizer.clip or math.inf)
        stepper.step()
        learner.follow(step)
        log.note(step, terms=terms, norm=norm, index=index, skipped=stepper.step_was_skipped)
        last = step == config.steps
        if last or step % config.log_every == 0:
            log.line(rate=rate, waited_s=batches.waited_s)
        if monitor is not None and (last or step % config.monitor.every == 0):
            log.look(monitor(learner.kept))
        if accelerator.is_main_process and (last or step % config.save_every == 0):
            now = replace(state, step=step, position=batches.position)
            save_checkpoint(run_dir, now, learner, keep=config.keep)


def add_gradients(
    model: Callable[..., dict[str, Tensor]],
    stepper: AcceleratedOptimizer,
    batches: Batches,
    accelerator: Accelerator,
    *,
    parts: int,
) -> tuple[dict[str, Tensor], np.ndarray]:
    """Run a step's batch forward and backward, in parts; ranks share gradients after the last.

    The step before leaves its gradients to this one, which drops them after its first forward pass:
    dropped earlier, their holes are taken by activations, and on a CPU a step takes 10 % longer.

    Returns:
        The loss terms' means over the parts, and the sample numbers of this rank's batch.
    """
    sums: dict[str, Tensor] = {}
    index = []
    for part in range(parts):
        batch = batches.next()
        alone = part < parts - 1
        with accelerator.no_sync(model) if alone else nullcontext():
            terms = model(batch.images, batch.targets)
            if part == 0:
                stepper.zero_grad()
            accelerator.backward(terms["loss"] / parts)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value.detach() / parts
        index.append(batch.index)
    return sums, np.concatenate(index)


if __name__ == "__main__":
    raise SystemExit(run_main(main, sys.argv[1:]))
