"""Who is answered: this machine's browser, by the loopback's name, with the token."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

aiohttp = pytest.importorskip("aiohttp", reason="needs dreamshard[view]")

from dreamshard.console.view.places import find_places  # noqa: E402
from dreamshard.console.view.server import FILES, PAGE, application  # noqa: E402
from tests.feature_store import fill, make_dataset  # noqa: E402

TOKEN = "t" * 32


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("view")
    fill(make_dataset(root), 8)
    return root


def replies(root: Path, *asked: tuple[str, Mapping[str, str]]) -> list[tuple[int, str, dict]]:
    """Return status, text and headers of requests to a server of its own."""

    async def go() -> list[tuple[int, str, dict]]:
        runner = aiohttp.web.AppRunner(application(find_places([str(root)]), token=TOKEN))
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        found = []
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            for path, given in asked:
                headers = {key: value.replace("PORT", str(port)) for key, value in given.items()}
                url = f"http://127.0.0.1:{port}{path}"
                async with session.get(url, headers=headers, allow_redirects=False) as reply:
                    found.append((reply.status, await reply.text(), dict(reply.headers)))
        await runner.cleanup()
        return found

    return asyncio.run(go())


COOKIE = {"Cookie": f"dreamshard-view-PORT={TOKEN}"}


def test_the_token_opens_and_the_cookie_keeps_open(root: Path) -> None:
    first, wrong, page, answer = replies(
        root, (f"/?token={TOKEN}", {}), ("/?token=other", {}), ("/", COOKIE),
        ("/api/samples?d=0&first=0&count=3", COOKIE),
    )  # fmt: skip
    assert first[0] == 303 and "HttpOnly" in first[2]["Set-Cookie"]
    assert "SameSite=Strict" in first[2]["Set-Cookie"] and "*" not in first[2]["Set-Cookie"]
    assert wrong[0] == 403 and TOKEN not in wrong[1]
    assert page[0] == 200 and "default-src 'none'" in page[2]["Content-Security-Policy"]
    assert answer[0] == 200 and '"total": 8' in answer[1]
    assert "Access-Control-Allow-Origin" not in answer[2]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {**COOKIE, "Host": "evil.example:PORT"},
        {**COOKIE, "Host": "127.0.0.1.evil.example"},
        {**COOKIE, "Host": "127.0.0.1:1"},
        {**COOKIE, "Origin": "http://evil.example"},
        {**COOKIE, "Origin": "null"},
        {**COOKIE, "Origin": "http://127.0.0.1:1"},
        {**COOKIE, "Sec-Fetch-Site": "cross-site"},
        {"Cookie": "dreamshard-view-PORT=no"},
    ],
)
def test_others_are_refused(root: Path, headers: dict[str, str]) -> None:
    for status, text, told in replies(root, ("/", headers), ("/api/places", headers)):
        assert status == 403 and str(root) not in text
        assert told["X-Content-Type-Options"] == "nosniff"


def test_own_origin_is_let_in(root: Path) -> None:
    own = {**COOKIE, "Origin": "http://localhost:PORT", "Host": "localhost:PORT"}
    assert [status for status, *_ in replies(root, ("/api/places", own))] == [200]


def test_no_path_leads_to_other_files(root: Path) -> None:
    paths = ("/../server.py", "/%2e%2e/server.py", "/page/index.html", "/api/../view.js", "//etc")
    for status, text, _ in replies(root, *((path, COOKIE) for path in paths)):
        assert status in (200, 400, 404) and "import" not in text[:40]


def test_errors_are_told_as_json(root: Path) -> None:
    found = replies(root, ("/api/samples?d=9", COOKIE), ("/api/unknown", COOKIE))
    assert [status for status, *_ in found] == [400, 404]
    assert "allowed 0..0" in found[0][1]


def test_the_page_asks_no_other_machine_and_puts_no_html_in() -> None:
    for name, _ in FILES.values():
        text = (PAGE / name).read_text(encoding="utf-8")
        places = set(re.findall(r"https?://[^\"' ]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not places, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
