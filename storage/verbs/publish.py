"""`dreamshard publish DATASET`: copy a dataset into a folder that the Hugging Face Hub understands.

OUT/README.md             the card: licence, recipe, levels, how to load it
OUT/preview/train.parquet a few samples: image, maps as colours, key, label; what the Hub shows
OUT/shards/*.tar          WebDataset shards: any WebDataset reader takes them
OUT/manifest/*.parquet    a row per sample
OUT/dataset.json, commits what makes it a dataset of ours, which `dreamshard.open_dataset` opens
"""

from __future__ import annotations

import io
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.foreign.shown import plain
from dreamshard.owner.alone import only_one
from dreamshard.owner.parts import put_in_place
from dreamshard.owner.urls import local_folder
from dreamshard.pictures import fit_colours
from dreamshard.redact import redact
from storage.catalog import find_dataset
from storage.codecs.arrays import IMAGE
from storage.dataset import Dataset
from storage.ledger.holds import name_readers
from storage.rows.pick import read_rows
from storage.snapshot import Snapshot
from storage.verbs.commands import format_bytes, verb_parser
from storage.verbs.export import Copy, create_copy, plan_copy, run_copy
from storage.verbs.statistics import enlarge, spread

PREVIEW = "preview/train.parquet"
PREVIEW_SAMPLES, PICTURE_PX = 128, 96
HUB_LICENCES = {
    name.lower(): name.lower()
    for name in (
        *("Apache-2.0", "MIT", "BSD-3-Clause", "BSD-2-Clause", "CC0-1.0", "CC-BY-4.0"),
        *("CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "OpenRAIL", "CreativeML-OpenRAIL-M"),
    )
}
"""Licences that the Hub knows by name; any other is `other`, under its own name."""


def main(argv: Sequence[str]) -> int:
    """Run `dreamshard publish DATASET`; exit code 0 when the folder is whole."""
    options = _parser().parse_args(argv)
    name_readers("publish")
    out = publish_dataset(
        find_dataset(options.dataset),
        options.out,
        levels=options.levels,
        samples=options.samples,
        codecs=options.codec or (),
    )
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    names = f"{shlex.quote(f'USER/{out.name}')} {shlex.quote(str(out))}"
    upload = f"hf upload {names} --repo-type dataset"
    sys.stdout.write(f"{out}: {format_bytes(size)}.\nnext: {upload}\n")
    return 0


def publish_dataset(
    dataset: Dataset,
    out: Path,
    *,
    levels: Sequence[str] | None = None,
    samples: int | None = None,
    codecs: Sequence[str] = (),
) -> Path:
    """Write the folder, whole or not at all; the same call goes on with what a killed one left.

    Args:
        dataset: what is published.
        out: a folder that does not exist yet.
        levels, samples, codecs: as `storage.verbs.export.plan_copy` takes them.

    Raises:
        ConfigError: a folder that is there, or a choice that is not possible.
        DataError: a dataset with holes, or one that cannot be read.
    """
    if out.exists():
        hint = "Choose another folder, or remove that one."
        raise ConfigError(Problem("out", str(out), "a folder that does not exist yet", hint))
    copy = plan_copy(dataset, layout_format="tar", levels=levels, samples=samples, codecs=codecs)
    staging = out.with_name(f".{out.name}.publishing")
    with only_one(staging, key="out"):
        _write(copy, staging, out, origin=dataset.recipe.folder)
    return out


def _write(copy: Copy, staging: Path, out: Path, *, origin: str) -> None:
    target = create_copy(copy, str(staging), origin=origin)
    run_copy(copy, target)
    snapshot = target.snapshot()
    folder = staging / target.recipe.folder
    (folder / PREVIEW).parent.mkdir(exist_ok=True)
    (folder / PREVIEW).write_bytes(preview(snapshot))
    card = dataset_card(target, snapshot, name=out.name)
    (folder / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder / "pins", ignore_errors=True)  # marks of readers, this process among them
    put_in_place(folder, out)
    shutil.rmtree(staging)


def preview(snapshot: Snapshot) -> bytes:
    """Return a Parquet file of a few samples: index, key, label, image, and each map as colours.

    One basis a level, fitted to these samples: equal colours mean equal features.

    Raises:
        DataError: no valid sample, or no Pillow.
    """
    import pyarrow.parquet as pq

    chosen = spread(snapshot, PREVIEW_SAMPLES)
    commits = {unit: snapshot.commit(unit) for unit in set(chosen // snapshot.samples_per_unit)}
    keys = []
    for index in chosen.tolist():
        commit = commits[index // snapshot.samples_per_unit]
        keys.append("" if commit is None else plain(commit.keys[index - commit.first]))
    columns: dict[str, Any] = {"index": chosen, "key": keys, "label": snapshot.labels[chosen]}
    features = {
        "index": {"dtype": "int64", "_type": "Value"},
        "key": {"dtype": "string", "_type": "Value"},
        "label": {"dtype": "int64", "_type": "Value"},
    }
    pictures = {}
    if IMAGE in snapshot.array_names:
        pictures["image"] = read_rows(snapshot, IMAGE, chosen, access="pread")
    for level in snapshot.levels:
        if len(level.shape) == 3 and "float" in level.dtype:
            maps = read_rows(snapshot, level.name, chosen, access="pread")
            pictures[level.name.replace(".", "_")] = fit_colours(maps[:16]).colours(maps)
    for name, pixels in pictures.items():
        columns[name] = [{"bytes": _png(one), "path": None} for one in pixels]
        features[name] = {"_type": "Image"}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({n: pa.array(v, kind if n in pictures else None) for n, v in columns.items()})
    told = json.dumps({"info": {"features": features}})
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": told}), out)
    return out.getvalue()


def dataset_card(dataset: Dataset, snapshot: Snapshot, *, name: str) -> str:
    """Return README.md: the Hub's front matter, then what it is and how to load it.

    Args:
        dataset: as it is published.
        snapshot: of it.
        name: of the folder.
    """
    known = HUB_LICENCES.get(dataset.about.licence.lower())
    licence = {"license": known or "other"}
    if known is None:
        licence["license_name"] = plain(dataset.about.licence)[:100]
    front = {
        **licence,
        "pretty_name": plain(name),
        "tags": ["dreamshard", "features", "distillation", "webdataset"],
        "configs": [
            {
                "config_name": "preview",
                "default": True,
                "data_files": [{"split": "train", "path": PREVIEW}],
            },
            {
                "config_name": "manifest",
                "data_files": [{"split": "train", "path": "manifest/part-*.parquet"}],
            },
        ],
    }
    rows = [
        f"| {_cell(level.name)} | {level.kind} | {_cell(level.tap)} | {level.timestep} | "
        f"{' x '.join(map(str, level.shape))} | {level.stride or ''} | "
        f"{snapshot.codec_name(level.name)} |"
        for level in dataset.levels
    ]
    recipe = json.dumps(redact(dataset.recipe.content), indent=2)
    height, width = dataset.image_size
    return _CARD.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=False),
        name=_cell(name),
        samples=f"{snapshot.num_samples:,}",
        invalid=f"{snapshot.num_invalid:,}",
        size=f"{height} x {width}",
        licence=_cell(dataset.about.licence),
        levels="\n".join(rows),
        last=f"{snapshot.units.max(initial=0):06d}",
        first=dataset.levels[0].name if dataset.levels else "image",
        recipe="\n".join(f"    {plain(line)}" for line in recipe.splitlines()),
        key=dataset.recipe.content_key,
    )


_CARD = """---
{front}---
# {name}

Features of a pretrained image network on {samples} images of {size} pixels ({invalid} of them
unusable, and marked so), recorded with dreamshard.

Licence of the weights the features come from: {licence}. That of the images is their owner's.

| level | kind | tap | timestep | shape | stride | stored as |
|---|---|---|---|---|---|---|
{levels}

`raw`, `float16` and `float32` are plain numbers in every `.npy`; any other codec is decoded by
dreamshard alone.

## Load it

```python
import dreamshard                                   # all of it, in batches for training
ds = dreamshard.open_dataset("FOLDER")              # or hf://datasets/USER/NAME
batches = ds.torch(batch_size=64)

import webdataset                                   # the shards alone
samples = webdataset.WebDataset("FOLDER/shards/{{000000..{last}}}.tar", shardshuffle=False).decode()
next(iter(samples))["{first}.npy"]

import datasets                                     # a few samples as pictures, or the shards
datasets.load_dataset("FOLDER", "preview", split="train")
shards = "FOLDER/shards/*.tar"                      # or hf://datasets/USER/NAME/shards/*.tar
datasets.load_dataset("webdataset", data_files=shards, split="train", streaming=True)
```

## Recipe

Content key {key}: the same recipe makes the same numbers.

{recipe}
"""


def _cell(text: str) -> str:
    """Return a text for Markdown, in which nothing of a file's counts as HTML or as a column."""
    safe = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return safe.replace("|", "\\|").replace("\n", " ")


def _png(pixels: np.ndarray) -> bytes:
    """Return uint8 (H, W, 3) as PNG bytes, enlarged to be seen."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise DataError("publish: got no Pillow. Run `pip install pillow`.") from None
    side = max(PICTURE_PX, *pixels.shape[:2])
    out = io.BytesIO()
    shown = pixels if max(pixels.shape[:2]) >= side else enlarge(pixels, side)
    Image.fromarray(np.ascontiguousarray(shown)).save(out, "PNG")
    return out.getvalue()


def _parser() -> Any:
    parser = verb_parser(
        "publish", "Copy a feature dataset into a folder that the Hugging Face Hub understands."
    )
    parser.add_argument("dataset", metavar="DATASET", help="the dataset's folder, or ROOT/NAME")
    parser.add_argument(
        "--out", required=True, type=local_folder, help="folder to write; it must not exist yet"
    )
    parser.add_argument(
        "--levels", nargs="+", help="levels to publish, by name or stride; all if not given"
    )
    parser.add_argument("--samples", type=int, help="the first so many; all if not given")
    parser.add_argument(
        "--codec",
        nargs="+",
        metavar="CODEC",
        help="how levels are stored: float16 for readers without dreamshard; as they are if not "
        "given",
    )
    return parser
