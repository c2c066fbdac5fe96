"""The application: routes, guards, errors, the page."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localsteer.errors import LocalsteerError
from localsteer.server import (
    anthropic_api,
    completion_api,
    embeddings_api,
    llama_server_api,
    ollama_api,
    ollama_models,
    openai_api,
    responses_api,
    vectors_api,
)
from localsteer.server.answers import Service
from localsteer.server.engine import BusyError
from localsteer.server.errors import document, error_document, error_response, without_paths
from localsteer.server.guard import Access, Guard
from localsteer.server.metrics import CountRequests, Metrics

_PAGE = Path(__file__).parent / "page"
# Answers in a row that fail: one bad answer is bad luck.
_FAILING = 3
# The page asks nobody but this server, not even where a link's host is, before it is followed.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-DNS-Prefetch-Control": "off",
    "Cache-Control": "no-cache",
}


def make_app(service: Service, access: Access) -> ASGIApp:
    """The whole server for uvicorn."""
    metrics = Metrics(service.engine)
    app = _App(
        title="localsteer",
        version=metadata.version("localsteer"),
        description="A local language model, steered for each request.",
        docs_url=None,
        redoc_url=None,
        responses={status: {"description": text, "model": None} for status, text in _REFUSALS.items()},
    )
    app.include_router(openai_api.router(service))
    app.include_router(responses_api.router(service))
    app.include_router(anthropic_api.router(service))
    app.include_router(vectors_api.router(service))
    app.include_router(ollama_api.router(service))
    app.include_router(ollama_models.router(service))
    app.include_router(embeddings_api.router(service))
    app.include_router(completion_api.router(service))
    app.include_router(llama_server_api.router(service))
    app.add_exception_handler(LocalsteerError, _failed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _nobody_there)
    app.add_exception_handler(Exception, _failed)

    @app.get("/v1/health", include_in_schema=False)
    @app.get("/health", tags=["Server"])
    async def health(response: Response) -> dict[str, Any]:
        """Whether it answers, and how busy it is; 503 where one answer after another fails."""
        engine = service.engine
        failing = engine.failures >= _FAILING
        if failing:
            response.status_code = 503
        return {
            "status": "failing" if failing else "ok",
            "model": service.steerings.name,
            "running": engine.running,
            "waiting": engine.waiting,
        }

    @app.get("/metrics", tags=["Server"], response_class=Response)
    async def read_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html", headers=PAGE_HEADERS)

    app.mount("/page", _PageFiles(directory=_PAGE))
    guarded: ASGIApp = Guard(app, access)
    if access.origins:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=[one for one in access.origins if one == "*"],
            allow_origin_regex=access.origin_pattern,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    return _UsualNames(_HeadAsGet(CountRequests(guarded, metrics)))  # what is refused counts, too


class _HeadAsGet:
    """Answers HEAD wherever there is an answer to GET: programs for Ollama ask so whether anybody is there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; uvicorn keeps the body to itself, by the method in its own scope."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class _UsualNames:
    """Spells the names of headers as other servers do (Content-Type): small programs look for them letter by letter."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def spelt(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [(name.title(), value) for name, value in message.get("headers", ())]
            await send(message)

        await self._app(scope, receive, spelt)


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The document, made when it is first asked for: that takes 60 to 110 ms.

        FastAPI names 422 for a body that is not valid; OpenAI's servers answer 400, and so does this one.
        """
        if self.openapi_schema is None:
            for path in super().openapi()["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
        assert self.openapi_schema is not None
        return self.openapi_schema


class _PageFiles(StaticFiles):
    """The page's parts, asked for anew each time: those of two releases do not go together."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


_REFUSALS = {
    400: "What the request asks for cannot be had.",
    401: "The API key is missing or wrong.",
    403: "The Host or Origin is not one of this server's, or another web page asks.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    429: "Too many requests wait; Retry-After says how long to wait.",
    503: "The server is stopping.",
}


async def _failed(http: HTTPRequest, error: Exception) -> Response:
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, BusyError) else None
    return error_response(http.url.path, *error_document(error), headers)


async def _invalid(http: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first.get("loc", ()) if part != "body")
    text = without_paths(f"{place}: {first['msg']}" if place else str(first["msg"]))
    return error_response(http.url.path, 400, document(text, "invalid_request_error", without_paths(place) or None))


async def _http_error(http: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    content = document(str(error.detail), "invalid_request_error")
    return error_response(http.url.path, error.status_code, content, error.headers)


async def _nobody_there(_http: HTTPRequest, _error: Exception) -> Response:
    return Response(status_code=499)  # as nginx counts it
