"""An S3 protocol server on loopback, which a test can make unreliable.

Moto's application answers in the thread that reads the request: behind a server of its own, which
takes a connection and a thread for every request, all would cost twice as much.
"""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = str
"""503, slow, cut, short, lost answer; of conditional puts alone: unconditional, 412, 501."""
_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}
_SLOW_S = 3.0


class Proxy(ThreadingHTTPServer):
    """Pass requests on to a WSGI application; `choose(method, path)` may name a fault for each."""

    daemon_threads = True
    request_queue_size = 128  # five would drop connections while the test's threads are busy

    def __init__(self, application: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.application = application
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
    disable_nagle_algorithm = True  # or a body waits 40 ms for the answer to its headers
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
        status, headers, data = self._ask(body, unconditional=fault == "unconditional")
        if fault == "lost answer":
            self.close_connection = True
            return None
        kept = [(k, v) for k, v in headers.items() if k.lower() not in _HOP]
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        if fault == "short":  # an honest length of a body that is not all: nothing else shows it
            data = data[: len(data) // 2]
            kept = [(k, v) for k, v in kept if "checksum" not in k.lower()]
        return self._answer(status, kept, data, length=length)

    def _ask(self, body: bytes, *, unconditional: bool) -> tuple[int, Any, bytes]:
        """Return what the application answers: status, headers and body."""
        from werkzeug.test import run_wsgi_app

        path, _, query = self.path.partition("?")
        host, port = self.server.server_address[:2]
        environ: dict[str, Any] = {
            "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(body),
            "wsgi.errors": sys.stderr, "wsgi.multithread": True, "wsgi.multiprocess": False,
            "wsgi.run_once": False, "wsgi.input_terminated": True,
            "REQUEST_METHOD": self.command, "SCRIPT_NAME": "", "QUERY_STRING": query,
            "PATH_INFO": urllib.parse.unquote_to_bytes(path).decode("latin-1"),
            "REQUEST_URI": self.path, "RAW_URI": self.path, "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_NAME": host, "SERVER_PORT": str(port), "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)),
        }  # fmt: skip
        for name, value in self.headers.items():
            if name.lower() not in {*_HOP, "content-type"}:
                environ["HTTP_" + name.upper().replace("-", "_")] = value
        if unconditional:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        parts, status, headers = run_wsgi_app(self.server.application, environ, buffered=True)
        return int(status.split()[0]), headers, b"".join(parts)

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
    """Run a server."""
    from moto.moto_server.werkzeug_app import create_backend_app

    proxy = Proxy(create_backend_app("s3"))
    thread = threading.Thread(
        target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
