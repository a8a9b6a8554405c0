"""What run folders tell when they are read back."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from dreamshard.console.report.runs import find_runs, folder_tree, format_bytes, read_run


def make(folder: Path, command: str = "dreamshard train --run_dir x") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "command.txt").write_text(f"# 2026-01-01 00:00:00\n{command}\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("command", "verb"),
    [
        ("dreamshard pretrain --config a.yaml", "pretrain"),
        ("/home/me/.venv/bin/dreamshard encode --root train", "encode"),
        ("pipeline/synthesize.py --name evaluate", "synthesize"),
        ("/repo/distill/train.py", "train"),
        ("python -m something", ""),
    ],
)
def test_verb_is_read_from_the_command(command: str, verb: str, tmp_path: Path) -> None:
    run = read_run(make(tmp_path, command))
    assert run is not None
    assert run.verb == verb


def test_last_command_of_a_resumed_run_counts(tmp_path: Path) -> None:
    make(tmp_path, "dreamshard train --steps 5\n# later\ndreamshard train --steps 9")
    run = read_run(tmp_path)
    assert run is not None
    assert run.commands == ("dreamshard train --steps 5", "dreamshard train --steps 9")


def test_curves_survive_torn_lines_other_values_and_repeated_steps(tmp_path: Path) -> None:
    lines = [
        json.dumps({"step": 1, "loss": 3.0}),
        json.dumps({"step": 2, "loss": 2.0}),
        json.dumps({"step": 2, "loss": 1.5}),
        json.dumps({"step": 3, "loss": "nan"}),
        json.dumps({"unit": 7}),
        json.dumps([1, 2]),
        '{"step": 4, "lo',
    ]
    (make(tmp_path) / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    run = read_run(tmp_path)
    assert run is not None
    assert run.curve("loss") == [(1.0, 3.0), (2.0, 1.5)]


def test_damaged_records_read_as_empty(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "stats.json").write_text("{", encoding="utf-8")
    (tmp_path / "environment.json").write_text("[]", encoding="utf-8")
    (tmp_path / "config.resolved.yaml").write_text("a: [", encoding="utf-8")
    run = read_run(tmp_path)
    assert run is not None
    assert (run.stats, run.environment, run.settings()) == ({}, {}, {})


def test_runs_are_found_two_folders_down(tmp_path: Path) -> None:
    for place in (".", "a", "a/b", "a/b/c"):
        make(tmp_path / place)
    found = [run.path.relative_to(tmp_path) for run in find_runs(tmp_path)]
    assert found == [Path("."), Path("a"), Path("a/b")]
    assert find_runs(tmp_path / "a" / "b" / "c" / "d") == []


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (123_456, "123 kB"), (2_600_000_000, "2.6 GB")],
)
def test_bytes_are_written_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_tree_shows_sizes_folders_first_numbers_in_order_and_cuts_long_lists(
    tmp_path: Path,
) -> None:
    root = tmp_path / "demo"
    (root / "shards").mkdir(parents=True)
    for number in (10, 2, 1, 30, 4):
        (root / "shards" / f"{number}.bin").write_bytes(bytes(100))
    (root / "shards" / "about.txt").write_bytes(bytes(7))
    (root / "a.txt").write_bytes(bytes(7))
    (root / ".hidden").write_bytes(bytes(1000))
    (root / "link").symlink_to(root / "a.txt")
    expected = [
        ("demo/", "1.5 kB"),
        ("├── shards/", "507 B"),
        ("│   ├── 1.bin", "100 B"),
        ("│   ├── 2.bin", "100 B"),
        ("│   ├── … 3 more", "300 B"),
        ("│   └── about.txt", "7 B"),
        ("├── a.txt", "7 B"),
        ("└── link", "0 B"),
    ]
    lines = folder_tree(root, max_alike=3).splitlines()
    assert [(line[:20].rstrip(), line[20:].strip()) for line in lines] == expected
    short = folder_tree(root, max_entries=2, max_alike=9).splitlines()
    assert [line[:20].rstrip() for line in short][2:] == [
        "│   ├── 1.bin",
        "│   └── … 5 more",
        "└── … 2 more",
    ]


def test_tree_stops_at_its_depth(tmp_path: Path) -> None:
    for name in ("a/b/c", "a/x"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    (tmp_path / "a" / "b" / "other").touch()
    assert "b/" in folder_tree(tmp_path, depth=2)
    assert "c/" not in folder_tree(tmp_path, depth=2)


def test_a_tree_deeper_than_paths_are_long_is_an_error_of_the_system(tmp_path: Path) -> None:
    make(tmp_path / "deep")
    at = os.open(tmp_path / "deep", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=at)
        inside = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inside
    os.close(at)
    try:
        with pytest.raises(OSError, match="long"):
            folder_tree(tmp_path / "deep")
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "deep")], check=True)


def test_folders_that_hold_one_thing_share_its_line(tmp_path: Path) -> None:
    for unit in (0, 1):
        (tmp_path / "level" / "c" / str(unit) / "0").mkdir(parents=True)
        (tmp_path / "level" / "c" / str(unit) / "0" / "0").write_bytes(bytes(5))
    names = [line.rsplit("  ", 1)[0].rstrip() for line in folder_tree(tmp_path).splitlines()]
    assert names[1:] == ["└── level/c/", "    ├── 0/0/0", "    └── 1/0/0"]
