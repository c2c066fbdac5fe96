"""A server that speaks the contract of docs/server.md with canned answers: for the page, without a model."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from localsteer import server
from localsteer.server.app import PAGE_HEADERS

PAGE = Path(server.__file__).parent / "page"
POLES = {
    "bullets": "prose",
    "calm": "angry",
    "cautious": "reckless",
    "concise": "verbose",
    "confident": "hesitant",
    "creative": "dull",
    "enthusiastic": "bored",
    "formal": "casual",
    "french": "english",
    "happy": "sad",
    "honest": "deceitful",
    "pirate": "modern",
    "polite": "rude",
    "respectful": "disrespectful",
    "simple": "complicated",
}
CALIBRATED = ("bullets", "calm", "formal", "happy")
DOSED = ("cautious",)
TRIED = {
    **{name: {"positive": 1.8163, "negative": 1.99} for name in CALIBRATED},
    "cautious": {"positive": 20.2, "negative": None},
}
# Toward prose nothing inside the budget does anything.
ONE_SIDED = "bullets"
UNBUILT = ("formal", "pirate")
STEERED = "What a lovely question! My day was wonderful: the sun was out ☀️, a neighbour brought cake,\nand we laughed a lot. 🎉"
UNSTEERED = "My day was fine, thank you.\nI answered some questions and read a little."
# As bench/ measured them for happy on the demo model: dose, effect (mean, low, high), cost (mean, low, high).
POSITIVE = (
    (0.100, 0.44, -0.72, 2.26, 0.05, -0.07, 0.17),
    (0.200, 1.23, -0.03, 2.70, 0.16, 0.09, 0.22),
    (0.273, 1.20, 0.44, 1.84, 0.20, 0.04, 0.37),
    (0.355, 1.71, 1.08, 2.33, 0.36, 0.15, 0.57),
    (0.465, 2.00, 0.67, 3.42, 0.57, 0.44, 0.70),
)
NEGATIVE = (
    (0.100, 0.47, -0.46, 1.24, -0.01, -0.20, 0.24),
    (0.162, 1.40, 0.36, 2.59, 0.21, -0.02, 0.40),
    (0.216, 1.71, 1.32, 2.17, 0.35, 0.24, 0.45),
    (0.367, 2.22, 1.53, 2.78, 0.62, 0.45, 0.77),
)
FIRED = {
    "rule": "stay-calm", "action": "fire", "position": 0, "classifier": "hostile", "score": 0.93, "threshold": 0.5,
    "strength": 1.0, "steer": "calm", "time": "2025-01-01T00:00:00Z", "conversation": "c", "answer": 1,
}  # fmt: skip
PASSED = {**FIRED, "action": "pass", "score": 0.12, "strength": 0.0}


@dataclass
class FakeApi:
    """What the page asks is kept; what it gets can be chosen.

    Attributes:
        key: asked of every request; None for none.
        busy: whether chats are answered with 429.
        endless: whether answers never end by themselves.
        pace: seconds between two tokens.
        built: cleared, requests wait for vectors that are not built yet until it is set.
        default: the default steering.
        chats: the bodies of chat requests.
        answer: what every question is answered by; "" for one of two texts, by whether it is steered.
        decisions: of a policy, each with the number of the word before which it is told.
    """

    key: str | None = None
    busy: bool = False
    endless: bool = False
    pace: float = 0.0
    built: threading.Event = field(default_factory=threading.Event)
    default: str = ""
    chats: list[dict[str, Any]] = field(default_factory=list)
    answer: str = ""
    decisions: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    _unbuilt: set[str] = field(default_factory=lambda: set(UNBUILT))

    def __post_init__(self) -> None:
        self.built.set()

    def app(self) -> Starlette:
        """All routes that the page uses."""
        return Starlette(
            routes=[
                Route("/", self._page),
                Mount("/page", StaticFiles(directory=PAGE)),
                Route("/v1/models", self._models),
                Route("/v1/vectors", self._vectors),
                Route("/v1/vectors/activations", self._activations, methods=["POST"]),
                Route("/v1/vectors/{name}", self._vector, methods=["POST"]),
                Route("/v1/steering", self._steering, methods=["GET", "PUT"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    async def _page(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    def _refusal(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return _error(401, "The API key is missing or wrong.")

    async def _models(self, request: Request) -> Response:
        return self._refusal(request) or JSONResponse({"object": "list", "data": [{"id": "demo", "object": "model"}]})

    async def _vectors(self, request: Request) -> Response:
        data = [{"object": "vector", "state": self._state(name), **_described(name)} for name in POLES]
        return self._refusal(request) or JSONResponse({"object": "list", "data": data})

    def _state(self, name: str) -> str:
        return "built at first use" if name in self._unbuilt else "ready"

    async def _build(self, text: str) -> None:
        """Wait until the vectors that a text names are built."""
        named = {name for name in self._unbuilt if name in text}
        if named:
            await asyncio.to_thread(self.built.wait, 30)
            self._unbuilt -= named

    async def _vector(self, request: Request) -> Response:
        name = request.path_params["name"]
        await self._build(name)
        sides = {"positive": _side(POSITIVE, 1), "negative": _side(NEGATIVE, 0 if name == ONE_SIDED else -1)}
        calibration = {"budget": 0.25, "sides": sides} if name in CALIBRATED else None
        document = {**_described(name), "layers": list(range(8, 24)), "relative_dose": 0.256, "calibration": calibration}
        return self._refusal(request) or JSONResponse(document)

    async def _activations(self, request: Request) -> Response:
        body = await request.json()
        data = []
        for text in body["texts"]:
            # A character of four bytes is two tokens.
            tokens = re.findall(r"\s?[^\s\U00010000-\U0010ffff]+|[\s\ufffd]", text.replace("🎉", "\ufffd\ufffd"))
            values = [round(0.2 - 0.057 * (len(token) * 7 % 8), 4) for token in tokens]
            data.append({"tokens": tokens, "vectors": dict.fromkeys(body["vectors"], values)})
        return self._refusal(request) or JSONResponse({"object": "list", "data": data})

    async def _steering(self, request: Request) -> Response:
        if request.method == "PUT":
            self.default = (await request.json())["steering"]
        dose = 0.61 if self.default else 0.0
        return self._refusal(request) or JSONResponse({"steering": self.default, "relative_dose": dose, "notes": []})

    async def _chat(self, request: Request) -> Response:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        if self.busy:
            return _error(429, "Too many answers wait.", {"Retry-After": "3"})
        body = await request.json()
        if "*" in body["steering"]:
            return _error(400, f"Expected the name or path of a vector.\n  {body['steering']}\n  ^")
        self.chats.append(body)
        await self._build(body["steering"])
        return EventSourceResponse(self._stream(body), ping=1)

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        expression = body["steering"]
        past = (
            ["2 happy is past the calibrated range: relative dose 0.51, calibrated up to 0.26."]
            if "2 happy" in expression
            else []
        )
        decision = FIRED if "idiot" in body["messages"][-1]["content"] else PASSED
        decisions = self.decisions or [(0, decision)]
        scope = "prompt" if body["steer_prompt"] else "response"
        dose = 0.41 if expression else 0.0
        applied = {"expression": expression, "scope": scope, "relative_dose": dose, "notes": past, "terms": _terms(expression)}
        yield _chunk({"role": "assistant", "content": None}, steering=applied)
        for thought in ["They ask ", "why."] if "why" in body["messages"][-1]["content"] else []:
            yield _chunk({"reasoning_content": thought})
        text = self.answer or (STEERED if expression else UNSTEERED)
        for number, token in enumerate(re.findall(r"\s*\S+|\s+$", text)):
            told = [one for place, one in decisions if place == number]
            if told:
                yield _chunk({"content": ""}, policy=told)
            await asyncio.sleep(self.pace)
            yield _chunk({"content": token})
        if self.endless:
            await asyncio.Event().wait()
        yield _chunk({}, "stop", steering=applied, timing={"tokens_per_second": 23.4}, seed=body["seed"])
        yield "[DONE]"


def _terms(expression: str) -> list[dict[str, Any]]:
    """Those of an expression of plain terms, all alike."""
    return [
        {
            "term": term,
            "vector": term.split()[-1],
            "strength": 0.5,
            "removed": False,
            "phase": "answer",
            "layers": [8, 9, 10, 12],
            "relative_dose": 0.21,
            "worth": f"{term.split()[-1]}: about as far as a system prompt that asks for it.",
        }
        for term in re.findall(r"[^+\s][^+]*[^+\s]", expression)
    ]


def _described(name: str) -> dict[str, Any]:
    about = {"positive": name, "negative": POLES[name], "description": f"{name.capitalize()} against {POLES[name]}."}
    measured = {"calibrated": name in CALIBRATED, "dosed": name in DOSED, "tried": TRIED.get(name)}
    return {"id": name, **about, **measured}


def _side(points: tuple[tuple[float, ...], ...], sign: int) -> dict[str, Any]:
    """Sign 0: nothing inside the budget does anything, as calibration says it."""
    dose = 0.256 if sign > 0 else 0.184 if sign < 0 else None
    names = ("dose", "effect", "effect_low", "effect_high", "cost", "cost_low", "cost_high")
    curve = [{"strength": sign * point[0] / dose if dose else None, **dict(zip(names, point, strict=True))} for point in points]
    return {"dose": dose, "effect": 1.2 if dose else None, "cost": 0.22 if dose else None, "curve": curve}


def _chunk(delta: dict[str, str | None], finish: str | None = None, **more: Any) -> str:
    return json.dumps(
        {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}
    )


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "error", "param": None, "code": None}}, status, headers)


@contextmanager
def serve(api: FakeApi, port: int = 0) -> Iterator[str]:
    """Serve it on this machine only; gives its address."""
    # Read by requests that still wait when the tests are over.
    config = uvicorn.Config(api.app(), log_level="warning", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", port)) as listening:
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            api.built.set()
            running.should_exit = True
            thread.join()
