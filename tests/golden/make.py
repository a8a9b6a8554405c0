"""Write the golden datasets: what this version makes, for every later one to read.

    python tests/golden/make.py tests/golden/v1.tar.gz

An archive is made once, when the format changes, and never again: its point is to be old. A later
format gets an archive of its own beside it. Beside the datasets lies `expected.npz`, what their
rows were when they were read by the version that wrote them, and `expected.json`, the rest.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from storage.dataset import Dataset
from storage.ledger import holds
from storage.ledger.labels import add_version
from storage.rows.pick import read_rows
from storage.schema import Level, Recipe
from tests.feature_store import LEVELS, fill, make_batch, make_dataset, make_recipe

SAMPLES, UNIT, INVALID = 10, 6, 7
FLOATS = ("float16", "float32", "bfloat16", "int8", "int4", "raw", "lowrank2-int8", "lowrank2-int4")
ZARR = (*FLOATS, "dct2", "int8+zstd", "float16+blosc", "lowrank2-int4+zstd", "zstd", "blosc")
TAR = (*FLOATS, "dct2")
MAP: tuple[Level, ...] = (LEVELS[0],)
ALL: tuple[Level, ...] = LEVELS


def recipe_of(name: str, *, layout_format: str, codec: str, images: str = "") -> Recipe:
    """Return the recipe of one dataset; the one with a history has all kinds of levels."""
    levels = ALL if name == "history" else MAP
    recipe = make_recipe(
        name=name, layout_format=layout_format, count=SAMPLES, levels=levels, codec=codec
    )
    layout = {**recipe.layout, **({"images": images} if images else {})}
    return Recipe(recipe.name, recipe.content, layout)


def make_all(root: Path) -> list[Dataset]:
    """Make one dataset per format and codec, and one with everything that can happen to it."""
    made = [_plain(root, f"zarr-{codec.replace('+', '-')}", "zarr", codec) for codec in ZARR]
    made += [_plain(root, f"tar-{codec}", "tar", codec) for codec in TAR]
    made.append(_plain(root, "tar-npy", "tar", "float16", images="npy"))
    return [*made, _history(root)]


def _plain(root: Path, name: str, layout_format: str, codec: str, images: str = "") -> Dataset:
    recipe = recipe_of(name, layout_format=layout_format, codec=codec, images=images)
    dataset = make_dataset(root, recipe=recipe, levels=MAP, masks=False)
    if dataset.unfitted():
        dataset.fit(make_batch(0, SAMPLES, levels=MAP))
    fill(dataset, SAMPLES, invalid=(INVALID,))
    return dataset


def _history(root: Path) -> Dataset:
    """Two manifest parts and a record in none, a unit made again, drops, labels, a pin, a hole."""
    recipe = recipe_of("history", layout_format="zarr", codec="float16")
    dataset = make_dataset(root, recipe=recipe, levels=ALL)
    fill(dataset, 8, invalid=(INVALID,))
    dataset.invalidate(0, reason="golden")
    fill(dataset, SAMPLES, run_id="again", invalid=(INVALID,))
    dataset.drop(["key/3"], reason="golden")
    add_version(dataset.files, np.arange(SAMPLES)[::-1], ["zero", "one"], fsync=False)
    holds.pin(dataset.files, name="golden", reason="kept")
    dataset.quarantine(2, error="golden", attempts=3)
    dataset.grow(3 * UNIT)
    return dataset


def read_all(dataset: Dataset) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Return what a dataset shows: its rows, decoded, and the rest."""
    snapshot = dataset.snapshot()
    index = np.flatnonzero(snapshot.present)
    rows = {name: read_rows(snapshot, name, index) for name in snapshot.array_names}
    rows = {name: rows[name] for name in rows if snapshot.components(name)[0] == name}
    about = {
        "version": snapshot.version,
        "keys": snapshot.keys,
        "valid": snapshot.valid.tolist(),
        "labels": snapshot.labels.tolist(),
        "errors": {str(index): text for index, text in snapshot.errors.items()},
        "holes": list(snapshot.holes),
        "classes": list(snapshot.classes),
        "pins": holds.pins(dataset.files),
    }
    return rows, about


def main(target: str) -> None:
    """Write the archive."""
    with tempfile.TemporaryDirectory() as folder, mock.patch("socket.gethostname", lambda: "host"):
        root = Path(folder) / "root"
        shown = {dataset.recipe.folder: read_all(dataset) for dataset in make_all(root)}
        arrays = {
            f"{name}/{a}": rows for name, (all_, _) in shown.items() for a, rows in all_.items()
        }
        np.savez_compressed(root / "expected.npz", **arrays)  # type: ignore[arg-type]
        rest = {name: about for name, (_, about) in shown.items()}
        (root / "expected.json").write_text(json.dumps(rest, indent=1))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path in sorted(path for path in root.rglob("*") if path.is_file()):
                if "readers" in path.parts:
                    continue
                member = tarfile.TarInfo(str(path.relative_to(root)))
                member.size = path.stat().st_size
                with path.open("rb") as file:
                    archive.addfile(member, file)
        Path(target).write_bytes(gzip.compress(buffer.getvalue(), 9, mtime=0))


if __name__ == "__main__":
    main(sys.argv[1])
