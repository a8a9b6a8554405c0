"""The configuration package, through its front door."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
import yaml
from pydantic import Field

from dreamshard.config import load_config, to_dict, to_yaml
from dreamshard.config.allowed import walk
from dreamshard.config.yaml12 import parse_yaml
from dreamshard.errors import ConfigError, Problem


@dataclass(kw_only=True)
class TeacherConfig:
    """A part."""

    kind: Literal["noise", "diffusers"] = "noise"
    """Teacher family."""
    timestep: Annotated[int, Field(ge=0, le=999)] = 50
    """Diffusion step t, 5 % of all."""
    pool: Literal["none", "gap"] | None = None
    """Pooling."""
    levels: list[str] = field(default_factory=lambda: ["s4", "s8"])
    """Levels to record."""
    steps: list[Annotated[int, Field(ge=0)]] = field(default_factory=list)
    """Further steps."""
    size: tuple[int, int] = (16, 16)
    """Height and width in pixels."""
    settings: dict[str, int | float | str | bool] = field(default_factory=lambda: {"eta": 0.0})
    """Settings of the family."""

    def problems(self) -> list[Problem]:
        """Check what one field alone cannot tell."""
        if self.kind == "noise" and self.pool == "gap":
            return [Problem("pool", "gap", "none for noise", "Leave it out.")]
        return []


@dataclass(kw_only=True)
class RunConfig:
    """A whole."""

    root: str
    """Folder of the datasets."""
    lr: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Learning rate."""
    samples: Annotated[int, Field(ge=1)] | None = None
    """Samples wanted."""
    fsync: bool = True
    """Flush to disk."""
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig(timestep=100))
    """The network."""
    second: TeacherConfig | None = None
    """Another network."""
    more: list[TeacherConfig] = field(default_factory=list)
    """Still others."""


def load(*argv: str) -> RunConfig:
    return load_config(RunConfig, argv, prog="dreamshard run", description="Do it.")


def problems(*argv: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(*argv)
    return {problem.key: str(problem) for problem in caught.value.problems}  # type: ignore


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_defaults_files_and_overrides_in_this_order(tmp_path: Path) -> None:
    first = write(
        tmp_path / "a.yaml", "root: here\nlr: 1e-4\nteacher: {kind: diffusers, size: [8, 8]}"
    )
    second = write(tmp_path / "b.yaml", "teacher:\n  timestep: 7\n")
    config = load("--lr", "2e-4", "--config", first, f"--config={second}", "--fsync=false")
    assert config.root == "here" and config.lr == 2e-4 and config.fsync is False
    assert config.teacher == TeacherConfig(kind="diffusers", timestep=7, size=(8, 8))
    assert config.second is None and isinstance(config.teacher.size, tuple)


def test_nested_defaults_of_the_owner_survive_an_override() -> None:
    config = load("--root", "x", "--teacher.kind", "diffusers", "--second.timestep", "3")
    assert config.teacher.timestep == 100
    assert load("--root", "x", "--teacher", "{pool: none}").teacher.timestep == 100
    assert config.second == TeacherConfig(timestep=3)


def test_every_kind_of_value_on_the_command_line() -> None:
    config = load(
        *("--root", "007", "--samples", "1_000", "--lr", "1", "--teacher.pool", "none"),
        *(
            "--teacher.levels",
            "[up.0, mid]",
            "--teacher.levels+",
            "up.1",
            "--teacher.size",
            "[4, 8]",
        ),
        *("--teacher.settings.mode", "fast", "--teacher.settings.eta", "1e-2"),
    )
    assert config.root == "007" and config.samples == 1000
    assert config.lr == 1.0 and isinstance(config.lr, float)
    assert config.teacher.levels == ["up.0", "mid", "up.1"] and config.teacher.size == (4, 8)
    assert config.teacher.settings == {"eta": 0.01, "mode": "fast"}
    assert load("--root=--odd", "--samples", "null", "--teacher.pool=null").root == "--odd"


def test_lists_and_mappings_of_a_file_replace_the_default(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "root: x\nteacher: {levels: [mid], settings: {steps: 3}}")
    teacher = load("--config", path).teacher
    assert teacher.levels == ["mid"] and teacher.settings == {"steps": 3}


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.yaml",
        """
lr: 5
fsync: 'yes'
samples: 2.0
techer: {}
teacher: {timestep: 1200, nmae: x, kind: noize, size: [1], levels: mid, steps: [1, -1, a]}
second: {pool: gap}
more: [{timestep: x}]
""",
    )
    found = problems("--config", path, "--teacher.settings.eta", "[1]", "--oops", "stray")
    assert found == {
        "root": "root: got nothing, allowed text. "
        "It has no default: give --root, or set it in the file.",
        "lr": "lr: got 5, allowed number > 0, <= 1. Try --lr 0.001.",
        "fsync": 'fsync: got "yes", allowed true/false.',
        "samples": "samples: got 2.0, allowed integer >= 1 or null. Write 2.",
        "techer": "techer: got an unknown key, allowed root, lr, samples, fsync, teacher, second, "
        "more. Did you mean teacher?",
        "oops": "oops: got an unknown key, allowed root, lr, samples, fsync, teacher, second, "
        "more.",
        "teacher.timestep": "teacher.timestep: got 1200, allowed integer 0..999. "
        "Try --teacher.timestep 50.",
        "teacher.nmae": "teacher.nmae: got an unknown key, allowed kind, timestep, pool, levels, "
        "steps, size, settings.",
        "teacher.kind": 'teacher.kind: got "noize", allowed noise | diffusers. Did you mean noise?',
        "teacher.size": "teacher.size: got [1], allowed list of 2 (integer, integer).",
        "teacher.levels": 'teacher.levels: got "mid", allowed list of text. Write [mid].',
        "teacher.steps.1": "teacher.steps.1: got -1, allowed integer >= 0. Try 0.",
        "teacher.steps.2": 'teacher.steps.2: got "a", allowed integer >= 0.',
        "teacher.settings.eta": "teacher.settings.eta: got [1], "
        "allowed integer, number, text or true/false.",
        "second.pool": "second.pool: got gap, allowed none for noise. Leave it out.",
        "more.0.timestep": 'more.0.timestep: got "x", allowed integer 0..999.',
    }


def test_strict_types() -> None:
    assert "--config" not in problems("--root", "x", "--samples", "'5'")["samples"]
    assert problems("--root", "x", "--samples", "'5'")["samples"].endswith("without quotes: 5.")
    assert "quotes" not in problems("--root", "x", "--samples", "\u0661\u0662")["samples"]
    assert "fsync" in problems("--root", "x", "--fsync", "1")
    assert "lr" in problems("--root", "x", "--lr", "true")
    for word in (".nan", ".inf", "1e400"):
        assert "lr" in problems("--root", "x", "--lr", word)
    assert not any(
        "quotes" in problems("--root", "x", "--lr", word)["lr"] for word in ("nan", "inf")
    )
    assert "teacher" in problems("--root", "x", "--teacher", "3")


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_numbers_are_finite(value: str) -> None:
    words = ["--root", "x", "--lr", value, "--teacher.settings", f"{{eta: {value}}}"]
    with pytest.raises(ConfigError) as caught:
        load(*words)
    keys = [one.key for one in caught.value.problems if isinstance(one, Problem)]
    assert keys == ["lr", "teacher.settings.eta"]
    assert "a number is finite" in str(caught.value)
    with pytest.raises(ConfigError, match=r'lr: got "inf", allowed number') as caught:
        load("--root", "x", "--lr", "inf")
    assert "without quotes" not in str(caught.value)


def test_a_key_of_endless_names_is_refused() -> None:
    (key, told), *_ = problems("--root", "x", f"--{'a.' * 5000}b", "1").items()
    assert key == "a." * 20 + "..."
    assert "5,001 names" in told


def test_numbers_are_not_taken_for_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "root: 7\n")
    assert problems("--config", path)["root"].endswith('In a file, quote it: "7".')


def test_what_cannot_be_read_is_listed_too(tmp_path: Path) -> None:
    broken = write(tmp_path / "broken.yaml", "a: [1\nb: 2\n")
    twice = write(tmp_path / "twice.yaml", "root: a\nroot: b\n")
    scalar = write(tmp_path / "scalar.yaml", "just text\n")
    missing = str(tmp_path / "missing.yaml")
    files = [word for path in (broken, twice, scalar, missing) for word in ("--config", path)]
    found = problems(
        *files, "--root", "x", "stray", "--teacher.levels", "[a", "--lr", "--teacher.kind"
    )
    assert found[missing].endswith(
        "got No such file or directory, allowed a YAML file of settings. "
        "Give an existing file to --config."
    )
    assert "(line 2, column" in found[broken]
    assert "root is given twice (line 2, column 1)" in found[twice]
    assert "got a str" in found[scalar]
    assert "list is one value" in found["stray"]
    assert "got '[a', allowed list of text" in found["teacher.levels"]
    assert found["lr"].startswith("lr: got no value") and "teacher.kind" in found
    with pytest.raises(ConfigError, match="no_such: got an unknown key"):
        load("--no_such")


def test_problems_of_parts_are_asked_with_their_keys(tmp_path: Path) -> None:
    more = "root: x\nmore: [{}, {pool: gap}]\n"
    found = problems("--config", write(tmp_path / "a.yaml", more), "--teacher.pool", "gap")
    assert set(found) == {"teacher.pool", "more.1.pool"}
    found = problems("--teacher.pool", "gap", "--lr", "0")
    assert set(found) == {"teacher.pool", "lr", "root"}


def test_a_setting_at_the_wrong_place_is_found() -> None:
    assert problems("--root", "x", "--timestep", "3")["timestep"].endswith(
        "Did you mean teacher.timestep or second.timestep?"
    )


def test_yaml_1_2_scalars() -> None:
    text = (
        "[1e-4, 1_000, 010, 0x10, 0o17, -1.5, .5, .inf, off, yes, true, 1:30, 2024-01-01, ~, 1e3]"
    )
    assert parse_yaml(text) == [
        *(1e-4, 1000, 10, 16, 15, -1.5, 0.5, float("inf"), "off", "yes", True),
        *("1:30", "2024-01-01", None, 1000.0),
    ]
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}")["c"] == {"b": 1, "d": 2}
    assert parse_yaml("") is None


def test_print_config_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = (
        "--root",
        "a: b # c",
        "--teacher.levels",
        "['0o7', 'off', '1e3', x]",
        "--lr",
        "1e-7",
        "--second.timestep",
        "3",
        "--more",
        "[{}]",
    )
    with pytest.raises(SystemExit) as stop:
        load(*argv, "--print_config")
    assert not stop.value.code
    text = capsys.readouterr().out
    assert "  # Diffusion step t, 5 % of all. (integer 0..999)\n  timestep: 100\n" in text
    assert load("--config", write(tmp_path / "printed.yaml", text)) == load(*argv)


def test_print_config_shows_what_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("--print_config")
    text = capsys.readouterr().out
    assert "# Folder of the datasets. (text)\nroot: null  # required\n" in text
    assert yaml.safe_load(text)["second"] is None
    with pytest.raises(ConfigError, match="got -1"):
        load("--print_config", "--teacher.timestep", "-1")


def test_to_yaml_round_trip(tmp_path: Path) -> None:
    config = load("--root", "1e-4", "--lr", "1e-7", "--teacher.size", "[4, 8]")
    assert load("--config", write(tmp_path / "a.yaml", to_yaml(config))) == config
    assert to_dict(config)["teacher"] == {
        "kind": "noise",
        "timestep": 100,
        "pool": None,
        "levels": ["s4", "s8"],
        "steps": [],
        "size": [4, 8],
        "settings": {"eta": 0.0},
    }
    with pytest.raises(TypeError):
        to_dict([1])


def test_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        load("--no_such_setting", "--help")
    assert not stop.value.code
    text = capsys.readouterr().out
    assert text.startswith(
        "usage: dreamshard run [--config FILE] [--SETTING VALUE ...]\n\nDo it.\n"
    )
    for line in (
        "Diffusion step t, 5 % of all. (integer 0..999; default: 100)",
        "Samples wanted. (integer >= 1 or null; default: null)",
        "Folder of the datasets. (text; required)",
        "Learning rate. (number > 0, <= 1; default: 0.001)",
        "Further steps. (list of integer >= 0; default: [])",
        "Teacher family. (noise | diffusers; default: noise)",
        "--samples VALUE ",
        "--teacher.levels VALUE, --teacher.levels+ VALUE",
        "Another network. Not used (null) unless one of these is set.",
    ):
        assert line in text


@dataclass(kw_only=True)
class LongConfig(RunConfig):
    """A whole with many settings."""

    main_settings: ClassVar[str] = "lr teacher.kind"


def test_help_shows_the_main_settings_and_all_on_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = []
    for words in (["--help"], ["--help", "all"], ["--lr", "all", "--help"]):
        with pytest.raises(SystemExit):
            load_config(LongConfig, words, prog="dreamshard run", description="Do it.")
        text = capsys.readouterr().out
        shown.append([line.split()[0] for line in text.splitlines() if line.startswith("  --")])
    flags = ["--config", "--print_config", "--debug"]
    assert shown[0] == shown[2] == [*flags, "--root", "--lr", "--teacher.kind"]
    every = [f"--{setting.key}" for setting in walk(LongConfig, {}) if not setting.is_heading]
    assert set(shown[1]) == {*flags, *every} and len(every) == 19
    assert "`dreamshard run --help all` shows every setting." in text


def test_recipes_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "dreamshard" / "config" / "yaml12.py"
    (tmp_path / "site" / "recipes").mkdir(parents=True)
    write(tmp_path / "site" / "recipes" / "x.yaml", "root: installed\n")
    monkeypatch.setattr("dreamshard.config.yaml12.__file__", str(package))
    monkeypatch.chdir(tmp_path)
    assert load("--config", "recipes/x.yaml").root == "installed"
    (tmp_path / "recipes").mkdir()
    write(tmp_path / "recipes" / "x.yaml", "root: own\n")
    assert load("--config", "recipes/x.yaml").root == "own"


def test_a_home_is_meant_in_files_and_lists_too(tmp_path: Path, monkeypatch) -> None:
    """A shell replaces ~ at the head of a word, not in YAML, where it would name a folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("teacher: {levels: [~/a, b~/c]}\n")
    for argv in (["--config", "~/c.yaml"], ["--teacher.levels=[~/a, b~/c]"]):
        assert load("--root", "~", *argv).teacher.levels == [f"{tmp_path}/a", "b~/c"]


def test_a_url_of_one_slash_is_refused_with_what_was_meant() -> None:
    with pytest.raises(ConfigError, match=r"root: got s3:/b/x, allowed .*mean s3://b/x\?"):
        load("--root", "s3:/b/x")


@dataclass(kw_only=True)
class WritingConfig:
    """Folders that are written."""

    run_dir: str = ""
    """Of the run."""
    out: str = ""
    """Of the result."""
    root: str = ""
    """Of the datasets."""


@pytest.mark.parametrize("key", ["run_dir", "out"])
def test_a_folder_that_is_written_is_no_url(key: str) -> None:
    """As a path it would be a folder called `s3:` in the working folder, and the store empty."""
    config = load_config(WritingConfig, ["--root", "s3://b/data"], prog="x", description="")
    assert config.root == "s3://b/data"
    with pytest.raises(ConfigError, match=f"{key}: got s3://b/x, allowed a folder of this machine"):
        load_config(WritingConfig, [f"--{key}", "s3://b/x"], prog="x", description="")
