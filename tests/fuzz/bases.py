"""What is mutated: small datasets, teachers, students, runs and configurations, made once."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.configs.train import TrainConfig

from storage.dataset import Dataset
from storage.ledger import holds
from tests.feature_store import LEVELS, fill, make_batch, make_dataset, make_recipe
from tests.unit.dreamshard.console.importing.folders import make_folder

ROOT = Path(__file__).resolve().parents[2]
MAP = LEVELS[:2]
SIDE = {"image_size": "16", "head_dim": "4", "norm_num_groups": "4"}
"""What a checkpoint of a UNet2DModel does not say itself."""


class Runs:
    """Run a command when it is unpickled.

    Args:
        marker: file that the command would make.
    """

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def make(kind: str, base: Path) -> None:
    """Make what cases of a kind mutate, below a folder: `dataset/zarr`, `teacher/unet`, ...

    Whatever is code in it would make the file `base/EXECUTED`.
    """
    folder, marker = base / kind, base / "EXECUTED"
    folder.mkdir(parents=True)
    if kind == "dataset":
        _dataset(folder / "zarr", "zarr", "float16", history=True)
        _dataset(folder / "packed", "zarr", "lowrank2-int8+zstd", history=False)
        _dataset(folder / "tar", "tar", "int8", history=False)
        _dataset(folder / "tar-bases", "tar", "lowrank2-int8", history=False)
    elif kind == "teacher":
        _teachers(folder, marker)
    elif kind == "student":
        _students(folder, marker)
    elif kind == "shards":
        make_folder(folder / "theia")
        make_folder(folder / "features", images=False)
    elif kind == "run":
        _run(folder / "train", base / "small")
    else:
        for path in (ROOT / "recipes").glob("*/*.yaml"):
            (folder / f"{path.parent.name}-{path.stem}").mkdir()
            shutil.copy(path, folder / f"{path.parent.name}-{path.stem}" / "config.yaml")


def _dataset(root: Path, layout_format: str, codec: str, *, history: bool) -> None:
    recipe = make_recipe(layout_format=layout_format, count=20, levels=MAP, codec=codec)
    dataset = make_dataset(root, recipe=recipe, levels=MAP)
    if dataset.unfitted():
        dataset.fit(make_batch(0, 20, levels=MAP))
    fill(dataset, 20, invalid=(5,))
    if history:
        dataset.invalidate(1, reason="fuzz")
        fill(dataset, 20, run_id="again")
        dataset.drop(["key/3"], reason="fuzz")
        holds.pin(dataset.files, name="fuzz", reason="kept")
        dataset.quarantine(3, error="fuzz", attempts=3)
    # One folder of one name, so that a case's path says what it is.
    Path(dataset.url).rename(root / "data")


def _teachers(folder: Path, marker: Path) -> None:
    import torch
    from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = UNet2DModel(
            sample_size=16,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            attention_head_dim=4,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
        dit = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=3,
            num_layers=2,
            sample_size=8,
            norm_num_groups=4,
            num_embeds_ada_norm=10,
        )
    net.save_pretrained(folder / "unet")
    DDPMScheduler().save_pretrained(folder / "unet" / "scheduler")
    (folder / "unet" / "teacher_card.json").write_text(json.dumps({"licence": "test"}))
    dit.save_pretrained(folder / "dit" / "transformer")
    DDPMScheduler().save_pretrained(folder / "dit" / "scheduler")
    code = f"import os\nos.system('touch {marker}')\n"
    for place in ("unet", "dit"):
        for name in ("modeling.py", "__init__.py", "unet_2d.py", "pipeline.py"):
            (folder / place / name).write_text(code)
    for name, value in (
        ("file", net.state_dict()),
        ("reduce", {**net.state_dict(), "evil": Runs(marker)}),
        ("wrapped", {"state_dict": net.state_dict(), "epoch": 3}),
    ):
        (folder / name).mkdir()
        torch.save(value, folder / name / "model.pt")
    (folder / "legacy").mkdir()
    (folder / "legacy" / "model.pt").write_bytes(pickle.dumps(Runs(marker), 2))


def _students(folder: Path, marker: Path) -> None:
    from distill.configs.train import StudentConfig
    from distill.students.export import export_student
    from distill.students.student import build_student

    for name, config, strides in (
        (
            "own",
            StudentConfig(name="cifar_resnet", settings={"depths": [1, 1], "widths": [8, 8]}),
            (1, 2),
        ),
        ("timm", StudentConfig(name="mobilenetv3_small_050"), (4, 8)),
    ):
        (folder / name).mkdir(parents=True)
        export_student(
            build_student(config, strides=strides, seed=0, image_size=(32, 32)),
            folder / name / "student",
            config=config,
            levels=["a", "b"],
            image_size=(32, 32),
            seed=0,
            provenance={"steps": 1, "licence": "test"},
        )
        for code in ("hubconf.py", "modeling.py", "__init__.py"):
            text = f"import os\nos.system('touch {marker}')\ndef evil(**k): raise ValueError\n"
            (folder / name / "student" / code).write_text(text)


def train_config(run_dir: Path, dataset: str) -> TrainConfig:
    """Return the smallest training there is."""
    from distill.configs.train import DataConfig, DreamTeacherConfig, StudentConfig, TrainConfig

    return TrainConfig(
        run_dir=str(run_dir),
        steps=4,
        batch_size=8,
        log_every=1,
        save_every=2,
        device="cpu",
        threads=1,
        data=DataConfig(dataset=dataset, threads=1),
        student=StudentConfig(
            name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [8, 8, 8]}
        ),
        dreamteacher=DreamTeacherConfig(width=8),
    )


def _run(run_dir: Path, data: Path) -> None:
    from distill.train import train
    from tests.unit.distill import small_data

    dataset = small_data.make_dataset(data, num_samples=32)
    config = train_config(run_dir, dataset.url)
    run_dir.mkdir(parents=True)
    train(config)


def open_url(url: str) -> Dataset:
    """Open a dataset as `dreamshard.open_dataset` does."""
    import dreamshard

    found: Any = dreamshard.open_dataset(url)
    return found
