"""What the objectives cost: the trainer beside a bare loop, queues and covariances by their size.

    python benchmarks/objectives.py [--rounds 4] [--steps 40] [--out benchmarks/results]

The trainer and a bare PyTorch loop with the same modules take turns, for Squeeze-and-Span and for
CompRess. Times are CPU seconds of the process, which a busy machine changes less than it does the
clock. The bare loop has its data in memory, ready to use; the trainer reads shards.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import logging
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.train import SKIP, make_dataset
from distill.configs.optimizer import OptimizerConfig
from distill.configs.similarity import CompressConfig
from distill.configs.squeeze import SqueezeAndSpanConfig
from distill.configs.train import DataConfig, StudentConfig, TrainConfig
from distill.losses.similarity import anchor_similarity
from distill.losses.vicreg import covariance
from distill.modules.anchors import AnchorQueue
from storage.dataset import Dataset

BATCH, WIDTH = 256, 512
QUEUES = [1024 * 2**n for n in range(8)]
"""1k to 128k anchors."""
WIDTHS = [256, 512, 1024, 2048, 4096, 8192]
LOG_EVERY = 10


def configured(method: str, *, dataset: Dataset, folder: str, options: Any) -> TrainConfig:
    """Return a small run of a method on the dataset's maps, averaged over space."""
    url = dataset.url
    return TrainConfig(
        run_dir=f"{folder}/run",
        steps=options.steps,
        batch_size=options.batch_size,
        log_every=LOG_EVERY,
        save_every=LOG_EVERY * options.steps,
        log_gradients="off",
        device="cpu",
        method=method,
        data=DataConfig(dataset=url, real=url if method == "squeeze_and_span" else ""),
        student=StudentConfig(
            name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [32, 64, 128]}
        ),
        compress=CompressConfig(level="s4", queue=2048),
        squeeze_and_span=SqueezeAndSpanConfig(width=512, squeeze_width=512),
        optimizer=OptimizerConfig(name="sgd", lr=0.01, clip=0),
    )


def trainer_round(config: TrainConfig) -> float:
    """Run the trainer; return CPU seconds per step after its first lines."""
    from distill.train import train
    from distill.training.runlog import RunLog

    marks: list[float] = []
    written = RunLog.line

    def line(self: RunLog, **figures: float) -> None:
        marks.append(time.process_time())
        written(self, **figures)

    shutil.rmtree(config.run_dir, ignore_errors=True)
    RunLog.line = line  # type: ignore[method-assign]
    try:
        train(config)
    finally:
        RunLog.line = written  # type: ignore[method-assign]
    return (marks[-1] - marks[SKIP - 1]) / (LOG_EVERY * (len(marks) - SKIP))


def bare_round(config: TrainConfig, dataset: Dataset) -> float:
    """Run the loop anyone would write first, on the same modules; return CPU seconds per step."""
    from distill.data.open import open_training_set
    from distill.data.sets import REAL
    from distill.methods.build import build_method, method_class
    from storage.rows.pick import read_rows

    kind, settings = method_class(config.method), config.method_settings()
    training_set = open_training_set(config.data, needs=kind.needs(settings))
    method = build_method(
        kind, settings, student=config.student, training_set=training_set, seed=config.seed
    ).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(
        [p for p in method.parameters() if p.requires_grad],
        lr=config.optimizer.lr,
        momentum=0.9,
        weight_decay=config.optimizer.weight_decay,
    )
    size, snapshot = config.batch_size, dataset.snapshot()
    numbers = np.arange(size * 4)
    pixels = torch.from_numpy(read_rows(snapshot, "image", numbers)).permute(0, 3, 1, 2)
    last = torch.channels_last
    images = (pixels.float() / 127.5 - 1).contiguous(memory_format=last).split(size)
    targets = {
        level.name: torch.from_numpy(read_rows(snapshot, level.name, numbers)).float().split(size)
        for level in training_set.levels
    }
    started = 0.0
    first = SKIP * LOG_EVERY
    for step in range(config.steps):
        if step == first:
            started = time.process_time()
        turn = step % 4
        batch = {name: parts[turn] for name, parts in targets.items()}
        if training_set.needs.real:
            batch[REAL] = images[(turn + 1) % 4]
        optimizer.zero_grad()
        method(images[turn], batch)["loss"].backward()
        optimizer.step()
        method.after_step()
    return (time.process_time() - started) / (config.steps - first)


def compare(method: str, options: Any) -> dict[str, Any]:
    """Let trainer and bare loop take turns."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "data", count=2048)
        config = configured(method, dataset=dataset, folder=folder, options=options)
        rounds = []
        for _ in range(options.rounds):
            bare, ours = bare_round(config, dataset), trainer_round(config)
            rounds.append({"bare_cpu_s": bare, "trainer_cpu_s": ours, "ratio": ours / bare})
            print(f"{method}: bare {1e3 * bare:.1f} ms, trainer {1e3 * ours:.1f} ms", flush=True)
    return {"ratio_median": statistics.median(one["ratio"] for one in rounds), "rounds": rounds}


def cpu_median(work: Callable[[], object], *, rounds: int) -> float:
    """Return the median CPU seconds of some calls, the first left out."""
    work()
    spent = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        spent.append(time.process_time() - started)
    return statistics.median(spent)


def queue_row(size: int, *, rounds: int) -> dict[str, float]:
    """Measure two queues of one size: compare a batch with them, backward, push it."""
    queues = [AnchorQueue(size, WIDTH) for _ in range(2)]
    student = torch.randn(BATCH, WIDTH, requires_grad=True)
    teacher = torch.randn(BATCH, WIDTH)

    def step() -> None:
        own, theirs = (queue.anchors() for queue in queues)
        loss = anchor_similarity(student, teacher, student_anchors=own, teacher_anchors=theirs)
        for queue in queues:
            queue.push(torch.nn.functional.normalize(teacher, dim=1))
        loss.backward()

    kept = sum(queue.rows.nbytes for queue in queues)
    scores = 2 * BATCH * size * 4
    return {
        "anchors": size,
        "cpu_ms": 1e3 * cpu_median(step, rounds=rounds),
        "queues_mb": kept / 1e6,
        "copies_and_scores_mb": (kept + scores) / 1e6,
    }


def covariance_row(width: int, *, rounds: int) -> dict[str, float]:
    """Measure the covariance term of one width, forward and backward."""
    z = torch.randn(BATCH, width, requires_grad=True)
    cpu = cpu_median(lambda: covariance(z).backward(), rounds=rounds)
    return {"width": width, "cpu_ms": 1e3 * cpu, "matrix_mb": 4 * width**2 / 1e6}


def table(rows: list[dict[str, float]]) -> str:
    """Write rows of figures as Markdown."""
    names = list(rows[0])
    lines = [" | ".join(names), " | ".join("---:" for _ in names)]
    lines += [" | ".join(f"{row[name]:,.4g}" if name.endswith(("ms", "mb")) else
                         f"{row[name]:,}" for name in names) for row in rows]  # fmt: skip
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Run what was asked for and keep its result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each (count)")
    parser.add_argument("--steps", type=int, default=40, help="steps of a round (count)")
    parser.add_argument("--batch_size", type=int, default=64, help="samples of a step (count)")
    parser.add_argument("--skip_steps", action="store_true", help="measure queue and covariance")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    methods = () if options.skip_steps else ("squeeze_and_span", "compress")
    result: dict[str, Any] = {
        "what": "CPU seconds: trainer / bare loop, interleaved; queue and covariance by size",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "command": " ".join(sys.argv),
        "steps": {method: compare(method, options) for method in methods},
        "queue": [queue_row(size, rounds=options.rounds) for size in QUEUES],
        "covariance": [covariance_row(width, rounds=options.rounds) for width in WIDTHS],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"{result['date']}-objectives"
    text = json.dumps(result, indent=2) + "\n"
    (options.out / f"{name}.json").write_text(text, encoding="utf-8")
    ratios = "".join(
        f"\n- {method}: trainer / bare loop {found['ratio_median']:.3f} (median CPU time)"
        for method, found in result["steps"].items()
    )
    told = (
        f"# What the objectives cost\n\n`{result['command']}`, {result['machine']}\n{ratios}\n\n"
        f"Two queues of {WIDTH} dimensions, a batch of {BATCH}: compare, backward, push.\n\n"
        f"{table(result['queue'])}\n\nCovariance of a batch of {BATCH}, forward and backward.\n\n"
        f"{table(result['covariance'])}\n"
    )
    (options.out / f"{name}.md").write_text(told, encoding="utf-8")
    print(told)


if __name__ == "__main__":
    main()
