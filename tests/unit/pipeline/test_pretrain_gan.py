"""`dreamshard pretrain --kind stylegan2`: resume, budgets, what is refused and when."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dreamshard.config import load_config
from dreamshard.errors import ConfigError
from pipeline import pretrain as script
from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.learning.checkpoint import checkpoints
from pipeline.learning.pretraining.adversarial.play import Players
from pipeline.learning.pretraining.adversarial.ssgan.config import SSGANConfig
from pipeline.learning.pretraining.adversarial.stylegan2.config import StyleGAN2Config
from pipeline.learning.pretraining.config import PretrainConfig
from pipeline.teachers.gan.stylegan2.snapshot import read_snapshot

FILE = "network-snapshot.pkl"
NETWORK: dict[str, Any] = {
    "channel_base": 32, "channel_max": 4, "latent": 4, "statistics_group": 2, "r1_every": 2,
}  # fmt: skip


def tiny(out: Path, **changes: Any) -> PretrainConfig:
    """A run of about a second."""
    values: dict[str, Any] = {
        "kind": "stylegan2", "out": str(out), "source": SourceConfig(kind="digits"),
        "image": ImageConfig(size=8, flip="random"), "stylegan2": StyleGAN2Config(**NETWORK),
        "steps": 4, "batch_size": 4, "num_samples": 4, "checkpoint_every": 2, "threads": 1,
        "device": "cpu",
    }  # fmt: skip
    return PretrainConfig(**{**values, **changes})


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{key}.{name}": value
        for key in ("G_ema", "D")
        for name, value in read_snapshot(folder / FILE, key).state().items()
    }


class Interrupted(Exception):
    pass


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = Players.step

    def stopped(self: Players, number: int, *told: Any, **named: Any) -> Any:
        if number == step:
            raise Interrupted
        return original(self, number, *told, **named)

    monkeypatch.setattr(Players, "step", stopped)


def all_refused(config: PretrainConfig) -> list[str]:
    """Return the dotted keys that are refused before anything is loaded, or when it runs."""
    if problems := config.problems():
        return [problem.key for problem in problems]
    with pytest.raises(ConfigError) as caught:
        script.pretrain(config)
    return [problem.key for problem in caught.value.problems]


@pytest.mark.parametrize("augment", ["none", "diffaugment", "ada"])
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: Any
) -> None:
    """Both networks, both optimisers, averages, random numbers, the augmentation's strength."""
    length = {"steps": 14, "checkpoint_every": 10} if augment == "ada" else {}
    network = StyleGAN2Config(**NETWORK, augment=augment, **({"ada_images": 80, "ada_target": 0.1}
                              if augment == "ada" else {}))  # fmt: skip
    whole, broken = (tiny(tmp_path / n, stylegan2=network, **length) for n in ("whole", "broken"))
    script.pretrain(whole)
    with monkeypatch.context() as patched:
        interrupt_at(patched, whole.steps)
        with pytest.raises(Interrupted):
            script.pretrain(broken)
    assert checkpoints(tmp_path / "broken" / "run") and not (tmp_path / "broken" / FILE).exists()
    script.pretrain(broken)
    first, second = weights_of(tmp_path / "whole"), weights_of(tmp_path / "broken")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = [json.loads(line) for line in (tmp_path / "broken/run/metrics.jsonl").open()]
    assert lines[-1]["step"] == whole.steps and np.isfinite(lines[-1]["loss_d"])


def test_the_result_is_reused_extended_and_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t"
    measured = {"distance_every": 2, "distance_samples": 8}
    script.pretrain(tiny(out, **measured))
    card = json.loads((out / "teacher_card.json").read_text())
    best = json.loads((out / "run" / "best" / "teacher_card.json").read_text())
    assert card["kind"] == "dreamshard stylegan2 teacher" and card["data"]["kind"] == "digits"
    assert card["steps"] == best["steps"] and card["trained_steps"] == 4
    assert {"proxy_fd", "proxy_kd", "variety"} <= card["proxy_distance"].keys()
    assert (out / "samples.png").stat().st_size and (out / "run" / "curves.png").stat().st_size
    script.pretrain(tiny(out, **measured))
    assert "already trained" in capsys.readouterr().err
    script.pretrain(tiny(out, steps=6, teacher="last", **measured))
    card = json.loads((out / "teacher_card.json").read_text())
    assert card["steps"] == card["trained_steps"] == 6
    assert all_refused(tiny(out, seed=1)) == ["out"]
    script.pretrain(tiny(out, seed=1, overwrite=True))
    assert json.loads((out / "teacher_card.json").read_text())["seed"] == 1


def test_minutes_end_a_run_and_more_of_them_go_on(tmp_path: Path) -> None:
    out = tmp_path / "t"
    script.pretrain(tiny(out, minutes=0.002))
    first = json.loads((out / "teacher_card.json").read_text())
    assert first["seconds"] >= 0.12
    script.pretrain(tiny(out, minutes=0.01))
    second = json.loads((out / "teacher_card.json").read_text())
    assert second["steps"] > first["steps"] and second["seconds"] >= 0.6


def test_a_checkpoint_of_another_architecture_or_other_images_is_refused(tmp_path: Path) -> None:
    """What differs is named, key by key."""
    run = str(tmp_path / "run")
    script.pretrain(tiny(tmp_path / "a", run_dir=run))
    other = StyleGAN2Config(**{**NETWORK, "channel_max": 8})
    again = tmp_path / "b"
    assert all_refused(tiny(again, run_dir=run, stylegan2=other)) == ["stylegan2.channel_max"]
    source = SourceConfig(kind="digits", split="heldout")
    assert all_refused(tiny(again, run_dir=run, source=source)) == ["source"]
    assert all_refused(tiny(again, run_dir=run, batch_size=8)) == ["batch_size"]
    sized = {"kind": "ssgan", "image": ImageConfig(size=32)}
    assert all_refused(tiny(again, run_dir=run, **sized)) == ["kind"]


def test_bad_sizes_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    for size in (12, 4, 24):
        assert all_refused(tiny(tmp_path, image=ImageConfig(size=size))) == ["image.size"]
    assert all_refused(tiny(tmp_path, image=ImageConfig(size=8, width=16))) == ["image.width"]
    assert all_refused(tiny(tmp_path, batch_size=3)) == ["stylegan2.statistics_group"]
    ada = StyleGAN2Config(**NETWORK, augment="ada")
    assert all_refused(tiny(tmp_path, stylegan2=ada)) == ["checkpoint_every"]


@pytest.mark.parametrize("kind", ["stylegan2", "ssgan", "bigbigan"])
def test_a_gans_images_are_square(tmp_path: Path, kind: str) -> None:
    for width, refused in ((64, ["image.width"]), (32, []), (0, [])):
        config = tiny(tmp_path, kind=kind, image=ImageConfig(size=32, width=width))
        assert [each.key for each in config.problems()] == refused


def test_classes_are_told_where_they_are_read_alone(tmp_path: Path) -> None:
    for method, told, refused in (
        ("ssgan", True, True), ("conditional", False, True), ("conditional", True, False),
    ):  # fmt: skip
        config = tiny(
            tmp_path, kind="ssgan", image=ImageConfig(size=32), class_conditional=told,
            ssgan=SSGANConfig(method=method),
        )  # fmt: skip
        assert [each.key for each in config.problems()] == ["class_conditional"] * refused
    words = ["--kind", "bigbigan", "--image.size", "32", "--class_conditional", "true"]
    with pytest.raises(ConfigError, match="class_conditional: .*kind"):
        load_config(PretrainConfig, words, prog="pretrain", description="Pretrain.")


def pictures(folder: Path, shapes: list[tuple[str, tuple[int, int]]]) -> SourceConfig:
    folder.mkdir()
    for number, (mode, size) in enumerate(shapes):
        stream = io.BytesIO()
        Image.new(mode, size, number).save(stream, "PNG")
        (folder / f"{number}.png").write_bytes(stream.getvalue())
    return SourceConfig(kind="folder", path=str(folder))


def test_images_of_any_size_and_mode_are_fitted_and_too_few_are_refused(tmp_path: Path) -> None:
    mixed = [("L", (8, 8)), ("RGB", (30, 9)), ("RGBA", (9, 40)), ("P", (16, 16))]
    source = pictures(tmp_path / "mixed", mixed)
    script.pretrain(tiny(tmp_path / "a", source=source, steps=1))
    assert (tmp_path / "a" / FILE).exists()
    assert all_refused(tiny(tmp_path / "b", source=source, batch_size=8)) == ["batch_size"]


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Players._turn

    def broken(self: Players, player: str, play: Any, share: Any, name: str) -> Any:
        terms = original(self, player, play, share, name)
        return {k: v * float("nan") for k, v in terms.items()} if share.step == 3 else terms

    monkeypatch.setattr(Players, "_turn", broken)
    with pytest.raises(ConfigError, match=r"loss_d nan.* at step 3\b.*checkpoint-000002 is kept"):
        script.pretrain(tiny(tmp_path / "t"))
    assert [path.name for path in checkpoints(tmp_path / "t" / "run")] == ["checkpoint-000002"]


def test_weights_that_are_no_numbers_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the step that broke them was still one."""
    original = Players.step

    def broken(self: Players, number: int, *told: Any, **named: Any) -> Any:
        terms = original(self, number, *told, **named)
        if number == 4:
            next(self.objective.networks["generator"].parameters()).data.fill_(float("inf"))
        return terms

    monkeypatch.setattr(Players, "step", broken)
    with pytest.raises(ConfigError, match="weights nan at step 4"):
        script.pretrain(tiny(tmp_path / "t"))
    assert [path.name for path in checkpoints(tmp_path / "t" / "run")] == ["checkpoint-000002"]
