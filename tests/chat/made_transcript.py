"""A conversation with a value for everything."""

from __future__ import annotations

from localsteer.chat.transcript import SavedMessage, Transcript
from localsteer.llama.fingerprint import Fingerprint
from localsteer.llama.sampling import Sampling

TRANSCRIPT = Transcript(
    (
        SavedMessage("user", "What is the capital of France?"),
        SavedMessage("assistant", "Paris, ça va!", reasoning="An easy one.", steering="-0.5 happy"),
        SavedMessage("user", "Count in Python.\n\tPlease."),
        SavedMessage("assistant", "```python\nfor n in range(3):\n    print(n)", cut=True, steering="0.5 happy"),
    ),
    system="Be brief.",
    steering="0.5 happy",
    mode="anchored",
    policy="calm.yaml",
    think=True,
    max_tokens=100,
    sampling=Sampling(temperature=0.2, seed=7, logit_bias=((3, -1.5),)),
    model="Tiny 1B",
    model_path="/models/tiny.gguf",
    fingerprint=Fingerprint("Tiny 1B", "llama", 4, 64, "abc", "def"),
    created="2026-01-31T12:00:00+00:00",
    updated="2026-01-31T12:30:00+00:00",
)


def asked(*texts: str) -> Transcript:
    """A conversation of these, question and answer in turn."""
    return Transcript(tuple(SavedMessage("assistant" if place % 2 else "user", text) for place, text in enumerate(texts)))
