"""What decides, while an answer is written, how it is steered.

Without a policy that is settled before the answer begins (`Ungated`); `localsteer.policy` decides from what it reads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from localsteer.engine.draft import Draft
from localsteer.llama.residual import Edit, Rows


@dataclass(frozen=True)
class Verdict:
    """How the answer goes on.

    Attributes:
        edit: what is done to the tokens that follow; None for nothing.
        again: the token that was just run is run once more under `edit`, so that the very next one is steered.
        rewind: this many of the latest tokens, at most the draft's unseen ones, are taken back and written anew under `edit`.
        stop: the answer ends here.
    """

    edit: Edit | None
    again: bool = False
    rewind: int = 0
    stop: bool = False


class Gate(Protocol):
    """Decides for one answer. It is asked after the prompt, after every token, and after every token was run.

    Attributes:
        edits: every edit that it may ask for, but for their strengths.
        prompt_layers: layers to read over the user's message, before any steering of the response; not the last block.
        output_layers: layers to read at every token of the answer.
    """

    edits: Sequence[Edit | None]
    prompt_layers: Collection[int]
    output_layers: Collection[int]

    @property
    def hold_back(self) -> int:
        """How many of the latest tokens must not be shown yet, because they may be taken back."""
        ...

    def after_prompt(self, rows: Mapping[int, Rows]) -> Verdict:
        """The prompt was read: the mean rows (n_embd,) of `prompt_layers` over the user's message."""
        ...

    def after_token(self, draft: Draft, *, final: bool) -> Verdict:
        """A token was drawn, not run yet; or (`final`) the answer is about to end."""
        ...

    def after_run(self, draft: Draft, rows: Mapping[int, Rows]) -> Verdict:
        """The latest token was run: the rows (n_embd,) of `output_layers` at it. Only asked where there are such layers."""
        ...


class Ungated:
    """The same steering from the first token to the last."""

    prompt_layers: Collection[int] = ()
    output_layers: Collection[int] = ()
    hold_back = 0

    def __init__(self, edit: Edit | None) -> None:
        self.edits: Sequence[Edit | None] = (edit,)
        self._verdict = Verdict(edit)

    def after_prompt(self, rows: Mapping[int, Rows]) -> Verdict:  # noqa: D102
        return self._verdict

    def after_token(self, draft: Draft, *, final: bool) -> Verdict:  # noqa: D102
        return self._verdict

    def after_run(self, draft: Draft, rows: Mapping[int, Rows]) -> Verdict:  # noqa: D102
        return self._verdict
