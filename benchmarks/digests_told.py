"""Groups of `benchmarks/digests.py` that read what commands say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.digests_cases import CONFIG_CASES, DATA_CASES, PRINTED, VERBS_OF_RECIPES
from benchmarks.digests_made import NOISE, SIZE, make, place_of, write_images
from benchmarks.digests_tools import Door, one_ray

NEEDED = {"interpret": ("--classes", "[a,b]")}
"""What a verb must be told even to print its defaults."""


def config(door: Door) -> dict[str, Any]:
    """Print every verb's configuration, and every recipe's with the verb it is for.

    Of a recipe, the keys whose values are not the verb's own defaults are kept, and whether the
    text printed reads back to itself.
    """
    usual: dict[str, dict[str, Any]] = {}
    found: dict[str, Any] = {"defaults": {}, "recipes": {}}
    for verb in PRINTED:
        said = door(verb, *NEEDED.get(verb, ()), "--print_config")
        usual[verb] = _settings(said.out)
        found["defaults"][verb] = {"code": said.code, "err": said.err, "values": usual[verb]}
    for path in sorted((door.tree / "recipes").rglob("*.yaml")):
        name = path.relative_to(door.tree).as_posix()
        is_row = path.stem.startswith(
            "row_"
        )  # of an ablation: it lies over the train.yaml beside it
        verb = "train" if is_row else VERBS_OF_RECIPES[path.stem]
        files = ["--config", name.replace(path.name, "train.yaml")] if is_row else []
        said = door(verb, *files, "--config", name, "--print_config")
        values, base = _settings(said.out), usual[verb]
        changed = {key: value for key, value in values.items() if base.get(key) != value}
        (door.folder / "printed.yaml").write_text(said.out, encoding="utf-8")
        again = door(verb, "--config", "printed.yaml", "--print_config")
        found["recipes"][name] = {
            "code": said.code,
            "err": said.err,
            "values": changed,
            "reads_back": again.out == said.out,
        }
    write_files(door.folder)
    read = door("encode", "--config", "numbers.yaml", "--name", "x", "--print_config")
    found["numbers"] = {k: v for k, v in _settings(read.out).items() if v != usual["encode"].get(k)}
    return found


def _settings(text: str) -> dict[str, Any]:
    """Return the settings of printed YAML by dotted keys."""
    import yaml

    flat: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                walk(item, f"{name}.{key}" if name else str(key))
        else:
            flat[name] = json.dumps(value, default=str)

    walk(yaml.safe_load(text) or {}, "")
    return flat


def errors(door: Door) -> dict[str, Any]:
    """Make mistakes that are found before anything is made."""
    write_images(door.folder / "images")
    write_files(door.folder)
    found = {name: door(*words).record() for name, words in CONFIG_CASES.items()}
    found["apart"] = door.apart(*CONFIG_CASES["several"]).record()
    found["verbs"] = {"usage": door("--help").record(), "version": door("--version").record()}
    return found


def write_files(folder: Path) -> None:
    """Write the broken files that cases name."""
    import torch

    texts = {
        "broken.yaml": "a: [1\nb: 2\n",
        "twice.yaml": "root: a\nroot: b\n",
        "scalar.yaml": "just text\n",
        "numbers.yaml": "seed: 0o17\nmicro_batch: 1_6\nmax_invalid_share: 1e-2\nname: 007\n",
        "empty-teacher/config.json": "{}",
        "odd-teacher/config.json": json.dumps({"_class_name": "OddModel"}),
        "not-json/config.json": "{",
        "a-file": "",
        "no-images/readme.txt": "nothing",
    }
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    torch.save({"weight": torch.zeros(2), "evil": Evil()}, folder / "evil.pt")
    torch.save({"weight": torch.zeros(2)}, folder / "other.pt")
    (folder / "cut.pt").write_bytes((folder / "other.pt").read_bytes()[:100])


class Evil:
    """An object that no loader may make."""


def verbs(door: Door) -> dict[str, Any]:
    """Say what there is of datasets, whole ones and damaged ones."""
    write_images(door.folder / "images")
    with one_ray(door.tree):
        make(door, "encode", "whole", *NOISE, *SIZE, "--samples", 96)
        make(door, "encode", "other", *NOISE, *SIZE, "--samples", 64, "--seed", 2)
        whole, other = (door.folder / place_of(door, name) for name in ("whole", "other"))
        door.must("export", whole, "tarred", "--format", "tar", "--codec", "int8")
        (tarred,) = door.folder.glob("tarred/*")
        for name, path in (("whole", whole), ("other", other), ("tarred", tarred)):
            path.rename(door.folder / f"moved-{name}")
        shutil.rmtree(door.folder / "data")
        for name in ("whole", "other", "tarred"):
            target = door.folder / "data" / name
            target.parent.mkdir(exist_ok=True)
            (door.folder / f"moved-{name}").rename(target)
        _damage(door.folder)
        return {name: door(*words).record() for name, words in DATA_CASES.items()}


def _damage(folder: Path) -> None:
    """Copy the whole dataset and break the copies, one part each."""
    whole = folder / "data" / "whole"

    def copy(name: str) -> Path:
        return Path(shutil.copytree(whole, folder / "damaged" / name))

    def chunk(dataset: Path) -> Path:
        return max(dataset.glob("data.zarr/b8/c/1/**/*"), key=lambda path: path.is_file())

    path = chunk(copy("byte"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    path = chunk(copy("short"))
    path.write_bytes(path.read_bytes()[:-8])
    chunk(copy("gone")).unlink()
    _edit(copy("newer"), lambda value: value | {"format_version": 99})
    _edit(copy("keys"), lambda value: value | {"content_key": "0" * 16})
    (copy("text") / "dataset.json").write_text("{", encoding="utf-8")
    record = sorted(copy("record").glob("commits/*/*.json"))[1]
    record.write_text('{"unit": 1, "version": ', encoding="utf-8")
    hole = copy("hole")
    sorted(hole.glob("commits/*/*.json"))[1].unlink()
    shutil.rmtree(hole / "manifest")


def _edit(dataset: Path, change: Any) -> None:
    path = dataset / "dataset.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(value)), encoding="utf-8")
