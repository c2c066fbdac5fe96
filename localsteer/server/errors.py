"""Errors as the two APIs write them: what went wrong, without a path of this machine."""

from __future__ import annotations

import re
from typing import Any

from localsteer.errors import LocalsteerError
from localsteer.policy.audit import Decision
from localsteer.server.answers import RequestError
from localsteer.server.engine import BusyError, StoppingError
from localsteer.server.steerings import UnknownModelError

# An absolute path, of Windows or not, but none of the API's; its last part may be told.
_PATH = re.compile(r"(?<![\w.])(?!/v1/)(?:[A-Za-z]:[\\/]|~?/)(?:[^\s\"'<>|:*?\\/]+[\\/])*([^\s\"'<>|:*?\\/]+)")


def without_paths(text: str) -> str:
    """A message with paths of this machine shortened to their last part, and without halves of characters."""
    return _PATH.sub(r"\1", text).encode("utf-8", "replace").decode("utf-8")


def decision_document(decision: Decision) -> dict[str, Any]:
    """A policy's decision; where a classifier failed, it may tell of a file."""
    return {name: without_paths(value) if isinstance(value, str) else value for name, value in decision.document().items()}


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
    parameter = error.parameter if isinstance(error, RequestError) else None
    return 400, document(text, "invalid_request_error", parameter)


def document(message: str, kind: str, parameter: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}
