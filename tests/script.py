"""A gate whose decisions are written down beforehand."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from localsteer.engine.draft import Draft
from localsteer.engine.gate import Verdict
from localsteer.llama.residual import Edit, Rows


class Script:
    """A gate that says at given tokens what it was told to, each time once, and remembers what it was shown.

    Args:
        edit: how the answer is steered until a verdict says otherwise.
        prompt: the verdict after the prompt, where it is another.
        tokens: by token of the answer the verdict once it is drawn.
        runs: by token of the answer the verdict once it was run.
        ends: verdicts for when the answer is about to end.
        prompt_layers: layers to read over the message.
        output_layers: layers to read at every token.
        hold_back: how many tokens are not shown yet; by default as many as are taken back.
    """

    def __init__(
        self,
        edit: Edit | None = None,
        *,
        prompt: Verdict | None = None,
        tokens: Mapping[int, Verdict] | None = None,
        runs: Mapping[int, Verdict] | None = None,
        ends: Sequence[Verdict] = (),
        prompt_layers: Collection[int] = (),
        output_layers: Collection[int] = (),
        hold_back: int | None = None,
    ) -> None:
        self.prompt_layers = prompt_layers
        self.output_layers = output_layers
        self.prompt_rows: Mapping[int, Rows] = {}
        self.rows: dict[int, Mapping[int, Rows]] = {}
        self.drafts: list[tuple[int, ...]] = []
        self.ends_seen = 0
        self._prompt = prompt if prompt is not None else Verdict(edit)
        self._tokens = dict(tokens or {})
        self._runs = dict(runs or {})
        self._ends = list(ends)
        verdicts = [self._prompt, *self._tokens.values(), *self._runs.values(), *self._ends]
        self.edits: Sequence[Edit | None] = [verdict.edit for verdict in verdicts]
        self.hold_back = max(verdict.rewind for verdict in verdicts) if hold_back is None else hold_back
        self._edit = self._prompt.edit

    def after_prompt(self, rows: Mapping[int, Rows]) -> Verdict:
        self.prompt_rows = rows
        return self._prompt

    def after_token(self, draft: Draft, *, final: bool) -> Verdict:
        self.drafts.append(tuple(draft.tokens))
        self.ends_seen += final
        if final:
            return self._say(self._ends.pop(0) if self._ends else None)
        return self._say(self._tokens.pop(len(draft.tokens), None))

    def after_run(self, draft: Draft, rows: Mapping[int, Rows]) -> Verdict:
        self.rows[len(draft.tokens)] = rows
        return self._say(self._runs.pop(len(draft.tokens), None))

    def _say(self, verdict: Verdict | None) -> Verdict:
        if verdict is None:
            return Verdict(self._edit)
        self._edit = verdict.edit
        return verdict
