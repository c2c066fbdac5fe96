from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from localsteer.errors import ExportError
from localsteer.export.adapter_fit import Row
from localsteer.export.gguf_rewrite import rewrite
from localsteer.export.merge import merge
from tests.export.conftest import Opened
from tests.made_files import gguf_bytes, key, tensor

N_IN, N_OUT = 64, 48
RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((N_OUT, N_IN)).astype(np.float32)
ROW = Row("w", RANDOM.standard_normal(N_IN).astype(np.float32), RANDOM.standard_normal(N_OUT).astype(np.float32), 0.0)


def model(path: Path, kind: gguf.GGMLQuantizationType, data: bytes, n_in: int = N_IN) -> Path:
    """A file with a matrix, and a bias behind it that must move with what is before it."""
    size = -(-len(data) // 32) * 32
    bias = np.arange(N_OUT, dtype="<f4").tobytes()
    entries = [tensor("w", [n_in, N_OUT], int(kind), 0), tensor("bias", [N_OUT], 0, size)]
    path.write_bytes(gguf_bytes([key("general.architecture", "qwen3")], entries, data.ljust(size, b"\0") + bias))
    return path


@pytest.mark.parametrize(
    ("kind", "becomes", "error"),
    [("F32", "F32", 1e-6), ("F16", "F16", 1e-3), ("BF16", "BF16", 1e-2), ("Q4_0", "Q8_0", 1e-2), ("Q8_0", "Q8_0", 1e-2)],
)
def test_a_product_is_added_in_a_type_that_holds_it(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, becomes: str, error: float
) -> None:
    monkeypatch.setattr("localsteer.export.merge._CHUNK", 5 * 4 * N_IN)  # ten pieces, the last one shorter
    source = gguf.GGMLQuantizationType[kind]
    data = gguf.quantize(W, source)
    file = opened(model(tmp_path / "m.gguf", source, data.tobytes()))
    rewrite(file, tmp_path / "n.gguf", tensors={}, replaced=merge(file, [ROW]), keys={})
    found = {one.name: one for one in gguf.GGUFReader(tmp_path / "n.gguf").tensors}
    assert found["w"].tensor_type.name == becomes
    wanted = gguf.dequantize(data, source) + np.outer(ROW.b, ROW.a)
    got = gguf.dequantize(np.array(found["w"].data), found["w"].tensor_type)
    np.testing.assert_allclose(got, wanted, atol=error * float(np.abs(wanted).max()))
    assert found["bias"].data.tolist() == list(range(N_OUT))


def test_a_type_that_cannot_be_read_is_named(opened: Opened, tmp_path: Path) -> None:
    row = Row("w", np.ones(48, np.float32), ROW.b, 0.0)
    file = opened(model(tmp_path / "m.gguf", gguf.GGMLQuantizationType.F64, bytes(8 * 48 * N_OUT), 48))
    with pytest.raises(ExportError, match=r"w in .*m\.gguf is F64"):
        merge(file, [row])


def test_a_matrix_of_another_shape_is_refused(opened: Opened, tmp_path: Path) -> None:
    file = opened(model(tmp_path / "m.gguf", gguf.GGMLQuantizationType.F32, W.tobytes()))
    with pytest.raises(ExportError, match=f"no matrix of {N_IN + 1} x {N_OUT}"):
        merge(file, [Row("w", np.ones(N_IN + 1, np.float32), ROW.b, 0.0)])
