"""Groups of `benchmarks/digests.py` that make datasets and teachers."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.digests_tools import (
    Door,
    array_record,
    dataset_record,
    datasets_record,
    digest,
    digest_json,
    metrics_record,
    one_ray,
    steady,
    weights_record,
)

CODECS = (
    *("float16", "bfloat16", "int8", "int4", "dct16", "dct4"),
    *("lowrank4-int8", "lowrank4-int4", "float16+zstd", "bfloat16+blosc", "int8+blosc"),
    *("int4+zstd", "dct16+zstd", "lowrank4-int8+zstd"),
)
RUN = "--fsync false --actors 1 --device cpu --micro_batch 16 --samples_per_unit 32".split()
NOISE = "--teacher.kind noise --teacher.levels [s2,s4] --teacher.settings".split()
NOISE.append("{channels: 16}")
SIZE = ["--image.size", "16"]


def storage(door: Door) -> dict[str, Any]:
    """Write both formats with every codec, from every source; grow, copy, ask again."""
    found: dict[str, Any] = {}
    with one_ray(door.tree):
        for layout in ("zarr", "tar"):
            # A level for each codec: steps and draws of the noise teacher are levels of their own.
            codecs = [codec for codec in CODECS if layout == "zarr" or "+" not in codec]
            steps = list(range(0, 10 * len(codecs), 10))
            each = {f"b8.t{step}": codec for step, codec in zip(steps, codecs, strict=True)}
            words = ["--teacher.levels", "[s2]", "--teacher.timesteps", steps, "--samples", 96]
            chosen = ", ".join(f"{level}: {codec}" for level, codec in each.items())
            words += ["--format", layout, "--codec", f"{{{chosen}}}"]
            found[layout] = make(door, "encode", layout, *NOISE, *SIZE, *words)
        found |= _settings(door)
        found |= _sources(door)
        found["grown"] = _grown(door)
    found |= _copies(door)
    return found


def make(door: Door, verb: str, name: str, *words: object) -> dict[str, Any]:
    """Run a verb that makes one dataset; return what it said and what there is.

    Every dataset has a root of its own: under one root, a request finds what another name made.
    """
    run = ["--run_dir", f"runs/{name}", *RUN, "--name", name, "--root", f"data/{name}"]
    run += ["--source.kind", "digits"] if verb == "encode" else []  # what later words may change
    said = door.must(verb, *run, *words)
    return {"said": said.record(), **dataset_record(door.folder / place_of(door, name), door)}


def place_of(door: Door, name: str) -> str:
    """Return where the dataset of a name is, from the door's folder."""
    places = sorted(door.folder.glob(f"data/{name}/*"))
    if len(places) != 1:
        raise RuntimeError(f"{name}: {len(places)} datasets, not one: {places}")
    return str(places[0].relative_to(door.folder))


def _settings(door: Door) -> dict[str, Any]:
    """Change what decides the samples."""
    mixed = "{default: int8, s4: bfloat16, w: float16}"
    cases: dict[str, Sequence[object]] = {
        "mixed": ["--teacher.levels", "[s2,s4,w]", "--codec", mixed, "--seed", 3],
        "views": "--image.views 3 --image.flip random --image.rotate 15".split(),
        "wide": "--image.size 16 --image.width 32 --image.resize bilinear".split(),
        "squash": "--image.size 24 --image.crop squash --image.resize lanczos".split(),
        "padded": (
            "--samples 70 --samples_per_unit 24 --micro_batch 20 --teacher.draws 2 "
            "--teacher.timesteps [50] --image.size 8 --image.resize adm"
        ).split(),
        "two-actors": "--actors 2 --samples_per_unit 16 --teacher.pool gap".split(),
        "automatic": "--samples_per_unit 0".split(),
    }
    found = {
        name: make(door, "encode", name, *NOISE, *SIZE, "--samples", 64, *words)
        for name, words in cases.items()
    }
    for layout in ("zarr", "tar"):
        words = [*NOISE, "--teacher.levels", "[s2,w]", "--samples", 64, "--format", layout]
        found[f"drawn-{layout}"] = make(door, "synthesize", f"drawn-{layout}", *words)
    return found


def _sources(door: Door) -> dict[str, Any]:
    """Read images from folders, Parquet and tar files, one of them damaged."""
    write_images(door.folder / "images")
    share = ["--max_invalid_share", 1]
    cases: dict[str, Sequence[object]] = {
        "folder": ["folder", "--source.path", "images/folder", "--source.class_folders", "true"],
        "parquet": ["parquet", "--source.path", "images/images.parquet"],
        "parquet-tar": ["parquet", "--source.path", "images/images.parquet", "--format", "tar"],
        "webdataset": ["webdataset", "--source.path", "images/images.tar"],
        "whole": ["digits", "--source.split", "heldout", "--samples", 64, "--format", "tar"],
    }
    return {
        name: make(door, "encode", name, *NOISE, *SIZE, *share, "--source.kind", *words)
        for name, words in cases.items()
    }


def write_images(folder: Path, *, damaged: bool = True) -> None:
    """Write twelve small labelled images with masks, the fifth damaged, in three layouts."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    draws = np.random.default_rng(7)
    rows = []
    for number in range(12):
        pixels = draws.integers(0, 256, (20, 24 if number % 2 else 18, 3), dtype=np.uint8)
        encoded, mask = io.BytesIO(), io.BytesIO()
        Image.fromarray(pixels).save(encoded, "PNG")
        Image.fromarray((pixels[..., 0] % 4).astype(np.uint8)).save(mask, "PNG")
        image = encoded.getvalue()
        image = image[: len(image) // 3] if damaged and number == 4 else image
        row = {"key": f"image {number}", "image": image, "label": number % 3}
        rows.append({**row, "mask": mask.getvalue()})
    for row in rows:
        path = folder / "folder" / f"class-{row['label']}" / f"{row['key']}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["image"])
    pq.write_table(pa.Table.from_pylist(rows), folder / "images.parquet")
    with tarfile.open(folder / "images.tar", "w") as tar:
        for row in rows:
            members = {
                "png": row["image"],
                "cls": str(row["label"]).encode(),
                "mask.png": row["mask"],
            }
            for ending, data in members.items():
                member = tarfile.TarInfo(f"{row['key'].replace(' ', '-')}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _grown(door: Door) -> dict[str, Any]:
    """Ask for more, for less, and for a part under another name."""
    words = [*NOISE, *SIZE]
    first = make(door, "encode", "grown", *words, "--samples", 40)
    more = make(door, "encode", "grown", *words, "--samples", 100)
    again = make(door, "encode", "grown", *words, "--samples", 90)
    fewer = [*words, "--samples", 90, "--name", "fewer", "--teacher.levels", "[s4]"]
    part = make(door, "encode", "grown", *fewer, "--format", "tar")
    return {"first": first, "more": more, "again": again, "part": part}


def _copies(door: Door) -> dict[str, Any]:
    """Copy datasets into other formats and codecs, which reads and decodes them."""
    found: dict[str, Any] = {}
    cases: dict[str, tuple[str, Sequence[object]]] = {
        "decoded-zarr": ("zarr", ["--codec", "float32"]),
        "decoded-tar": ("tar", ["--codec", "float32"]),
        "as-npy": ("mixed", ["--format", "tar", "--images", "npy"]),
        "as-zarr": ("tar", ["--format", "zarr"]),
        "part": ("views", ["--samples", 20, "--levels", "b8"]),
        "quantised": ("views", ["--codec", "dct8", "b8=lowrank3-int8"]),
        "invalid": ("parquet", ["--format", "tar", "--codec", "int8"]),
    }
    for codec in CODECS:  # fitted to all samples here, to the first unit's there
        cases[f"to-{codec}"] = ("views", ["--codec", codec])
    for case, (name, words) in cases.items():
        said = door.must("export", place_of(door, name), f"copies/{case}", *words)
        found[case] = {
            "said": said.record(),
            **datasets_record(door.folder / "copies" / case, door),
        }
    return found


TINY = (
    "--source.kind digits --image.size 16 --unet.block_out_channels [16,16,16] --batch_size 16 "
    "--num_samples 4 --sample_steps 3 --device cpu --threads 1 --steps 12 --warmup_steps 2"
).split()
UNET = "--teacher.kind diffusers --teacher.levels [s4,s2,s1] --teacher.timesteps [250]".split()


def pretrain(door: Door, name: str, *words: object) -> dict[str, Any]:
    """Train a tiny teacher; return what it said, its files and its weights."""
    said = door.must("pretrain", *TINY, "--out", f"teachers/{name}", *words)
    folder = door.folder / "teachers" / name
    found: dict[str, Any] = {"said": said.record()}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            found[place] = weights_record(path)
        elif path.suffix == ".json" and not place.startswith("run/"):
            found[place] = steady(json.loads(path.read_text(encoding="utf-8")), door.normal)
    found["samples"] = digest(_pixels(folder / "samples.png").tobytes())
    found["metrics"] = metrics_record(folder / "run" / "metrics.jsonl")
    return found


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def teachers(door: Door) -> dict[str, Any]:
    """Pretrain with every objective; encode and synthesize; resume; load in this process."""
    found: dict[str, Any] = {"plain": pretrain(door, "plain", "--licence", "Apache-2.0")}
    few = "--steps 4 --warmup_steps 1".split()
    cases = {
        "v": "--objective.kind v_prediction --objective.noise_schedule cosine --precision bfloat16",
        "sample": "--objective.kind sample --objective.min_snr 5 --ema 0.9 --floor 0.5",
        "flow": "--objective.kind flow --image.views 2 --image.flip random --clip 0",
        "edm": "--objective.kind edm --weights_dtype float16 --unet.dropout 0.1",
        "classes": "--class_conditional true --unet.attention_levels [2] --unet.resampling resnet",
        "crop": "--crop 8 --unet.time_scale_shift scale_shift --distance_every 4 "
        "--distance_samples 8",
    }
    for name, words in cases.items():
        found[name] = pretrain(door, name, *few, *words.split())
    found["again"] = door("pretrain", *TINY, "--out", "teachers/plain").record()
    found["other"] = door("pretrain", *TINY, "--out", "teachers/plain", "--seed", 1).record()
    found["inspect"] = door("inspect", "teacher", "teachers/plain").record()
    with one_ray(door.tree):
        found["encoded"] = _encoded(door)
    found["loaded"] = _loaded(door)
    return found


def _encoded(door: Door) -> dict[str, Any]:
    """Record the tiny teacher's features through actors."""
    plain = [*UNET, "--teacher.path", "teachers/plain", "--samples", 32]
    zarr = ["--codec", "{default: float16, s4: lowrank4-int8, s2: dct4}", "--image.views", 2]
    return {
        "zarr": make(door, "encode", "zarr", *SIZE, *plain, *zarr),
        "tar": make(door, "encode", "tar", *SIZE, *plain, "--format", "tar", "--codec", "int8"),
        "drawn": make(
            door, "synthesize", "drawn", *plain, "--teacher.settings", "{sampler: ddim, steps: 4}"
        ),
    }


LOADS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "plain": ("plain", "encode", {}),
    "classes": ("classes", "encode", {"class_label": 3}),
    "mean": ("plain", "encode", {"mean_draws": 2}),
    "inverted": ("plain", "encode", {"encoding": "inversion", "inversion_steps": 4}),
    "layout": ("plain", "encode", {"memory_format": "channels_last"}),
    "drawn": ("plain", "synthesize", {"steps": 3}),
    "drawn-dpm": ("plain", "synthesize", {"steps": 3, "sampler": "dpm"}),
    "drawn-steps": ("plain", "synthesize", {"steps": 10, "record": "steps", "eta": 0.5}),
    "drawn-classes": ("classes", "synthesize", {"steps": 3}),
    **{name: (name, "encode", {}) for name in ("v", "sample", "flow", "edm", "crop")},
    **{f"drawn-{n}": (n, "synthesize", {"steps": 3}) for n in ("v", "sample", "flow", "edm")},
}
"""Name -> teacher, mode and settings."""


def _loaded(door: Door) -> dict[str, Any]:
    """Load teachers as a notebook does; run them and look at the arrays."""
    with contextlib.chdir(door.folder):
        return {
            name: run_teacher(f"teachers/{teacher}", mode, timesteps=[100], **settings)
            for name, (teacher, mode, settings) in LOADS.items()
        }


def run_teacher(path: str, mode: str, *, side: int = 16, **settings: Any) -> dict[str, Any]:
    """Load a teacher, run one batch; return its arrays, or what was said against it."""
    import dreamshard

    images = np.random.default_rng(3).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    index = np.arange(2)
    try:
        teacher = dreamshard.load_teacher(
            path,
            mode=mode,  # pyright: ignore[reportArgumentType]
            micro_batch=2,
            **settings,
        )
    except Exception as error:  # pinned, too
        return {"refused": f"{type(error).__name__}: {error}"}
    batch = teacher.synthesize(index) if mode == "synthesize" else teacher.encode(images, index)
    arrays = {level: array_record(values) for level, values in batch.levels.items()}
    arrays |= {"image": array_record(batch.image)} if batch.image is not None else {}
    return {"arrays": arrays, "fingerprint": digest_json(dict(teacher.fingerprint))}


def cifar(door: Door) -> dict[str, Any]:
    """Encode the first CIFAR-10 images with the teacher that comes with the checkout."""
    source = ["--source.kind", "parquet", "--source.path", door.options["cifar"]]
    plain = ["--config", "recipes/cifar10/encode.yaml", *source, "--samples", 64]
    plain += ["--teacher.path", door.tree / "recipes/cifar10/teacher"]
    plain += ["--teacher.levels", "[s4,s2,s1]"]
    found: dict[str, Any] = {}
    with one_ray(door.tree):
        found["int8"] = make(door, "encode", "int8", *plain)
        words = "--format tar --codec lowrank16-int4 --teacher.levels [s4,s2]".split()
        found["tar"] = make(door, "encode", "tar", *plain, *words)
    for codec in ("dct16", "float16"):
        said = door.must("export", place_of(door, "int8"), f"copies/{codec}", "--codec", codec)
        place = door.folder / "copies" / codec
        found[codec] = {"said": said.record(), **datasets_record(place, door)}
    return found


def parity(door: Door) -> dict[str, Any]:
    """Run official checkpoints, as far as their fixtures are there."""
    folder: Path = door.options["parity"]
    biggan, adm = folder / "biggan-64" / "G_ema.pth", folder / "guided-diffusion-adm64" / "model.pt"
    found: dict[str, Any] = {}
    if biggan.exists():
        plain = ["--teacher.kind", "biggan", "--teacher.path", biggan, "--samples", 32]
        plain += ["--teacher.levels", "[s8,s4]"]
        with one_ray(door.tree):
            found["biggan"] = make(door, "synthesize", "biggan", *plain)
        for name, settings in {
            "cut": {"truncation": 0.5, "truncation_form": "bounded"},
            "class": {"class_label": 3},
        }.items():
            more = {"kind": "biggan", "levels": ["s8", "s2"], **settings}
            found[name] = run_teacher(str(biggan), "synthesize", **more)
        found["inspect-biggan"] = door("inspect", "teacher", biggan).record()
    if adm.exists():
        # The flags that the weights do not tell, as the fixture's README gives them.
        flags = {"attention_resolutions": "32,16,8", "num_head_channels": 16, "image_size": 64}
        more = {"levels": ["s8", "s4", "s2"], "timesteps": [50, 250], **flags}
        found["adm"] = run_teacher(str(adm), "encode", side=64, **more)
        found["adm-drawn"] = run_teacher(str(adm), "synthesize", steps=2, **more)
        found["inspect-adm"] = door("inspect", "teacher", adm).record()
    return found
