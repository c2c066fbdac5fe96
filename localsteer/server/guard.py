"""Who may talk to the server, and how much: a layer of ASGI around everything else.

A web page in the user's browser must not talk to a server on the user's machine: neither from its own origin, nor under a name
that it has made to point at 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localsteer.server.errors import document, error_response

MAX_BODY = 1_000_000
# A whole body must have come in so many seconds: 17 kB/s at least, where it is as large as it may be.
BODY_SECONDS = 60.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# What a browser asks for before anybody can give a key, and what a supervisor asks without one.
_OPEN = ("/", "/health", "/v1/health", "/page/", "/favicon.ico")
_TOO_LARGE = (413, f"The body is larger than {MAX_BODY:,} bytes.", "body_too_large")
_TOO_SLOW = (408, "The body did not come in time.", "body_too_slow")
_NO_SNIFFING = {"X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True)
class Access:
    """Who may talk to the server.

    Attributes:
        hosts: names and addresses that requests may call it by, without ports.
        origins: web pages elsewhere that may talk to it, such as "http://localhost:3000"; a bare host for all its pages, on any
            port, and "localhost" for all of this machine's; "*" for all there are.
        api_key: what requests must show; None for nothing.
    """

    hosts: Collection[str] = LOOPBACK
    origins: Collection[str] = ()
    api_key: str | None = None

    @functools.cached_property
    def origin_pattern(self) -> str:
        """A regular expression for the origins of all pages that may talk to it."""
        return "|".join(_origin_pattern(origin) for origin in self.origins)


def _origin_pattern(origin: str) -> str:
    if origin == "*":
        return ".*"
    if "://" in origin:
        return re.escape(origin)
    hosts = ("localhost", "127.0.0.1", "[::1]") if origin == "localhost" else (origin,)
    return rf"https?://(?:{'|'.join(map(re.escape, hosts))})(?::\d+)?"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _BodyError(Exception):
    pass


class Guard:
    """Lets requests through, or answers them itself."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._hosts = {host.lower() for host in access.hosts}
        self._key = access.api_key.encode() if access.api_key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _refuse(scope, receive, send, *refusal)
            return
        # In place, not in a copy: the application writes into the scope which route it took.
        # `curl -d` calls everything a form, and so do the examples of Ollama's programs; every body here is JSON. A web page
        # from elsewhere, which may send forms without asking first, was refused above by its Origin.
        others = [header for header in scope["headers"] if header[0].lower() != b"content-type"]
        scope["headers"] = [*others, (b"content-type", b"application/json")]
        started = False
        received = 0
        wrong: tuple[int, str, str] | None = None
        until: float | None = asyncio.get_running_loop().time() + BODY_SECONDS  # None: it is there

        async def limited() -> Message:
            nonlocal received, wrong, until
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                wrong = _TOO_SLOW
                raise _BodyError from None
            received += len(message.get("body", b""))
            if received > MAX_BODY:
                wrong = _TOO_LARGE
                raise _BodyError
            if not message.get("more_body", False):
                until = None
            return message

        async def guarded(message: Message) -> None:
            nonlocal started
            if wrong is not None and not started:
                return  # the application took the error for one of its own, and answers 400
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(_NO_SNIFFING)
            await send(message)

        with contextlib.suppress(_BodyError):
            await self._app(scope, limited, guarded)
        if wrong is not None and not started:
            await _refuse(scope, receive, send, *wrong)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, str] | None:
        """Status, message and code; None where nothing is wrong."""
        path, host = scope["path"], _host(headers.get("host", ""))
        # The address that the connection came to is no name that somebody could have made point here.
        address = (scope.get("server") or ("",))[0]
        if host not in self._hosts and host != address:
            return 403, f'The server is not called "{host[:100]}".', "wrong_host"
        origin = headers.get("origin")
        own = origin is not None and self._is_own(origin, headers["host"])
        # An <img> of another page asks without an Origin, but browsers say where it stands. A link to the page may be followed.
        # "same-site" is another port of this machine.
        elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site") and not (
            path == "/" and headers.get("sec-fetch-mode") == "navigate"
        )
        if (origin is not None or elsewhere) and not own:
            return 403, "Web pages from elsewhere may not talk to this server.", "wrong_origin"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 20 or int(length) > MAX_BODY:
            return _TOO_LARGE
        if self._key is not None and not any(path == one or (one == "/page/" and path.startswith(one)) for one in _OPEN):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            # Programs for Anthropic's API send the other header, and llama-server takes either.
            shown = key if scheme.lower() == "bearer" else headers.get("x-api-key", "")
            if not hmac.compare_digest(shown.strip().encode("latin-1"), self._key):
                return 401, "The API key is missing or wrong.", "invalid_api_key"
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether a page comes from this server, or is allowed."""
        if self._access.origins and re.fullmatch(self._access.origin_pattern, origin):
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def _host(header: str) -> str:
    """A Host header without its port."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, message: str, code: str) -> None:
    content = document(message, "authentication_error" if status == 401 else "invalid_request_error", code=code)
    headers = {"Connection": "close", **_NO_SNIFFING, **({"WWW-Authenticate": "Bearer"} if status == 401 else {})}
    await error_response(scope["path"], status, content, headers)(scope, receive, send)
