"""repeng's vector from the same prompt files, by repeng itself: run with the Python of a venv that has it (see `bench.peers`).

    python repeng_worker.py MODEL.gguf POSITIVE.txt NEGATIVE.txt OUT.gguf

The weights are those of the quantised file, dequantised by transformers, in float32. The settings are repeng's defaults
(method pca_diff, all layers).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from repeng import ControlModel, ControlVector, DatasetEntry
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(model_file: Path, positive: Path, negative: Path, output: Path) -> None:
    where = {"pretrained_model_name_or_path": str(model_file.parent), "gguf_file": model_file.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    wrapped = ControlModel(model, list(range(1, model.config.num_hidden_layers)))
    sides = [
        [line.replace("\\n", "\n") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        for path in (positive, negative)
    ]
    dataset = [DatasetEntry(positive=one, negative=other) for one, other in zip(*sides, strict=True)]
    vector = ControlVector.train(wrapped, tokenizer, dataset)
    vector.export_gguf(str(output))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
