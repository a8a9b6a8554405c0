"""Play kills of `pretrain` and `train`: killed at a change of a file, they end as undisturbed ones.

    python -m tests.chaos.learning FOLDER SEED [SEED ...]

Prints one JSON object per schedule. The process that plays loads what the runs need and forks them,
one process per rank; the one that is hit is killed right before or after its n-th change. Of seeds
written `t5`, torchrun's agent starts the ranks, and may be killed itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from distill.train import train
from dreamshard.errors import run_main
from dreamshard.owner.processes import has_ended
from pipeline import pretrain as pretraining
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.learning.pretraining.config import PretrainConfig, UNetConfig
from tests.fuzz.bases import train_config
from tests.unit.distill import small_data

CHANGES = ("replace", "rename", "link", "fsync", "unlink", "mkdir", "rmdir")
LAST = {"train": 50, "pretrain": 50}
"""About how many changes an undisturbed run makes."""
TIMED = ("time", "img_per_s", "wait_percent", "memory_gb")
HANG_S = 300.0
GONE_S = 20.0
"""Time that a rank may outlive its launcher (seconds)."""
LAUNCHER = -1
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Schedule:
    """One run that is killed, and killed again.

    Args:
        seed: it was drawn from.
        command: pretrain or train.
        ranks: how many processes.
        blows: (rank that is hit, change before or after which it is killed, whether after), one per
            start of the run; then it is left in peace. Where a launcher started the ranks, it is
            rank 0 whose changes count, whoever is hit: LAUNCHER is the launcher.
        launched: torchrun's agent starts the ranks.
    """

    seed: int
    command: str
    ranks: int
    blows: tuple[tuple[int, int, bool], ...]
    launched: bool = False


def draw(seed: int) -> Schedule:
    """Draw a schedule; equal seeds give equal ones."""
    rng = random.Random(f"learning/{seed}")
    command = rng.choice(("pretrain", "train"))
    ranks = 2 if rng.random() < 0.25 else 1
    blows = []
    for number in range(rng.choice((1, 1, 2, 3))):
        # Half of them at the end, where a run has most to put in order.
        low = 1 if number or rng.random() < 0.5 else LAST[command] // 2
        hit = rng.randrange(ranks) if rng.random() < 0.2 else 0
        blows.append((hit, rng.randint(low, LAST[command]), rng.random() < 0.5))
    return Schedule(seed, command, ranks, tuple(blows))


def draw_launched(seed: int) -> Schedule:
    """Draw a schedule of two ranks that torchrun starts."""
    rng = random.Random(f"launched/{seed}")
    command = rng.choice(("pretrain", "train"))
    hit = rng.sample((LAUNCHER, 0, 1), rng.choice((1, 1, 2)))
    blows = tuple((who, rng.randint(1, LAST[command]), rng.random() < 0.5) for who in hit)
    return Schedule(seed, command, 2, blows, launched=True)


def start(schedule: Schedule, folder: Path, blow: tuple[int, int, bool] | None) -> list[int]:
    """Fork the ranks of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(1 if schedule.launched else schedule.ranks):
        if pid := os.fork():
            pids.append(pid)
            continue
        code = 99
        try:
            log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            if schedule.launched:
                launch(schedule, folder, blow)
                os._exit(0)
            if schedule.ranks > 1:
                told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": schedule.ranks}
                told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ |= {name: str(value) for name, value in told.items()}
            code = work(schedule, folder, blow, rank)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return pids


def work(schedule: Schedule, folder: Path, blow: tuple[int, int, bool] | None, rank: int) -> int:
    """Do a rank's part; return its exit code."""
    if blow is not None and rank == (0 if schedule.launched else blow[0]):
        known = {LAUNCHER: os.getppid(), rank: os.getpid()}

        def victim() -> int:
            return known.get(blow[0]) or int((folder / f"rank-{blow[0]}.pid").read_text())

        lie_in_wait(blow[1], after=blow[2], marker=folder / "struck", victim=victim)
    run = runs(folder)[schedule.command]
    return run_main(lambda _: run() and None, [])  # pyright: ignore[reportArgumentType]


def launch(schedule: Schedule, folder: Path, blow: tuple[int, int, bool] | None) -> None:
    """Be torchrun --standalone, but that ranks are forked and load nothing anew."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    def rank() -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)  # torchrun's own ranks do not have one
        number = int(os.environ["RANK"])
        (folder / f"rank-{number}.pid").write_text(str(os.getpid()))
        if code := work(schedule, folder, blow, number):
            raise SystemExit(code)  # a return value of 0 is waited for

    told = LaunchConfig(
        1, 1, schedule.ranks, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
        monitor_interval=0.1, start_method="fork", run_id=f"{folder.name}-{time.monotonic_ns()}",
    )  # fmt: skip
    elastic_launch(told, rank)()


def outlive(folder: Path) -> list[str]:
    """Wait for ranks whose launcher has ended; say which do not end."""
    ends, problems = time.monotonic() + GONE_S, []
    for path in folder.glob("rank-*.pid"):
        pid = int(path.read_text())
        while not has_ended(pid) and time.monotonic() < ends:
            time.sleep(0.02)
        if not has_ended(pid):
            problems.append(f"{path.stem} outlives its launcher")
            os.kill(pid, signal.SIGKILL)
        path.unlink()
    return problems


def runs(folder: Path) -> dict[str, Callable[[], object]]:
    """Return what trains, by command."""
    data = next((folder.parent / "data").glob("*/dataset.json")).parent
    teacher = PretrainConfig(
        out=str(folder / "pretrain"),
        source=SourceConfig(kind="digits"),
        image=ImageConfig(size=16),
        unet=UNetConfig(block_out_channels=[8, 8], norm_num_groups=4),
        steps=5,
        batch_size=4,
        warmup_steps=1,
        num_samples=1,
        sample_steps=1,
        threads=1,
        checkpoint_every=2,
        device="cpu",
    )
    student = train_config(folder / "train", str(data))
    return {"pretrain": lambda: pretraining.pretrain(teacher), "train": lambda: train(student)}


def lie_in_wait(at: int, *, after: bool, marker: Path, victim: Callable[[], int]) -> None:
    """Kill a process, mostly this one, at this one's n-th change of a file."""
    count = 0

    def watched(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **given: Any) -> Any:
            nonlocal count
            count += 1
            mine = count == at
            if mine and not after:
                strike()
            found = change(*args, **given)
            if mine and after:
                strike()
            return found

        return changed

    def strike() -> None:
        descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, b"x")
        os.kill(victim(), signal.SIGKILL)

    for name in CHANGES:
        setattr(os, name, watched(getattr(os, name)))


def wait(pids: list[int]) -> list[int]:
    """Wait for all ranks; where one is killed, the launcher kills the others."""
    codes: dict[int, int] = {}
    ends = time.monotonic() + HANG_S
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        late = time.monotonic() > ends
        if late or any(code < 0 for code in codes.values()):
            for pid in set(pids) - set(codes):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                codes[pid] = -1000 if late else -signal.SIGKILL
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def left(schedule: Schedule, folder: Path) -> dict[str, object]:
    """Return what a run has left, but for times."""
    top = folder / schedule.command
    run = top if schedule.command == "train" else top / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    stats = json.loads((run / "stats.json").read_text())
    weights = {
        path.relative_to(top).as_posix(): {
            name: value.tobytes().hex() for name, value in load_file(path).items()
        }
        for path in sorted(top.rglob("*.safetensors"))
    }
    return {
        "files": sorted(path.relative_to(top).as_posix() for path in top.rglob("*")),
        "weights": weights,
        "metrics": [{k: v for k, v in line.items() if k not in TIMED} for line in lines],
        "stats": {k: v for k, v in stats.items() if k not in (*TIMED, "seconds")},
    }


def play(schedule: Schedule, folder: Path, reference: dict[str, object]) -> dict[str, object]:
    """Play one schedule; say what is wrong with what it left."""
    folder.mkdir()
    codes, problems = [], []
    for blow in (*schedule.blows, None):
        codes.append(wait(start(schedule, folder, blow)))
        problems += outlive(folder)
    if any(codes[-1]) or any(-1000 in each for each in codes):
        problems.append(f"codes {codes}")
    text = (folder / "log.txt").read_text(errors="replace")
    if "Traceback" in text and schedule.ranks == 1:  # another rank's end is an error of gloo's
        problems.append(text[text.rindex("Traceback") :][-1500:])
    try:
        found = json.loads(json.dumps(left(schedule, folder)).replace(str(folder), "FOLDER"))
        for name, wanted in reference.items():
            if found[name] != wanted:
                problems.append(f"other {name}: {differing(found[name], wanted)}")
    except OSError as error:
        problems.append(f"{error}; {text[-600:]}")
    marker = folder / "struck"
    struck = marker.stat().st_size if marker.exists() else 0
    told = {"schedule": asdict(schedule), "struck": struck, "codes": codes, "problems": problems}
    return {"seed": schedule.seed, **told}


def differing(found: Any, wanted: Any) -> str:
    """Say in a line where two values differ."""
    if isinstance(wanted, list):
        odd = [item for item in found if item not in wanted], [i for i in wanted if i not in found]
        return f"too much {odd[0]!s:.300}, missing {odd[1]!s:.300}"
    return str([key for key in {*found, *wanted} if found.get(key) != wanted.get(key)])[:300]


def _load() -> None:
    """Load what the runs would each load anew."""
    from diffusers import UNet2DModel

    from distill.data import open as _
    from distill.methods import build, dreamteacher
    from distill.students import export
    from distill.training import launch, learner, rehearsal, start
    from pipeline.learning.pretraining import batches, data, network, objective, state, watch

    loaded = (UNet2DModel, _, build, dreamteacher, export, launch, learner, rehearsal, start)
    assert all((*loaded, batches, data, network, objective, state, watch))


def main(argv: list[str]) -> None:
    """Play the seeds given; keep the folders of those that went wrong."""
    import torch

    _load()
    torch.set_num_threads(1)
    pretraining.LOG_EVERY = 1  # or the line after a checkpoint would be a mean over fewer steps
    base = Path(argv[0])
    small_data.make_dataset(base / "data", num_samples=32)
    references: dict[tuple[str, int], dict[str, object]] = {}
    for word in argv[1:]:
        launched = word.startswith("t")
        schedule = draw_launched(int(word[1:])) if launched else draw(int(word))
        kind = (schedule.command, schedule.ranks)
        if kind not in references:
            folder = base / f"quiet-{kind[0]}-{kind[1]}"
            folder.mkdir()
            codes = wait(start(schedule, folder, None))
            assert not any(codes), (folder / "log.txt").read_text()
            text = json.dumps(left(schedule, folder)).replace(str(folder), "FOLDER")
            references[kind] = json.loads(text)
        told = play(schedule, base / f"seed-{word}", references[kind])
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        if not told["problems"]:
            shutil.rmtree(base / f"seed-{word}")


if __name__ == "__main__":
    main(sys.argv[1:])
