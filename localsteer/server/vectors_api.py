"""What can be named, how far texts lie along it, and the server's default steering."""

from __future__ import annotations

import threading
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from localsteer.llama.threads import compute_apart
from localsteer.reading.projection import project
from localsteer.server.answers import Service, applied
from localsteer.server.steerings import UnknownVectorError, parse_requested
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import resolve
from localsteer.vector.calibration import POLES, SIGN, Point, Side, without_nan
from localsteer.vector.control_vector import ControlVector

# Texts of one request, and vectors: reading them takes time that answers then lack.
_MAX_TEXTS = 32
_MAX_VECTORS = 8


class Activations(BaseModel):
    """POST /v1/vectors/activations."""

    texts: list[Annotated[str, Field(max_length=100_000)]] = Field(min_length=1, max_length=_MAX_TEXTS)
    vectors: list[Annotated[str, Field(max_length=200)]] = Field(min_length=1, max_length=_MAX_VECTORS)


class DefaultSteering(BaseModel):
    """PUT /v1/steering."""

    steering: str = Field(max_length=1000)


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1", tags=["Steering"])
    model, steerings = service.model, service.steerings
    reading = threading.Lock()  # one at a time: each takes a context of its own

    @routes.get("/vectors")
    def vectors() -> dict[str, Any]:
        """The vectors that can be named."""
        return {"object": "list", "data": steerings.list_vectors()}

    @routes.get("/vectors/{name}")
    def vector(name: str) -> dict[str, Any]:
        """One of them, with its dose-response curves; it is built where it is not there yet."""
        try:
            return _describe(service, name, steerings.vector(name))
        except UnknownVectorError as error:
            raise HTTPException(404, str(error)) from None

    @routes.post("/vectors/activations")
    def activations(body: Activations) -> dict[str, Any]:
        """How far each token of the texts lies along the vectors."""
        wanted = {name: steerings.vector(name) for name in body.vectors}
        with reading:
            found = compute_apart(lambda: project(model, body.texts, wanted, n_ctx=service.engine.n_ctx))
        data = []
        for one in found:
            tokens = [model.token_bytes(token, special=True).decode("utf-8", errors="replace") for token in one.tokens]
            data.append({"tokens": tokens, "vectors": {name: values.tolist() for name, values in one.along.items()}})
        return {"object": "list", "data": data}

    @routes.get("/steering")
    def steering() -> dict[str, Any]:
        """The steering of requests that name none."""
        return _default(service)

    @routes.put("/steering")
    def set_steering(body: DefaultSteering) -> dict[str, Any]:
        """Another one, from the next request on."""
        steerings.default = parse_requested(body.steering)
        return _default(service)

    return routes


def _default(service: Service) -> dict[str, Any]:
    state = applied(service.steerings.plan(service.steerings.default, service.steerings.mode))
    return {"steering": state["expression"], "relative_dose": state["relative_dose"], "notes": state["notes"]}


def _describe(service: Service, name: str, vector: ControlVector) -> dict[str, Any]:
    own = vector.provenance
    fingerprint = service.model.fingerprint
    plan = resolve(parse_steering("vector"), fingerprint, lambda _name: vector)
    calibration = own.calibration
    measured = None
    if calibration is not None:
        sides = {}
        for pole in POLES:
            unit = calibration.side_used(SIGN[pole], "response").dose
            assert unit is not None  # a calibrated vector has a dose toward one pole at least
            sides[pole] = _side(calibration.sides[pole, "response"], SIGN[pole] / unit)
        measured = {
            "budget": calibration.budget,
            "scale": dict(calibration.scale),
            "sides": sides,
            "doses": {mode: {pole: calibration.sides[pole, mode].dose for pole in POLES} for mode in calibration.modes},
        }
    document: dict[str, Any] = without_nan(
        {
            "id": name,
            "positive": own.positive,
            "negative": own.negative,
            "description": own.description,
            "layers": list(vector.layers),
            "calibrated": calibration is not None and calibration.content == fingerprint.content,
            "relative_dose": plan.relative_dose,
            "calibration": measured,
        }
    )
    return document


def _side(side: Side, strength: float) -> dict[str, Any]:
    """One side; `strength` is that of a relative dose of 1."""

    def point(one: Point) -> dict[str, Any]:
        return {
            "strength": strength * one.dose,
            "dose": one.dose,
            "effect": one.effect.mean,
            "effect_low": one.effect.low,
            "effect_high": one.effect.high,
            "cost": one.cost.mean,
            "cost_low": one.cost.low,
            "cost_high": one.cost.high,
        }

    return {
        "dose": side.dose,
        "effect": side.effect,
        "cost": side.cost,
        "shown": side.shown,
        "curve": [point(one) for one in side.curve],
    }
