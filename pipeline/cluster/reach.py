"""Find out within seconds whether Ray can be had: a cluster answers, or one can start here.

Ray itself tries a dead address for a quarter of an hour, and fails on an unfit folder for its
sockets and logs with an exception of some library.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import ssl
import tempfile
import time
from pathlib import Path

from dreamshard.errors import ConfigError, Problem

GIVE_UP_S = 20.0
"""Longest search for a cluster; Ray's own part of joining one takes seconds more."""
REFUSED_S = 5.0
"""As long a host may refuse: a cluster that is just starting does."""
SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket on Linux."""
SOCKET_BELOW = f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
"""What Ray adds to its folder for its sockets."""
ROOM_BYTES = 32 << 20
"""Least room for Ray's logs."""
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""An HTTP/2 client's preface and an empty SETTINGS frame, to which a server says its own."""
SETTINGS_FRAME = 4


def check_answers(address: str, *, key: str = "ray.address", give_up_s: float = GIVE_UP_S) -> None:
    """Find out whether a Ray cluster may be at an address.

    Args:
        address: host:port, or ray://host:port.
        key: of the setting, for messages.
        give_up_s: longest search (seconds).

    Raises:
        ConfigError: no such form, no such host, nobody there, or not a server of Ray's kind.
    """
    host, port = _split(address, key)
    began = time.monotonic()
    while True:
        try:
            with socket.create_connection((host, port), timeout=min(5.0, give_up_s)) as peer:
                peer.settimeout(min(5.0, give_up_s))
                reply = _greet(peer)
            break
        except OSError as error:
            spent = time.monotonic() - began
            unknown = isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN
            limit_s = min(REFUSED_S, give_up_s) if error.errno == errno.ECONNREFUSED else give_up_s
            if unknown or spent + 1 >= limit_s:
                why = error.strerror or str(error) or type(error).__name__
                raise _nobody(address, key, why) from error
            time.sleep(1)
    if not reply:
        raise _nobody(address, key, "what listens there is no Ray cluster")


def _greet(peer: socket.socket) -> bool:
    """Tell whether the other side is a gRPC server, as Ray's are; TLS is taken at its word."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return True
    try:
        peer.sendall(GREETING)
        head = b""
        while len(head) < 9 and (more := peer.recv(9 - len(head))):
            head += more
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
        return False
    except TimeoutError:
        return False
    return len(head) == 9 and head[3] == SETTINGS_FRAME


def _split(address: str, key: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        hint = "Such as 10.0.0.1:6379: `ray status` on the head node prints it."
        raise ConfigError(Problem(key, repr(address), "auto, or host:port", hint))
    return host.strip("[]"), int(port)


def _nobody(address: str, key: str, why: str) -> ConfigError:
    hint = (
        "Start one with `ray start --head`, correct the address, or leave it empty (and unset "
        "RAY_ADDRESS) to run without a cluster."
    )
    return ConfigError(Problem(key, f"{address} ({why})", "a running Ray cluster", hint))


def check_folder() -> None:
    """Find out whether Ray can keep sockets and logs where it would.

    Raises:
        ConfigError: the folder's name is too long, it cannot be written, or it is full.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "")
    folder = Path(os.environ.get(name) or "/tmp")
    key = f"${name}" if name else "/tmp"
    hint = "Try `export RAY_TMPDIR=/tmp`, or a short folder on a local disk."
    allowed = "a folder for Ray's sockets and logs that can be written"
    most = SOCKET_PATH_BYTES - len(SOCKET_BELOW)
    length = len(os.fsencode(str(folder.absolute())))
    if length > most:
        got = f"{folder} ({length} bytes)"
        raise ConfigError(Problem(key, got, f"a path of at most {most} bytes", hint))
    try:
        (folder / "ray").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder / "ray") as file:
            file.write(bytes(1 << 16))
        free = shutil.disk_usage(folder).free
    except OSError as error:
        got = f"{folder} ({error.strerror or error})"
        raise ConfigError(Problem(key, got, allowed, hint)) from error
    if free < ROOM_BYTES:
        got = f"{folder} ({free >> 20} MB free)"
        raise ConfigError(Problem(key, got, f"{ROOM_BYTES >> 20} MB free for Ray's logs", hint))
