"""What can be named, how far texts lie along it, and the server's default steering."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest

from localsteer.errors import LocalsteerError
from localsteer.reading.projection import project
from localsteer.server.answers import Service
from localsteer.server.asking import applied
from localsteer.server.beside import while_connected
from localsteer.server.errors import without_paths
from localsteer.server.steerings import UnknownVectorError, parse_requested
from localsteer.steering.expression import Steering, Term
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
    steerings = service.steerings

    def listed(document: dict[str, object]) -> dict[str, object]:
        return {**document, "state": "being built"} if document["id"] in service.building else document

    @routes.get("/vectors")
    def vectors() -> dict[str, Any]:
        """The vectors that can be named."""
        return {"object": "list", "data": [listed(document) for document in steerings.list_vectors()]}

    @routes.post("/vectors/activations")
    async def activations(body: Activations, http: HTTPRequest) -> dict[str, Any]:
        """How far each token of the texts lies along the vectors."""
        await service.build(body.vectors, http)
        reading = service.reading.wait_for(object(), functools.partial(_read, service, body))
        return {"object": "list", "data": await while_connected(http, reading)}

    @routes.get("/vectors/{name}")
    def vector(name: str) -> dict[str, Any]:
        """One of them, with its dose-response curves where it is built; nothing is built by this."""
        with _unknown_is_not_found():
            document, found = listed(steerings.describe(name)), steerings.find(name)
        if found is None:
            return {**document, "hint": f"POST /v1/vectors/{name} builds it."}
        return {**document, **_details(service, name, found)}

    @routes.post("/vectors/{name}")
    async def built_vector(name: str, http: HTTPRequest) -> dict[str, Any]:
        """The same, once it is built."""
        with _unknown_is_not_found():
            await service.build([name], http)
        return await run_in_threadpool(vector, name)

    @routes.get("/steering")
    def steering() -> dict[str, Any]:
        """The steering of requests that name none."""
        return _default(service)

    @routes.put("/steering")
    async def set_steering(body: DefaultSteering, http: HTTPRequest) -> dict[str, Any]:
        """Another one, from the next request on."""
        service.steerings.refuse_if_fixed()
        asked = parse_requested(body.steering)
        await service.build([term.vector for term in asked.terms], http)

        def set_default() -> dict[str, Any]:
            steerings.default = asked
            return _default(service)

        return await run_in_threadpool(set_default)

    return routes


@contextlib.contextmanager
def _unknown_is_not_found() -> Iterator[None]:
    """Where the name is the path, it is not the request that is wrong."""
    try:
        yield
    except UnknownVectorError as error:
        raise HTTPException(404, str(error)) from None


def _read(service: Service, body: Activations) -> list[dict[str, Any]]:
    model = service.model
    wanted = {name: service.steerings.vector(name) for name in body.vectors}
    data = []
    for one in project(model, body.texts, wanted, n_ctx=service.engine.n_ctx):
        tokens = [model.token_bytes(token, special=True).decode("utf-8", errors="replace") for token in one.tokens]
        data.append({"tokens": tokens, "vectors": {name: values.tolist() for name, values in one.along.items()}})
    return data


def _default(service: Service) -> dict[str, Any]:
    default = service.steerings.default
    try:
        state = applied(service.steerings.plan(default, service.steerings.mode))
    except LocalsteerError as error:  # a file has gone, or changed, since it was set
        return {"steering": str(default), "relative_dose": None, "notes": [without_paths(str(error))]}
    return {"steering": state["expression"], "relative_dose": state["relative_dose"], "notes": state["notes"]}


def _details(service: Service, name: str, vector: ControlVector) -> dict[str, Any]:
    calibration = vector.provenance.calibration
    plan = resolve(Steering((Term(name),)), service.model.fingerprint, lambda _name: vector)
    measured = None
    if calibration is not None:
        sides = {}
        for pole in POLES:
            unit = vector.dose(SIGN[pole])
            assert unit is not None  # a calibrated vector has one toward each pole, if only by its dosing
            sides[pole] = _side(calibration.sides[pole, "response"], SIGN[pole] / unit)
        measured = {
            "budget": calibration.budget,
            "scale": dict(calibration.scale),
            "sides": sides,
            "doses": {mode: {pole: calibration.sides[pole, mode].dose for pole in POLES} for mode in calibration.modes},
        }
    dosing = vector.provenance.dosing
    dosed = {pole: dict(dosing.sides[pole].dose) for pole in POLES} if dosing is not None else None
    document = {
        "layers": list(vector.layers),
        "relative_dose": plan.relative_dose,
        "dosing": dosed,
        "calibration": measured,
    }
    without: dict[str, Any] = without_nan(document)
    return without


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
