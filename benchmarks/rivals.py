"""Distil a ResNet-18 from a ViT-S of random weights, by LightlyTrain and by us from cached maps.

    python benchmarks/rivals.py [--images 256] [--size 64] [--epochs 2] [--rounds 2]
        [--work runs/rivals]

LightlyTrain (AGPL) is installed from its package into a virtual environment of its own below
--work and run by its command line; nothing of it is imported here. Both get the same images, the
same batch, size, teacher file and seed; LightlyTrain keeps its default method, losses and
augmentations, ours learns the teacher's normed last map. In every round either trains twice, for
one epoch and for 1 + --epochs, each as a fresh process, the two products in turn: the difference
is what later epochs take, without starts, compilation and exports, in seconds and in CPU seconds
(of a process and its children, which others on the machine disturb less). Memory is the largest
sum over a process and its children.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import os
import platform
import shutil
import subprocess
import time
import venv
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "lightly-train"
EXTRA = "timm"
"""LightlyTrain needs it for teachers of timm."""
TEACHER = "vit_small_patch16_224"
MB = 1e6


def make_images(folder: Path, *, count: int, size: int) -> None:
    """Write photographs' worth of work: smooth random JPEGs of size x size."""
    from PIL import Image

    if len(list(folder.glob("*.jpg"))) == count:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:06d}.jpg", quality=90)


def make_teacher(folder: Path, *, size: int) -> Path:
    """Write the teacher twice, as a state dict for LightlyTrain and in timm's layout for us."""
    import timm
    import torch

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    network = timm.create_model(TEACHER, pretrained=False, img_size=size)
    torch.save(network.state_dict(), folder / "teacher.pt")
    timm.models.save_for_hf(
        network,
        str(folder / "timm"),
        model_args={"img_size": size},
        safe_serialization=True,
    )
    return folder


def make_environment(folder: Path) -> Path:
    """Install LightlyTrain into an environment of its own, once; return its command."""
    command = folder / "bin" / "lightly-train"
    if not command.exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", f"{PACKAGE}[{EXTRA}]"]
        subprocess.run(pip, check=True, stdout=sys.stderr)
    return command


def watched(words: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """Run a command; return its "seconds", and with its children "cpu_s" and "memory_mb" at most.

    Raises:
        SystemExit: it failed; the end of its output is shown.
    """
    import psutil

    began, most, spent = time.perf_counter(), 0, dict[int, float]()
    with log.open("w", encoding="utf-8") as out:
        process = psutil.Popen(
            list(words), stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
        while process.poll() is None:
            most = max(most, _resident(process, spent))
            time.sleep(0.5)
    if process.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise SystemExit(f"{words[0]} failed with code {process.returncode}:\n{tail}")
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "cpu_s": sum(spent.values()), "memory_mb": most / MB}


def _resident(process: Any, spent: dict[int, float]) -> int:
    """Return the bytes that a process and its children hold alone; note each one's CPU time."""
    import psutil

    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().uss
            spent[each.pid] = sum(each.cpu_times()[:2])
        except psutil.Error:
            continue  # it has just ended
    return total


def lightly(command: Path, place: Path, args: argparse.Namespace, epochs: int) -> dict[str, float]:
    """Train with LightlyTrain's default distillation."""
    teacher = {
        "teacher": f"timm/{TEACHER}",
        "teacher_args": {"img_size": args.size},
        "teacher_weights": str(place / "teacher" / "teacher.pt"),
    }
    words = [
        *(str(command), "pretrain", f"out={place / 'lightly'}", f"data={place / 'images'}"),
        *("model=torchvision/resnet18", "method=distillation", f"epochs={epochs}"),
        *(f"batch_size={args.batch}", f"num_workers={args.workers}", "seed=0", "overwrite=true"),
        f"accelerator={'gpu' if args.device == 'cuda' else 'cpu'}",
        f"transform_args.image_size=[{args.size},{args.size}]",
        *(f"method_args.{key}={_plain(value)}" for key, value in teacher.items()),
    ]
    environment = {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "HF_HUB_OFFLINE": "1"}
    return watched(words, log=place / f"lightly-{epochs}.log", environment=environment)


def _plain(value: object) -> str:
    return json.dumps(value).replace('"', "") if isinstance(value, dict) else str(value)


def ours(words: Sequence[str], place: Path, name: str) -> dict[str, float]:
    """Run one of our commands."""
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    line = [sys.executable, "-m", "dreamshard", *words]
    return watched(line, log=place / f"{name}.log", environment={"PYTHONPATH": python_path})


def cache(place: Path, args: argparse.Namespace) -> dict[str, float]:
    """Encode the images; return what it takes and how large it is."""
    for folder in ("data", "encode"):
        shutil.rmtree(place / folder, ignore_errors=True)
    words = [
        *("encode", "--name", "rivals", "--root", str(place / "data"), "--device", args.device),
        *("--run_dir", str(place / "encode"), "--samples_per_unit", str(args.images)),
        *("--source.kind", "folder", "--source.path", str(place / "images")),
        *("--image.size", str(args.size), "--teacher.kind", "timm"),
        *("--teacher.path", str(place / "teacher" / "timm"), "--teacher.levels", "[final]"),
    ]
    found = ours(words, place, "encode")
    files = [path for path in (place / "data").rglob("*") if path.is_file()]
    return found | {"megabytes": sum(path.stat().st_size for path in files) / MB}


def distil(place: Path, args: argparse.Namespace, epochs: int) -> dict[str, float]:
    """Train on the cached maps."""
    shutil.rmtree(place / "run", ignore_errors=True)
    (dataset,) = [path for path in (place / "data").iterdir() if path.is_dir()]
    words = [
        *("train", "--run_dir", str(place / "run"), "--data.dataset", str(dataset)),
        *("--data.image_size", f"[{args.size}, {args.size}]", "--student.name"),
        *("torchvision/resnet18", "--student.strides", "[16]", "--seed", "0"),
        *("--steps", str(epochs * (args.images // args.batch)), "--batch_size", str(args.batch)),
        *("--device", args.device, "--dreamteacher.attention_weight", "0"),
    ]
    return ours(words, place, f"train-{epochs}")


def per_epoch(runs: Sequence[Mapping[str, float]], args: argparse.Namespace) -> dict[str, Any]:
    """Tell what the later epochs took, from runs of one epoch and of more in turn, two a round."""
    pairs = list(zip(runs[::2], runs[1::2], strict=True))
    found: dict[str, Any] = {
        "first_run_s": float(np.mean([first["seconds"] for first, _ in pairs])),
        "memory_mb": max(run["memory_mb"] for run in runs),
    }
    for key, rate in (("seconds", "img_per_s"), ("cpu_s", "img_per_cpu_s")):
        rounds = [(more[key] - first[key]) / args.epochs for first, more in pairs]
        mean = float(np.mean(rounds))
        found |= {
            f"epoch_{key}": mean,
            f"epoch_{key}_by_round": rounds,
            rate: args.images / mean if mean > 0 else float("nan"),
        }
    return found


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Make what is missing, run both in turn, and return the figures."""
    place = Path(args.work).resolve()
    place.mkdir(parents=True, exist_ok=True)
    command = make_environment(place / "venv")
    make_images(place / "images", count=args.images, size=args.size)
    make_teacher(place / "teacher", size=args.size)
    cost = cache(place, args)
    theirs, own, loads = list[dict[str, float]](), list[dict[str, float]](), list[float]()
    for epochs in (1, 1 + args.epochs) * args.rounds:
        loads.append(os.getloadavg()[0])
        theirs.append(lightly(command, place, args, epochs))
        own.append(distil(place, args, epochs))
        print(f"{epochs} epochs: {theirs[-1]} and {own[-1]}", file=sys.stderr, flush=True)
    rival, mine = per_epoch(theirs, args), per_epoch(own, args)
    saved = rival["epoch_cpu_s"] - mine["epoch_cpu_s"]
    version = subprocess.run(
        [str(command.parent / "python"), "-m", "pip", "show", PACKAGE],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return {
        "lightly_train": rival | {"version": version.split("Version: ")[1].split()[0]},
        "ours": mine | {"cache": cost},
        "speedup": rival["epoch_seconds"] / mine["epoch_seconds"],
        "speedup_cpu": rival["epoch_cpu_s"] / mine["epoch_cpu_s"],
        "epochs_that_pay_the_cache": cost["cpu_s"] / saved if saved > 0 else None,
        "settings": {key: value for key, value in vars(args).items() if key not in ("work", "out")},
        "teacher": f"{TEACHER}, random weights",
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS", "as each product chooses"),
            "load_before_each_pair_of_runs": loads,
        },
    }


def main() -> None:
    """Run the comparison, write it down, print it as one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=64, help="of the images (pixels)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2, help="after the first")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="LightlyTrain's decoding processes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--work", default="runs/rivals")
    parser.add_argument("--out", help="folder for the results file")
    args = parser.parse_args()
    if args.images % args.batch or args.size % 16 or min(args.epochs, args.rounds) < 1:
        parser.error("images must be a multiple of batch, size one of 16; epochs, rounds 1 or more")
    found = compare(args)
    if args.out:
        path = Path(args.out) / f"{time.strftime('%Y-%m-%d')}-rivals.json"
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
