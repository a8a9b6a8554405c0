from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dreamshard.errors import TeacherError
from pipeline.teachers import weights


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_runs_code_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    mark, file = tmp_path / "ran", tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(1), "trap": Trap(mark)}, file)
    with pytest.raises(TeacherError, match="refused.*safetensors") as caught:
        weights.read([file])
    assert not mark.exists()
    assert "\n" not in str(caught.value) and "mkdir" in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 200])
def test_truncated_files_are_named(tmp_path: Path, suffix: str, keep: int) -> None:
    file = tmp_path / f"model{suffix}"
    state = {"weight": torch.randn(40, 40)}
    if suffix == ".pt":
        torch.save(state, file)
    else:
        save_file(state, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(TeacherError, match=str(file)) as caught:
        weights.read([file])
    assert "\n" not in str(caught.value)


def test_averaged_weights_are_taken_out_of_training_files(tmp_path: Path) -> None:
    file = tmp_path / "train.pt"
    torch.save(
        {"model": {"w": torch.zeros(2)}, "ema": {"module.w": torch.ones(2)}, "step": 3}, file
    )
    assert weights.read([file])["w"].tolist() == [1, 1]
    torch.save({"state_dict": {"w": torch.ones(1)}}, file)
    assert list(weights.read([file])) == ["w"]
    torch.save([1, 2], file)
    with pytest.raises(TeacherError, match="no state dict"):
        weights.read([file])


def test_missing_and_surplus_keys_are_listed_up_to_ten() -> None:
    module = nn.ModuleDict({f"m{i:02d}": nn.Linear(1, 1, bias=False) for i in range(12)})
    with pytest.raises(TeacherError) as caught:
        weights.load_into(module, {"alien": torch.zeros(1)}, where="x.pt")
    text = str(caught.value)
    assert "12 keys missing" in text and "m09.weight and 2 more" in text
    assert "1 keys surplus: alien" in text and "m10" not in text


def test_wrong_shapes_and_nan_are_named() -> None:
    module = nn.Linear(2, 3)
    state = dict(module.state_dict())
    with pytest.raises(TeacherError, match=r"weight \(2, 2\) not \(3, 2\)"):
        weights.load_into(module, {**state, "weight": torch.zeros(2, 2)}, where="x")
    bad = state["weight"].clone()
    bad[0, 0] = float("nan")
    with pytest.raises(TeacherError, match="weight has values that are not finite"):
        weights.load_into(module, {**state, "weight": bad}, where="x")


def test_large_finite_half_weights_are_fine() -> None:
    weights.refuse_not_finite({"w": torch.full((1000,), 60000.0).half()}, where="x")


def test_sharded_weights_are_found_and_missing_parts_named(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="no diffusion_pytorch_model"):
        weights.find_weights(tmp_path)
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "p1.safetensors", "b": "p2.safetensors"}}')
    save_file({"a": torch.ones(1)}, tmp_path / "p1.safetensors")
    with pytest.raises(TeacherError, match=r"p2\.safetensors: missing part"):
        weights.find_weights(tmp_path)
    save_file({"b": torch.ones(1)}, tmp_path / "p2.safetensors")
    files = weights.find_weights(tmp_path)
    assert sorted(weights.read(files)) == ["a", "b"]
    assert len(weights.digest(files)) == 64


def test_digest_follows_the_content(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(1)}, file)
    before = weights.digest([file])
    save_file({"a": torch.zeros(2)}, file)
    assert weights.digest([file]) != before


STEM = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("index", "parts"),
    [
        (None, [f"{STEM}.fp16.safetensors"]),
        (None, [f"{STEM}.bf16.safetensors"]),
        (
            f"{STEM}.safetensors.index.fp16.json",
            [f"{STEM}.fp16-00001-of-00002.safetensors", f"{STEM}.fp16-00002-of-00002.safetensors"],
        ),
        (f"{STEM}.safetensors.index.json", ["a.safetensors", "b.safetensors"]),
    ],
)
def test_variants_and_their_shards_are_found(
    tmp_path: Path, index: str | None, parts: list[str]
) -> None:
    for number, name in enumerate(parts):
        save_file({f"w{number}": torch.ones(1).half()}, tmp_path / name)
    if index:
        table = {f"w{number}": name for number, name in enumerate(parts)}
        (tmp_path / index).write_text(json.dumps({"weight_map": table}))
    found = weights.find_weights(tmp_path)
    assert [path.name for path in found] == parts
    assert sorted(weights.read(found)) == [f"w{number}" for number in range(len(parts))]


def test_plain_weights_win_and_two_variants_are_asked_about(tmp_path: Path) -> None:
    for name in ("fp16.safetensors", "non_ema.safetensors"):
        save_file({"w": torch.ones(1)}, tmp_path / f"{STEM}.{name}")
    with pytest.raises(TeacherError, match=r"got .*fp16.*non_ema.*allowed one variant"):
        weights.find_weights(tmp_path)
    save_file({"w": torch.ones(1)}, tmp_path / f"{STEM}.safetensors")
    assert weights.find_weights(tmp_path) == (tmp_path / f"{STEM}.safetensors",)


@pytest.mark.parametrize("table", [{"a": 1}, {"a": "../x.safetensors"}, {}, [], {"a": "x.py"}])
def test_an_index_names_files_beside_it_alone(tmp_path: Path, table: object) -> None:
    path = tmp_path / f"{STEM}.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": table}))
    with pytest.raises(TeacherError, match="weight_map: got .*allowed names of files"):
        weights.find_weights(tmp_path)


def test_the_hint_lists_what_is_there(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(
        TeacherError, match=r"no .*safetensors or .bin. Found only model.safetensors"
    ):
        weights.find_weights(tmp_path)


def test_ddims_list_checkpoints_are_read_averages_first(tmp_path: Path) -> None:
    last, averaged = {"module.w": torch.zeros(2)}, {"w": torch.ones(2)}
    torch.save([last, {"state": {}, "param_groups": []}, 3, 100], tmp_path / "ckpt.pth")
    assert weights.read([tmp_path / "ckpt.pth"])["w"].tolist() == [0, 0]
    torch.save([last, {"state": {}, "param_groups": []}, 3, 100, averaged], tmp_path / "ckpt.pth")
    assert weights.read([tmp_path / "ckpt.pth"])["w"].tolist() == [1, 1]
    torch.save([1, "x"], tmp_path / "ckpt.pth")
    with pytest.raises(TeacherError, match="holds no state dict"):
        weights.read([tmp_path / "ckpt.pth"])
