"""A dataset with links, pipes and loops in it: verify names them, nothing goes through them."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from dreamshard.errors import ConfigError, DataError
from storage.dataset import Dataset
from storage.fs.beneath import LinkError
from storage.ledger.holds import pin
from storage.rows.pick import read_rows
from storage.verbs import collect
from storage.verbs.commands import DAMAGED, ls, verify
from storage.verbs.verify import repair, verify_dataset
from tests.feature_store import fill, make_dataset, make_recipe

FORMATS = ["zarr", "tar"]
N = 20


def build(root: Path, layout_format: str) -> Dataset:
    dataset = make_dataset(root, recipe=make_recipe(layout_format=layout_format))
    fill(dataset, N)
    return dataset


def victim_of(tmp_path: Path) -> Path:
    victim = tmp_path / "victim"
    for name in ("photos", ".ssh", "empty/sub", "put", "claims", "readers", "run"):
        (victim / name).mkdir(parents=True)
    for name in ("photos/a.jpg", ".ssh/id", "notes.txt", "put/x", "run/x"):
        (victim / name).write_text("precious")
    return victim


def tree(folder: Path) -> list[str]:
    return sorted(f"{p} {p.lstat().st_mtime_ns}" for p in folder.rglob("*"))


@pytest.mark.parametrize("layout_format", FORMATS)
def test_folders_as_links_lose_nothing_and_are_named(tmp_path: Path, layout_format: str) -> None:
    dataset = build(tmp_path / "root", layout_format)
    folder, victim = Path(dataset.url), victim_of(tmp_path)
    before = tree(victim)
    data = "data.zarr" if layout_format == "zarr" else "shards"
    for name in ("staging", "pins", "drops", "requests", "manifest", "commits", "codecs", data):
        aside = tmp_path / "aside"
        if (folder / name).exists():
            (folder / name).rename(aside)
        (folder / name).symlink_to(victim)
        for act in (
            lambda: fill(dataset, N),
            lambda: fill(dataset, N + 6),
            dataset.sweep,
            dataset.tidy,
            lambda: pin(dataset.files, name="x", reason="y"),
            lambda: dataset.drop(["key/3"], reason="r"),
            lambda: repair(dataset, verify_dataset(dataset)),
            lambda: collect.collect(collect.plan(str(tmp_path / "root"))),
        ):
            try:
                act()
            except DataError:
                continue
        assert tree(victim) == before, name
        told = [f.path for f in verify_findings(dataset)]
        assert str(folder / name) in told or name in ("commits", "requests", "manifest")
        (folder / name).unlink()
        if aside.exists():
            aside.rename(folder / name)
        shutil.rmtree(folder / "staging", ignore_errors=True)
    assert tree(victim) == before


def to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def to_itself(path: Path) -> None:
    path.symlink_to(path)


def verify_findings(dataset: Dataset):
    try:
        return verify_dataset(dataset).findings
    except DataError:
        return []


@pytest.mark.parametrize("layout_format", FORMATS)
@pytest.mark.parametrize("kind", ["link", "pipe", "loop", "device"])
def test_verify_names_links_and_special_files_at_every_level(
    tmp_path: Path, layout_format: str, kind: str
) -> None:
    dataset = build(tmp_path / "root", layout_format)
    folder = Path(dataset.url)
    assert verify_dataset(dataset).findings == []
    places = [folder / "extra", *(p / "extra" for p in folder.rglob("*") if p.is_dir())]
    for place in places:
        if kind == "pipe":
            os.mkfifo(place)
        else:
            place.symlink_to({"link": folder, "loop": "extra", "device": "/dev/zero"}[kind])
    report = verify_dataset(dataset)
    assert {f.path for f in report.findings} == set(map(str, places))
    assert report.damaged_units == [] and report.units == 4


@pytest.mark.parametrize("layout_format", FORMATS)
def test_a_pipe_in_any_files_place_is_never_waited_for(tmp_path: Path, layout_format: str) -> None:
    dataset = build(tmp_path / "root", layout_format)
    started = time.monotonic()
    keys = list(dataset.files.walk(""))
    for key in keys:
        path = Path(dataset.files.path(key))
        path.rename(tmp_path / "aside")
        for make in (os.mkfifo, to_device, to_itself):
            make(path)
            try:
                opened = Dataset.open(dataset.url)
                report = verify_dataset(opened)
                assert str(path) in [f.path for f in report.findings] or report.findings
                snapshot = opened.snapshot()
                for access in ("map", "pread"):
                    read_rows(snapshot, "emb", np.arange(2), access=access)
            except DataError as error:
                assert "emb" in str(error) or dataset.url in str(error)
            assert ls([str(tmp_path / "root")]) == 0
            path.unlink()
        (tmp_path / "aside").rename(path)
    assert verify_dataset(dataset).findings == []
    assert time.monotonic() - started < 20 + len(keys)


def test_one_broken_dataset_does_not_break_ls_and_gc_for_the_rest(tmp_path: Path, capsys) -> None:
    root = tmp_path / "root"
    good = build(root, "zarr")
    shutil.copytree(good.url, root / "odd-x")
    (root / "loop").symlink_to("loop")
    (root / "gone").symlink_to("/nowhere/at/all")
    (root / "file").write_text("x")
    (root / "odd-x" / "dataset.json").unlink()
    (root / "odd-x" / "dataset.json").symlink_to("dataset.json")
    assert ls([str(root)]) == 0
    out = capsys.readouterr().out
    assert Path(good.url).name in out and "whole" in out and "odd-x" in out
    assert collect.plan(str(root)) == []


def test_gc_leaves_a_dataset_that_is_a_link(tmp_path: Path) -> None:
    real = build(tmp_path / "elsewhere", "zarr")
    root = tmp_path / "root"
    root.mkdir()
    (root / Path(real.url).name).symlink_to(real.url)
    with pytest.raises(ConfigError, match="a link to somewhere else"):
        collect.plan(str(root), remove=["noise-test"])
    assert collect.collect(collect.plan(str(root), keep_latest=1)) == 0
    link = str(root / Path(real.url).name)
    assert collect.collect([collect.Garbage(link, "dataset", "planned before")]) == 0
    assert verify_dataset(real).findings == []


def test_encoding_into_a_dataset_with_a_linked_folder_says_what_to_do(tmp_path: Path) -> None:
    dataset = build(tmp_path / "root", "zarr")
    shutil.rmtree(Path(dataset.url) / "staging", ignore_errors=True)
    (Path(dataset.url) / "staging").symlink_to(tmp_path)
    with pytest.raises(LinkError, match=r"staging: got a link, allowed .*remove it"):
        fill(dataset, N)


def test_a_repair_says_which_links_stay(tmp_path: Path, capsys) -> None:
    dataset = build(tmp_path / "root", "zarr")
    (Path(dataset.url) / "extra").symlink_to(tmp_path)
    assert verify(["--repair", dataset.url]) == DAMAGED
    assert "1 of these no repair puts right" in capsys.readouterr().out
    assert verify_dataset(dataset).damaged_units == [] and dataset.missing(N).tolist() == []
