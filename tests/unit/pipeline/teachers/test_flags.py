"""What was guessed about a teacher is said, recorded with its source, and part of the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamshard.errors import ConfigError, TeacherError
from pipeline.request.config import OfflineConfig
from pipeline.request.lookup import create
from pipeline.request.resolve import resolve
from pipeline.teachers.base import TeacherConfig, guesses
from pipeline.teachers.diffusion.official.adm_flags import ASKED
from pipeline.teachers.load import describe_teacher
from tests.unit.pipeline.teachers.conftest import UNET, make_teacher, open_teacher, randomize
from tests.unit.pipeline.teachers.diffusion.official.adm_reference import Reference, Structure
from tests.unit.pipeline.teachers.gan.biggan.biggan_reference import Reference as BigGAN


def adm(folder: Path) -> Path:
    torch.save(Reference(Structure()).state, folder / "model.pt")
    return folder / "model.pt"


def spec_of(path: Path, mode: Any = "synthesize", kind: str = "diffusers", **settings: Any) -> Any:
    config = TeacherConfig(kind=kind, path=str(path), levels=["s1"], settings=settings)
    config.timesteps = [] if kind == "biggan" else [10]
    return describe_teacher(config, mode=mode)


def test_flags_say_where_they_come_from_and_decide_the_key(tmp_path: Path) -> None:
    path, base = adm(tmp_path), {"image_size": 16, "num_heads": 4, "dropout": 0.1}
    guessed = spec_of(path, **base)
    told = {flag.name: (flag.value, flag.source) for flag in guessed.flags}
    assert told["num_heads"] == (4, "user")
    assert told["noise_schedule"] == ("linear", "default")
    assert told["use_new_attention_order"] == (False, "default")
    (note,) = guessed.notes
    assert "use_new_attention_order false, noise_schedule linear" in note
    assert "num_heads" not in note
    assert guessed.fingerprint["flags"]["noise_schedule"] == "linear"
    confirmed = spec_of(path, **base, noise_schedule="linear")
    assert confirmed.fingerprint == guessed.fingerprint, "the same network, whoever said it"
    assert {f.name: f.source for f in confirmed.flags}["noise_schedule"] == "user"
    other = spec_of(path, **base, use_new_attention_order=True)
    assert other.fingerprint != guessed.fingerprint


def test_what_changes_features_is_asked_for_where_nothing_speaks_for_a_default(
    tmp_path: Path,
) -> None:
    path, base = adm(tmp_path), {"image_size": 16, "num_heads": 4}

    def asked(**more: Any) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            spec_of(path, **base, **more)
        return [problem.key for problem in caught.value.problems if not isinstance(problem, str)]

    order, schedule = (f"teacher.settings.{name}" for name in ASKED)
    assert asked() == [order, schedule]
    assert asked(noise_schedule="linear") == [order]
    assert asked(use_new_attention_order=True) == [schedule]
    told = spec_of(path, **base, use_new_attention_order=True, noise_schedule="cosine")
    assert "use_new_attention_order" not in told.notes[0] and "noise" not in told.notes[0]
    assert spec_of(path, **base, num_res_blocks=1).notes, "a training command's flags, less two"
    one_head = {"image_size": 16, "num_heads": 1, "noise_schedule": "linear"}
    assert spec_of(path, **one_head), "with one head the two orders are one"


def test_flags_are_kept_with_the_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = TeacherConfig(
        path=str(adm(tmp_path)),
        levels=["s1"],
        timesteps=[10],
        settings={"image_size": 16, "num_heads": 4, "dropout": 0.1},
    )
    config = OfflineConfig(root=str(tmp_path / "data"), teacher=teacher, samples=4)
    request = resolve(config.settled().request())
    dataset = create(request)
    kept = json.loads((Path(dataset.url) / "dataset.json").read_text())["extra"]["teacher_flags"]
    assert kept["noise_schedule"] == {
        "value": "linear",
        "source": "default",
        "whose": "guided-diffusion's",
    }
    assert kept["num_heads"] == {"value": 4, "source": "user", "whose": ""}
    from pipeline.offline.summary import announce

    announce(request, dataset, num_missing=1)
    assert "teacher: guessed, as no file says it: use_new_attention" in capsys.readouterr().err


def test_a_bigbigan_is_known_by_its_name_and_has_no_labels(tmp_path: Path) -> None:
    from tests.unit.pipeline.teachers.gan.biggan.test_biggan import config_of, load

    state = BigGAN().state
    for name in ("BigBiGAN_x1.pth", "bigbigan/G_ema.pth"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        torch.save(state, path)
        spec = spec_of(path, kind="biggan")
        told = {flag.name: (flag.value, flag.source) for flag in spec.flags}
        assert told["BN_eps"] == told["SN_eps"] == (1e-4, "file")
        assert told["class_cond"] == (False, "file") and not spec.has_labels
        batch = load(config_of(path)).synthesize(torch.arange(3).numpy())
        assert batch.label is None


def test_a_generator_of_unknown_origin_is_asked_about(tmp_path: Path) -> None:
    path = tmp_path / "generator.pth"
    torch.save(BigGAN().state, path)
    with pytest.raises(ConfigError) as caught:
        spec_of(path, kind="biggan")
    keys = [problem.key for problem in caught.value.problems if not isinstance(problem, str)]
    assert keys == [f"teacher.settings.{name}" for name in ("BN_eps", "SN_eps", "class_cond")]
    assert "BigBiGAN: 1e-4, 1e-4 and false" in str(caught.value)
    told = {"BN_eps": 1e-4, "SN_eps": 1e-4, "class_cond": False}
    assert not spec_of(path, kind="biggan", **told).has_labels
    assert spec_of(path, kind="biggan", **{**told, "class_cond": True}).has_labels


def unet(folder: Path, *, scheduler: bool = True, **changes: Any) -> Path:
    from diffusers import DDPMScheduler, UNet2DModel

    module = UNet2DModel(**{**UNET, **changes})  # type: ignore[arg-type]
    randomize(module)
    module.save_pretrained(folder)
    if scheduler:
        DDPMScheduler().save_pretrained(folder / "scheduler")
    return folder


def test_drawn_classes_of_a_diffusion_network_are_recorded(tmp_path: Path) -> None:
    folder = unet(tmp_path, num_class_embeds=5)
    rows = torch.arange(4).numpy()

    def made(**settings: Any) -> Any:
        told = {"steps": 2, **settings}
        teacher = make_teacher(folder, levels=["up.1"], timesteps=[10], mode="synthesize", **told)
        assert teacher.request.spec.has_labels == (teacher.synthesize(rows).label is not None)
        return teacher.synthesize(rows).label

    drawn = made()
    assert drawn is not None and ((drawn >= 0) & (drawn < 5)).all()
    assert (made(class_label=3) == 3).all()
    assert made(class_label=-1) is None, "no class is told, and none is recorded"


def test_a_pixel_network_without_a_scheduler_says_what_it_takes(tmp_path: Path) -> None:
    folder = unet(tmp_path, scheduler=False)
    spec = spec_of(folder)
    assert "beta_schedule linear" in guesses(spec.flags)[0]
    told = spec_of(folder, beta_schedule="squaredcos_cap_v2")
    assert told.fingerprint != spec.fingerprint
    assert {f.name: f.source for f in told.flags}["beta_schedule"] == "user"
    with pytest.raises(ConfigError, match=r"settings\.beta_schedule: got 'laplace'"):
        spec_of(folder, beta_schedule="laplace")


def test_settings_that_contradict_the_scheduler_are_refused(tmp_path: Path) -> None:
    folder = unet(tmp_path)
    assert not spec_of(folder, prediction_type="epsilon").flags
    with pytest.raises(ConfigError, match=r"settings\.prediction_type: .*config.json say"):
        spec_of(folder, prediction_type="v_prediction")


@pytest.mark.parametrize("part", ["vqvae", "movq", "vae", "bert"])
@pytest.mark.parametrize("told", ["folder", "index"])
def test_parts_beside_a_pixel_network_that_nothing_runs(
    tmp_path: Path, part: str, told: str
) -> None:
    unet(tmp_path / "unet", scheduler=False)
    if told == "folder":
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text('{"_class_name": "VQModel"}')
    else:
        index = {"unet": ["diffusers", "UNet2DModel"], part: ["diffusers", "VQModel"]}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
    paths = [tmp_path, tmp_path / "unet"]
    for path in paths:
        with pytest.raises(TeacherError, match=rf"{part}: a VQModel beside a UNet2DModel.*Nearest"):
            open_teacher(path)


def test_a_pipeline_of_its_own_code_is_refused(tmp_path: Path) -> None:
    unet(tmp_path / "unet", scheduler=False)
    index = {"unet": ["my_module", "MyUNet"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(TeacherError, match="got my_module.MyUNet.*never run"):
        open_teacher(tmp_path)
