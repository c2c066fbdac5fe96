"""Answers that are told while they come: responses that end them, however they end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
from fastapi import Response
from sse_starlette import EventSourceResponse
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from localsteer.server.answers import Answers


class _EndsAnswers(Response):
    """Answers that are streamed, which end with it, however it ends: also where nobody ever read the first."""

    answers: Answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.answers.close()


class EventStream(_EndsAnswers, EventSourceResponse):
    """As server-sent events; a dictionary has the `event` beside its `data`."""

    def __init__(self, events: AsyncIterator[str] | AsyncIterator[dict[str, str]], answers: Answers) -> None:
        # When the server ends, the engine ends the answers: their streams are not to be torn off before that.
        super().__init__(events, sep="\n", ping=15, shutdown_event=anyio.Event(), shutdown_grace_period=60)
        self.answers = answers


class JSONLines(_EndsAnswers, StreamingResponse):
    """As lines of JSON."""

    def __init__(self, lines: AsyncIterator[str], answers: Answers) -> None:
        super().__init__(lines, media_type="application/x-ndjson")
        self.answers = answers
