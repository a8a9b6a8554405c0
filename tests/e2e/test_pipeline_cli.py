"""The commands as users type them: plan, encode, synthesize; nothing here starts Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dreamshard.console.cli import main
from dreamshard.errors import run_main

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ["--source.kind", "digits"]
NOISE = ["--teacher.kind", "noise", "--teacher.levels", "[s2,s4]", "--image.size", "16"]


def dreamshard(*words: str) -> int:
    return run_main(main, list(words))


def test_plan_prints_samples_shards_bytes_and_hours(tmp_path: Path, capsys) -> None:
    config = tmp_path / "encode.yaml"
    config.write_text(
        "teacher: {kind: noise, levels: [s2, s4], settings: {channels: 8}}\n"
        "image: {size: 16}\nsource: {kind: digits}\nsamples_per_unit: 256\n"
    )
    words = ["plan", "--config", str(config), "--root", str(tmp_path / "data"), "--rate", "100"]
    assert dreamshard(*words) == 0
    text = capsys.readouterr().out
    for line in (
        "samples   1,297",
        "shards    6 of 256 samples",
        "b8              1,024      1.33 MB",
        "all arrays      2,056      2.67 MB",
        "time      0.00 h at 100 img/s",
        f"dataset   {tmp_path}/data/features-",
    ):
        assert line in text
    assert list((tmp_path / "data").iterdir()) == []


def test_plan_tells_synthesize_from_encode(tmp_path: Path, capsys) -> None:
    config = tmp_path / "synthesize.yaml"
    config.write_text("teacher: {kind: noise, levels: [w]}\nsamples: 1000000\nmicro_batch: 64\n")
    assert dreamshard("plan", "--config", str(config), "--root", str(tmp_path / "data")) == 0
    assert "samples   1,0" in capsys.readouterr().out
    assert (
        dreamshard("plan", "encode", "--config", str(config), *DIGITS, "--root", str(tmp_path)) == 0
    )
    assert "samples   1,297" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["encode", "synthesize", "plan"])
def test_mistakes_are_told_together_and_exit_2(verb: str, tmp_path: Path, capsys) -> None:
    wrong = ["--sed", "3", "--micro_batch", "many", "--max_invalid_share", "7"]
    assert dreamshard(verb, *wrong) == 2
    text = capsys.readouterr().err
    assert "3 problems" in text and "Did you mean seed?" in text and "0..1" in text


def test_an_unwritable_root_and_a_wrong_level_exit_2(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    root = str(tmp_path / "file" / "data")
    words = [*NOISE, "--teacher.levels", "[up.7]", "--teacher.timesteps", "[1000]", "--root", root]
    assert dreamshard("encode", *words, *DIGITS) == 2
    text = capsys.readouterr().err
    assert "teacher.levels: got up.7, allowed b16" in text
    assert "teacher.timesteps: got 1000, allowed 0..999" in text
    assert f"root: got {root} (Not a directory)" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("script", ["encode", "synthesize"])
def test_scripts_run_by_path_from_anywhere_without_torch_or_ray(
    script: str, tmp_path: Path
) -> None:
    code = f"""
import runpy, sys
sys.argv = [{str(ROOT / "pipeline" / script)!r} + ".py", "--teacher.levels", "[nowhere]",
            "--teacher.kind", "noise", "--root", {str(tmp_path)!r}]
sys.path[0] = {str(ROOT / "pipeline")!r}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    print(stop.code, sys.path[0] == {str(ROOT)!r}, sorted({{"torch", "ray"}} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.strip() == "2 True []", result.stderr
    assert "teacher.levels: got nowhere" in result.stderr


def test_asking_again_does_not_even_import_ray(tmp_path: Path) -> None:
    from pipeline.images.source import ImageConfig, SourceConfig
    from pipeline.offline.actor import Job, ShardActor
    from pipeline.request.config import EncodeConfig
    from pipeline.request.lookup import create
    from pipeline.request.resolve import resolve
    from pipeline.teachers.base import TeacherConfig

    teacher = TeacherConfig(kind="noise", levels=["s2", "s4"])
    image = ImageConfig(size=16)
    root = str(tmp_path / "data")
    source = SourceConfig(kind="digits")
    config = EncodeConfig(
        root=root, teacher=teacher, source=source, image=image, samples=40, samples_per_unit=40
    )
    request = resolve(config.request())
    dataset = create(request)
    dataset.grow(request.plan.num_samples)
    job = Job(
        url=dataset.url, run_id="r", teacher=teacher, image_size=(16, 16), seed=0, fsync=False
    )
    actor = ShardActor(job, request.input)
    actor.load()
    actor.make(0, 40)
    words = [
        "encode",
        *NOISE,
        *DIGITS,
        "--root",
        root,
        "--samples",
        "40",
        "--samples_per_unit",
        "40",
    ]
    code = f"""
import sys
from dreamshard.console.cli import main
print(main({words!r}), sorted({{"torch", "ray"}} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert "already there: 40 samples (40 asked for), nothing to make" in result.stdout
    assert result.stdout.splitlines()[-1] == "0 []", result.stderr


def test_another_run_was_first_with_all_of_it(tmp_path: Path, monkeypatch, capsys) -> None:
    from pipeline import run as main_path

    words = [
        "encode",
        *NOISE,
        *DIGITS,
        "--root",
        str(tmp_path / "data"),
        "--run_dir",
        str(tmp_path / "run"),
    ]
    look_up = main_path.look_up

    def too_early(*args: object) -> None:
        assert look_up(*args) is None  # type: ignore[arg-type]

    def none_missing(*_: object, **__: object) -> list[int]:
        return []

    monkeypatch.setattr(main_path, "look_up", too_early)
    monkeypatch.setattr("storage.dataset.Dataset.missing", none_missing)
    assert dreamshard(*words, "--max_invalid_share", "1") == 0
    assert "another run was first" in capsys.readouterr().out


def test_plan_measures_when_asked(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("storage.fs.speed.SPEED_BYTES", 1 << 20)
    words = [*NOISE, "--teacher.settings", "{delay_s: 0.05}", "--root", str(tmp_path / "data")]
    assert dreamshard("plan", "encode", *words, *DIGITS, "--measure", "true", "--actors", "2") == 0
    text = capsys.readouterr().out
    rate = float(text.split(" h at ")[1].split(" img/s")[0].replace(",", ""))
    assert 300 < rate <= 2 * 32 / 0.05  # two actors of one batch of 32 per 50 ms
    assert "measured from here" in text and "memory " in text and "cost" not in text
    assert list((tmp_path / "data").iterdir()) == []
