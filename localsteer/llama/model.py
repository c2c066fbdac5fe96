"""A model file: weights, vocabulary, chat template and identity."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError, ModelError, shown
from localsteer.llama import library
from localsteer.llama.chat_template import ChatTemplate
from localsteer.llama.closing import Closing
from localsteer.llama.fingerprint import Fingerprint, hash_texts
from localsteer.llama.model_file import check_model_file, content_hash, model_parts, why_not
from localsteer.llama.model_trial import try_model
from localsteer.llama.template_errors import TemplateError
from localsteer.llama.template_tokens import TemplateTokens
from localsteer.llama.threads import interrupts_after

logger = logging.getLogger("localsteer.llama")

_ALL_LAYERS = -1


class Model(Closing):
    """An opened GGUF model. A context manager; `close` frees the weights.

    Args:
        path: the GGUF file (of a split model: the first part).
        gpu_layers: layers to keep on the GPU; None means all, where the build of llama.cpp has a GPU or Metal.
        threads: CPU threads; None means one for each physical core.
        parse_special: read control tokens in what people write as such, as llama-server does, instead of as plain text.
        ollama_template: the template that Ollama keeps beside the file, to use where the file has none.
        trusted: the file comes from somebody whom you trust. Without it, one that was never opened so is first checked, and tried
            in a process of its own: llama.cpp ends the whole process for some files (see `model_trial`).

    Attributes:
        gpu_layers: as it was asked for.
        threads: CPU threads.
        trusted: as it was said.
        n_layer: number of transformer blocks.
        n_embd: width of the residual stream.
        vocabulary: the `llama_vocab *`, for samplers.
        n_vocab: number of tokens in it.
        n_params: number of weights.
        size_bytes: bytes of all tensors.
        n_ctx_train: longest context that the model was trained for, in tokens.
        sequences_share_tokens: whether one token of a batch may belong to many sequences (not so in recurrent and hybrid
            models, whose state is not a list of tokens).

    Raises:
        ModelError: the file is missing, no GGUF, truncated, or of a kind that cannot generate text; or its trial fails.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        gpu_layers: int | None = None,
        threads: int | None = None,
        parse_special: bool = False,
        ollama_template: str | None = None,
        trusted: bool = True,
    ) -> None:
        self.path = Path(path)
        self.trusted = trusted
        self._parse_special = parse_special
        self._ollama_template = ollama_template
        check_model_file(self.path)
        self._llama = llama = library.load()
        self.gpu_layers = gpu_layers
        self.threads = threads if threads is not None else library.default_threads()
        if not trusted:
            try_model(self.path, gpu_layers=gpu_layers, threads=self.threads, ollama_template=ollama_template)
        params = llama.llama_model_default_params()
        params.n_gpu_layers = gpu_layers if gpu_layers is not None else _ALL_LAYERS
        library.forget_errors()
        ended = True
        while ended:  # once more where the handler of a signal raised nothing
            ended = False
            with interrupts_after() as wanted:

                def go_on(_part: float, _data: object, wanted: Callable[[], bool] = wanted) -> bool:
                    nonlocal ended
                    ended = wanted()
                    return not ended

                # A large model on a slow disk takes minutes, in which Ctrl-C is heard.
                params.progress_callback = llama.llama_progress_callback(go_on)
                self._loaded = _stamps(self.path)
                self._model = llama.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self._model:
            reason = library.last_error("llama.cpp gives no reason")
            raise ModelError(f"llama.cpp cannot load {self.path}: {reason}.", hint=why_not(self.path, reason))
        self.vocabulary: ctypes.c_void_p = llama.llama_model_get_vocab(self._model)
        self.n_layer = int(llama.llama_model_n_layer(self._model))
        self.n_embd = int(llama.llama_model_n_embd(self._model))
        self.n_vocab = int(llama.llama_vocab_n_tokens(self.vocabulary))
        self.n_params = int(llama.llama_model_n_params(self._model))
        self.size_bytes = int(llama.llama_model_size(self._model))
        self.n_ctx_train = int(llama.llama_model_n_ctx_train(self._model))
        self.sequences_share_tokens = not (
            llama.llama_model_is_recurrent(self._model) or llama.llama_model_is_hybrid(self._model)
        )
        if llama.llama_model_has_encoder(self._model) or not llama.llama_model_has_decoder(self._model):
            self.close()
            raise ModelError(
                f"{self.path} is not a text-generating decoder model.",
                hint="Use a chat or base language model.",
            )
        logger.info("opened %s: %d layers, n_embd %d", self.path, self.n_layer, self.n_embd)

    def close(self) -> None:
        """Free the weights. Contexts made from this model must be closed before."""
        if self._model:
            self._llama.llama_model_free(self._model)
            self._model = None

    @property
    def is_closed(self) -> bool:
        """Whether the weights are freed."""
        return not self._model

    @property
    def handle(self) -> ctypes.c_void_p:
        """The `llama_model *`, for Context."""
        if not self._model:
            raise ModelError(f"The model {self.path} is closed.")
        return self._model  # type: ignore[no-any-return]

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata as text, or None where the file does not have the key."""
        buffer = ctypes.create_string_buffer(512)
        size = self._llama.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        if size < 0:
            return None
        if size >= len(buffer):
            buffer = ctypes.create_string_buffer(size + 1)
            self._llama.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace")

    @functools.cached_property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return self.metadata("general.architecture") or "unknown"

    @functools.cached_property
    def name(self) -> str:
        """The model's own name, or its file's; without characters that would command a terminal."""
        return shown(self.metadata("general.name") or self.path.stem)

    @functools.cached_property
    def description(self) -> str:
        """Architecture, size and quantisation in llama.cpp's words, such as "llama ?B Q4_1"."""
        buffer = ctypes.create_string_buffer(256)
        self._llama.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace")

    @functools.cached_property
    def file_type(self) -> str:
        """How most of the weights are stored, such as "Q4_K_M"; "unknown" where the file does not say."""
        from gguf import LlamaFileType

        number = self.metadata("general.file_type") or ""
        known: dict[str, str] = {str(one.value): one.name for one in LlamaFileType}
        return known.get(number, "unknown").removeprefix("MOSTLY_").removeprefix("ALL_")

    @functools.cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The template in the file, or else Ollama's; None for a base model that has none.

        Raises:
            TemplateError: it cannot be used.
        """
        # Named ones are of a set, of which llama.cpp gives the default one without a name (transformers' `get_chat_template`).
        for_tools, others = self._template(b"tool_use"), self._template(b"default")
        source = self._template(None) or others or self._ollama_template or for_tools
        if source is None:
            return None
        of_ollama = source is self._ollama_template
        bos, eos = self.bos_text, self.eos_text
        with_tools = ChatTemplate(for_tools, bos=bos, eos=eos) if for_tools is not None else None
        return ChatTemplate(source, bos=bos, eos=eos, with_tools=with_tools, of_ollama=of_ollama)

    @property
    def template_beside(self) -> str | None:
        """The template that Ollama keeps beside the file, where the file has none."""
        own = (self._template(name) for name in (None, b"default"))
        return None if any(source is not None for source in own) else self._ollama_template

    def _template(self, name: bytes | None) -> str | None:
        source = self._llama.llama_model_chat_template(self.handle, name)
        return source.decode("utf-8", errors="replace") if source else None

    @functools.cached_property
    def kv_bytes(self) -> int:
        """Bytes of KV cache that a token of context takes at most: 16-bit keys and values of every block.

        Blocks with a sliding window, or with a state instead, take less.
        """
        llama = self._llama
        n_head = max(1, int(llama.llama_model_n_head(self.handle)))
        heads = int(llama.llama_model_n_head_kv(self.handle)) or n_head

        def length(of: str) -> int:
            text = self.metadata(f"{self.architecture}.attention.{of}_length") or ""
            return int(text) if text.isdecimal() else self.n_embd // n_head

        return 2 * self.n_layer * heads * (length("key") + length("value"))

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """Identity for control vectors.

        Raises:
            ModelError: the file cannot be read, or is another one than was opened.
        """
        texts = (self._llama.llama_vocab_get_text(self.vocabulary, token) for token in range(self.n_vocab))
        return Fingerprint(
            name=self.name,
            architecture=self.architecture,
            n_layer=self.n_layer,
            n_embd=self.n_embd,
            vocabulary=hash_texts(texts),
            content=self._content(),
        )

    def _content(self) -> str:
        # Of the file, which somebody may have replaced: what is built from these weights would be taken for the other's.
        content = content_hash(self.path)
        if _stamps(self.path) != self._loaded:
            raise ModelError(f"{self.path} is no longer the file that was opened.", hint="Open it again.")
        return content

    def tokenize(self, text: str, *, add_special: bool = True, special: bool = True) -> list[int]:
        """Tokens of a text.

        Args:
            text: any text.
            add_special: put the model's beginning-of-sequence token in front, if it wants one and the text has none.
            special: read special tokens such as `<|im_start|>` as such; without it they are plain text.

        Raises:
            LocalsteerError: the text holds half a character.
        """
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise LocalsteerError(
                f"The text is not valid Unicode (character {error.start}).", hint="Was it read from bytes that are not UTF-8?"
            ) from error
        if self.bos_text and text.startswith(self.bos_text):
            add_special = False  # The chat template printed it already.
        capacity = len(data) + 8
        while True:
            tokens = (ctypes.c_int32 * capacity)()
            count = self._llama.llama_tokenize(self.vocabulary, data, len(data), tokens, capacity, add_special, special)
            if count >= 0:
                return list(tokens[:count])
            capacity = -count

    @functools.cached_property
    def template_tokens(self) -> TemplateTokens:
        """What of the vocabulary belongs to the chat template, and how its prompts are tokenised."""
        try:
            template = self.chat_template
            if template is not None:
                _ = template.behind_answer
        except TemplateError:
            template = None  # It is told where a prompt is made; plain text can do without it.
        return TemplateTokens(self.vocabulary, self.n_vocab, self.tokenize, template, parse_special=self._parse_special)

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token, which need not be whole UTF-8 characters.

        Args:
            token: token id.
            special: show special tokens such as `<|im_end|>` instead of dropping them.
        """
        buffer = ctypes.create_string_buffer(64)
        size = self._llama.llama_token_to_piece(self.vocabulary, token, buffer, len(buffer), 0, special)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = self._llama.llama_token_to_piece(self.vocabulary, token, buffer, len(buffer), 0, special)
        return buffer.raw[:size]

    def control_tokens_in(self, *texts: str) -> dict[str, int]:
        """The tokens in these texts that add no text to an answer, by what they look like."""
        tokens = {token for text in texts if text for token in self.tokenize(text, add_special=False)}
        hidden = (token for token in tokens if not self.token_bytes(token))
        return {self.token_bytes(token, special=True).decode("utf-8", errors="replace"): token for token in hidden}

    def detokenize(self, tokens: list[int] | NDArray[np.int32]) -> str:
        """The text of tokens, special tokens left out."""
        return b"".join(self.token_bytes(int(token)) for token in tokens).decode("utf-8", errors="replace")

    def is_end(self, token: int) -> bool:
        """Whether a token ends the answer: end of turn, of text, ..., or what the chat template writes behind one."""
        return bool(self._llama.llama_vocab_is_eog(self.vocabulary, token)) or token == self.template_tokens.end

    @functools.cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """All tokens that end an answer."""
        return tuple(token for token in range(self.n_vocab) if self.is_end(token))

    @functools.cached_property
    def bos_text(self) -> str:
        """The text of the beginning-of-sequence token; empty where there is none."""
        return self._token_text(self._llama.llama_vocab_bos(self.vocabulary))

    @functools.cached_property
    def eos_text(self) -> str:
        """The text of the end-of-sequence token; empty where there is none."""
        return self._token_text(self._llama.llama_vocab_eos(self.vocabulary))

    def _token_text(self, token: int) -> str:
        if token < 0:
            return ""
        return self.token_bytes(token, special=True).decode("utf-8", errors="replace")


def _stamps(path: Path) -> list[tuple[int, int, int]]:
    """What tells a file, or the parts of a split one, from what may take its place."""
    states = [part.stat() for part in model_parts(path) if part.is_file()]
    return [(state.st_mtime_ns, state.st_size, state.st_ino) for state in states]
