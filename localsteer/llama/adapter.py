"""LoRA adapters, as llama.cpp loads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from localsteer.errors import ModelError
from localsteer.llama import library
from localsteer.llama.closing import Closing
from localsteer.llama.model import Model
from localsteer.llama.threads import interrupts_after


class Adapter(Closing):
    """An adapter file, loaded for one model. A context manager; close it after the contexts that use it, and before the model.

    Args:
        model: the model.
        path: the file.

    Raises:
        ModelError: llama.cpp does not load it for this model.
    """

    def __init__(self, model: Model, path: Path) -> None:
        self._llama = llama = library.load()
        self._model = model
        library.forget_errors()
        with interrupts_after():
            self._adapter: Any = llama.llama_adapter_lora_init(model.handle, os.fsencode(path))
        if not self._adapter:
            raise ModelError(f"llama.cpp does not load the adapter {path}: {library.last_error('it gives no reason')}.")

    def close(self) -> None:
        """Free it. Contexts that use it must be closed before; a model that is closed has freed its adapters already."""
        if self._adapter and not self._model.is_closed:
            self._llama.llama_adapter_lora_free(self._adapter)
        self._adapter = None

    @property
    def handle(self) -> Any:
        """The `llama_adapter_lora *`, for Context."""
        if not self._adapter or self._model.is_closed:
            raise ModelError("The adapter is closed.")
        return self._adapter
