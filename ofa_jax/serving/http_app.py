"""The HTTP endpoint: `POST /predict`, JSON in and JSON out, over a `PredictionQueue`.

    app = make_app(PredictionQueue(Predictor("runs/pretrain_scenes")))
    serve(app, queue, port=8000)

`GET /health` says whether requests are accepted, `GET /openapi.json` describes the endpoint for
programs and `GET /docs` for people. Whatever is wrong with a request is answered by a sentence.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterable
from typing import Any

from absl import logging
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import ofa_jax
from ofa_jax.inference.predictions import Prediction
from ofa_jax.serving import fields, schemas
from ofa_jax.serving.api_page import make_page
from ofa_jax.serving.fields import BadFieldError, ParsedRequest
from ofa_jax.serving.http_guards import (
    BodyReader,
    HostGuard,
    HttpError,
    discard_body,
    json_response,
)
from ofa_jax.serving.limits import RateLimiter, TooLargeError
from ofa_jax.serving.prediction_queue import PredictionQueue
from ofa_jax.serving.prediction_requests import RefusedError, UnexpectedError

_PREPARING_THREADS = 2
"""Each takes the memory of one decoded image."""
_CLIENT_GONE = 499
_REASONS = {
    400: "Not a request: no JSON, an unknown field, a value of another type, not an image.",
    403: "Another name than this server's, or the page of another site.",
    408: "The body did not arrive in time.",
    413: "The body, the image or a text is too large.",
    415: "The body is not declared as application/json.",
    422: "The model has no output for this request.",
    429: "Too many requests of this client; Retry-After says when to go on.",
    500: "The server failed.",
    503: "The queue is full, or the server stops; Retry-After says when to try again.",
}


def make_app(queue: PredictionQueue, *, allowed_hosts: Iterable[str] = ()) -> FastAPI:
    """Returns the application. A page can be mounted into it.

    Args:
      queue: decodes the requests, and has their limits.
      allowed_hosts: names of this server besides localhost and addresses, see `HostGuard`.
    """
    endpoint = _Endpoint(queue)
    app = FastAPI(
        title="OFA predictions",
        version=ofa_jax.__version__,
        description="Images and instructions in, text, boxes and images out.",
        docs_url=None,  # FastAPI's own pages load scripts from other servers
        redoc_url=None,
        lifespan=endpoint.lifespan,
    )
    app.add_middleware(HostGuard, allowed_hosts=tuple(allowed_hosts))
    app.add_api_route(
        "/predict",
        endpoint.predict,
        methods=["POST"],
        summary="Predicts the output for an image and an instruction.",
        responses=_describe_responses(),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": dict(schemas.REQUEST_SCHEMA)}},
            }
        },
    )
    app.add_api_route(
        "/health",
        endpoint.health,
        methods=["GET"],
        summary="Says whether requests are accepted, and how many there were.",
        responses={503: {"description": "The server stops."}},
    )
    app.add_api_route("/health", endpoint.health, methods=["HEAD"], include_in_schema=False)

    async def docs(request: Request) -> HTMLResponse:
        return _page(app, request)

    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)
    app.add_exception_handler(HttpError, _answer_http_error)
    app.add_exception_handler(HTTPException, _answer_routing_error)
    app.add_exception_handler(Exception, _answer_failure)
    return app


def _describe_responses() -> dict[int | str, dict[str, Any]]:
    """Returns the responses of `POST /predict` for the OpenAPI description."""
    answers = {200: ("The prediction.", schemas.ANSWER_SCHEMA)}
    answers |= {status: (reason, schemas.ERROR_SCHEMA) for status, reason in _REASONS.items()}
    return {
        status: {
            "description": description,
            "content": {"application/json": {"schema": dict(schema)}},
        }
        for status, (description, schema) in answers.items()
    }


def _page(app: FastAPI, request: Request) -> HTMLResponse:
    """Returns the page that describes the endpoint; it loads nothing."""
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "connect-src 'self'; img-src data:; frame-ancestors 'self'"
    )
    return HTMLResponse(
        make_page(app.openapi(), str(request.base_url).rstrip("/")),
        headers={"Content-Security-Policy": policy},
    )


@dataclasses.dataclass(frozen=True)
class _Ticket:
    """A request in the queue."""

    parsed: ParsedRequest
    future: "concurrent.futures.Future[Prediction]"


class _Endpoint:
    """Answers requests with the predictions of a queue."""

    def __init__(self, queue: PredictionQueue):
        self._queue = queue
        self._rates = RateLimiter(queue.limits)
        self._bodies = BodyReader(queue.limits)
        self._threads = concurrent.futures.ThreadPoolExecutor(_PREPARING_THREADS, "requests")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Ends the threads with the application."""
        del app
        yield
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def health(self) -> Response:
        """Says whether requests are accepted, and how many there were."""
        accepting = self._queue.is_accepting
        status = "ok" if accepting else "stopping"
        counts = dataclasses.asdict(self._queue.counts)
        return json_response({"status": status, **counts}, 200 if accepting else 503)

    async def predict(self, request: Request) -> Response:
        """Predicts the output for an image and an instruction."""
        loop = asyncio.get_running_loop()
        try:
            self._admit(request)
            async with self._bodies.read(request) as body:
                ticket = await loop.run_in_executor(self._threads, self._submit, body)
            del body
        except HttpError as error:
            if error.status != 408:
                await discard_body(request)
            return error.response()
        except ClientDisconnect:
            return Response(status_code=_CLIENT_GONE)
        try:
            prediction = await self._wait(ticket, request)
            if prediction is None:
                return Response(status_code=_CLIENT_GONE)
            return await loop.run_in_executor(self._threads, _respond, ticket.parsed, prediction)
        except HttpError as error:
            return error.response()

    def _admit(self, request: Request) -> None:
        """Raises HttpError for a request whose body need not be read."""
        client = request.client.host if request.client else ""
        if wait := self._rates.take(client):
            limits = self._queue.limits
            raise HttpError(
                429,
                f"These are more than {limits.requests_per_second:g} requests per second: wait "
                f"{wait:.1f} seconds.",
                {"Retry-After": str(max(1, round(wait + 0.5)))},
            )
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            shown = f"is {fields.truncate(kind, 40)!r}" if kind else "is missing"
            raise HttpError(
                415, f"The header Content-Type {shown}: send JSON, as application/json."
            )
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise HttpError(415, "The body is compressed: send it without Content-Encoding.")
        try:
            self._queue.check_room()
        except RefusedError as error:
            raise _refuse(error) from None

    def _submit(self, body: bytes) -> _Ticket:
        """Parses a body and puts its request into the queue; runs in a thread."""
        try:
            parsed = fields.parse_body(body, self._queue.limits)
            future = self._queue.submit(parsed.request)
            # While it waits, nothing holds on to the image that was sent.
            request = dataclasses.replace(parsed.request, image=None)
            return _Ticket(dataclasses.replace(parsed, request=request), future)
        except TooLargeError as error:
            raise HttpError(413, fields.sentence(error)) from None
        except RefusedError as error:
            raise _refuse(error) from None
        except BadFieldError as error:
            raise HttpError(400, str(error)) from None
        except ValueError as error:
            raise HttpError(400, fields.sentence(error)) from None

    async def _wait(self, ticket: _Ticket, request: Request) -> Prediction | None:
        """Waits for a prediction; returns None if the client goes away before.

        Raises:
          HttpError: there is no prediction.
        """
        answer = asyncio.wrap_future(ticket.future)
        gone: asyncio.Future[None] = asyncio.ensure_future(_client_gone(request))
        try:
            futures: tuple[asyncio.Future[Any], ...] = (answer, gone)
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                return None
            return answer.result()
        except UnexpectedError as error:
            raise HttpError(500, str(error)) from None
        except ValueError as error:
            raise HttpError(422, fields.sentence(error)) from None
        except RefusedError as error:
            raise _refuse(error) from None
        finally:
            gone.cancel()
            answer.cancel()  # and the request in the queue, unless it has begun


async def _client_gone(request: Request) -> None:
    """Returns once the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _respond(parsed: ParsedRequest, prediction: Prediction) -> Response:
    """Returns the response with a prediction."""
    return json_response(fields.make_answer(parsed, prediction))


def _refuse(error: RefusedError) -> HttpError:
    """Returns the error for a queue that takes no more."""
    return HttpError(503, str(error), {"Retry-After": str(error.retry_after)})


def _answer_http_error(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HttpError)
    return error.response()


def _answer_routing_error(request: Request, error: Exception) -> Response:
    """Answers a request to a path or with a method that there is not."""
    assert isinstance(error, HTTPException)
    path = fields.truncate(request.url.path, 80)
    if error.status_code == 404:
        text = f"There is no {path!r}: send requests to POST /predict, or read /docs."
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        text = f"{path} does not take {fields.truncate(request.method, 20)}, but {allowed}."
    else:
        text = fields.sentence(error.detail)
    return json_response({"error": text}, error.status_code, error.headers)


def _answer_failure(request: Request, error: Exception) -> Response:
    """Answers a request on which the server failed."""
    logging.error("A request to %s failed.", request.url.path, exc_info=error)
    text = f"The server failed on this request ({type(error).__name__}); its log says more."
    return json_response({"error": text}, 500)
