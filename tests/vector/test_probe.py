from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localsteer.errors import VectorError
from localsteer.vector.calibration import Interval
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import read_vector, write_vector
from localsteer.vector.probe import Metrics, Probe, Watch

UNDEFINED = Interval(math.nan, math.nan, math.nan)
UNSEEN = Metrics(
    true_positives=18,
    false_positives=1,
    true_negatives=21,
    false_negatives=2,
    auroc=Interval(0.975, 0.9, 0.995),
    precision=Interval(18 / 19, 0.75, 0.99),
    recall=Interval(0.9, 0.7, 0.97),
    f1=Interval(12 / 13, 0.8, 0.98),
    false_positive_rate=Interval(1 / 22, 0.01, 0.22),
)
PROBE = Probe(layer=3, bias=-0.125, threshold=0.1, watch="output", window=16, fitted=(20, 22), target=0.05, unseen=UNSEEN)


def damaged(key: str, value: object) -> str:
    document = json.loads(PROBE.to_json())
    document[key] = value
    return json.dumps(document)


DAMAGE: list[tuple[str, list[object]]] = [
    ("layer", [None, 1.5, "3", [3]]),
    ("bias", [None, "x", [], {}, math.nan, math.inf, 10**400]),
    ("threshold", [None, "x", -math.inf]),
    ("target", ["x", [], math.nan]),
    ("watch", [None, "both", 7, ["prompt"]]),
    ("window", [None, 0, -1, 2.5, "16"]),
    ("fitted", [None, 20, [20], [20, 22, 24], ["a", "b"], "ab", [1.5, 2]]),
    ("unseen", [None, [], {}, "x", asdict(UNSEEN) | {"accuracy": 0.9}]),
    ("unseen", [asdict(UNSEEN) | {"true_positives": "18"}, asdict(UNSEEN) | {"false_negatives": None}]),
    ("unseen", [asdict(UNSEEN) | {"auroc": None}, asdict(UNSEEN) | {"f1": 0.9}, asdict(UNSEEN) | {"f1": [0, 1, 2]}]),
    ("unseen", [asdict(UNSEEN) | {"auroc": {"mean": 0.9}}, asdict(UNSEEN) | {"f1": {"mean": "x", "low": 0, "high": 1}}]),
    ("colour", ["red"]),
]


def vector(probe: Probe | None = PROBE, layers: tuple[int, ...] = (3,)) -> ControlVector:
    random = np.random.default_rng(0)
    directions = {layer: random.standard_normal(8).astype(np.float32) for layer in layers}
    return ControlVector(directions, Provenance(concept="hostile", probe=probe))


# What it knows


def test_the_sizes_of_the_report_are_those_of_its_counts() -> None:
    assert (UNSEEN.positives, UNSEEN.negatives) == (20, 22)


# There and back


@pytest.mark.parametrize("watch", ["prompt", "output"])
@pytest.mark.parametrize("target", [None, 0.05])
def test_a_probe_comes_back_from_its_text(watch: Watch, target: float | None) -> None:
    probe = replace(PROBE, watch=watch, target=target)
    found = Probe.from_json(probe.to_json())
    assert found == probe
    assert isinstance(found.fitted, tuple)
    assert isinstance(found.unseen.auroc, Interval)


def test_numbers_come_back_to_the_last_bit() -> None:
    probe = replace(PROBE, bias=0.1 + 0.2, threshold=math.nextafter(1, 2), target=1e-300)
    assert Probe.from_json(probe.to_json()) == probe


def test_a_rate_that_is_not_defined_comes_back_so() -> None:
    probe = replace(PROBE, unseen=replace(UNSEEN, precision=UNDEFINED, auroc=UNDEFINED))
    text = probe.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    found = Probe.from_json(text)
    for rate in (found.unseen.precision, found.unseen.auroc):
        assert all(math.isnan(value) for value in (rate.mean, rate.low, rate.high))
    assert found.unseen.recall == UNSEEN.recall
    assert found.to_json() == text


# Damage


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "7",
        '"probe"',
        "[]",
        "{}",
        "[" * 100_000,
        *(damaged(key, value) for key, values in DAMAGE for value in values),
    ],
)
def test_a_damaged_probe_is_refused(text: str) -> None:
    with pytest.raises(VectorError, match=r"\Athe probe is damaged: .*\. Fit it again with `localsteer policy fit`\.\Z"):
        Probe.from_json(text)


@pytest.mark.parametrize("key", ["layer", "bias", "threshold", "watch", "window", "fitted", "target", "unseen"])
def test_a_probe_without_one_of_its_values_is_refused(key: str) -> None:
    document = json.loads(PROBE.to_json())
    del document[key]
    with pytest.raises(VectorError, match=f"the probe is damaged: .*{key}"):
        Probe.from_json(json.dumps(document))


@pytest.mark.parametrize("key", ["true_negatives", "auroc", "precision", "recall", "f1", "false_positive_rate"])
def test_a_probe_without_one_of_its_measurements_is_refused(key: str) -> None:
    document = json.loads(PROBE.to_json())
    del document["unseen"][key]
    with pytest.raises(VectorError, match="the probe is damaged"):
        Probe.from_json(json.dumps(document))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300)
@given(st.sampled_from(sorted(asdict(PROBE))), JSON)
def test_whatever_a_value_was_damaged_to_is_a_vector_error_or_can_be_used(key: str, value: Any) -> None:
    try:
        found = Probe.from_json(damaged(key, value))
    except VectorError:
        return
    assert math.isfinite(found.bias)
    assert math.isfinite(found.threshold)
    assert [1.0, 2.0][-found.window :] in ([2.0], [1.0, 2.0])
    assert f"{found.fitted[0]:d} {found.fitted[1]:d} {found.target or 0:g}"
    assert found.watch in ("prompt", "output")


# In a vector file


@pytest.mark.parametrize("layers", [(3,), (2, 3, 5)])
def test_a_probe_comes_back_with_its_vector(tmp_path: Path, layers: tuple[int, ...]) -> None:
    made = vector(layers=layers)
    write_vector(made, tmp_path / "v.gguf")
    found = read_vector(tmp_path / "v.gguf")
    assert found.provenance.probe == PROBE
    assert found.layers == layers
    assert found.directions[3].tobytes() == made.directions[3].tobytes()


def test_a_vector_without_a_probe_comes_back_without(tmp_path: Path) -> None:
    write_vector(vector(None), tmp_path / "v.gguf")
    assert read_vector(tmp_path / "v.gguf").provenance.probe is None


def test_llama_cpp_is_not_bothered_by_a_probe(tmp_path: Path) -> None:
    write_vector(vector(), tmp_path / "v.gguf")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert [tensor.name for tensor in reader.tensors] == ["direction.3"]
    field = reader.fields["localsteer.probe"]
    assert field.types == [gguf.GGUFValueType.STRING]
    assert json.loads(field.contents())["layer"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "the probe is damaged: it lacks the key layer"),
        (damaged("watch", "both"), "the probe is damaged: "),
        (damaged("layer", 4), "The probe reads layer 4, for which there is no direction."),
    ],
)
def test_a_file_whose_probe_is_damaged_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "v.gguf"
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("localsteer.probe", text)
    writer.add_tensor("direction.3", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(VectorError) as caught:
        read_vector(path)
    assert str(caught.value).startswith(f"{path}: {message}")


# In a vector


def test_a_probe_needs_a_direction_at_its_layer() -> None:
    with pytest.raises(VectorError, match=r"The probe reads layer 3, for which there is no direction\."):
        vector(layers=(2, 4))
    with pytest.raises(VectorError, match="The probe reads layer 3"):
        ControlVector({3: np.zeros(8, np.float32)}, Provenance(probe=PROBE))


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made * 2.0,
        lambda made: 0.5 * made,
        lambda made: made / 2.0,
        lambda made: -made,
        lambda made: made + made,
        lambda made: made - 0.5 * made,
        lambda made: made * 0.0,
        lambda made: made.at(1.0),
        lambda made: made.only([3]),
        lambda made: made.only([2]),
    ],
)
def test_arithmetic_ends_a_probe(change: Callable[[ControlVector], ControlVector]) -> None:
    made = vector(layers=(2, 3))
    assert change(made).provenance.probe is None
    assert made.provenance.probe == PROBE


def test_a_new_name_keeps_a_probe() -> None:
    renamed = vector().named("rude")
    assert renamed.provenance.concept == "rude"
    assert renamed.provenance.probe == PROBE
