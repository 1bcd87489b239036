"""Fixtures of a small run, and of a server in a thread."""

import contextlib
import threading

import pytest
from browser_fixtures import browser  # noqa: F401
from run_fixtures import config, image, processor, run_directory, variables  # noqa: F401


@pytest.fixture
def serving():
    """Serves a queue in a thread; returns a function from the queue to the port."""
    pytest.importorskip("fastapi", reason="needs the extra demo")
    from ofa_jax.serving.http_app import make_app
    from ofa_jax.serving.server import DrainingServer, open_listener

    with contextlib.ExitStack() as stack:

        def start(queue, **options):
            started = threading.Event()
            server = DrainingServer(make_app(queue, **options), queue, started.set)
            listener = stack.enter_context(contextlib.closing(open_listener("127.0.0.1", 0)))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()

            def stop():
                server.should_exit = True
                thread.join(30)
                assert not thread.is_alive()

            stack.callback(stop)
            assert started.wait(30)
            return listener.getsockname()[1]

        yield start
