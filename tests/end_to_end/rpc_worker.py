"""What a model says and does, for a process of its own: a build with RPC must be chosen before llama.cpp is loaded."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localsteer.building.extraction import ExtractionSettings, extract
from localsteer.concepts.concept_file import load_concept
from localsteer.concepts.names import shipped_folder
from localsteer.llama import rpc
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap

PROMPT = "<|im_start|>user\nHow was your day?<|im_end|>\n<|im_start|>assistant\nMy day was"


class Collected(logging.Handler):
    """What llama.cpp says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(model_path: str, output: str, servers: str = "") -> None:
    log = Collected()
    logging.getLogger("localsteer.llama").addHandler(log)
    logging.getLogger("localsteer.llama").setLevel(logging.INFO)
    rpc.connect([server for server in servers.split(",") if server])
    with Model(model_path, threads=1) as model:
        vector = extract(model, load_concept(shipped_folder() / "happy" / "concept.yaml"), ExtractionSettings(dose=False))
        added = vector.rows(model.n_layer)
        tokens = model.tokenize(PROMPT)
        remote = [line for line in log.lines if "RPC" in line and "model buffer size" in line]
        estimate = vector.provenance.estimate
        assert estimate is not None
        found: dict[str, NDArray[np.float32]] = {"estimate": estimate, "remote": np.array(len(remote), np.float32)}
        with Context(model, n_ctx=256) as context:
            for name, rows in (("unsteered", None), ("native", added)):
                context.clear()
                context.set_control_vector(rows)
                context.decode(Batch.of_one_sequence(tokens, start=0))
                found[name] = context.logits(len(tokens) - 1).copy()
        tap = ResidualTap(model.n_layer, model.n_embd)
        with Context(model, n_ctx=256, tap=tap) as context:
            tap.watch([10, 20])
            tap.edit([Edit(added)] * len(tokens))
            context.decode(Batch.of_one_sequence(tokens, start=0))
            found["tapped"] = context.logits(len(tokens) - 1).copy()
            found |= {f"rows {layer}": tap.rows(layer) for layer in (10, 20)}
    np.savez(Path(output), allow_pickle=False, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
