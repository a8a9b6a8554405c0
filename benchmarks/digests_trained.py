"""Groups of `benchmarks/digests.py` that train students and interpreters and measure them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.digests_made import NOISE, SIZE, UNET, make, place_of, pretrain, write_images
from benchmarks.digests_tools import (
    COMMAND_S,
    Door,
    array_record,
    datasets_record,
    digest_json,
    metrics_record,
    one_ray,
    steady,
    weights_record,
)

SMALL = (
    "--steps 8 --batch_size 16 --log_every 2 --save_every 4 --device cpu --threads 1 "
    "--student.name cifar_resnet"
).split()
NARROW = {"width": "8", "pool_scales": "[1,2]"}
"""Settings of DreamTeacher's regressor, where there is one that reads them."""
WIDTHS = ["--student.settings", "{depths: [1, 1, 1], widths: [8, 16, 24]}"]
STREAM = (
    "--data.kind live --data.stream.name served --data.stream.micro_batch 8 "
    "--data.stream.samples 64 --data.stream.samples_per_unit 32 "
    "--data.stream.teacher.kind noise --data.stream.teacher.levels [s2,s4] "
    "--data.stream.device cpu --data.stream.teacher.settings"
).split()
STREAM.append("{channels: 4}")
DIGITS = "--data.stream.source.kind digits --data.stream.image.size 16".split()
SEEN = "--monitor.train_images.kind digits --monitor.heldout_images.kind digits"


def train(door: Door, name: str, *words: object) -> dict[str, Any]:
    """Train a small student in this process; return what it said and what is left."""
    line = [*SMALL, *WIDTHS, *narrow(words), "--run_dir", name, *words]
    return trained(door, name, door("train", *line).record())


def narrow(words: Sequence[object]) -> list[str]:
    """Return those words that make what is trained beside the student small."""
    chosen = {*map(str, words)}
    read = {*NARROW}
    if chosen & {"--method"} or {"--dreamteacher.mode", "label"} <= chosen:
        read = set()
    elif chosen & {"fpn", "pafpn", "fpn_attention"}:
        read = {"width"}
    return [word for name in sorted(read) for word in (f"--dreamteacher.{name}", NARROW[name])]


def trained(door: Door, name: str, said: dict[str, object]) -> dict[str, Any]:
    """Return the record of a run: metrics, the student's folder, the last checkpoint."""
    folder = door.folder / name
    found: dict[str, Any] = {"said": said}
    if (folder / "metrics.jsonl").exists():
        found["metrics"] = metrics_record(folder / "metrics.jsonl")
    for path in sorted((folder / "student").rglob("*")):
        place = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            found[place] = weights_record(path)
        elif path.suffix == ".json":
            found[place] = steady(json.loads(path.read_text(encoding="utf-8")), door.normal)
        elif path.suffix == ".md":
            found[place] = door.normal(path.read_text(encoding="utf-8"))
    for path in sorted(folder.glob("checkpoint-*")):
        kept = {file.stem: weights_record(file) for file in sorted(path.glob("*.safetensors"))}
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        place = {key: state.get(key) for key in ("step", "position", "processes")}
        found[path.name] = {"weights": kept, "state": place}
    return found


def _datasets(door: Door) -> dict[str, str]:
    """Make a dataset to train on, and copies of other codecs; return their places."""
    with one_ray(door.tree):
        words = ["--samples", 128, "--teacher.levels", "[s2,s4,w]"]
        make(door, "encode", "float16", *NOISE, *SIZE, *words)
    copies = {
        "int8": ["--codec", "int8"],
        "low-rank": ["--codec", "lowrank4-int4", "w=float16"],
        "dct": ["--codec", "dct4", "w=float16", "--format", "tar"],
    }
    places = {"float16": door.folder / place_of(door, "float16")}
    for name, words in copies.items():
        door.must("export", places["float16"], f"copies/{name}", *words)
        places[name] = next(iter(door.folder.glob(f"copies/{name}/*")))
    return {name: str(path.relative_to(door.folder)) for name, path in places.items()}


def labels(door: Door) -> dict[str, Any]:
    """Train interpreters of classes and of masks; record soft labels; distil and mix them."""
    write_images(door.folder / "images", damaged=False)
    found: dict[str, Any] = {"teacher": pretrain(door, "plain")}
    read = ["--source.kind", "digits", *UNET, "--teacher.path", "teachers/plain", *SIZE]
    read += ["--device", "cpu", "--threads", "1"]
    few = "--epochs 2 --noisings 2 --width 16 --batch_size 4 --micro_batch 8 --seed 1".split()
    digits = "[" + ",".join(f"d{number}" for number in range(10)) + "]"
    for name, words in {
        "kinds": f"--target label --labelled 40 --validation 20 --classes {digits}",
        "shapes": "--target mask --classes [a,b,c,d] --source.kind parquet "
        "--source.path images/images.parquet",
    }.items():
        said = door.must("interpret", *read, *few, "--out", name, "--name", name, *words.split())
        files = sorted((door.folder / name).glob("*.safetensors"))
        weights = {path.name: weights_record(path) for path in files}
        cards = sorted((door.folder / name).glob("*.json"))
        card = {p.name: steady(json.loads(p.read_text("utf-8")), door.normal) for p in cards}
        found[f"interpreter-{name}"] = {"said": said.record(), "weights": weights, "card": card}
    with one_ray(door.tree):
        found |= _soft(door)
    found["opened"] = {name: _opened(door, name) for name in ("features", "soft", "kinds")}
    found["joined"] = _joined(door)
    return found


def _soft(door: Door) -> dict[str, Any]:
    plain = ["--teacher.path", "teachers/plain", "--teacher.timesteps", "[250]", *SIZE]
    plain += ["--teacher.kind", "diffusers", "--samples", 32]
    cases = {
        "features": "--teacher.levels [s4,s2,s1]",
        "soft": "--teacher.levels [] --teacher.interpreter shapes --teacher.soft_labels [s4]",
        "kinds": "--teacher.levels [s4] --teacher.interpreter kinds --teacher.top_k 2",
    }
    return {
        name: make(door, "encode", name, *plain, *words.split()) for name, words in cases.items()
    }


def _opened(door: Door, name: str) -> dict[str, Any]:
    """Open a dataset as a notebook does, and look at what says which samples there are."""
    import dreamshard

    dataset = dreamshard.open_dataset(str(door.folder / place_of(door, name)))
    snapshot = dataset.snapshot()
    return {
        "levels": [f"{level.name} {level.kind} {level.shape}" for level in dataset.levels],
        "keys": [dataset.recipe.content_key, dataset.recipe.layout_key],
        "image_size": list(dataset.image_size),
        "samples": [snapshot.num_samples, snapshot.num_valid, snapshot.samples_per_unit],
        "labels": array_record(snapshot.labels),
        "names": digest_json(list(snapshot.keys)),
    }


def _joined(door: Door) -> dict[str, Any]:
    """Train on datasets read as one."""
    joined = f"[{place_of(door, 'soft')}]"
    features = ["--data.dataset", place_of(door, "features"), "--data.join", joined]
    label = "--dreamteacher.mode label --dreamteacher.temperature_scaled true".split()
    return {
        "mix": train(
            *(door, "mix", *features, "--dreamteacher.mode", "mix"),
            *("--dreamteacher.head_width", 8),
        ),
        "label": train(door, "label", "--data.dataset", place_of(door, "kinds"), *label),
    }


def students(door: Door) -> dict[str, Any]:
    """Train by every method, from every kind of storage, stopped and resumed."""
    place = _datasets(door)
    found: dict[str, Any] = {}
    cases = {
        "mse": ("float16", "--dreamteacher.attention_weight 0 --ema 0.9"),
        "paper": ("int8", "--seed 4 --data.shuffle block --optimizer.lr 3e-3"),
        "low-rank": ("low-rank", "--dreamteacher.regressor fpn --dreamteacher.whiten_axes chw"),
        "dct": ("dct", "--dreamteacher.regressor pafpn --data.crop [12,12]"),
        "attention": (
            "float16",
            "--dreamteacher.regressor fpn_attention --dreamteacher.attention_form squared "
            "--accumulate 2 --optimizer.name lamb",
        ),
        "bridge": ("float16", "--data.levels [b8] --dreamteacher.attention_form mean"),
        "crop": ("float16", "--data.crop [8,8] --data.shuffle none --data.threads 1"),
        "sgd": (
            "float16",
            "--optimizer.name sgd --optimizer.layer_decay 0.8 --optimizer.lr_batch 64",
        ),
        "vicreg": ("float16", "--method vicreg --vicreg.width 16 --vicreg.hidden 16"),
        "simsiam": (
            "float16",
            "--method simsiam --simsiam.width 16 --simsiam.predictor_width 8 --optimizer.name sgd",
        ),
        "supervised": ("int8", "--method supervised --supervised.label_share 0.5 --ema 0.5"),
        "monitor": (
            "float16",
            f"--monitor.every 4 --monitor.samples 100 --optimizer.name lars --keep 1 {SEEN}",
        ),
        "probe": ("float16", f"--method supervised --monitor.every 8 --monitor.kind probe {SEEN}"),
        "frozen": ("float16", "--student.frozen_stages 1 --student.mean [0.4,0.4,0.4]"),
    }
    for name, (dataset, words) in cases.items():
        is_told = "--data.levels" in words or "--method" in words
        levels = [] if is_told else ["--data.levels", "[b8,b4]"]
        said = ["--data.dataset", place[dataset], *levels, *words.split()]
        found[name] = train(door, name, *said)
    for name in ("resnet10t", "vit_tiny_patch16_224"):
        settings = ["--student.settings", "{}", "--student.name", name]
        settings += ["--dreamteacher.bridge", "interpolate", "--steps", 2, "--save_every", 2]
        settings += ["--data.levels", "[b8,b4]", "--student.drop_path", 0.1]
        found[name] = train(door, name, "--data.dataset", place["float16"], *settings)
    plain = ["--data.dataset", place["int8"], "--ema", 0.9, "--data.levels", "[b8,b4]"]
    half = train(door, "resumed", *plain, "--steps", 8, "--save_every", 4, "--keep", 3)
    _go_back(door.folder / "resumed", step=4)
    found["resumed"] = train(door, "resumed", *plain, "--steps", 8, "--save_every", 4, "--keep", 3)
    found["not-resumed"] = half
    found["again"] = train(door, "resumed", *plain, "--steps", 8, "--save_every", 4, "--keep", 3)
    found["launched"] = _launched(door, place["int8"])
    return found


def _go_back(run: Path, *, step: int) -> None:
    """Take away what a run did after a step."""
    import shutil

    for path in run.glob("checkpoint-*"):
        if int(path.name.rpartition("-")[2]) > step:
            shutil.rmtree(path)
    shutil.rmtree(run / "student")


def _launched(door: Door, dataset: str) -> dict[str, Any]:
    """Train on two ranks, started by the script's path as the README says."""
    script = str(door.tree / "distill" / "train.py")
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [*SMALL, *WIDTHS, *narrow(()), "--run_dir", "launched", "--data.dataset", dataset]
    words += ["--data.levels", "[b8,b4]"]
    done = subprocess.run(
        [*line, script, *words], cwd=door.folder, capture_output=True, text=True, timeout=COMMAND_S
    )
    return trained(door, "launched", {"code": done.returncode})


def evaluate(door: Door) -> dict[str, Any]:
    """Measure a student of a tiny diffusion teacher by every task that needs no download."""
    found: dict[str, Any] = {"teacher": pretrain(door, "plain")}
    unet = "--teacher.kind diffusers --teacher.levels [s4,s2] --teacher.timesteps [250]".split()
    unet += ["--teacher.path", "teachers/plain"]
    live = [word.replace("--teacher", "--data.stream.teacher") for word in unet]
    live += DIGITS
    live += "--data.kind live --data.stream.device cpu".split()
    found["student"] = train(door, "student", *live, "--data.stream.micro_batch", 16)
    plain = ["--student", "student", *SIZE, "--device", "cpu"]
    plain += ["--train_images.kind", "digits", "--heldout_images.kind", "digits"]
    few = "--few_label.shots [1,5] --few_label.draws 2 --few_label.selection_draws 1".split()
    few += ["--few_label.strengths", "[10.0]", "--few_label.fractions", "[0.1]"]
    frozen = "--tasks [linear_probe,knn,few_label] --linear_probe.lbfgs.iterations 20".split()
    frozen += ["--knn.k", "[1,5]"]
    cases: dict[str, list[object]] = {
        "frozen": [*frozen, *few, *unet, "--micro_batch", 128],
        "last": [
            *"--tasks [knn] --pool last --baselines [random] --knn.metric l1".split(),
            *("--micro_batch", 128),
        ],
        "protocols": [
            *"--tasks [linear_probe] --linear_probe.protocols [simsiam,bigbigan]".split(),
            *"--baselines [] --linear_probe.simsiam.epochs 1 --linear_probe.simsiam".split(),
            *("{batch_size: 128}", "--linear_probe.bigbigan.steps", 4),
            *"--linear_probe.bigbigan.batch_size 64 --linear_probe.bigbigan.ema 0.5".split(),
        ],
        "finetune": [
            *"--tasks [finetune] --finetune.fractions [0.1,1.0] --finetune.steps 4".split(),
            *"--finetune.batch_size 16 --baselines [random] --finetune.ema 0.9".split(),
            *"--finetune.optimizer.layer_decay 0.7".split(),
        ],
    }
    for name, words in cases.items():
        found[name] = measured(door, name, *plain, *words)
    found["segmentation"] = _segmentation(door)
    found["published"] = _published(door)
    return found


def measured(door: Door, name: str, *words: object) -> dict[str, Any]:
    """Evaluate; return the table printed and results.json."""
    said = door("evaluate", "--run_dir", name, *words)
    path = door.folder / name / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return {"said": said.record(), "results": steady(results, door.normal)}


def _segmentation(door: Door) -> dict[str, Any]:
    write_images(door.folder / "images", damaged=False)
    words: list[object] = ["--student", "student", *SIZE, "--device", "cpu"]
    for part in ("train", "heldout"):
        words += [f"--{part}_images.kind", "parquet"]
        words += [f"--{part}_images.path", "images/images.parquet"]
    words += "--tasks [segmentation] --segmentation.classes [a,b,c,d] --baselines []".split()
    words += "--segmentation.steps 2 --segmentation.width 8 --segmentation.batch_size 4".split()
    return measured(door, "segmentation", *words)


def _published(door: Door) -> dict[str, Any]:
    """Publish for timm and ONNX; digest the files."""
    said = door("publish", "--student", "student", "--out", "published", "--formats", "[timm,onnx]")
    files: dict[str, Any] = {}
    for path in sorted((door.folder / "published").rglob("*")):
        name = path.relative_to(door.folder).as_posix()
        if path.suffix == ".safetensors":
            files[name] = weights_record(path)
        elif path.suffix == ".json":
            files[name] = steady(json.loads(path.read_text(encoding="utf-8")), door.normal)
        elif path.is_file():  # of ONNX, that it is there: its names depend on exporter and place
            files[name] = door.normal(path.read_text("utf-8")) if path.suffix == ".md" else "there"
    return {"said": said.record(), "files": files}


def stream(door: Door) -> dict[str, Any]:
    """Train on batches that are made meanwhile: here, by a service, by actors of one's own."""
    found: dict[str, Any] = {}
    cases = {
        "live": "",
        "fresh": "--data.stream.fresh_noise true --data.shuffle block",
        "drawn": "--data.stream.mode synthesize --data.stream.teacher.settings.image_size 16",
        "int8": "--data.stream.codec int8 --data.stream.seed 3 --data.shuffle none",
        "keep": "--data.stream.keep true --data.shuffle block --data.stream.root kept --steps 12",
        "supervised": "--method supervised",
    }
    for name, words in cases.items():
        source = [] if name == "drawn" else DIGITS
        found[name] = train(door, name, *STREAM, *source, *words.split())
    _forget_key(found["keep"])
    found["kept"] = datasets_record(door.folder / "kept", door)
    (kept,) = door.folder.glob("kept/*")
    mix = "[{mode: encode, weight: 1, samples: 32, image: {size: 16}, seed: 5, "
    mix += "source: {kind: digits}}, "
    mix += f"{{mode: shards, dataset: kept/{kept.name}, weight: 2}}]"
    found["mix"] = train(door, "mix", *STREAM, *DIGITS, "--data.stream.mix", mix)
    line = [*SMALL, *WIDTHS, *narrow(()), *STREAM, *DIGITS, "--data.kind", "stream"]
    own = door.apart("train", *line, "--run_dir", "own", "--data.stream.actors", 1)
    found["own-actors"] = trained(door, "own", {"code": own.code})
    found["served"] = _served(door)
    return found


def _forget_key(run: dict[str, Any]) -> None:
    """Drop the content key of a stream that is kept: the place of what is kept is part of it."""
    del run["student/student.json"]["provenance"]["content_key"]
    lines = run["student/README.md"].split("\n")
    run["student/README.md"] = "\n".join(ln for ln in lines if not ln.startswith("| dataset |"))


def _served(door: Door) -> dict[str, Any]:
    """Serve from one process, train in another, ask for another recipe, stop."""
    serve = [word.replace("--data.stream.", "--") for word in [*STREAM[2:], *DIGITS]]
    line = [sys.executable, "-m", "dreamshard", "serve", *serve, "--actors", "2"]
    process = subprocess.Popen(
        line, cwd=door.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said: dict[str, str] = {}
    try:
        assert process.stdout is not None
        for text in process.stdout:
            if text.strip().startswith("export "):
                name, _, value = text.strip().removeprefix("export ").partition("=")
                said[name] = value
            if "dreamshard train" in text:
                break
        words = [*SMALL, *WIDTHS, *narrow(()), *STREAM, *DIGITS, "--data.kind", "stream"]
        os.environ.update(said)
        good = door.apart("train", *words, "--run_dir", "served")
        refused = door.apart("train", *words, "--run_dir", "refused", "--data.stream.seed", "4")
        status = door.apart("serve", *serve, "--action", "status")
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=120)
    finally:
        for name in said:
            os.environ.pop(name, None)
        if process.poll() is None:
            process.kill()
    return {
        "student": trained(door, "served", {"code": good.code}),
        "refused": {"code": refused.code, "err": refused.err},
        "status": [line for line in status.out.split("\n") if line.startswith("service")],
        "code": process.returncode,
        "stopping": "units being committed are finished first" in rest,
        "said": sorted(said),
    }
