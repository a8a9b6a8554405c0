"""The demo's order of stages, what it reuses, and how it stops; the stages themselves are faked."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dreamshard.console import cli, demo
from dreamshard.errors import ConfigError, DataError, run_main
from dreamshard.owner.alone import only_one

RESULT = {
    "images": {"heldout": 500},
    "few_label": {
        "subject": "distilled student",
        "rows": {
            "pixels": {
                "1": {"mean": 59.8, "std": 2.0, "scaling": "centred"},
                "20": {"mean": 92.7, "std": 0.5, "scaling": "standardised"},
            },
            "distilled student": {"1": {"mean": 62.2, "std": 2.0}, "20": {"mean": 94.4, "std": 1}},
        },
        "paired": {
            "pixels": {
                "1": {"mean": 2.4, "wins": 9, "ties": 0, "losses": 1},
                "20": {"mean": 1.7, "wins": 8, "ties": 1, "losses": 1},
            }
        },
    },
}
Verb = Callable[[Sequence[str]], int]


def run_folder(verb: str, argv: Sequence[str]) -> Path | None:
    """Return the run folder that a command's arguments name; a report has none."""
    if verb == "report":
        return None
    given = dict(zip(argv[::2], argv[1::2], strict=False))
    return Path(given["--out"]) / "run" if verb == "pretrain" else Path(given["--run_dir"])


class Stages:
    """Stand in for the commands: record the calls and leave behind what the demo looks at."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str], list[str]]] = []
        self.failures: dict[str, int | BaseException] = {}

    def load_verb(self, verb: str) -> Verb:
        def main(argv: Sequence[str]) -> int:
            self.calls.append((verb, list(argv), list(sys.argv)))
            folder = run_folder(verb, argv)
            done = folder is not None and (folder / "done").exists()
            if folder is not None and not done:
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / "command.txt").open("a") as history:
                    history.write("dreamshard\n")
                os.utime(folder / "command.txt", ns=(len(self.calls), len(self.calls)))
            failure = self.failures.pop(verb, None)
            if isinstance(failure, BaseException):
                raise failure
            if folder is not None and not failure:
                (folder / "done").touch()
            if verb == "evaluate" and folder is not None:
                sys.stdout.write("the command's own table\n")
                (folder / "results.json").write_text(json.dumps(RESULT))
            return failure or 0

        return main

    @property
    def verbs(self) -> list[str]:
        return [verb for verb, _, _ in self.calls]

    def settings(self, verb: str) -> dict[str, str]:
        argv = [argv for name, argv, _ in self.calls if name == verb][-1]
        return dict(zip(argv[::2], argv[1::2], strict=False))


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stages:
    fake = Stages()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "load_verb", fake.load_verb)
    monkeypatch.setattr(demo, "find_dataset", lambda argv: "runs/demo/datasets/digits-1-2")
    return fake


def index() -> dict[str, dict[str, object]]:
    return json.loads(Path("runs/demo/demo.json").read_text())


def test_stages_run_in_order_and_hand_their_results_on(
    stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main([]) == 0
    assert stages.verbs == list(demo.STAGES)
    assert stages.settings("encode")["--teacher.path"] == "runs/demo/teacher"
    assert stages.settings("encode")["--root"] == "runs/demo/datasets"
    assert stages.settings("train")["--data.dataset"] == "runs/demo/datasets/digits-1-2"
    assert stages.settings("evaluate")["--student"] == "runs/demo/train-001"
    assert stages.calls[-1][1] == ["runs/demo"]
    shown = capsys.readouterr()
    for number, verb in enumerate(demo.STAGES, 1):
        assert f"[{number}/5] {verb}  (equivalent: dreamshard {verb} " in shown.err
        assert f"[{number}/5] {verb}: done" in shown.err


def test_every_stage_sees_the_command_line_that_is_shown(stages: Stages) -> None:
    before = list(sys.argv)
    demo.main(["--fast"])
    assert sys.argv == before
    for verb, argv, seen in stages.calls:
        assert seen == ["dreamshard", verb, *argv]
        assert verb == "report" or Path(argv[1]).exists()  # the recipe


def test_it_ends_with_the_table_the_report_and_the_next_command(
    stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.main([])
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].startswith("Linear probes, % of the 500 held-out digits recognised (features")
    assert [line.split() for line in lines[1:6]] == [
        "labels per class 1 20".split(),
        "pixels 59.8 ± 2.0 c 92.7 ± 0.5 s".split(),
        "distilled student 62.2 ± 2.0 94.4 ± 1.0".split(),
        "distilled student better than".split(),
        "pixels +2.4 (9 of 10) +1.7 (8 of 10)".split(),
    ]
    assert {len(line) for line in (*lines[1:4], lines[5])} == {len(lines[1])}
    assert lines[-2].split() == ["report", str(Path("runs/demo/report.html").resolve())]
    assert lines[-1].startswith("next    dreamshard synthesize --config ")
    assert not any("own table" in line for line in lines)


def test_a_second_demo_reuses_teacher_and_features_and_trains_anew(
    stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.main([])
    first = index()
    demo.main([])
    shown = capsys.readouterr().err
    assert "[1/5] pretrain: reused" in shown
    assert "[2/5] encode: reused" in shown
    assert shown.count("[3/5] train: done") == 2
    second = index()
    assert second["runs"]["train"] == "train-002"
    assert second["seconds"]["encode"] == first["seconds"]["encode"]


def test_other_settings_keep_to_folders_of_their_own(stages: Stages) -> None:
    demo.main([])
    demo.main(["--seed", "3", "--fast"])
    assert stages.settings("pretrain")["--out"] == "runs/demo/teacher-fast-seed3"
    assert stages.settings("train")["--run_dir"] == "runs/demo/train-fast-seed3-001"
    assert stages.settings("train")["--seed"] == "3"
    demo.main([])
    assert stages.settings("train")["--run_dir"] == "runs/demo/train-002"


def test_a_failing_stage_stops_the_demo_with_its_exit_code(stages: Stages) -> None:
    stages.failures["encode"] = DataError.exit_code
    assert demo.main([]) == DataError.exit_code
    assert stages.verbs == ["pretrain", "encode"]
    stages.failures["encode"] = DataError("damaged")
    assert run_main(demo.main, []) == DataError.exit_code


@pytest.mark.parametrize("verb", demo.STAGES)
def test_an_interrupted_demo_goes_on_where_it_stopped(
    verb: str, stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.failures[verb] = KeyboardInterrupt()
    assert demo.main([]) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert demo.main([]) == 0
    assert index()["runs"]["train"] == "train-001"
    assert index()["unfinished_seconds"] == {}
    assert set(index()["seconds"]) >= {"teacher/run", "encode", "train-001"}


def test_a_training_of_other_settings_is_left_alone(
    stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.failures["train"] = KeyboardInterrupt()
    demo.main([])
    stages.failures["train"] = ConfigError("run_dir: holds a run of other settings")
    assert demo.main([]) == 0
    assert index()["runs"]["train"] == "train-002"
    assert "train-001 was made with other settings: it is kept" in capsys.readouterr().err


def test_a_teacher_of_other_settings_is_left_alone(stages: Stages) -> None:
    demo.main([])
    stages.failures["pretrain"] = ConfigError("out: holds a teacher of other settings")
    assert demo.main([]) == 0
    assert stages.settings("encode")["--teacher.path"] == "runs/demo/teacher-2"
    assert index()["runs"]["pretrain"] == "teacher-2/run"


def test_a_wrong_setting_is_not_tried_twice(stages: Stages) -> None:
    stages.failures["train"] = ConfigError("student.name: unknown")
    with pytest.raises(ConfigError, match="unknown"):
        demo.main([])
    assert stages.verbs.count("train") == 1


def test_two_demos_in_one_folder_are_refused(stages: Stages) -> None:
    with only_one(Path("runs/demo")):
        with pytest.raises(ConfigError, match=rf"process {os.getpid()} .* at work.*--out"):
            demo.main([])
        assert demo.main(["--out", "elsewhere"]) == 0
    assert demo.main([]) == 0


def test_bad_options_are_configuration_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed: got -1, allowed 0 or more"):
        demo.main(["--seed", "-1"])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="allowed a folder to write to"):
        demo.main(["--out", str(tmp_path / "file" / "demo")])
    with pytest.raises(SystemExit) as stop:
        demo.main(["--sed", "1"])
    assert stop.value.code == ConfigError.exit_code


def test_a_damaged_index_is_made_again(stages: Stages) -> None:
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/demo.json").write_text("{")
    assert demo.main([]) == 0
    assert index()["runs"]["train"] == "train-001"
