"""Measure codecs on a dataset's own features: bytes, speed, and error after whitening.

    python benchmarks/codecs.py DATASET [--levels up.1.t100] [--codecs int8 dct16] [--out FOLDER]

DATASET is a folder made by `dreamshard encode` with codec float16 or float32. Learned codecs are
fitted to samples that the errors are not measured on. Whitened cosine: between the true and the
decoded vector of a position after LayerNorm over channels without parameters, as distillation
compares them. Speeds are float16-equivalent MB per second of one core's own time. Rows `entropy`
say what a perfect entropy coder would take for uniformly quantised coefficients of the same
transform, of no fixed size; `zstd` what a real one takes, over all samples at once. The last line
is one JSON object.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import datetime
import json
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numcodecs import Zstd

from distill.data.dequantise import Dequantiser
from storage.catalog import find_dataset
from storage.codecs.base import LearnedCodec
from storage.codecs.dct import DctCodec
from storage.codecs.table import find_codec
from storage.codecs.transform import analyse, map_shape, synthesise
from storage.rows.pick import read_rows
from storage.schema import Level

EPS = 1e-6
ROUNDS = 3
STEPS = (0.5, 0.7, 0.9, 1.1, 1.4, 1.8)  # of uniform quantisers, normalised units
CLASSES = 32
AIM = {"fold": 16, "cosine": 0.95}


def whiten(values: np.ndarray) -> np.ndarray:
    """Normalise every position of (N, C, ...) over its channels."""
    centred = values - values.mean(axis=1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + EPS)


def errors(wanted: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Return relative L2 error, and mean and smallest cosine after whitening."""
    true, made = wanted.astype(np.float64), found.astype(np.float64)
    relative = float(np.linalg.norm(made - true) / np.linalg.norm(true))
    true, made = whiten(true), whiten(made)
    lengths = np.square(true).sum(axis=1) * np.square(made).sum(axis=1)
    cosine = (true * made).sum(axis=1) / np.sqrt(lengths + 1e-12)
    return {
        "relative_l2": round(relative, 4),
        "cosine": round(float(cosine.mean()), 4),
        "cosine_min": round(float(cosine.min()), 3),
    }


def speed(action: Callable[[], Any], num_bytes: int) -> float:
    """Return MB/s of processor time, the fastest of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        action()
        best = min(best, time.process_time() - started)
    return round(num_bytes / max(best, 1e-6) / 1e6, 1)


def measure(name: str, level: Level, fit: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """Measure one codec on one level."""
    codec = find_codec(name)
    if codec is None:
        raise SystemExit(f"--codecs: got {name!r}, which is no codec")
    if isinstance(codec, LearnedCodec):
        codec = codec.fitted(level, codec.fit(level, fit))
    stored = codec.encode(level, test)
    half = 2 * test.size
    dequantise = Dequantiser(level, codec, device="cpu")
    return {
        "codec": codec.name,
        "fold": round(half / sum(rows.nbytes for rows in stored.values()), 2),
        **errors(test, codec.decode(level, stored)),
        "encode": speed(lambda: codec.encode(level, test), half),
        "decode": speed(lambda: codec.decode(level, stored), half),
        "decode_torch": speed(lambda: dequantise(stored), half),
    }


def entropy_rows(level: Level, fit: np.ndarray, test: np.ndarray) -> list[dict[str, Any]]:
    """Measure uniform quantisers with a dead zone on the same transform, entropy coded."""
    codec = find_codec("dct16")
    assert isinstance(codec, DctCodec)
    found = codec.fitted(level, codec.fit(level, fit)).transform
    assert found is not None
    channels, height, width = map_shape(level)
    size = channels * height * width

    def coefficients(values: np.ndarray) -> np.ndarray:
        return analyse(level, values, found.centre, found.rotation, (height, width))

    seen, wanted, rows = coefficients(fit), coefficients(test), []
    for step in STEPS:
        codes = {
            name: np.sign(x) * np.floor(np.abs(x) / step + 0.35)
            for name, x in (("fit", seen[:, :size]), ("test", wanted[:, :size]))
        }
        middle = np.sign(codes["test"]) * np.maximum(np.abs(codes["test"]) - 0.05, 0) * step
        whole = np.concatenate([middle, wanted[:, size:]], axis=1).astype(np.float32)
        normal, mean, log = synthesise(found, whole, (height, width))
        made = (normal * np.exp(log) + mean).reshape(test.shape)
        packed = Zstd(level=9).encode(np.ascontiguousarray(codes["test"].T.astype(np.int8)))
        for kind, bits in (("entropy", _entropy(**codes)), ("zstd", 8 * len(packed))):
            fold = round(16 * test.size / bits, 2)
            rows.append({"codec": f"{kind} {step}", "fold": fold, **errors(test, made)})
    return rows


def _entropy(*, fit: np.ndarray, test: np.ndarray) -> float:
    """Return the bits of codes under the shares of codes in the fit, by classes of coefficients."""
    seen, wanted = (np.clip(codes, -40, 40).astype(np.int64) + 40 for codes in (fit, test))
    order = np.argsort(seen.std(axis=0), kind="stable")
    total = 0.0
    for some in np.array_split(order, CLASSES):
        counts = np.bincount(seen[:, some].ravel(), minlength=81) + 0.5
        total -= np.log2(counts / counts.sum())[wanted[:, some]].sum()
    return total


def best_at_aim(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the most accurate codec of at least AIM's fold, and whether it is accurate enough."""
    real = [row for row in rows if "encode" in row and row["fold"] >= AIM["fold"]]
    best = max(real, key=lambda row: row["cosine"], default={"codec": "", "cosine": 0.0})
    names = ("codec", "fold", "cosine")
    return {**{name: best.get(name) for name in names}, "met": best["cosine"] >= AIM["cosine"]}


def report(result: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        f"# Codecs on {result['dataset']}, {result['date']}",
        "",
        f"{result['machine']}. Fitted to {result['fit']} samples, measured on {result['test']} "
        "others. Speeds: float16-equivalent MB/s of one core's time.",
        "",
    ]
    columns = ("codec", "fold", "relative_l2", "cosine", "cosine_min", "encode", "decode")
    columns += ("decode_torch",)
    for name, rows in result["levels"].items():
        lines += [f"## {name} {tuple(result['shapes'][name])}", "", f"| {' | '.join(columns)} |"]
        lines.append("|---" * len(columns) + "|")
        lines += ["| " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def default_codecs(level: Level) -> list[str]:
    """Name codecs of about 2, 4, 8, 16 and 32 times fewer bytes."""
    channels = map_shape(level)[0]
    ranks = [max(1, channels // part) for part in (2, 4, 8)]
    low = [f"lowrank{rank}-int4" for rank in ranks] + [f"lowrank{ranks[2]}-int8"]
    return ["int8", "int4", *low, "dct4", "dct8", "dct16", "dct24", "dct32"]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--levels", nargs="+", help="all maps of floats if not given")
    parser.add_argument("--codecs", nargs="+", help="a ladder of sizes if not given")
    parser.add_argument("--fit", type=int, default=512, help="samples to fit to")
    parser.add_argument("--test", type=int, default=1024, help="samples to measure on")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = find_dataset(options.dataset)
    snapshot, result = dataset.snapshot(), dict[str, Any]()
    valid = np.random.default_rng(0).permutation(np.flatnonzero(snapshot.valid))
    fit_at, test_at = np.sort(valid[: options.fit]), valid[options.fit :][: options.test]
    levels, shapes = dict[str, list[dict[str, Any]]](), dict[str, list[int]]()
    for level in dataset.levels:
        if "float" not in level.dtype or level.name not in (options.levels or [level.name]):
            continue
        fit, test = (read_rows(snapshot, level.name, at) for at in (fit_at, np.sort(test_at)))
        names = options.codecs or default_codecs(level)
        rows = [measure(name, level, fit, test) for name in names]
        levels[level.name] = rows + entropy_rows(level, fit, test)
        shapes[level.name] = list(level.shape)
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    summary = {name: best_at_aim(rows) for name, rows in levels.items()}
    result = {"date": date, "dataset": dataset.recipe.name, "machine": platform.platform()}
    result |= {"fit": len(fit_at), "test": len(test_at), "shapes": shapes, "levels": levels}
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{date}-codecs-{dataset.recipe.name}"
    stem.with_suffix(".json").write_text(json.dumps({**result, "aim": summary}, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report(result))
    sys.stderr.write(report(result))
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
