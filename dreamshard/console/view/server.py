"""Who may ask, and for what: the page and its answers, on the loopback interface alone.

A page of another site may point its name at this machine, or send requests here: so the Host must
be the loopback's, an Origin our own, and every visit begins with the token that the terminal shows.
Answers hold no HTML; the page puts every text in as text.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aiohttp import web

from dreamshard.console.view.answers import ANSWERS, Desk
from dreamshard.console.view.places import Places
from dreamshard.errors import DreamshardError
from storage.verbs.as_json import strict

HOST = "127.0.0.1"
PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html"),
    "/view.js": ("view.js", "text/javascript"),
    "/samples.js": ("samples.js", "text/javascript"),
    "/runs.js": ("runs.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
}
COOKIE = "dreamshard-view"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


def serve(places: Places, *, ports: Iterable[int], on_ready: Callable[[str], None]) -> None:
    """Serve until the process is interrupted.

    Args:
        places: what may be looked at.
        ports: to try, in order; 0 is any free one.
        on_ready: called with the address to open, the token in it.

    Raises:
        DreamshardError: none of the ports is free.
    """
    asyncio.run(_serve(places, ports, on_ready))


async def _serve(places: Places, ports: Iterable[int], on_ready: Callable[[str], None]) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4))
    token = secrets.token_urlsafe(24)
    runner = web.AppRunner(application(places, token=token), access_log=None)
    await runner.setup()
    try:
        port = await _listen(runner, ports)
        on_ready(f"http://{HOST}:{port}/?token={token}")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, ports: Iterable[int]) -> int:
    tried = []
    for port in ports:
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError:
            tried.append(port)
            continue
        return int(runner.addresses[0][1])
    raise DreamshardError(
        f"--port: got {', '.join(map(str, tried))}, in use or not allowed; allowed a free port. "
        "`--port 0` takes any."
    )


def application(places: Places, *, token: str) -> web.Application:
    """Return what answers requests about places, to whoever has the token."""
    app = web.Application(middlewares=[_guard(token)], client_max_size=1 << 12)
    desk = Desk(places)
    for path, (name, kind) in FILES.items():
        app.router.add_get(path, _file(PAGE / name, kind))
    for name, answer in ANSWERS.items():
        app.router.add_get(f"/api/{name}", _answering(desk, answer))
    return app


def _guard(token: str) -> Any:
    """Return the middleware that lets in who asks this machine by name, with the token."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await _checked(request, handler, token)
        response.headers.update(HEADERS)
        return response

    return guard


async def _checked(request: web.Request, handler: Handler, token: str) -> web.StreamResponse:
    port = request.transport.get_extra_info("sockname")[1] if request.transport else 0
    own = [f"{name}:{port}" for name in (HOST, "localhost")]
    if request.headers.getall("Host", []) not in [[name] for name in own]:
        return _refusal(403, f"Host: allowed {' or '.join(own)}")
    origin = request.headers.get("Origin")
    if origin is not None and origin not in [f"http://{name}" for name in own]:
        return _refusal(403, "Origin: allowed this page's own")
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        # A link on another page to this one: harmless, but nothing here needs it.
        return _refusal(403, "Sec-Fetch-Site: allowed this page's own")
    given = request.query.get("token")
    if request.path == "/" and given is not None and _same(given, token):
        response: web.StreamResponse = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(f"{COOKIE}-{port}", token, httponly=True, samesite="Strict")
        return response
    if not _same(request.cookies.get(f"{COOKIE}-{port}", ""), token):
        return _refusal(403, "open the address that `dreamshard view` printed, with its token")
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _refusal(error.status, error.reason)


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _refusal(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status)


def _file(path: Path, kind: str) -> Handler:
    text = path.read_text(encoding="utf-8")

    async def give(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type=kind, charset="utf-8")

    return give


def _answering(desk: Desk, answer: Callable[[Desk, Any], object]) -> Handler:
    async def give(request: web.Request) -> web.StreamResponse:
        try:
            told = await asyncio.to_thread(answer, desk, request.query)
        except DreamshardError as error:
            return _refusal(400, str(error))
        except ModuleNotFoundError as error:
            return _refusal(400, f"{error.name} is not installed; `dreamshard doctor` says more")
        except Exception:
            log.exception("view: %s", request.path)
            return _refusal(500, "this cannot be shown; the terminal says why")
        return web.json_response(strict(told))

    return give
