"""The page and its files as they are served: types, tags, policy, and what is vendored."""

import hashlib
import re
from itertools import product

import pytest
import trio
from trio.testing import memory_stream_pair

from tunnel.admin.dashboard import POLICY, STATIC, dashboard_routes
from tunnel.admin.http import Request, serve_connection
from tunnel.admin.site import AdminSource, Site

SOURCE = AdminSource("server", lambda: iter(()), lambda: True, lambda name: [], "")
ROUTES = {route.path: route for route in dashboard_routes()}


async def get(path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await ROUTES[path].handler(Request("GET", path, "", named, b""))
    return response.status, response.body, {"content-type": response.content_type, **response.headers}


async def test_the_page_comes_with_a_strict_policy() -> None:
    status, body, headers = await get("/")
    assert status == 200
    assert body.startswith(b"<!doctype html>")
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert (
        headers["content-security-policy"]
        == POLICY
        == (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
    )


async def test_a_file_that_is_known_is_not_sent_again() -> None:
    _, body, headers = await get("/static/app.js")
    assert headers["etag"] == f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    assert headers["cache-control"] == "no-cache"
    for known in (headers["etag"], f'"x", W/{headers["etag"]}', "*"):
        status, nothing, again = await get("/static/app.js", if_none_match=known)
        assert (status, nothing, again["etag"], again["content-length"]) == (304, b"", headers["etag"], str(len(body)))
    assert (await get("/static/app.js", if_none_match='"other"'))[0] == 200


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/static/app.js", "text/javascript; charset=utf-8"),
        ("/static/style/base.css", "text/css; charset=utf-8"),
        ("/static/icon.svg", "image/svg+xml"),
        ("/static/vendor/uPlot.iife.min.js", "text/javascript; charset=utf-8"),
    ],
)
async def test_a_file_says_what_it_is(path: str, kind: str) -> None:
    assert (await get(path))[2]["content-type"] == kind


async def test_head_and_a_file_that_is_known_come_without_a_body_over_one_connection() -> None:
    ours, theirs = memory_stream_pair()
    tag = (await get("/static/icon.svg"))[2]["etag"]
    head = "Host: localhost\r\n"
    async with trio.open_nursery() as connections:
        connections.start_soon(serve_connection, theirs, Site(SOURCE, dashboard_routes()).answer)
        asked = (f"HEAD / HTTP/1.1\r\n{head}", f"GET /static/icon.svg HTTP/1.1\r\n{head}If-None-Match: {tag}\r\n",
                 f"HEAD /static/app.js HTTP/1.1\r\n{head}Connection: close\r\n")  # fmt: skip
        await ours.send_all("".join(f"{each}\r\n" for each in asked).encode())
        answers = b"".join([bytes(chunk) async for chunk in ours]).split(b"\r\n\r\n")
    assert [answer[:13] for answer in answers] == [b"HTTP/1.1 200 ", b"HTTP/1.1 304 ", b"HTTP/1.1 200 ", b""]


async def test_a_wrong_path_is_told_which_there_are_but_not_each_file() -> None:
    answer = await Site(SOURCE, dashboard_routes()).answer(Request("GET", "/nope", "", {}, b""))
    assert answer.status == 404
    assert b" /," in answer.body
    assert b"/static/" not in answer.body


def test_nothing_but_the_static_folder_is_served() -> None:
    assert {path for path in ROUTES if not path.startswith("/static/")} == {"/"}
    assert not [path for path in ROUTES if ".." in path or path.endswith(".py")]


def test_whatever_the_page_and_its_files_name_is_there() -> None:
    for path in STATIC.rglob("*"):
        if path.suffix == ".html":
            named = re.findall(r'(?:src|href)="([^"#]+)"', path.read_text())
            assert {"/" + name for name in named if name != "stats"} <= ROUTES.keys()
        if path.suffix == ".js" and path.parent == STATIC:
            for name in re.findall(r'^import .* from "\./(.+)";$', path.read_text(), re.MULTILINE):
                assert f"/static/{name}" in ROUTES, f"{path.name} imports {name}"


def test_what_is_vendored_is_as_it_was_published() -> None:
    folder = STATIC / "vendor"
    sums = dict(reversed(line.split()) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums.keys() == {"uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE.txt"}
    for name, expected in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected


def test_no_file_of_ours_makes_markup_of_text_or_has_inline_code() -> None:
    for path in STATIC.rglob("*"):
        if path.suffix not in (".js", ".html", ".css") or path.parent.name == "vendor":
            continue
        text = path.read_text()
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function",
                          "DOMParser", "srcdoc", "javascript:", " style=", "@import", "url("):  # fmt: skip
            assert forbidden not in text, f"{path.name}: {forbidden}"
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), f"{path.name} names another host"
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=", text if path.suffix == ".html" else "")


PAIRS = [
    *product(("--text", "--muted", "--accent"), ("--surface", "--page")),
    ("--text", "--hover"), ("--muted", "--hover"), ("--muted", "--field"), ("--muted", "--idle-soft"),
    ("--good", "--good-soft"), ("--warn", "--warn-soft"), ("--bad", "--bad-soft"),
    ("--good", "--surface"), ("--warn", "--surface"), ("--bad", "--surface"), ("--surface", "--bad"),
    ("--on-accent", "--accent"), ("--page", "--text"),
]  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_has_the_contrast_that_people_need(theme: str) -> None:
    blocks = re.findall(r":root[^{]*\{(.*?)\}", (STATIC / "style" / "base.css").read_text(), re.DOTALL)
    light, dark, dark_by_system = (dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", block)) for block in blocks)
    assert dark == dark_by_system
    colours = light if theme == "light" else dark
    for text, ground in PAIRS:
        lighter, darker = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
        ratio = (lighter + 0.05) / (darker + 0.05)
        assert ratio >= 4.5, f"{text} on {ground}: {ratio:.2f}"  # WCAG 2.2, level AA


def luminance(colour: str) -> float:
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
