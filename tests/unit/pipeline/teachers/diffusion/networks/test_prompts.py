"""The empty prompt is computed once from the pipeline's encoders; here they are stand-ins."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dreamshard.errors import TeacherError
from pipeline.teachers.diffusion.networks import prompts

EMBEDS = torch.arange(24.0).reshape(1, 2, 12)
POOLED = torch.arange(10.0).reshape(1, 10)


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    (tmp_path / "text_encoder").mkdir()
    return tmp_path


def stand_in(
    monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str, answer: tuple[Any, ...] | Exception
) -> list[dict[str, Any]]:
    """Answer for diffusers' pipeline; return what its encode_prompt is called with."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    index: dict[str, Any] = {"_class_name": kind, "unet": [], "vae": [], "text_encoder": []}
    if kind != "StableDiffusionPipeline":
        index["text_encoder_2"] = []
    (folder / "model_index.json").write_text(json.dumps(index))
    real, asked = importlib.import_module, []
    monkeypatch.setattr(
        importlib,
        "import_module",
        lambda name, *rest: object() if name == "transformers" else real(name, *rest),
    )

    def encode(prompt: str, **settings: Any) -> tuple[Any, ...]:
        asked.append({"prompt": prompt, **settings})
        if isinstance(answer, Exception):
            raise answer
        return answer

    def load(path: Path, **settings: Any) -> Any:
        assert settings["use_safetensors"] and settings["vae"] is None  # nothing it does not need
        return SimpleNamespace(encode_prompt=encode)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", load)
    return asked


@pytest.mark.parametrize(
    ("kind", "answer", "pooled"),
    [
        ("StableDiffusionPipeline", (EMBEDS, None), None),
        ("StableDiffusionXLPipeline", (EMBEDS, None, POOLED, None), 10),
        ("StableDiffusion3Pipeline", (EMBEDS, None, POOLED, None), 10),
        ("FluxPipeline", (EMBEDS, POOLED, torch.zeros(2, 3)), 10),
    ],
)
def test_it_is_computed_once_and_kept(
    pipeline: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    answer: tuple[Any, ...],
    pooled: int | None,
) -> None:
    asked = stand_in(monkeypatch, pipeline, kind, answer)
    path = prompts.find_prompt(pipeline, None, width=12, pooled=pooled)
    assert prompts.find_prompt(pipeline, None, width=12, pooled=pooled) == path
    assert len(asked) == 1 and asked[0]["prompt"] == ""
    assert ("prompt_2" in asked[0]) == (kind != "StableDiffusionPipeline")
    state = load_file(path)
    assert torch.equal(state["prompt_embeds"], EMBEDS) and ("pooled" in state) == bool(pooled)
    prompt = prompts.Prompt(path)
    assert prompt.embeds(torch.zeros(3, 4)).shape == (3, 2, 12)
    if pooled:
        assert torch.equal(prompt.pooled(torch.zeros(3, 4))[2], POOLED[0])


def test_encoders_that_fail_or_are_missing(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        stand_in(patched, pipeline, "StableDiffusionPipeline", OSError("no tokenizer\nat all"))
        with pytest.raises(TeacherError, match=r"cannot be used \(no tokenizer\)") as caught:
            prompts.find_prompt(pipeline, None, width=12, pooled=None)
        assert "\n" not in str(caught.value)
    real = importlib.import_module

    def absent(name: str, *rest: Any) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(TeacherError, match=r"pip install 'dreamshard\[latent\]'"):
        prompts.find_prompt(pipeline, None, width=12, pooled=None)
