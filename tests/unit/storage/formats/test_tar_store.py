"""Tar shards: deterministic, readable by everybody, safe against hostile ones."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from dreamshard.errors import DataError
from storage.batches.reader import BatchReader
from storage.dataset import Dataset
from storage.formats.tar_format import decode_png, encode_png, header, member_key
from storage.rows.pick import read_rows
from storage.verbs.verify import verify_dataset
from tests.feature_store import LEVELS, PINS, fill, make_batch, make_dataset, make_recipe

N = 20


def build(root: Path, **layout: object) -> Dataset:
    recipe = make_recipe(layout_format="tar")
    recipe.layout.update(layout)
    dataset = make_dataset(root, recipe=recipe)
    fill(dataset, N, invalid=(7,))
    return dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build(tmp_path_factory.mktemp("tar"))


def shards(dataset: Dataset) -> list[str]:
    return [dataset.files.path(f"shards/{unit:06d}.tar") for unit in range(4)]


def test_headers_are_those_of_tarfile(dataset: Dataset) -> None:
    with tarfile.open(shards(dataset)[0]) as shard:
        members = shard.getmembers()
    assert [m.name for m in members[:3]] == [
        "000000000-key%2F0.png",
        "000000000-key%2F0.label.npy",
        "000000000-key%2F0.mask.npy",
    ]
    for member in members:
        assert (member.mtime, member.uid, member.mode, member.type) == (0, 0, 0o644, b"0")
        info = tarfile.TarInfo(member.name)
        info.size = member.size
        assert header(member.name, member.size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_equal_samples_give_equal_shards(dataset: Dataset, tmp_path: Path) -> None:
    again = build(tmp_path)
    for first, second in zip(shards(dataset), shards(again), strict=True):
        assert Path(first).read_bytes() == Path(second).read_bytes()


def test_webdataset_reads_the_shards(dataset: Dataset) -> None:
    webdataset = pytest.importorskip("webdataset")
    found = list(webdataset.WebDataset(shards(dataset), shardshuffle=False).decode("rgb8"))
    batch = make_batch(0, N)
    assert batch.image is not None and batch.mask is not None and len(found) == N
    for index, sample in enumerate(found):
        about = sample["json"]
        assert (about["index"], about["key"]) == (index, f"key/{index}")
        assert unquote(sample["__key__"].partition("-")[2]) == about["key"]
        assert about["valid"] == (index != 7)
        if index != 7:
            wanted = batch.levels["up.1.t100"][index].astype(np.float16)
            assert np.array_equal(sample["up.1.t100.npy"], wanted)
            assert np.array_equal(sample["png"], batch.image[index])
            assert about["label"] == index % 7
        else:
            assert about["error"] == "truncated"


def test_hugging_face_datasets_reads_the_shards(dataset: Dataset, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(
        "webdataset", data_files={"train": shards(dataset)}, split="train", cache_dir=str(tmp_path)
    )
    assert len(found) == N
    row = found[3]
    wanted = make_batch(3, 1)
    assert np.array_equal(np.asarray(row["emb.npy"], np.float16), wanted.levels["emb"][0])
    assert row["json"]["key"] == "key/3"


def unlike(root: Path, *, labelled: bool = True) -> Dataset:
    """A dataset whose first samples have no label, and whose first error comes late."""
    dataset = Dataset.create(
        str(root),
        make_recipe(layout_format="tar"),
        levels=LEVELS,
        image_size=(4, 4),
        pins=PINS,
        labels=labelled,
        masks=False,
        fsync=False,
    )
    dataset.grow(N)
    for unit in dataset.missing(N).tolist():
        start = unit * dataset.samples_per_unit
        count = min(dataset.samples_per_unit, N - start)
        batch = make_batch(start, count, invalid=(17,))
        if batch.label is not None:
            batch.label[batch.index < 12] = -1
        label = batch.label if labelled else None
        batch = dataclasses.replace(batch, label=label, mask=None)
        with dataset.unit_writer(unit, count=count, run_id="run") as writer:
            writer.write(0, batch)
            writer.commit()
    dataset.roll_up(final=True)
    return dataset


@pytest.mark.parametrize("labelled", [True, False])
def test_every_sample_has_the_fields_of_the_first(tmp_path: Path, labelled: bool) -> None:
    """Hugging Face's builder takes its columns and their types from the first samples."""
    dataset = unlike(tmp_path / "d", labelled=labelled)
    assert not verify_dataset(dataset).findings
    kinds = set()
    for path in shards(dataset):
        with tarfile.open(path) as shard:
            for member in shard.getmembers():
                if member.name.endswith(".json"):
                    file = shard.extractfile(member)
                    assert file is not None
                    about = json.load(file)
                    kinds.add(tuple((name, type(value)) for name, value in about.items()))
    assert len(kinds) == 1, kinds
    datasets = pytest.importorskip("datasets")
    files = {"train": shards(dataset)}
    found = datasets.load_dataset(
        "webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    labels = [row["label"] for row in found["json"]]
    assert labels == ([-1] * 12 + [n % 7 for n in range(12, N)] if labelled else [None] * N)
    assert found[17]["json"]["error"] == "truncated" and found[3]["json"]["error"] == ""


def test_shards_of_the_first_version_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wrote null for no label, and no error where there was none."""
    from storage.formats import tar_unit
    from storage.formats.tar_format import older_json_member

    with monkeypatch.context() as before:
        before.setattr(tar_unit, "json_member", older_json_member)
        dataset = unlike(tmp_path)
    assert not verify_dataset(dataset).findings
    path = Path(shards(dataset)[0])
    data = path.read_bytes()
    assert b'"label":null' in data
    path.write_bytes(data.replace(b'"label":null', b'"label":1234', 1))
    assert verify_dataset(dataset).findings


@pytest.mark.parametrize("images", ["png", "npy"])
def test_images_are_kept_by_choice(tmp_path: Path, images: str) -> None:
    dataset = build(tmp_path, images=images)
    wanted = make_batch(0, N).image
    assert wanted is not None
    rows = read_rows(dataset.snapshot(), "image", [3, 0, 19])
    assert np.array_equal(rows, wanted[[3, 0, 19]])
    with tarfile.open(shards(dataset)[0]) as shard:
        name = shard.getnames()[0]
        member = shard.extractfile(name)
        assert member is not None
        data = member.read()
    assert name.endswith(".png" if images == "png" else ".image.npy")
    if images == "png":
        image = pytest.importorskip("PIL.Image").open(io.BytesIO(data))
        assert np.array_equal(np.asarray(image), wanted[0])
    else:
        assert np.array_equal(np.load(io.BytesIO(data)), wanted[0])


@pytest.mark.parametrize("access", ["map", "pread"])
@pytest.mark.parametrize("max_open", [1, 64])
def test_shards_come_and_go_in_a_bounded_set(dataset: Dataset, access, max_open: int) -> None:
    wanted, levels = make_batch(0, N), ["emb", "top"]
    settings = {"batch_size": 5, "access": access, "max_open": max_open}
    with BatchReader(dataset.snapshot(), levels=levels, **settings) as reader:
        for _ in range(8):
            batch = reader.next()
            assert batch.image is not None and wanted.image is not None
            assert np.array_equal(batch.levels["emb"], wanted.levels["emb"][batch.index])
            assert np.array_equal(batch.levels["top"], wanted.levels["top"][batch.index])
            assert np.array_equal(batch.image, wanted.image[batch.index])


def test_keys_cannot_leave_their_place() -> None:
    for key in ("../../etc/passwd", "/abs", "a.b.c", "x y", "é", "", "n" * 200):
        name = member_key(12, key, room=60)
        assert name.startswith("000000012") and len(name) <= 60
        assert not set(name) & set("./ \\")
        if len(name) > 9:
            assert unquote(name[10:]) == key


def test_png_of_any_image_comes_back() -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 3), (7, 5, 3), (32, 32, 3)):
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        assert np.array_equal(decode_png(encode_png(image), shape, where="x"), image)
        with pytest.raises(DataError, match="x: got a damaged image"):
            decode_png(encode_png(image), (shape[0] + 1, *shape[1:]), where="x")
        with pytest.raises(DataError, match="damaged image"):
            decode_png(encode_png(image)[:-20], shape, where="x")


def hostile(kind: str, path: Path) -> None:
    """Replace a shard by one with a hostile member in front."""
    data = path.read_bytes()
    info = tarfile.TarInfo({"up": "../../evil.npy", "abs": "/tmp/evil.npy"}.get(kind, "e.npy"))
    payload = io.BytesIO()
    if kind == "object":
        np.save(payload, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    info.size = len(payload.getvalue())
    if kind == "link":
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    front = info.tobuf(tarfile.USTAR_FORMAT) + payload.getvalue()
    front += b"\0" * (-len(front) % 512)
    if kind == "huge":
        front = front[:124] + b"77777777777\0" + front[136:]
    path.write_bytes(front + data[len(front) :])


@pytest.mark.parametrize("kind", ["up", "abs", "link", "huge", "object"])
def test_hostile_members_are_found_and_never_followed(tmp_path: Path, kind: str) -> None:
    dataset = build(tmp_path)
    path = Path(shards(dataset)[1])
    hostile(kind, path)
    findings = verify_dataset(dataset).findings
    assert [(f.unit, f.path) for f in findings] == [(1, str(path))]
    assert "header" in findings[0].problem
    rows = read_rows(dataset.snapshot(), "emb", [11])  # names are not looked at when reading
    assert np.array_equal(rows, make_batch(11, 1).levels["emb"])
    assert not list(tmp_path.rglob("evil*")) and not Path("/tmp/evil.npy").exists()


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    dataset = build(tmp_path)
    shard, index = Path(shards(dataset)[3]), Path(dataset.files.path("shards/000003.idx"))
    rng = np.random.default_rng(0)
    for path in (shard, index):
        good = path.read_bytes()
        for place in rng.integers(0, len(good), 150).tolist():
            bad = bytearray(good)
            bad[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(bad)
            found = verify_dataset(dataset).findings
            assert [finding.unit for finding in found] == [3], (path, place)
        path.write_bytes(good)
    assert verify_dataset(dataset).findings == []


@pytest.mark.parametrize("change", ["short", "offsets", "object", "shape", "sizes", "gone"])
def test_a_hostile_index_is_refused(tmp_path: Path, change: str) -> None:
    dataset = build(tmp_path)
    path = Path(dataset.files.path("shards/000000.idx"))
    table = np.load(path)
    if change == "short":
        path.write_bytes(path.read_bytes()[:-8])
    elif change == "gone":
        path.unlink()
    else:
        table[0] += 1 << 40 if change == "offsets" else 0
        table[1, 1] -= 1 if change == "sizes" else 0
        wrong = {"object": np.array([{}], object), "shape": table[:, :2]}
        np.save(path.open("wb"), wrong.get(change, table), allow_pickle=True)
    with pytest.raises(DataError, match=r"shards/000000") as caught:
        read_rows(dataset.snapshot(), "label", [0])
    assert "verify --repair" in str(caught.value)
    assert [finding.unit for finding in verify_dataset(dataset).findings] == [0]


def test_other_tools_are_told_what_there_is(dataset: Dataset) -> None:
    about = json.loads(Path(dataset.files.path("shards/index.json")).read_text())
    assert (about["num_samples"], about["url"]) == (N, "{000000..000003}.tar")
    assert about["members"][0] == ".png" and about["members"][-1] == ".json"
