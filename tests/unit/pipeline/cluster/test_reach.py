"""A cluster that is not there, and a folder that Ray cannot use, are found out in seconds."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamshard.errors import ConfigError
from pipeline.cluster import reach
from pipeline.cluster.reach import SOCKET_BELOW, SOCKET_PATH_BYTES, check_answers, check_folder

SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@contextlib.contextmanager
def listening(reply: bytes | None) -> Iterator[str]:
    """Answer every greeting with a reply; None: say nothing and hold the line."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    held.append(peer)
                    peer.recv(64)
                    if reply is not None:
                        peer.sendall(reply)
                        peer.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_a_server_of_rays_kind_is_let_through(prefix: str) -> None:
    with listening(SETTINGS) as address:
        check_answers(prefix + address)


@pytest.mark.parametrize(
    "reply", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 400 Bad\r\n\r\n", b"", None]
)
def test_another_server_is_no_cluster(reply: bytes | None) -> None:
    began = time.monotonic()
    with listening(reply) as address, pytest.raises(ConfigError, match="is no Ray cluster"):
        check_answers(address, give_up_s=1.0)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("key", ["ray.address", "$RAY_ADDRESS"])
def test_nobody_there_is_said_in_time(key: str) -> None:
    address, began = free_address(), time.monotonic()
    with pytest.raises(ConfigError) as caught:
        check_answers(address, key=key, give_up_s=2.0)
    assert time.monotonic() - began < 5
    text = str(caught.value)
    assert text.startswith(f"{key}: got {address} (Connection refused)") and "ray start" in text


def test_a_cluster_that_is_just_starting_is_waited_for() -> None:
    address = free_address()
    port = int(address.rpartition(":")[2])

    def appear() -> None:
        time.sleep(1.2)
        with socket.create_server(("127.0.0.1", port)) as server:
            peer, _ = server.accept()
            peer.recv(64)
            peer.sendall(SETTINGS)

    thread = threading.Thread(target=appear)
    thread.start()
    check_answers(address)
    thread.join()


@pytest.mark.parametrize("address", ["nohost", "127.0.0.1:", ":6379", "h:99999", "h:port", "http"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="allowed auto, or host:port"):
        check_answers(address)


def test_a_host_that_nobody_knows() -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"no-such-host\.invalid:6379 \("):
        check_answers("no-such-host.invalid:6379", give_up_s=3.0)
    assert time.monotonic() - began < 15


def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


def test_a_folder_that_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unset(monkeypatch)
    check_folder()
    monkeypatch.setenv("TMPDIR", "/nonexistent/and/never/made")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # Ray's own comes first
    check_folder()


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_path_too_long_for_sockets(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unset(monkeypatch)
    most = SOCKET_PATH_BYTES - len(SOCKET_BELOW)
    folder = "/tmp/" + "é" * ((most - 5) // 2 + 1)  # bytes count, not letters
    monkeypatch.setenv(name, folder)
    with pytest.raises(ConfigError, match=rf"\${name}: got .* bytes\), allowed a path of at most"):
        check_folder()
    assert not os.path.exists(folder), "nothing is made"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unset(monkeypatch)
    (Path("/tmp") / f"r{os.getpid()}").write_text("a file in the way")
    monkeypatch.setenv("TMPDIR", f"/tmp/r{os.getpid()}")
    try:
        with pytest.raises(ConfigError, match=r"\$TMPDIR: got .*Not a directory.*RAY_TMPDIR=/tmp"):
            check_folder()
    finally:
        (Path("/tmp") / f"r{os.getpid()}").unlink()


def test_a_folder_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    unset(monkeypatch)
    usage = reach.shutil.disk_usage("/tmp")
    monkeypatch.setattr(reach.shutil, "disk_usage", lambda path: usage._replace(free=5 << 20))
    with pytest.raises(ConfigError, match=r"/tmp: got /tmp \(5 MB free\), allowed 32 MB free"):
        check_folder()


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    unset(monkeypatch)

    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reach.tempfile, "TemporaryFile", full)
    with pytest.raises(ConfigError, match=r"/tmp \(No space left on device\)"):
        check_folder()
