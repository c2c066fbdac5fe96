"""LoRA adapters, as llama.cpp loads them."""

from __future__ import annotations

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

    Attributes:
        handle: the `llama_adapter_lora *`; None once it is closed.

    Raises:
        ModelError: llama.cpp does not load it for this model.
    """

    def __init__(self, model: Model, path: Path) -> None:
        self._llama = llama = library.load()
        library.forget_errors()
        with interrupts_after():
            self.handle: Any = llama.llama_adapter_lora_init(model.handle, str(path).encode())
        if not self.handle:
            raise ModelError(f"llama.cpp does not load the adapter {path}: {library.last_error('it gives no reason')}.")

    def close(self) -> None:
        """Free it."""
        if self.handle:
            self._llama.llama_adapter_lora_free(self.handle)
            self.handle = None
