"""A real browser for tests: a headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
    *("--remote-debugging-port=0", "--remote-debugging-address=127.0.0.1"),
)
START_S, WAIT_S = 60.0, 60.0


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab; every method waits for what it does."""

    def __init__(self, socket: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._socket, self._loop, self._count = socket, loop, 0
        self.failures: list[str] = []

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        return self._loop.run_until_complete(self._call(method, given))

    async def _call(self, method: str, given: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        await self._socket.send_json({"id": self._count, "method": method, "params": given})
        while True:
            told = json.loads((await self._socket.receive(timeout=WAIT_S)).data)
            if told.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.failures.append(json.dumps(told["params"])[:400])
            if told.get("id") == self._count:
                assert "error" not in told, told
                return told["result"]

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def see(self, expression: str) -> Any:
        told = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, expression: str) -> Any:
        end = time.monotonic() + WAIT_S
        while not (value := self.see(expression)):
            told = self.see("document.body ? document.body.innerText.slice(0, 500) : ''")
            assert time.monotonic() < end, f"never: {expression}; the page says {told}"
            time.sleep(0.05)
        return value

    def click(self, selector: str, *, x: float = 0.5, y: float = 0.5) -> None:
        """Press the mouse on an element, at a share of its width and height."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"!!{found}")
        box = self.see(
            f"(() => {{ const e = {found}; e.scrollIntoView({{block: 'center'}}); "
            "const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
        )
        place = {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def choose(self, selector: str, value: str) -> None:
        """Set a form field, as choosing or typing and leaving it does."""
        self.see(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            f"e.value = {json.dumps(value)}; for (const kind of ['input', 'change']) "
            "e.dispatchEvent(new Event(kind, {bubbles: true})); })()"
        )

    def resize(self, width: int, *, dark: bool) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        told = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=False)
        path.write_bytes(base64.b64decode(told["data"]))


@contextmanager
def open_page(folder: Path) -> Iterator[Page]:
    """Start a browser with an empty profile in a folder; yield its one page."""
    import aiohttp

    program = find_browser()
    assert program is not None
    profile = folder / "profile"
    command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loop = asyncio.new_event_loop()
    try:
        port = _port(profile / "DevToolsActivePort", process)

        async def connect() -> tuple[Any, Any]:
            session = aiohttp.ClientSession()
            async with session.get(f"http://127.0.0.1:{port}/json/list") as reply:
                tabs = await reply.json(content_type=None)
            url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            return session, await session.ws_connect(url, max_msg_size=0)

        session, socket = loop.run_until_complete(connect())
        page = Page(socket, loop)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        yield page
        loop.run_until_complete(socket.close())
        loop.run_until_complete(session.close())
    finally:
        process.terminate()
        process.wait(20)
        loop.close()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.05)
    raise AssertionError("the browser did not start")
