"""Half-written files of dead processes are swept; those of living ones stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dreamshard.errors import ConfigError
from dreamshard.owner.parts import OTHER_HOST_S, part_of, put_in_place, sweep
from dreamshard.owner.processes import host_id

DEAD = f"{host_id()}-999999999-1"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_part_is_this_process_s_and_no_other_call_s(tmp_path: Path) -> None:
    one, two = part_of(tmp_path / "a.json"), part_of(tmp_path / "a.json")
    assert one != two and one.parent == tmp_path and one.name.startswith(".a.json.")
    one.write_text("half"), two.write_text("half")
    assert part_of(tmp_path / "a.json") not in (one, two)
    assert names(tmp_path) == sorted([one.name, two.name])


def test_whoever_writes_a_file_next_sweeps_what_the_dead_left_of_it(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from dreamshard.owner.parts import part_of;"
        "part_of(Path(sys.argv[1])).write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], check=False)
    other = f".b.json.{DEAD}~0.partial"
    (tmp_path / other).write_text("of another file")
    (tmp_path / f".a.json.{os.getpid()}.partial").write_text("by a version before, alive")
    (tmp_path / ".a.json.999999999.partial").write_text("by a version before")
    (tmp_path / ".a.json.999999999.0123abcd.partial").write_text("by a version before")
    assert len(names(tmp_path)) == 5
    part_of(tmp_path / "a.json")
    assert names(tmp_path) == sorted([other, f".a.json.{os.getpid()}.partial"])


def test_a_run_that_starts_sweeps_its_folder(tmp_path: Path) -> None:
    mine = part_of(tmp_path / "a")
    mine.write_text("being written")
    (tmp_path / ".checkpoint-000002.partial").mkdir()
    (tmp_path / ".checkpoint-000002.partial" / "model").write_text("half")
    (tmp_path / f".student.{DEAD}~1.partial").mkdir()
    (tmp_path / ".hidden").write_text("a user's")
    (tmp_path / "x.partial").write_text("a user's")
    sweep(tmp_path)
    assert names(tmp_path) == sorted([".hidden", "x.partial", mine.name])
    sweep(tmp_path / "nowhere")


def test_of_another_host_only_old_ones_are_stale(tmp_path: Path) -> None:
    path = tmp_path / ".a.0123456789ab-1-1~0.partial"
    path.write_text("half")
    sweep(tmp_path)
    assert path.exists()
    old = path.stat().st_mtime - OTHER_HOST_S - 1
    os.utime(path, (old, old))
    sweep(tmp_path)
    assert not path.exists()


def test_of_a_link_only_the_link_is_removed(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "photo").write_text("x")
    (tmp_path / f".a.{DEAD}~0.partial").symlink_to(tmp_path / "victim")
    sweep(tmp_path)
    assert names(tmp_path) == ["victim"] and (tmp_path / "victim" / "photo").exists()


def test_a_folder_made_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """Of two commands that write one folder, the second finds out when it is done."""
    part, out = tmp_path / "part", tmp_path / "out"
    for folder in (part, out):
        folder.mkdir()
        (folder / folder.name).touch()
    with pytest.raises(ConfigError, match="out: got .*/out, made meanwhile, allowed a folder"):
        put_in_place(part, out)
    assert [path.name for path in out.iterdir()] == ["out"]
    with pytest.raises(ConfigError, match=r"No such file.*allowed a folder that can be written"):
        put_in_place(part, tmp_path / "none" / "out")
    put_in_place(part, tmp_path / "new")
    assert (tmp_path / "new" / "part").exists()
