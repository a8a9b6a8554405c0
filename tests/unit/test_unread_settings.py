"""A setting that what was chosen does not read is refused, in every configuration and choice."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill.configs.evaluate import EvaluateConfig
from distill.configs.methods import METHODS, DreamTeacherConfig
from distill.configs.tasks import TASKS
from distill.configs.train import TrainConfig
from dreamshard.config import check, load_config, to_dict
from dreamshard.config.allowed import choices, nested, schema_of
from dreamshard.config.reads import OWN, Table, default_of, rules_of, unread
from dreamshard.errors import ConfigError
from pipeline.images.source import EVERY, LATENTS, READS, SOURCES, SourceConfig, open_source
from pipeline.learning.interpreting.config import InterpretConfig
from pipeline.learning.pretraining.cleaning.config import CleanConfig
from pipeline.learning.pretraining.config import PretrainConfig
from pipeline.request.config import EncodeConfig, SynthesizeConfig
from pipeline.request.plan_command import EncodePlanConfig, SynthesizePlanConfig
from pipeline.streaming.config import PartConfig, ServeConfig
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.load import TEACHERS
from tests.setting_reads import Reads

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    *(EncodeConfig, SynthesizeConfig, EncodePlanConfig, SynthesizePlanConfig, ServeConfig),
    *(PretrainConfig, CleanConfig, InterpretConfig, TrainConfig, EvaluateConfig, PartConfig),
)


def reachable(cls: type) -> Iterator[type]:
    yield cls
    for inner in nested(cls).values():
        yield from reachable(inner)


CONFIGS = list(dict.fromkeys(one for cls in COMMANDS for one in reachable(cls)))
TABLES = [(cls, rule) for cls in CONFIGS for rule in rules_of(cls) if isinstance(rule, Table)]


def other(value: Any, node: dict) -> Any:
    """Return another value of the kind of a setting's."""
    words = [word for word in choices(node) if word != value]
    if words:
        return [words[0]] if isinstance(value, list) else words[0]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return {str: "x", list: ["x"], dict: {"x": 1}, type(None): 1}[type(value)]


def changed(config: Any, name: str) -> Any:
    """Return a configuration with the first setting at or below a dotted name changed."""
    head, _, rest = name.partition(".")
    value = getattr(config, head)
    if dataclasses.is_dataclass(value):
        new = changed(value, rest or dataclasses.fields(value)[0].name)
    else:
        new = other(value, schema_of(type(config))["properties"][head])
    return dataclasses.replace(config, **{head: new})


def values_of(cls: type, table: Table) -> list[Any]:
    node = schema_of(cls)["properties"][table.choice]
    literal: list[Any] = choices(node) or choices(node.get("items", {}))
    if node.get("type") == "boolean":
        literal = [True, False]
    return list(dict.fromkeys([*literal, *(v for v in table.rows if v not in (OWN, "auto"))]))


@pytest.mark.parametrize(
    ("cls", "table"), TABLES, ids=[f"{cls.__name__}-{table.choice}" for cls, table in TABLES]
)
def test_every_choice_refuses_what_only_others_read(cls: type, table: Table) -> None:
    usual, refused = default_of(cls), 0
    is_list = isinstance(getattr(usual, table.choice), list)
    for value in values_of(cls, table):
        config = dataclasses.replace(usual, **{table.choice: [value] if is_list else value})
        for name in table.governed:
            found = [p for p in unread(changed(config, name), config) if p.key.startswith(name)]
            if name not in table.rows.get(value, "").split():
                refused += 1
                assert found and found[0].hint.startswith("It is read "), (value, name)
    assert refused, "a table without a choice that refuses anything is none"


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_declared_settings_exist(cls: type) -> None:
    """A rename would otherwise leave a rule behind that nobody asks."""
    usual = default_of(cls)
    for rule in rules_of(cls):
        for name in rule.governed:
            node: Any = usual
            for part in name.split("."):
                assert part in {item.name for item in dataclasses.fields(node)}, name
                node = getattr(node, part)
        if isinstance(rule, Table) and choices(schema_of(cls)["properties"][rule.choice]):
            known = choices(schema_of(cls)["properties"][rule.choice])
            assert {str(value) for value in rule.rows} - {OWN} <= set(known) | {"auto"}


@pytest.mark.parametrize("cls", COMMANDS, ids=lambda cls: cls.__name__)
def test_defaults_are_not_refused(cls: type) -> None:
    """A whole configuration that was printed reads back."""
    config = default_of(cls)
    assert not list(unread(config)) and default_of(cls) == config
    _, problems = check(cls, json.loads(json.dumps(to_dict(config))))
    assert not [problem for problem in problems if problem.hint.startswith("It is read ")]


def test_kinds_of_sources_declare_what_their_code_reads() -> None:
    assert set(READS) == {*SOURCES, LATENTS, OWN}
    fields = {item.name for item in dataclasses.fields(SourceConfig)} - {"kind"}
    assert fields == set(EVERY.split())
    base = (ROOT / "pipeline/images/source.py").read_text(encoding="utf-8")
    for kind, target in SOURCES.items():
        path = ROOT / (target.partition(":")[0].replace(".", "/") + ".py")
        reads = Reads([ast.parse(base), ast.parse(path.read_text(encoding="utf-8"))])
        own = Reads([ast.parse(base)]).found
        read = {name for owner, name in reads.found - own if owner == "SourceConfig"}
        read |= {name for name in ("path", "split") if f"config.{name}" in path.read_text()}
        assert read & fields == set(READS[kind].split()), kind


def test_every_name_of_a_table_is_a_choice_that_was_thought_of() -> None:
    def rows(cls: type, choice: str) -> set[object]:
        tables = [rule for owner, rule in TABLES if owner is cls and rule.choice == choice]
        return set().union(*(set(table.rows) for table in tables)) - {OWN}

    assert rows(TrainConfig, "method") == set(METHODS)
    assert rows(EvaluateConfig, "tasks") == set(TASKS)
    assert rows(TeacherConfig, "kind") == set(TEACHERS)


def recorder(cls: type, read: set[str]) -> type:
    """Make a configuration class that notes which of its fields are asked for."""
    names = {item.name for item in dataclasses.fields(cls)}

    def note(self: Any, name: str) -> Any:
        if name in names:
            read.add(name)
        return object.__getattribute__(self, name)

    return type(cls.__name__, (cls,), {"__getattribute__": note})


def governed(cls: type) -> set[str]:
    return {name for rule in rules_of(cls) for name in rule.governed}


@pytest.mark.parametrize("mode", ["feature", "label", "mix"])
@pytest.mark.parametrize("regressor", ["fpn", "fpn_ppm"])
def test_dreamteacher_reads_what_its_modes_declare(mode: str, regressor: str) -> None:
    """Built and run with a configuration that keeps books; `scales` goes to every regressor."""
    import torch

    from distill.configs.student import StudentConfig
    from distill.methods.dreamteacher import DreamTeacher
    from distill.students.student import build_student
    from storage.schema import Level

    torch.manual_seed(0)
    read: set[str] = set()
    config = recorder(DreamTeacherConfig, read)(mode=mode, regressor=regressor, width=8)
    config.head_width = 8
    wanted = config.kinds()
    usual: dict[str, Any] = {"timestep": 0, "draw": 0, "pool": "none", "stride": 2}
    levels = [
        Level(name=kind, kind=kind, tap=f"{kind}:4", shape=(4, 8, 8), dtype="float16", **usual)
        for kind in wanted
    ]
    student = build_student(
        StudentConfig(name="cifar_resnet", settings={"depths": [1, 1], "widths": [8, 8]}),
        strides=(2,), seed=0,
    )  # fmt: skip
    read.clear()
    method = DreamTeacher(config, student=student, levels=levels, image_size=(16, 16), seed=0)
    method(torch.rand(4, 3, 16, 16), {level.name: torch.rand(4, 4, 8, 8) for level in levels})
    read.discard("cosine_share")  # handed on to a function that leaves it
    if regressor != "fpn_ppm":
        read.discard("pool_scales")
    refused = {
        problem.key
        for problem in unread(all_changed(DreamTeacherConfig(mode=mode, regressor=regressor)))  # type: ignore[arg-type]
    }
    declared = governed(DreamTeacherConfig) - {"regressor", "whiten", "regression"}  # choices
    assert read & declared == declared - refused


def all_changed(config: Any) -> Any:
    chosen = {rule.choice for rule in rules_of(type(config)) if isinstance(rule, Table)}
    for name in governed(type(config)) - chosen:
        config = changed(config, name)
    return config


REFUSED = [
    (EncodeConfig, "--source.kind digits --source.path photos", "source.path"),
    (EncodeConfig, "--source.kind digits --source.class_folders true", "source.class_folders"),
    (EncodeConfig, "--source.kind folder --source.path x --source.split test", "source.split"),
    (EncodeConfig, "--source.kind parquet --source.path x --source.name a", "source.name"),
    (EncodeConfig, "--teacher.kind noise --teacher.path x", "teacher.path"),
    (EncodeConfig, "--image.shift 0.2", "image.shift"),
    (EncodeConfig, "--assume.image_size 64", "assume.image_size"),
    (SynthesizeConfig, "--assume.samples 64", "assume.samples"),
    (EncodePlanConfig, "--gpu_hour_price 2", "gpu_hour_price"),
    (ServeConfig, "--mode synthesize --source.path photos", "source.path"),
    (ServeConfig, "--mode synthesize --image.size 64", "image.size"),
    (ServeConfig, "--root elsewhere", "root"),
    (ServeConfig, "--format tar", "format"),
    (ServeConfig, "--patience_s 3", "patience_s"),
    (ServeConfig, "--weight 3", "weight"),
    (ServeConfig, "--mix [{dataset: a, seed: 4}]", "mix.0.seed"),
    (ServeConfig, "--mix [{mode: synthesize, source: {path: a}}]", "mix.0.source.path"),
    (PretrainConfig, "--source.kind digits --source.path photos", "source.path"),
    (PretrainConfig, "--unet.config c.json --unet.dropout 0.1", "unet.dropout"),
    (PretrainConfig, "--objective.kind edm --objective.min_snr 5", "objective.min_snr"),
    (PretrainConfig, "--objective.kind flow --objective.noise_schedule cosine",
     "objective.noise_schedule"),
    (PretrainConfig, "--distance_samples 64", "distance_samples"),
    (InterpretConfig, "--target label --dice_weight 1", "dice_weight"),
    (InterpretConfig, "--image.views 2", "image.views"),
    (InterpretConfig, "--draw even", "draw"),
    (TrainConfig, "--data.kind live --data.dataset d", "data.dataset"),
    (TrainConfig, "--data.kind live --data.threads 5", "data.threads"),
    (TrainConfig, "--data.kind live --data.stream.actors 5", "data.stream.actors"),
    (TrainConfig, "--data.kind live --data.stream.ray.address a:1", "data.stream.ray.address"),
    (TrainConfig, "--data.kind stream --data.stream.run_dir r", "data.stream.run_dir"),
    (TrainConfig, "--data.kind stream --data.allow_holes true", "data.allow_holes"),
    (TrainConfig, "--data.dataset d --data.stream.mode synthesize", "data.stream.mode"),
    (TrainConfig, "--data.dataset d --method simsiam --dreamteacher.width 9",
     "dreamteacher.width"),
    (TrainConfig, "--data.dataset d --method simsiam --data.levels [a]", "data.levels"),
    (TrainConfig, "--data.dataset d --vicreg.augment.flip 0", "vicreg.augment.flip"),
    (TrainConfig, "--data.dataset d --dreamteacher.temperature 3", "dreamteacher.temperature"),
    (TrainConfig, "--data.dataset d --dreamteacher.mode label --dreamteacher.bridge interpolate",
     "dreamteacher.bridge"),
    (TrainConfig, "--data.dataset d --monitor.samples 64", "monitor.samples"),
    (TrainConfig, "--data.dataset d --monitor.every 10 --monitor.kind probe "
     "--monitor.neighbours 3", "monitor.neighbours"),
    (TrainConfig, "--data.dataset d --optimizer.name sgd --optimizer.betas [0.9,0.99]",
     "optimizer.betas"),
    (EvaluateConfig, "--tasks [knn] --few_label.draws 3", "few_label.draws"),
    (EvaluateConfig, "--tasks [linear_probe] --linear_probe.bigbigan.steps 3",
     "linear_probe.bigbigan.steps"),
    (EvaluateConfig, "--baselines [pixels] --teacher.path t", "teacher.path"),
    (EvaluateConfig, "--tasks [finetune] --pool last", "pool"),
    (EvaluateConfig, "--tasks [detection] --detection.train_annotations a "
     "--detection.heldout_annotations b --train_images.path p", "train_images.path"),
    (EvaluateConfig, "--tasks [segmentation] --segmentation.classes [a,b] "
     "--segmentation.head fcn --segmentation.width 64", "segmentation.width"),
    (EvaluateConfig, "--tasks [segmentation] --segmentation.classes [a,b] "
     "--segmentation.draw even", "segmentation.draw"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "words", "key"), REFUSED, ids=[f"{c.__name__}-{w}" for c, w, _ in REFUSED]
)
def test_commands_refuse_it_by_name(cls: type, words: str, key: str) -> None:
    argv: list[str] = []
    for word in words.split(" --"):
        name, _, value = word.removeprefix("--").partition(" ")
        argv += [f"--{name}", value]
    with pytest.raises(ConfigError) as caught:
        load_config(cls, argv, prog="x", description="")
    keys = [problem.key for problem in caught.value.problems if not isinstance(problem, str)]
    assert key in keys, str(caught.value)


def test_a_default_of_its_place_is_no_setting(tmp_path: Path) -> None:
    """Images to judge on are the held-out part where the kind has parts, and a folder's all."""
    from PIL import Image

    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "x.png")
    folder = SourceConfig(kind="folder", path=str(tmp_path))
    assert len(open_source(folder, key="heldout_images", part="heldout")) == 1
    assert len(open_source(SourceConfig(kind="digits"), part="heldout")) == 500
    wrong = SourceConfig(path=str(tmp_path), split="test")
    with pytest.raises(ConfigError, match=r"heldout_images\.split: got test.*hf"):
        open_source(wrong, key="heldout_images", part="heldout")


def test_a_module_of_the_users_own_reads_everything() -> None:
    source = SourceConfig(kind="my:Source", path="p", split="s", class_folders=True)
    assert not list(unread(source))
    teacher = TeacherConfig(kind="my:Teacher", path="p", timesteps=[3], draws=2)
    assert not list(unread(teacher))


def load(cls: type, file: Path, *argv: str) -> Any:
    return load_config(cls, ["--config", str(file), *argv], prog="x", description="")


def test_a_choice_typed_over_a_file_leaves_its_other_settings_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`--image.views 1` over a recipe with views means it; what is dropped is said."""
    file = ROOT / "recipes" / "digits" / "encode.yaml"
    config = load(EncodeConfig, file, "--image.views", "1")
    assert config.image.shift == 0.0625 and "image.shift: 0.125 of the file" in caplog.text
    file = ROOT / "recipes" / "digits" / "train.yaml"
    config = load(TrainConfig, file, "--method", "simsiam", "--simsiam.width", "64")
    assert config.dreamteacher == DreamTeacherConfig() and config.simsiam.width == 64
    file = ROOT / "recipes" / "cifar10" / "evaluate.yaml"
    assert load(EvaluateConfig, file, "--tasks", "[knn]").knn.k == [1, 20, 200]


def test_what_is_typed_itself_is_refused_all_the_same(tmp_path: Path) -> None:
    file = ROOT / "recipes" / "digits" / "encode.yaml"
    with pytest.raises(ConfigError, match=r"image\.shift: got 0\.2"):
        load(EncodeConfig, file, "--image.views", "1", "--image.shift", "0.2")
    own = tmp_path / "x.yaml"
    own.write_text("image: {views: 1, shift: 0.2}\n")
    with pytest.raises(ConfigError, match=r"image\.shift: got 0\.2"):
        load(EncodeConfig, own, "--image.size", "32")
