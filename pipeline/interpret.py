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
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamshard.config import load_config, to_dict
from dreamshard.errors import ConfigError, Problem, run_main
from dreamshard.progress import Progress, stage
from pipeline.learning.interpreting.config import InterpretConfig
from pipeline.teachers.interpreted.card import (
    CARD,
    InterpreterCard,
    coarse_to_fine,
    read_interpreter_card,
)
from storage.schema import canonical_json

if TYPE_CHECKING:
    from dreamshard.runfolder import RunFolder
    from pipeline.images.labelled import LabelledImages
    from pipeline.images.source import ImageSource
    from pipeline.learning.interpreting.features import FeatureViews
    from pipeline.teachers.base import TeacherSpec
    from pipeline.teachers.interpreted.interpreter import Interpreter

DESCRIPTION = "Train a feature interpreter on a frozen teacher's features of a few labelled images."
ALGORITHM = 1
"""Raised whenever the same settings would train other weights."""
NOT_THE_WEIGHTS = ("out", "run_dir", "overwrite", "threads", "device", "memory_gb", "micro_batch")


def main(argv: Sequence[str]) -> int | None:
    """Run the command; see `dreamshard interpret --help`."""
    config = load_config(
        InterpretConfig, argv, prog="dreamshard interpret", description=DESCRIPTION
    )
    interpret(config)
    return None


def interpret(config: InterpretConfig) -> Path:
    """Train an interpreter, or find it already trained; return its folder.

    Raises:
        ConfigError: settings that contradict each other, the teacher or the source; another
            interpreter in `out`.
        DataError: images without labels, classes beyond those named, or nothing to learn from.
        TeacherError: a teacher that cannot be loaded.
    """
    from dreamshard.runfolder import RunFolder
    from pipeline.images.source import fingerprint, open_source
    from pipeline.teachers.load import describe_teacher

    began = time.perf_counter()
    spec = describe_teacher(config.teacher, mode="encode", image_size=config.image.shape)
    source = open_source(config.source)
    card = _card(config, spec, source=fingerprint(source))
    folder = Path(config.out)
    if _is_there(folder, card, overwrite=config.overwrite):
        stage(f"interpret: {folder} is already trained: reused")
        return folder
    train, rest = read_sets(config, source, size=spec.image_size)
    card.training["labelled"] = train.keys
    record = RunFolder(config.run_dir or folder / "run", config=config)
    interpreter = _fit(config, card, spec=spec, train=train, total=len(source), record=record)
    from pipeline.teachers.interpreted.interpreter import save_interpreter

    if len(rest):
        scores = _judge(config, interpreter, spec=spec, data=rest, total=len(source))
        card.training |= scores
        record.stats(**scores)
        shown = ", ".join(f"{name} {value:.1f} %" for name, value in scores.items())
        stage(f"interpret: {shown} on {len(rest)} images kept out")
    save_interpreter(folder, interpreter, card=card)
    record.stats(seconds=time.perf_counter() - began, interpreter=str(folder))
    record.finish(f"dreamshard encode --config FILE --teacher.interpreter {folder}")
    return folder


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
    count = config.labelled or len(source) - config.validation
    if count < 1 or count + config.validation > len(source):
        allowed = f"at most {len(source)} together, the images of the source, one to train on"
        got = f"{config.labelled} + {config.validation}"
        raise ConfigError(Problem("labelled + validation", got, allowed))
    draw = partial(draw_labelled, len(source), seed=config.seed, draw=config.draw)
    chosen, both = draw(count=count), draw(count=count + config.validation)
    found = []
    for numbers in (chosen, np.setdiff1d(both, chosen)):
        data = read_labelled(
            source, config=config.image, size=size, numbers=numbers, seed=config.seed
        )
        values = data.masks if masks else data.labels
        assert values is not None
        if not masks and (values != config.ignore).any():  # unlabelled images teach nothing
            data = data.rows(np.flatnonzero(values != config.ignore))
            values = data.labels
            assert values is not None
        check_classes(
            values,
            num_classes=len(config.classes),
            ignore=config.ignore,
            what=config.target,
            keys=data.keys,
        )
        found.append(data)
    return found[0], found[1]


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


def _is_there(folder: Path, card: InterpreterCard, *, overwrite: bool) -> bool:
    """Tell whether the interpreter asked for is trained; refuse to replace another."""
    if overwrite or not (folder / CARD).exists():
        return False
    if read_interpreter_card(folder).training.get("recipe_key") == card.training["recipe_key"]:
        return True
    hint = "Choose another --out, or replace it with --overwrite true."
    raise ConfigError(Problem("out", f"{folder} with another interpreter", "its own folder", hint))


def _device(config: InterpretConfig) -> str:
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(Problem("device", "cuda", "cpu: no CUDA device was found"))
    return "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


def _views(
    config: InterpretConfig,
    spec: TeacherSpec,
    data: LabelledImages,
    *,
    total: int,
    noisings: int,
    mirror: bool,
) -> FeatureViews:
    """Load the teacher, compute the views of some images, and let go of it."""
    import torch

    from pipeline.learning.interpreting.features import check_memory, compute_views
    from pipeline.teachers.load import load_teacher
    from storage.schema import Pins

    views = noisings * (2 if mirror else 1)
    check_memory(spec.levels, images=len(data), views=views, limit_gb=config.memory_gb)
    pins = Pins(
        micro_batch=config.micro_batch,
        compute_dtype=config.teacher.compute_dtype,
        device=_device(config),
        threads=config.threads or torch.get_num_threads(),
    )
    teacher = load_teacher(
        config.teacher, mode="encode", seed=config.seed, pins=pins, image_size=spec.image_size
    )
    with Progress("features", total=views * len(data)) as progress:
        return compute_views(
            teacher,
            data,
            total=total,
            noisings=noisings,
            mirror=mirror,
            micro_batch=config.micro_batch,
            progress=progress,
        )


def _fit(
    config: InterpretConfig,
    card: InterpreterCard,
    *,
    spec: TeacherSpec,
    train: LabelledImages,
    total: int,
    record: RunFolder,
) -> Interpreter:
    """Fit the interpreter: AdamW, warm-up and cosine, a random view of each image per epoch."""
    import torch

    from pipeline.teachers.interpreted.interpreter import build_interpreter

    if config.threads:
        torch.set_num_threads(config.threads)
    views = _views(config, spec, train, total=total, noisings=config.noisings, mirror=config.mirror)
    device = _device(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        interpreter = build_interpreter(card).to(device).train()
        optimizer = torch.optim.AdamW(
            interpreter.parameters(),
            lr=config.lr,
            betas=(config.betas[0], config.betas[1]),
            weight_decay=config.weight_decay,
        )
        per_epoch = math.ceil(len(train) / config.batch_size)
        steps = config.epochs * per_epoch
        warm = max(1, round(config.warmup * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: _rate(n, warm, steps))
        with Progress("interpret", total=config.epochs * len(train)) as progress:
            for step, (view, rows) in enumerate(_order(config, views, count=len(train)), 1):
                terms = _step(config, interpreter, views, train, view=view, rows=rows)
                optimizer.zero_grad()
                terms["loss"].backward()
                optimizer.step()
                schedule.step()
                shown = {name: float(value.detach()) for name, value in terms.items()}
                progress.update(len(rows), **shown)
                if step % per_epoch == 0:
                    record.log(step=step, lr=float(schedule.get_last_lr()[0]), **shown)
    return interpreter.eval()


def _order(config: InterpretConfig, views: FeatureViews, *, count: int) -> Any:
    """Yield (views, rows) of every batch: each image once an epoch, in a view drawn for it."""
    from dreamshard.rng import generator

    for epoch in range(config.epochs):
        drawn = generator(config.seed, epoch, 0, "interpret-order")
        order = drawn.permutation(count)
        view = drawn.integers(len(views.mirrored), size=count)
        for first in range(0, count, config.batch_size):
            chosen = slice(first, first + config.batch_size)
            yield view[chosen], order[chosen]


def _step(
    config: InterpretConfig,
    interpreter: Interpreter,
    views: FeatureViews,
    data: LabelledImages,
    *,
    view: np.ndarray,
    rows: np.ndarray,
) -> dict[str, Any]:
    """Return the loss terms of one batch; masks of mirrored views are mirrored."""
    import torch
    from torch.nn import functional as F

    from pipeline.learning.interpreting.loss import interpreter_loss

    device = _device(config)
    logits = interpreter(views.batch(view, rows, device=device))
    if config.target == "label":
        assert data.labels is not None
        target = torch.from_numpy(data.labels[rows]).to(device)
    else:
        assert data.masks is not None
        masks = data.masks[rows].astype(np.int64)
        flipped = views.mirrored[view]
        masks[flipped] = masks[flipped][:, :, ::-1]
        target = torch.from_numpy(masks).to(device)
        logits = F.interpolate(logits, size=target.shape[-2:], mode="bilinear")
    return interpreter_loss(logits, target, ignore=config.ignore, dice_weight=config.dice_weight)


def _judge(
    config: InterpretConfig,
    interpreter: Interpreter,
    *,
    spec: TeacherSpec,
    data: LabelledImages,
    total: int,
) -> dict[str, float]:
    """Return the share of cells or images found and, for masks, the mean IoU, both in per cent."""
    import torch
    from sklearn.metrics import accuracy_score, jaccard_score
    from torch.nn import functional as F

    views = _views(config, spec, data, total=total, noisings=1, mirror=False)
    found = []
    with torch.inference_mode():
        for row in range(len(data)):
            features = views.batch(np.array([0]), np.array([row]), device=_device(config))
            logits = interpreter(features)
            if data.masks is not None and config.target == "mask":
                logits = F.interpolate(logits, size=data.masks.shape[1:], mode="bilinear")
            found.append(logits.argmax(dim=1).cpu().numpy())
    guess = np.concatenate(found)
    truth = data.masks if config.target == "mask" else data.labels
    assert truth is not None
    known = truth != config.ignore
    scores = {"accuracy": 100.0 * float(accuracy_score(truth[known], guess[known]))}
    if config.target == "mask":
        there = np.union1d(truth[known], guess[known])  # the mean leaves other classes out
        iou = jaccard_score(truth[known], guess[known], labels=there, average="macro")
        scores["miou"] = 100.0 * float(iou)
    return scores


def _rate(step: int, warm: int, steps: int) -> float:
    """Return the share of the peak learning rate: linear up, then a cosine to 0."""
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


if __name__ == "__main__":
    raise SystemExit(run_main(main, sys.argv[1:]))
