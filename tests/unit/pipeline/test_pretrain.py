from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamshard.config import to_dict
from dreamshard.errors import ConfigError, DataError
from pipeline import pretrain as script
from pipeline.images.prepare import decode, prepare
from pipeline.images.source import ImageConfig, SourceConfig, open_source
from pipeline.learning.pretraining import budget, objective, state
from pipeline.learning.pretraining.config import ObjectiveConfig, PretrainConfig, UNetConfig
from pipeline.learning.pretraining.data import TrainingImages
from storage.schema import canonical_json
from tests.unit.pipeline.pretraining_runs import tiny, weights_of

ROOT = Path(__file__).resolve().parents[3]


class Interrupted(Exception):
    pass


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Kill the run when it begins the given step (1, 2, ...)."""
    original = script._Run._forward

    def stopped(self: object, model: object, number: int, batch: object) -> object:
        if number == step:
            raise Interrupted
        return original(self, model, number, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(script._Run, "_forward", stopped)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    unet = UNetConfig(block_out_channels=[8, 8], norm_num_groups=4, dropout=dropout)
    script.pretrain(tiny(tmp_path / "whole", unet=unet))
    with monkeypatch.context() as patched:
        interrupt_at(patched, 4)
        with pytest.raises(Interrupted):
            script.pretrain(tiny(tmp_path / "broken", unet=unet))
    assert (tmp_path / "broken" / "run" / "checkpoint-000002").exists()
    assert not (tmp_path / "broken" / state.WEIGHTS).exists()
    script.pretrain(tiny(tmp_path / "broken", unet=unet))
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    lines = (tmp_path / "broken" / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 4


def test_weights_can_be_kept_in_half_the_bytes(tmp_path: Path) -> None:
    script.pretrain(tiny(tmp_path / "whole"))
    script.pretrain(tiny(tmp_path / "half", weights_dtype="float16"))
    whole, half = weights_of(tmp_path / "whole"), weights_of(tmp_path / "half")
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    assert all(torch.equal(whole[name].half(), half[name]) for name in whole)
    size = (tmp_path / "whole" / state.WEIGHTS).stat().st_size
    assert (tmp_path / "half" / state.WEIGHTS).stat().st_size < 0.6 * size


def test_the_result_is_a_teacher(tmp_path: Path) -> None:
    from pipeline.teachers.base import TeacherConfig
    from pipeline.teachers.load import describe_teacher, load_teacher
    from storage.schema import Pins

    folder = script.pretrain(tiny(tmp_path / "t", licence="CC0-1.0"))
    config = TeacherConfig(path=str(folder), levels=["s1", "s2"], timesteps=[10])
    assert describe_teacher(config, mode="encode").licence == "CC0-1.0"
    pins = Pins(micro_batch=2, compute_dtype="float32", device="cpu", threads=1)
    teacher = load_teacher(config, mode="encode", seed=0, pins=pins)
    batch = teacher.encode(np.zeros((2, 16, 16, 3), np.uint8), np.arange(2))
    assert batch.levels["up.0.t10"].shape == (2, 8, 8, 8)
    card = json.loads((folder / "teacher_card.json").read_text())
    assert card["steps"] == 4 and card["data"]["kind"] == "digits" and card["parameters"] > 1000
    assert (folder / "samples.png").stat().st_size > 0
    from diffusers import DDPMScheduler, UNet2DModel

    assert UNet2DModel.from_pretrained(folder, use_safetensors=True).sample_size == 16
    assert DDPMScheduler.from_pretrained(folder / "scheduler").config["num_train_timesteps"] == 1000


def test_a_trained_teacher_is_reused_and_another_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.pretrain(tiny(tmp_path / "t"))
    before = (tmp_path / "t" / state.WEIGHTS).stat().st_mtime_ns
    script.pretrain(tiny(tmp_path / "t", num_samples=9, licence="other"))
    assert (tmp_path / "t" / state.WEIGHTS).stat().st_mtime_ns == before
    assert "already trained (4 steps): reused" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--overwrite true"):
        script.pretrain(tiny(tmp_path / "t", seed=1))
    script.pretrain(tiny(tmp_path / "t", seed=1, overwrite=True))
    assert (tmp_path / "t" / state.WEIGHTS).stat().st_mtime_ns != before


def test_more_steps_extend_a_finished_run_and_say_what_becomes_of_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = script.pretrain(tiny(tmp_path / "t"))
    before = weights_of(folder)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 7)
        with pytest.raises(Interrupted):
            script.pretrain(tiny(folder, steps=8))
    told = capsys.readouterr().err
    assert "extended from 4 to 8 steps. From step 5 on the learning rate is that of a run" in told
    script.pretrain(tiny(folder, steps=8))  # the extension goes on, too
    card, after = json.loads((folder / "teacher_card.json").read_text()), weights_of(folder)
    assert card["steps"] == 8 and card["extended"] == [[4, 4]]
    assert any(not torch.equal(before[name], after[name]) for name in before)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8]
    script.pretrain(tiny(folder, steps=8))
    assert "already trained (8 steps): reused" in capsys.readouterr().err
    script.pretrain(tiny(tmp_path / "whole", steps=8))
    whole = json.loads((tmp_path / "whole" / "teacher_card.json").read_text())
    assert whole["recipe_key"] != card["recipe_key"], "another schedule, another teacher"
    script.pretrain(tiny(folder, steps=10))
    assert json.loads((folder / "teacher_card.json").read_text())["extended"] == [[4, 4], [8, 8]]
    with pytest.raises(ConfigError, match="trained with other settings"):
        script.pretrain(tiny(folder, steps=8))


def minutes_for(steps: float) -> float:
    """Minutes that buy these steps at a step a second."""
    return (steps + 0.5) / 57


def test_a_budget_is_planned_once_and_gone_on_with_and_extended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script._Run, "rate", lambda self, minutes: 1.0)
    four, six = ({"minutes": minutes_for(n), "steps": 600, "ema": 0.995} for n in (4.0, 6.25))
    whole = script.pretrain(tiny(tmp_path / "whole", **four))
    with monkeypatch.context() as patched:
        interrupt_at(patched, 4)
        with pytest.raises(Interrupted):
            script.pretrain(tiny(tmp_path / "broken", **four))
    monkeypatch.setattr(script._Run, "rate", lambda self, minutes: 100.0)  # a plan stands
    capsys.readouterr()
    broken = script.pretrain(tiny(tmp_path / "broken", **four))
    assert "min buy 4 steps: 16 images seen" in capsys.readouterr().err
    assert all(torch.equal(v, weights_of(broken)[n]) for n, v in weights_of(whole).items())
    script.pretrain(tiny(broken, **four))
    assert "already trained (4 steps): reused" in capsys.readouterr().err
    monkeypatch.setattr(script._Run, "rate", lambda self, minutes: 1.0)
    script.pretrain(tiny(broken, **six))
    card = json.loads((broken / "teacher_card.json").read_text())
    assert card["steps"] == 6 and card["extended"] == [[4, 4]]
    with pytest.raises(ConfigError, match="minutes: got 0.0789"):
        script.pretrain(tiny(broken, **four))


def test_a_rate_is_measured_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    plan = budget.make_plan

    def planned(run_dir: Path, *, rate: float, **told: Any) -> budget.Plan:
        rates.append(rate)
        return plan(run_dir, rate=1.0, **told)  # whatever else this machine does

    monkeypatch.setattr(budget, "make_plan", planned)
    changes = {"minutes": minutes_for(4), "steps": 600, "ema": 0.995}
    folder = script.pretrain(tiny(tmp_path / "t", **changes))
    card = json.loads((folder / "teacher_card.json").read_text())
    steps = card["steps"]
    assert rates[0] > 0 and steps == 4 and card["settings"]["minutes"] == minutes_for(4)
    again = script.pretrain(tiny(tmp_path / "steps", steps=steps, ema=card["settings"]["ema"]))
    assert all(torch.equal(v, weights_of(again)[n]) for n, v in weights_of(folder).items())


def test_what_cannot_be_extended_says_why(tmp_path: Path) -> None:
    folder = script.pretrain(tiny(tmp_path / "t"))
    with pytest.raises(ConfigError, match="other settings or images") as caught:
        script.pretrain(tiny(folder, steps=8, lr=0.5, batch_size=2))
    named = {problem.key: (problem.got, problem.allowed) for problem in caught.value.problems[1:]}
    rate = tiny(folder).lr
    assert named.keys() == {"batch_size", "lr"}, "what differs is named, and nothing else"
    assert named["lr"] == ("0.5", f"{rate!r}, as in {folder / 'teacher_card.json'}")
    kept = weights_of(folder)
    script.pretrain(tiny(folder, overwrite=True))  # anew, not on from the last step
    assert all(torch.equal(kept[name], value) for name, value in weights_of(folder).items())
    shutil.rmtree(folder / "run" / "checkpoint-000004")
    with pytest.raises(ConfigError, match="no checkpoint of the 4 before"):
        script.pretrain(tiny(folder, steps=8))


def test_a_checkpoint_of_other_settings_or_damaged_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt_at(patched, 4)
        with pytest.raises(Interrupted):
            script.pretrain(tiny(tmp_path / "t"))
    with pytest.raises(ConfigError, match=r"other settings(.|\n)* lr: got 0\.5"):
        script.pretrain(tiny(tmp_path / "t", lr=0.5))
    file = tmp_path / "t" / "run" / "checkpoint-000002" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="checkpoint-000002: got a checkpoint that cannot be used"):
        script.pretrain(tiny(tmp_path / "t"))
    (tmp_path / "t" / "run" / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(DataError, match="older version"):
        script.pretrain(tiny(tmp_path / "t"))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow", "edm"])
def test_every_objective_learns(kind: str) -> None:
    """The network's best output is its target: x_0 comes back through the schedule."""
    schedule = objective.schedule_for(kind, "cosine", 100)
    x0, eps = torch.rand(6, 3, 4, 4) * 2 - 1, torch.randn(6, 3, 4, 4)
    levels = objective.draw_levels(schedule, seed=0, positions=range(6))
    batch = objective.example(schedule, x0, eps, levels, min_snr=5.0)
    assert float(objective.loss_of(batch.target, batch)) == 0
    assert batch.weight.shape == (6,) and bool((batch.weight >= 0).all())
    for row in range(6):
        signal, noise = float(levels.signal[row]), float(levels.noise[row])
        x_t = signal * x0[row] + noise * eps[row]
        found, _ = schedule.predict(x_t, batch.target[row], (signal, noise))
        torch.testing.assert_close(found, x0[row], atol=5e-3, rtol=5e-3)


def test_min_snr_weighs_as_in_the_paper() -> None:
    levels = objective.NoiseLevels(
        signal=np.sqrt([0.5, 0.99]), noise=np.sqrt([0.5, 0.01]), time=np.array([1.0, 0.0])
    )
    x = torch.zeros(2, 3, 2, 2)
    for kind, expected in (
        ("epsilon", [1.0, 5 / 99]),
        ("v_prediction", [0.5, 5 / 100]),
        ("sample", [1.0, 5.0]),
    ):
        schedule = objective.schedule_for(kind, "linear", 1000)
        found = objective.example(schedule, x, x, levels, min_snr=5.0).weight
        assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_images_come_by_position() -> None:
    source = open_source(SourceConfig(kind="digits"))
    plain = TrainingImages(source, config=ImageConfig(size=16), seed=0)
    samples = np.array([3, 3, 9])
    images, labels = plain.batch(samples, [0, 1, 2])
    assert labels is not None and labels.shape == (3,)
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])
    viewed = TrainingImages(source, config=ImageConfig(size=16, views=2), seed=0)
    first, _ = viewed.batch(samples, [0, 1, 2])
    assert not np.array_equal(first[0], first[1])
    again, _ = viewed.batch(samples[1:], [1, 2])
    assert np.array_equal(first[1:], again)


def test_flips_of_a_batch_are_those_of_its_images_one_by_one() -> None:
    source, config = open_source(SourceConfig(kind="digits")), ImageConfig(size=16, flip="random")
    plain, _ = TrainingImages(source, config=ImageConfig(size=16), seed=5).batch(
        np.arange(40), range(40)
    )
    flipped, _ = TrainingImages(source, config=config, seed=5).batch(np.arange(40), range(40))
    alone = [
        prepare(decode(image), config=config, size=(16, 16), seed=5, index=position)
        for position, image in enumerate(plain)
    ]
    assert np.array_equal(flipped, np.stack(alone)) and not np.array_equal(flipped, plain)


def test_windows_are_cut_from_the_image_by_position() -> None:
    source = open_source(SourceConfig(kind="digits"))
    whole = TrainingImages(source, config=ImageConfig(size=16, width=24), seed=0)
    cut = TrainingImages(source, config=ImageConfig(size=16, width=24), seed=0, window=8)
    samples = np.zeros(40, np.int64)
    (image, *_), _ = whole.batch(samples, range(40))
    windows, _ = cut.batch(samples, range(40))
    assert image.shape == (16, 24, 3) and windows.shape == (40, 8, 8, 3)
    places = {
        (top, left)
        for top in range(9)
        for left in range(17)
        for window in windows
        if np.array_equal(window, image[top : top + 8, left : left + 8])
    }
    assert len(places) > 10
    again, _ = cut.batch(samples[:1], [7])
    assert np.array_equal(again[0], windows[7])


def test_training_on_windows_of_wide_images_and_old_keys(tmp_path: Path) -> None:
    image = ImageConfig(size=16, width=24)
    folder = script.pretrain(tiny(tmp_path / "wide", image=image, crop=8))
    assert json.loads((folder / "config.json").read_text())["sample_size"] == [16, 24]
    config = tiny(tmp_path)
    keys = [problem.key for problem in tiny(tmp_path, crop=20).problems()]
    assert keys == ["crop"]
    # A teacher trained before there were windows and widths keeps its key.
    settings = to_dict(config)
    later = ("self_conditioning", "weights", "augment", "dispersive", "dispersive_temperature")
    text = canonical_json(
        {
            "algorithm": state.ALGORITHM,
            **{
                name: value
                for name, value in settings.items()
                if name not in (*state.NOT_THE_WEIGHTS, *state.NOT_OF_DIFFUSION, "crop")
            },
            "image": {k: v for k, v in to_dict(config.image).items() if k != "width"},
            "unet": {k: v for k, v in settings["unet"].items() if k not in later},
            "objective": {k: v for k, v in settings["objective"].items() if k not in later},
            "source": {},
        }
    )
    assert state.recipe_key(settings, {}) == hashlib.sha256(text.encode()).hexdigest()


def test_damaged_images_never_come_up_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for name in ("a", "b", "c"):
        Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"not a picture")
    source = open_source(SourceConfig(kind="folder", path=str(tmp_path)))
    images = TrainingImages(source, config=ImageConfig(size=8), seed=0)
    assert images.valid.tolist() == [True, False, True]
    assert "source: 1 of 3 images cannot be decoded" in capsys.readouterr().err
    images._kept, images._said = None, False  # as if too large to keep
    for _ in range(2):
        found, _ = images.batch(np.array([0, 1, 2]), [0, 1, 2])
        assert (found == 200).all()
    assert capsys.readouterr().err.count("source: image 1 (from 0) cannot be decoded") == 1


def test_class_conditional_training(tmp_path: Path) -> None:
    folder = script.pretrain(tiny(tmp_path / "t", class_conditional=True, steps=2))
    assert json.loads((folder / "config.json").read_text())["num_class_embeds"] == 10


def test_adm_like_networks_and_edm(tmp_path: Path) -> None:
    unet = UNetConfig(
        block_out_channels=[8, 16], norm_num_groups=4, attention_levels=[1],
        time_scale_shift="scale_shift", resampling="resnet",
    )  # fmt: skip
    config = tiny(tmp_path / "t", unet=unet, steps=2, objective=ObjectiveConfig(kind="edm"))
    folder = script.pretrain(config)
    found = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert found["_class_name"] == "EDMEulerScheduler"


def test_problems_are_found_before_anything_is_loaded() -> None:
    config = PretrainConfig(
        image=ImageConfig(size=18), steps=10, warmup_steps=10,
        unet=UNetConfig(block_out_channels=[8, 12], attention_levels=[5]),
    )  # fmt: skip
    keys = [problem.key for problem in config.problems()]
    assert keys == ["warmup_steps"]
    config.image.size = 17
    assert "image.size" in [problem.key for problem in config.problems()]
    unet = [problem.key for problem in config.unet.problems()]
    assert unet == ["norm_num_groups", "attention_levels"]


def test_learning_rate_warms_up_and_falls() -> None:
    config = PretrainConfig(steps=100, warmup_steps=10, lr=1.0, floor=0.1)
    rates = [config.schedule()(step) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 <= rates[-1] < 0.11


def test_help_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; sys.argv = ['x', '--help']\n"
        "try:\n"
        "    from pipeline.pretrain import main\n"
        "    main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'diffusers'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stderr.strip() == "[]"
    assert "Peak learning rate" in result.stdout


def test_a_run_shows_what_it_does(tmp_path: Path) -> None:
    folder = script.pretrain(
        tiny(tmp_path / "t", sample_every=2, distance_every=2, distance_samples=70)
    )
    run = folder / "run"
    assert (run / "samples-000002.png").exists() and (run / "loss.png").stat().st_size > 1000
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    distances = {entry["step"]: entry["proxy_fd"] for entry in entries if "proxy_fd" in entry}
    assert sorted(distances) == [2, 4] and min(distances.values()) > 0
    card = json.loads((folder / "teacher_card.json").read_text())
    assert card["proxy_distance"]["proxy_fd"] == distances[4]
    stats = json.loads((run / "stats.json").read_text())
    assert stats["seconds"] > 0 and stats["img_per_s"] > 0
