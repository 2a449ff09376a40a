"""Rules that every request of the page has to meet, before a route sees it."""

import contextlib
import hmac
import html
import ipaddress
import json
import socket
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

MAX_BODY = 1 << 20
_YEAR = 365 * 24 * 3600
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Any]
Send = Callable[[Any], Any]


@dataclass(frozen=True)
class Rules:
    """Who may ask.

    Attributes:
        token: random text of this launch; whoever has it in the address or in a cookie is let in.
        port: of the server. Cookies are named by it, as browsers share those of a machine between its ports.
        hosts: values of the header Host that are let in, against DNS rebinding; None lets all in, for a server that a
            public proxy stands before.
        embedded_in: the site that may show the page in a frame. Cookies are then those of the frame alone.
    """

    token: str
    port: int
    hosts: frozenset[str] | None
    embedded_in: str | None = None

    @property
    def session_cookie(self) -> str:
        """The name of the cookie with the token."""
        return f"hf_rlhf_session_{self.port}"

    @property
    def name_cookie(self) -> str:
        """The name of the cookie with the annotator's name."""
        return f"hf_rlhf_annotator_{self.port}"

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of every response."""
        policy = (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'none';"
            f" frame-ancestors {self.embedded_in or chr(39) + 'none' + chr(39)}; base-uri 'none'; form-action 'none';"
            " require-trusted-types-for 'script'; trusted-types 'none'"
        )
        named = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        return [(name.lower().encode(), value.encode()) for name, value in named.items()]

    def cookie(self, name: str, value: str, *, lasts: bool = False) -> str:
        """Return the value of a Set-Cookie header; a cookie that lasts is kept for a year."""
        site = "SameSite=None; Secure; Partitioned" if self.embedded_in else "SameSite=Strict"
        return f"{name}={quote(value, safe='')}; Path=/; HttpOnly; {site}" + (f"; Max-Age={_YEAR}" if lasts else "")

    def knows(self, token: str) -> bool:
        """Return whether this is the token, in a time that does not depend on it."""
        return hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode())


def hosts_of(host: str, port: int) -> frozenset[str]:
    """Return the values of the header Host by which a server on this address is reached."""
    names = {*_LOOPBACK, host}
    if not is_loopback(host):
        own = socket.gethostname()
        names |= {own, socket.getfqdn(), f"{own}.local"}
        with contextlib.suppress(OSError):
            names |= {str(each[4][0]) for each in socket.getaddrinfo(own, None)}
    shown = {f"[{name}]" if ":" in name else name.lower() for name in names}
    return frozenset({f"{name}:{port}" for name in shown} | (shown if port == 80 else set()))


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server on this address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def cookies_of(scope: Scope) -> dict[str, str]:
    """Return the cookies of a request; other programs of this machine set some too, in any shape."""
    pairs = (each.partition("=") for each in _header(scope, b"cookie").split(";"))
    return {name.strip(): unquote(value.strip()) for name, _, value in pairs}


def token_in_address(scope: Scope) -> str:
    """Return the token in the address of a request, or nothing."""
    return parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]


class Guard:
    """ASGI application that answers what is against the rules, and gives all else to the one behind it.

    Args:
        app: the application behind it.
        rules: that a request has to meet.
        public: paths for which no token is needed, besides those under /static/.
    """

    def __init__(self, app: Any, rules: Rules, public: tuple[str, ...] = ()):
        self.app, self.rules, self.public = app, rules, public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        extra = self.rules.headers()

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        if (refusal := self._refusal(scope)) is not None:
            await respond(scope, send_with_headers, *refusal)
            return
        body = b""
        if scope["method"] not in ("GET", "HEAD"):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body, more = body + message.get("body", b""), message.get("more_body", False)
                if len(body) > MAX_BODY:
                    await respond(scope, send_with_headers, 413, "This is more than 1 MiB. Send a shorter text.")
                    return

        async def receive_body() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, receive_body, send_with_headers)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        rules, path, host = self.rules, scope["path"], _header(scope, b"host").lower()
        if rules.hosts is not None and host not in rules.hosts:
            return 400, "This server has another name. Open the address that the terminal shows."
        if scope["method"] not in ("GET", "HEAD"):
            if urlsplit(_header(scope, b"origin").lower()).netloc != host or not host:
                return 403, "This request comes from another site. Open the address that the terminal shows."
            if _header(scope, b"content-type").partition(";")[0].strip().lower() != "application/json":
                return 415, "The body of a request is JSON."
            length = _header(scope, b"content-length")
            if length.isdigit() and int(length) > MAX_BODY:
                return 413, "This is more than 1 MiB. Send a shorter text."
        known = rules.knows(cookies_of(scope).get(rules.session_cookie, ""))
        if path == "/" and not known:
            known = rules.knows(token_in_address(scope))
        if not known and path not in self.public and not path.startswith("/static/"):
            return 403, (
                "This page opens only by the whole address that the terminal shows, with the token at its end. A server"
                " that was started again has a new one."
            )
        return None


async def respond(scope: Scope, send: Send, status: int, message: str) -> None:
    """Answer a request by an error that says what to do: as a page to a person, else as JSON."""
    if scope["method"] == "GET" and not scope["path"].startswith(("/api/", "/static/")):
        kind, body = "text/html; charset=utf-8", _PAGE.format(html.escape(message))
    else:
        kind, body = "application/json", json.dumps({"error": message})
    head = [(b"content-type", kind.encode()), (b"content-length", str(len(body.encode())).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body.encode()})


def _header(scope: Scope, name: bytes) -> str:
    found = [value for key, value in scope["headers"] if key == name]
    return found[0].decode("latin-1") if len(found) == 1 else ""


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Not opened</title>
<link rel="stylesheet" href="/static/page.css">
<main class="notice">
<h1>This page cannot be opened</h1>
<p>{}</p>
</main>
</html>
"""
