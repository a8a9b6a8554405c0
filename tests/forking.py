"""A process that has loaded torch and its friends, and forks those that tests start.

Run by `tests/forked.py`, as a script: it listens on the Unix socket whose descriptor it is given,
until its standard input is closed. A request is one message: what to run, and three descriptors.
The answers are the process number and, once it has ended, its exit code.

Nothing of this repository is loaded here: each process finds it by its own path, as ever.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import functools
import gc
import importlib.util
import io
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import types
from pathlib import Path
from typing import Any, NoReturn

LAUNCHER = "torch.distributed.run"
LOADED = (
    *("torch", "torchvision", "torch.distributed.launcher.api", "torch.utils.data"),
    *("numpy", "scipy.stats", "sklearn.linear_model", "sklearn.decomposition", "PIL.Image"),
    *("pyarrow.parquet", "zarr", "numcodecs", "fsspec", "xxhash", "safetensors.torch", "yaml"),
    *("pydantic", "docstring_parser", "rich.console", "rich.progress"),
    *("timm", "accelerate", "huggingface_hub", "diffusers.models.unets.unet_2d"),
)
"""What most commands load, of other people's; what is not installed is left out."""
AFTER_FORKS = {"jemalloc_bg_thd"}
"""Threads whose libraries begin anew in a forked process: pyarrow's allocator."""
MOST = 1 << 18
"""Bytes of a request, its environment included."""


class Server:
    """Fork on request, and tell when those end."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.callers: dict[int, socket.socket] = {}
        self.wakes, told = os.pipe()
        os.set_blocking(told, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        self.selector = selectors.DefaultSelector()
        for source in (self.listener, self.wakes, sys.stdin):
            self.selector.register(source, selectors.EVENT_READ)

    def serve(self) -> dict[str, Any] | None:
        """Return what to become in a forked process, None at the end."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    if (request := self._answer(self.listener.accept()[0])) is not None:
                        return request
                elif key.fileobj == self.wakes:
                    os.read(self.wakes, 1 << 10)
                    self._bury()
                else:  # our owner has ended
                    return None

    def _answer(self, caller: socket.socket) -> dict[str, Any] | None:
        data, descriptors, _, _ = socket.recv_fds(caller, MOST, 3)
        if not data:
            caller.close()
            return None
        request = json.loads(data)
        pid = os.fork()
        if not pid:
            self._forget(descriptors, caller)
            return request
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            caller.send(str(pid).encode())
        self.callers[pid] = caller
        return None

    def _forget(self, descriptors: list[int], caller: socket.socket) -> None:
        """Leave to a forked process what it was given, and nothing else."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.closerange(3, 1 << 10)
        for one in (self.listener, caller, *self.callers.values()):
            one.detach()

    def _bury(self) -> None:
        """Tell those who wait that their process has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if caller := self.callers.pop(pid, None):
                with contextlib.suppress(OSError):
                    caller.send(str(os.waitstatus_to_exitcode(status)).encode())
                caller.close()


def become(request: dict[str, Any], own_path: list[str]) -> None:
    """Be the process that `python ARGUMENTS` would be."""
    if request["new_session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    streams = [io.FileIO(number, mode) for number, mode in enumerate(("r", "w", "w"))]
    sys.stdin = io.TextIOWrapper(io.BufferedReader(streams[0]), "utf-8")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(streams[1]), "utf-8")
    errors = io.BufferedWriter(streams[2])
    sys.stderr = io.TextIOWrapper(errors, "utf-8", "backslashreplace", line_buffering=True)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    first, *rest = [word for word in request["arguments"] if word != "-u"]
    named = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    here = {"-m": os.getcwd(), "-c": ""}.get(first, os.path.dirname(os.path.abspath(first)))
    sys.path[:] = [here, *named, *own_path]
    importlib.invalidate_caches()
    if first == "-m":
        if rest[0] == LAUNCHER:
            _fork_ranks(request["socket"])
        sys.argv = ["-m", *rest[1:]]
        runpy._run_module_as_main(rest[0])  # type: ignore[attr-defined]
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        _be_main("<string>", rest[0])
    else:
        sys.argv = [first, *rest]
        _be_main(first, Path(first).read_text(encoding="utf-8"))


def _be_main(name: str, source: str) -> None:
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    if name != "<string>":
        main.__file__ = name
    sys.modules["__main__"] = main
    exec(compile(source, name, "exec", dont_inherit=True), main.__dict__)


def _fork_ranks(path: str) -> None:
    """Let torchrun start its processes from here, too."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    place = Path(__file__).with_name("forked.py")
    spec = importlib.util.spec_from_file_location("forked_by_launcher", place)
    assert spec is not None and spec.loader is not None
    forked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(forked)
    subprocess_handler.Popen = functools.partial(forked.launched, path)


def end(code: int) -> NoReturn:
    """End as Python does, but for taking apart what is shared with the process that forked."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def load() -> None:
    """Load what there is."""
    for name in LOADED:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    tasks = Path("/proc/self/task").iterdir()
    threads = {
        (task / "comm").read_text().strip() for task in tasks if task.name != str(os.getpid())
    }
    if threads - AFTER_FORKS:
        raise RuntimeError(f"{threads} run, and would be missing in what is forked")
    gc.collect()
    gc.freeze()


def main() -> None:
    """Serve, and be in a forked process what was asked for."""
    own_path = sys.path[1:]
    load()
    listener = socket.socket(fileno=int(sys.argv[1]))
    request = Server(listener).serve()
    if request is None:
        os._exit(0)
    code = 0
    try:
        become(request, own_path)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if not isinstance(left.code, int | None):
            sys.stderr.write(f"{left.code}\n")
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    end(code & 0xFF)


if __name__ == "__main__":
    main()
