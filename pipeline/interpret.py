"""Train a feature interpreter: a frozen teacher's features of a few labelled images -> labels.

    dreamshard interpret --config recipes/camvid/interpret.yaml
    python pipeline/interpret.py --config recipes/camvid/interpret.yaml

The teacher runs over the labelled images once, several noise draws each; the interpreter is then
fitted to what it gave. Attach it with `teacher.interpreter: FOLDER`, and encode and synthesize
write soft labels.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: import our packages, not the files beside this script
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamshard.config import load_config, to_dict
from dreamshard.config.words import changed_words, command_line
from dreamshard.errors import ConfigError, DreamshardError, Problem, run_main
from dreamshard.owner.alone import only_one
from dreamshard.progress import Progress, begin, stage
from pipeline.learning.interpreting.config import InterpretConfig
from pipeline.learning.launcher import check_one
from pipeline.teachers.interpreted.card import (
    CARD,
    InterpreterCard,
    coarse_to_fine,
    read_interpreter_card,
)
from storage.schema import canonical_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dreamshard.runfolder import RunFolder
    from pipeline.images.labelled import LabelledImages
    from pipeline.images.source import ImageSource
    from pipeline.learning.interpreting.examples import Examples
    from pipeline.learning.loop import Learner
    from pipeline.teachers.base import Teacher, TeacherSpec
    from pipeline.teachers.interpreted.interpreter import Interpreter

log = logging.getLogger(__name__)

DESCRIPTION = "Train a feature interpreter on a frozen teacher's features of a few labelled images."
ALGORITHM = 1
"""Raised whenever the same settings would train other weights."""
NOT_THE_WEIGHTS = ("out", "run_dir", "overwrite", "threads", "device", "memory_gb", "micro_batch")


def main(argv: Sequence[str]) -> int | None:
    """Run the command; see `dreamshard interpret --help`."""
    config = load_config(
        InterpretConfig, argv, prog="dreamshard interpret", description=DESCRIPTION
    )
    check_one("interpret")
    begin(f"interpret: {config.target}s into {config.out}; loading PyTorch")
    interpret(config)
    return None


def interpret(config: InterpretConfig) -> Path:
    """Train an interpreter, or find it already trained; return its folder.

    Raises:
        ConfigError: settings that contradict each other, the teacher or the source; another
            interpreter in `out`.
        DataError: images without labels, classes beyond those named, or nothing to learn from.
        TeacherError: a teacher that cannot be loaded.
        Interrupted: Ctrl-C or SIGTERM; what was computed and learnt is saved.
    """
    with only_one(config.record):
        return _interpret(config)


def _interpret(config: InterpretConfig) -> Path:
    import torch

    from dreamshard.runfolder import RunFolder, trim_metrics
    from pipeline.images.source import fingerprint, open_source
    from pipeline.learning.checkpoint import forget
    from pipeline.learning.interpreting.examples import judge
    from pipeline.learning.interpreting.kept import forget_features
    from pipeline.teachers.base import say
    from pipeline.teachers.interpreted.interpreter import save_interpreter
    from pipeline.teachers.load import describe_teacher

    began = time.perf_counter()
    spec = describe_teacher(config.teacher, mode="encode", image_size=config.image.shape)
    source = open_source(config.source)
    card = _card(config, spec, source=fingerprint(source))
    folder = Path(config.out)
    if _is_trained(folder, card, overwrite=config.overwrite):
        stage(f"interpret: {folder} is already trained: reused")
        return folder
    say(spec.notes)
    train, rest = read_sets(config, source, size=spec.image_size)
    card.training["labelled"] = train.keys
    record = RunFolder(
        config.record,
        config=config,
        of={"recipe": card.training["recipe_key"]},
        replace=config.overwrite,
    )
    trim_metrics(record.path / "metrics.jsonl", step=0)
    if config.threads:
        torch.set_num_threads(config.threads)
    total = len(source)
    keep = record.path / "features"
    examples = _examples(
        config, spec, train, total=total, key=card.training["recipe_key"], keep=keep
    )
    interpreter = _fit(config, card, examples=examples, record=record)
    if len(rest):
        scores = judge(interpreter, _examples(config, spec, rest, total=total))
        card.training |= scores
        record.stats(**scores)
        shown = ", ".join(f"{name} {value:.1f} %" for name, value in scores.items())
        stage(f"interpret: {shown} on {len(rest)} images kept out")
    save_interpreter(folder, interpreter, card=card)
    forget(record.path)
    forget_features(keep)
    record.stats(seconds=time.perf_counter() - began, interpreter=str(folder))
    record.propose(_next_command(config, folder))
    return folder


def _next_command(config: InterpretConfig, folder: Path) -> str:
    """Spell how to record the soft labels of the same images."""
    teacher = replace(config.teacher, levels=[], interpreter=str(folder))
    words = [*changed_words(teacher, "teacher"), *changed_words(config.source, "source")]
    words += changed_words(config.image, "image")
    return command_line("dreamshard", "encode", "--name", f"{config.name}-soft-labels", *words)


def read_sets(
    config: InterpretConfig, source: ImageSource, *, size: tuple[int, int]
) -> tuple[LabelledImages, LabelledImages]:
    """Read the labelled images and those to judge on, and refuse what cannot be learnt.

    Raises:
        ConfigError: a source without what is to be predicted.
        DataError: unusable images, classes beyond those named, or empty masks.
    """
    from pipeline.images.labelled import check_classes, draw_labelled, read_labelled

    masks = config.target == "mask"
    if not (source.has_masks if masks else source.has_labels):
        column = "source.mask_column" if masks else "source.label_column"
        hint = f"Set {column}, or target to {'label' if masks else 'mask'}."
        raise ConfigError(Problem("source", f"images without {config.target}s", "labelled", hint))
    if not masks:
        _require_order(config, source)
    count = config.labelled or len(source) - config.validation
    if count < 1 or count + config.validation > len(source):
        allowed = f"at most {len(source)} together, the images of the source, one to train on"
        got = f"{config.labelled} + {config.validation}"
        raise ConfigError(Problem("labelled + validation", got, allowed))
    draw = partial(draw_labelled, len(source), seed=config.seed, draw=config.draw)
    chosen, both = draw(count=count), draw(count=count + config.validation)
    sets = []
    for numbers in (chosen, np.setdiff1d(both, chosen)):
        data = read_labelled(
            source, config=config.image, size=size, numbers=numbers, seed=config.seed
        )
        values = data.targets(config.target)
        if not masks and (values != config.ignore).any():  # unlabelled images teach nothing
            data = data.rows(np.flatnonzero(values != config.ignore))
        check_classes(
            data.targets(config.target),
            num_classes=len(config.classes),
            ignore=config.ignore,
            what=config.target,
            keys=data.keys,
        )
        sets.append(data)
    _require_classes(config, sets[0].targets(config.target))
    return sets[0], sets[1]


def _require_classes(config: InterpretConfig, values: np.ndarray) -> None:
    """Refuse examples of fewer than two classes; name those that have none."""
    from pipeline.images.labelled import count_classes, require_classes

    counts = count_classes(values[values != config.ignore], num_classes=len(config.classes))
    ignored = int((values == config.ignore).sum())
    missing = require_classes(
        counts, ignored, classes=config.classes, ignore=config.ignore, key="source"
    )
    if missing:
        log.warning("source: no labelled image has class %s", ", ".join(missing))


def _require_order(config: InterpretConfig, source: ImageSource) -> None:
    """Refuse names in another order than that in which the source numbers its classes.

    Raises: ConfigError.
    """
    from pipeline.images.source import labels_of

    labels = labels_of(source)
    own = list(labels.classes) if labels else []
    if own and own != config.classes and not all(name.isdecimal() for name in own):
        hint = "A class's number is its place in the source's own list: give that."
        raise ConfigError(Problem("classes", str(config.classes), str(own), hint))


def _card(
    config: InterpretConfig, spec: TeacherSpec, *, source: dict[str, object]
) -> InterpreterCard:
    settings = {name: v for name, v in to_dict(config).items() if name not in NOT_THE_WEIGHTS}
    settings["teacher"], settings["source"] = spec.fingerprint, source
    identity = {"algorithm": ALGORITHM, "mode": spec.mode_settings, **settings}
    levels = [level.to_dict() for level in coarse_to_fine(spec.levels)]
    text = canonical_json({"levels": levels, **identity})
    return InterpreterCard(
        name=config.name,
        target=config.target,
        classes=config.classes,
        ignore=config.ignore,
        levels=levels,
        width=config.width,
        dropout=config.dropout,
        teacher=dict(spec.fingerprint),
        mode_settings=dict(spec.mode_settings),
        training={"recipe_key": hashlib.sha256(text.encode()).hexdigest(), "source": source},
    )


def _is_trained(folder: Path, card: InterpreterCard, *, overwrite: bool) -> bool:
    """Tell whether the interpreter asked for is trained; refuse to replace another."""
    if overwrite or not (folder / CARD).exists():
        return False
    if read_interpreter_card(folder).training.get("recipe_key") == card.training["recipe_key"]:
        return True
    hint = "Choose another --out, or replace it with --overwrite true."
    raise ConfigError(Problem("out", f"{folder} with another interpreter", "its own folder", hint))


def _examples(
    config: InterpretConfig,
    spec: TeacherSpec,
    data: LabelledImages,
    *,
    total: int,
    key: str = "",
    keep: Path | None = None,
) -> Examples:
    """Load the teacher, compute the views of some images, and let go of it.

    Stopped, a run keeps what it has computed in `keep`; None: images to judge on, in a plain view.
    """
    from pipeline.learning.interpreting.examples import Examples
    from pipeline.learning.interpreting.features import check_memory, compute_views, empty_views
    from pipeline.learning.interpreting.kept import load_features, save_features
    from pipeline.learning.stopping import StopAfterStep

    noisings, mirror = (config.noisings, config.mirror) if keep else (1, False)
    count = noisings * (2 if mirror else 1)
    check_memory(spec.levels, images=len(data), views=count, limit_gb=config.memory_gb)
    teacher = _load_teacher(config, spec)
    levels = empty_views(spec.levels, images=len(data), views=count)
    done = load_features(keep, levels, key=key) if keep else 0

    def after(so_far: int) -> None:
        if stopping():
            if keep:
                save_features(keep, levels, done=so_far, key=key)
            stopping.leave(so_far, count * len(data), unit="image")

    with (
        Progress("features", total=count * len(data), initial=done) as progress,
        StopAfterStep("interpret") as stopping,
    ):
        views = compute_views(
            teacher,
            data,
            levels=levels,
            total=total,
            mirror=mirror,
            micro_batch=config.micro_batch,
            progress=progress,
            done=done,
            after=after,
        )
    return Examples(views, data.targets(config.target), ignore=config.ignore)


def _load_teacher(config: InterpretConfig, spec: TeacherSpec) -> Teacher:
    import torch

    from pipeline.learning.device import choose_device
    from pipeline.teachers.load import load_teacher
    from storage.schema import Pins

    pins = Pins(
        micro_batch=config.micro_batch,
        compute_dtype=config.teacher.compute_dtype,
        device=choose_device(config.device),
        threads=config.threads or torch.get_num_threads(),
    )
    return load_teacher(
        config.teacher, mode="encode", seed=config.seed, pins=pins, image_size=spec.image_size
    )


def _fit(
    config: InterpretConfig, card: InterpreterCard, *, examples: Examples, record: RunFolder
) -> Interpreter:
    """Fit the interpreter: a random view of each image per epoch; stopped, it goes on."""
    import torch

    from pipeline.learning.device import choose_device
    from pipeline.learning.figures import Figures
    from pipeline.learning.interpreting.loss import interpreter_loss
    from pipeline.learning.loop import take_steps
    from pipeline.learning.resume import load_stopped, save_stopped
    from pipeline.learning.stopping import StopAfterStep

    device, key = torch.device(choose_device(config.device)), card.training["recipe_key"]
    per_epoch = -(-len(examples.targets) // config.batch_size)
    steps = config.epochs * per_epoch
    order = examples.order(epochs=config.epochs, batch_size=config.batch_size, seed=config.seed)

    def forward(interpreter: Any, step: int, part: int) -> Mapping[str, Tensor]:
        view, rows = next(order)
        logits = examples.logits(interpreter, view, rows)
        truth = examples.truth(view, rows, device=device)
        return interpreter_loss(logits, truth, ignore=config.ignore, dice_weight=config.dice_weight)

    with (
        torch.random.fork_rng(devices=[]),
        Progress("interpret", total=steps, unit="step") as progress,
        StopAfterStep("interpret") as stopping,
    ):
        torch.manual_seed(config.seed)
        learner, figures = _learner(config, card, device=device, steps=steps), Figures(_diverged)
        done = load_stopped(record.path, learner, key=key)
        for _ in range(done):
            next(order)
            progress.update(1)
        for taken in take_steps(learner, forward, done=done):
            figures.note(taken.step, taken.terms)
            means = figures.means()
            progress.update(1, **means)
            if taken.step % per_epoch == 0:
                record.log(step=taken.step, lr=config.lr * taken.rate, **means)
            if stopping.now(taken, every=1):
                save_stopped(record.path, learner, step=taken.step, key=key)
                stopping.leave(taken.step, steps)
        if done < steps:  # whoever is stopped while it is judged has learnt it
            save_stopped(record.path, learner, step=steps, key=key)
    return learner.kept.eval()


def _learner(
    config: InterpretConfig, card: InterpreterCard, *, device: torch.device, steps: int
) -> Learner:
    """Build an interpreter with AdamW, warm-up and cosine."""
    from torch.optim import AdamW

    from pipeline.learning.loop import Learner
    from pipeline.learning.schedule import WarmupCosine
    from pipeline.teachers.interpreted.interpreter import build_interpreter

    interpreter = build_interpreter(card).to(device).train()
    # The peak scales the share of it that a step has, not the reverse: other roundings.
    group = {"params": list(interpreter.parameters()), "lr_scale": config.lr}
    betas, decay = (config.betas[0], config.betas[1]), config.weight_decay
    warmup = max(1, round(config.warmup * steps))
    return Learner(
        module=interpreter,
        optimizer=AdamW([group], betas=betas, weight_decay=decay),
        schedule=WarmupCosine(peak=1.0, steps=steps, warmup=warmup, lag=1),
    )


def _diverged(step: int, figures: Mapping[str, float], _: object) -> DreamshardError:
    return DreamshardError(
        f"step {step}: the loss is {figures['loss']}. Lower lr, or warm up longer (warmup)."
    )


if __name__ == "__main__":
    raise SystemExit(run_main(main, sys.argv[1:]))
