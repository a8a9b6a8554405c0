"""Start a training process: device, number format, ranks; and end it cleanly."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from distill.training.batch_norm import share_batch_norm, shares_statistics
from dreamshard.errors import ConfigError, Problem
from pipeline.learning.device import choose_device, on_device

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.methods.base import Method

INSTEAD = {
    "accumulate": "Unset it; --accumulate {} works on a step's batch in parts.",
    "clip": "Unset it; --optimizer.clip is the largest norm of the gradient.",
    "compile": "Unset it; --student.compile compiles the backbone.",
}
"""Settings that stand here for what a launcher may be told."""


def start_accelerator(
    *,
    device: str,
    precision: str,
    trackers: Sequence[str],
    run_dir: str,
    batch_size: int,
    parts: int,
    sync_batchnorm: str,
) -> Accelerator:
    """Join the other ranks, if a launcher started any, on the device and format asked for.

    Args:
        device: auto, cpu or cuda.
        precision: fp32, bf16 or fp16.
        trackers: where metrics go besides the run folder.
        run_dir: the run's folder.
        batch_size: samples per step, over all ranks.
        parts: that a step's batch is worked on in.
        sync_batchnorm: auto, on or off.

    Raises:
        ConfigError: a device or format this machine has not, a batch the ranks cannot share,
            batch norm that this device cannot synchronise, or a launcher that says otherwise.
    """
    from accelerate.state import AcceleratorState

    from pipeline.learning import launcher

    # Whatever ran in this process before (another stage of a demo) may have chosen otherwise.
    AcceleratorState._reset_state(reset_partial_state=True)
    kind = choose_device(device)
    before = [_precision_problem(precision, kind=kind), *_tracker_problems(trackers)]
    if any(before):  # Accelerate would say it in words of its own
        raise ConfigError([problem for problem in before if problem is not None])
    accelerator = launcher.start(
        device=kind,
        precision=precision,
        names={"bf16": "bf16", "fp16": "fp16"},
        instead=INSTEAD,
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=list(trackers) or None,
        project_dir=run_dir,
    )
    processes = accelerator.num_processes
    problems = [
        _sharding_problem(accelerator.distributed_type.value),
        _batch_problem(batch_size, processes=processes, parts=parts),
        _batchnorm_problem(sync_batchnorm, kind=kind, processes=processes),
    ]
    if any(problems):
        stop_accelerator(accelerator)
        raise ConfigError([problem for problem in problems if problem is not None])
    return accelerator


def stop_accelerator(accelerator: Accelerator) -> None:
    """Leave the process group, if there is one."""
    accelerator.end_training()


def place(
    method: Method,
    accelerator: Accelerator,
    *,
    sync_batchnorm: str,
    compile_mode: str,
) -> None:
    """Bring a method to its device, channels last, with synchronised batch norm where asked.

    Args:
        method: on the CPU.
        accelerator: which device, and how many ranks.
        sync_batchnorm: auto, on or off.
        compile_mode: of torch.compile for the student's backbone; off: it is not compiled.
    """
    ranks, device = accelerator.num_processes, accelerator.device.type
    if shares_statistics(sync_batchnorm, ranks=ranks, device=device):
        share_batch_norm(method)
    on_device(method, accelerator.device)
    if compile_mode != "off":
        method.student.backbone.compile(mode=compile_mode)


def seed_step(seed: int, *, step: int, rank: int) -> None:
    """Seed PyTorch for one step of one rank, so that a resumed run draws the same numbers."""
    digest = hashlib.blake2b(f"train/{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1
    # torch.manual_seed takes 0.4 ms to ask every kind of device, in use or not.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


def native_bf16(kind: str) -> bool:
    """Tell whether a device computes in bfloat16, rather than imitating it slowly.

    Args:
        kind: "cpu" or "cuda".
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu
    return bool(cpu._is_amx_tile_supported() or cpu._is_avx512_bf16_supported())


def _precision_problem(precision: str, *, kind: str) -> Problem | None:
    if precision == "fp16" and kind == "cpu":
        allowed = "fp32 or bf16, as float16 with a scaled loss needs a GPU"
        return Problem("precision", "'fp16'", allowed, "Try --precision fp32.")
    if precision == "bf16" and not native_bf16(kind):
        allowed = f"fp32, as this {kind} only imitates bf16, slowly"
        return Problem("precision", "'bf16'", allowed, "Try --precision fp32.")
    return None


def _tracker_problems(trackers: Sequence[str]) -> list[Problem]:
    """Say which trackers' packages are missing, before anything runs."""
    missing = [name for name in trackers if find_spec(name) is None]
    return [
        Problem(
            "trackers",
            f"{name!r}, which is not installed",
            "trackers whose package is there",
            f"Install it: pip install 'dreamshard[{name}]'.",
        )
        for name in missing
    ]


def _sharding_problem(kind: str) -> Problem | None:
    """Refuse what shards the weights: a checkpoint must hold the whole of them."""
    if kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
        return None
    hint = "Run `accelerate config` again and choose neither FSDP nor DeepSpeed."
    allowed = "data parallel: backbones fit on one GPU, and checkpoints hold whole weights"
    return Problem("accelerate launch", f"distributed type {kind}", allowed, hint)


def _batch_problem(batch_size: int, *, processes: int, parts: int = 1) -> Problem | None:
    unit = processes * parts
    share, rest = divmod(batch_size, unit)
    if rest == 0 and share > 0:
        return None
    below, above = batch_size - rest, batch_size - rest + unit
    near = " or ".join(str(value) for value in (below, above) if value > 0)
    times = f" x {parts} parts (accumulate)" if parts > 1 else ""
    allowed = (
        f"a multiple of the {processes} processes{times} ({batch_size} = {unit} x {share} + {rest})"
    )
    return Problem("batch_size", str(batch_size), allowed, f"Try --batch_size {near}.")


def _batchnorm_problem(wanted: str, *, kind: str, processes: int) -> Problem | None:
    if wanted == "on" and processes > 1 and kind == "cpu":
        allowed = "auto or off on CPUs, where PyTorch cannot synchronise batch norm"
        return Problem("sync_batchnorm", "'on'", allowed, "Try --sync_batchnorm auto.")
    return None
