"""Start Python processes that need not load torch and its friends: seconds less for each.

Each is a process of its own all the same: session, folder, environment, exit code and signals. What
is about how a process starts, or about what it loads, starts one with `subprocess` instead.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

FROZEN = ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES")
"""What packages read while they are loaded: the same for all."""
SERVER = Path(__file__).with_name("forking.py")


@functools.cache
def _server() -> str:
    """Start the process that forks, once; return its socket."""
    folder = Path(tempfile.mkdtemp(prefix="dreamshard-forks-"))
    path = folder / "socket"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(64)
        process = subprocess.Popen(
            [sys.executable, str(SERVER), str(listener.fileno())],
            env=environment,
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
        )

    def close() -> None:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        path.unlink(missing_ok=True)
        folder.rmdir()

    atexit.register(close)
    return str(path)


class Forked:
    """A process `python ARGUMENTS`; its output and errors are one text.

    Args:
        arguments: a script and its arguments, or `-m module ...` or `-c code ...`.
        cwd: the folder it starts in.
        env: its environment.
        new_session: it leads a session of its own, so that one signal reaches all that it starts.
        inherit: it writes where this process writes; else what it says is read here.
        log: file to which what it says is appended instead.
        server: socket of the process that forks; "": of this test process's own.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        cwd: str | Path,
        env: Mapping[str, str],
        new_session: bool = False,
        inherit: bool = False,
        log: Path | None = None,
        server: str = "",
    ) -> None:
        differ = [name for name in FROZEN if env.get(name) != os.environ.get(name)]
        assert not differ, f"{differ}: loaded already; start it with subprocess"
        self.args = list(arguments)
        self.returncode: int | None = None
        server = server or _server()
        request = {
            "arguments": self.args, "cwd": str(cwd), "env": dict(env), "new_session": new_session,
            "socket": server,
        }  # fmt: skip
        reads, writes = os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.connect(server)
        if log is not None:
            os.dup2(kept := os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), writes)
            os.close(kept)
        told = [nothing, 1, 2] if inherit else [nothing, writes, writes]
        socket.send_fds(self._server, [json.dumps(request).encode()], told)
        os.close(nothing), os.close(writes)
        self.stdout = os.fdopen(reads, "r", encoding="utf-8", errors="replace")
        self.pid = int(self._server.recv(64))

    def _ended(self, timeout_s: float | None) -> bool:
        if self.returncode is None:
            self._server.settimeout(timeout_s)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                self.returncode = int(self._server.recv(64))
                self._server.close()
        return self.returncode is not None

    def poll(self) -> int | None:
        self._ended(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Return all that it says from now on, and wait for its end."""
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.append(self.stdout.read()), daemon=True)
        ends = time.monotonic() + (timeout or 0)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if timeout is None else max(1.0, ends - time.monotonic()))
        return said[0], None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def launched(
    server: str,
    args: Sequence[str],
    env: Mapping[str, str],
    stdout: object,
    stderr: object,
    start_new_session: bool,
) -> Forked:
    """Stand for the `subprocess.Popen` with which torchrun starts a rank."""
    assert args[0] == sys.executable and stdout is None and stderr is None
    return Forked(
        args[1:],
        cwd=Path.cwd(),
        env=env,
        new_session=start_new_session,
        inherit=True,
        server=server,
    )
