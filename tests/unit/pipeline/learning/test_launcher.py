"""What a launcher and the environment say otherwise than the settings is refused."""

from __future__ import annotations

import socket

import pytest

from distill import evaluate
from dreamshard.errors import ConfigError, DreamshardError
from pipeline import interpret
from pipeline.learning import launcher
from pipeline.learning.launcher import launcher_problems, start
from pipeline.learning.pretraining.cleaning import command as clean

NAMES = {"bf16": "bf16", "fp16": "fp16"}


def problems(environment: dict[str, str], *, precision: str = "fp32", device: str = "cpu") -> str:
    instead = {"accumulate": "Take --accumulate {}."}
    found = launcher_problems(
        environment, device=device, precision=precision, names=NAMES, instead=instead
    )
    return "\n".join(map(str, found))


def test_what_accelerate_launch_says_by_itself_is_no_problem() -> None:
    usual = {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_USE_CPU": "True",
        "ACCELERATE_USE_FSDP": "false",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    }
    assert not problems({}) and not problems(usual)
    assert not problems({"ACCELERATE_MIXED_PRECISION": "bf16"}, precision="bf16")
    assert not problems({"ACCELERATE_MIXED_PRECISION": "no"}, precision="bf16")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "--precision bf16"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "got 'fp8'"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "Take --accumulate 4"),
        ("ACCELERATE_GRADIENT_CLIPPING", "1.0", "allowed none"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "got inductor"),
        ("ACCELERATE_USE_FSDP", "true", "checkpoints hold whole weights"),
        ("ACCELERATE_USE_DEEPSPEED", "1", "checkpoints hold whole weights"),
        ("ACCELERATE_TORCH_DEVICE", "cuda:1", "allowed cpu"),
    ],
)
def test_what_would_change_results_is_refused(name: str, value: str, said: str) -> None:
    text = problems({name: value})
    assert text.startswith(f"{name}: got") and said in text


def test_cpus_are_refused_where_gpus_are_asked_for() -> None:
    assert "--device cpu" in problems({"ACCELERATE_USE_CPU": "true"}, device="cuda")


def test_the_accelerator_divides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.state import AcceleratorState

    from dreamshard.errors import ConfigError

    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    joined = start(device="cpu", precision="fp32", names=NAMES, instead={})
    assert joined.gradient_accumulation_steps == 1 and joined.mixed_precision == "no"
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ConfigError, match="GRADIENT_ACCUMULATION_STEPS: got 4"):
        start(device="cpu", precision="fp32", names=NAMES, instead={})


def test_a_launcher_that_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(launcher, "PATIENCE_S", 0.1)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    with pytest.raises(DreamshardError, match=f"launcher at 127.0.0.1:{port}.*start the command"):
        start(device="cpu", precision="fp32", names=NAMES, instead={})


def test_whose_launcher_has_died_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_parents", [])
    monkeypatch.setattr("os.getppid", lambda: 7)
    launcher._meet_launcher({"RANK": "0"})
    monkeypatch.setattr("os.getppid", lambda: 1)
    assert not launcher.has_died(), "a shell may end before what it started"
    monkeypatch.setattr("os.getppid", lambda: 7)
    launcher._meet_launcher({"RANK": "0", "TORCHELASTIC_RUN_ID": "none"})
    assert not launcher.has_died()
    monkeypatch.setattr("os.getppid", lambda: 1)
    assert launcher.has_died()


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (evaluate.main, ["--student", "s"]),
        (interpret.main, ["--classes", "[a, b]"]),
        (clean.main, ["--teacher", "t"]),
    ],
)
def test_what_one_process_does_is_refused_to_several(main, argv: list[str], monkeypatch) -> None:
    """Each of torchrun's would do all of it, into one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = r"WORLD_SIZE: got 2, allowed 1: one process does all of \w+\. Start it without torchrun"
    with pytest.raises(ConfigError, match=said):
        main(argv)
    monkeypatch.setenv("WORLD_SIZE", "1")
    launcher.check_one("evaluate")
