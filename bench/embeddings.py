"""How well embeddings find a text again in other words, block by block: `python -m bench.embeddings`.

The default of `localsteer.reading.embedding` was chosen by it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from bench.models import base_model, demo_model, real_model
from localsteer.llama.model import Model
from localsteer.reading.embedding import embedding_layer
from localsteer.reading.rows import read_means
from localsteer.reading.span import Span


def main() -> None:
    """Print, for each model and block, the per cent of texts whose nearest neighbour is the same in other words."""
    pairs = yaml.safe_load(Path(__file__).with_suffix("").with_name("paraphrases.yaml").read_text(encoding="utf-8"))["pairs"]
    texts = [first for first, _ in pairs] + [second for _, second in pairs]
    for path in (demo_model(), base_model(), real_model()):
        if path is None:
            continue
        with Model(path) as model:
            tokens = [tuple(model.tokenize(text)) for text in texts]
            by_mean, by_last = (
                read_means(model, [Span(one, start=start) for one in tokens], range(model.n_layer)).values for start in (1, -1)
            )
            print(f"{model.name}: block, found by the mean over its tokens, found by its last token")
            for layer in range(model.n_layer):
                default = " (the default)" if layer == embedding_layer(model) else ""
                print(f"{layer:3} {_found(by_mean[:, layer]):6.0f} {_found(by_last[:, layer]):6.0f}{default}")


def _found(rows: NDArray[np.float32]) -> float:
    """Per cent of the texts (2 n, n_embd), the second half of which are the first in other words."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    likeness = unit[: len(unit) // 2] @ unit[len(unit) // 2 :].T
    own = np.arange(len(likeness))
    return 50 * float(np.mean(likeness.argmax(axis=1) == own) + np.mean(likeness.argmax(axis=0) == own))


if __name__ == "__main__":
    main()
