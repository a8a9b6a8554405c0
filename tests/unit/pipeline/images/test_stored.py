"""Features made from a dataset's latents are those made from its images."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamshard.errors import ConfigError, DataError
from pipeline.images.source import SourceConfig
from pipeline.images.stored import open_stored
from pipeline.request.config import EncodeConfig
from pipeline.request.lookup import look_up
from pipeline.request.resolve import resolve
from pipeline.request.same_source import check_source
from pipeline.teachers.base import TeacherConfig
from storage.dataset import Dataset
from storage.join import join
from tests.unit.pipeline.made_datasets import make, rows
from tests.unit.pipeline.teachers.conftest import UNET
from tests.unit.pipeline.teachers.diffusion.networks.test_latent_families import save_prompt, sd

FEATURES = {"levels": ["s4", "mid"], "timesteps": [5, 90], "draws": 2}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    sd(folder)
    save_prompt(folder, 12)
    return folder


def config(root: Path, teacher: Path, source: SourceConfig, **changes: Any) -> EncodeConfig:
    settings = {"levels": ["latent"], "kind": "diffusers", "path": str(teacher)}
    told = {
        key: changes.pop(key)
        for key in ("levels", "timesteps", "draws", "settings")
        if key in changes
    }
    return EncodeConfig(
        name=changes.pop("name", "x"),
        root=str(root),
        teacher=TeacherConfig(**{**settings, **told}),
        source=source,
        samples=5,
        samples_per_unit=3,
        micro_batch=2,
        device="cpu",
        fsync=False,
        **changes,
    )


@pytest.fixture(scope="module")
def latents(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("latents")
    return make(config(root, teacher, SourceConfig(kind="digits"), name="latents"))


@pytest.fixture(scope="module")
def direct(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("direct")
    return make(config(root, teacher, SourceConfig(kind="digits"), **FEATURES))


def test_equal_features_without_the_autoencoder(
    latents: Dataset,
    direct: Dataset,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.teachers.diffusion.networks import vae

    (level,) = latents.levels
    assert (level.kind, level.shape, level.dtype) == ("latent", (4, 8, 8), "float16")
    assert level.timestep == -1 and level.stride == 4

    def refuse(*_: object) -> None:
        raise AssertionError("the autoencoder was built")

    monkeypatch.setattr(vae, "build", refuse)
    source = SourceConfig(kind="latents", path=latents.url)
    made = make(config(tmp_path, teacher, source, **FEATURES))
    assert [each.name for each in made.levels] == [each.name for each in direct.levels]
    for each in made.levels:
        one, other = rows(made, each.name), rows(direct, each.name)
        assert one.std() > 0
        np.testing.assert_allclose(one, other, atol=2e-2, rtol=2e-2)
    for name in ("image", "label"):
        assert np.array_equal(rows(made, name), rows(direct, name))
    shown, expected = made.snapshot(), direct.snapshot()
    assert shown.keys == expected.keys and np.array_equal(shown.labels, expected.labels)
    assert np.array_equal(shown.valid, expected.valid)
    first, second = made.commit_of(0), direct.commit_of(0)
    assert first is not None and second is not None and second.source_digests is not None
    assert np.array_equal(first.source_digests, second.source_digests)
    assert made.recipe.source == direct.recipe.source
    assert made.recipe.content["image"] == direct.recipe.content["image"]
    assert made.recipe.content_key != direct.recipe.content_key


def test_what_is_made_from_latents_joins_and_is_found_again(
    latents: Dataset, teacher: Path, tmp_path: Path
) -> None:
    source = SourceConfig(kind="latents", path=latents.url)
    asked = config(tmp_path, teacher, source, levels=["s4"], timesteps=[5])
    made = make(asked)
    joined = join([latents, made])
    assert [level.name for level in joined.levels] == ["latent", "up.1.t5"]
    request = resolve(asked.request())
    found = look_up(request)
    assert found is not None and found.complete
    assert any("the same" in line for line in check_source(found.dataset, request.input))
    images = config(tmp_path, teacher, SourceConfig(kind="digits"), levels=["s4"], timesteps=[5])
    assert look_up(resolve(images.request())) is None, "rounded latents give other bytes"


def test_latents_are_recorded_beside_features(
    teacher: Path, latents: Dataset, tmp_path: Path
) -> None:
    told = {"levels": ["s4", "latent"], "timesteps": [5], "draws": 2}
    made = make(config(tmp_path, teacher, SourceConfig(kind="digits"), **told))
    assert [level.name for level in made.levels] == ["up.1.t5", "up.1.t5.d1", "latent"]
    np.testing.assert_allclose(rows(made, "latent"), rows(latents, "latent"), atol=1e-3)
    with pytest.raises(ConfigError, match=r"teacher.timesteps: got \(5,\), allowed none for laten"):
        told = {"levels": ["latent"], "timesteps": [5]}
        resolve(config(tmp_path, teacher, SourceConfig(kind="digits"), **told).request())


def test_what_cannot_start_from_them(
    latents: Dataset, direct: Dataset, teacher: Path, tmp_path: Path
) -> None:
    from diffusers import UNet2DModel

    def refused(text: str, path: str = latents.url, of: Path = teacher, **changes: Any) -> None:
        source = SourceConfig(kind="latents", path=path)
        told = {"levels": ["s4"], "timesteps": [5], **changes}
        with pytest.raises(ConfigError, match=text):
            resolve(config(tmp_path, of, source, **told).request())

    refused(r"source.path: got .*up.1.t5.*, allowed the level latent", path=direct.url)
    refused(r"seed: got 3, allowed 0, that of", seed=3)
    pixels = tmp_path / "pixels"
    UNet2DModel(**UNET).save_pretrained(pixels)  # type: ignore[arg-type]
    refused(r"teacher.path: got a teacher without latents", of=pixels)
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    scaled = (other / "vae" / "config.json").read_text().replace("0.18215", "0.5")
    (other / "vae" / "config.json").write_text(scaled)
    refused(r"source.path: got .*of another .*allowed latents of this teacher's own", of=other)
    from pipeline.images.source import ImageConfig, open_source

    refused(
        r"image: got .*allowed nothing: the images are those of", image=ImageConfig(flip="random")
    )
    with pytest.raises(
        ConfigError, match="Latents stand in for images in `dreamshard encode` alone"
    ):
        open_source(SourceConfig(kind="latents", path=latents.url))
    with pytest.raises(DataError):
        open_stored(str(tmp_path / "nowhere"))
    assert dataclasses.replace(SourceConfig(), kind="latents").problems()[0].key == "path"
