"""Tar files as others write them: read exactly, or refused with the place that is wrong."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamshard.errors import ConfigError, DataError
from pipeline.images.prepare import decode
from pipeline.images.source import ImageSource, SourceConfig, fingerprint, open_source
from tests.unit.pipeline.images.sources_tools import encoded, link, write_tar


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(path: Path, **settings: str) -> ImageSource:
    return open_source(SourceConfig(kind="webdataset", path=str(path), **settings))  # type: ignore[arg-type]


def seen(source: ImageSource) -> list[tuple[str, int, int]]:
    records = source.read(range(len(source)))
    return [(r.key, int(np.asarray(decode(r.data))[0, 0, 0]), r.label) for r in records]


def test_names_that_restart_in_every_file_stay_samples_of_their_own(tmp_path: Path) -> None:
    for number in range(4):
        members = [("image.png", encoded(10 * number)), ("image.cls", b"%d" % number)]
        write_tar(tmp_path / "s" / f"{number}.tar", members)
    expected = [(f"{number}/image", 10 * number, number) for number in range(4)]
    assert seen(opened(tmp_path / "s")) == expected
    assert seen(opened(tmp_path / "s")) == expected  # from the kept index


def test_members_that_are_not_adjacent_are_one_sample(tmp_path: Path) -> None:
    members = [("a.png", encoded(1)), ("b.png", encoded(2)), ("a.cls", b"1"), ("b.cls", b"2")]
    assert seen(opened(write_tar(tmp_path / "t.tar", members))) == [("a", 1, 1), ("b", 2, 2)]


def test_a_name_that_stands_twice_is_refused_with_its_offset(tmp_path: Path) -> None:
    members = [("a.png", encoded(1)), ("a.cls", b"1"), ("a.png", encoded(2)), ("a.cls", b"2")]
    with pytest.raises(DataError, match=r"t.tar: got member 'a.png' twice, at offset \d+"):
        opened(write_tar(tmp_path / "t.tar", members))


def test_links_are_followed_inside_the_archive(tmp_path: Path) -> None:
    members = [
        ("d/a.png", encoded(7)),
        link("b.png", "d/a.png", hard=True),
        link("d/c.png", "a.png"),
        link("e.png", "/etc/hostname"),
        link("x.png", "y.png"),
        link("y.png", "x.png"),
    ]
    source = opened(write_tar(tmp_path / "t.tar", members))
    assert sorted(seen(source)) == [("b", 7, -1), ("d/a", 7, -1), ("d/c", 7, -1)]
    assert source.passed.counts == {"links to nothing inside the archive": 3}  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_sparse_members_are_read_as_tarfile_does(form: str, tmp_path: Path) -> None:
    pixels = np.zeros((300, 300, 3), np.uint8)
    pixels[:3] = 9
    pixels[-2:] = 200
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    with open(tmp_path / "a.bmp", "wb") as file:  # with a hole where the zeros are
        file.write(buffer.getvalue()[:4096])
        file.seek(len(buffer.getvalue()) - 4096)
        file.write(buffer.getvalue()[-4096:])
    command = ["tar", "-S", f"--format={form}", "-cf", "t.tar", "a.bmp"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with tarfile.open(tmp_path / "t.tar") as archive:
        (member,) = archive.getmembers()
        unpacked = archive.extractfile(member)
        assert member.issparse() and unpacked is not None
        expected = unpacked.read()
    source = open_source(SourceConfig(path=str(tmp_path / "t.tar")))
    assert source.read([0])[0].data == expected == (tmp_path / "a.bmp").read_bytes()


def whole(tmp_path: Path) -> bytes:
    members = [(f"{number}.png", encoded(number)) for number in range(5)]
    return write_tar(tmp_path / "whole.tar", members).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:2148], "end-of-archive mark"),
        (lambda data: data[:1024] + b"\xff" * 512 + data[1536:], "damaged header at offset 1024"),
        (lambda data: data[: 512 + 40], "beyond the file's end"),
        (lambda data: data.rstrip(b"\0"), "end"),
        (lambda data: data + data, "bytes behind the end-of-archive mark"),
        (lambda data: b"\x1f\x8b" + data[2:], "not readable as a tar archive"),
    ],
)
def test_what_a_lenient_reader_takes_for_the_end_is_an_error(
    change, message: str, tmp_path: Path
) -> None:
    (tmp_path / "t.tar").write_bytes(change(whole(tmp_path)))
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "t.tar")


def test_dots_in_names_follow_the_rule_and_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = [("img_0.5_a.png", encoded(1)), ("plain.png", encoded(2)), ("n.v2.png", encoded(3))]
    assert seen(opened(write_tar(tmp_path / "t.tar", members))) == [("plain", 2, -1)]
    assert "passed over 2 images whose name has further dots" in caplog.text
    inputs = write_tar(tmp_path / "i.tar", [("x0.input.jpg", encoded(4, kind="JPEG"))])
    with pytest.raises(DataError, match="further dots"):
        opened(inputs)
    assert [key for key, *_ in seen(opened(inputs, image_column="input"))] == ["x0"]


def test_texts_are_classes_and_labels_can_be_left_out(tmp_path: Path) -> None:
    members = [("a.png", encoded(1)), ("a.cls", b"dog\n"), ("b.png", encoded(2)), ("b.cls", b"cat")]
    source = opened(write_tar(tmp_path / "t.tar", members))
    assert [label for *_, label in seen(source)] == [1, 0]
    assert source.labels.classes == ("cat", "dog")  # type: ignore[attr-defined]
    assert not opened(tmp_path / "t.tar", label_column="").has_labels
    mixed = [("a.png", encoded(1)), ("a.cls", b"--3"), ("b.png", encoded(2)), ("b.cls", b"4")]
    records = opened(write_tar(tmp_path / "m.tar", mixed)).read([0, 1])
    assert "no number" in records[0].error and (records[1].label, records[1].error) == (4, "")


def test_other_labels_are_another_fingerprint_but_the_same_images(tmp_path: Path) -> None:
    prints = []
    for label in (b"1", b"2"):
        write_tar(tmp_path / "t.tar", [("a.png", encoded(1)), ("a.cls", label)])
        prints.append(fingerprint(opened(tmp_path / "t.tar")))
    assert prints[0]["digest"] == prints[1]["digest"] and prints[0] != prints[1]


def test_images_of_the_same_size_under_the_same_names_are_told_apart(tmp_path: Path) -> None:
    prints = []
    for value in (1, 2):
        write_tar(tmp_path / "t.tar", [("a.bmp", encoded(value, kind="BMP", size=64))])
        prints.append(fingerprint(opened(tmp_path / "t.tar")))
    assert prints[0] != prints[1]


@pytest.mark.parametrize("size", [7 * 512, 7 * 512 + 9])
def test_a_change_in_the_last_block_is_another_fingerprint(tmp_path: Path, size: int) -> None:
    prints = []
    for last in (b"x", b"y"):
        data = bytes(size - 1) + last
        write_tar(tmp_path / "t.tar", [("a.png", data), ("b.png", encoded(1))])
        prints.append(fingerprint(opened(tmp_path / "t.tar")))
    assert prints[0] != prints[1]


def test_a_file_that_shrank_since_the_listing_is_a_storage_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("a.png", encoded(1))])
    source = opened(path)
    path.write_bytes(path.read_bytes()[:540])
    with pytest.raises(OSError, match="shorter than it was"):
        source.read([0])


def test_hidden_members_are_counted(tmp_path: Path) -> None:
    members = [("._a.png", b"\0\5"), ("__MACOSX/b.png", b"x"), ("c.png", encoded(1))]
    source = opened(write_tar(tmp_path / "t.tar", members))
    assert len(source) == 1
    assert source.passed.counts == {"hidden files or folders": 2}  # type: ignore[attr-defined]
    assert io.BytesIO(source.read([0])[0].data).read(4) == b"\x89PNG"  # type: ignore[arg-type]


def test_names_with_a_step_that_leads_nowhere_are_the_plain_ones(tmp_path: Path) -> None:
    """`tar -cf t.tar .` writes ./a.png, which is not hidden."""
    members = [("./a.png", encoded(1)), ("./a.cls", b"3"), ("./d/./b.png", encoded(2))]
    hidden = [("./.c.png", encoded(3)), ("../e.png", encoded(4))]
    source = opened(write_tar(tmp_path / "t.tar", members + hidden))
    assert seen(source) == [("a", 1, 3), ("d/b", 2, -1), ("../e", 4, -1)]
    assert source.passed.lines() == ["1 hidden files or folders, such as '.c.png'"]  # type: ignore[attr-defined]
    twice = [("./a.png", encoded(1)), ("a.png", encoded(2))]
    with pytest.raises(DataError, match=r"member 'a.png' twice"):
        opened(write_tar(tmp_path / "u.tar", twice))


def test_labels_are_found_whatever_their_case_and_what_is_not_read_is_counted(
    tmp_path: Path,
) -> None:
    members = [
        ("a.png", encoded(1)),
        ("a.CLS", b"\xef\xbb\xbf10\r\n"),  # as a Windows editor writes it
        ("a.cls", b"4"),
        ("a.json", b"{}"),
        ("b.png", encoded(2)),
        ("b.cls.txt", b"5"),
    ]
    source = opened(write_tar(tmp_path / "t.tar", members))
    assert seen(source) == [("a", 1, 10), ("b", 2, -1)]
    assert source.passed.counts == {  # type: ignore[attr-defined]
        "further labels of one sample": 1,
        "members beside images that are not read (labels are `.cls`)": 2,
    }


def test_a_packed_archive_is_named_with_what_unpacks_it(tmp_path: Path) -> None:
    data = write_tar(tmp_path / "t.tar", [("BZh.png", encoded(1))]).read_bytes()
    assert seen(opened(tmp_path / "t.tar"))[0][0] == "BZh"
    (tmp_path / "p.tar").write_bytes(gzip.compress(data))
    with pytest.raises(DataError, match=r"it is packed.*Unpack it with gzip -d"):
        opened(tmp_path / "p.tar")


def test_a_name_that_no_member_has_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("a.png", encoded(1)), ("a.cls", b"1")])
    with pytest.raises(ConfigError, match=r"source.mask_column: got segm, not in .*t.tar"):
        opened(path, mask_column="segm")
    with pytest.raises(ConfigError, match=r"source.label_column: got lbl, allowed label, or ''"):
        opened(path, label_column="lbl")
