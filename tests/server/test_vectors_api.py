"""What can be named, how far texts lie along it, and the default steering."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsteer.errors import LocalsteerError
from localsteer.llama.model import Model
from localsteer.steering.expression import parse_steering
from localsteer.vector.calibration import POLES
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import write_vector
from tests.calibration.made import DOSES, calibrated, calibrated_on
from tests.server.conftest import Serve, Served
from tests.server.test_openai_api import steering_of, text_of
from tests.tiny_models import UNSTEERABLE_ARCHITECTURE, write_tiny_model
from tests.vector.made_dosing import dosing


def test_vectors_are_listed(served: Served) -> None:
    document = served.client.get("/v1/vectors").json()
    assert document["object"] == "list"
    listed = {one["id"]: one for one in document["data"]}
    assert {"happy", "formal", "calm", "mood"} < set(listed)
    assert listed["mood"]["state"] == "ready"
    assert all(one["state"] in ("ready", "built at first use") for one in document["data"])


def test_one_vector_is_described(served: Served) -> None:
    document = served.client.get("/v1/vectors/mood").json()
    plan = served.service.steerings.plan(parse_steering("mood"))
    assert plan is not None
    assert document == {
        "id": "mood",
        "object": "vector",
        "state": "ready",
        "positive": "up",
        "negative": "down",
        "description": "made for tests",
        "layers": [1, 2],
        "calibrated": False,
        "dosed": False,
        "tried": None,
        "relative_dose": pytest.approx(plan.relative_dose),
        "dosing": None,
        "calibration": None,
    }


def test_a_dosed_one_has_its_doses(serve: Serve, tiny: Model, tmp_path: Path) -> None:
    provenance = Provenance(model=tiny.fingerprint, dosing=dosing(0.5, 0.25, content=tiny.fingerprint.content))
    write_vector(ControlVector({1: np.ones(tiny.n_embd, np.float32)}, provenance), tmp_path / "glad.gguf")
    document = serve(vectors=tmp_path).client.get("/v1/vectors/glad").json()
    assert (document["calibrated"], document["dosed"]) == (False, True)
    assert document["tried"] == {"positive": 2.0, "negative": 2.0}
    assert document["dosing"] == {
        "positive": {"response": 0.5, "prompt": 0.25},
        "negative": {"response": 0.25, "prompt": 0.125},
    }


def test_a_calibrated_one_has_its_curves(serve: Serve, tiny: Model, tmp_path: Path) -> None:
    write_vector(calibrated(tiny.fingerprint), tmp_path / "loud.gguf")
    write_vector(calibrated(tiny.fingerprint, without=(("negative", "response"),)), tmp_path / "half.gguf")
    served = serve(vectors=tmp_path)
    document = served.client.get("/v1/vectors/loud").json()
    assert document["calibrated"]
    assert document["relative_dose"] == pytest.approx(DOSES["positive", "response"], rel=1e-3)
    for pole, sign in (("positive", 1), ("negative", -1)):
        side = document["calibration"]["sides"][pole]
        assert side["dose"] == pytest.approx(DOSES[pole, "response"])  # type: ignore[index]
        assert [one["strength"] for one in side["curve"]] == pytest.approx([sign * 0.5, sign, sign * 2])
        assert all(one["cost_low"] <= one["cost"] <= one["cost_high"] for one in side["curve"])
        assert all(one["effect_low"] <= one["effect"] <= one["effect_high"] for one in side["curve"])
    assert document["calibration"]["scale"].keys() == {"positive", "negative"}
    doses = document["calibration"]["doses"]
    assert doses.keys() == {"response", "prompt", "anchored"}
    assert doses["anchored"] == pytest.approx({pole: DOSES[pole, "anchored"] for pole in POLES})
    side = served.client.get("/v1/vectors/half").json()["calibration"]["sides"]["negative"]
    assert side["dose"] is None
    half = served.client.get("/v1/vectors/half").json()["calibration"]["doses"]
    assert half["response"] == {"positive": pytest.approx(DOSES["positive", "response"]), "negative": None}
    # Strengths of this side go by the other one's dose.
    doses = [one["dose"] for one in side["curve"]]
    assert [one["strength"] for one in side["curve"]] == pytest.approx([-dose / DOSES["positive", "response"] for dose in doses])


@pytest.mark.parametrize(
    "name", ["hapy", "mood.gguf", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "a%5cb", "%00", "%ff", "mood%20", "@", "'"]
)
def test_a_vector_that_there_is_not_is_refused(served: Served, name: str) -> None:
    answer = served.client.get(f"/v1/vectors/{name}")
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["message"]


def test_a_vector_that_there_is_not_is_not_found(served: Served) -> None:
    answer = served.client.get("/v1/vectors/hapy")
    assert answer.status_code == 404
    assert 'There is no vector "hapy". Did you mean happy?' in answer.json()["error"]["message"]


# Activations


def read(served: Served, **body: Any) -> list[dict[str, Any]]:
    answer = served.client.post("/v1/vectors/activations", json={"texts": ["good day"], "vectors": ["happy"], **body})
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


def test_every_token_has_its_share(served: Served) -> None:
    (first, second) = read(served, texts=["in the house", "e"], vectors=["happy", "mood"])
    assert "".join(first["tokens"]) == "in the house"
    for name in ("happy", "mood"):
        assert len(first["vectors"][name]) == len(first["tokens"])
        assert abs(np.mean(first["vectors"][name][1:])) < 1e-6
        assert second["vectors"][name] == [0]
    assert first["vectors"]["happy"] != first["vectors"]["mood"]


def test_texts_of_any_kind_are_read(fresh: Served) -> None:
    texts = ["", " ", "\n", "\0", "é漢😀", "<|im_start|>user", "x" * 512]
    assert [len(one["tokens"]) for one in read(fresh, texts=texts)] == [len(fresh.model.tokenize(text)) for text in texts]
    # No template stands around it, and the default steering does not reach it.
    before = read(fresh)
    fresh.client.put("/v1/steering", json={"steering": "2 happy"})
    assert read(fresh) == before


@pytest.mark.parametrize(
    "body",
    [
        {"texts": []},
        {"texts": "text"},
        {"texts": ["x"] * 33},
        {"texts": ["x" * 513]},
        {"texts": ["x" * 100_001]},
        {"texts": [7]},
        {"vectors": []},
        {"vectors": ["happy"] * 9},
        {"vectors": ["hapy"]},
        {"vectors": ["./happy.gguf"]},
        {"vectors": ["0.5 happy"]},
        {"vectors": ["x" * 201]},
    ],
)
def test_what_cannot_be_read_is_refused(served: Served, body: dict[str, Any]) -> None:
    assert served.refused({"texts": ["x"], "vectors": ["happy"], **body}, "/v1/vectors/activations")[0] == 400


def test_a_model_that_cannot_be_read_says_so(serve: Serve, tiny: Model, tmp_path: Path) -> None:
    with Model(write_tiny_model(tmp_path / "m.gguf", UNSTEERABLE_ARCHITECTURE), threads=1) as model:
        served = serve(model=model, vectors=None)
        served.chat()
        answer = served.client.post("/v1/vectors/activations", json={"texts": ["x"], "vectors": ["happy"]})
        assert answer.status_code == 400
        assert "residual stream" in answer.json()["error"]["message"]
        served.engine.stop()


# The default


def test_the_default_is_set_and_ended(fresh: Served) -> None:
    plain = text_of(fresh.chat())
    assert fresh.client.get("/v1/steering").json() == {"steering": "", "relative_dose": 0.0, "notes": []}
    answer = fresh.client.put("/v1/steering", json={"steering": " 2*happy "})
    assert answer.json()["steering"] == "2 happy"
    assert answer.json() == fresh.client.get("/v1/steering").json()
    steered = fresh.chat()
    assert steering_of(steered) == "2 happy"
    assert text_of(steered) != plain
    assert fresh.complete()["steering"]["expression"] == fresh.ollama()["steering"]["expression"] == "2 happy"
    assert text_of(fresh.chat(steering="")) == plain
    assert fresh.client.put("/v1/steering", json={"steering": ""}).json()["steering"] == ""
    assert text_of(fresh.chat()) == plain


@pytest.mark.parametrize("value", ["0.5 hapy", "./x.gguf", "9 happy", "0.5 +", "x" * 1001, None, 7])
def test_a_default_that_cannot_be_used_changes_nothing(serve: Serve, value: object) -> None:
    served = serve(default="0.5 happy")
    assert served.client.put("/v1/steering", json={"steering": value}).status_code == 400
    assert served.client.put("/v1/steering", json={}).status_code == 400
    assert served.client.get("/v1/steering").json()["steering"] == "0.5 happy"


def test_the_default_has_the_dose_of_what_is_steered_by_default(serve: Serve, tiny: Model, tmp_path: Path) -> None:
    vector = calibrated_on(tiny)
    found = vector.provenance.calibration
    assert found is not None
    response = found.sides["positive", "response"]
    anchored = replace(response, dose=0.9, norms=tuple(3 * norm for norm in response.norms))
    sides = {**found.sides, ("positive", "anchored"): anchored, ("negative", "anchored"): found.sides["negative", "response"]}
    provenance = replace(vector.provenance, calibration=replace(found, sides=sides))
    write_vector(replace(vector, provenance=provenance), tmp_path / "loud.gguf")
    doses = []
    for by_default in (False, True):
        served = serve(vectors=tmp_path, default="loud", anchored=by_default)
        dose = served.client.get("/v1/steering").json()["relative_dose"]
        assert served.complete()["steering"]["relative_dose"] == dose
        doses.append(dose)
    assert doses == [pytest.approx(DOSES["positive", "response"], rel=1e-3), pytest.approx(0.9, rel=1e-3)]
    # And so has its limit.
    between = (doses[0] + doses[1]) / 2
    assert serve(vectors=tmp_path, default="loud", max_dose=between)
    with pytest.raises(LocalsteerError, match="--max-dose"):
        serve(vectors=tmp_path, default="loud", max_dose=between, anchored=True)


def test_max_dose_holds_for_the_default(serve: Serve) -> None:
    served = serve(max_dose=0.3)
    assert served.client.put("/v1/steering", json={"steering": "2 happy"}).status_code == 400
    assert served.client.put("/v1/steering", json={"steering": "0.2 happy"}).status_code == 200
