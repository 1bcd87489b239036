"""What is checked of an HTTP request before its body is read, and how its body is read.

A web page of a stranger can make a browser send requests to a server on the same machine. It can
neither read the answers nor send JSON without the server's permission, unless it has a name that
leads to this machine (DNS rebinding): so names that are not this server's are refused.
"""

import asyncio
import contextlib
import dataclasses
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ofa_jax.serving.limits import Limits
from ofa_jax.utils.excerpts import excerpt

_MAX_DISCARDED = 64 << 20
_SECONDS_TO_DISCARD = 10.0

Asgi = Callable[[Mapping[str, Any], Any, Any], Awaitable[None]]


class HttpError(Exception):
    """A request that gets no answer.

    Attributes:
      status: HTTP status.
      sentence: what is wrong and what to do.
      headers: further headers of the response.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})

    def response(self) -> Response:
        """Returns the response."""
        return json_response({"error": self.sentence}, self.status, self.headers)


def json_response(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns a response of strict JSON in ASCII."""
    body = json.dumps(content, allow_nan=False).encode("ascii")
    return Response(body, status, dict(headers or {}), "application/json")


class HostGuard:
    """Refuses requests to other names, and requests of other sites' pages.

    Addresses are always allowed, as no name leads to them; so is localhost.
    """

    def __init__(self, app: Asgi, allowed_hosts: Iterable[str] = ()):
        """Wraps an ASGI application.

        Args:
          app: the application.
          allowed_hosts: names of this server besides localhost and addresses; "*" allows all.
        """
        self._app = app
        self._names = {name.casefold().rstrip(".") for name in allowed_hosts}

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Serves a request."""
        if scope["type"] in ("http", "websocket") and (problem := self._problem(scope)):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            response = HttpError(403, problem, {"Connection": "close"}).response()
            await response(dict(scope), receive, send)
            return
        await self._app(scope, receive, send)

    def _problem(self, scope: Mapping[str, Any]) -> str | None:
        """Returns why a request is refused; None for one that is not."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        if host and not self._is_allowed(host):
            return (
                f"The name {excerpt(host)!r} is not one of this server's: use localhost or its "
                "address, or start it with this name among its allowed hosts."
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and not self._is_own(origin, host):
            return (
                f"A page of {excerpt(origin)!r} may not use this server: use its own page, or a "
                "program."
            )
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        """Returns whether a page's origin is this server."""
        own = origin.partition("://")[2].casefold()
        allowed = "*" in self._names or _without_port(own) in self._names
        return allowed or own == host.casefold()

    def _is_allowed(self, host: str) -> bool:
        """Returns whether the name in a Host header is this server's."""
        name = _without_port(host).casefold().rstrip(".")
        if "*" in self._names or name == "localhost" or name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def own_names() -> tuple[str, ...]:
    """Returns the names of this machine, for a server that others can reach."""
    name = socket.gethostname()
    return name, f"{name.partition('.')[0]}.local"


def _without_port(host: str) -> str:
    """Returns the name or address of a Host header."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


@dataclasses.dataclass
class _Reading:
    """A body that is being read, and its bytes so far."""

    size: int = 0


class BodyReader:
    """Reads bodies, and counts their bytes while they arrive.

    One event loop uses it, so there is no lock.
    """

    def __init__(self, limits: Limits):
        """Makes a reader.

        Args:
          limits: of one body and of all.
        """
        self._limits, self._buffered = limits, 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Reads the body of a request, which counts as buffered within the `async with`.

        Yields:
          The body.

        Raises:
          HttpError: it is too large or too slow, or too many bodies are being read.
          ClientDisconnect: the client has gone.
        """
        limit = self._limits.max_body_bytes
        try:
            declared = int(request.headers.get("content-length", "0"))
        except ValueError:
            raise HttpError(400, "The header Content-Length is not a number.") from None
        if declared > limit:
            raise self._too_large(declared)
        reading = _Reading()
        try:
            yield await self._receive(request, reading)
        finally:
            self._buffered -= reading.size

    async def _receive(self, request: Request, reading: "_Reading") -> bytes:
        """Receives a body within the limits, and counts its bytes in `reading`."""
        chunks = []
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                async for chunk in request.stream():
                    reading.size += len(chunk)
                    self._buffered += len(chunk)
                    if reading.size > self._limits.max_body_bytes:
                        raise self._too_large(reading.size)
                    if self._buffered > self._limits.max_buffered_bytes:
                        raise HttpError(
                            503,
                            "The server is reading too many requests: try again in a few seconds.",
                            {"Retry-After": "2"},
                        )
                    chunks.append(chunk)
            request.state.body_arrived = True
            return b"".join(chunks)
        except TimeoutError:
            raise HttpError(
                408,
                f"The body did not arrive within {self._limits.body_timeout_s:g} seconds: send it "
                "again.",
                {"Connection": "close"},
            ) from None

    def _too_large(self, size: int) -> HttpError:
        return HttpError(
            413,
            f"The body has {size:,} bytes or more; the limit is {self._limits.max_body_bytes:,}: "
            "send a smaller image.",
        )


async def discard_body(request: Request) -> None:
    """Reads the rest of a body without keeping it, so that its sender reads the response.

    A client that is still sending when the connection is closed never sees why.
    """
    if "expect" in request.headers or getattr(request.state, "body_arrived", False):
        return  # the client waits for our permission, or has sent everything
    size = 0
    try:
        async with asyncio.timeout(_SECONDS_TO_DISCARD):
            while size < _MAX_DISCARDED:
                message = await request.receive()
                size += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
    except (TimeoutError, ClientDisconnect, RuntimeError):
        return
