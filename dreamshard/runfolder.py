"""Make every run folder explain itself: command, configuration, environment, metrics, next step."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

from dreamshard.config import dump_yaml, flatten, to_dict
from dreamshard.config.yaml12 import read_yaml
from dreamshard.errors import ConfigError, Problem
from dreamshard.foreign.files import read_bytes
from dreamshard.foreign.text import parse_json, read_json
from dreamshard.owner.folders import claim, there_and_asked
from dreamshard.owner.parts import part_of, sweep
from dreamshard.redact import redact, redact_command, redact_line
from dreamshard.versions import all_versions

CONFIG = "config.resolved.yaml"
FILES = {
    "owner.json": "whose folder this is: no other run writes into it",
    "command.txt": "the command of every start of this run, newest last",
    CONFIG: "the whole configuration; give it back with --config",
    "environment.json": "machine, versions and environment variables (secrets left out)",
    "metrics.jsonl": "one JSON object per logged step",
    "stats.json": "the run's figures as a whole",
    "report.html": "the report, for a browser",
}
_MAX_RECORD = 4 << 30  # bytes of a run's metrics
log = logging.getLogger(__name__)

ENVIRONMENT = frozenset(
    """
    DREAMSHARD_HOME DREAMSHARD_CACHE DREAMSHARD_CACHE_BYTES
    HOSTNAME VIRTUAL_ENV PYTHONPATH PYTHONHASHSEED MASTER_ADDR MASTER_PORT RANK LOCAL_RANK
    WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK NODE_RANK TMPDIR RAY_TMPDIR
    OMP_NUM_THREADS OMP_WAIT_POLICY MKL_NUM_THREADS OPENBLAS_NUM_THREADS
    NUMBA_NUM_THREADS NUMBA_CACHE_DIR
    CUDA_VISIBLE_DEVICES CUDA_HOME CUDA_DEVICE_ORDER CUDA_LAUNCH_BLOCKING CUDA_MODULE_LOADING
    CUBLAS_WORKSPACE_CONFIG NVIDIA_VISIBLE_DEVICES NVIDIA_TF32_OVERRIDE
    NCCL_DEBUG NCCL_SOCKET_IFNAME NCCL_IB_DISABLE NCCL_P2P_DISABLE NCCL_IB_HCA
    TORCH_HOME TORCH_NCCL_ASYNC_ERROR_HANDLING TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT
    PYTORCH_CUDA_ALLOC_CONF TORCHINDUCTOR_CACHE_DIR TORCH_COMPILE_DISABLE
    ACCELERATE_MIXED_PRECISION ACCELERATE_USE_CPU ACCELERATE_DYNAMO_BACKEND
    ACCELERATE_GRADIENT_ACCUMULATION_STEPS ACCELERATE_USE_FSDP ACCELERATE_USE_DEEPSPEED
    HF_HOME HF_HUB_OFFLINE HF_HUB_CACHE HF_DATASETS_CACHE HF_DATASETS_OFFLINE
    RAY_ADDRESS RAY_AUTH_MODE RAY_JOB_ID RAY_RAYLET_NODE_ID RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER
    RAY_worker_niceness RAY_USE_TLS
    SLURM_JOB_ID SLURM_JOB_NAME SLURM_JOB_PARTITION SLURM_JOB_NUM_NODES SLURM_JOB_NODELIST
    SLURM_NODELIST SLURM_NNODES SLURM_NODEID SLURM_NTASKS SLURM_PROCID SLURM_LOCALID
    SLURM_CPUS_PER_TASK SLURM_CPUS_ON_NODE SLURM_GPUS SLURM_GPUS_PER_NODE SLURM_ARRAY_JOB_ID
    SLURM_ARRAY_TASK_ID SLURM_CLUSTER_NAME SLURM_SUBMIT_HOST
    """.split()
)
"""Variables that are written down, their values without secrets; no other is."""


def write_text(path: Path, text: str) -> None:
    """Write a text file so that nobody ever sees half of it."""
    part = part_of(path)
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:  # of a full disk, nothing is left lying about
        part.unlink(missing_ok=True)


def _text_of(path: Path) -> str:
    return read_bytes(path, limit=_MAX_RECORD).decode("utf-8", "replace")


def _appended(path: Path) -> TextIO:
    """Open a text file to append to, through no link and waiting for no pipe."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8")


def trim_metrics(path: Path, *, step: int) -> None:
    """Drop the lines of metrics.jsonl after a step, which a resumed run writes again."""
    if not path.exists():
        return
    kept = []
    for line in _text_of(path).splitlines():
        try:
            if parse_json(line, where=str(path), infinite=True).get("step", 0) <= step:
                kept.append(line)
        except (ValueError, TypeError, AttributeError):
            continue  # the half line of a killed process
    write_text(path, "".join(f"{line}\n" for line in kept))


def command_of(config: object) -> str:
    """Return the command that a configuration is of: `encode` of an EncodeConfig."""
    return type(config).__name__.removesuffix("Config").lower()


def environment() -> dict[str, object]:
    """Describe this process's machine, versions and relevant environment variables."""
    variables = {key: value for key, value in os.environ.items() if key in ENVIRONMENT}
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": all_versions(),
        "variables": redact(dict(sorted(variables.items()))),
    }


def _plain(value: object) -> object:
    """Turn numpy scalars into Python's, and NaN and infinities into strings, for strict JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    item = getattr(value, "item", None)
    value = item() if callable(item) else value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _unlike(folder: Path, config: object) -> list[str]:
    """Say which settings differ from those that a run folder has recorded; those of both."""
    told, unreadable = read_yaml(str(folder / CONFIG))
    if unreadable is not None:
        return []
    there, asked = flatten(told), flatten(redact(to_dict(config)))
    return [
        there_and_asked(name, there[name], asked[name])
        for name in asked
        if name in there and there[name] != asked[name]
    ]


class RunFolder:
    """Keep the record of one run; make it in one process only (rank 0, the driver).

    Args:
        path: folder of the run, made if missing; another start of the same run adds to its history.
        config: the run's configuration dataclass; its class names the command.
        command: the command line, `sys.argv` if None.
        of: what makes it another run, by name, JSON's values; None for nothing but the command.
        replace: throw another run of the same command out.

    Raises:
        ConfigError: the folder cannot be made or written, or is another run's.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        config: object,
        command: Sequence[str] | None = None,
        of: Mapping[str, object] | None = None,
        replace: bool = False,
    ) -> None:
        self.path = Path(path)
        self._warned = False
        line = redact_command(sys.argv if command is None else command)
        history = self.path / "command.txt"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            claim(
                self.path,
                command_of(config),
                of or {},
                replace=replace,
                settings=partial(_unlike, self.path, config),
            )
            sweep(self.path)
            before = _text_of(history) if history.exists() else ""
            stamp = time.strftime("# %Y-%m-%d %H:%M:%S")
            write_text(history, f"{before}{stamp}\n{line}\n")
            write_text(self.path / CONFIG, dump_yaml(redact(to_dict(config))))
            write_text(self.path / "environment.json", json.dumps(environment(), indent=2) + "\n")
        except OSError as error:
            hint = "Choose another folder for the run with --run_dir, make room, or grant access."
            problem = Problem(
                str(self.path), error.strerror or str(error), "a folder to write to", hint
            )
            raise ConfigError(problem) from error

    def log(self, **metrics: float | str) -> None:
        """Append one line to metrics.jsonl, with the `time` in seconds since 1970.

        Numbers may be numpy's; NaN and infinities are written as text, which float() reads.
        """
        line = {"time": round(time.time(), 3)} | {
            key: redact(_plain(value)) for key, value in metrics.items()
        }
        with self._record(), _appended(self.path / "metrics.jsonl") as file:
            file.write(json.dumps(line) + "\n")

    def stats(self, **values: object) -> None:
        """Merge figures into stats.json; a name given again is replaced."""
        file = self.path / "stats.json"
        plain = {key: redact(_plain(value), name=key) for key, value in values.items()}
        with self._record():
            known = read_json(file, infinite=True) if file.exists() else {}
            write_text(file, json.dumps(known | plain, indent=2) + "\n")

    def finish(self, *following: str) -> None:
        """Write README.txt: what each file is, and the commands to type next."""
        names = sorted(path.name for path in self.path.iterdir() if not path.name.startswith("."))
        width = max(map(len, names))
        lines = [f"{name:<{width}}  {FILES.get(name, '')}".rstrip() for name in names]
        listing = "\n".join(line for line in lines if not line.startswith("README.txt"))
        commands = "\n".join(f"  {redact_line(command)}" for command in following)
        text = f"Next:\n{commands}\n\nIn this folder:\n{listing}\n"
        with self._record():
            write_text(self.path / "README.txt", text)

    def propose(self, *commands: str) -> None:
        """Say on the terminal, and in README.txt, what to type next, the usual thing first."""
        self.finish(*commands)
        lines = [f"run folder: {self.path}", f"next: {redact_line(commands[0])}"]
        lines += [f"  or: {redact_line(command)}" for command in commands[1:]]
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()

    @contextlib.contextmanager
    def _record(self) -> Iterator[None]:
        """Go on where the record cannot be written: what the run makes is kept elsewhere."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning(
                    "%s: the run's record cannot be written (%s) and is incomplete; the run goes "
                    "on. Make room or grant access.",
                    self.path,
                    error.strerror or error,
                )
