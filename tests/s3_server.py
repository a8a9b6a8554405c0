"""An S3 protocol server on loopback, behind a proxy that a test can make unreliable."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = str
"""503, slow, cut, short, lost answer; of conditional puts alone: unconditional, 412, 501."""
_HOP = {"connection", "transfer-encoding", "keep-alive", "host", "content-length"}
_SLOW_S = 3.0


class Proxy(ThreadingHTTPServer):
    """Pass requests on; `choose(method, path)` may name a fault for each."""

    daemon_threads = True

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.choose: Callable[[str, str], Fault] = lambda _method, _path: ""
        self.served: list[tuple[str, str, Fault]] = []
        self.body_bytes = 0  # sent to clients so far

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Say nothing: a client that gave up is what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _serve(self) -> None:
        proxy = self.server
        body = self._body()
        fault = proxy.choose(self.command, self.path)
        proxy.served.append((self.command, self.path, fault))
        if fault == "503":
            text = b"<Error><Code>ServiceUnavailable</Code><Message>later</Message></Error>"
            return self._answer(503, [("Content-Type", "application/xml")], text)
        conditional = self.headers.get("If-None-Match") is not None
        if fault in ("412", "501") and conditional:
            code = {"412": b"PreconditionFailed", "501": b"NotImplemented"}[fault]
            text = b"<Error><Code>" + code + b"</Code><Message>no</Message></Error>"
            return self._answer(int(fault), [("Content-Type", "application/xml")], text)
        if fault == "slow":
            time.sleep(_SLOW_S)
        if fault == "cut":
            self.close_connection = True
            return None
        upstream = http.client.HTTPConnection(*proxy.target, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        if fault == "unconditional":
            headers.pop("If-None-Match", None)
        headers["Host"] = self.headers["Host"]
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        if fault == "lost answer":
            self.close_connection = True
            return None
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in _HOP]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        if fault == "short":  # an honest length of a body that is not all: nothing else shows it
            data = data[: len(data) // 2]
            kept = [(k, v) for k, v in kept if "checksum" not in k.lower()]
        return self._answer(answer.status, kept, data, length=length)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts: list[bytes] = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, *, length: str | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            self.server.body_bytes += len(data)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serve_s3() -> Iterator[Proxy]:
    """Run a server and the proxy before it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    proxy = Proxy((host, port))
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()
