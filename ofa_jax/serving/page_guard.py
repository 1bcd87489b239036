"""What of Gradio the demo page needs; everything else that Gradio would serve is refused.

Gradio can also take uploads to disk, serve files, fetch URLs and run its functions for programs.
The page does none of this: its images go through `uploads`, and programs have `POST /predict`.
"""

import re
from collections.abc import Mapping
from typing import Any

from ofa_jax.serving.http_guards import Asgi, json_response

_MAX_BODY_BYTES = 256 << 10
_GRADIO = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json"
    r"|/(assets|static|svelte)/[\w./@+-]+"
    r"|/gradio_api/(queue/(join|data)|cancel|reset|startup-events|app_id|info|login_check)/?"
    r"|/gradio_api/heartbeat/\w+"
)
_POLICY = (
    b"default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    b"script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    b"font-src 'self' data:; connect-src 'self'; frame-ancestors 'self'; form-action 'self'; "
    b"base-uri 'self'; object-src 'none'"
)


class PageGuard:
    """Lets through the requests of the page and of the endpoint; refuses what else Gradio has."""

    def __init__(self, app: Asgi, own_paths: frozenset[str]):
        """Wraps an ASGI application.

        Args:
          app: with Gradio mounted at its root.
          own_paths: paths that are not Gradio's, which have limits of their own.
        """
        self._app, self._own_paths = app, own_paths

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Serves a request."""
        if scope["type"] != "http" or scope["path"] in self._own_paths:
            await self._app(scope, receive, send)
            return
        if not _GRADIO.fullmatch(scope["path"]) or ".." in scope["path"]:
            text = "There is nothing here: the page is /, and programs send POST /predict."
            await json_response({"error": text}, 404)(dict(scope), receive, send)
            return
        body = _BoundedBody(receive)

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    *message.get("headers", ()),
                    (b"content-security-policy", _POLICY),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, body.receive, send_with_policy)


class _BoundedBody:
    """Cuts off a body that is longer than any of the page's."""

    def __init__(self, receive: Any):
        self._receive, self._size = receive, 0

    async def receive(self) -> Any:
        """Returns the next message; a client that sends too much counts as gone."""
        message = await self._receive()
        self._size += len(message.get("body", b""))
        return {"type": "http.disconnect"} if self._size > _MAX_BODY_BYTES else message
