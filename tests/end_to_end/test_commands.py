"""The main job as a newcomer does it, with the real demo model, each command in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import read_vector
from tests.end_to_end.conftest import HAPPY, ROOT, cli, document


def test_the_shipped_vector_is_the_one_that_its_concept_gives(happy: ControlVector) -> None:
    (file,) = (ROOT / "vectors" / "happy").glob("*.gguf")
    shipped = read_vector(file)
    assert shipped.provenance.dataset_sha256 == happy.provenance.dataset_sha256
    assert shipped.provenance.model == happy.provenance.model
    # Which layers it steers, and how strongly, calibration has chosen; along what, extraction.
    estimate = shipped.provenance.estimate
    assert estimate is not None
    for layer, direction in happy.directions.items():
        cosine = direction @ estimate[layer] / (direction @ direction) ** 0.5
        # Another CPU rounds otherwise; at the least reliable of these layers two halves of the pairs still agree to 0.75.
        assert cosine / (estimate[layer] @ estimate[layer]) ** 0.5 > 0.95
    for layer in shipped.layers:
        direction = shipped.directions[layer]
        assert direction @ estimate[layer] > 0.999 * np.linalg.norm(direction) * np.linalg.norm(estimate[layer])


def test_one_question_three_ways(happy_file: Path) -> None:
    answer = document("generate", "How was your day?", "-m", "demo", "-s", happy_file, "--compare", "-n", "40", "--seed", "4")
    texts = [answer["text"], answer["unsteered"]["text"], answer["opposite"]["text"]]
    assert len(set(texts)) == 3
    assert all(text.strip() for text in texts)
    assert answer["steering"] == str(happy_file)
    assert answer["unsteered"]["steering"] == ""
    dosing = read_vector(happy_file).provenance.dosing
    assert dosing is not None
    assert answer["relative_dose"] == pytest.approx(dosing.sides["positive"].dose["response"], rel=0.001)
    alone = document("generate", "How was your day?", "-m", "demo", "-n", "40", "--seed", "4")
    assert alone["tokens"] == answer["unsteered"]["tokens"]


def test_a_library_name_steers() -> None:
    by_name = document("generate", "How was your day?", "-s", "-happy", "-n", "30", "--seed", "4")
    plain = document("generate", "How was your day?", "-n", "30", "--seed", "4")
    assert by_name["tokens"] != plain["tokens"]


def test_a_chat_from_a_pipe() -> None:
    result = cli("chat", "-s", "happy", "-n", "24", "--seed", "1", stdin="Hello!\n/steer -1 happy\nHow are you?\n/quit\n")
    assert result.returncode == 0, result.stderr
    before, _, after = result.stdout.partition("Steering: -happy")
    assert before.strip()
    assert after.strip()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to one process")
@pytest.mark.parametrize("position", ["last", pytest.param("response", marks=pytest.mark.models)])
def test_ctrl_c_during_extraction_leaves_nothing(tmp_path: Path, position: str) -> None:
    out = tmp_path / "happy.gguf"
    command = [sys.executable, str(ROOT / "cli.py"), "-v", "extract", str(HAPPY), "-m", "demo", "-o", str(out)]
    process = subprocess.Popen(
        [*command, "--position", position],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    # llama.cpp's log tells when the work has begun, which then takes seconds.
    for line in process.stderr:
        if "n_seq_max" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
