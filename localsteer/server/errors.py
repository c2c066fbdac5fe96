"""Errors as the APIs write them: what went wrong, without a path of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.responses import JSONResponse

from localsteer.engine.checks import ContextLengthError
from localsteer.errors import LocalsteerError
from localsteer.policy.audit import Decision
from localsteer.server.answers import RequestError
from localsteer.server.engine import BusyError, StoppingError
from localsteer.server.kept_responses import UnknownResponseError
from localsteer.server.steerings import UnknownModelError

# An absolute path, of Windows or not, but none of the API's; its last part may be told.
_PATH = re.compile(r"(?<![\w.])(?!/v1/)(?:[A-Za-z]:[\\/]|~?/)(?:[^\s\"'<>|:*?\\/]+[\\/])*([^\s\"'<>|:*?\\/]+)")

_ANTHROPICS = "/v1/messages"
_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def without_paths(text: str) -> str:
    """A message with paths of this machine shortened to their last part, and without halves of characters."""
    return _PATH.sub(r"\1", text).encode("utf-8", "replace").decode("utf-8")


def decision_documents(decisions: Iterable[Decision]) -> list[dict[str, Any]]:
    """A policy's decisions; where a classifier failed, one may tell of a file."""
    documents = (decision.document() for decision in decisions)
    return [{name: without_paths(value) if isinstance(value, str) else value for name, value in one.items()} for one in documents]


def error_document(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status and OpenAI's document of an error."""
    if not isinstance(error, LocalsteerError):
        return 500, document("The server failed; its log says how.", "server_error")
    text = without_paths(str(error))
    if isinstance(error, BusyError):
        return 429, document(text, "rate_limit_error", code="too_many_requests")
    if isinstance(error, StoppingError):
        return 503, document(text, "server_error", code="stopping")
    if isinstance(error, UnknownModelError):
        return 404, document(text, "invalid_request_error", "model", "model_not_found")
    if isinstance(error, UnknownResponseError):
        return 404, document(text, "invalid_request_error", error.parameter, "response_not_found")
    if isinstance(error, ContextLengthError):
        # The code is OpenAI's, the rest llama-server's: programs look for either.
        told = document(text, "exceed_context_size_error", "messages", "context_length_exceeded")
        return 400, {"error": {**told["error"], "n_prompt_tokens": error.n_prompt, "n_ctx": error.n_ctx}}
    parameter = error.parameter if isinstance(error, RequestError) else None
    return 400, document(text, "invalid_request_error", parameter)


def error_response(path: str, status: int, content: dict[str, Any], headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error's document in the form of the API that a path belongs to."""
    if path.startswith("/api/"):
        content = {"error": content["error"]["message"]}
    elif path == _ANTHROPICS or path.startswith(f"{_ANTHROPICS}/"):
        content = anthropic_document(status, content)
    return JSONResponse(content, status, headers)


def anthropic_document(status: int, content: Mapping[str, Any]) -> dict[str, Any]:
    """An error of OpenAI's form in Anthropic's, which tells the kinds apart by their status."""
    kind = _ANTHROPIC_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": content["error"]["message"]}}


def error_bytes(message: str, kind: str, code: str) -> bytes:
    """A whole answer, 503, for who is not let in as far as any API."""
    answer = JSONResponse(document(message, kind, code=code), 503, {"Retry-After": "1", "Connection": "close"})
    head = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
    return b"HTTP/1.1 503 Service Unavailable\r\n" + head + b"\r\n" + bytes(answer.body)


def document(message: str, kind: str, parameter: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}
