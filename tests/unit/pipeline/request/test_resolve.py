"""A config is understood, or all that is wrong with it is said at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dreamshard.config import load_config
from dreamshard.errors import ConfigError
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.request import paths
from pipeline.request.config import EncodeConfig, PipelineConfig, SynthesizeConfig
from pipeline.request.lookup import check_pins, create, look_up
from pipeline.request.resolve import resolve
from pipeline.teachers.base import TeacherConfig


def config(tmp_path: Path, **changes: object) -> EncodeConfig:
    values: dict[str, object] = {
        "root": str(tmp_path / "data"),
        "teacher": TeacherConfig(kind="noise", levels=["s2", "s4"], timesteps=[7]),
        "image": ImageConfig(size=16),
        "source": SourceConfig(kind="digits"),
        **changes,
    }
    return EncodeConfig(**values)  # pyright: ignore[reportArgumentType]


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wrong = config(
        tmp_path,
        root=str(tmp_path / "file" / "data"),
        teacher=TeacherConfig(kind="noise", levels=["s2", "up.9"], timesteps=[1200]),
        source=SourceConfig(kind="folder", path=str(tmp_path / "nowhere")),
    )
    with pytest.raises(ConfigError) as error:
        resolve(wrong.request())
    text = str(error.value)
    for line in (
        "4 problems",
        "teacher.timesteps: got 1200, allowed 0..999. Try --teacher.timesteps [50].",
        "teacher.levels: got up.9, allowed b16, b8, b4, b2, b1, w; aliases s1, s2, s4, s8, s16.",
        "source.path: got",
        "root: got",
    ):
        assert line in text
    assert error.value.exit_code == 2


def test_the_recipe_names_what_decides_bytes_and_nothing_else(tmp_path: Path) -> None:
    base = resolve(config(tmp_path).request()).recipe

    def changed(**changes: object) -> tuple[bool, bool]:
        other = resolve(config(tmp_path, **changes).request()).recipe
        return other.content_key != base.content_key, other.layout_key != base.layout_key

    neither = (False, False)
    assert changed(actors=7, samples=32, name="other", fsync=False) == neither
    assert changed(root=str(tmp_path / "elsewhere"), threads_per_actor=3) == neither
    assert changed(max_attempts=9, max_invalid_share=0.5, micro_batch=16)[0] is False
    assert changed(seed=1) == (True, False)
    assert changed(source=SourceConfig(kind="digits", split="heldout")) == (True, False)
    assert changed(image=ImageConfig(size=16, views=2)) == (True, False)
    assert changed(samples_per_unit=100) == (False, True)
    fewer = TeacherConfig(kind="noise", levels=["s2"], timesteps=[7])
    assert changed(teacher=fewer) == (True, True)
    slower = TeacherConfig(
        kind="noise", levels=["s2", "s4"], timesteps=[7], settings={"delay_s": 1.0}
    )
    assert changed(teacher=slower) == neither


def test_unit_size_is_the_same_for_any_number_of_samples(tmp_path: Path) -> None:
    plans = [resolve(config(tmp_path, samples=count).request()).plan for count in (1, 100, None)]
    assert len({plan.samples_per_unit for plan in plans}) == 1


def test_too_many_samples_are_all_there_are(tmp_path: Path, caplog) -> None:
    request = resolve(config(tmp_path, samples=5000).request())
    assert request.wanted == request.plan.num_samples == 1297
    assert "samples: got 5000, the source has 1297" in caplog.text


def test_contradictions() -> None:
    keys = [problem.key for problem in EncodeConfig(device="cuda").problems()]
    keys += [problem.key for problem in EncodeConfig(device="cpu", gpus_per_actor=1).problems()]
    keys += [problem.key for problem in SynthesizeConfig(samples=None).problems()]
    assert keys == ["gpus_per_actor", "gpus_per_actor", "samples"]
    assert TeacherConfig(levels=[]).problems()[0].key == "levels"
    assert TeacherConfig(levels=["a", "a"]).problems()[0].key == "levels"


def test_the_catalog_is_asked_first(tmp_path: Path) -> None:
    wanted = config(tmp_path, samples_per_unit=32, fsync=False)
    request = resolve(wanted.request())
    assert look_up(request) is None
    dataset = create(request)
    found = look_up(request)
    assert found is not None and not found.complete and found.dataset.url == dataset.url
    # One with fewer levels is not a place to add to: it would make levels nobody asked for.
    fewer = TeacherConfig(kind="noise", levels=["s2"], timesteps=[7])
    assert look_up(resolve(dataclasses.replace(wanted, teacher=fewer).request())) is None


def test_pins_of_the_dataset_stay(tmp_path: Path, caplog) -> None:
    wanted = config(tmp_path, fsync=False)
    dataset = create(resolve(wanted.request()))
    check_pins(resolve(wanted.request()), dataset, num_gpus=0)
    assert not caplog.text
    other = dataclasses.replace(wanted, micro_batch=8, threads_per_actor=2)
    found = look_up(resolve(other.request()))
    assert found is not None and found.dataset.pins.micro_batch == 32
    check_pins(resolve(other.request()), found.dataset, num_gpus=0)
    assert "keeps what it was begun with" in caplog.text
    gpu = config(tmp_path, root=str(tmp_path / "gpu"), gpus_per_actor=0.5, fsync=False)
    begun = create(resolve(gpu.request()))
    assert begun.pins.device == "cuda"
    with pytest.raises(ConfigError, match="gpus_per_actor: got 0, allowed more than 0"):
        check_pins(resolve(gpu.request()), begun, num_gpus=0)


def test_a_source_that_grew_extends_its_dataset(tmp_path: Path) -> None:
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    for number in range(6):
        Image.new("L", (16, 16), number).save(images / f"{number}.png")
    source = SourceConfig(kind="folder", path=str(images))
    wanted = config(tmp_path, source=source, samples_per_unit=4, fsync=False)
    dataset = create(resolve(wanted.request()))
    Image.new("L", (16, 16), 9).save(images / "9.png")
    found = look_up(resolve(wanted.request()))
    assert found is not None and found.dataset.url == dataset.url
    assert "the source grew" in found.reason
    (images / "0.png").unlink()
    assert look_up(resolve(wanted.request())) is None


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teachers").mkdir()
    teacher = TeacherConfig(path="teachers")
    settled = PipelineConfig(root="data", teacher=teacher, name="x").settled()
    assert settled.root == str(tmp_path / "data")
    assert settled.run_dir == str(tmp_path / "runs" / "x")
    assert settled.teacher.path == str(tmp_path / "teachers")
    remote = PipelineConfig(root="s3://b/data", teacher=TeacherConfig(path="org/id")).settled()
    assert remote.root == "s3://b/data" and remote.teacher.path == "org/id"


def test_a_ray_job_does_not_leave_results_in_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "_ray_pkg_0123"
    (copy / "teachers").mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DREAMSHARD_HOME", str(tmp_path / "home"))
    wanted = PipelineConfig(root="data", teacher=TeacherConfig(path="teachers"))
    settled = wanted.settled()
    assert settled.root == str(tmp_path / "home" / "data")
    assert settled.teacher.path == str(copy / "teachers")
    monkeypatch.delenv("DREAMSHARD_HOME")
    checkout = Path(paths.__file__).parents[2]
    monkeypatch.setenv("OLDPWD", str(checkout))
    assert wanted.settled().root == str(checkout / "data")
    monkeypatch.setenv("OLDPWD", "/")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wanted.settled().root == str(tmp_path / "dreamshard" / "data")


def test_a_root_on_an_object_store_is_tried_and_not_made_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(config(tmp_path, root="memory://resolve/data").request()).wanted == 1297
    assert list(tmp_path.iterdir()) == []
    request = resolve(config(tmp_path, root="ftp://there/data").request())
    with pytest.raises(ConfigError, match="root: got ftp://there"):
        request.check_writable()


def test_an_actor_asks_the_cluster_for_what_its_settings_say() -> None:
    """Further resources choose among unlike nodes."""
    words = ["--threads_per_actor", "2", "--gpus_per_actor", "0.5", "--device", "cuda"]
    words += ["--actor_resources", "{'accelerator_type:A100': 0.001}"]
    config = load_config(EncodeConfig, words, prog="test", description="")
    options = config.actor_size().options()
    assert (options["num_cpus"], options["num_gpus"]) == (2, 0.5)
    assert options["resources"] == {"accelerator_type:A100": 0.001}
