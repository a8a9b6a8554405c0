"""Distil a ResNet-18 from a ViT-S of random weights, by LightlyTrain and by us from cached maps.

    python benchmarks/rivals.py [--images 256] [--size 64] [--epochs 2] [--work runs/rivals]

LightlyTrain (AGPL) is installed from its package into a virtual environment of its own below
--work and run by its command line; nothing of it is imported here. Both get the same images, the
same batch, size, teacher file and seed; LightlyTrain keeps its default method, losses and
augmentations, ours learns the teacher's normed last map. Every training runs twice, for one epoch
and for 1 + --epochs, each as a fresh process: the difference is what later epochs take, without
starts, compilation and exports. Memory is the largest sum over a process and its children.
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
    """Run a command; return its "seconds" and the "memory_mb" of it and its children at most.

    Raises:
        SystemExit: it failed; the end of its output is shown.
    """
    import psutil

    began, most = time.perf_counter(), 0
    with log.open("w", encoding="utf-8") as out:
        process = psutil.Popen(
            list(words), stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
        while process.poll() is None:
            most = max(most, _resident(process))
            time.sleep(0.2)
    if process.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise SystemExit(f"{words[0]} failed with code {process.returncode}:\n{tail}")
    return {"seconds": time.perf_counter() - began, "memory_mb": most / MB}


def _resident(process: Any) -> int:
    """Return the bytes that a process and its children hold alone; shared pages count once."""
    import psutil

    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().uss
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
    shutil.rmtree(place / "data", ignore_errors=True)
    words = [
        *("encode", "--name", "rivals", "--root", str(place / "data"), "--device", args.device),
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


def per_epoch(first: Mapping[str, float], more: Mapping[str, float], args: Any) -> dict[str, float]:
    """Tell what the later epochs took from a run of one epoch and one of more."""
    seconds = (more["seconds"] - first["seconds"]) / args.epochs
    return {
        "epoch_s": seconds,
        "img_per_s": args.images / seconds if seconds > 0 else float("nan"),
        "first_run_s": first["seconds"],
        "memory_mb": max(first["memory_mb"], more["memory_mb"]),
    }


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Make what is missing, run both, and return the figures."""
    place = Path(args.work).resolve()
    place.mkdir(parents=True, exist_ok=True)
    command = make_environment(place / "venv")
    make_images(place / "images", count=args.images, size=args.size)
    make_teacher(place / "teacher", size=args.size)
    epochs = 1, 1 + args.epochs
    rival = per_epoch(*(lightly(command, place, args, each) for each in epochs), args)
    cost = cache(place, args)
    mine = per_epoch(*(distil(place, args, each) for each in epochs), args)
    saved = rival["epoch_s"] - mine["epoch_s"]
    version = subprocess.run(
        [str(command.parent / "python"), "-m", "pip", "show", PACKAGE],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return {
        "lightly_train": rival | {"version": version.split("Version: ")[1].split()[0]},
        "ours": mine | {"cache": cost},
        "speedup": rival["epoch_s"] / mine["epoch_s"],
        "epochs_that_pay_the_cache": cost["seconds"] / saved if saved > 0 else None,
        "settings": {key: value for key, value in vars(args).items() if key not in ("work", "out")},
        "teacher": f"{TEACHER}, random weights",
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        },
    }


def main() -> None:
    """Run the comparison, write it down, print it as one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=64, help="of the images (pixels)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2, help="after the first")
    parser.add_argument("--workers", type=int, default=1, help="LightlyTrain's decoding processes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--work", default="runs/rivals")
    parser.add_argument("--out", help="folder for the results file")
    args = parser.parse_args()
    if args.images % args.batch or args.size % 16 or args.epochs < 1:
        parser.error("images must be a multiple of batch, size one of 16, epochs 1 or more")
    found = compare(args)
    if args.out:
        path = Path(args.out) / f"{time.strftime('%Y-%m-%d')}-rivals.json"
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
