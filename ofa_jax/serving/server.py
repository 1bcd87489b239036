"""Runs an application until it is stopped, and then answers what it has accepted.

    serve(make_app(queue), queue, host="127.0.0.1", port=8000)

SIGTERM and Ctrl-C close the port, finish the requests that were accepted, and return. A second
Ctrl-C ends at once.
"""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from ofa_jax.serving.prediction_queue import PredictionQueue

_SECONDS_FOR_RESPONSES = 2.0
"""For responses on their way once the queue is empty; then streams that never end are cut."""
_MAX_CONNECTIONS = 1000
_BACKLOG = 512


def serve(
    app: Any,
    queue: PredictionQueue,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    drain_timeout_s: float = 120.0,
    announce: Callable[[str], None] = print,
) -> bool:
    """Serves an application until SIGTERM or Ctrl-C, and drains its queue.

    Args:
      app: an ASGI application.
      queue: of its requests.
      host: the address to listen at; the default can be reached from this machine alone.
      port: 0 for any free one.
      drain_timeout_s: seconds for the requests that were accepted, once it is stopped.
      announce: gets a line with the URL once the server accepts connections.

    Returns:
      Whether everything that was accepted has been answered.

    Raises:
      OSError: the address cannot be used; the sentence says why.
    """
    listener = open_listener(host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    server = DrainingServer(app, queue, lambda: announce(f"Serving at {url}"), drain_timeout_s)
    with contextlib.closing(listener), _stopped_by_signals(server, queue):
        server.run(sockets=[listener])
    return queue.drain(timeout=0 if server.force_exit else _SECONDS_FOR_RESPONSES)


def open_listener(host: str, port: int) -> socket.socket:
    """Returns a socket that listens at an address.

    Raises:
      OSError: the address cannot be used; the sentence says why.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        problem = getattr(error, "strerror", None) or error
        raise OSError(
            f"The address {host}, port {port} cannot be used ({problem}): give another port, or "
            "stop the program that uses it."
        ) from error


class DrainingServer(uvicorn.Server):
    """A server that refuses new requests as soon as it begins to stop."""

    def __init__(
        self,
        app: Any,
        queue: PredictionQueue,
        started: Callable[[], None] = lambda: None,
        drain_timeout_s: float = 120.0,
    ):
        """Configures a server; `run(sockets=[open_listener(...)])` starts it.

        Args:
          app: an ASGI application.
          queue: of its requests.
          started: called once connections are accepted.
          drain_timeout_s: see `serve`.
        """
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=10,
        )
        super().__init__(config)
        self._queue, self._started, self._drain_timeout_s = queue, started, drain_timeout_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to accept connections, and says so."""
        await super().startup(sockets)
        if not self.should_exit:
            self._started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to stop."""
        self._queue.stop_accepting()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the port, and waits for responses, but not for streams that never end."""
        watch = asyncio.create_task(self._cut_streams())
        try:
            await super().shutdown(sockets)
        finally:
            watch.cancel()

    async def _cut_streams(self) -> None:
        """Ends what is left once the queue is drained, or has had its time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._drain_timeout_s
        while self._queue.num_open and loop.time() < end:
            await asyncio.sleep(0.05)
        await asyncio.sleep(_SECONDS_FOR_RESPONSES)
        for connection in list(self.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()


@contextlib.contextmanager
def _stopped_by_signals(server: uvicorn.Server, queue: PredictionQueue) -> Iterator[None]:
    """Lets signals stop the server before it runs, too, and not end the process after it.

    uvicorn has handlers of its own while it runs, and raises the signals once more at the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        queue.stop_accepting()
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
