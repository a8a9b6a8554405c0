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
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from distill.config import TrainConfig
from dreamshard.config import load_config
from dreamshard.errors import run_main
from dreamshard.progress import stage

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer

    from distill.checkpoint import TrainState
    from distill.data import ShardBatches
    from distill.methods.base import Method
    from distill.runlog import RunLog

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
    from distill.launch import start_accelerator, stop_accelerator

    accelerator = start_accelerator(config)
    try:
        return train_on(accelerator, config=config)
    finally:
        stop_accelerator(accelerator)


def train_on(accelerator: Accelerator, *, config: TrainConfig) -> Path:
    """Find data and starting point, build the parts, take the steps, keep the student."""
    from distill.checkpoint import first_state, forget, load_checkpoint, resume_point
    from distill.data import open_batches, open_training_set
    from distill.export import STUDENT_FOLDER, keep_student
    from distill.launch import place
    from distill.methods import build_method
    from distill.optim import build_optimizer
    from distill.runlog import RunLog

    run_dir, chief = Path(config.run_dir), accelerator.is_main_process
    training_set = open_training_set(config.data, kinds=config.level_kinds())
    if config.restart and chief:
        forget(run_dir)
    accelerator.wait_for_everyone()
    first = first_state(config, training_set=training_set, processes=accelerator.num_processes)
    state, checkpoint = resume_point(run_dir, fresh=first)
    student_folder = run_dir / STUDENT_FOLDER
    if state.step >= config.steps and student_folder.exists():
        if chief:
            stage(f"train: {run_dir} is finished ({state.step} steps), its student is reused")
        return student_folder
    training_set = training_set.at(state.snapshot)
    method = build_method(config, training_set=training_set)
    place(method, config=config, accelerator=accelerator)
    layers = method.layers(config, image_size=training_set.image_size)
    optimizer = build_optimizer(method, config.optimizer, layers=layers)
    if checkpoint is not None:
        load_checkpoint(checkpoint, model=method, optimizer=optimizer)
    batches = open_batches(
        training_set, config=config, student=method.student, accelerator=accelerator, state=state
    )
    log = RunLog(config, accelerator=accelerator, training_set=training_set, start=state.step)
    log.headline(method.student)
    with closing(batches), log:
        take_steps(
            state,
            config=config,
            accelerator=accelerator,
            method=method,
            optimizer=optimizer,
            batches=batches,
            log=log,
        )
    if chief:
        method.keep(run_dir)
        keep_student(method.student, config=config, training_set=training_set, log=log)
    accelerator.wait_for_everyone()
    return student_folder


def take_steps(
    state: TrainState,
    *,
    config: TrainConfig,
    accelerator: Accelerator,
    method: Method,
    optimizer: Optimizer,
    batches: ShardBatches,
    log: RunLog,
) -> None:
    """Take the steps that are left; write metrics and checkpoints.

    Raises:
        DataError, DreamshardError: the loss or the gradient was not finite.
    """
    from distill.checkpoint import save_checkpoint
    from distill.launch import seed_step
    from distill.optim import learning_rate, set_learning_rate

    run_dir = Path(config.run_dir)
    model, stepper = accelerator.prepare(method, optimizer)
    for step in range(state.step + 1, config.steps + 1):
        rate = learning_rate(
            step, steps=config.steps, config=config.optimizer, batch_size=config.batch_size
        )
        set_learning_rate(optimizer, rate)
        seed_step(config.seed, step=step, rank=accelerator.process_index)
        batch = batches.next()
        terms = model(batch.images, batch.targets)
        accelerator.backward(terms["loss"])
        norm = accelerator.clip_grad_norm_(model.parameters(), config.optimizer.clip or math.inf)
        stepper.step()
        stepper.zero_grad()
        log.note(step, terms=terms, norm=norm, index=batch.index)
        last = step == config.steps
        if last or step % config.log_every == 0:
            log.line(rate=rate, waited_s=batches.waited_s)
        if accelerator.is_main_process and (last or step % config.save_every == 0):
            now = replace(state, step=step, position=batches.position)
            save_checkpoint(run_dir, now, model=method, optimizer=optimizer, keep=config.keep)


if __name__ == "__main__":
    raise SystemExit(run_main(main, sys.argv[1:]))
