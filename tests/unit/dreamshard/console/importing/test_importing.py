from __future__ import annotations

import io
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest

import dreamshard
from dreamshard.console.api.dataset import FeatureDataset
from dreamshard.console.importing import command as importing
from dreamshard.console.importing.values import Tokens
from dreamshard.errors import ConfigError, DataError
from tests.unit.dreamshard.console.importing import folders
from tests.unit.dreamshard.console.importing.folders import DINO, KEYS, SAM, SIDE, packed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folders.make_folder(tmp_path / "theia")


def bring(folder: Path, *words: str) -> FeatureDataset:
    root = folder.parent / "data"
    assert importing.main([str(folder), "--root", str(root), "--name", "tiny", *words]) == 0
    return dreamshard.open_dataset(str(root / "tiny"))


def wide(values: np.ndarray) -> np.ndarray:
    """Return bfloat16's bits as float32."""
    if values.dtype == np.uint16:
        return (values.astype("<u4") << 16).view("<f4")
    return values.astype(np.float32)


def test_what_comes_in_is_what_was_there(folder: Path, capsys: pytest.CaptureFixture) -> None:
    found = bring(folder)
    assert "5 samples imported" in capsys.readouterr().out
    assert [sample.key for sample in found[:]] == KEYS
    assert found.recipe.content["image"] == {"size": [SIDE, SIDE], "range": "0..255"}  # train asks
    strides = {level.name: level.stride for level in found.levels}
    assert strides == {f"{DINO}.cls_token": 0, f"{DINO}.embedding": 14, f"{SAM}.embedding": 7}
    for number, sample in enumerate(found[:]):
        assert np.array_equal(sample.image, folders.image(number))
        for teacher, tensors in folders.features(number).items():
            for name, values in tensors.items():
                assert np.array_equal(sample.levels[f"{teacher}.{name}"], wide(values))


def test_a_second_time_nothing_is_made_and_a_lost_unit_is_made_again(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    bring(folder, "--samples_per_unit", "2")
    capsys.readouterr()
    found = bring(folder, "--samples_per_unit", "2")
    assert "already there" in capsys.readouterr().out
    level = f"{SAM}.embedding"
    before = [sample.levels[level] for sample in found[:]]
    found.invalidate(1, reason="test")
    again = bring(folder, "--samples_per_unit", "2")
    assert "2 samples imported" in capsys.readouterr().out
    assert np.array_equal(before, [sample.levels[level] for sample in again[:]])


def test_chosen_teachers_alone_without_images(folder: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--teachers", SAM, "--no_images", "--image_size", "56", "--shards", "*-000001-*"]
    found = bring(folder, *words)
    assert [sample.key for sample in found[:]] == [KEYS[4], KEYS[3]]
    assert [(level.name, level.stride) for level in found.levels] == [(f"{SAM}.embedding", 14)]
    told = capsys.readouterr().err
    for reason in ("not *-000001-*", "--teachers leaves out", "--no_images says", "splits.json"):
        assert reason in told


def test_tokens_become_cells_and_the_class_token_has_a_name(tmp_path: Path) -> None:
    tokens = np.arange(5 * 3, dtype=np.float32).reshape(5, 3)
    data = packed({"tokens": tokens})
    folders.write_tar(tmp_path / "vit" / "a.tar", [("k.safetensors", data)])
    found = bring(tmp_path / "vit", "--image_size", "32", "--prefix_tokens", "1")
    sample = found[0]
    assert sample.levels["vit.tokens.cls"].tolist() == [0.0, 1.0, 2.0]
    assert sample.levels["vit.tokens"][:, 0, 1].tolist() == tokens[2].tolist()
    assert {level.name: level.stride for level in found.levels} == {
        "vit.tokens": 16,
        "vit.tokens.cls": 0,
    }


def test_registers_and_grids() -> None:
    values = np.arange(10.0).reshape(10, 1)
    found = Tokens(prefix=4, grid=(2, 3)).split("t", values, where="x")
    assert list(found) == ["t", "t.cls", "t.register1", "t.register2", "t.register3"]
    assert found["t"].tolist() == [[[4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]
    for tokens in (Tokens(), Tokens(prefix=10), Tokens(grid=(3, 3))):
        with pytest.raises(DataError, match="--prefix_tokens 1"):
            tokens.split("t", values, where="x")


def test_packed_shards_and_grey_pictures(tmp_path: Path) -> None:
    grey = np.full((8, 8), 7, np.uint8)
    members = [
        ("a/k.one.safetensors", packed({"e": np.ones((2, 2, 2), np.float32)})),
        ("a/k.two-0.1.safetensors", packed({"e": np.ones(3, np.float32)})),
        ("a/k.image", folders.npy(np.asfortranarray(grey))),
    ]
    folders.write_tar(tmp_path / "x" / "p.tar", members)
    sample = bring(tmp_path / "x")[0]
    assert sample.key == "a/k" and sorted(sample.levels) == ["one.e", "two-0.1.e"]
    assert (sample.image == 7).all() and sample.image.shape == (8, 8, 3)


def write(folder: Path, members: list[tuple[str, bytes]], *, teacher: str = SAM) -> None:
    folders.write_tar(folder / teacher / "tiny_train-000001-train.tar", members)


def sam(key: str, values: np.ndarray, name: str = "embedding") -> tuple[str, bytes]:
    return f"{key}.{SAM}.safetensors", packed({name: values})


MAP = np.zeros((3, 4, 4), np.float16)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([sam(KEYS[3], MAP)], "lack 1 of the 5 samples, such as 'n04_28'"),
        ([sam(KEYS[3], MAP), sam(KEYS[4], MAP), sam("x", MAP)], "are alone with 1"),
        (
            [sam(KEYS[3], MAP), sam(KEYS[4], MAP[:, :2])],
            r"float16 \[3, 2, 4\], allowed",
        ),
        ([sam(KEYS[3], MAP), sam(KEYS[4], MAP.astype(np.float32))], "float32"),
        ([sam(KEYS[3], MAP), sam(KEYS[4], MAP, "other")], "got nothing|got float16"),
        ([sam(KEYS[3], MAP), sam(KEYS[0], MAP)], "n00_0' twice"),
        ([sam(KEYS[3], MAP), (f"{KEYS[4]}.{SAM}.safetensors", b"")], "safetensors, damaged"),
        ([sam(KEYS[3], MAP), sam(KEYS[4], np.full_like(MAP, np.nan))], "not finite|NaN|nan"),
        ([sam(KEYS[3], MAP), (f"{KEYS[4]}.{SAM}.safetensors", bytes(1 << 20))], "first sample"),
    ],
)
def test_samples_that_are_not_alike_are_refused(folder: Path, second, message: str) -> None:
    write(folder, second)
    with pytest.raises(DataError, match=message):
        bring(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teachers", "dinov3"], f"dinov3.*{DINO}"),
        (["--shards", "*-val.tar"], r"without features.*6 .*not \*-val.tar"),
        (["--no_images"], "image_size"),
        (["--image_size", "224"], "28x28, that of the images"),
        (["--image_size", "-3"], "one number"),
        (["--grid", "3x"], "one number, or two"),
        (["--prefix_tokens", "-1"], "0..1000"),
        (["--samples_per_unit", "-1"], "1 or more"),
    ],
)
def test_mistakes_are_named(folder: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".*", r"(.|\n)*")):
        bring(folder, *words)


def test_folders_without_features_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(ConfigError, match="without features"):
        bring(tmp_path / "x")
    with pytest.raises(ConfigError, match="a folder of tar files"):
        bring(tmp_path / "nowhere")


def header(text: bytes, body: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 7,
        (1 << 62).to_bytes(8, "little") + b"{}",
        header(
            b'{"e": {"dtype": "F32", "shape": [4611686018427387904, 8], "data_offsets": [0, 0]}}'
        ),
        header(b'{"e": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}', bytes(8)),
        header(b'{"e": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(9)),
        header(b'{"e": {"dtype": "F32", "shape": [2, 1, 1, 1], "data_offsets": [0, 8]}}', bytes(8)),
        header(b'{"e": {"dtype": "F32", "shape": [0, 1, 1], "data_offsets": [0, 0]}}'),
        header(b'{"e": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}', bytes(8)),
        header(b'{"../../e": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
        header(b'{"\\u0000": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
        header(b'{"e": {"dtype": "F32", "shape": [2, 3, 1], "data_offsets": [0, 24]}}', bytes(24)),
        header(b"{}"),
        header(b"[" * 5000),
        b"\x80\x04c__builtin__\neval\n",
    ],
)
def test_hostile_features_are_data_errors(tmp_path: Path, data: bytes) -> None:
    folders.write_tar(tmp_path / "evil" / "a.tar", [("k.t.safetensors", data)])
    with pytest.raises(DataError):
        bring(tmp_path / "evil", "--image_size", "32")
    assert {path.name for path in tmp_path.iterdir()} <= {"evil", "data"}


@pytest.mark.parametrize(
    "data",
    [
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        folders.npy(np.zeros((4, 4, 3), np.uint8)).replace(b"(4, 4, 3)", b"(9, 9, 9)"),
        folders.npy(np.zeros((4, 4, 3), np.uint8)).replace(b"|u1", b"|O8"),
        folders.npy(np.zeros((4, 4, 3), np.float32)),
        folders.npy(np.zeros((3, 4, 4, 3), np.uint8)),
        b"\x93NUMPY",
        b"",
        b"GIF89a",
    ],
)
def test_hostile_images_are_data_errors(tmp_path: Path, data: bytes) -> None:
    members = [("k.t.safetensors", packed({"e": np.zeros(2, np.float32)})), ("k.image", data)]
    folders.write_tar(tmp_path / "evil" / "a.tar", members)
    with pytest.raises(DataError):
        bring(tmp_path / "evil")


def test_archives_that_are_cut_or_full_of_holes_are_refused(folder: Path) -> None:
    path = folder / SAM / "tiny_train-000001-train.tar"
    whole = path.read_bytes()
    for cut in (whole[:700], whole[:512], b"x" * 2000, whole + b"x" * 512):
        path.write_bytes(cut)
        with pytest.raises(DataError):
            bring(folder)
    info = tarfile.TarInfo(f"{KEYS[3]}.{SAM}.safetensors")
    info.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,0"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO())
    with pytest.raises(DataError, match="holes|bytes"):
        bring(folder)


def test_names_lead_nowhere(tmp_path: Path) -> None:
    good = packed({"e": np.zeros(2, np.float32)})
    names = ["a/../../x.t.safetensors", "/etc/y.t.safetensors", "\x1b[31mz.t.safetensors"]
    folders.write_tar(tmp_path / "evil" / "a.tar", [(name, good) for name in names])
    found = bring(tmp_path / "evil", "--image_size", str(SIDE))
    assert 1 <= len(found) <= 3  # what is hidden is passed over, and told
    assert {path.name for path in tmp_path.iterdir()} == {"evil", "data"}


def test_shards_may_lie_in_a_store(folder: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/importing/theia", recursive=True)
    root = tmp_path / "from-store"
    words = ["memory://importing/theia", "--root", str(root), "--name", "tiny"]
    assert importing.main(words) == 0
    here, there = bring(folder), dreamshard.open_dataset(str(root / "tiny"))
    assert here.recipe.content_key == there.recipe.content_key
    level = f"{DINO}.embedding"
    assert np.array_equal(here[4].levels[level], there[4].levels[level])
    store.rm("/importing", recursive=True)
