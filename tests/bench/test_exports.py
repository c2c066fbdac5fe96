from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import exports
from localsteer.export.gguf_rewrite import open_model_file
from localsteer.llama.model import Model
from tests.conftest import TinyModel, random_rows


def measure(records: exports.Records, expression: str, model: Model, seed: int = 0) -> bool:
    added = random_rows(model, (1, 2), seed=seed, norm=3.0)
    with open_model_file(model.path) as file:
        return exports._measure(records, "demo", expression, model, file, added)


def test_only_what_takes_no_biases_is_merged_as_well(tiny_model: TinyModel) -> None:
    for architecture, ways in (("llama", {"adapter"}), ("qwen2", {"adapter", "merged"})):
        records: exports.Records = {}
        assert measure(records, "happy", tiny_model(architecture))
        (found,) = records["demo"]["measured"].values()
        assert found.keys() - {"key", "noise"} == ways
        for way in ways:
            assert 0 < found[way]["mean"] < 0.06 * found[way]["unsteered"]


def test_what_is_measured_already_is_not_measured_again(tiny: Model) -> None:
    records: exports.Records = {}
    assert measure(records, "happy", tiny)
    assert not measure(records, "happy", tiny)
    assert measure(records, "-happy", tiny)
    assert measure(records, "happy", tiny, seed=1)  # another vector
    fitted = records["demo"]["measured"]["happy"]
    del fitted["noise"]
    before = dict(fitted)
    assert measure(records, "happy", tiny, seed=1)  # of before the noise was measured
    assert {**fitted, "noise": None} == {**before, "noise": None}
    assert fitted["noise"]["mean"] < 0.1 * fitted["noise"]["unsteered"]


def test_the_tables_are_written_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "export.md"
    page.write_text("\n".join(["before", *exports.MARKERS, "behind", ""]))
    monkeypatch.setattr(exports, "PAGE", page)
    monkeypatch.setattr(exports, "RECORDS", tmp_path / "exports.json")

    def side(mean: float, unsteered: float) -> dict[str, object]:
        return {"key": "k", "adapter": {"mean": mean, "largest": 1.0, "unsteered": unsteered}}

    records = {"demo": {"model": "tiny", "measured": {"happy": side(0.03, 1.0), "-happy": side(0.005, 0.05)}}}
    for _ in range(2):
        exports._keep(records)
    told = page.read_text()
    assert told.startswith("before\n")
    assert told.endswith("behind\n")
    assert told.count("**tiny**") == 1
    assert "| happy | 0.0300 of 1.00: 3.0% | 0.0050 of 0.05: 10.0% |" in told
    assert "- adapter: at most 5% for 1 of 2 (largest 10.0%), at most 0.02 nats for 1 (largest 0.03)" in told.splitlines()
    assert json.loads((tmp_path / "exports.json").read_text()) == records


def test_the_page_has_a_place_for_them() -> None:
    text = exports.PAGE.read_text(encoding="utf-8")
    assert text.index(exports.MARKERS[0]) < text.index(exports.MARKERS[1])
