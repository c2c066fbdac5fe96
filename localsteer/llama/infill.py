"""Fill-in-the-middle: prompts that ask for what stands between two texts, in the special tokens that a model was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localsteer.errors import LocalsteerError
from localsteer.llama import library
from localsteer.llama.model import Model

# What separates files for a model that has no token for it, and names for what nobody names; all as in llama-server.
_SNIPPET = "\n\n--- snippet ---\n\n"
_REPOSITORY, _FILE = "myproject", "filename"


@dataclass(frozen=True)
class File:
    """A text that stands before the one to be filled in, such as another file of the same repository.

    Attributes:
        name: its name.
        text: what is in it.
    """

    name: str
    text: str


def can_infill(model: Model) -> bool:
    """Whether a model's vocabulary has the tokens for it."""
    return min(_marks(model)[:3]) >= 0


def infill_prompt(model: Model, prefix: str, suffix: str, *, files: Sequence[File] = (), begun: str = "") -> list[int]:
    """The tokens of a prompt that is answered by what stands between two texts.

    The order is prefix, suffix, middle; other files are laid out as in Qwen2.5-Coder's prompts of whole repositories
    (Hui et al. 2024). Control tokens in the texts are plain text.

    Args:
        model: the model.
        prefix: what stands before.
        suffix: what stands behind.
        files: what else the model shall see.
        begun: the last part of what stands before.

    Raises:
        LocalsteerError: the model's vocabulary has no tokens for that, or a text is no valid Unicode.
    """
    llama, vocabulary = library.load(), model.vocabulary

    def text(given: str) -> list[int]:
        return model.tokenize(given, add_special=False, special=False)

    before, behind, middle, repository, file = _marks(model)
    if not can_infill(model):
        raise LocalsteerError(
            f"{model.name} cannot fill in between texts: its vocabulary has no tokens for that.",
            hint="Use a model that was trained to, such as Qwen2.5-Coder, or go on with the text before.",
        )
    tokens: list[int] = []
    if files and repository >= 0:
        tokens += [repository, *text(f"{_REPOSITORY}\n")]
    for one in files:
        tokens += [file, *text(f"{one.name}\n")] if file >= 0 else text(_SNIPPET)
        tokens += text(one.text)
    if files and file >= 0:
        tokens += [file, *text(f"{_FILE}\n")]
    bos = int(llama.llama_vocab_bos(vocabulary)) if llama.llama_vocab_get_add_bos(vocabulary) else -1
    return [*([bos] if bos >= 0 else []), *tokens, before, *text(prefix), *text(begun), behind, *text(suffix), middle]


def _marks(model: Model) -> list[int]:
    """The tokens before a prefix, a suffix, the middle, a repository and a file; -1 for those that are not there."""
    llama = library.load()
    return [int(getattr(llama, f"llama_vocab_fim_{name}")(model.vocabulary)) for name in ("pre", "suf", "mid", "rep", "sep")]
