"""What DreamTeacher's parts and the codecs of cached features are worth: CIFAR-10, small size.

    python benchmarks/ablations.py --train cifar10-train.parquet --val cifar10-val.parquet \
        --out runs/ablations [--groups bytes loss whitening ...] [--seeds 0 1 2]

One factor at a time around one base: a ResNet-18 of width 16 learns from float16 features (strides
1, 2, 4; t = 50; stochastic encoding) of the first 20,000 training images, by whitened regression
alone (the paper's loss, MSE + 10 AT, is one of the variants). Every variant shares the base's
seeds: initial weights and order of the images. Linear probes and nearest neighbours judge the
frozen students, on the held-out images and on training images that were never encoded. Datasets
are made by the commands a user would type; whatever is there already is reused, so the same command
goes on after an interruption. Differences from the base are paired by seed, with Student's 95 %
confidence interval. The last line printed is the result as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks import cifar10
from benchmarks.charts import paired_intervals
from benchmarks.commands import run_command
from dreamshard.charts import LIGHT
from dreamshard.runfolder import write_text

BASE_METHOD: dict[str, Any] = {"attention_weight": 0.0}
LEVELS = {"up.2.t50": 32, "up.1.t50": 96, "up.0.t50": 160}  # channels of the default teacher
BASE = "base"
FIGURES = ("linear_100", "knn_20")
SAMPLES_PER_UNIT = 512  # `dreamshard encode` rounds the samples up to whole units


@dataclass(frozen=True)
class Variant:
    """Say in what a variant differs from the base.

    Args:
        group: what is compared.
        method: settings of DreamTeacherConfig, over those of the base.
        changes: any other settings of `dreamshard train`, by dotted keys.
        encode: options of `dreamshard encode`; none: the base's dataset.
        codec: arguments of `dreamshard export --codec`; none: the dataset as encoded.
    """

    group: str
    method: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    encode: tuple[str, ...] = ()
    codec: tuple[str, ...] = ()


def low_rank(fold: int, inner: str) -> tuple[str, ...]:
    """Return the codecs that keep 1/fold of float16's bytes (the scales' few not counted)."""
    per_value = {"int8": 2, "int4": 4}[inner]  # of float16's bytes, how many times fewer
    ranks = {level: max(1, round(per_value * size / fold)) for level, size in LEVELS.items()}
    return tuple(f"{level}=lowrank{rank}-{inner}" for level, rank in ranks.items())


COARSE = {"data.levels": ["s4", "s2"]}
VECTOR = "up.0.t50"
"""The deepest level, averaged over space: what similarity and embedding methods compare."""
FEATURES = {"feature.weight": 1.0, "feature.attention_weight": 0.0, "feature.width": 32}
CHANNEL = FEATURES | {"feature.whiten": "channel"}
SIMILARITY = {
    "similarity.weight": 1.0,
    "similarity.variant": "1q",
    "similarity.queue": 4096,
    "similarity.level": VECTOR,
}


def compress(variant: str, *, queue: int = 1024, **more: float) -> dict[str, Any]:
    """Return settings of CompRess; more: temperature (0.04 where unsaid), momentum."""
    momentum = {"momentum": 0.99} if variant == "2q" else {}
    words = {"variant": variant, "queue": queue, "level": VECTOR} | momentum | more
    return {"method": "compress"} | {f"compress.{name}": value for name, value in words.items()}


def mix(parts: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a mix of objectives."""
    return {"method": "mix"} | {f"mix.{name}": value for name, value in parts.items()}


VARIANTS: dict[str, Variant] = {
    BASE: Variant("base"),
    "int8": Variant("bytes", codec=("int8",)),
    "int4": Variant("bytes", codec=("int4",)),
    **{
        f"lowrank-{inner} 1/{fold}": Variant("bytes", codec=low_rank(fold, inner))
        for inner in ("int8", "int4")
        for fold in (8, 16, 32)
    },
    **{f"dct 1/{fold}": Variant("bytes", codec=(f"dct{fold}",)) for fold in (16, 32)},
    **{
        f"MSE + {weight:g} AT": Variant("loss", {"attention_weight": weight})
        for weight in (0.1, 1.0, 10.0)
    },
    "AT alone": Variant("loss", {"mse_weight": 0.0, "attention_weight": 10.0}),
    "whole map whitened": Variant("whitening", {"whiten_axes": "chw"}),
    "whole map whitened, MSE + 10 AT": Variant(
        "whitening", {"whiten_axes": "chw", "attention_weight": 10.0}
    ),
    "FPN": Variant("regressor", {"regressor": "fpn"}),
    "FPN + attention": Variant("regressor", {"regressor": "fpn_attention"}),
    "PaFPN": Variant("regressor", {"regressor": "pafpn"}),
    "deterministic": Variant("encoding", encode=("--teacher.settings.encoding", "inversion")),
    **{
        f"t = {t}": Variant("timestep", encode=("--teacher.timesteps", f"[{t}]"))
        for t in (0, 25, 100, 200, 400)
    },
    **{f"whiten {kind}": Variant("standardise", {"whiten": kind}) for kind in ("channel", "phi_s")},
    "smooth L1": Variant("standardise", {"regression": "smooth_l1"}),
    "channel, smooth L1": Variant("standardise", {"whiten": "channel", "regression": "smooth_l1"}),
    "channel, cosine + smooth L1": Variant(
        "standardise", {"whiten": "channel", "regression": "cos_smooth_l1"}
    ),
    "without the finest": Variant("standardise", changes=COARSE),
    "channel, without the finest": Variant("standardise", {"whiten": "channel"}, changes=COARSE),
    **{
        f"CompRess {form}, queue {queue}": Variant(
            "similarity", changes=compress(form, queue=queue)
        )
        for form in ("1q", "2q")
        for queue in (64, 1024, 16384)
    },
    "CompRess 2q, no momentum": Variant("similarity", changes=compress("2q", momentum=0.0)),
    **{
        f"CompRess 1q, T = {t}": Variant("similarity", changes=compress("1q", temperature=t))
        for t in (0.02, 0.2, 1.0)
    },
    "Reg": Variant("similarity", changes={"method": "reg", "reg.level": VECTOR}),
    "Reg-BN": Variant(
        "similarity", changes={"method": "reg", "reg.level": VECTOR, "reg.batch_norm": True}
    ),
    "Gram": Variant("similarity", changes=mix({"gram.weight": 1.0})),
    "features + 1q": Variant("mix", changes=mix(FEATURES | SIMILARITY)),
    "features + Gram": Variant("mix", changes=mix(FEATURES | {"gram.weight": 1.0})),
    "channel + 1q": Variant("mix", changes=mix(CHANNEL | SIMILARITY)),
    "channel + 1q + Gram": Variant("mix", changes=mix(CHANNEL | SIMILARITY | {"gram.weight": 1.0})),
}
GROUPS = list(dict.fromkeys(variant.group for variant in VARIANTS.values()))[1:]


def make_datasets(names: Sequence[str], options: argparse.Namespace) -> dict[str, str]:
    """Make what the variants learn from; the commands reuse what is there. Return where it is."""
    root = options.out / "data"
    encoded: dict[tuple[str, ...], str] = {}  # by what differs from the base
    found = {}
    for name in names:
        variant = VARIANTS[name]
        if variant.encode not in encoded:
            encoded[variant.encode] = kind = _slug(name) if variant.encode else BASE
            _encode(kind, variant.encode, options)
        kind = encoded[variant.encode]
        found[name] = str(root / kind)
        if variant.codec:
            copies = root / _slug(name)
            words = ["export", str(root / kind), str(copies), "--codec", *variant.codec]
            run_command(words, cwd=ROOT)
            found[name] = str(copies / kind)
    return found


def _encode(kind: str, more: Sequence[str], options: argparse.Namespace) -> None:
    words = [
        *("encode", "--config", str(ROOT / "recipes" / "cifar10" / "encode.yaml")),
        *("--teacher.path", str(options.teacher), "--source.path", str(options.train.resolve())),
        *("--name", kind, "--root", str(options.out / "data")),
        *("--run_dir", str(options.out / f"encode-{kind}"), "--samples", str(options.samples)),
        *("--samples_per_unit", str(SAMPLES_PER_UNIT), "--image.views", "1"),
        *("--codec", "float16", *more),
    ]
    run_command(words, cwd=ROOT)


def _slug(name: str) -> str:
    return "".join(mark if mark.isalnum() else "-" for mark in name.lower())


def read_images(options: argparse.Namespace) -> None:
    """Read what judges the students: 5,000 held-out images alone would add 0.7 points of noise.

    Probe and neighbours know the first training images; the held-out ones and the last training
    images judge, which no dataset of this benchmark holds (the teacher has seen them, unlabelled).
    """
    options.probe_images, wanted = 0, options.probe_images
    (images, labels), (held, truth) = cifar10.images(options)
    options.probe_images = wanted
    first = max(len(images) - options.unseen, options.samples + SAMPLES_PER_UNIT)
    judges = (np.concatenate([held, images[first:]]), np.concatenate([truth, labels[first:]]))
    options.loaded = [(images[:wanted], labels[:wanted]), judges]


def run_variant(
    name: str, dataset: str, options: argparse.Namespace, *, seed: int
) -> dict[str, Any]:
    """Train and judge a variant with one seed; reuse what is there already."""
    options.dataset = dataset
    arm = f"ablation-{_slug(name)}"
    cifar10.ARMS[arm] = {
        **cifar10.ARMS["dreamteacher"],
        "settings": BASE_METHOD | VARIANTS[name].method,
        "changes": VARIANTS[name].changes,
    }
    return cifar10.run_arm(arm, options, seed=seed)


def bytes_per_sample(dataset: str) -> int:
    """Return the bytes that the levels of one sample take."""
    from storage.catalog import find_dataset

    found = find_dataset(dataset)
    snapshot = found.snapshot()
    parts = {part for level in found.levels for part in snapshot.components(level.name)}
    specs = [snapshot.array_spec(part) for part in parts]
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in specs)


def compare(rows: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """Return each variant's means, and its paired differences from the base with intervals."""
    table: dict[str, Any] = {}
    for name, by_seed in rows.items():
        shared = [seed for seed in by_seed if seed in rows.get(BASE, {})]
        entry: dict[str, Any] = {"group": VARIANTS[name].group, "seeds": len(by_seed)}
        for figure in FIGURES:
            values = [row[figure] for row in by_seed.values()]
            entry[figure] = {"mean": float(np.mean(values)), "values": values}
            if name != BASE and shared:
                pairs = [by_seed[seed][figure] - rows[BASE][seed][figure] for seed in shared]
                entry[figure] |= interval(pairs)
        table[name] = entry
    return table


def interval(differences: list[float]) -> dict[str, float | None]:
    """Return the mean difference and half its 95 % interval (None for a single pair)."""
    from scipy import stats

    half = None
    if len(differences) > 1:
        spread = float(np.std(differences, ddof=1)) / len(differences) ** 0.5
        half = float(stats.t.ppf(0.975, len(differences) - 1)) * spread
    return {"difference": float(np.mean(differences)), "half_interval": half}


def picture(table: dict[str, Any], path: Path) -> None:
    """Draw every variant's difference from the base."""
    names = [name for name, entry in table.items() if "difference" in entry[FIGURES[0]]]
    panels = {
        figure.replace("_100", " probe").replace("_", ", k = "): {
            name: (table[name][figure]["difference"], table[name][figure]["half_interval"])
            for name in names
        }
        for figure in FIGURES
    }
    if names:
        path.write_bytes(paired_intervals(panels, LIGHT, xlabel="points over the base"))


def parse() -> argparse.Namespace:
    """Read the command line, and add what `benchmarks.cifar10` wants to know."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--train", type=Path, required=True, help="Parquet of training images")
    parser.add_argument("--val", type=Path, required=True, help="Parquet of held-out images")
    parser.add_argument("--teacher", type=Path, default=ROOT / "recipes" / "cifar10" / "teacher")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--results", type=Path, help="also write result and picture here")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, help="of the groups; all of them"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=20_000, help="images that are encoded")
    parser.add_argument("--images", type=int, default=40_000, help="student forward passes")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--width", type=int, default=16, help="of the ResNet-18")
    parser.add_argument("--regressor_width", type=int, default=32)
    parser.add_argument("--probe_images", type=int, default=10_000)
    parser.add_argument(
        "--unseen", type=int, default=15_000, help="never encoded training images that also judge"
    )
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's choice")
    options = parser.parse_args()
    options.out, options.head_width, options.shares = options.out.resolve(), 1, (1.0,)
    return options


def main() -> None:
    """Run what is missing, seeds outermost, and report what is there."""
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [n for n, variant in VARIANTS.items() if variant.group in options.groups]
    chosen = [BASE, *(n for n in wanted if not options.variants or n in options.variants)]
    datasets = make_datasets(chosen, options)
    read_images(options)
    rows: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in chosen}
    for seed in options.seeds:
        for name in chosen:
            rows[name][seed] = row = run_variant(name, datasets[name], options, seed=seed)
            shown = ", ".join(f"{figure} {row[figure]:.2f}" for figure in FIGURES)
            print(f"{name}, seed {seed}: {shown}", file=sys.stderr, flush=True)
    table = compare(rows)
    for name in chosen:
        table[name]["bytes_per_sample"] = bytes_per_sample(datasets[name])
    result = {
        "what": "CIFAR-10 ablations of DreamTeacher, % correct, differences paired by seed",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "settings": {
            name: getattr(options, name)
            for name in (
                *("samples", "images", "batch_size", "width", "regressor_width"),
                *("probe_images", "unseen", "precision"),
            )
        },
        "table": table,
    }
    for folder in filter(None, (options.out, options.results)):
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{result['date']}-ablations"
        write_text(folder / f"{stem}.json", json.dumps(result, indent=2) + "\n")
        picture(table, folder / f"{stem}.png")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
